"""A bounded map with S3-FIFO admission (Yang et al., SOSP 2023), counted in bytes.

A hit is a dictionary look-up and a flag; queues move only on insertion. One-hit wonders leave
through the small queue and do not push out what is asked again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    size: int  # bytes, fixed while the entry is in the map
    hits: int  # set to 1 or more by whoever finds the entry


CHANCES_MAX = 32
"""So many entries found since get another round in one eviction: it must not take long."""
K = TypeVar("K", bound=Hashable)
E = TypeVar("E", bound=Sized)


class S3Fifo(Generic[K, E]):
    """At most `bytes_max`; a tenth of it is the small queue. Ghosts are bounded by count.

    `evicted` is told of each entry that made room for others; `counted` brings the hits of one up
    to date before that is decided.
    """

    def __init__(
        self,
        bytes_max: int,
        evicted: Callable[[E], None] | None = None,
        counted: Callable[[E], None] | None = None,
    ) -> None:
        self.bytes_max = bytes_max
        self._evicted = evicted
        self._counted = counted
        self.bytes = 0
        self.entries: dict[K, E] = {}
        self._small: OrderedDict[K, None] = OrderedDict()
        self._main: OrderedDict[K, None] = OrderedDict()
        self._ghosts: OrderedDict[K, None] = OrderedDict()
        self._small_bytes = 0

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[K]:
        return iter(self.entries)

    def put(self, key: K, entry: E) -> bool:
        """Insert or replace; False if the entry is larger than a tenth of the whole map."""
        if key in self.entries:
            self.drop(key)
        size = entry.size
        if size > self.bytes_max // 10:
            return False
        self.entries[key] = entry
        self.bytes += size
        if key in self._ghosts:
            del self._ghosts[key]
            self._main[key] = None
        else:
            self._small[key] = None
            self._small_bytes += size
        while self.bytes > self.bytes_max:
            if self._small_bytes > self.bytes_max // 10 or not self._main:
                self._evict_small()
            else:
                self._evict_main()
        return True

    def drop(self, key: K) -> E | None:
        entry = self.entries.pop(key, None)
        if entry is None:
            return None
        self.bytes -= entry.size
        if key in self._small:
            del self._small[key]
            self._small_bytes -= entry.size
        else:
            del self._main[key]
        return entry

    def _evict_small(self) -> None:
        key, _ = self._small.popitem(last=False)
        entry = self.entries[key]
        self._small_bytes -= entry.size
        if self._counted is not None:
            self._counted(entry)
        if entry.hits > 1:
            entry.hits = 0
            self._main[key] = None
            return
        del self.entries[key]
        self.bytes -= entry.size
        if self._evicted is not None:
            self._evicted(entry)
        self._ghosts[key] = None
        while len(self._ghosts) > max(len(self.entries), 64):
            self._ghosts.popitem(last=False)

    def _evict_main(self) -> None:
        for _ in range(CHANCES_MAX):
            key = next(iter(self._main))
            entry = self.entries[key]
            if self._counted is not None:
                self._counted(entry)
            if not entry.hits:
                break
            entry.hits = min(entry.hits, 3) - 1
            self._main.move_to_end(key)
        key, _ = self._main.popitem(last=False)
        entry = self.entries.pop(key)
        self.bytes -= entry.size
        if self._evicted is not None:
            self._evicted(entry)
