"""What the parts of the native front share: one request, its limits, its place in the lane."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, inf
from struct import Struct
from typing import Any, Final

from biaojie.errors import (
    BiaojieError,
    OverCapacity,
    TemporarilyUnavailable,
    TooLarge,
    TooManyRequests,
)
from biaojie.limits import FRAME_OCTETS_MAX
from biaojie.wire.native import RESOLUTION, RESOLUTION_OCTETS, Kind, encode_error

from ...core import Cached, Ready
from ...overload import RETRY_S

LENGTH: Final = Struct(">I")
_KIND: Final = {kind: bytes((kind,)) for kind in Kind}
_HEAD: Final = Struct(">BBBIBIB")
assert _HEAD.size == RESOLUTION.size + 1
_LENGTHS: Final[dict[int, bytes]] = {}
"""At most as many as frames have lengths, and in truth the few that records have."""


@dataclass(frozen=True, slots=True)
class NativeLimits:
    """Settings of the same names say what each is for."""

    native_connections_max: int = 10_000
    native_pipeline_max: int = 1_024
    native_requests_max: int = 2_048
    native_idle_timeout_s: float = 600.0
    native_message_timeout_s: float = 15.0
    reply_timeout_s: float = 30.0
    deadline_s: float = 2.0
    batch_deadline_s: float = 10.0


@dataclass(slots=True)
class Asked:
    """One request. `id` are the four octets to echo, `body` is still packed; `public`: it came
    without a key. `question` is what was decoded of it, once it has been; `admitted`: its tenant
    is charged for it."""

    id: bytes
    kind: int
    body: bytes
    peer: str
    request_id: str
    public: bool
    question: Any = None
    admitted: bool = False


_ANSWER: Final = _KIND[Kind.ANSWER]
_BODY_MAX: Final = FRAME_OCTETS_MAX - 5


def answer_frame(id_: bytes, body: bytes) -> bytes:
    """`frame` of an answer, which is what most frames are. Raises TooLarge."""
    if len(body) > _BODY_MAX:
        return frame(id_, Kind.ANSWER, body)
    return LENGTH.pack(len(body) + 5) + id_ + _ANSWER + body


def frame(id_: bytes, kind: Kind, body: bytes) -> bytes:
    """Raises TooLarge."""
    length = len(body) + 5
    if length > FRAME_OCTETS_MAX:
        raise TooLarge(
            "The answer is longer than a frame can be; ask for less.",
            "结果超过帧长上限，请减少所查询的内容。",
            octets_max=FRAME_OCTETS_MAX,
        )
    return LENGTH.pack(length) + id_ + _KIND[kind] + body


def error_frame(id_: bytes, error: BiaojieError) -> bytes:
    """Total. What may be tried again says when, as Retry-After does over HTTP."""
    if isinstance(error, TooManyRequests | OverCapacity | TemporarilyUnavailable):
        error.fields = {"retry_after_s": 1, **error.fields}
    return frame(id_, Kind.ERROR, encode_error(error))


def busy_frame(id_: bytes, request_id: str) -> bytes:
    """`error_frame` of OverCapacity, to a request that there is no room for."""
    return _BUSY_LENGTH + id_ + _BUSY + request_id.encode()


def _length(length: int) -> bytes:
    """The length field, one object for all of a length: in a large lane each object that a hit
    touches costs a cache miss."""
    return _LENGTHS.setdefault(length, LENGTH.pack(length))


_ID_PLACE: Final = "0" * 16
_BUSY_FRAME: Final = error_frame(
    bytes(4), OverCapacity(request_id=_ID_PLACE, retry_after_s=RETRY_S)
)
assert _BUSY_FRAME.endswith(_ID_PLACE.encode())
_BUSY_LENGTH: Final = _BUSY_FRAME[:4]
_BUSY: Final = _BUSY_FRAME[8:-16]


class _Heads(dict[int, bytes]):
    """What stands between id and record, by the age in whole seconds: shared by all that are kept
    for `kept_s` and may be kept for `ttl_s`. A hit of its own head would cost a cache miss more,
    and writing it anew every second a copy of the answer."""

    __slots__ = ("kept_s", "ttl_s")

    def __init__(self, kept_s: float, ttl_s: int) -> None:
        self.kept_s = kept_s
        self.ttl_s = ttl_s

    def __missing__(self, age: int) -> bytes:
        if len(self) >= _HEADS_MAX:
            self.clear()
        left = max(self.ttl_s - age, 0)
        head = self[age] = _HEAD.pack(Kind.ANSWER, 0x94, 0xCE, age, 0xCE, left, 0)
        return head


_HEADS_MAX: Final = 8_192
_SHARED_MAX: Final = 256
_SHARED: Final[dict[tuple[float, int], _Heads]] = {}


def _heads(kept_s: float, ttl_s: int) -> _Heads:
    heads = _SHARED.get((kept_s, ttl_s))
    if heads is None:
        if len(_SHARED) >= _SHARED_MAX:
            _SHARED.clear()
        heads = _SHARED[kept_s, ttl_s] = _Heads(kept_s, ttl_s)
    return heads


class ReadyResolution(Ready):
    """A resolution but for id, age and ttl: a reply is `length`, the id, the head by its age in
    seconds, `record`. It is right for `heads.kept_s` from `fetched` on. `asked` is the length
    field of the request."""

    __slots__ = ("asked", "fetched", "heads", "length", "octets", "record")

    def __init__(self, entry: Cached, key_octets: int, record: bytes) -> None:
        """`record` is packed, `key_octets` what it is kept under takes up."""
        self.octets = 9 + RESOLUTION_OCTETS + len(record)
        super().__init__(entry, key_octets + self.octets + 120)
        self.length = _length(self.octets - 4)
        self.asked = _length(key_octets + 4)
        self.record = record
        self.fetched = entry.fetched
        # Rounded down: what is left of the last millisecond is the ordinary path's.
        self.heads = _heads(floor((entry.expires - entry.fetched) * 1_000) / 1_000, entry.ttl_s)

    def die(self) -> None:
        self.fetched = -inf
