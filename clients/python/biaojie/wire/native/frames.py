"""Frames of the native protocol: length, id, kind, and a body of one msgpack value. Sans I/O.

All numbers are big-endian. A frame is `length u32 | id u32 | kind u8 | body`; the length counts
what comes after it, 5 octets to FRAME_OCTETS_MAX. Kinds are permanent numbers.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

import msgpack

from ...errors import BiaojieError, InvalidRequest, TooLarge
from ...limits import FRAME_OCTETS_MAX

VERSION: Final = 1
"""The one version there is; what is added at the end of arrays needs no new one."""
PORT: Final = 2650
HEAD: Final = Struct(">IIB")
"""length, id, kind"""
HEAD_OCTETS: Final = HEAD.size
KEY_AT: Final = 8
"""Where in a frame the kind stands: from here on two like requests are equal octet by octet."""
LENGTH_MIN: Final = 5
ID_MAX: Final = 2**32 - 1
CONNECTION: Final = 0
"""The id of what concerns the connection and no request."""
_LENGTH: Final = Struct(">I")
_IDENTITY: Final = Struct(">IB")


class Kind(IntEnum):
    """What a frame is: requests from 0x01 on, answers from 0x81 on."""

    HELLO = 0x01
    RESOLVE = 0x02
    RESOLVE_MANY = 0x03
    WRITE = 0x04
    WRITE_MANY = 0x05
    MINT = 0x06
    LIST = 0x07
    FOLLOW = 0x08
    CANCEL = 0x09
    SEARCH = 0x0A
    LIST_PREFIXES = 0x0B
    FIND_PREFIX = 0x0C
    HOME_PREFIX = 0x0D
    CHANGE_PREFIX = 0x0E
    LIST_KEYS = 0x0F
    ISSUE_KEY = 0x10
    REVOKE_KEY = 0x11
    CHANGES = 0x12
    PING = 0x13
    IMPORT = 0x14
    ANSWER = 0x81
    END = 0x82
    PART = 0x83
    ERROR = 0x84


REQUEST_OCTETS_MAX: Final[dict[int, int]] = dict.fromkeys(map(int, Kind), 65_536) | {
    Kind.RESOLVE_MANY: 2**20,
    Kind.SEARCH: 2**20,
    Kind.WRITE: FRAME_OCTETS_MAX,
    Kind.WRITE_MANY: FRAME_OCTETS_MAX,
    Kind.MINT: FRAME_OCTETS_MAX,
    Kind.IMPORT: 2**21,
}
"""The longest request of each kind, counted as the length field does."""


class Frame(NamedTuple):
    """`body` is still packed. `kind` may be a number that nobody has defined yet."""

    id: int
    kind: int
    body: bytes


def encode_frame(id_: int, kind: int, body: bytes) -> bytes:
    """`body` is one packed value. Raises TooLarge."""
    length = len(body) + 5
    if length > FRAME_OCTETS_MAX:
        raise TooLarge(
            f"The frame has {length} octets; the limit is {FRAME_OCTETS_MAX}.",
            f"帧长 {length} 字节；上限为 {FRAME_OCTETS_MAX}。",
            octets_max=FRAME_OCTETS_MAX,
        )
    return HEAD.pack(length, id_, kind) + body


def encode_resolve(id_: int, identifier: str) -> bytes:
    """The frame that asks for all of a record: the form a node answers fastest."""
    body: bytes = b"\x91" + msgpack.packb(identifier)
    return HEAD.pack(len(body) + 5, id_, Kind.RESOLVE) + body


class Framing:
    """Octets of one direction as they come, cut up into frames.

    After a length that no frame can have, `fault` says so and nothing more is taken: where the
    next frame would begin is not known. Frames before it are still given out. What is kept is
    never more than one unfinished frame.
    """

    __slots__ = ("_kept", "_octets_max", "_wanted", "fault")

    def __init__(self, octets_max: int = FRAME_OCTETS_MAX) -> None:
        self._octets_max = octets_max
        self._kept = bytearray()
        self._wanted = 0  # octets to have before looking again
        self.fault: BiaojieError | None = None

    @property
    def buffered(self) -> int:
        return len(self._kept)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Any split of the octets gives the same frames."""
        if self.fault is not None:
            return []
        if self._kept:
            self._kept += data
            if len(self._kept) < self._wanted:
                return []
            data = bytes(self._kept)
            self._kept.clear()
        frames: list[Frame] = []
        at, end = 0, len(data)
        self._wanted = 4
        while end - at >= 4:
            (length,) = _LENGTH.unpack_from(data, at)
            if not LENGTH_MIN <= length <= self._octets_max:
                self.fault = length_fault(length, self._octets_max)
                return frames
            stop = at + 4 + length
            if stop > end:
                self._wanted = 4 + length
                break
            id_, kind = _IDENTITY.unpack_from(data, at + 4)
            frames.append(Frame(id_, kind, data[at + HEAD_OCTETS : stop]))
            at = stop
        self._kept += data[at:] if at else data
        return frames


def length_fault(length: int, octets_max: int) -> BiaojieError:
    """Why no frame can have this length."""
    if length > octets_max:
        return TooLarge(
            f"A frame of {length} octets was announced; the limit is {octets_max}.",
            f"帧声明长度 {length} 字节；上限为 {octets_max}。",
            octets_max=octets_max,
        )
    return InvalidRequest(
        f"A frame of {length} octets was announced; the least is {LENGTH_MIN}.",
        f"帧声明长度 {length} 字节；至少为 {LENGTH_MIN}。",
    )
