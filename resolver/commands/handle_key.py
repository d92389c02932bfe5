"""`handle-key …`: keys by which people and programs log in over the Handle protocol.

Nothing here talks to a node. A private key is written to files only its owner can read, never
over a file that exists, and to standard output only on `export --private`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import AsJson

if TYPE_CHECKING:
    from biaojie.keys import Loaded, PrivateKey, PublicKey
    from biaojie.record import Value

INDEX_DEFAULT = 300


class Kind(StrEnum):
    RSA = "rsa"
    DSA = "dsa"
    SM2 = "sm2"


class Format(StrEnum):
    PEM = "pem"
    BIN = "bin"
    JWK = "jwk"
    CERT = "cert"
    VALUE = "value"


_File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="handle.net .bin, PEM, DER, certificate or JWK; - for standard input. 密钥文件。",
        show_default=False,
    ),
]
_Identity = Annotated[
    str | None,
    typer.Option(
        help="index:handle, e.g. 300:88.118.8/ADMIN. 身份（索引:标识）。", show_default=False
    ),
]
_Passphrase = Annotated[
    str | None,
    typer.Option(
        envvar="BIAOJIE_PASSPHRASE",
        show_default=False,
        help="Of the private key; better in the environment than on the command line. 私钥口令。",
    ),
]
_PassphraseFile = Annotated[
    Path | None,
    typer.Option(help="File whose first line is the passphrase. 口令文件。", show_default=False),
]


def attach(app: typer.Typer) -> None:
    keys = typer.Typer(
        no_args_is_help=True, help="Keys for the Handle protocol. Handle 协议身份密钥。"
    )
    keys.command("new")(new)
    keys.command("import")(import_key)
    keys.command("show")(show)
    keys.command("export")(export)
    app.add_typer(keys, name="handle-key")


def new(
    identity: Annotated[
        str,
        typer.Option(
            help="index:handle that will hold it, e.g. 300:88.118.8/ADMIN. 身份（索引:标识）。",
            show_default=False,
        ),
    ],
    kind: Annotated[Kind, typer.Option("--type", help="rsa, dsa or sm2. 密钥类型。")] = Kind.RSA,
    out: Annotated[Path, typer.Option(help="Folder for the files. 输出目录。")] = Path("."),
    bits: Annotated[
        int | None, typer.Option(help="2048 to 4096. 密钥长度。", show_default="2048")
    ] = None,
    passphrase: _Passphrase = None,
    passphrase_file: _PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a key pair, its files and the value to register. 生成密钥对、证书与待注册的值。

    Writes NAME-privkey.pem and NAME-privkey.bin (for Java programs), readable by you alone,
    NAME-pubkey.pem, NAME-pubkey.bin and NAME-cert.pem (for pyhandle), NAME being the identity.
    SM2 has no private .bin and no certificate. Prints the HS_PUBKEY value:
    biaojie register 88.118.8/ADMIN "$(biaojie handle-key new --identity 300:88.118.8/ADMIN)".
    """
    from .session import run

    async def work() -> None:
        from biaojie.keys import generate, parse_identity

        index, _ = parse_identity(identity)
        secret = _secret(passphrase, passphrase_file)
        stem = "".join(c if c.isalnum() or c in ".-" else "_" for c in identity)[:60]
        out.mkdir(parents=True, exist_ok=True)
        made = _files(generate(kind.value, bits), identity, secret)
        written = _write_all({out / f"{stem}-{end}": content for end, content in made.items()})
        _say_files(written)
        _print_value(_public(made), index or INDEX_DEFAULT)

    run(work, as_json=as_json)


