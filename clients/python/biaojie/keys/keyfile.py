"""Key files in every format that existing clients read, told apart by their content: handle.net's
`admpriv.bin` and `admpub.bin`, PEM and DER, certificates, and public keys as JSON.

handle.net's private key file is an int4 way of encryption and what it encrypted:

    0  DES, ECB, key MD5(passphrase)      octets
    1  none                               octets
    2  DES, CBC, key MD5(passphrase)      iv(8) octets
    3  triple DES, CBC, PBKDF2-HMAC-SHA1  salt iterations key-bits iv octets
    4  AES-128, CBC, PBKDF2-HMAC-SHA1     salt iterations key-bits iv octets
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from ..wire.handle.cursor import Malformed, Reader, block, u32
from . import jwk, octets, pem, structures
from .errors import InvalidKey, PassphraseNeeded, Undecryptable, bad, missing
from .values import PrivateKey, PublicKey

if TYPE_CHECKING:
    from .ciphers import Algorithm

FILE_OCTETS_MAX = 131_072
ITERATIONS = 100_000
_SALT_OCTETS_MAX = 1_024


class Encryption(IntEnum):
    """How a handle.net private key file is encrypted."""

    DES_ECB = 0
    NONE = 1
    DES_CBC = 2
    TRIPLE_DES = 3
    AES = 4


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a key file held. `format` names what it was, e.g. `handle.net private key (AES)`;
    `identity` is `index:handle` where a certificate named one."""

    public: PublicKey
    private: PrivateKey | None
    format: str
    identity: str | None = None


def load(data: bytes, passphrase: bytes | None = None) -> Loaded:
    """The key in a file of any known format.

    Raises InvalidKey, PassphraseNeeded, Undecryptable, or MissingLibrary where an encrypted file
    or a certificate needs `cryptography` and it is not installed.
    """
    if len(data) > FILE_OCTETS_MAX:
        raise bad(
            f"A key file has at most {FILE_OCTETS_MAX} octets.",
            f"密钥文件不超过 {FILE_OCTETS_MAX} 字节。",
        )
    stripped = data.strip()
    if b"-----BEGIN " in data:
        return _load_pem(data, passphrase)
    if stripped[:1] == b"{":
        return _load_json(stripped)
    if data[:1] == b"\x30":
        return _load_der(data, passphrase)
    if data[:3] == b"\0\0\0" and len(data) > 4:
        if data[3] < 10:
            private = decode_private(data, passphrase)
            return Loaded(private.public, private, f"handle.net private key ({_name(data[3])})")
        return Loaded(octets.decode_public_key(data), None, "handle.net public key")
    raise bad("This is no key file in a format that we know.", "无法识别的密钥文件格式。")


