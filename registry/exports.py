"""Exporting records as a stream: NDJSON, which loses nothing, and CSV for spreadsheets.

Knows no transport and holds at most COLUMN_SAMPLE records, whatever their number.
"""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import BinaryIO

import orjson

from biaojie.record import (
    PERMISSIONS_DEFAULT,
    PERMISSIONS_SECRET,
    SECRET_TYPES,
    Record,
    Value,
)
from biaojie.wire.document import encode_record, encode_time, encode_value

from .import_csv import COLUMNS_MAX
from .import_rows import EXPORT_COLUMNS, MORE

COLUMN_SAMPLE = 1_000
"""How many of the first records decide which columns a CSV export has."""
_BUFFER_BYTES = 262_144

Column = tuple[int, str]
"""Index and type of the values that a CSV column holds."""


async def export_ndjson(
    records: AsyncIterator[Record],
    out: BinaryIO,
    progress: Callable[[int], None] = lambda count: None,
) -> int:
    """One record a line, as the JSON interface gives it; returns how many."""
    count = 0
    lines: list[bytes] = []
    octets = 0
    async for record in records:
        line = orjson.dumps(encode_record(record)) + b"\n"
        lines.append(line)
        octets += len(line)
        count += 1
        if octets >= _BUFFER_BYTES:
            out.write(b"".join(lines))
            lines, octets = [], 0
            progress(count)
    out.write(b"".join(lines))
    progress(count)
    return count


async def export_csv(
    records: AsyncIterator[Record],
    out: BinaryIO,
    progress: Callable[[int], None] = lambda count: None,
) -> int:
    """One identifier a row; returns how many. UTF-8 without BOM, CRLF.

    Columns: identifier, status, template, version, created, modified; then one for each
    (index, type) among the text values of the first COLUMN_SAMPLE records, in order of index;
    last `_more`, a JSON list of the values that no column can show faithfully: other indexes
    and types, empty or binary data, own ttl, permissions or references. A title is the type,
    with `[index]` where the index is not simply the number of the value column. So the file
    reads well in a spreadsheet, and importing it gives the same values again (version, times
    and tombstones apart).
    """
    sample: list[Record] = []
    sheet: _Sheet | None = None
    count = 0
    async for record in records:
        count += 1
        if sheet is not None:
            sheet.add(record)
        else:
            sample.append(record)
            if len(sample) == COLUMN_SAMPLE:
                sheet = _Sheet(sample)
        if sheet is not None and sheet.text.tell() >= _BUFFER_BYTES:
            out.write(sheet.take())
            progress(count)
    if sheet is None:
        sheet = _Sheet(sample)
    out.write(sheet.take())
    progress(count)
    return count


class _Sheet:
    """CSV text so far, under columns chosen from the records it begins with."""

    def __init__(self, records: list[Record]) -> None:
        self.text = io.StringIO()
        self._writer = csv.writer(self.text)
        columns = _columns(records)
        self._place = {column: place for place, column in enumerate(columns)}
        self._writer.writerow([*EXPORT_COLUMNS, *_titles(columns), MORE])
        for record in records:
            self.add(record)

    def take(self) -> bytes:
        octets = self.text.getvalue().encode()
        self.text.seek(0)
        self.text.truncate()
        return octets

    def add(self, record: Record) -> None:
        cells = [""] * len(self._place)
        more = []
        for value in record.values:
            place = self._place.get((value.index, value.type))
            if place is None or not _is_plain(value):
                more.append(encode_value(replace(value, timestamp=0)))
            else:
                cells[place] = value.data.decode()
        self._writer.writerow(
            [
                str(record.identifier),
                record.status.value,
                record.template or "",
                str(record.version),
                encode_time(record.created),
                encode_time(record.modified),
                *cells,
                orjson.dumps(more).decode() if more else "",
            ]
        )


def _is_plain(value: Value) -> bool:
    """Whether the text alone says everything: an import makes the same value of it again."""
    usual = PERMISSIONS_SECRET if value.type in SECRET_TYPES else PERMISSIONS_DEFAULT
    text = value.text
    bare = Value(value.index, value.type, value.data, permissions=usual)
    return bool(text) and "\0" not in str(text) and replace(value, timestamp=0) == bare


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
