"""Memory that is in use, moved to pages of 2 MiB where the system has them.

A full cache lies scattered over hundreds of megabytes: with pages of 4 KiB most of the time of a
hit goes for finding out where they are. Rules: an operator's `never` is obeyed; only memory that
is nearly all in use is moved, so that the process hardly grows; where anything is amiss nothing
is done. Linux from 6.1 on.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any, Final

PAGE_OCTETS: Final = 2 * 2**20
SMALL_OCTETS: Final = 4_096
IN_USE_SHARE: Final = 0.9
"""Of a large page, from which on it is worth one."""
_PAGES: Final = PAGE_OCTETS // SMALL_OCTETS
_COLLAPSE: Final = 25
_ALLOWED: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MAPS: Final = Path("/proc/self/maps")


class LargePages:
    """`move` is to be called now and then, in a thread of its own: on a busy machine it takes ten
    milliseconds for a page. `moved` says how many it has moved."""

    def __init__(self) -> None:
        self.moved = 0
        self._done: set[int] = set()
        self._libc: Any = None
        if sys.platform == "linux":
            try:
                allowed = "[never]" not in _ALLOWED.read_text()
            except OSError:
                allowed = False
            if allowed:
                self._libc = ctypes.CDLL(None)
                self._libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
                self._libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]

    def move(self) -> int:
        """Move what has come into use since; how many pages that was."""
        if self._libc is None:
            return 0
        before = self.moved
        there = set()
        for start, end in _memory():
            first = -(-start // PAGE_OCTETS) * PAGE_OCTETS
            for at in range(first, end - PAGE_OCTETS + 1, PAGE_OCTETS):
                there.add(at)
                if at not in self._done and self._in_use(at):
                    self._done.add(at)
                    self.moved += self._libc.madvise(at, PAGE_OCTETS, _COLLAPSE) == 0
        self._done &= there
        return self.moved - before

    def _in_use(self, at: int) -> bool:
        present = ctypes.create_string_buffer(_PAGES)
        if self._libc.mincore(at, PAGE_OCTETS, present):
            return False
        return _PAGES - present.raw.count(0) >= IN_USE_SHARE * _PAGES


def _memory() -> list[tuple[int, int]]:
    """From where to where the process has memory that is its own and no file."""
    found = []
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        place, rights, _, _, _, *name = line.split(maxsplit=5)
        if rights == "rw-p" and name in ([], ["[heap]"]):
            start, end = place.split("-")
            found.append((int(start, 16), int(end, 16)))
    return found
