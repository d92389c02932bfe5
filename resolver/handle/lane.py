"""The express lane of the Handle transports: a plain resolution → the message that answers it.

A request is looked up by all its octets but two numbers: its request id, which the answer
repeats, and its expiration, which decides nothing. What is kept is what the operations answered
to the same octets, if it was made of a cache entry that is the same for everybody. Rules: only
requests in no session, under no signature or MAC, that want neither digest, signature, sealing
nor the registry itself are `plain`; the expiration of an answer is never later than the ordinary
path would say, and earlier by a second at most.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from math import inf
from sys import getsizeof
from typing import Final

from biaojie.wire.handle import DATAGRAM_OCTETS_MAX, ENVELOPE_OCTETS, HEADER_OCTETS, OpCode, OpFlag

from ..core import Cached, Ready
from ..health import Health
from ..lane import HITS, Lane
from ..observe import Observer
from .exchange import EXPIRES_MIN_S

REQUEST_OCTETS_MIN: Final = ENVELOPE_OCTETS + HEADER_OCTETS
REQUEST_OCTETS_MAX: Final = DATAGRAM_OCTETS_MAX
"""Longer questions are rare, and would fill the lane with keys."""
FAR_S: Final = 10.0
RENEWED_S: Final = 60.0
"""So long after the clock was set answers may say the wrong time, which is that of day."""
SHARED_MAX: Final = 4_096
_FIXED: Final = struct.Struct("!2xB x I 4x III II 8x I")
assert _FIXED.size == REQUEST_OCTETS_MIN
_EXPIRATION: Final = struct.Struct("!I")
_SUCCESS: Final = b"\0\0\0\1"
_MARKS: Final = 0xE0
_NOT_PLAIN: Final = (
    OpFlag.AUTHORITATIVE
    | OpFlag.CERTIFY
    | OpFlag.ENCRYPT
    | OpFlag.CONTINUOUS
    | OpFlag.REQUEST_DIGEST
)
_NO_CREDENTIAL: Final = (b"", bytes(4))


class HandleReady(Ready):
    """An answer: `head` before the request id, `tail` behind it. `until` is the monotonic time
    from which on they are not right any more. `changes_head` says that the head is not that of
    the question. `datagram` says that one packet may carry it."""

    __slots__ = ("changes_head", "datagram", "head", "tail", "until")

    def __init__(self, entry: Cached, key: bytes, head: bytes, tail: bytes, datagram: bool) -> None:
        self.head = head
        self.changes_head = head != key[:8]
        self.tail = tail
        self.until = 0.0
        self.datagram = datagram
        super().__init__(entry, getsizeof(key) + getsizeof(tail))

    def die(self) -> None:
        self.until = -inf


class HandleLane(Lane[HandleReady]):
    """The ready answers of all Handle transports. Before one of `table` is sent, `until` must be
    to come, or `renew` true. `amplification_max` is by how much an answer
    over UDP may be longer than its question."""

    def __init__(
        self,
        health: Health,
        bytes_max: int,
        observer: Observer,
        *,
        amplification_max: float = 3.0,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(health, bytes_max)
        self._bytes_max = bytes_max
        self._factor = amplification_max
        self._heads: dict[bytes, bytes] = {}
        self._moments: dict[int, float] = {}
        self._clock = clock
        self.monotonic = monotonic
        self.tallies = {
            transport: observer.tally(f"handle-{transport}", "resolution")
            for transport in ("tcp", "udp")
        }

    # Answering --------------------------------------------------------------------------

    def reply(self, frame: bytes, now: float, *, datagram: bool = False) -> bytes | None:
        """The answer to a whole message at the monotonic time `now`; with `datagram` only one that
        UDP may carry. Whoever sends it counts it in `tallies`."""
        ready = self._entries.get(frame[:8] + frame[12:36] + frame[40:])
        if ready is None or self._health.down:
            return None
        if now >= ready.until and not self.renew(ready, now):
            return None
        if datagram and not ready.datagram:
            return None
        if ready.hits < HITS:
            ready.hits += 1
        self.hits += 1
        return ready.head + frame[8:12] + ready.tail

    def renew(self, ready: HandleReady, now: float) -> bool:
        """Bring the expiration up to date; False where the answer is too old to be given."""
        entry = ready.entry
        if now >= entry.expires or not entry.alive:
            return False
        wall = self._clock()
        left = entry.ttl_s - (now - entry.fetched)
        # The same moment for as long as the record may be kept for more than the least time.
        valid_s = left - EXPIRES_MIN_S if left > EXPIRES_MIN_S else 1.0 - wall % 1.0
        expiration = int(wall + max(left, EXPIRES_MIN_S))
        ready.tail = ready.tail[:24] + _EXPIRATION.pack(expiration) + ready.tail[28:]
        valid_s = min(valid_s, RENEWED_S)
        ready.until = self._moment(min(entry.expires, now + valid_s), now)
        return now < ready.until

    def _moment(self, until: float, now: float) -> float:
        """The same, or up to a second before it, where it is far off. Then it is one object for
        many answers: reading it mostly finds it in the processor's cache."""
        if until < now + FAR_S:
            return until
        if len(self._moments) > SHARED_MAX:
            self._moments.clear()
        return self._moments.setdefault(int(until), float(int(until)))

    # Learning ---------------------------------------------------------------------------

    def learn(self, request: bytes, reply: bytes, entry: Cached) -> None:
        """Keep the answer to a request, if others may get it too: `entry` is all it is made of."""
        if not self._bytes_max or reply[24:28] != _SUCCESS or not is_plain(request):
            return
        key = request[:8] + request[12:36] + request[40:]
        datagram = len(reply) <= min(DATAGRAM_OCTETS_MAX, self._factor * len(request))
        if len(self._heads) > SHARED_MAX:
            self._heads.clear()
        head = self._heads.setdefault(reply[:8], reply[:8])
        ready = HandleReady(entry, key, head, reply[12:], datagram)
        if self.renew(ready, self.monotonic()):
            self.keep(key, ready)

    def clear(self) -> None:
        """Forget all: what the node says of itself has changed."""
        for key in list(self._entries):
            self.drop(key)

    def readings(self) -> dict[str, float]:
        return {"handle_lane_entries": len(self), "handle_lane_bytes": self.bytes}


def is_plain(frame: bytes) -> bool:
    """Whether a frame is a resolution that anybody might ask, in no session and without proof."""
    size = len(frame)
    if not REQUEST_OCTETS_MIN <= size <= REQUEST_OCTETS_MAX:
        return False
    marks, session, sequence, length, opcode, code, flags, body = _FIXED.unpack_from(frame)
    end = REQUEST_OCTETS_MIN + body
    return (
        not marks & _MARKS
        and not session
        and not sequence
        and length == size - ENVELOPE_OCTETS
        and opcode == OpCode.RESOLUTION
        and not code
        and not flags & _NOT_PLAIN
        and frame[end:] in _NO_CREDENTIAL
        and end <= size
    )
