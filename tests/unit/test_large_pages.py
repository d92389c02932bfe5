"""Memory in large pages: moved where it is in use, left alone where it is not or may not be."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pytest

from resolver import large_pages
from resolver.large_pages import PAGE_OCTETS, LargePages


def large_octets(memory: mmap.mmap) -> int:
    """Of the mapping that holds `memory`, as the system tells it."""
    at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        place, *rest = line.split()
        if "-" in place and ":" not in place:
            start, end = (int(part, 16) for part in place.split("-"))
            inside = start <= at < end
        elif inside and place == "AnonHugePages:":
            return int(rest[0]) * 1024
    raise AssertionError("no such mapping")


def memory_of(pages: int) -> mmap.mmap:
    return mmap.mmap(-1, pages * PAGE_OCTETS, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def test_memory_in_use_is_moved_and_keeps_what_it_holds() -> None:
    pages = LargePages()
    if not pages.move() and not _can():
        pytest.skip("the system has no large pages for us")
    settle(pages)
    used, unused = memory_of(8), memory_of(8)
    # By small pieces: large ones would be memory in use themselves, here and there.
    piece = bytes(range(256)) * 256
    for at in range(0, len(used), len(piece)):
        used[at : at + len(piece)] = piece
    for page in range(0, len(unused), PAGE_OCTETS):
        unused[page] = 1
    assert 6 <= pages.move() < 14  # and none of those that hold an octet each
    assert large_octets(used) >= 6 * PAGE_OCTETS
    assert all(used[at : at + len(piece)] == piece for at in range(0, len(used), len(piece)))
    assert pages.move() < 6  # once is enough
    used.close()
    unused.close()


def settle(pages: LargePages) -> None:
    """What else the process has come to use is moved before."""
    for _ in range(5):
        if not pages.move():
            return


def _can() -> bool:
    memory = memory_of(3)
    memory[:] = b"x" * len(memory)
    moved = LargePages().move()
    memory.close()
    return moved > 0


def test_never_is_obeyed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    switch = tmp_path / "enabled"
    switch.write_text("always madvise [never]\n")
    monkeypatch.setattr(large_pages, "_ALLOWED", switch)
    memory = memory_of(4)
    memory[:] = b"x" * len(memory)
    assert LargePages().move() == 0
    monkeypatch.setattr(large_pages, "_ALLOWED", tmp_path / "missing")
    assert LargePages().move() == 0
    memory.close()
