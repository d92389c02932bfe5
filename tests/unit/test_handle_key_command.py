"""`biaojie handle-key`: what it writes and prints, and how it refuses."""

from __future__ import annotations

import json
import os
import pty
import select
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from biaojie.keys import Sm2PublicKey, decode_public_key, fingerprint, jwk, load
from biaojie.record import Value
from biaojie.wire.document import decode_value
from resolver.commands import client_commands
from resolver.commands.values import parse_value

VECTORS = Path(__file__).parents[1] / "vectors" / "keys"
IDENTITY = "300:88.118.8/ADMIN"
STEM = "300_88.118.8_ADMIN"
app = typer.Typer()
client_commands(app)


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("BIAOJIE_PASSPHRASE", "BIAOJIE_NEW_PASSPHRASE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)


def call(*words: str, stdin: bytes | None = None, **environment: str) -> tuple[int, bytes, str]:
    done = CliRunner().invoke(app, ["handle-key", *words], env=environment, input=stdin)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.stderr
    return done.exit_code, done.stdout_bytes, done.stderr


def facts(*words: str, **environment: str) -> dict[str, object]:
    code, out, err = call("show", *words, "--json", **environment)
    assert code == 0, err
    found: dict[str, object] = json.loads(out)
    return found


@pytest.mark.parametrize("kind", ["rsa", "dsa", "sm2"])
def test_new_writes_every_file_and_prints_the_value(kind: str) -> None:
    code, out, err = call("new", "--type", kind, "--identity", IDENTITY, "--out", "a/b")
    assert code == 0, err
    ends = {"privkey.pem", "pubkey.pem", "pubkey.bin"}
    ends |= set() if kind == "sm2" else {"privkey.bin", "cert.pem"}
    assert {path.name for path in Path("a/b").iterdir()} == {f"{STEM}-{end}" for end in ends}
    assert all(f"wrote a/b/{STEM}-{end}" in err for end in ends)
    value = parse_value(out.decode())
    assert value == decode_value(json.loads(out))
    assert (value.index, value.type, str(value.permissions)) == (300, "HS_PUBKEY", "1110")
    public = decode_public_key(value.data)
    assert public.kind == kind.upper()
    for end in ends:
        path = Path(f"a/b/{STEM}-{end}")
        held = load(path.read_bytes())
        assert held.public == public
        private = end.startswith("privkey")
        assert (held.private is not None) == private
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or not private
        assert held.identity == (IDENTITY if end == "cert.pem" else None)
    assert b"PRIVATE" not in out
    assert "PRIVATE" not in err


def test_a_passphrase_seals_the_private_files() -> None:
    Path("word").write_bytes("口令\n".encode())
    assert call("new", "--identity", IDENTITY, "--passphrase-file", "word")[0] == 0
    for end in ("privkey.pem", "privkey.bin"):
        name = f"{STEM}-{end}"
        code, out, err = call("show", name)
        assert (code, out) == (2, b"")
        assert "The private key is encrypted" in err
        code, _, err = call("show", name, BIAOJIE_PASSPHRASE="wrong")
        assert code == 2
        assert "cannot be decrypted" in err
        assert "passphrase" in err
        assert facts(name, BIAOJIE_PASSPHRASE="口令")["private"] is True


def test_nothing_is_written_over() -> None:
    assert call("new", "--identity", IDENTITY)[0] == 0
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    Path(f"{STEM}-privkey.pem").unlink()
    code, out, err = call("new", "--identity", IDENTITY)
    assert (code, out) == (2, b"")
    assert "exists already; nothing was written" in err
    left = {path.name: path.read_bytes() for path in Path().iterdir()}
    assert left == {name: data for name, data in before.items() if "privkey.pem" not in name}
    code, _, err = call(
        "export", f"{STEM}-privkey.bin", "--format", "jwk", "--out", f"{STEM}-cert.pem"
    )
    assert code == 2
    assert Path(f"{STEM}-cert.pem").read_bytes() == before[f"{STEM}-cert.pem"]


@pytest.mark.parametrize(
    ("name", "index", "kind", "form"),
    [
        ("rsa-pubkey.bin", 300, "RSA", "handle.net public key"),
        ("rsa-privkey.bin", 300, "RSA", "handle.net private key (not encrypted)"),
        ("rsa-privkey-aes.bin", 300, "RSA", "handle.net private key (AES)"),
        ("rsa-privkey-des-cbc.bin", 300, "RSA", "handle.net private key (DES)"),
        ("dsa-cert.pem", 301, "DSA", "PEM CERTIFICATE"),
        ("sm2-private.pem", 300, "SM2", "PEM PRIVATE KEY"),
    ],
)
def test_import_knows_every_format(name: str, index: int, kind: str, form: str) -> None:
    path = VECTORS / name
    code, out, err = call("import", str(path), BIAOJIE_PASSPHRASE="abracadabra")
    assert code == 0, err
    value: Value = parse_value(out.decode())
    public = load(path.read_bytes(), b"abracadabra").public
    assert (value.index, value.type) == (index, "HS_PUBKEY")
    assert decode_public_key(value.data) == public
    assert form in err
    assert kind in err
    assert fingerprint(public) in err
    assert ("identity     301:88.118.8/ADMIN" in err) == (index == 301)
    code, out, _ = call("import", str(path), "--index", "7", BIAOJIE_PASSPHRASE="abracadabra")
    assert parse_value(out.decode()).index == 7


def test_standard_input_and_json_web_keys() -> None:
    public = load((VECTORS / "sm2-public.pem").read_bytes()).public
    code, out, err = call(
        "export", "-", "--format", "jwk", stdin=(VECTORS / "sm2-public.pem").read_bytes()
    )
    assert code == 0, err
    assert jwk.decode(json.loads(out)) == public
    code, again, err = call("import", "-", stdin=out)
    assert code == 0, err
    assert decode_public_key(parse_value(again.decode()).data) == public


def test_export_gives_the_public_key_unless_asked() -> None:
    source = str(VECTORS / "rsa-privkey.bin")
    private = load((VECTORS / "rsa-privkey.bin").read_bytes()).private
    assert private is not None
    for form in ("pem", "bin", "jwk", "value"):
        code, out, err = call("export", source, "--format", form)
        assert code == 0, err
        assert b"PRIV" not in out
        key = (
            decode_public_key(parse_value(out.decode()).data)
            if form == "value"
            else load(out).public
        )
        assert key == private.public
    for form in ("pem", "bin"):
        code, out, err = call("export", source, "--format", form, "--private")
        assert load(out).private == private, err
        sealed = Path(f"sealed.{form}")
        words = ["export", source, "--format", form, "--private", "--out", str(sealed)]
        assert call(*words, BIAOJIE_NEW_PASSPHRASE="p")[0] == 0
        assert stat.S_IMODE(sealed.stat().st_mode) == 0o600
        assert load(sealed.read_bytes(), b"p").private == private
    code, out, err = call("export", source, "--format", "cert", "--identity", IDENTITY)
    assert load(out).identity == IDENTITY, err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["new", "--identity", "x"], "index:handle"),
        (["new", "--identity", IDENTITY, "--bits", "512"], "2048, 3072 or 4096"),
        (["new", "--identity", IDENTITY, "--out", "/dev/null/x"], "Not a directory"),
        (["show", "nothing"], "No such file"),
        (["show", "."], "Is a directory"),
        (["show", "/dev/null"], "no key file in a format that we know"),
        (["show", "/dev/zero"], "at most"),
        (["import", str(VECTORS / "README.md")], "no key file"),
        (["export", "RSA", "--format", "jwk", "--private"], "pem or bin"),
        (["export", "RSA", "--format", "cert"], "no private key in it"),
        (["export", "RSA", "--format", "pem", "--private"], "no private key in it"),
        (["export", "DSA", "--format", "cert"], "give --identity"),
        (["export", "SM2", "--format", "bin", "--private"], "no form for SM2"),
        (["export", "SM2", "--format", "cert", "--identity", IDENTITY], "not SM2"),
        (["show", "DSA", "--passphrase-file", "nothing"], "No such file"),
    ],
)
def test_what_cannot_be_is_said(words: list[str], said: str) -> None:
    names = {"RSA": "rsa-pubkey.bin", "DSA": "dsa-privkey.bin", "SM2": "sm2-private.pem"}
    code, out, err = call(
        *(str(VECTORS / names[word]) if word in names else word for word in words)
    )
    assert code in (1, 2)
    assert said in err
    assert out == b""
    assert list(Path().iterdir()) == []


