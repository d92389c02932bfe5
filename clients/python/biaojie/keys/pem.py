"""PEM: text armour around DER, and PKCS#8 under a passphrase (PBES2), as OpenSSL, Java and
pyhandle's users write them. Needs `cryptography` only for what is encrypted.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from . import der, structures
from .errors import PassphraseNeeded, Undecryptable, bad, missing
from .values import PrivateKey, PublicKey, RsaPrivateKey

TEXT_OCTETS_MAX = 131_072
ITERATIONS_MAX = 1_000_000
"""Of a passphrase's derivation: about half a second."""
ITERATIONS = 200_000
_LABEL = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----")
_PRIVATE = frozenset(f"{kind}PRIVATE KEY" for kind in ("", "RSA ", "DSA ", "EC ", "SM2 "))
_PBES2 = "1.2.840.113549.1.5.13"
_PBKDF2 = "1.2.840.113549.1.5.12"
_HMACS = {
    "1.2.840.113549.2.7": "sha1",
    "1.2.840.113549.2.8": "sha224",
    "1.2.840.113549.2.9": "sha256",
    "1.2.840.113549.2.10": "sha384",
    "1.2.840.113549.2.11": "sha512",
}
_AES_KEYS = {
    "2.16.840.1.101.3.4.1.2": 16,
    "2.16.840.1.101.3.4.1.22": 24,
    "2.16.840.1.101.3.4.1.42": 32,
}
_AES_256_CBC = "2.16.840.1.101.3.4.1.42"
_HMAC_SHA256 = "1.2.840.113549.2.9"


@dataclass(frozen=True, slots=True)
class Block:
    """One armoured block: its label, e.g. `PUBLIC KEY`, and what was inside."""

    label: str
    der: bytes
    headers: bytes = b""


def blocks(text: bytes) -> Iterator[Block]:
    """Every block of a PEM text, in order; raises InvalidKey at one that is damaged."""
    if len(text) > TEXT_OCTETS_MAX:
        raise bad(
            f"The text is over {TEXT_OCTETS_MAX} octets.", f"文本超过 {TEXT_OCTETS_MAX} 字节。"
        )
    at = 0
    while begin := _LABEL.search(text, at):
        label, at = begin[1], begin.end()
        end = text.find(b"-----END " + label + b"-----", at)
        if end < 0:
            continue
        body, at = text[at:end].replace(b"\r\n", b"\n"), end
        headers, empty, rest = body.partition(b"\n\n")
        if not empty or b":" not in headers:
            headers, rest = b"", body
        try:
            octets = base64.b64decode(b"".join(rest.split()), validate=True)
        except binascii.Error:
            raise bad("The PEM text is damaged.", "PEM 文本损坏。") from None
        yield Block(label.decode(), octets, headers)


def armour(label: str, octets: bytes) -> bytes:
    lines = base64.b64encode(octets)
    folded = b"\n".join(lines[at : at + 64] for at in range(0, len(lines), 64))
    name = label.encode()
    return b"-----BEGIN " + name + b"-----\n" + folded + b"\n-----END " + name + b"-----\n"


def encode_public(key: PublicKey) -> bytes:
    return armour("PUBLIC KEY", structures.encode_public(key))


def decode_public(text: bytes) -> PublicKey:
    """The first public key of a PEM text: X.509 or PKCS#1. Raises InvalidKey."""
    for block in blocks(text):
        if block.label in ("PUBLIC KEY", "RSA PUBLIC KEY"):
            return structures.decode_public(block.der)
    raise bad("There is no public key in the text.", "文本中没有公钥。")


