"""Exporting records as a stream: NDJSON, which loses nothing, CSV for spreadsheets, and the batch
format of Handle tools.

Knows no transport and holds at most a few pages of records, whatever their number. Records come
as such from a node, as columns (`Plain`, `Run`) from the registry itself, which is many times
quicker; all give the same octets. In order of folded prefix, then of suffix octets.
"""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol

import orjson

from biaojie.errors import InvalidRequest, PrefixNotHere
from biaojie.identifier import Identifier, check_prefix, fold_prefix
from biaojie.limits import TTL_DEFAULT_S
from biaojie.record import (
    PERMISSIONS_DEFAULT,
    PERMISSIONS_SECRET,
    SECRET_TYPES,
    Record,
    Status,
    Value,
)
from biaojie.wire.document import encode_record, encode_time, encode_value
from biaojie.wire.handle_batch import CREATE, TYPED, encode_create, fits

from .export_runs import creates, csv_lines, json_lines
from .import_csv import COLUMNS_MAX
from .import_rows import EXPORT_COLUMNS, MORE
from .runs import Plain, Run
from .store import Ask, PieceStore

COLUMN_SAMPLE = 1_000
"""How many of the first records decide which columns a CSV export has."""
PAGE_ROWS = 1_000
ASK = Ask()
_PREFIXES_PAGE = 1_000

Form = Literal["ndjson", "csv", "handle"]
FORMS: tuple[Form, ...] = ("ndjson", "csv", "handle")
Column = tuple[int, str]
"""Index and type of the values that a CSV column holds."""


class Page(NamedTuple):
    """Neighbouring records, and the folded prefix of those that are plain."""

    prefix: str
    pieces: Sequence[Sequence[Plain | Record] | Run]

    def __len__(self) -> int:
        return sum(map(len, self.pieces))


@dataclass(slots=True)
class Exported:
    """How many records were written. `records_left_out` and `values_left_out` tell what a form
    has no way to say; NDJSON and CSV say everything."""

    records: int = 0
    records_left_out: int = 0
    values_left_out: int = 0


def form_of(text: str) -> Form:
    """Raises InvalidRequest on a name that is no form."""
    for form in FORMS:
        if text == form:
            return form
    raise InvalidRequest(
        f"The format is {', '.join(FORMS)}.", f"格式应为 {'、'.join(FORMS)}。", field="format"
    )


async def export(
    pages: AsyncIterator[Page],
    form: Form,
    out: BinaryIO,
    progress: Callable[[int], None] = lambda count: None,
) -> Exported:
    """Write all pages to `out`; raises what writing to it raises.

    ndjson: one record a line, as the JSON interface gives it.

    csv: one identifier a row, UTF-8 without BOM, CRLF. Columns: identifier, status, template,
    version, created, modified; then one for each (index, type) among the text values of the
    first COLUMN_SAMPLE records, in order of index; last `_more`, a JSON list of the values that
    no column can show faithfully: other indexes and types, empty or binary data, own ttl,
    permissions or references. A title is the type, with `[index]` where the index is not simply
    the number of the value column. So the file reads well in a spreadsheet, and importing it
    gives the same values again (version, times and tombstones apart).

    handle: CREATE operations, see biaojie.wire.handle_batch. Drafts and tombstones are left
    out, and so are values that a line cannot carry; templates and versions are unknown there.
    """
    done = Exported()
    sheet: _Sheet = _SHEETS[form](done)
    async for page in pages:
        done.records += len(page)
        out.write(sheet.add(page))
        progress(done.records)
    out.write(sheet.end())
    progress(done.records)
    done.records -= done.records_left_out
    return done


async def export_ndjson(
    records: AsyncIterator[Record],
    out: BinaryIO,
    progress: Callable[[int], None] = lambda count: None,
) -> int:
    """`export` of records as they come; returns how many."""
    return (await export(paged(records), "ndjson", out, progress)).records


