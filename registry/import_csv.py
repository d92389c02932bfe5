"""Splitting a CSV file into rows of cells, one at a time, with the line each row starts on.

Memory is bounded by ROW_BYTES_MAX whatever the file holds. A row that cannot be split (broken
quotes, too long, wrong number of cells) is given up at its first line, and reading goes on at
the line after it: one stray quote costs one line, not the rest of the file.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO

from biaojie.errors import InvalidFile, Text

ROW_BYTES_MAX = 1_048_576
"""Octets of one row, line ends and quotes included."""
COLUMNS_MAX = 200
HEAD_BYTES = 1_048_576
"""How much of the file is judged (and fingerprinted) before the first row is read."""
REREAD_BYTES_MAX = 64 * ROW_BYTES_MAX
"""Octets read again after broken quotes before the file as a whole is refused."""

_BOM = b"\xef\xbb\xbf"
_NOT_TEXT = {
    b"PK\x03\x04": Text("an Excel workbook (.xlsx)", "Excel 工作簿（.xlsx）"),
    b"\xd0\xcf\x11\xe0": Text("an old Excel workbook (.xls)", "旧版 Excel 工作簿（.xls）"),
    b"\xff\xfe": Text("UTF-16 text", "UTF-16 文本"),
    b"\xfe\xff": Text("UTF-16 text", "UTF-16 文本"),
    b"\x1f\x8b": Text("a gzip archive", "gzip 压缩包"),
}
_CSV_ERRORS = {
    "unexpected end of data": Text("A quote is opened and never closed", "引号未闭合"),
    "expected after": Text(
        "Something other than a comma follows a closing quote", "右引号之后不是逗号"
    ),
    "new-line character": Text("A bare carriage return splits the row", "行内含有单独的回车符"),
    "field limit": Text("A cell is too long", "单元格过长"),
}


@dataclass(frozen=True, slots=True)
class Cells:
    """A row that was split: one cell per column of the header. `last_line` ≥ `line`.

    `faults` are those of single cells that whoever split the row has found: which cell, what is
    wrong with it, what to do.
    """

    line: int
    last_line: int
    cells: tuple[str, ...]
    faults: tuple[tuple[int, Text, Text], ...] = ()


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that could not be split, and its text as far as it was given up.

    `column` is empty where the fault belongs to no column.
    """

    line: int
    text: str
    reason: Text
    column: str = ""
    fix: Text | None = None


class _RowTooLong(Exception):
    pass


class _Lines:
    """Physical lines for `csv.reader`, which asks for as many as one row needs.

    `offset` and `line` say how far the file was read; bytes that are not UTF-8 come as lone
    surrogates (surrogateescape), so that whoever looks at a cell knows which cell is meant.
    """

    def __init__(self, file: BinaryIO, offset: int, line: int) -> None:
        self._file = file
        self.offset = offset
        self.line = line
        self.begin_row()

    def begin_row(self) -> None:
        self.row_offset = self.offset
        self.row_line = self.line + 1
        self.first_end = 0
        self.parts: list[str] = []

    def go_back(self) -> int:
        """Back to the end of the row's first line; returns how many octets will be read again."""
        again = self.offset - self.first_end
        self.offset, self.line = self.first_end, self.row_line
        self._file.seek(self.offset)
        return again

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        data = self._file.readline(ROW_BYTES_MAX + 1)
        if not data:
            raise StopIteration
        self.offset += len(data)
        self.line += 1
        text = data.decode("utf-8", "surrogateescape")
        self.parts.append(text)
        if self.line == self.row_line:
            while len(data) >= ROW_BYTES_MAX and not data.endswith(b"\n"):
                data = self._file.readline(ROW_BYTES_MAX)
                self.offset += len(data)
            self.first_end = self.offset
        if self.offset - self.row_offset > ROW_BYTES_MAX:
            raise _RowTooLong
        return text


