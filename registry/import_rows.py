"""How the cells of a row become an identifier and its values, or a list of faults.

Pure: nothing is read or sent here. Every fault of a row is found, not only the first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Literal

from biaojie.errors import InvalidFile, InvalidIdentifier, InvalidRecord, Text
from biaojie.identifier import Identifier, check_prefix
from biaojie.limits import RECORD_BYTES_MAX, VALUE_BYTES_MAX
from biaojie.record import (
    PERMISSIONS_DEFAULT,
    PERMISSIONS_SECRET,
    SECRET_TYPES,
    Permissions,
    Status,
    Value,
    check_values,
)
from biaojie.wire.document import decode_values
from biaojie.wire.imports import ImportOptions

from .import_csv import Broken, Cells

FAULT_COLUMNS = ("_line", "_column", "_code", "_reason", "_text")
"""What the error file adds to the user's columns."""
ROLES = ("identifier", "status", "template")
"""What a column may hold besides a value."""
LEFT_OUT = "-"
"""What a column is mapped to that is not to be looked at."""
EXPORT_COLUMNS = ("identifier", "status", "template", "version", "created", "modified")
"""The first columns of our own CSV export, which is understood as such."""
MORE = "_more"
"""The column of our own CSV export for values that plain text cannot carry, as JSON."""
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_NUMBERED = re.compile(r"(.+)\[([1-9][0-9]{0,9})\]", re.DOTALL)
_WHITE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class RowMapping:
    """What the user says about a file.

    With `suffix`, a pattern such as `PVM-{name}`, identifiers are made of `prefix` and the
    pattern with each `{column}` replaced by that column's text, runs of white space as `-`.
    Without it, a column named `identifier` holds whole identifiers. `status` and `template`
    are given to every row that brings none of its own.

    `columns` says of columns by their title what they hold: `identifier`, `status`, `template`,
    a value as `TYPE` or `TYPE[index]`, or `-` for nothing. Others hold a value of the type that
    is their title. A cell that begins with `=` is refused as a formula unless `formulas` is
    "text"; what our own export wrote never is.
    """

    prefix: str = ""
    suffix: str = ""
    status: Status = Status.ACTIVE
    template: str | None = None
    columns: tuple[tuple[str, str], ...] = ()
    formulas: Literal["refuse", "text"] = "refuse"


def mapping_of(options: ImportOptions) -> RowMapping:
    return RowMapping(
        options.prefix,
        options.suffix,
        Status(options.status),
        options.template or None,
        options.columns,
        options.formulas,
    )


@dataclass(frozen=True, slots=True)
class Row:
    """A row that can be registered. `cells`, or `document` where a row is no row of cells, are
    the user's, for the error file."""

    line: int
    cells: tuple[str, ...]
    identifier: Identifier
    values: tuple[Value, ...]
    status: Status = Status.ACTIVE
    template: str | None = None
    document: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of one row; `column` is empty where no column is to blame. `fix` says what to
    do, where that is more than the code says (see `import_report`)."""

    line: int
    column: str
    code: str
    en: str
    zh: str
    fix: Text | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row with faults. `cells` is empty, and `document` None, if it could not be split; then
    `text` is the row."""

    line: int
    cells: tuple[str, ...]
    faults: tuple[Fault, ...]
    text: str = ""
    document: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class _Column:
    at: int
    title: str
    index: int
    type: str
    permissions: Permissions


