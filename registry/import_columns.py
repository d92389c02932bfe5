"""Rows of a batch as columns: names, and the data of each value, without an object for each row.

What is taken here is taken just as `RowReader` or `RecordReader` would take it; of everything
that is not certainly so they are asked, row by row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress, repeat
from typing import Any, Protocol

from biaojie.errors import InvalidIdentifier, InvalidRecord
from biaojie.identifier import Identifier
from biaojie.limits import IDENTIFIER_CHARS_MAX
from biaojie.record import Value, usual_permissions

from .import_alike import VALUES_MAX, alike
from .import_batches import PLAIN_BYTES_MAX, Batch, next_batch
from .import_csv import Cells, CsvFile
from .import_documents import RECORD_FIELDS, DocumentFile, RecordReader, text_of
from .import_rows import BadRow, Row, RowMapping, RowReader

SHAPES_MAX = 48
"""Different shapes of values in one chunk; rows of others are registered one by one."""
_SAID_MAX = 1_024
_RECORD_BYTES_MAX = 65_536
"""Characters of a row whose data certainly is not too much for a record."""
_PRINTED = re.compile(r"[ -~\n]*")
_SOLID = re.compile(r"[!-~\n]*")

Rows = CsvFile | DocumentFile
Reader = RowReader | RecordReader


def reader_of(file: Rows, mapping: RowMapping) -> Reader:
    """Raises InvalidFile or InvalidIdentifier where file and mapping do not fit."""
    return RowReader(file.header, mapping) if file.header else RecordReader(mapping)


@dataclass(slots=True)
class Columns:
    """Good rows: their lines, what each was made of (for `Source.row`; in a window a Row, or where
    the batch begins that it is in), prefix and suffix as spelled, which shape its values have, and
    the data of these."""

    lines: list[int] = field(default_factory=list)
    sources: list[Any] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    suffixes: list[str] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    data: list[tuple[bytes, ...]] = field(default_factory=list)


@dataclass(slots=True)
class Taken:
    """A batch that was read. `rows` are good, and not among the columns."""

    columns: Columns
    rows: list[Row]
    bad: list[BadRow]

    def __len__(self) -> int:
        return len(self.columns.lines) + len(self.rows) + len(self.bad)


class Shapes:
    """The shapes of values that were met, by number."""

    def __init__(self) -> None:
        self.known: list[tuple[Value, ...]] = []
        self._numbers: dict[Any, int | None] = {}

    def of(self, values: Iterable[Value]) -> int | None:
        """That of these values, which were checked; None where there are too many."""
        shape = tuple([replace(value, data=b"", timestamp=0) for value in values])
        if shape not in self._numbers and len(self.known) < SHAPES_MAX:
            self._numbers[shape] = len(self.known)
            self.known.append(shape)
        return self._numbers.get(shape)

    def plain(self, said: tuple[Any, ...]) -> int | None:
        """That of values of which nothing is said but indexes and types, by turns; None where
        that is not how values are."""
        if said not in self._numbers and len(self._numbers) < _SAID_MAX:
            self._numbers[said] = self._plain(said)
        return self._numbers.get(said)

    def _plain(self, said: tuple[Any, ...]) -> int | None:
        values = []
        before = 0
        for index, type_ in zip(said[::2], said[1::2], strict=True):
            if type(index) is not int or type(type_) is not str or index <= before:
                return None
            before = index
            values.append(Value(index, type_, b"", permissions=usual_permissions(type_)))
        try:
            for value in values:
                value.check()
        except InvalidRecord:
            return None
        return self.of(values) if len(values) <= VALUES_MAX else None


class Place(Protocol):
    """Where rows stand that were put in order."""

    size: int
    offset: int
    line: int

    def seek(self, offset: int, line: int) -> None: ...
    def batch(self) -> Batch: ...
    def close(self) -> None: ...


class Source:
    """The rows of an opened file, a batch at a time; or of `place`, which has them in order."""

    def __init__(self, file: Rows, reader: Reader, place: Place | None = None) -> None:
        self.file = file
        self.reader = reader
        self.shapes = Shapes()
        self.place: Place | Rows = place or file
        self._sorted = place
        self.batch = place.batch if place is not None else partial(next_batch, file)

    def close(self) -> None:
        """The file itself stays open."""
        if self._sorted is not None:
            self._sorted.close()

    def take(self) -> Taken:
        """The next batch; an empty one at the end. Raises InvalidFile."""
        batch = self.batch()
        taken = Taken(Columns(), [], [])
        doubtful = self._cells(batch, taken) if self.file.header else self._records(batch, taken)
        for number in doubtful:
            self._one(self.row(batch.lines[number], batch.rows[number]), taken)
        for split in batch.others:
            self._one(self._read(split), taken)
        return taken

    def row(self, line: int, source: Any) -> Row | BadRow:
        """A row as an object; of a row of the columns a good one."""
        if isinstance(source, Row):
            return source
        if isinstance(self.file, DocumentFile) and type(source) in (dict, list):
            (split,) = self.file.split_row(source, line)
            return self._read(split)
        return self._read(Cells(line, line, tuple(source)))

    def _read(self, split: Any) -> Row | BadRow:
        return self.reader.read(split)

    def _one(self, row: Row | BadRow, taken: Taken) -> None:
        if isinstance(row, BadRow):
            taken.bad.append(row)
            return
        mapping = self.reader.mapping
        usual = row.status is mapping.status and row.template == mapping.template
        ordered = sorted(row.values, key=lambda value: value.index)
        kind = self.shapes.of(ordered) if usual else None
        if kind is None:
            taken.rows.append(row)
            return
        columns = taken.columns
        columns.lines.append(row.line)
        columns.sources.append(row)
        columns.prefixes.append(row.identifier.prefix)
        columns.suffixes.append(row.identifier.suffix)
        columns.kinds.append(kind)
        columns.data.append(tuple([value.data for value in ordered]))

    # Rows of cells ----------------------------------------------------------------------

    def _cells(self, batch: Batch, taken: Taken) -> Sequence[int]:
        """Take the plain ones; which are not (by their place in the batch)."""
        reader = self.reader
        assert isinstance(reader, RowReader)
        if not batch.rows or not reader.usual:
            return range(len(batch.rows))
        columns, doubtful = self._texts(batch)
        lengths = [len(max(column, key=len)) for column in columns if column]
        if sum(lengths) > _RECORD_BYTES_MAX or max(lengths, default=0) > PLAIN_BYTES_MAX:
            return range(len(batch.rows))
        datas = []
        for value in reader.columns:
            octets, odd = _data(columns[value.at], reader.formulas)
            datas.append(octets)
            doubtful |= odd
        for at, usual in reader.usual_cells():
            doubtful |= {n for n, cell in enumerate(columns[at]) if cell not in usual}
        prefixes, suffixes, odd = self._names(reader, columns)
        doubtful |= odd
        kinds, data = self._kinds(reader, datas, len(batch.rows))
        doubtful |= {n for n, kind in enumerate(kinds) if kind < 0} if -1 in kinds else set()
        lines = batch.lines
        parts: list[Any] = [lines, batch.rows, prefixes, suffixes, kinds, data]
        if doubtful:
            sound = [n not in doubtful for n in range(len(lines))]
            parts = [list(compress(part, sound)) for part in parts]
        taken.columns = Columns(*parts)
        return sorted(doubtful)

    def _texts(self, batch: Batch) -> tuple[list[Sequence[str]], set[int]]:
        """The cells by column, and which rows have none that can be told at once."""
        if isinstance(self.file, CsvFile):
            return list(zip(*batch.rows, strict=True)), set()
        header = self.file.header
        names = set(header)
        blank = [""] * len(header)
        doubtful: set[int] = set()
        rows = []
        for number, fields in enumerate(batch.rows):
            if type(fields) is dict and fields.keys() == names:
                rows.append([fields[name] for name in header])
            elif type(fields) is tuple:  # cells already
                rows.append(list(fields))
            else:
                doubtful.add(number)
                rows.append(blank)
        columns: list[Sequence[str]] = []
        for column in zip(*rows, strict=True):
            if set(map(type, column)) == {str}:
                columns.append(column)
                continue
            texts = list(map(text_of, column))
            doubtful |= {number for number, text in enumerate(texts) if text is None}
            columns.append([text or "" for text in texts])
        return columns, doubtful

    def _names(
        self, reader: RowReader, columns: Sequence[Sequence[str]]
    ) -> tuple[Sequence[str], Sequence[str], set[int]]:
        """Prefixes, suffixes, and which rows have no plain name."""
        named = [columns[at] for at in reader.places]
        count = len(named[0])
        doubtful: set[int] = set()
        for column in named:
            if not all(column):
                doubtful |= {n for n, cell in enumerate(column) if not cell}
            joined = "\n".join(column)
            breaks = joined.count("\n") >= count or "\r" in joined
            if breaks or "\0" in joined or joined[:1] == "=" or "\n=" in joined:
                doubtful |= {n for n, cell in enumerate(column) if _unnamable(cell)}
        if not reader.mapping.suffix:
            return _whole_names(named[0], doubtful)
        prefix = reader.mapping.prefix
        plain = all(_SOLID.fullmatch("".join(column)) for column in named)
        texts = reader.suffixes(columns, plain=plain)
        suffixes = _plain_suffixes(prefix, "\n".join(texts), count)
        if suffixes is None:
            return _parsed(texts, doubtful, prefix)
        return [prefix] * count, suffixes, doubtful

    def _kinds(
        self, reader: RowReader, datas: Sequence[Sequence[bytes]], count: int
    ) -> tuple[list[int], list[tuple[bytes, ...]]]:
        """Of each row the shape (-1: none can be said) and the data: empty cells hold no value."""
        data: list[tuple[bytes, ...]] = (
            list(zip(*datas, strict=True)) if datas else list(repeat((), count))
        )
        shape = [Value(c.index, c.type, b"", permissions=c.permissions) for c in reader.columns]
        if all(map(all, datas)):
            return [self._kind(shape)] * count, data
        known: dict[tuple[bool, ...], int] = {}
        kinds = []
        for number, row in enumerate(data):
            there = tuple(map(bool, row))
            kind = known.get(there)
            if kind is None:
                kind = known[there] = self._kind(list(compress(shape, there)))
            kinds.append(kind)
            data[number] = tuple(filter(None, row))
        return kinds, data

    def _kind(self, shape: Sequence[Value]) -> int:
        ordered = sorted(shape, key=lambda value: value.index)
        kind = self.shapes.of(ordered) if list(shape) == ordered else None
        return -1 if kind is None else kind

    # Records ----------------------------------------------------------------------------

    def _records(self, batch: Batch, taken: Taken) -> Sequence[int]:
        mapping = self.reader.mapping
        statuses = (None, mapping.status.value)
        templates = (None, "", mapping.template)
        columns = taken.columns
        names: list[str] = []
        doubtful: list[int] = []
        some = alike(batch.rows, statuses, templates) if batch.rows else None
        kind = self.shapes.plain(some.said) if some is not None else None
        rows: Iterable[Any] = batch.rows
        if some is not None and kind is not None:
            names, rows = list(some.names), ()
            columns.lines, columns.sources = list(batch.lines), list(batch.rows)
            columns.kinds, columns.data = [kind] * len(names), some.data
        for number, row in enumerate(rows):
            if type(row) is list:
                if not 2 <= len(row) <= 4:
                    doubtful.append(number)
                    continue
                name, values = row[0], row[1]
                status = row[2] if len(row) > 2 else None
                template = row[3] if len(row) > 3 else None
            elif RECORD_FIELDS.issuperset(row):
                name, values = row.get("identifier"), row.get("values", [])
                status, template = row.get("status"), row.get("template")
            else:
                doubtful.append(number)
                continue
            read = self._values(values)
            if (
                read is None
                or type(name) is not str
                or status not in statuses
                or template not in templates
            ):
                doubtful.append(number)
                continue
            names.append(name)
            columns.lines.append(batch.lines[number])
            columns.sources.append(row)
            columns.kinds.append(read[0])
            columns.data.append(read[1])
        if not names:
            return doubtful
        prefixes, suffixes, odd = _whole_names(names, set())
        columns.prefixes, columns.suffixes = list(prefixes), list(suffixes)
        if odd:
            back = dict(zip(batch.lines, range(len(batch.lines)), strict=True))
            doubtful += [back[columns.lines[n]] for n in odd]
            sound = [n not in odd for n in range(len(names))]
            parts: list[Any] = [columns.lines, columns.sources, columns.prefixes]
            parts += [columns.suffixes, columns.kinds, columns.data]
            taken.columns = Columns(*(list(compress(part, sound)) for part in parts))
        return sorted(doubtful)

    def _values(self, values: Any) -> tuple[int, tuple[bytes, ...]] | None:
        """Shape and data; None of what is said otherwise than with index, type and data."""
        if type(values) is not list or len(values) > VALUES_MAX:
            return None
        said: list[Any] = []
        data = []
        kind: Any = type(values[0]) if values else list
        listed: list[Any] = values
        for value in listed:
            if type(value) is not kind or len(value) != 3:
                return None
            if kind is list:
                index, type_, octets = value
            elif kind is dict:
                index, type_, octets = value.get("index"), value.get("type"), value.get("data")
            else:
                return None
            if type(octets) is str:
                try:
                    octets = octets.encode()
                except UnicodeError:
                    return None
            elif type(octets) is not bytes:
                return None
            if type(index) is not int or type(type_) is not str or len(octets) > PLAIN_BYTES_MAX:
                return None
            said += index, type_
            data.append(octets)
        number = self.shapes.plain(tuple(said))
        return None if number is None else (number, tuple(data))


def _data(cells: Sequence[str], formulas: bool) -> tuple[Sequence[bytes], set[int]]:
    """Cells as octets, and which hold what is no value."""
    joined = "\n".join(cells)
    doubtful: set[int] = set()
    if "\0" in joined:
        doubtful |= {n for n, cell in enumerate(cells) if "\0" in cell}
    if not formulas and (joined[:1] == "=" or "\n=" in joined):
        doubtful |= {n for n, cell in enumerate(cells) if cell[:1] == "="}
    try:
        octets = joined.encode().split(b"\n")
        if len(octets) == len(cells):
            return octets, doubtful
    except UnicodeError:
        doubtful |= {n for n, cell in enumerate(cells) if not _encodes(cell)}
    return [cell.encode("utf-8", "replace") for cell in cells], doubtful


def _encodes(cell: str) -> bool:
    try:
        cell.encode()
    except UnicodeError:
        return False
    return True


def _unnamable(cell: str) -> bool:
    return cell[:1] == "=" or any(character in cell for character in "\n\r\0")


def _is_prefix(prefix: str) -> bool:
    try:
        Identifier(prefix, "x")
    except InvalidIdentifier:
        return False
    return True


def _whole_names(
    texts: Sequence[str], doubtful: set[int]
) -> tuple[Sequence[str], Sequence[str], set[int]]:
    """Whole identifiers; all in a few steps where they have one prefix and are plain."""
    prefix = texts[0].partition("/")[0]
    joined = "\n" + "\n".join(texts)
    start = f"\n{prefix}/"
    if joined.count(start) == joined.count("\n") == len(texts):
        suffixes = _plain_suffixes(prefix, joined.replace(start, "\n")[1:], len(texts))
        if suffixes is not None:
            return [prefix] * len(texts), suffixes, doubtful
    return _parsed(texts, doubtful)


def _plain_suffixes(prefix: str, joined: str, count: int) -> list[str] | None:
    """Suffixes, given line by line; None where any needs a closer look."""
    if (
        not joined
        or not _PRINTED.fullmatch(joined)
        or _edged(joined)
        or joined.count("\n") != count - 1
        or not _is_prefix(prefix)
    ):
        return None
    suffixes = joined.split("\n")
    longest = len(max(suffixes, key=len))
    return suffixes if len(prefix) + 1 + longest <= IDENTIFIER_CHARS_MAX else None


def _edged(joined: str) -> bool:
    """Whether any line is empty, or begins or ends with a space. Three looks of the interpreter's
    own take a tenth of one pattern's time."""
    lines = f"\n{joined}\n"
    return "\n\n" in lines or "\n " in lines or " \n" in lines


def _parsed(
    texts: Sequence[str], doubtful: set[int], prefix: str = ""
) -> tuple[list[str], list[str], set[int]]:
    """Whole identifiers, or with a prefix suffixes, one after the other."""
    prefixes = []
    suffixes = []
    for number, text in enumerate(texts):
        try:
            found = Identifier(prefix, text) if prefix else Identifier.parse(text)
        except InvalidIdentifier:
            doubtful.add(number)
            prefixes.append("")
            suffixes.append("")
        else:
            prefixes.append(found.prefix)
            suffixes.append(found.suffix)
    return prefixes, suffixes, doubtful
