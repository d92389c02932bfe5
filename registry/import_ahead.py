"""Reading ahead of an import in a process of its own, so that two cores work on it.

`registry.import_reading` is that process. Whatever happens to it (killed, out of memory, silent,
a file that cannot be read further), what it has told is sound, and the import goes on by itself
from there: the same rows, windows and faults come of it, only later.
"""

from __future__ import annotations

import os
import pickle
import select
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .import_blocks import Cutter, Ready
from .import_columns import Rows, Source, reader_of
from .import_prepare import Form
from .import_rows import RowMapping
from .import_sorting import Sorted, SortedRows, sort_rows

AHEAD_BYTES: Final = 8 * 2**20
"""Less than that is read sooner than another process has started."""
SILENT_S: Final = 60.0
"""Longer than one that works is ever silent."""
PROGRAM: Final = ("-m", "registry.import_reading")
LOOK_S: Final = 0.2
HEAD: Final = 8
MESSAGE_BYTES_MAX: Final = 2**29
"""Octets of a message; a window has some 8 MiB of the file."""
_PIECE_BYTES: Final = 2**20
_END_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Errand:
    """What the other process is to do: make windows ready from `start` on, those of `sorted_file`
    if there is one; or, with `sort_memory_bytes`, put the rows in order, in `sort_to`."""

    path: Path
    form: Form
    transcoded: bool
    mapping: RowMapping
    case_sensitive: bool
    sorted_file: Path | None = None
    start: tuple[int, int] = (0, 0)
    sort_to: Path | None = None
    sort_memory_bytes: int = 0


def source_of(file: Rows, errand: Errand) -> Source:
    """The rows that the windows of an errand are made of."""
    place = None
    if errand.sorted_file is not None:
        place = SortedRows(errand.sorted_file, cells=bool(file.header))
    return Source(file, reader_of(file, errand.mapping), place)


def readied(
    cutter: Cutter, errand: Errand, idle: Callable[[], None]
) -> Generator[Ready, None, None]:
    """The windows of a file from `errand.start` on. `idle` is called while there is none yet, and
    raises to stop. Raises InvalidFile."""
    at = errand.start
    if cutter.source.place.size - at[0] >= AHEAD_BYTES:
        for ready in told(errand, idle):
            yield ready
            at = ready.end
    yield from cutter.all(at)


def sorting(
    file: Rows, errand: Errand, idle: Callable[[], None]
) -> Iterator[Generator[Sorted, None, None]]:
    """Ways to put the rows of a file in order, to be tried one after the other until one comes to
    a step that is the last. Raises InvalidFile."""
    if file.size >= AHEAD_BYTES:
        yield told(errand, idle)
    yield sorted_here(file, errand)


def sorted_here(file: Rows, errand: Errand) -> Generator[Sorted, None, None]:
    assert errand.sort_to is not None
    source = Source(file, reader_of(file, errand.mapping))
    file.seek(*file.start)
    return sort_rows(
        source, errand.sort_to, errand.sort_memory_bytes, case_sensitive=errand.case_sensitive
    )


def told(errand: Errand, idle: Callable[[], None]) -> Generator[Any, None, None]:
    """What the other process tells. It ends with this, and this with it however it ends."""
    try:
        process = subprocess.Popen(  # noqa: S603 — our own module, no shell
            [sys.executable, *PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    except OSError:
        return  # no memory, no descriptors: it goes without
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with suppress(OSError):
            process.stdin.write(pickle.dumps(errand))
            process.stdin.close()
        heard = _Heard(process.stdout.fileno(), idle)
        while (head := heard.octets(HEAD)) is not None:
            length = int.from_bytes(head)
            if length > MESSAGE_BYTES_MAX or (message := heard.octets(length)) is None:
                return
            yield pickle.loads(message)  # noqa: S301 — our own process
    finally:
        process.kill()
        process.stdout.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)


class _Heard:
    """What comes from a pipe."""

    def __init__(self, pipe: int, idle: Callable[[], None]) -> None:
        self._pipe = pipe
        self._idle = idle
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)

    def octets(self, count: int) -> bytes | None:
        """So many; None where the pipe has ended, or nothing comes."""
        parts = bytearray()
        while len(parts) < count:
            if not self._wait():
                return None
            part = os.read(self._pipe, min(count - len(parts), _PIECE_BYTES))
            if not part:
                return None
            parts += part
        return bytes(parts)

    def _wait(self) -> bool:
        until = time.monotonic() + SILENT_S
        while not self._poll.poll(LOOK_S * 1_000):
            self._idle()
            if time.monotonic() > until:
                return False
        return True
