"""Public keys as octets: HS_PUBKEY data, servers in HS_SITE, key exchange (RFC 3651 §3.2.3).

    key type · flags 2 · fields, each an octet array

Big integers are Java's: two's complement, so a leading zero octet where the top bit is set;
read as unsigned either way. This module moves numbers; whoever uses a key judges it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .cursor import Malformed, Reader, block, text, u16, u32

INTEGER_OCTETS_MAX: Final = 2_049
"""16,384 bits and a sign octet."""
EXPONENT_OCTETS_MAX: Final = 33
"""Of RSA's e: verifying takes time in proportion to it."""
KEY_OCTETS_MAX: Final = 16_384
_PEM: Final = b"-----BEGIN"


@dataclass(frozen=True, slots=True)
class RsaKey:
    e: int
    n: int


@dataclass(frozen=True, slots=True)
class DsaKey:
    q: int
    p: int
    g: int
    y: int


@dataclass(frozen=True, slots=True)
class DhKey:
    y: int
    p: int
    g: int


@dataclass(frozen=True, slots=True)
class Sm2Key:
    """IIIS. `octets` are a raw point, a DER SubjectPublicKeyInfo or its PEM text."""

    octets: bytes


@dataclass(frozen=True, slots=True)
class Sm9Key:
    """IIIS. The key is an identity."""

    identity: str


@dataclass(frozen=True, slots=True)
class PemKey:
    """IIIS (IDIS nodes): X.509 PEM text without any frame."""

    octets: bytes


PublicKey = RsaKey | DsaKey | DhKey | Sm2Key | Sm9Key | PemKey


def _integer(reader: Reader, what: str, octets_max: int = INTEGER_OCTETS_MAX) -> int:
    return int.from_bytes(reader.block(what, octets_max), "big")


def _write(number: int) -> bytes:
    if number < 0:
        raise ValueError("a key holds no negative numbers")
    return block(number.to_bytes(number.bit_length() // 8 + 1, "big"))


def decode_public_key(data: bytes) -> PublicKey:
    """Raises Malformed, also for a key type that is not one of the above.

    Four zero octets after an RSA key are ignored, for some writers leave them; nothing else
    may follow.
    """
    if len(data) > KEY_OCTETS_MAX:
        raise Malformed(0, f"a public key of at most {KEY_OCTETS_MAX} octets")
    if data.startswith(_PEM):
        return PemKey(data)
    reader = Reader(data)
    type_ = reader.text("a key type", 64)
    reader.u16("key flags")
    key: PublicKey
    match type_:
        case "RSA_PUB_KEY":
            key = RsaKey(_integer(reader, "e", EXPONENT_OCTETS_MAX), _integer(reader, "n"))
            if reader.left == 4 and not any(reader.data[reader.offset :]):
                reader.rest()
        case "DSA_PUB_KEY":
            key = DsaKey(*(_integer(reader, name) for name in "qpgy"))
        case "DH_PUB_KEY":
            key = DhKey(*(_integer(reader, name) for name in "ypg"))
        case "SM2_PUB_KEY":
            key = Sm2Key(reader.block("an SM2 key"))
        case "SM9_PUB_KEY":
            key = Sm9Key(reader.text("an SM9 identity"))
        case _:
            raise Malformed(4, "a key type RSA, DSA, DH, SM2 or SM9_PUB_KEY")
    reader.done("the public key")
    return key


def encode_public_key(key: PublicKey) -> bytes:
    match key:
        case RsaKey(e, n):
            return text("RSA_PUB_KEY") + u16(0) + _write(e) + _write(n)
        case DsaKey(q, p, g, y):
            return text("DSA_PUB_KEY") + u16(0) + b"".join(map(_write, (q, p, g, y)))
        case DhKey(y, p, g):
            return text("DH_PUB_KEY") + u16(0) + b"".join(map(_write, (y, p, g)))
        case Sm2Key(octets):
            return text("SM2_PUB_KEY") + u16(0) + block(octets)
        case Sm9Key(identity):
            return text("SM9_PUB_KEY") + u16(0) + text(identity)
        case PemKey(octets):
            return octets


@dataclass(frozen=True, slots=True)
class SessionKey:
    """An int4 cipher and octets: the session key itself (decrypted), or for DIFFIE_HELLMAN the
    server's public key."""

    cipher: int
    octets: bytes

    def encode(self) -> bytes:
        return u32(self.cipher) + self.octets


def decode_session_key(data: bytes) -> SessionKey:
    """Raises Malformed. Before version 2.2 there is no cipher, only a DES key."""
    reader = Reader(data)
    return SessionKey(reader.u32("a session cipher"), reader.rest())