class RowReader:
    """Reads rows under one header. Raises InvalidFile or InvalidIdentifier before any row."""

    def __init__(self, header: Sequence[str], mapping: RowMapping) -> None:
        self.header = tuple(header)
        self.mapping = mapping
        self._at = {title: at for at, title in enumerate(header)}
        self._targets = self._mapped()
        self._exported = not mapping.suffix and self.header[:6] == EXPORT_COLUMNS
        roles = self._roles()
        self._parts: list[str | int] = []
        if mapping.suffix or mapping.prefix:
            check_prefix(mapping.prefix)
            self._parts = self._pattern(mapping.suffix)
            self.places = list(dict.fromkeys(p for p in self._parts if isinstance(p, int)))
        elif "identifier" in roles:
            self.places = [roles["identifier"]]
        else:
            raise _unusable(
                "There is no column named identifier; give --prefix and --suffix, a pattern of"
                f" columns such as 'SN-{{{header[0]}}}'. Columns: {', '.join(header)}",
                "缺少名为 identifier 的列；请给出 --prefix 与 --suffix（列名组成的模式，例如"
                f" 'SN-{{{header[0]}}}'）。现有列：{'、'.join(header)}",
            )
        self._status_at, self._template_at = roles.get("status"), roles.get("template")
        self.columns = tuple(self._value_columns())
        self.formulas = mapping.formulas == "text" or self._exported
        self.row_bytes = 128 + sum(96 + len(column.type.encode()) for column in self.columns)
        """What a row weighs as JSON besides its cells, at most."""

    def _mapped(self) -> dict[str, str]:
        """What each column that the mapping names holds, by title."""
        targets: dict[str, str] = {}
        for title, target in self.mapping.columns:
            if title not in self._at:
                raise _unusable(
                    f"The mapping names a column {title!r} that is not there. Columns:"
                    f" {', '.join(self.header)}",
                    f"列映射中的列 {title!r} 不存在。现有列：{'、'.join(self.header)}",
                )
            if title in targets or not target:
                raise _unusable(
                    f"The mapping of column {title!r} is empty, or given twice",
                    f"列 {title!r} 的映射为空或重复",
                )
            targets[title] = target
        return targets

    def _roles(self) -> dict[str, int]:
        """The places of the columns that hold no value."""
        roles: dict[str, int] = {}
        for title, at in self._at.items():
            own = self._exported or (title == "identifier" and not self.mapping.suffix)
            role = self._targets.get(title, title if own else "")
            if role in ROLES and roles.setdefault(role, at) != at:
                raise _unusable(
                    f"Columns {self.header[roles[role]]} and {title} both hold the {role}",
                    f"列 {self.header[roles[role]]} 与列 {title} 都映射为 {role}",
                )
        return roles

    def _pattern(self, pattern: str) -> list[str | int]:
        """Literal texts and column places, in turn: odd items are places."""
        split: list[str | int] = [*_PLACEHOLDER.split(pattern)]
        if len(split) == 1:
            raise _unusable(
                f"The suffix pattern {pattern!r} names no column; write one in braces, such as"
                f" {{{self.header[0]}}}",
                f"后缀模式 {pattern!r} 未引用任何列；请用花括号写出列名，例如 {{{self.header[0]}}}",
            )
        for number in range(1, len(split), 2):
            name = str(split[number])
            if name not in self._at:
                raise _unusable(
                    f"The suffix pattern names a column {name!r} that is not there. Columns:"
                    f" {', '.join(self.header)}",
                    f"后缀模式引用的列 {name!r} 不存在。现有列：{'、'.join(self.header)}",
                )
            split[number] = self._at[name]
        return split

    def _value_columns(self) -> list[_Column]:
        apart = set(EXPORT_COLUMNS) if self._exported else set()
        if not self.mapping.suffix and "identifier" not in self._targets:
            apart.add("identifier")
        columns: list[_Column] = []
        taken: dict[int, str] = {}
        for at, title in enumerate(self.header):
            target = self._targets.get(title)
            if target is None and (title in apart or title.startswith("_")):
                continue
            if target is not None and (target in ROLES or target == LEFT_OUT):
                continue
            numbered = _NUMBERED.fullmatch(target or title)
            if target is None and not self._exported:
                numbered = None
            type_, index = target or title, len(columns) + 1
            if numbered:
                type_, index = numbered[1], int(numbered[2])
            permissions = PERMISSIONS_SECRET if type_ in SECRET_TYPES else PERMISSIONS_DEFAULT
            try:
                Value(index, type_, b"", permissions=permissions).check(title)
            except InvalidRecord as error:
                raise InvalidFile(
                    f"Line 1: {error.detail.en}", f"第 1 行：{error.detail.zh}", line=1
                ) from None
            if taken.setdefault(index, title) != title:
                raise _unusable(
                    f"Columns {taken[index]} and {title} have the same value index {index}",
                    f"列 {taken[index]} 与列 {title} 的值索引同为 {index}",
                )
            columns.append(_Column(at, title, index, type_, permissions))
        return columns

    @property
    def usual(self) -> bool:
        """Whether nothing but cells decides what a row is: our own exports have more to say."""
        return not self._exported

    def usual_cells(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """The cells, by column, with which a row has the status and template of the mapping."""
        if self._status_at is not None:
            yield self._status_at, ("", self.mapping.status.value)
        if self._template_at is not None:
            yield self._template_at, ("",)

    def suffixes(self, columns: Sequence[Sequence[str]], *, plain: bool) -> list[str]:
        """By the pattern, of rows given as columns; `plain` where there is no white space."""
        parts: list[Iterable[str]] = []
        for part in self._parts:
            if isinstance(part, str):
                parts.append(repeat(part))
            else:
                cells = columns[part]
                parts.append(cells if plain else [_WHITE.sub("-", cell) for cell in cells])
        return list(map("".join, zip(*parts, strict=False)))

    def read(self, split: Cells | Broken) -> Row | BadRow:
        if isinstance(split, Broken):
            fault = Fault(
                split.line,
                split.column,
                InvalidRecord.code,
                f"{split.reason.en}.",
                f"{split.reason.zh}。",
                split.fix,
            )
            return BadRow(split.line, (), (fault,), split.text)
        faults = [_fault(split.line, self.header[at], why, fix) for at, why, fix in split.faults]
        values = self._values(split, faults)
        identifier = self._identifier(split, faults)
        status, template = self.mapping.status, self.mapping.template
        if self._status_at is not None and (self._exported or split.cells[self._status_at]):
            status = self._status(split, self._status_at, faults)
        if self._template_at is not None and (self._exported or split.cells[self._template_at]):
            template = split.cells[self._template_at] or None
            if template and (why := self._cell_fault(template)):
                faults.append(_fault(split.line, self.header[self._template_at], why))
        if faults or identifier is None:
            return BadRow(split.line, split.cells, tuple(faults))
        return Row(split.line, split.cells, identifier, values, status, template)

    def _values(self, split: Cells, faults: list[Fault]) -> tuple[Value, ...]:
        cells, line = split.cells, split.line
        values: list[Value] = []
        octets = 0
        for column in self.columns:
            cell = cells[column.at]
            if not cell:
                continue
            why = self._cell_fault(cell)
            if why:
                faults.append(_fault(line, column.title, why))
                continue
            data = cell.encode()
            octets += len(data)
            values.append(Value(column.index, column.type, data, permissions=column.permissions))
        if octets > RECORD_BYTES_MAX:
            faults.append(
                _fault(
                    line,
                    "",
                    Text(
                        f"All cells together are over {RECORD_BYTES_MAX} bytes",
                        f"各单元格合计超过 {RECORD_BYTES_MAX} 字节",
                    ),
                )
            )
        if self._exported and MORE in self._at and cells[self._at[MORE]]:
            try:
                values += decode_values(json.loads(cells[self._at[MORE]]), MORE)
                return check_values(values)
            except InvalidRecord as error:
                faults.append(Fault(line, MORE, error.code, *error.detail))
            except (ValueError, RecursionError):
                faults.append(_fault(line, MORE, Text("This is not JSON", "不是合法的 JSON")))
        return tuple(values)

    def _identifier(self, split: Cells, faults: list[Fault]) -> Identifier | None:
        for at in self.places:
            self._check_naming(split, at, faults)
        columns = {self.header[at] for at in self.places}
        if any(fault.column in columns for fault in faults):
            return None
        cells = split.cells
        text = cells[self.places[0]]
        try:
            if not self.mapping.suffix:
                return Identifier.parse(text)
            text = "".join(
                part if isinstance(part, str) else _WHITE.sub("-", cells[part])
                for part in self._parts
            )
            return Identifier(self.mapping.prefix, text)
        except InvalidIdentifier as error:
            shown = printable(text)
            faults.append(
                Fault(
                    split.line,
                    self.naming,
                    error.code,
                    f"{shown}: {error.detail.en}",
                    f"{shown}：{error.detail.zh}",
                )
            )
            return None

    @property
    def naming(self) -> str:
        """The columns that identifiers are made of."""
        return ", ".join(self.header[at] for at in self.places)

    def _check_naming(self, split: Cells, at: int, faults: list[Fault]) -> None:
        """What the identifier is made of may hold no line break: those come from stray quotes,
        which swallow rows, far more often than from people."""
        cell = split.cells[at]
        why = None
        if not cell:
            why = EMPTY
        elif "\n" in cell or "\r" in cell:
            why = Text(
                "The identifier is made of this cell, and it holds a line break (the row runs from"
                f" line {split.line} to {split.last_line}; perhaps a quote is not closed)",
                f"标识所用单元格含有换行（该行从第 {split.line} 行到第 {split.last_line} 行；"
                "可能有引号未闭合）",
            )
        elif all(at != column.at for column in self.columns):
            why = self._cell_fault(cell)  # else it is a value too, and was looked at as one
        if why:
            faults.append(_fault(split.line, self.header[at], why))

    def _cell_fault(self, cell: str) -> Text | None:
        if not self.formulas and cell.startswith("=") and len(cell) > 1:
            return FORMULA
        return cell_fault(cell)

    def _status(self, split: Cells, at: int, faults: list[Fault]) -> Status:
        cell = split.cells[at]
        if cell in (Status.DRAFT, Status.ACTIVE, Status.FROZEN):
            return Status(cell)
        faults.append(
            _fault(
                split.line,
                self.header[at],
                Text(
                    "A row is registered as draft, active or frozen, not " + printable(cell),
                    f"登记状态应为 draft、active 或 frozen，而不是“{printable(cell)}”",
                ),
            )
        )
        return Status.ACTIVE


def printable(text: str) -> str:
    """At most 80 characters of outside text, safe to show on a terminal."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:80])
    return shown if len(text) <= 80 else shown + "…"


EMPTY = Text("The identifier is made of this cell, and it is empty", "标识所用单元格为空")
FORMULA = Text(
    "The cell begins with “=”, which is a formula and not its result",
    "单元格以“=”开头，是公式而非结果",
)
BAD_CHARACTERS = Text(
    "The cell holds bytes that are not UTF-8; perhaps they are GBK",
    "单元格含有非 UTF-8 字节，可能是 GBK 编码",
)


def cell_fault(cell: str) -> Text | None:
    """What keeps a cell's text from being a value."""
    if "\0" in cell:
        return Text("The cell holds a NUL character", "单元格含有 NUL 字符")
    if len(cell) > VALUE_BYTES_MAX // 4:
        octets = len(cell.encode("utf-8", "surrogateescape"))
        if octets > VALUE_BYTES_MAX:
            return Text(
                f"The cell is {octets} bytes long, at most {VALUE_BYTES_MAX}",
                f"单元格长 {octets} 字节，最多 {VALUE_BYTES_MAX} 字节",
            )
    if not cell.isascii():
        try:
            cell.encode()
        except UnicodeError:
            return BAD_CHARACTERS
    return None


_FIXES = {
    FORMULA: Text(
        "Put the result there, or take formulas as text.",
        "请填入计算结果，或选择将公式作为文本导入。",
    ),
    BAD_CHARACTERS: Text(
        "Save the file in one encoding, or name its encoding.",
        "请以统一编码保存文件，或指明其编码。",
    ),
    EMPTY: Text("Fill in the cell.", "请填写该单元格。"),
}


def _fault(line: int, column: str, why: Text, fix: Text | None = None) -> Fault:
    return Fault(
        line, column, InvalidRecord.code, f"{why.en}.", f"{why.zh}。", fix or _FIXES.get(why)
    )


def _unusable(en: str, zh: str) -> InvalidFile:
    return InvalidFile(f"{en}.", f"{zh}。")