def import_key(
    file: _File,
    index: Annotated[
        int | None,
        typer.Option(
            min=1, help="Index of the value. 值索引。", show_default="the certificate's, or 300"
        ),
    ] = None,
    passphrase: _Passphrase = None,
    passphrase_file: _PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Read a key file of any format; print the value to register. 识别密钥文件并输出待注册的值。

    What the file is goes to standard error, the value to standard output:
    biaojie register 88.118.8/ADMIN "$(biaojie handle-key import admpub.bin)".
    """
    from .session import run

    async def work() -> None:
        from biaojie.keys import parse_identity

        held = _load(file, passphrase, passphrase_file)
        typer.echo("\n".join(_facts(held)), err=True)
        named = parse_identity(held.identity)[0] if held.identity else 0
        _print_value(held.public, index or named or INDEX_DEFAULT)

    run(work, as_json=as_json)


def show(
    file: _File,
    passphrase: _Passphrase = None,
    passphrase_file: _PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """What a key file holds: format, type, size, fingerprint. 查看密钥文件信息。

    The fingerprint is the SHA-256 of the public key in DER (openssl pkey -pubin -outform der).
    """
    from .session import run
    from .wording import to_json

    async def work() -> None:
        from biaojie.keys import fingerprint, jwk

        held = _load(file, passphrase, passphrase_file)
        if not as_json:
            typer.echo("\n".join(_facts(held)))
            return
        facts = {
            "format": held.format,
            "type": held.public.kind,
            "bits": held.public.bits,
            "sha256": fingerprint(held.public),
            "private": held.private is not None,
            "public_key": jwk.encode(held.public),
        }
        typer.echo(to_json({**facts, "identity": held.identity} if held.identity else facts))

    run(work, as_json=as_json)


def export(
    file: _File,
    form: Annotated[
        Format,
        typer.Option("--format", help="pem, bin, jwk, cert or value. 格式。", show_default=False),
    ],
    private: Annotated[
        bool, typer.Option("--private", help="The private key, as pem or bin. 导出私钥。")
    ] = False,
    identity: _Identity = None,
    out: Annotated[
        Path | None,
        typer.Option(help="New file to write. 输出文件。", show_default="standard output"),
    ] = None,
    passphrase: _Passphrase = None,
    passphrase_file: _PassphraseFile = None,
    new_passphrase: Annotated[
        str | None,
        typer.Option(
            envvar="BIAOJIE_NEW_PASSPHRASE",
            help="For the private key written. 新口令。",
            show_default="none: written unencrypted",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the key of a file in another format. 转换密钥格式。

    The public key, unless --private asks for the private one. `cert` is a self-signed client
    certificate for --identity, and needs a file with the private key.
    """
    from .session import run

    async def work() -> None:
        held = _load(file, passphrase, passphrase_file)
        secret = new_passphrase.encode() if new_passphrase else None
        content = _exported(held, form, private, identity, secret)
        if out is None:
            typer.get_binary_stream("stdout").write(content)
            return
        _say_files(_write_all({out: content}, private=private))

    run(work, as_json=as_json)


def _files(key: PrivateKey, identity: str, secret: bytes | None) -> dict[str, bytes]:
    """The files of a new key by the end of their names."""
    from biaojie.keys import Sm2PrivateKey, encode_public_key, keyfile, pem, self_signed

    files = {"privkey.pem": pem.encode_private(key, secret)}
    if not isinstance(key, Sm2PrivateKey):
        files["privkey.bin"] = keyfile.encode_private(key, secret)
        files["cert.pem"] = self_signed(key, identity)
    files["pubkey.pem"] = pem.encode_public(key.public)
    files["pubkey.bin"] = encode_public_key(key.public)
    return files


def _public(files: dict[str, bytes]) -> PublicKey:
    """The public key as it stands in its file: what was written is what is registered."""
    from biaojie.keys import decode_public_key

    return decode_public_key(files["pubkey.bin"])


def _exported(
    held: Loaded, form: Format, private: bool, identity: str | None, secret: bytes | None
) -> bytes:
    from biaojie.errors import InvalidRequest
    from biaojie.keys import encode_public_key, jwk, keyfile, parse_identity, pem, self_signed

    from .wording import to_json

    if private and form not in (Format.PEM, Format.BIN):
        raise InvalidRequest(
            "A private key is exported as pem or bin.", "私钥只能导出为 pem 或 bin 格式。"
        )
    if (private or form is Format.CERT) and held.private is None:
        raise InvalidRequest("The file has no private key in it.", "该文件中没有私钥。")
    identity = identity or held.identity
    match form:
        case Format.PEM if private:
            assert held.private is not None
            return pem.encode_private(held.private, secret)
        case Format.BIN if private:
            assert held.private is not None
            return keyfile.encode_private(held.private, secret)
        case Format.PEM:
            return pem.encode_public(held.public)
        case Format.BIN:
            return encode_public_key(held.public)
        case Format.JWK:
            return (to_json(jwk.encode(held.public)) + "\n").encode()
        case Format.VALUE:
            index = parse_identity(identity)[0] if identity else 0
            return (_value_json(held.public, index or INDEX_DEFAULT) + "\n").encode()
        case Format.CERT:
            if identity is None:
                raise InvalidRequest(
                    "A certificate names an identity; give --identity.",
                    "证书须指明身份；请使用 --identity。",
                )
            assert held.private is not None
            return self_signed(held.private, identity)


def _load(file: Path, passphrase: str | None, passphrase_file: Path | None) -> Loaded:
    """The key of a file; asks for the passphrase where one is needed and somebody is there."""
    import sys

    from biaojie.keys import PassphraseNeeded, keyfile, load

    from .wording import say

    limit = keyfile.FILE_OCTETS_MAX + 1
    if str(file) == "-":
        data = typer.get_binary_stream("stdin").read(limit)
    else:
        with file.open("rb") as opened:
            data = opened.read(limit)
    try:
        return load(data, _secret(passphrase, passphrase_file))
    except PassphraseNeeded:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
        typed = typer.prompt(say("Passphrase", "口令"), hide_input=True, err=True)
        return load(data, str(typed).encode())


def _secret(passphrase: str | None, file: Path | None) -> bytes | None:
    if file is not None:
        with file.open("rb") as opened:
            return opened.readline(4096).rstrip(b"\r\n") or None
    return passphrase.encode("utf-8", "surrogateescape") if passphrase else None


def _write_all(files: dict[Path, bytes], *, private: bool = False) -> list[Path]:
    """Write every file or none: an existing one is never replaced. Whatever holds a private
    key is made readable by its owner alone before anything is in it."""
    import os

    from biaojie.errors import InvalidFile

    written: list[Path] = []
    try:
        for path, content in files.items():
            mode = 0o600 if private or "-privkey." in path.name else 0o644
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as to:
                written.append(path)
                to.write(content)
    except FileExistsError as error:
        _remove(written)
        raise InvalidFile(
            f"{error.filename} exists already; nothing was written.",
            f"{error.filename} 已存在；未写入任何文件。",
        ) from None
    except OSError:
        _remove(written)
        raise
    return written


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _say_files(paths: list[Path]) -> None:
    from .wording import safe, say

    for path in paths:
        typer.echo(say(f"wrote {safe(str(path))}", f"已写入 {safe(str(path))}"), err=True)


def _facts(held: Loaded) -> list[str]:
    from biaojie.keys import fingerprint

    from .wording import safe, say

    key = held.public
    part = say("private and public", "私钥与公钥") if held.private else say("public", "公钥")
    lines = [
        say(f"format       {held.format}", f"格式    {held.format}"),
        say(
            f"key          {key.kind}, {key.bits} bits, {part}",
            f"密钥    {key.kind} {key.bits} 位，{part}",
        ),
        say(f"fingerprint  sha256:{fingerprint(key)}", f"指纹    sha256:{fingerprint(key)}"),
    ]
    if held.identity:
        name = safe(held.identity)
        lines.append(say(f"identity     {name}", f"身份    {name}"))
    return lines


def _print_value(key: PublicKey, index: int) -> None:
    typer.echo(_value_json(key, index))


def _value_json(key: PublicKey, index: int) -> str:
    from biaojie.keys import encode_public_key
    from biaojie.record import Value
    from biaojie.wire.document import encode_value

    from .wording import to_json

    value: Value = Value(index, "HS_PUBKEY", encode_public_key(key))
    value.check()
    return to_json(encode_value(value))
