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
from typing import Any, Protocol

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
from .import_state import Run, SeenIdentifiers, runs_of

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
    """Rows of a file from `start` to `end`, each an offset and a line."""

    shapes: Shapes
    start: tuple[int, int]
    end: tuple[int, int] = (0, 0)
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


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one prefix, as spelled, cut into blocks; `runs` are their names and lines."""

    prefix: str
    bulk: Bulk
    runs: list[Run]


@dataclass(frozen=True, slots=True)
class Ready:
    """A window that only need be handed over: pieces, and the good `rows` that are in none.
    `groups` are what the pieces were made of, where that is at hand."""

    start: tuple[int, int]
    end: tuple[int, int]
    count: int
    pieces: list[Piece]
    rows: list[Row]
    bad: list[BadRow]
    groups: list[Group] | None


@dataclass(slots=True)
class Registered:
    """What came of a window: how many rows its chunks registered, and of each other good row."""

    loaded: int = 0
    results: list[tuple[Row, RowResult]] = field(default_factory=list)


def windows(source: Source) -> Iterator[Window]:
    """Until the file has ended; where they are cut depends on the file and on where it stands."""
    while True:
        place = source.place
        source.shapes = Shapes()
        window = Window(source.shapes, (place.offset, place.line))
        while window.count < WINDOW_ROWS and place.offset - window.start[0] < WINDOW_BYTES:
            at = place.offset, place.line
            taken = source.take()
            if not taken:
                break
            # What rows were made of is dropped, and read again where it is asked for: hardly ever.
            sources = taken.columns.sources
            taken.columns.sources = [each if type(each) is Row else at for each in sources]
            window.count += len(taken)
            window.rows += taken.rows
            window.bad += taken.bad
            _add(window.columns, taken.columns)
        if not window.count:
            return
        window.end = place.offset, place.line
        yield window


class Cutter:
    """Makes windows ready: pure, but for the file, and in whatever process it is done."""

    def __init__(self, source: Source, *, case_sensitive: bool) -> None:
        self.source = source
        self.case_sensitive = case_sensitive
        self._status = source.reader.mapping.status
        self._template: str | None = None
        self._chunks = True
        try:
            if source.reader.mapping.template:
                self._template = str(Identifier.parse(source.reader.mapping.template))
        except InvalidIdentifier:
            self._chunks = False  # each row will be refused for it

    def all(self, start: tuple[int, int]) -> Iterator[Ready]:
        """Those from `start` to the end of the file."""
        self.source.place.seek(*start)
        for window in windows(self.source):
            yield self._ready(window, ())

    def again(self, ready: Ready, by_rows: Sequence[str]) -> Ready:
        """Of the same window: without pieces of the prefixes `by_rows`, and with its groups."""
        self.source.place.seek(*ready.start)
        return self._ready(next(windows(self.source)), by_rows)

    def _ready(self, window: Window, by_rows: Sequence[str]) -> Ready:
        if not self._chunks:
            by_rows = [fold_prefix(prefix) for prefix in window.columns]
        groups, rows = arranged(window, self.source, by_rows, case_sensitive=self.case_sensitive)
        pieces = [self._piece(group, window) for group in groups]
        return Ready(window.start, window.end, window.count, pieces, rows, window.bad, groups)

    def _piece(self, group: Group, window: Window) -> Piece:
        chunk = chunk_of(group, window, self._status, self._template)
        bulk = cut(chunk, int(time.time()), case_sensitive=self.case_sensitive)
        return Piece(group.prefix, bulk, runs_of(bulk.prefix, group.folded, group.columns.lines))


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


def _rows(source: Source, some: Iterable[tuple[int, Any]]) -> list[Row]:
    """Rows of the columns of a window, as objects, by line and where their batch begins."""
    here = source.place.offset, source.place.line
    batches: dict[tuple[int, int], dict[int, Any]] = {}
    rows = []
    for line, made_of in some:
        if isinstance(made_of, Row):
            rows.append(made_of)
            continue
        if made_of not in batches:
            source.place.seek(*made_of)
            batch = source.batch()
            batches[made_of] = dict(zip(batch.lines, batch.rows, strict=True))
        row = source.row(line, batches[made_of][line])
        assert isinstance(row, Row), "a row of the columns is good"
        rows.append(row)
    if batches:
        source.place.seek(*here)
    return rows


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

    def __init__(self, cutter: Cutter, load: Load, send: Send) -> None:
        self._cutter = cutter
        self._load = load
        self._send = send

    async def register(
        self,
        ready: Ready,
        key: str,
        by_rows: list[str],
        note: Callable[[], None],
        seen: SeenIdentifiers | None,
    ) -> Registered:
        """`by_rows` says of which prefixes no chunks are made; `note` keeps it."""
        done = Registered()
        if by_rows:
            ready = self._cutter.again(ready, by_rows)
        refused: dict[str, list[tuple[int, object]]] = {}
        while True:
            for piece in ready.pieces:
                if piece.prefix in refused:
                    continue
                try:
                    names = await self._load(piece.bulk, f"{key}-{piece.bulk.prefix}")
                except ABOUT_ALL:
                    by_rows.append(piece.bulk.prefix)
                    note()
                    ready = self._cutter.again(ready, by_rows)
                    break
                runs = piece.runs
                refused[piece.prefix] = []
                if names:
                    if ready.groups is None:
                        ready = self._cutter.again(ready, by_rows)
                    refused[piece.prefix], runs = _parted(ready, piece, names)
                done.loaded += piece.bulk.count - len(refused[piece.prefix])
                if seen is not None:
                    seen.add_runs(runs)
            else:
                break
        rows = ready.rows
        for at in range(0, len(rows), BATCH_ROWS):
            some = rows[at : at + BATCH_ROWS]
            results = await self._send(some, f"{key}-r{at}", dry_run=False)
            done.results += zip(some, results, strict=True)
        await self._say_why(refused, done)
        return done

    async def _say_why(
        self, refused: dict[str, list[tuple[int, object]]], done: Registered
    ) -> None:
        """A chunk names what it refuses, and no reasons: these are asked for, and nothing is
        written, so that a window that comes again finds what it found."""
        rows = list(
            _rows(self._cutter.source, [each for some in refused.values() for each in some])
        )
        rows.sort(key=lambda row: row.line)
        for at in range(0, len(rows), BATCH_ROWS):
            some = rows[at : at + BATCH_ROWS]
            for row, result in zip(some, await self._send(some, "", dry_run=True), strict=True):
                said = result
                if result.ok:  # it has become free since
                    name = str(row.identifier)
                    said = RowResult(0, name, None, IdentifierTaken.code, *IdentifierTaken().detail)
                done.results.append((row, said))


def _parted(
    ready: Ready, piece: Piece, names: Sequence[str]
) -> tuple[list[tuple[int, object]], list[Run]]:
    """The rows of a piece that were refused, by their names; and the runs of the others."""
    assert ready.groups is not None
    group = next(group for group in ready.groups if group.prefix == piece.prefix)
    skip = len(piece.prefix) + 1
    taken = {name[skip:] for name in names}
    out: list[tuple[int, object]] = []
    left = []
    columns = group.columns
    for n, suffix in enumerate(columns.suffixes):
        if suffix in taken:
            out.append((columns.lines[n], columns.sources[n]))
        else:
            left.append(n)
    kept = _picked(group, left)
    return out, runs_of(piece.bulk.prefix, kept.folded, kept.columns.lines)
