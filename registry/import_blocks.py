"""Windows of an import that go to the registry as blocks, and their rows that do not.

Which rows go which way depends on the window alone, and on what is noted before it is acted
upon: a window that comes a second time under its key is the same submissions with the same
keys. Whoever comes first in the file has a name that several rows say, as ever.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import lt
from typing import Protocol

from biaojie.change import RowResult
from biaojie.errors import (
    Elsewhere,
    Forbidden,
    IdentifierTaken,
    InvalidIdentifier,
    InvalidRecord,
    PrefixNotHere,
    PrefixSuspended,
    TooLarge,
)
from biaojie.identifier import Identifier, fold_prefix
from biaojie.record import Status

from .blocks import Bulk, Chunk, cut
from .import_columns import Columns, Shapes, Source
from .import_rows import BadRow, Row
from .import_state import SeenIdentifiers

WINDOW_ROWS = 24_576
WINDOW_BYTES = 8 * 2**20
"""Octets of a file after which a window takes in no further batch."""
CHUNK_ROWS_MIN = 64
"""Fewer rows of a prefix go in as rows."""
BATCH_ROWS = 1_000
"""Rows in one submission of those that go in as rows."""
ABOUT_ALL = (Forbidden, PrefixNotHere, PrefixSuspended, Elsewhere, InvalidRecord, TooLarge)
"""Refusals of a whole chunk: its rows are handed in one by one then, and judged so."""


class Load(Protocol):
    async def __call__(self, bulk: Bulk, key: str) -> Sequence[str]:
        """Register a chunk, as `Registrar.load`; the names that were refused."""
        ...


Send = Callable[..., Awaitable[Sequence[RowResult]]]
"""`submit` of an import, but for chunks that are too large: `send(rows, key, dry_run=…)`."""


@dataclass(slots=True)
class Window:
    """Rows of a file up to where it stands now."""

    shapes: Shapes
    columns: dict[str, Columns] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    count: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of a window under one prefix, as spelled, in the order of their folded suffixes."""

    prefix: str
    folded: list[bytes]
    columns: Columns


@dataclass(slots=True)
class Registered:
    """What came of a window: how many rows its chunks registered, and of each other good row."""

    loaded: int = 0
    results: list[tuple[Row, RowResult]] = field(default_factory=list)


def windows(source: Source) -> Iterator[Window]:
    """Until the file has ended; where they are cut depends on the file and on where it stands."""
    while True:
        start = source.place.offset
        source.shapes = Shapes()
        window = Window(source.shapes)
        while window.count < WINDOW_ROWS and source.place.offset - start < WINDOW_BYTES:
            taken = source.take()
            if not taken:
                break
            window.count += len(taken)
            window.rows += taken.rows
            window.bad += taken.bad
            _add(window.columns, taken.columns)
        if not window.count:
            return
        yield window


def _add(groups: dict[str, Columns], new: Columns) -> None:
    if len(set(new.prefixes)) == 1:
        _extend(groups.setdefault(new.prefixes[0], Columns()), new)
        return
    places: dict[str, list[int]] = {}
    for number, prefix in enumerate(new.prefixes):
        places.setdefault(prefix, []).append(number)
    for prefix, own in places.items():
        _extend(groups.setdefault(prefix, Columns()), _chosen(new, own))


def _extend(mine: Columns, more: Columns) -> None:
    mine.lines += more.lines
    mine.sources += more.sources
    mine.suffixes += more.suffixes
    mine.kinds += more.kinds
    mine.data += more.data


def _chosen(columns: Columns, places: Sequence[int]) -> Columns:
    return Columns(
        [columns.lines[n] for n in places],
        [columns.sources[n] for n in places],
        [],
        [columns.suffixes[n] for n in places],
        [columns.kinds[n] for n in places],
        [columns.data[n] for n in places],
    )


def arranged(
    window: Window, source: Source, by_rows: Sequence[str], *, case_sensitive: bool
) -> tuple[list[Group], list[Row]]:
    """What goes in as chunks, and the good rows that do not, in the order of the file."""
    rows = list(window.rows)
    groups: dict[str, Group] = {}
    # Of several spellings of a prefix the one with the most rows.
    for prefix in sorted(window.columns, key=lambda name: -len(window.columns[name].lines)):
        columns = window.columns[prefix]
        folded = fold_prefix(prefix)
        if len(columns.lines) < CHUNK_ROWS_MIN or folded in groups or folded in by_rows:
            rows += _rows(source, zip(columns.lines, columns.sources, strict=True))
        else:
            groups[folded] = _group(prefix, columns, case_sensitive=case_sensitive)
    named: dict[str, set[bytes]] = {}
    for row in rows:
        key = row.identifier.key(case_sensitive=case_sensitive)
        named.setdefault(key.prefix, set()).add(key.suffix)
    made = []
    for folded, group in groups.items():
        kept, others = _apart(group, named.get(folded, set()))
        rows += _rows(source, others)
        if kept.folded:
            made.append(kept)
    rows.sort(key=lambda row: row.line)
    return made, rows


def _rows(source: Source, some: Iterable[tuple[int, object]]) -> Iterator[Row]:
    for line, made_of in some:
        row = source.row(line, made_of)
        assert isinstance(row, Row), "a row of the columns is good"
        yield row


def _group(prefix: str, columns: Columns, *, case_sensitive: bool) -> Group:
    joined = "\n".join(columns.suffixes).encode()
    folded = (joined if case_sensitive else joined.upper()).split(b"\n")
    if all(map(lt, folded, folded[1:])):
        return Group(prefix, folded, columns)
    lines = columns.lines
    order = sorted(range(len(folded)), key=lambda n: (folded[n], lines[n]))
    return _picked(Group(prefix, folded, columns), order)


