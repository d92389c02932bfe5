"""Rows that come as documents: NDJSON, a msgpack stream, and the lines a workbook was made into.

A document is a record as the JSON interface gives it (`identifier`, `values`, `status`,
`template`), or an object of plain values, which is a row of cells under the names of the first
one. Memory is bounded by ROW_BYTES_MAX for each row whatever the file holds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO

import msgpack
import orjson

from biaojie.errors import BiaojieError, InvalidFile, InvalidRecord, Text
from biaojie.identifier import Identifier
from biaojie.limits import TTL_DEFAULT_S
from biaojie.record import Status, Value, check_values, usual_permissions
from biaojie.wire.document import decode_values
from biaojie.wire.native.values import decode_values as decode_native_values

from .import_csv import COLUMNS_MAX, ROW_BYTES_MAX, Broken, Cells
from .import_rows import BadRow, Fault, Row, RowMapping, cell_fault, printable

RECORD_FIELDS = frozenset(
    {"identifier", "values", "status", "template", "version", "sequence", "created", "modified"}
)
"""What a record may have; the last four, of our own export, are not looked at."""
_HEAD_ROWS = 100
"""Among so many first rows there must be one that can be read, to say what the others are."""
_NOT_JSON = Text("The line is not one JSON object", "该行不是一个 JSON 对象")
_WRITE_JSON = Text("Write one JSON object on one line.", "请在一行内写一个 JSON 对象。")


@dataclass(frozen=True, slots=True)
class Document:
    """A row that is a record."""

    line: int
    fields: dict[str, Any]


class DocumentFile:
    """NDJSON (`packed` False) or msgpack opened for import; see `import_csv.CsvFile`.

    `header` is empty where the rows are records. Of msgpack the line is the number of the row.
    """

    bom = False

    def __init__(self, path: str | os.PathLike[str], *, packed: bool) -> None:
        self.path = os.fspath(path)
        self.packed = packed
        self.file: BinaryIO = open(path, "rb")  # noqa: SIM115 — closed by __exit__
        try:
            self.size = os.fstat(self.file.fileno()).st_size
            self.header: tuple[str, ...] = ()
            start = 3 if not packed and self.file.read(3) == b"\xef\xbb\xbf" else 0
            self.seek(start, 0)
            self.header = self._names()
            self.titles = self.header
            self.seek(start, 0)
        except BaseException:
            self.file.close()
            raise
        self.start = (start, 0)

    def __enter__(self) -> DocumentFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()

    def seek(self, offset: int, line: int) -> None:
        self.file.seek(offset)
        self.offset, self.line = offset, line

    def split_line(self, data: bytes, line: int) -> Iterator[Cells | Document | Broken]:
        """What iteration gives for this line, `data` being without its end."""
        at, self.line = self.line, line
        row = self._line(data)
        self.line = at
        yield self._cells(row) if self.header and isinstance(row, Document) else row

    def split_row(self, unpacked: Any, line: int) -> Iterator[Cells | Document | Broken]:
        """What iteration gives for this row of msgpack."""
        at, self.line = self.line, line
        row = self._packed_row(unpacked)
        self.line = at
        yield self._cells(row) if self.header and isinstance(row, Document) else row

    def _names(self) -> tuple[str, ...]:
        """The names of the columns, from the first row that can be read."""
        for number, row in enumerate(self._rows()):
            if isinstance(row, Document):
                names = tuple(name for name in row.fields if not name.startswith("_"))
                if not names:
                    continue
                if "values" in row.fields or RECORD_FIELDS.issuperset(names):
                    return ()
                if len(names) > COLUMNS_MAX:
                    raise InvalidFile(
                        f"Line {row.line}: {len(names)} fields, at most {COLUMNS_MAX}.",
                        f"第 {row.line} 行：共 {len(names)} 个字段，最多 {COLUMNS_MAX} 个。",
                        line=row.line,
                    )
                return names
            if number >= _HEAD_ROWS:
                break
        if not self.line:
            raise InvalidFile("The file is empty.", "文件为空。")
        raise InvalidFile(
            "None of the first rows can be read as a record.", "开头各行均无法读取为记录。"
        )

    def __iter__(self) -> Iterator[Cells | Document | Broken]:
        for row in self._rows():
            yield self._cells(row) if self.header and isinstance(row, Document) else row

    def _rows(self) -> Iterator[Document | Broken]:
        return self._packed_rows() if self.packed else self._lines()

    def _lines(self) -> Iterator[Document | Broken]:
        while data := self.file.readline(ROW_BYTES_MAX + 1):
            self.offset += len(data)
            self.line += 1
            if len(data) > ROW_BYTES_MAX:
                yield self._too_long(data)
            elif data.strip():
                yield self._line(data)

    def _too_long(self, data: bytes) -> Broken:
        text = data[:200].decode("utf-8", "replace")
        while data and not data.endswith(b"\n"):
            data = self.file.readline(ROW_BYTES_MAX)
            self.offset += len(data)
        return _too_long(self.line, text)

    def _line(self, data: bytes) -> Document | Broken:
        try:
            fields = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            why = Text(f"{_NOT_JSON.en}: {error.msg}", _NOT_JSON.zh)
        else:
            if isinstance(fields, dict):
                return Document(self.line, fields)
            why = _NOT_JSON
        text = data.decode("utf-8", "surrogateescape").rstrip("\r\n")
        return Broken(self.line, text, why, fix=_WRITE_JSON)

    def _packed_rows(self) -> Iterator[Document | Broken]:
        begun = self.offset
        unpacker = msgpack.Unpacker(
            self.file,
            use_list=True,
            strict_map_key=False,
            read_size=65_536,
            max_buffer_size=ROW_BYTES_MAX,
            ext_hook=refuse_extension,
        )
        why = Text(
            "The file ends within a row, or the row is too long", "文件在行中结束，或该行过长"
        )
        while True:
            try:
                row = unpacker.unpack()
            except msgpack.OutOfData:
                if self.offset == self.size:
                    return
                break
            except (ValueError, UnicodeError, msgpack.UnpackException, RecursionError) as error:
                why = Text(f"This is no msgpack ({error})", "不是合法的 msgpack")
                break
            self.offset = begun + unpacker.tell()
            self.line += 1
            yield self._packed_row(row)
        # Where the next row would begin is not known.
        raise InvalidFile(
            f"Row {self.line + 1}, at octet {self.offset}: {why.en}. The rows before it were read.",
            f"第 {self.line + 1} 行（第 {self.offset} 字节处）：{why.zh}。此前各行已读取。",
            line=self.line + 1,
        )

    def _packed_row(self, row: Any) -> Document | Broken:
        if isinstance(row, list) and 2 <= len(row) <= 4:
            row = dict(zip(("identifier", "values", "status", "template"), row, strict=False))
        if isinstance(row, dict) and all(isinstance(name, str) for name in row):
            return Document(self.line, row)
        return Broken(
            self.line,
            printable(repr(row)),
            Text(
                "The row is neither a map nor an array of two to four",
                "该行不是映射，也不是 2 至 4 项的数组",
            ),
            fix=Text("See the rows of docs/importing.md.", "请参照 docs/importing.md 中的行格式。"),
        )

    def _cells(self, row: Document) -> Cells | Broken:
        unknown = [
            name for name in row.fields if name not in self.header and not name.startswith("_")
        ]
        if unknown:
            return Broken(
                row.line,
                orjson.dumps(row.fields, default=repr).decode("utf-8", "replace"),
                Text(
                    f"There is a field {printable(unknown[0])} that the first row has not",
                    f"存在首行没有的字段 {printable(unknown[0])}",
                ),
                unknown[0],
                Text("Give all rows the fields of the first.", "请使各行字段与首行一致。"),
            )
        faults = []
        cells = []
        for at, name in enumerate(self.header):
            got = row.fields.get(name)
            text = text_of(got)
            if text is None:
                faults.append((at, _NOT_PLAIN, _MAKE_PLAIN))
            cells.append(text or "")
        return Cells(row.line, row.line, tuple(cells), tuple(faults))


_NOT_PLAIN = Text("The field holds neither text nor a number", "该字段既不是文本也不是数字")
_MAKE_PLAIN = Text("Write it as text, or write rows as records.", "请写为文本，或改用记录格式。")


def _too_long(line: int, text: str) -> Broken:
    return Broken(
        line,
        text + "…",
        Text(f"The row is longer than {ROW_BYTES_MAX} bytes", f"该行超过 {ROW_BYTES_MAX} 字节"),
        fix=Text(
            "Keep large data elsewhere and register its address.",
            "请将大数据存于他处，仅登记其地址。",
        ),
    )


def text_of(got: object) -> str | None:
    """A plain value as a cell; None where it is none."""
    match got:
        case None:
            return ""
        case bool():
            return "true" if got else "false"
        case str():
            return got
        case int() | float():
            return str(got)
        case bytes():
            return got.decode("utf-8", "surrogateescape")
    return None


def refuse_extension(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code}")


class SheetFile(DocumentFile):
    """The lines that `import_sheet` makes of a workbook: each a JSON array of the texts of a row,
    after an object of faults by place where there are any. Line n is row n of the sheet."""

    bom = True  # what is written for people with spreadsheets

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, packed=False)

    def _names(self) -> tuple[str, ...]:
        for row in self._arrays():
            titles = [text.strip() for text in row.cells]
            while titles and not titles[-1]:
                titles.pop()
            twice = {title for title in titles if titles.count(title) > 1}
            if "" in titles or twice or len(titles) > COLUMNS_MAX:
                named = ", ".join(sorted(twice)) or "—"
                raise InvalidFile(
                    f"Row {row.line}: each of at most {COLUMNS_MAX} columns needs a name of its"
                    f" own (twice: {printable(named)}).",
                    f"第 {row.line} 行：每列应有不同的列名，最多 {COLUMNS_MAX} 列"
                    f"（重复：{printable(named)}）。",
                    line=row.line,
                )
            self._first = (self.offset, self.line)
            return tuple(titles)
        raise InvalidFile(
            "There is no header row with the names of the columns.", "缺少列名所在的表头行。"
        )

    def seek(self, offset: int, line: int) -> None:
        if self.header and not line:
            offset, line = self._first  # the header is not a row
        super().seek(offset, line)

    def __iter__(self) -> Iterator[Cells | Broken]:
        width = len(self.header)
        for row in self._arrays():
            cells = list(row.cells)
            while len(cells) > width and not cells[-1]:
                cells.pop()
            if len(cells) > width:
                yield Broken(
                    row.line,
                    ",".join(cells),
                    Text(
                        f"The row has {len(cells)} cells, the header {width}",
                        f"该行有 {len(cells)} 个单元格，表头有 {width} 个",
                    ),
                    fix=Text("Name the column, or empty the cell.", "请补充列名，或清空该单元格。"),
                )
                continue
            cells += [""] * (width - len(cells))
            yield Cells(row.line, row.line, tuple(cells), row.faults)

    def _arrays(self) -> Iterator[Cells]:
        while data := self.file.readline(64 * ROW_BYTES_MAX):
            self.offset += len(data)
            self.line += 1
            cells, faults = orjson.loads(data)
            if any(cells):
                told = tuple((at, Text(*why), Text(*fix)) for at, why, fix in faults)
                yield Cells(self.line, self.line, tuple(cells), told)


class RecordReader:
    """Reads rows that are records; as `import_rows.RowReader` for rows of cells. Of the mapping
    only what every row is given is used: status and template."""

    naming = "identifier"
    row_bytes = ROW_BYTES_MAX // 4_096

    def __init__(self, mapping: RowMapping) -> None:
        if mapping.columns or mapping.suffix or mapping.prefix:
            raise InvalidFile(
                "The rows are records with identifiers of their own: leave out prefix, suffix and"
                " columns.",
                "各行已是带标识的记录：请勿指定前缀、后缀或列映射。",
            )
        self.mapping = mapping

    def read(self, row: Cells | Document | Broken) -> Row | BadRow:
        if isinstance(row, Broken):
            fault = _fault(row.line, row.column, row.reason, row.fix)
            return BadRow(row.line, (), (fault,), row.text)
        assert isinstance(row, Document)
        faults: list[Fault] = []
        fields, line = row.fields, row.line
        for name in fields:
            if name not in RECORD_FIELDS and not name.startswith("_"):
                why = Text("A record has no such field", "记录没有该字段")
                faults.append(_fault(line, printable(name), why))
        identifier = self._identifier(row, faults)
        values = self._values(row, faults)
        status = self.mapping.status
        given = fields.get("status")
        if given in (Status.DRAFT, Status.ACTIVE, Status.FROZEN):
            status = Status(str(given))
        elif given is not None:
            why = Text(
                f"A row is registered as draft, active or frozen, not {printable(str(given))}",
                f"登记状态应为 draft、active 或 frozen，而不是“{printable(str(given))}”",
            )
            faults.append(_fault(line, "status", why))
        template = fields.get("template") or self.mapping.template
        if template is not None and not isinstance(template, str):
            faults.append(_fault(line, "template", Text("This is not text", "应为文本")))
        elif template and (found := cell_fault(template)):
            faults.append(_fault(line, "template", found))
        if faults or identifier is None:
            return BadRow(line, (), tuple(faults), document=fields)
        return Row(line, (), identifier, values, status, template, fields)

    def _identifier(self, row: Document, faults: list[Fault]) -> Identifier | None:
        given = row.fields.get("identifier")
        if not isinstance(given, str) or not given:
            why = Text("There is no identifier", "缺少标识")
            fix = Text("Give the whole identifier, prefix/suffix.", "请给出完整标识：前缀/后缀。")
            faults.append(_fault(row.line, "identifier", why, fix))
            return None
        try:
            return Identifier.parse(given)
        except BiaojieError as error:
            shown = printable(given)
            en, zh = f"{shown}: {error.detail.en}", f"{shown}：{error.detail.zh}"
            faults.append(Fault(row.line, "identifier", error.code, en, zh))
            return None

    def _values(self, row: Document, faults: list[Fault]) -> tuple[Value, ...]:
        given = row.fields.get("values", [])
        try:
            if isinstance(given, list) and given and isinstance(given[0], list):
                return check_values(decode_native_values(_full(given), "values"))
            if isinstance(given, list):
                given = [_readable(value) for value in given]
            return check_values(decode_values(given, "values"))
        except InvalidRecord as error:
            column = str(error.fields.get("path", "values"))
            faults.append(Fault(row.line, printable(column), error.code, *error.detail))
        return ()


def _full(values: list[Any]) -> tuple[Any, ...]:
    """Values as arrays, what is left out at their end filled in: [index, type, data …]."""
    return tuple(_full_value(value) if isinstance(value, list) else value for value in values)


def _full_value(value: list[Any]) -> tuple[Any, ...]:
    given = [tuple(item) if isinstance(item, list) else item for item in value]
    if len(given) > 2 and isinstance(given[2], str):
        given[2] = given[2].encode("utf-8", "replace")
    usual = usual_permissions(given[1]) if len(given) > 1 and isinstance(given[1], str) else 0
    defaults = (0, "", b"", TTL_DEFAULT_S, False, 0, int(usual), ())
    if len(given) > 7 and isinstance(given[7], tuple):
        given[7] = tuple(tuple(pair) if isinstance(pair, list) else pair for pair in given[7])
    return (*given, *defaults[len(given) :])


def _readable(value: Any) -> Any:
    """A value as the JSON interface takes it, where msgpack had octets for its data."""
    if isinstance(value, Mapping) and isinstance(data := value.get("data"), bytes):
        try:
            return {**value, "data": data.decode()}
        except UnicodeError:
            return {**value, "data": {"format": "hex", "value": data.hex()}}
    return value


def _fault(line: int, column: str, why: Text, fix: Text | None = None) -> Fault:
    return Fault(line, column, InvalidRecord.code, f"{why.en}.", f"{why.zh}。", fix)
