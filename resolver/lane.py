"""The express lane: the octets of a request → a ready reply, for what the cache holds.

A front looks into the `table` with the octets that decide the reply, before anything is decoded,
and sends what it finds; everything else takes the ordinary path, which leaves a `Ready` with
`keep`. Rules: a ready reply is what the ordinary path would send, octet by octet; it is made only
of a resolution that has an `entry` (fresh, cached, the same for everybody); it dies with that
entry, by age or by a change; while the registry is down nothing is sent, for stale answers are
marked. Bounded in octets, S3-FIFO like the cache.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from .core import Ready
from .health import Health
from .steps.s3fifo import S3Fifo

HITS: Final = 3
"""More are not told apart by S3-FIFO; not counting them leaves the memory of a hot name alone."""
R = TypeVar("R", bound=Ready)


class Lane(Generic[R]):
    """The ready replies of one front. `bytes_max` 0: there are none. Whoever sends one that is
    not too old counts it: in its own `hits`, up to HITS, in those of the lane, and in the `tally`
    of its kind of request."""

    def __init__(self, health: Health, bytes_max: int) -> None:
        self._health = health
        self._kept: S3Fifo[bytes, R] = S3Fifo(bytes_max, Ready.unlink)
        self._entries = self._kept.entries
        self.hits = 0

    @property
    def everything(self) -> dict[bytes, R]:
        """As `table`, for who looks himself whether the registry is down."""
        return self._entries

    def table(self) -> dict[bytes, R]:
        """What is ready by its key: none while the registry is down."""
        return {} if self._health.down else self._entries

    def keep(self, key: bytes, ready: R) -> None:
        if not ready.entry.alive:
            return
        self.drop(key)
        ready.link()
        if not self._kept.put(key, ready):
            ready.unlink()

    @property
    def health(self) -> Health:
        return self._health

    def drop(self, key: bytes) -> None:
        ready = self._kept.drop(key)
        if ready is not None:
            ready.unlink()

    @property
    def bytes(self) -> int:
        return self._kept.bytes

    def __len__(self) -> int:
        return len(self._kept)