def encode_private(
    key: PrivateKey, passphrase: bytes | None = None, encryption: Encryption | None = None
) -> bytes:
    """A handle.net private key file: AES where there is a passphrase, else unencrypted.

    `encryption` may ask for TRIPLE_DES, for readers older than handle.net 8; DES is read only.
    """
    plain = octets.encode_private_key(key)
    if passphrase is None:
        return u32(Encryption.NONE) + plain
    chosen = Encryption.AES if encryption is None else encryption
    if chosen not in _DERIVED:
        raise bad(
            "A passphrase needs AES or triple DES; DES is no protection.",
            "口令加密须使用 AES 或三重 DES；DES 不再安全。",
        )
    bits, iv_octets = _DERIVED[chosen]
    salt, iv = os.urandom(16), os.urandom(iv_octets)
    secret = hashlib.pbkdf2_hmac("sha1", java_password(passphrase), salt, ITERATIONS, bits // 8)
    sealed = _seal(chosen, secret, iv, plain)
    head = u32(chosen) + block(salt) + u32(ITERATIONS) + u32(bits)
    return head + block(iv) + block(sealed)


def decode_private(data: bytes, passphrase: bytes | None = None) -> PrivateKey:
    """The key of a handle.net private key file."""
    reader = Reader(data)
    try:
        kind = reader.u32("a way of encryption")
        if kind == Encryption.NONE:
            return octets.decode_private_key(reader.rest())
        if kind not in set(Encryption):
            raise reader.fault("a way of encryption, 0 to 4")
        if passphrase is None:
            raise PassphraseNeeded()
        plain = _decrypt(Encryption(kind), reader, passphrase)
    except Malformed as fault:
        raise InvalidKey(f"The key file is damaged: {fault}.", "密钥文件损坏。") from None
    try:
        return octets.decode_private_key(plain)
    except InvalidKey:
        # A wrong passphrase whose padding happened to look right
        raise Undecryptable() from None


def java_password(secret: bytes) -> bytes:
    """What handle.net derives from: each octet taken as a character, and that in UTF-8 again."""
    return secret.decode("latin-1").encode()


_DERIVED = {Encryption.TRIPLE_DES: (192, 8), Encryption.AES: (128, 16)}
"""Bits of the derived key, octets of the IV."""


def _decrypt(kind: Encryption, reader: Reader, passphrase: bytes) -> bytes:
    if kind in _DERIVED:
        salt = reader.block("a salt", _SALT_OCTETS_MAX)
        iterations, bits = reader.u32("iterations"), reader.u32("key bits")
        iv, sealed = reader.block("an IV", 16), reader.block("the encrypted key")
        expected_bits, iv_octets = _DERIVED[kind]
        if not (1 <= iterations <= pem.ITERATIONS_MAX and expected_bits <= bits <= 256):
            raise bad("The passphrase takes too long to derive.", "口令派生参数超出范围。")
        if len(iv) != iv_octets:
            raise Undecryptable()
        secret = hashlib.pbkdf2_hmac("sha1", java_password(passphrase), salt, iterations, bits // 8)
        return _open(kind, secret[: expected_bits // 8], iv, sealed)
    des_iv = reader.octets(8, "an IV") if kind == Encryption.DES_CBC else None
    secret = hashlib.md5(passphrase, usedforsecurity=False).digest()[:8]
    return _open(kind, secret, des_iv, reader.rest())


def _seal(kind: Encryption, secret: bytes, iv: bytes, plain: bytes) -> bytes:
    try:
        from . import ciphers
    except ImportError:
        raise missing("cryptography") from None
    return ciphers.seal(_algorithm(kind, secret), iv, plain)


def _open(kind: Encryption, secret: bytes, iv: bytes | None, sealed: bytes) -> bytes:
    from . import ciphers

    return ciphers.unseal(_algorithm(kind, secret), iv, sealed)


def _algorithm(kind: Encryption, secret: bytes) -> Algorithm:
    from . import ciphers

    if kind == Encryption.AES:
        return ciphers.aes(secret)
    if kind == Encryption.TRIPLE_DES:
        return ciphers.triple_des(secret)
    return ciphers.des(secret)


def _load_pem(data: bytes, passphrase: bytes | None) -> Loaded:
    """A private key before a certificate before a public key: pyhandle's users keep key and
    certificate in one file."""
    found = {block.label: block for block in reversed(list(pem.blocks(data)))}
    identity = None
    if certificate_block := found.get("CERTIFICATE"):
        from . import certificate

        held = certificate.decode(certificate_block.der)
        identity = held.identity
    for label in found:
        if label.endswith("PRIVATE KEY"):
            private = pem.decode_private(data, passphrase)
            return Loaded(private.public, private, f"PEM {label}", identity)
    if certificate_block:
        return Loaded(held.public, None, "PEM CERTIFICATE", identity)
    label = "PUBLIC KEY" if "PUBLIC KEY" in found else "RSA PUBLIC KEY"
    return Loaded(pem.decode_public(data), None, f"PEM {label}")


def _load_der(data: bytes, passphrase: bytes | None) -> Loaded:
    """DER names nothing, so each structure is tried."""
    try:
        private = structures.decode_private(data)
        return Loaded(private.public, private, "DER private key")
    except InvalidKey:
        pass
    try:
        return Loaded(structures.decode_public(data), None, "DER public key")
    except InvalidKey as public_fault:
        fault = public_fault
    try:
        private = structures.decode_private(pem.decrypt(data, passphrase))
        return Loaded(private.public, private, "DER encrypted private key")
    except (PassphraseNeeded, Undecryptable):
        raise
    except InvalidKey:
        pass
    from . import certificate

    try:
        held = certificate.decode(data)
    except InvalidKey:
        raise fault from None
    return Loaded(held.public, None, "DER certificate", held.identity)


def _load_json(data: bytes) -> Loaded:
    """A JWK, or a value as the REST interface writes it."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise bad("The JSON is not well-formed.", "JSON 格式不正确。") from None
    for name in ("data", "value"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    return Loaded(jwk.decode(found), None, "JSON Web Key")


def _name(kind: int) -> str:
    names = {0: "DES", 1: "not encrypted", 2: "DES", 3: "triple DES", 4: "AES"}
    return names.get(kind, "unknown")
