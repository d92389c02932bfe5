"""The express lane: the octets of a request → a ready reply, for what the cache holds.

A front asks `find` with the octets that decide the reply, before anything is decoded, and sends
what it gets; everything else takes the ordinary path, which leaves a `Ready` with `keep`. Rules:
a ready reply is what the ordinary path would send, octet by octet; it is made only of a
resolution that has an `entry` (fresh, cached, the same for everybody); it dies with that entry,
by age or by a change; while the registry is down nothing is found, for stale answers are marked.
Bounded in octets, S3-FIFO like the cache.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from .core import Cached
from .health import Health
from .steps.s3fifo import S3Fifo

READY_BYTES = 330
"""Memory of an entry besides its octets: objects, dictionary and queue."""


class Ready:
    """What a front keeps of a reply; it adds fields of its own. `size` is in bytes of memory."""

    __slots__ = ("entry", "hits", "size")

    def __init__(self, entry: Cached, octets: int) -> None:
        self.entry = entry
        self.hits = 0
        self.size = READY_BYTES + octets


R = TypeVar("R", bound=Ready)


class Lane(Generic[R]):
    """The ready replies of one front. `bytes_max` 0: there are none. Whoever sends a reply found
    here adds it to the `tally` of its kind of request."""

    def __init__(self, health: Health, bytes_max: int) -> None:
        self._health = health
        self._kept: S3Fifo[bytes, R] = S3Fifo(bytes_max)
        self._entries = self._kept.entries
        self.hits = 0

    def find(self, key: bytes, now: float) -> R | None:
        """The reply to send at the monotonic time `now`."""
        ready = self._entries.get(key)
        if ready is None:
            return None
        entry = ready.entry
        if not entry.alive or now >= entry.expires:
            self.drop(key)
            return None
        if self._health.down:
            return None
        ready.hits += 1
        entry.hits += 1  # it is asked for, so it must not leave the cache either
        self.hits += 1
        return ready

    @property
    def everything(self) -> dict[bytes, R]:
        """As `table`, for who looks himself whether the registry is down."""
        return self._entries

    def table(self) -> dict[bytes, R]:
        """What is ready by its key, for who asks for many at a time: none while the registry is
        down. Before one is sent its entry must be alive and not expired; who sends it marks it as
        `find` does."""
        return {} if self._health.down else self._entries

    def keep(self, key: bytes, ready: R) -> None:
        if ready.entry.alive:
            self._kept.put(key, ready)

    @property
    def health(self) -> Health:
        return self._health

    def drop(self, key: bytes) -> None:
        self._kept.drop(key)

    @property
    def bytes(self) -> int:
        return self._kept.bytes

    def __len__(self) -> int:
        return len(self._kept)