async def export_csv(
    records: AsyncIterator[Record],
    out: BinaryIO,
    progress: Callable[[int], None] = lambda count: None,
) -> int:
    """`export` of records as they come; returns how many."""
    return (await export(paged(records), "csv", out, progress)).records


async def paged(records: AsyncIterator[Record]) -> AsyncIterator[Page]:
    """Records of any prefixes as pages."""
    waiting: list[Record] = []
    async for record in records:
        waiting.append(record)
        if len(waiting) == PAGE_ROWS:
            yield Page("", [waiting])
            waiting = []
    yield Page("", [waiting])


async def registry_pages(
    store: PieceStore, prefixes: Sequence[str] = (), ask: Ask = ASK
) -> AsyncGenerator[Page]:
    """Everything the registry holds under these prefixes, tombstones and private values
    included; of all prefixes if none is given. Raises PrefixNotHere, InvalidIdentifier."""
    for prefix in [name async for name in _names(store, prefixes)]:
        coming = asyncio.ensure_future(store.list_pieces(prefix, None, ask))
        try:
            after: bytes | None = b""
            while after is not None:
                pieces, after, more = await coming
                if after is not None:
                    # The database is at work on the next page while this one is written.
                    coming = asyncio.ensure_future(store.list_pieces(prefix, after, more))
                yield Page(prefix, pieces)
        finally:
            coming.cancel()
            await asyncio.wait((coming,))
            if not coming.cancelled():
                coming.exception()  # nobody asks for it any more


async def _names(store: PieceStore, prefixes: Sequence[str]) -> AsyncIterator[str]:
    """Folded, each once, in order."""
    if prefixes:
        wanted = sorted({fold_prefix(check_prefix(prefix)) for prefix in prefixes})
        found = await store.find_prefixes(wanted)
        for name in wanted:
            if name not in found:
                raise PrefixNotHere(
                    f"Prefix {name} is not homed here.", f"前缀 {name} 不在本节点。"
                )
            yield name
        return
    last: str | None = None
    while listed := await store.list_prefixes(last, _PREFIXES_PAGE):
        for prefix in listed:
            last = fold_prefix(prefix.name)
            yield last


def record_of(prefix: str, plain: Plain) -> Record:
    """What the columns say."""
    suffix, status, version, sequence, template, created, modified, values, record = plain
    if record is not None:
        return record
    return Record(
        Identifier(prefix, suffix.decode()),
        tuple(Value(index, type_, data, timestamp=modified) for index, type_, data in values),
        Status(status),
        template,
        version,
        created,
        modified,
        sequence,
    )


def _records(page: Page) -> Iterator[Record]:
    for piece in page.pieces:
        if isinstance(piece, Run):
            yield from piece.records()
            continue
        for item in piece:
            yield item if isinstance(item, Record) else record_of(page.prefix, item)


_TIMES_KEPT = 4_096
_time = lru_cache(_TIMES_KEPT)(encode_time)
"""What is registered together has its times in common."""


class _Sheet(Protocol):
    """Octets for the file: of a page, and at the end."""

    def __init__(self, done: Exported) -> None: ...

    def add(self, page: Page) -> bytes: ...

    def end(self) -> bytes: ...


def _each(page: Page, write: Callable[[Run], None]) -> Iterator[Plain | Record]:
    """The records that come one by one; runs are written where they come between."""
    for piece in page.pieces:
        if isinstance(piece, Run):
            write(piece)
        else:
            yield from piece