def test_a_person_is_asked_for_the_passphrase() -> None:
    program = "import sys; sys.argv[0] = 'biaojie'; from resolver.__main__ import main; main()"
    words = ["handle-key", "show", str(VECTORS / "rsa-privkey-aes.bin")]
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdin=theirs,
        stderr=theirs,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        try:
            asked = b""
            while not asked.endswith(b": "):  # the space comes when what is typed is hidden
                assert select.select([ours], [], [], 30)[0], asked
                asked += os.read(ours, 1000)
            os.write(ours, b"abracadabra\n")
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()
            os.close(ours)
    assert asked == b"Passphrase: "
    assert process.returncode == 0
    assert b"RSA, 2048 bits" in out


def test_it_speaks_chinese() -> None:
    code, out, _ = call("show", str(VECTORS / "sm2-private.pem"), LANG="zh_CN.UTF-8")
    assert code == 0
    assert "密钥    SM2 256 位，私钥与公钥" in out.decode()
    code, _, err = call("show", "/dev/null", LANG="zh_CN.UTF-8")
    assert "密钥无法使用" in err
    assert "无法识别的密钥文件格式" in err
    for command in ("new", "import", "show", "export"):
        help_text = call(command, "--help")[1].decode()
        assert any("\u4e00" <= character <= "\u9fff" for character in help_text)


def test_the_json_has_the_whole_public_key() -> None:
    found = facts(str(VECTORS / "sm2-public.pem"))
    key = jwk.decode(found.pop("public_key"))
    assert isinstance(key, Sm2PublicKey)
    assert found == {
        "format": "PEM PUBLIC KEY",
        "type": "SM2",
        "bits": 256,
        "sha256": fingerprint(key),
        "private": False,
    }