def encode_private(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """PKCS#8, encrypted with AES-256 where there is a passphrase."""
    plain = structures.encode_private(key)
    if passphrase is None:
        return armour("PRIVATE KEY", plain)
    return armour("ENCRYPTED PRIVATE KEY", _encrypt(plain, passphrase))


def encode_rsa_private(key: RsaPrivateKey) -> bytes:
    """PKCS#1, unencrypted, for programs that read nothing newer."""
    return armour("RSA PRIVATE KEY", structures.encode_rsa_private(key))


def decode_private(text: bytes, passphrase: bytes | None = None) -> PrivateKey:
    """The first private key of a PEM text; raises InvalidKey, PassphraseNeeded or Undecryptable."""
    for block in blocks(text):
        if block.headers and b"ENCRYPTED" in block.headers:
            raise bad(
                "This old way of encrypting PEM is not supported;"
                " convert it: openssl pkcs8 -topk8 -in FILE.",
                "不支持这种过时的 PEM 加密方式；请先转换：openssl pkcs8 -topk8 -in 文件。",
            )
        if block.label in _PRIVATE:
            return structures.decode_private(block.der)
        if block.label == "ENCRYPTED PRIVATE KEY":
            return structures.decode_private(decrypt(block.der, passphrase))
    raise bad("There is no private key in the text.", "文本中没有私钥。")


def decrypt(data: bytes, passphrase: bytes | None) -> bytes:
    """PrivateKeyInfo out of PKCS#8 EncryptedPrivateKeyInfo (PBES2 with PBKDF2 and AES-CBC)."""
    outer = der.Reader(data)
    reader = outer.sequence()
    outer.done()
    algorithm = reader.sequence()
    sealed = reader.take(der.OCTET_STRING)
    reader.done()
    if algorithm.object_id() != _PBES2:
        raise _unknown_scheme()
    parameters = algorithm.sequence()
    derivation, cipher = parameters.sequence(), parameters.sequence()
    if derivation.object_id() != _PBKDF2:
        raise _unknown_scheme()
    derivation = derivation.sequence()
    salt, iterations = derivation.take(der.OCTET_STRING), derivation.integer()
    if derivation.peek() == der.INTEGER:
        derivation.integer()
    prf = derivation.sequence().object_id() if derivation.left else "1.2.840.113549.2.7"
    size = _AES_KEYS.get(cipher.object_id())
    iv = cipher.take(der.OCTET_STRING) if size else b""
    if prf not in _HMACS or size is None or len(iv) != 16:
        raise _unknown_scheme()
    if not 1 <= iterations <= ITERATIONS_MAX:
        raise bad("The passphrase takes too long to derive.", "口令派生的迭代次数过大。")
    if passphrase is None:
        raise PassphraseNeeded()
    secret = hashlib.pbkdf2_hmac(_HMACS[prf], passphrase, salt, iterations, size)
    return _aes_cbc_open(secret, iv, sealed)


def _encrypt(plain: bytes, passphrase: bytes) -> bytes:
    salt, iv = os.urandom(16), os.urandom(16)
    secret = hashlib.pbkdf2_hmac("sha256", passphrase, salt, ITERATIONS, 32)
    derivation = der.sequence(
        der.object_id(_PBKDF2),
        der.sequence(
            der.octets(salt),
            der.integer(ITERATIONS),
            der.sequence(der.object_id(_HMAC_SHA256), der.null()),
        ),
    )
    cipher = der.sequence(der.object_id(_AES_256_CBC), der.octets(iv))
    algorithm = der.sequence(der.object_id(_PBES2), der.sequence(derivation, cipher))
    return der.sequence(algorithm, der.octets(_aes_cbc_seal(secret, iv, plain)))


def _aes_cbc_seal(secret: bytes, iv: bytes, plain: bytes) -> bytes:
    try:
        from . import ciphers
    except ImportError:
        raise missing("cryptography") from None
    return ciphers.seal(ciphers.aes(secret), iv, plain)


def _aes_cbc_open(secret: bytes, iv: bytes, sealed: bytes) -> bytes:
    try:
        from . import ciphers
    except ImportError:
        raise missing("cryptography") from None
    return ciphers.unseal(ciphers.aes(secret), iv, sealed)


def _unknown_scheme() -> Undecryptable:
    return Undecryptable(
        "The private key is encrypted in a way that is not supported (PBES2 with AES is);"
        " convert it: openssl pkcs8 -topk8 -v2 aes256 -in FILE.",
        "不支持该私钥的加密方式（支持 PBES2 与 AES）；请先转换："
        "openssl pkcs8 -topk8 -v2 aes256 -in 文件。",
    )