class _Lines:
    def __init__(self, done: Exported) -> None:
        pass

    def add(self, page: Page) -> bytes:
        start = page.prefix + "/"
        prefix, dumps, newline = page.prefix, orjson.dumps, orjson.OPT_APPEND_NEWLINE
        usual = str(PERMISSIONS_DEFAULT)
        lines: list[bytes] = []
        for item in _each(page, lambda run: lines.extend(json_lines(run))):
            if type(item) is tuple:
                suffix, status, version, sequence, template, created, modified, values, _ = item
                if item[8] is None and modified:
                    stamp = _time(modified)
                    try:
                        document: dict[str, Any] = {
                            "identifier": start + suffix.decode(),
                            "status": status,
                            "template": template,
                            "version": version,
                            "sequence": sequence,
                            "created": _time(created),
                            "modified": stamp,
                            "values": [
                                {
                                    "index": index,
                                    "type": type_,
                                    "data": data.decode(),
                                    "ttl": TTL_DEFAULT_S,
                                    "permissions": usual,
                                    "timestamp": stamp,
                                }
                                for index, type_, data in values
                            ],
                        }
                        lines.append(dumps(document, None, newline))
                        continue
                    except UnicodeDecodeError:
                        pass
                item = record_of(prefix, item)  # noqa: PLW2901
            assert isinstance(item, Record)
            lines.append(dumps(encode_record(item), None, newline))
        return b"".join(lines)

    def end(self) -> bytes:
        return b""


class _Creates:
    def __init__(self, done: Exported) -> None:
        self._done = done

    def add(self, page: Page) -> bytes:
        start = f"{CREATE}{page.prefix}/"
        plain = f" {TTL_DEFAULT_S} {PERMISSIONS_DEFAULT} UTF8 "
        parts: list[str] = []
        for item in _each(page, lambda run: parts.append(self._run(run))):
            if type(item) is tuple:
                suffix, status, _, _, _, _, _, values, record = item
                if record is None and status in _RESOLVES and values:
                    lines = [start, suffix.decode(), "\n"]
                    for index, type_, data in values:
                        text = data.decode(errors="replace")
                        if _TYPED(type_) or " " in type_ or "\ufffd" in text or not fits(text):
                            break
                        lines += (str(index), " ", type_, plain, text, "\n")
                    else:
                        lines.append("\n")
                        parts.extend(lines)
                        continue
                item = record_of(page.prefix, item)  # noqa: PLW2901
            assert isinstance(item, Record)
            parts.append(self._create(item))
        return "".join(parts).encode()

    def _run(self, run: Run) -> str:
        made = creates(run)
        self._done.records_left_out += made.records_left_out
        self._done.values_left_out += made.values_left_out
        return b"".join(made.texts).decode()

    def _create(self, record: Record) -> str:
        text, left_out = "", 0
        if record.status.value in _RESOLVES:
            text, left_out = encode_create(record)
        self._done.values_left_out += left_out
        self._done.records_left_out += not text
        return text

    def end(self) -> bytes:
        return b""


_RESOLVES = frozenset({Status.ACTIVE.value, Status.FROZEN.value})
_TYPED = TYPED.__contains__


_QUOTED = re.compile('["\\r\\n]').search
"""Besides a comma, what makes a cell be quoted."""


