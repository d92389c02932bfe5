"""Reading and writing the Handle protocol's primitives (RFC 3652 §2.1), bounds-checked.

Integers are big-endian and unsigned. A string or octet array is an int4 length and its octets;
a list is an int4 count and its members. A Reader never believes a length or a count: both are
held against what is left of the message before anything is made of them. So decoding takes
memory in proportion to the octets that arrived, whatever they claim.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")


class Malformed(ValueError):
    """These octets are not what the protocol has there.

    `offset` counts octets from the start of what was being decoded; `expected` says in
    English what should have been at it.
    """

    def __init__(self, offset: int, expected: str) -> None:
        self.offset = offset
        self.expected = expected
        super().__init__(f"at octet {offset}: expected {expected}")


class Reader:
    """A place in `data` that moves on as things are read; every method may raise Malformed."""

    __slots__ = ("data", "end", "offset")

    def __init__(self, data: bytes, offset: int = 0, end: int | None = None) -> None:
        self.data = data
        self.offset = offset
        self.end = len(data) if end is None else end

    @property
    def left(self) -> int:
        """Octets not read yet."""
        return self.end - self.offset

    def fault(self, expected: str) -> Malformed:
        return Malformed(self.offset, expected)

    def _need(self, size: int, what: str) -> int:
        at = self.offset
        if size > self.end - at:
            raise Malformed(at, f"{what} ({size} octets), but {self.end - at} are left")
        self.offset = at + size
        return at

    def u8(self, what: str = "an octet") -> int:
        return self.data[self._need(1, what)]

    def u16(self, what: str = "a two-octet number") -> int:
        number: int = _U16.unpack_from(self.data, self._need(2, what))[0]
        return number

    def u32(self, what: str = "a four-octet number") -> int:
        number: int = _U32.unpack_from(self.data, self._need(4, what))[0]
        return number

    def octets(self, size: int, what: str = "octets") -> bytes:
        """Exactly `size` octets."""
        at = self._need(size, what)
        return self.data[at : at + size]

    def block(self, what: str = "an octet array", octets_max: int | None = None) -> bytes:
        """An int4 length and that many octets."""
        at = self.offset + 4
        if at > self.end:
            raise Malformed(self.offset, f"the length of {what}, but {self.left} octets are left")
        size: int = _U32.unpack_from(self.data, self.offset)[0]
        if octets_max is not None and size > octets_max:
            raise Malformed(self.offset, f"{what} of at most {octets_max} octets, not {size}")
        if size > self.end - at:
            raise Malformed(at, f"{what} ({size} octets), but {self.end - at} are left")
        self.offset = at + size
        return self.data[at : at + size]

    def text(self, what: str = "a string", octets_max: int | None = None) -> str:
        """A block that is UTF-8."""
        raw = self.block(what, octets_max)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise Malformed(self.offset - len(raw) + error.start, f"{what} in UTF-8") from None

    def count(self, what: str, most: int, least_octets: int) -> int:
        """The number of members that follow, each of at least `least_octets` octets."""
        number = self.u32(what)
        if number > most or number * least_octets > self.left:
            fit = min(most, self.left // least_octets)
            raise Malformed(self.offset - 4, f"at most {fit} {what}, not {number}")
        return number

    def u32s(self, what: str, most: int) -> tuple[int, ...]:
        """A count and that many four-octet numbers."""
        number = self.count(what, most, 4)
        return struct.unpack_from(f"!{number}I", self.data, self._need(4 * number, what))

    def texts(self, what: str, most: int, octets_max: int | None = None) -> tuple[str, ...]:
        """A count and that many strings."""
        return tuple(self.text(what, octets_max) for _ in range(self.count(what, most, 4)))

    def rest(self) -> bytes:
        """Whatever is left."""
        at, self.offset = self.offset, self.end
        return self.data[at : self.end]

    def done(self, what: str) -> None:
        """Nothing may be left."""
        if self.offset < self.end:
            raise Malformed(self.offset, f"the end of {what}, but {self.left} octets are left")


# Writing: each gives octets; a value that does not fit is ValueError. --------------------


def u8(number: int) -> bytes:
    if not 0 <= number <= 0xFF:
        raise ValueError(f"{number} does not fit one octet")
    return number.to_bytes(1, "big")


def u16(number: int) -> bytes:
    if not 0 <= number <= 0xFFFF:
        raise ValueError(f"{number} does not fit two octets")
    return number.to_bytes(2, "big")


def u32(number: int) -> bytes:
    if not 0 <= number <= 0xFFFF_FFFF:
        raise ValueError(f"{number} does not fit four octets")
    return number.to_bytes(4, "big")


def block(octets: bytes) -> bytes:
    return _U32.pack(len(octets)) + octets


def text(string: str) -> bytes:
    return block(string.encode())


def u32s(numbers: Iterable[int]) -> bytes:
    written = [u32(number) for number in numbers]
    return _U32.pack(len(written)) + b"".join(written)


def texts(strings: Iterable[str]) -> bytes:
    written = [text(string) for string in strings]
    return _U32.pack(len(written)) + b"".join(written)