class CsvFile:
    """A CSV file opened for import: `header`, then the rows by iteration.

    `offset` and `line` are the place after the row last given; `seek` continues from such a
    place, `start` is that of the first row. `titles` is the header as written. Raises
    InvalidFile for what is no UTF-8 CSV file with a sound header.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        csv.field_size_limit(ROW_BYTES_MAX)  # process-wide; the rows are bounded below anyway
        self.path = os.fspath(path)
        self.file: BinaryIO = open(path, "rb")  # noqa: SIM115 — closed by __exit__
        try:
            self.size = os.fstat(self.file.fileno()).st_size
            head = self.file.read(HEAD_BYTES)
            _judge(head)
            self.bom = head.startswith(_BOM)
            start = len(_BOM) if self.bom else 0
            self.file.seek(start)
            self._lines = _Lines(self.file, start, 0)
            self.titles = self._read_header()
        except BaseException:
            self.file.close()
            raise
        self.header = tuple(title.strip() for title in self.titles)
        self.start = (self.offset, self.line)
        self._csv = csv.reader(self._lines, strict=True)
        self._reread = 0

    def __enter__(self) -> CsvFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()

    @property
    def offset(self) -> int:
        return self._lines.offset

    @property
    def line(self) -> int:
        return self._lines.line

    def seek(self, offset: int, line: int) -> None:
        self.file.seek(offset)
        self._lines = _Lines(self.file, offset, line)
        self._csv = csv.reader(self._lines, strict=True)

    def __iter__(self) -> Iterator[Cells | Broken]:
        while True:
            self._lines.begin_row()
            try:
                cells = next(self._csv)
            except StopIteration:
                return
            except (_RowTooLong, csv.Error) as error:
                yield self._give_up(_why(error), "")
                continue
            if not cells:
                continue
            if len(cells) != len(self.header):
                yield self._ragged(len(cells))
                continue
            yield Cells(self._lines.row_line, self._lines.line, tuple(cells))

    def _ragged(self, found: int) -> Broken:
        expected = len(self.header)
        column = self.header[found] if found < expected else ""
        return self._give_up(
            Text(
                f"The row has {found} cells, the header {expected}",
                f"该行有 {found} 个单元格，表头有 {expected} 个",
            ),
            column,
        )

    def _give_up(self, reason: Text, column: str) -> Broken:
        lines = self._lines
        if lines.line > lines.row_line:
            self._reread += lines.go_back()
            del lines.parts[1:]
            if self._reread > REREAD_BYTES_MAX:
                raise InvalidFile(
                    f"Line {lines.row_line}: so many broken quotes that this may be no CSV file.",
                    f"第 {lines.row_line} 行：引号错误过多，可能不是 CSV 文件。",
                    line=lines.row_line,
                )
        self._csv = csv.reader(lines, strict=True)  # the old one is still inside the row
        return Broken(lines.row_line, "".join(lines.parts).rstrip("\r\n"), reason, column)

    def _read_header(self) -> tuple[str, ...]:
        try:
            cells = next(csv.reader(self._lines, strict=True), None)
        except (_RowTooLong, csv.Error) as error:
            why = _why(error)
            raise _bad_header(why.en, why.zh) from None
        if not cells or not any(cell.strip() for cell in cells):
            raise _bad_header(
                "There is no header row with the names of the columns", "缺少列名所在的表头行"
            )
        if len(cells) > COLUMNS_MAX:
            raise _bad_header(
                f"{len(cells)} columns, at most {COLUMNS_MAX}",
                f"共 {len(cells)} 列，最多 {COLUMNS_MAX} 列",
            )
        seen: dict[str, int] = {}
        for number, title in enumerate(cells, 1):
            name = title.strip()
            if not name:
                raise _bad_header(f"Column {number} has no name", f"第 {number} 列没有列名")
            earlier = seen.setdefault(name.casefold(), number)
            if earlier != number:
                raise _bad_header(
                    f"Columns {earlier} and {number} are both named {name}",
                    f"第 {earlier} 列与第 {number} 列同名：{name}",
                )
        return tuple(cells)


def _bad_header(en: str, zh: str) -> InvalidFile:
    return InvalidFile(f"Line 1: {en}.", f"第 1 行：{zh}。", line=1)


def _why(error: Exception) -> Text:
    if isinstance(error, _RowTooLong):
        return Text(
            f"The row is longer than {ROW_BYTES_MAX} bytes; perhaps a quote is not closed",
            f"该行超过 {ROW_BYTES_MAX} 字节；可能有引号未闭合",
        )
    for part, text in _CSV_ERRORS.items():
        if part in str(error):
            return text
    return Text(f"The row cannot be split into cells: {error}", f"无法拆分单元格：{error}")


def _judge(head: bytes) -> None:
    """Refuse what is plainly no UTF-8 text, before anything of it is taken for a row."""
    for magic, kind in _NOT_TEXT.items():
        if head.startswith(magic):
            raise InvalidFile(
                f"This is {kind.en}; save it as CSV in UTF-8 first.",
                f"这是{kind.zh}；请先另存为 UTF-8 编码的 CSV。",
            )
    lines = head.split(b"\n")
    if len(head) == HEAD_BYTES and len(lines) > 1:
        lines.pop()  # cut anywhere, perhaps inside a character
    if len(lines) == 1 and b"\r" in head.rstrip():
        raise InvalidFile(
            "The lines end with bare carriage returns; save the file with LF or CRLF line ends.",
            "行尾是单独的回车符；请以 LF 或 CRLF 换行保存文件。",
        )
    foreign = [number for number, line in enumerate(lines) if not _is_utf8(line)]
    ours = sum(not line.isascii() for line in lines) - len(foreign)
    # A few bad cells in a UTF-8 file are faults of their rows; a file in another encoding is not.
    if foreign and (foreign[0] == 0 or (len(foreign) > ours and 10 * len(foreign) > len(lines))):
        number = foreign[0] + 1
        raise InvalidFile(
            f"Line {number} is not UTF-8; the file looks like GBK. Save it as “CSV UTF-8”, or run"
            " iconv -f GB18030 -t UTF-8.",
            f"第 {number} 行不是 UTF-8 编码，疑为 GBK。请另存为“CSV UTF-8”，或用"
            " iconv -f GB18030 -t UTF-8 转换。",
            line=number,
        )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeError:
        return False
    return True