class _Table:
    """CSV under columns chosen from the records it begins with."""

    def __init__(self, done: Exported) -> None:
        self._text = io.StringIO()
        self._octets: list[bytes] = []  # what was written before
        self._writer = csv.writer(self._text)
        self._place: dict[Column, int] | None = None
        self._sample: list[Page] = []
        self._sampled = 0

    def add(self, page: Page) -> bytes:
        if self._place is None:
            self._sample.append(page)
            self._sampled += len(page)
            return self._begin() if self._sampled >= COLUMN_SAMPLE else b""
        self._write(page, self._place)
        return self._take()

    def end(self) -> bytes:
        return self._begin() if self._place is None else b""

    def _begin(self) -> bytes:
        records = chain.from_iterable(map(_records, self._sample))
        columns = _columns(list(islice(records, COLUMN_SAMPLE)))
        place = self._place = {column: at for at, column in enumerate(columns)}
        self._writer.writerow([*EXPORT_COLUMNS, *_titles(columns), MORE])
        for page in self._sample:
            self._write(page, place)
        self._sample = []
        return self._take()

    def _take(self) -> bytes:
        self._drain()
        octets = b"".join(self._octets)
        self._octets.clear()
        return octets

    def _drain(self) -> None:
        self._octets.append(self._text.getvalue().encode())
        self._text.seek(0)
        self._text.truncate()

    def _write(self, page: Page, place: dict[Column, int]) -> None:
        start = page.prefix + "/"
        empty = [""] * (len(place) + 1)
        open_ = {column: at for column, at in place.items() if column[1] not in SECRET_TYPES}
        commas = len(EXPORT_COLUMNS) + len(place)
        for item in _each(page, lambda run: self._write_run(run, place)):
            if type(item) is tuple:
                suffix, status, version, _, template, created, modified, values, record = item
                if record is None:
                    cells = empty.copy()
                    for index, type_, data in values:
                        at = open_.get((index, type_))
                        text = data.decode(errors="replace")
                        if at is None or not text or "\0" in text or "\ufffd" in text:
                            break
                        cells[at] = text
                    else:
                        row = (
                            start + suffix.decode(),
                            status,
                            template or "",
                            str(version),
                            _time(created),
                            _time(modified),
                            *cells,
                        )
                        line = ",".join(row)
                        if line.count(",") == commas and not _QUOTED(line):
                            self._text.write(line + "\r\n")
                        else:
                            self._writer.writerow(row)
                        continue
                item = record_of(page.prefix, item)  # noqa: PLW2901
            assert isinstance(item, Record)
            self._writer.writerow(self._row(item, place))

    def _write_run(self, run: Run, place: dict[Column, int]) -> None:
        lines = csv_lines(run, place, _is_plain_but_for_data)
        if lines is None:
            self._writer.writerows(self._row(record, place) for record in run.records())
            return
        self._drain()
        self._octets += lines

    def _row(self, record: Record, place: dict[Column, int]) -> Any:
        cells = [""] * len(place)
        more = []
        for value in record.values:
            at = place.get((value.index, value.type))
            if at is None or not _is_plain(value):
                more.append(encode_value(replace(value, timestamp=0)))
            else:
                cells[at] = value.data.decode()
        return (
            str(record.identifier),
            record.status.value,
            record.template or "",
            record.version,
            encode_time(record.created),
            encode_time(record.modified),
            *cells,
            orjson.dumps(more).decode() if more else "",
        )


_SHEETS: dict[Form, type[_Lines | _Table | _Creates]] = {
    "ndjson": _Lines,
    "csv": _Table,
    "handle": _Creates,
}


def _is_plain(value: Value) -> bool:
    """Whether the text alone says everything: an import makes the same value of it again."""
    usual = PERMISSIONS_SECRET if value.type in SECRET_TYPES else PERMISSIONS_DEFAULT
    text = value.text
    bare = Value(value.index, value.type, value.data, permissions=usual)
    return bool(text) and "\0" not in str(text) and replace(value, timestamp=0) == bare


@lru_cache(_TIMES_KEPT)
def _is_plain_but_for_data(value: Value) -> bool:
    return _is_plain(replace(value, data=b"any"))


def _columns(sample: list[Record]) -> list[Column]:
    """One column per index, of the type that most records have there."""
    counts: dict[Column, int] = {}
    for record in sample:
        for value in record.values:
            # An import takes titles without outer spaces, and none that begin with `_`.
            if _is_plain(value) and value.type == value.type.strip() and value.type[0] != "_":
                column = (value.index, value.type)
                counts[column] = counts.get(column, 0) + 1
    best: dict[int, Column] = {}
    for column in sorted(counts, key=lambda column: (column[0], -counts[column])):
        best.setdefault(column[0], column)
    room = COLUMNS_MAX - len(EXPORT_COLUMNS) - 1
    return [best[index] for index in sorted(best)][:room]


def _titles(columns: list[Column]) -> list[str]:
    taken = {*EXPORT_COLUMNS, MORE}
    titles = []
    for number, (index, type_) in enumerate(columns, 1):
        title = type_
        if index != number or type_.endswith("]") or type_.casefold() in taken:
            title = f"{type_}[{index}]"
        taken.add(title.casefold())
        titles.append(title)
    return titles
