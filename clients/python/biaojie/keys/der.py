"""As much ASN.1 DER as keys need, bounded: definite lengths, one-octet tags, no recursion.

A Reader believes no length: what does not fit its parent is InvalidKey.
"""

from __future__ import annotations

from .errors import InvalidKey

INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
NULL = 0x05
OBJECT = 0x06
SEQUENCE = 0x30
CONTEXT_0 = 0xA0
CONTEXT_1 = 0xA1
INTEGER_OCTETS_MAX = 1_100
"""8192 bits, with room for a sign and a product."""


class Reader:
    """A place in `data` that moves on; every method may raise InvalidKey."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def peek(self) -> int:
        """The next tag; 0 at the end."""
        return self.data[self.at] if self.left else 0

    def take(self, tag: int) -> bytes:
        """The content of the next element, which must have that tag."""
        data, at = self.data, self.at
        if len(data) - at < 2 or data[at] != tag:
            raise _fault()
        size, at = data[at + 1], at + 2
        if size >= 0x80:
            octets = size & 0x7F
            if not 1 <= octets <= 4 or len(data) - at < octets:
                raise _fault()
            size = int.from_bytes(data[at : at + octets], "big")
            at += octets
        if size > len(data) - at:
            raise _fault()
        self.at = at + size
        return data[at : self.at]

    def sequence(self) -> Reader:
        return Reader(self.take(SEQUENCE))

    def integer(self) -> int:
        """A number of 0 or more."""
        raw = self.take(INTEGER)
        if not 1 <= len(raw) <= INTEGER_OCTETS_MAX or raw[0] & 0x80:
            raise _fault()
        return int.from_bytes(raw, "big")

    def bits(self) -> bytes:
        """A bit string of whole octets."""
        raw = self.take(BIT_STRING)
        if not raw or raw[0]:
            raise _fault()
        return raw[1:]

    def object_id(self) -> str:
        raw = self.take(OBJECT)
        if not 1 <= len(raw) <= 32 or raw[-1] & 0x80:
            raise _fault()
        parts, number = [], 0
        for octet in raw:
            number = number << 7 | octet & 0x7F
            if not octet & 0x80:
                parts.append(number)
                number = 0
        first = min(parts[0] // 40, 2)
        return ".".join(map(str, [first, parts[0] - 40 * first, *parts[1:]]))

    def done(self) -> None:
        if self.left:
            raise _fault()


def _fault() -> InvalidKey:
    return InvalidKey("The ASN.1 structure of the key is damaged.", "密钥的 ASN.1 结构损坏。")


# Writing ---------------------------------------------------------------------------------


def element(tag: int, *content: bytes) -> bytes:
    body = b"".join(content)
    size = len(body)
    if size < 0x80:
        return bytes((tag, size)) + body
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + body


def sequence(*members: bytes) -> bytes:
    return element(SEQUENCE, *members)


def integer(number: int) -> bytes:
    return element(INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def bits(octets: bytes) -> bytes:
    return element(BIT_STRING, b"\0", octets)


def octets(content: bytes) -> bytes:
    return element(OCTET_STRING, content)


def null() -> bytes:
    return element(NULL)


def object_id(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    body = bytearray()
    for number in (40 * first + second, *rest):
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(number & 0x7F | 0x80)
        body += bytes(reversed(groups))
    return element(OBJECT, bytes(body))
