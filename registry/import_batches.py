"""Rows of a file in batches, the plain ones at little cost each: CSV, NDJSON and msgpack.

What a batch gives is what the file gives row by row (`CsvFile`, `DocumentFile`): whatever is
not plainly plain is read by it, from its place. Where batches are cut depends only on the file
and the place that they begin at.
"""

from __future__ import annotations

import re
import secrets
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any

import msgpack
import orjson

from .import_csv import ROW_BYTES_MAX, Broken, Cells, CsvFile
from .import_documents import Document, DocumentFile, SheetFile, refuse_extension

BATCH_ROWS = 4_096
BATCH_BYTES = 524_288
PLAIN_BYTES_MAX = 16_384
"""Octets of a line that may be plain. A cell of one is no longer than a value may be."""
_SLICE_ROWS = 64
_ODD = re.compile(rb'["\0]|\r(?!\Z)')

Split = Cells | Document | Broken


@dataclass(slots=True)
class Batch:
    """Plain rows, each with its line: texts of cells, or what stands for a record; and others as
    the file gave them. None of either where the file has ended."""

    lines: list[int] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)
    others: list[Split] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines) + len(self.others)


def next_batch(file: CsvFile | DocumentFile) -> Batch:
    """The next rows of the file, which stands after them then. Raises InvalidFile."""
    if isinstance(file, CsvFile):
        return _csv_batch(file)
    if isinstance(file, SheetFile):
        return Batch(others=list(islice(file, BATCH_ROWS)))
    return _packed_batch(file) if file.packed else _json_batch(file)


def _utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeError:
        return False
    return True


def _read(file: CsvFile | DocumentFile) -> list[bytes]:
    """Whole lines from where the file stands, without their ends."""
    data = file.file.read(BATCH_BYTES)
    whole = data.rfind(b"\n") + 1 if len(data) == BATCH_BYTES else len(data)
    raw = data[: whole or len(data)].split(b"\n")
    if len(raw) > 1 and not raw[-1]:
        raw.pop()
    return raw[:BATCH_ROWS] if data else []


def _csv_batch(file: CsvFile) -> Batch:
    batch = Batch()
    start, line = file.offset, file.line
    file.file.seek(start)
    while raw := _read(file):
        _take_cells(file, raw, start, line, batch)
        if batch:  # else there were only blank lines
            break
        start, line = file.offset, file.line
        file.file.seek(start)
    return batch


def _take_cells(file: CsvFile, raw: list[bytes], start: int, line: int, batch: Batch) -> None:
    commas = len(file.header) - 1
    ends = list(accumulate([len(text) + 1 for text in raw]))
    odd = _odd_lines(raw, commas)
    at = 0
    for number in [*odd, len(raw)]:
        if number < at:
            continue  # an earlier row, of several lines, took it in
        if number > at:
            _split(raw[at:number], line + at + 1, batch)
        at = number
        if number < len(raw):
            file.seek(start + (ends[number - 1] if number else 0), line + number)
            split = next(iter(file), None)
            if split is not None:
                batch.others.append(split)
            read = file.offset - start
            if split is None or read > ends[-1]:
                return  # beyond the end of what was looked at
            at = bisect_left(ends, read) + 1
    file.seek(min(start + ends[at - 1], file.size), line + at)


def _odd_lines(raw: Sequence[bytes], commas: int) -> list[int]:
    """Which lines are not, for certain, a row of plain cells each."""
    odd = {n for n, text in enumerate(raw) if text.count(b",") != commas and text.strip(b"\r")}
    whole = b"\n".join(raw)
    if b'"' in whole or b"\0" in whole or b"\r" in whole:
        odd |= {n for n, text in enumerate(raw) if _ODD.search(text)}
    if len(max(raw, key=len)) > PLAIN_BYTES_MAX:
        odd |= {n for n, text in enumerate(raw) if len(text) > PLAIN_BYTES_MAX}
    if not _utf8(whole):
        odd |= {n for n, text in enumerate(raw) if not _utf8(text)}
    return sorted(odd)


def _split(raw: Sequence[bytes], line: int, batch: Batch) -> None:
    text = b"\n".join(raw).decode() + "\n"
    lines = text.replace("\r\n", "\n").split("\n")[:-1]
    if "" in lines:
        batch.lines += [line + n for n, text in enumerate(lines) if text]
        lines = [text for text in lines if text]
    else:
        batch.lines += range(line, line + len(lines))
    batch.rows += [text.split(",") for text in lines]


# Documents ------------------------------------------------------------------------------


def _json_batch(file: DocumentFile) -> Batch:
    batch = Batch()
    file.file.seek(file.offset)
    while not batch and (raw := _read(file)):
        start, line = file.offset, file.line
        if len(raw) == 1 and len(raw[0]) >= BATCH_BYTES:
            file.seek(start, line)
            batch.others += islice(file, 1)
            continue
        file.seek(min(start + sum(map(len, raw)) + len(raw), file.size), line + len(raw))
        if all(raw) and len(max(raw, key=len)) <= PLAIN_BYTES_MAX:
            documents = _parsed(raw)
            if None not in documents:
                batch.lines, batch.rows = list(range(line + 1, line + len(raw) + 1)), documents
                continue
        numbered = [(n, text) for n, text in enumerate(raw, line + 1) if text.strip()]
        documents = _parsed([text for _, text in numbered])
        for (number, text), fields in zip(numbered, documents, strict=True):
            if fields is not None and len(text) <= PLAIN_BYTES_MAX:
                batch.lines.append(number)
                batch.rows.append(fields)
            else:
                last = number == file.line and file.offset == file.size
                batch.others += file.split_line(text if last else text + b"\n", number)
    return batch


def _parsed(lines: list[bytes]) -> list[dict[str, Any] | None]:
    """The object on each line, None where there is none. They are read as one array, parted by
    a text that nobody can have put into the file: each line must fill its place exactly."""
    mark = secrets.token_hex(16)
    try:
        found = orjson.loads(b"[" + f',"{mark}",'.encode().join(lines) + b"]")
    except orjson.JSONDecodeError:
        found = []
    if len(found) == 2 * len(lines) - 1 and found[1::2] == [mark] * (len(lines) - 1):
        return [each if isinstance(each, dict) else None for each in found[::2]]
    return [_object(text) for text in lines]


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _packed_batch(file: DocumentFile) -> Batch:
    start, line = file.offset, file.line
    file.file.seek(start)
    rows: list[Any] = []
    unpacker = msgpack.Unpacker(
        file.file,
        use_list=True,
        strict_map_key=False,
        read_size=65_536,
        max_buffer_size=ROW_BYTES_MAX,
        ext_hook=refuse_extension,
    )
    read = 0
    while len(rows) < BATCH_ROWS and read < BATCH_BYTES:
        try:
            some = list(islice(unpacker, _SLICE_ROWS))
        except (ValueError, UnicodeError, msgpack.UnpackException, RecursionError):
            break
        if len(some) < _SLICE_ROWS:
            break  # the end, or within a row: that is seen row by row
        rows += some
        read = unpacker.tell()
    if not rows:
        file.seek(start, line)
        return Batch(others=list(islice(file, _SLICE_ROWS)))
    file.offset, file.line = start + read, line + len(rows)
    if set(map(type, rows)) <= {list, dict}:
        return Batch(list(range(line + 1, line + len(rows) + 1)), rows)
    batch = Batch()
    for number, row in enumerate(rows, line + 1):
        if type(row) is list or type(row) is dict:
            batch.lines.append(number)
            batch.rows.append(row)
        else:
            batch.others += file.split_row(row, number)
    return batch
