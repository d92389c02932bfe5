"""The good rows of a file that is in no order, put in the order of their names on disk.

Memory is bounded by the budget, the disk by about twice the file: runs that fit the budget are
sorted and written to unnamed files, which go when the process goes, and then merged.
"""

from __future__ import annotations

import heapq
import os
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import le
from pathlib import Path
from typing import IO, Any

import msgpack

from biaojie.identifier import fold_prefix

from .import_batches import BATCH_BYTES, BATCH_ROWS, Batch
from .import_columns import Shapes, Source, Taken
from .import_rows import BadRow, Row

SORT_MEMORY_BYTES = 64 * 2**20
_ROW_BYTES = 256
"""What a row takes in memory besides its octets."""
_BUFFER_BYTES = 16 * 2**20
_SLICE = 128

Item = tuple[bytes, int, bytes]
"""Folded name, line, and what the row is made of, packed."""


@dataclass(frozen=True, slots=True)
class Sorted:
    """How far sorting has come: bad rows since the last step, rows read, where the file stands."""

    bad: list[BadRow]
    read: int
    offset: int
    whole: bool = False


def in_order(source: Source, rows: int, *, case_sensitive: bool) -> bool:
    """Whether the first rows, so many, are in the order of their folded names under each prefix,
    or the file has no more than these. Leaves the file at its first row."""
    last: dict[bytes, bytes] = {}
    seen = 0
    sound = True
    while seen <= rows and (taken := source.take()):
        seen += len(taken)
        source.shapes = Shapes()
        keys = [key for key, _, _ in _items(taken, case_sensitive=case_sensitive, packed=False)]
        by_prefix: dict[bytes, list[bytes]] = {}
        for key in keys:
            by_prefix.setdefault(key.partition(b"/")[0], []).append(key)
        for prefix, own in by_prefix.items():
            sound = sound and last.get(prefix, b"") <= own[0] and all(map(le, own, own[1:]))
            last[prefix] = own[-1]
    source.file.seek(*source.file.start)
    return sound or seen <= rows


def sort_rows(
    source: Source, path: Path, memory_bytes: int, *, case_sensitive: bool
) -> Generator[Sorted, None, None]:
    """Write the good rows to `path`, durably, telling of the bad ones in the order of the file.
    It is done with the step that is `whole`."""
    runs: list[IO[bytes]] = []
    items: list[Item] = []
    weight = read = 0
    try:
        while taken := source.take():
            source.shapes = Shapes()
            read += len(taken)
            for item in _items(taken, case_sensitive=case_sensitive, packed=True):
                items.append(item)
                weight += len(item[0]) + len(item[2]) + _ROW_BYTES
            if weight >= memory_bytes:
                runs.append(_spilled(items, path.parent))
                items, weight = [], 0
            yield Sorted(sorted(taken.bad, key=lambda row: row.line), read, source.file.offset)
        items.sort()
        draft = path.with_name(path.name + ".part")
        with draft.open("wb") as out:
            pack = msgpack.Packer().pack
            merged = heapq.merge(items, *map(_read, runs))
            while some := list(islice(merged, BATCH_ROWS)):
                out.write(b"".join([pack(line) + packed for _, line, packed in some]))
                yield Sorted([], read, source.file.offset)
            out.flush()
            os.fsync(out.fileno())
        draft.replace(path)
    finally:
        for run in runs:
            run.close()
    yield Sorted([], read, source.file.offset, whole=True)


def _items(taken: Taken, *, case_sensitive: bool, packed: bool) -> Iterator[Item]:
    columns = taken.columns
    pack = msgpack.Packer().pack
    prefixes = {prefix: f"{fold_prefix(prefix)}/".encode() for prefix in set(columns.prefixes)}
    joined = "\n".join(columns.suffixes).encode()
    folded = (joined if case_sensitive else joined.upper()).split(b"\n")
    columns_of = zip(columns.prefixes, folded, columns.lines, columns.sources, strict=False)
    for prefix, suffix, line, made_of in columns_of:
        yield prefixes[prefix] + suffix, line, pack(_plain(made_of)) if packed else b""
    for row in taken.rows:
        key = row.identifier.key(case_sensitive=case_sensitive)
        name = f"{key.prefix}/".encode() + key.suffix
        yield name, row.line, pack(_plain(row)) if packed else b""


def _plain(made_of: Any) -> Any:
    if isinstance(made_of, Row):
        return made_of.cells if made_of.document is None else made_of.document
    return made_of


def _spilled(items: list[Item], folder: Path) -> IO[bytes]:
    items.sort()
    run = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 — closed by who sorts
    pack = msgpack.Packer().pack
    for at in range(0, len(items), BATCH_ROWS):
        run.write(b"".join([pack(item) for item in items[at : at + BATCH_ROWS]]))
    run.seek(0)
    return run


def _read(run: IO[bytes]) -> Iterator[Item]:
    return iter(
        msgpack.Unpacker(run, use_list=False, read_size=65_536, max_buffer_size=_BUFFER_BYTES)
    )


class SortedRows:
    """What `sort_rows` wrote, opened: batches from a place on, as `next_batch` gives them."""

    def __init__(self, path: Path, *, cells: bool) -> None:
        self._file = path.open("rb")
        self._cells = cells
        self.size = os.fstat(self._file.fileno()).st_size
        self.offset = self.line = 0

    def close(self) -> None:
        self._file.close()

    def seek(self, offset: int, line: int) -> None:
        self.offset, self.line = offset, line

    def batch(self) -> Batch:
        self._file.seek(self.offset)
        batch = Batch()
        unpacker = msgpack.Unpacker(
            self._file, strict_map_key=False, read_size=65_536, max_buffer_size=_BUFFER_BYTES
        )
        read = 0
        while len(batch.lines) < BATCH_ROWS and read < BATCH_BYTES:
            some = list(islice(unpacker, _SLICE))
            if not some:
                break
            batch.lines += some[::2]
            rows = some[1::2]
            batch.rows += (
                [tuple(row) if type(row) is list else row for row in rows]
                if (self._cells)
                else rows
            )
            read = unpacker.tell()
        self.offset += read
        return batch
