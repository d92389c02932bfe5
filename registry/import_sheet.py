"""Making lines of the first sheet of a workbook, in a process of its own.

`python -m registry.import_sheet WORKBOOK LINES MEMORY_BYTES SECONDS`. A workbook is read as a
whole by its library, and may be made to unfold without end: this process may use so much memory
and processor time, and whoever started it sees it die. Exit code 0: line n of LINES is row n,
`[[text, …], [[place, [why, why_zh], [fix, fix_zh]], …]]`; 2: what is wrong, in English and
Chinese, one line each on standard output.
"""

from __future__ import annotations

import datetime
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

import orjson

PART_BYTES_MAX = 2**31
"""What one part of a workbook may unfold to."""
RATIO_MAX = 200
"""How much larger than packed; text of cells reaches some 20, zip bombs 1,000."""
EXACT_MAX = 10**15
"""Beyond, a spreadsheet has rounded the number: it keeps 15 digits."""
COLUMNS_READ = 1_000
_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_UNCOMPUTED = (
    ("The cell holds a formula without a result", "单元格是没有计算结果的公式"),
    (
        "Open and save the workbook in a spreadsheet program, or put the result there.",
        "请用电子表格软件打开并保存该工作簿，或直接填入结果。",
    ),
)
_ROUNDED = (
    (
        "The cell is a number of more than 15 digits, which the spreadsheet has rounded",
        "单元格是超过 15 位的数字，电子表格已对其取整",
    ),
    ("Make the column text and enter it again.", "请将该列设为文本格式并重新输入。"),
)


class Unusable(Exception):
    """Both texts."""


def main(workbook: str, lines: str, memory_bytes: int, seconds: int) -> int:
    _limit(memory_bytes, seconds)
    try:
        write_lines(Path(workbook), Path(lines))
    except Unusable as error:
        print("\n".join(error.args))
        return 2
    return 0


def _limit(memory_bytes: int, seconds: int) -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def write_lines(workbook: Path, lines: Path) -> None:
    """Raises Unusable."""
    import python_calamine as calamine

    check_parts(workbook)
    uncomputed = dict(_uncomputed(workbook))
    try:
        with calamine.CalamineWorkbook.from_path(workbook) as book:
            sheet = book.get_sheet_by_index(0)
            if (width := sheet.total_width) > COLUMNS_READ:
                raise Unusable(
                    f"The sheet has {width} columns, at most {COLUMNS_READ}.",
                    f"工作表有 {width} 列，最多 {COLUMNS_READ} 列。",
                )
            # The library leaves out empty columns at the left, but no rows.
            before = sheet.start[1] if sheet.start else 0
            with lines.open("wb") as out:
                for number, row in enumerate(sheet.iter_rows()):
                    places = [column - before for column in uncomputed.pop(number, ())]
                    out.write(_line(row, [place for place in places if place >= 0]))
    except calamine.PasswordError:
        raise Unusable(
            "The workbook is protected by a password; save it without.",
            "工作簿受密码保护；请去除密码后保存。",
        ) from None
    except calamine.CalamineError as error:
        raise Unusable(
            f"The workbook cannot be read: {error}", f"无法读取工作簿：{error}"
        ) from None


def _line(row: list[Any], uncomputed: list[int]) -> bytes:
    row += [""] * (max(uncomputed, default=-1) + 1 - len(row))
    faults: list[Any] = [[at, *_UNCOMPUTED] for at in uncomputed]
    cells = []
    for at, cell in enumerate(row):
        if isinstance(cell, int | float) and not isinstance(cell, bool) and abs(cell) >= EXACT_MAX:
            faults.append([at, *_ROUNDED])
        cells.append(_text(cell))
    for at in uncomputed:
        cells[at] = cells[at] or "="
    return orjson.dumps([cells, faults]) + b"\n"


def _text(cell: Any) -> str:
    match cell:
        case bool():
            return "true" if cell else "false"
        case float() if cell.is_integer() and abs(cell) < EXACT_MAX:
            return str(int(cell))
        case datetime.datetime() if cell.time() == datetime.time():
            return cell.date().isoformat()
        case datetime.date() | datetime.time():
            return cell.isoformat()
    return str(cell)


def check_parts(workbook: Path) -> None:
    """Refuse what says of itself that it unfolds too far; who lies meets the memory limit."""
    try:
        with zipfile.ZipFile(workbook) as archive:
            for part in archive.infolist():
                packed = max(part.compress_size, 4_096)
                if part.file_size > PART_BYTES_MAX or part.file_size > RATIO_MAX * packed:
                    raise Unusable(
                        f"A part of the workbook unfolds to {part.file_size} bytes.",
                        f"工作簿的一部分解压后达 {part.file_size} 字节。",
                    )
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise Unusable(
            f"The workbook is no whole archive: {error}.", f"工作簿文件不完整：{error}。"
        ) from None


def _uncomputed(workbook: Path) -> Iterator[tuple[int, list[int]]]:
    """Row and places of formulas that were never computed, which would read as empty cells."""
    try:
        with zipfile.ZipFile(workbook) as archive, archive.open(_first_sheet(archive)) as part:
            reader = _Formulas()
            while data := part.read(1_048_576):
                reader.parser.Parse(data)
                yield from reader.found.items()
                reader.found = {}
    except (KeyError, expat.ExpatError, zipfile.BadZipFile, OSError, ValueError) as error:
        raise Unusable(
            f"The first sheet cannot be read: {error}.", f"无法读取第一张工作表：{error}。"
        ) from None


def _first_sheet(archive: zipfile.ZipFile) -> str:
    named: list[str] = []
    targets: dict[str, str] = {}

    def sheet(name: str, attributes: dict[str, str]) -> None:
        if name.rpartition(" ")[2] == "sheet":
            named.append(attributes.get(f"{_RELATIONS} id", ""))

    def relation(name: str, attributes: dict[str, str]) -> None:
        if name == "Relationship":
            targets[attributes.get("Id", "")] = attributes.get("Target", "")

    for part, handler, separator in (
        ("xl/workbook.xml", sheet, " "),
        ("xl/_rels/workbook.xml.rels", relation, None),
    ):
        parser = _parser(separator)
        parser.StartElementHandler = handler
        with archive.open(part) as file:
            parser.Parse(file.read(2**24), True)
    target = targets[named[0]] if named else "worksheets/sheet1.xml"
    return target[1:] if target.startswith("/") else f"xl/{target}"


def _parser(separator: str | None = None) -> expat.XMLParserType:
    parser = expat.ParserCreate(namespace_separator=separator)

    def refuse(*anything: object) -> None:
        raise ValueError("it declares entities")

    parser.EntityDeclHandler = refuse
    return parser


class _Formulas:
    """Which cells have an `f` and an empty `v`, by row and column from 0."""

    def __init__(self) -> None:
        self.parser = _parser()
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.found: dict[int, list[int]] = {}
        self._formula = self._computed = self._within = False
        self._place = ""

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "c":
            self._formula = self._computed = False
            self._place = attributes.get("r", "")
        elif name == "f":
            self._formula = True
        self._within = name in ("v", "t")

    def _text(self, text: str) -> None:
        if self._within:
            self._computed = True

    def _end(self, name: str) -> None:
        self._within = False
        if name == "c" and self._formula and not self._computed and self._place:
            letters = self._place.rstrip("0123456789")
            row = int(self._place[len(letters) :]) - 1
            column = 0
            for letter in letters.upper():
                column = column * 26 + ord(letter) - 64
            self.found.setdefault(row, []).append(column - 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
