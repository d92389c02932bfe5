"""Digests by which a response names the request it answers (RFC 3652 §2.2.3).

The input is header and body of the request exactly as they crossed the wire.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from .cursor import Malformed, Reader, block, u8


class DigestAlgorithm(IntEnum):
    """The octet before a digest. LEGACY has none: an int4 length stands there instead, whose
    first octet is 0."""

    LEGACY = 0
    MD5 = 1
    SHA1 = 2
    SHA256 = 3


SIZES: Final = {DigestAlgorithm.MD5: 16, DigestAlgorithm.SHA1: 20, DigestAlgorithm.SHA256: 32}
_NAMES: Final = {16: "md5", 20: "sha1", 32: "sha256"}


@dataclass(frozen=True, slots=True)
class Digest:
    """An algorithm and as many octets as it gives (LEGACY: 16, 20 or 32, as the sender likes)."""

    algorithm: int
    octets: bytes

    @classmethod
    def of(cls, data: bytes, algorithm: int = DigestAlgorithm.SHA1) -> Digest:
        """The digest of `data`. LEGACY means MD5, as it did when it was new."""
        size = SIZES.get(algorithm, 16)  # type: ignore[call-overload]
        return cls(algorithm, _hash(_NAMES[size], data))

    def matches(self, data: bytes) -> bool:
        """Whether this is the digest of `data`."""
        name = _NAMES.get(len(self.octets))
        return name is not None and hmac.compare_digest(_hash(name, data), self.octets)

    @classmethod
    def read(cls, reader: Reader) -> Digest:
        """Raises Malformed."""
        algorithm = reader.u8("a digest algorithm")
        if algorithm == DigestAlgorithm.LEGACY:
            reader.offset -= 1
            octets = reader.block("a digest", 32)
            if len(octets) not in _NAMES:
                raise Malformed(reader.offset - len(octets), "a digest of 16, 20 or 32 octets")
            return cls(algorithm, octets)
        size = SIZES.get(algorithm)  # type: ignore[call-overload]
        if size is None:
            raise Malformed(reader.offset - 1, "a digest algorithm, 0 to 3")
        return cls(algorithm, reader.octets(size, "a digest"))

    def encode(self) -> bytes:
        if self.algorithm == DigestAlgorithm.LEGACY:
            return block(self.octets)
        return u8(self.algorithm) + self.octets


def _hash(name: str, data: bytes) -> bytes:
    return hashlib.new(name, data, usedforsecurity=False).digest()