def _picked(group: Group, places: Sequence[int]) -> Group:
    folded = [group.folded[n] for n in places]
    return Group(group.prefix, folded, _chosen(group.columns, places))


def _apart(group: Group, named: set[bytes]) -> tuple[Group, list[tuple[int, object]]]:
    """The group without the names that come a second time in it, or among the `named`; and the
    rows that have these."""
    folded = group.folded
    if all(map(lt, folded, folded[1:])) and named.isdisjoint(folded):
        return group, []
    kept = []
    others = []
    before = b""
    for number, name in enumerate(folded):
        if name == before or name in named:
            others.append((group.columns.lines[number], group.columns.sources[number]))
        else:
            kept.append(number)
        before = name
    return _picked(group, kept), others


def chunk_of(group: Group, window: Window, status: Status, template: str | None) -> Chunk:
    columns = group.columns
    present = sorted(set(columns.kinds))
    shapes = [window.shapes.known[kind] for kind in present]
    if len(present) == 1:
        data = _transposed(columns.data)
        return Chunk(group.prefix, columns.suffixes, shapes, data, None, status, template)
    number = {kind: n for n, kind in enumerate(present)}
    kinds = [number[kind] for kind in columns.kinds]
    of_kind: list[list[tuple[bytes, ...]]] = [[] for _ in present]
    for kind, datas in zip(kinds, columns.data, strict=True):
        of_kind[kind].append(datas)
    data = [column for some in of_kind for column in _transposed(some)]
    return Chunk(group.prefix, columns.suffixes, shapes, data, kinds, status, template)


def _transposed(rows: Sequence[tuple[bytes, ...]]) -> list[list[bytes]]:
    """Data by value, of rows of one shape."""
    return [[data[n] for data in rows] for n in range(len(rows[0]))]


class Blocks:
    """Registers the windows of one import."""

    def __init__(self, source: Source, load: Load, send: Send, *, case_sensitive: bool) -> None:
        self._source = source
        self._load = load
        self._send = send
        self._case_sensitive = case_sensitive
        mapping = source.reader.mapping
        self._status = mapping.status
        self._template: str | None = None
        self._chunks = True
        try:
            if mapping.template:
                self._template = str(Identifier.parse(mapping.template))
        except InvalidIdentifier:
            self._chunks = False  # each row will be refused for it

    async def register(
        self,
        window: Window,
        key: str,
        by_rows: list[str],
        note: Callable[[], None],
        seen: SeenIdentifiers | None,
    ) -> Registered:
        """`by_rows` says of which prefixes no chunks are made; `note` keeps it."""
        done = Registered()
        if not self._chunks:
            by_rows[:] = sorted({fold_prefix(prefix) for prefix in window.columns})
        refused: dict[str, list[tuple[int, object]]] = {}
        while True:
            groups, rows = arranged(
                window, self._source, by_rows, case_sensitive=self._case_sensitive
            )
            for group in groups:
                if group.prefix in refused:
                    continue
                chunk = chunk_of(group, window, self._status, self._template)
                bulk = cut(chunk, int(time.time()), case_sensitive=self._case_sensitive)
                try:
                    names = await self._load(bulk, f"{key}-{bulk.prefix}")
                except ABOUT_ALL:
                    by_rows.append(bulk.prefix)
                    note()
                    break
                refused[group.prefix] = self._loaded(group, names, done, seen)
            else:
                break
        for at in range(0, len(rows), BATCH_ROWS):
            some = rows[at : at + BATCH_ROWS]
            results = await self._send(some, f"{key}-r{at}", dry_run=False)
            done.results += zip(some, results, strict=True)
        await self._say_why(refused, done)
        return done

    def _loaded(
        self, group: Group, names: Sequence[str], done: Registered, seen: SeenIdentifiers | None
    ) -> list[tuple[int, object]]:
        """Note what a chunk registered; its rows that were refused."""
        columns = group.columns
        out: list[tuple[int, object]] = []
        folded, lines = group.folded, columns.lines
        if names:
            skip = len(group.prefix) + 1
            taken = {name[skip:] for name in names}
            places = [n for n, suffix in enumerate(columns.suffixes) if suffix in taken]
            out = [(lines[n], columns.sources[n]) for n in places]
            left = [n for n, suffix in enumerate(columns.suffixes) if suffix not in taken]
            folded, lines = [folded[n] for n in left], [lines[n] for n in left]
        done.loaded += len(lines)
        if seen is not None:
            seen.add_run(fold_prefix(group.prefix), folded, lines)
        return out

    async def _say_why(
        self, refused: dict[str, list[tuple[int, object]]], done: Registered
    ) -> None:
        """A chunk names what it refuses, and no reasons: these are asked for, and nothing is
        written, so that a window that comes again finds what it found."""
        rows = list(_rows(self._source, [each for some in refused.values() for each in some]))
        rows.sort(key=lambda row: row.line)
        for at in range(0, len(rows), BATCH_ROWS):
            some = rows[at : at + BATCH_ROWS]
            for row, result in zip(some, await self._send(some, "", dry_run=True), strict=True):
                said = result
                if result.ok:  # it has become free since
                    name = str(row.identifier)
                    said = RowResult(0, name, None, IdentifierTaken.code, *IdentifierTaken().detail)
                done.results.append((row, said))
