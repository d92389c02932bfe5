"""Keys to and from the openssl command: what it writes we read, what we write it reads, and
signatures both ways, SM2 with SM3 too."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from biaojie.keys import (
    Sm2PrivateKey,
    decode_certificate,
    fingerprint,
    generate,
    load,
    pem,
    self_signed,
    sign,
    sm2_curve,
    verify,
)

DATA = "nonce and digest, 口令".encode()
SM2_USER = "88.118.8/用户"


@pytest.fixture
def openssl(tmp_path: Path) -> OpenSsl:
    return OpenSsl(tmp_path)


class OpenSsl:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *words: str, stdin: bytes = b"") -> bytes:
        done = subprocess.run(
            ["openssl", *words],
            input=stdin,
            cwd=self.folder,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    def file(self, name: str, content: bytes) -> str:
        (self.folder / name).write_bytes(content)
        return name


MADE = {
    "rsa": ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
    "rsa pkcs1": ["genrsa", "-traditional", "2048"],
    "sm2": ["genpkey", "-algorithm", "SM2"],
    "sm2 ec": ["ecparam", "-name", "SM2", "-genkey"],
    "rsa sealed": [*["genpkey", "-algorithm", "RSA", "-aes256", "-pass", "pass:p"]],
    "sm2 sealed": [*["genpkey", "-algorithm", "SM2", "-aes128", "-pass", "pass:p"]],
}


@pytest.mark.parametrize("made", MADE)
def test_what_openssl_makes_we_read(openssl: OpenSsl, made: str) -> None:
    text = openssl.run(*MADE[made])
    held = load(text, b"p")
    assert held.public.kind == made[:3].upper()
    name = openssl.file("key.pem", text)
    public = openssl.run("pkey", "-in", name, "-passin", "pass:p", "-pubout")
    assert load(public).public == held.public
    assert pem.encode_public(held.public) == public
    outside = openssl.run("pkey", "-in", name, "-passin", "pass:p", "-outform", "DER")
    assert load(outside).private == held.private


@pytest.mark.parametrize("kind", ["rsa", "dsa", "sm2"])
def test_what_we_make_openssl_reads(openssl: OpenSsl, kind: str) -> None:
    key = generate(kind)
    plain = openssl.file("plain.pem", pem.encode_private(key))
    sealed = openssl.file("sealed.pem", pem.encode_private(key, "口令".encode()))
    public = pem.encode_public(key.public)
    assert openssl.run("pkey", "-in", plain, "-pubout") == public
    assert openssl.run("pkey", "-in", sealed, "-passin", "pass:口令", "-pubout") == public
    assert openssl.run("pkey", "-in", plain, "-noout", "-check").strip().endswith(b"valid")
    der = openssl.file("p.der", openssl.run("pkey", "-in", plain, "-pubout", "-outform", "DER"))
    digest = openssl.run("dgst", "-sha256", "-r", der).split()[0].decode()
    assert digest == fingerprint(key.public)


@pytest.mark.parametrize("kind", ["rsa", "dsa"])
@pytest.mark.parametrize("name", ["SHA-1", "SHA-256"])
def test_signatures_both_ways(openssl: OpenSsl, kind: str, name: str) -> None:
    key = generate(kind)
    flag = "-" + name.replace("-", "").lower()
    private = openssl.file("key.pem", pem.encode_private(key))
    public = openssl.file("public.pem", pem.encode_public(key.public))
    theirs = openssl.run("dgst", flag, "-sign", private, stdin=DATA)
    assert verify(key.public, name, DATA, theirs)
    ours = openssl.file("signature", sign(key, name, DATA))
    openssl.run("dgst", flag, "-verify", public, "-signature", ours, stdin=DATA)


def test_sm2_signatures_both_ways(openssl: OpenSsl) -> None:
    key = generate("sm2")
    assert isinstance(key, Sm2PrivateKey)
    private = openssl.file("key.pem", pem.encode_private(key))
    public = openssl.file("public.pem", pem.encode_public(key.public))
    digest = openssl.file("digest", sm2_curve.sm3(DATA))
    assert openssl.run("dgst", "-sm3", "-binary", stdin=DATA) == sm2_curve.sm3(DATA)
    user = ["-rawin", "-digest", "sm3", "-pkeyopt", f"distid:{SM2_USER}"]
    theirs = openssl.run("pkeyutl", "-sign", "-in", digest, "-inkey", private, *user)
    assert verify(key.public, "SM3", DATA, theirs, SM2_USER)
    assert not verify(key.public, "SM3", DATA, theirs, SM2_USER.lower() + "x")
    ours = openssl.file("signature", sign(key, "SM3", DATA, SM2_USER))
    check = ["-verify", "-in", digest, "-pubin", "-inkey", public, "-sigfile", ours]
    assert b"Verified Successfully" in openssl.run("pkeyutl", *check, *user)


def test_sm2_encryption_is_read_by_openssl(openssl: OpenSsl) -> None:
    from biaojie.keys import der

    key = generate("sm2")
    assert isinstance(key, Sm2PrivateKey)
    sealed = sm2_curve.encrypt((key.public.x, key.public.y), b"session key")
    x, y = int.from_bytes(sealed[1:33], "big"), int.from_bytes(sealed[33:65], "big")
    members = der.integer(x), der.integer(y), der.octets(sealed[65:97]), der.octets(sealed[97:])
    name = openssl.file("sealed", der.sequence(*members))
    private = openssl.file("key.pem", pem.encode_private(key))
    assert openssl.run("pkeyutl", "-decrypt", "-in", name, "-inkey", private) == b"session key"


@pytest.mark.parametrize("kind", ["rsa", "dsa"])
def test_client_certificates(openssl: OpenSsl, kind: str) -> None:
    key = generate(kind)
    name = openssl.file("cert.pem", self_signed(key, "300:88.118.8/ADMIN"))
    assert openssl.run("verify", "-CAfile", name, "-purpose", "sslclient", name)
    subject = openssl.run("x509", "-in", name, "-noout", "-subject", "-nameopt", "RFC2253")
    assert subject.strip() == b"subject=UID=300:88.118.8/ADMIN,CN=300:88.118.8/ADMIN"
    assert openssl.run("x509", "-in", name, "-noout", "-pubkey") == pem.encode_public(key.public)


def test_certificates_made_for_pyhandle_with_openssl(openssl: OpenSsl) -> None:
    """As pyhandle's manual has it: a key, a request whose subject is the handle, self-signed."""
    words = "req -x509 -newkey rsa:2048 -nodes -keyout key.pem -days 10 -subj"
    for subject in ("/UID=301:88.118.8\\/ADMIN", "/CN=301:88.118.8\\/ADMIN"):
        found = decode_certificate(openssl.run(*words.split(), subject))
        assert found.identity == "301:88.118.8/ADMIN"
        assert found.public == load((openssl.folder / "key.pem").read_bytes()).public


def test_sm2_certificates_are_read(openssl: OpenSsl) -> None:
    key = openssl.file("key.pem", openssl.run("genpkey", "-algorithm", "SM2"))
    words = ["req", "-x509", "-key", key, "-days", "10", "-sm3", "-sigopt", "distid:1"]
    text = openssl.run(*words, "-subj", "/UID=300:88.118.8\\/ADMIN")
    found = decode_certificate(text)
    assert found.identity == "300:88.118.8/ADMIN"
    assert found.public == load((openssl.folder / key).read_bytes()).public
