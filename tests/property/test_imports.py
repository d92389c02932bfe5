"""Any file at all: the importer's report, the error file and the registry tell one story."""

import asyncio
import csv
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from biaojie.change import Action, Receipt, RowResult
from biaojie.errors import BiaojieError, InvalidFile
from biaojie.identifier import Identifier, Key
from registry.imports import ImportReport, Row, RowMapping, import_file

MAPPING = RowMapping("88.118.8", "{name}")
COLUMNS = ("name", "a", "b")
cell = st.one_of(
    st.sampled_from(["", "x", "X", "x y", "x  y", "x-y", "é", "e\u0301", "İ", "a\0", "\x1b", " "]),
    st.text(st.characters(codec="utf-8"), max_size=6),
)
row = st.lists(cell, min_size=3, max_size=3) | st.lists(cell, min_size=2, max_size=5)


class Killed(BaseException):
    pass


class Registry:
    """Refuses taken names; dies at the given calls, in turn before and after the commit."""

    def __init__(self, deaths: Sequence[int] = ()) -> None:
        self.rows: dict[Key, Row] = {}
        self.receipts: dict[str, list[RowResult]] = {}
        self.calls = 0
        self.deaths = set(deaths)

    async def __call__(
        self, rows: Sequence[Row], key: str, *, dry_run: bool
    ) -> Sequence[RowResult]:
        self.calls += 1
        dies = self.calls in self.deaths
        if dies and self.calls % 2:
            raise Killed
        if key not in self.receipts:
            self.receipts[key] = [self._create(item) for item in rows]
        if dies:
            raise Killed
        return self.receipts[key]

    def _create(self, item: Row) -> RowResult:
        name = str(item.identifier)
        if self.rows.setdefault(item.identifier.key(), item) is not item:
            return RowResult(item.line, name, None, "identifier-taken", "Taken.", "已被注册。")
        return RowResult(item.line, name, Receipt(name, Action.CREATE, "active", 1, 1))


def run(
    data: bytes, chunk_rows: int, deaths: Sequence[int] = ()
) -> tuple[Registry, ImportReport, list[dict[str, str]]]:
    """Import until it ends, starting again after each death."""
    registry = Registry(deaths)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "f.csv"
        file.write_bytes(data)
        while True:
            try:
                report = asyncio.run(import_file(file, MAPPING, registry, chunk_rows=chunk_rows))
                break
            except Killed:
                continue
        bad = []
        if report.error_file is not None:
            text = (
                report.error_file.read_bytes().decode("utf-8", "surrogateescape").lstrip("\ufeff")
            )
            bad = list(csv.DictReader(io.StringIO(text, newline="")))
        left = sorted(path.name for path in Path(folder).iterdir())
        assert left == (["f.csv", "f.errors.csv"] if bad else ["f.csv"])
    return registry, report, bad


def encode(rows: Sequence[Sequence[str]], end: str, bom: bool) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([COLUMNS, *rows])
    return (b"\xef\xbb\xbf" if bom else b"") + text.getvalue().encode()


def registrable(cells: Sequence[str]) -> Identifier | None:
    if len(cells) != len(COLUMNS) or any("\0" in text for text in cells):
        return None
    if "\n" in cells[0] or "\r" in cells[0]:
        return None
    try:
        return Identifier("88.118.8", "-".join(_words(cells[0])))
    except BiaojieError:
        return None


def _words(text: str) -> list[str]:
    """Split at runs of white space, keeping empty ends, unlike str.split()."""
    words, inside = [""], False
    for character in text:
        if character.isspace():
            if not inside:
                words.append("")
            inside = True
        else:
            words[-1] += character
            inside = False
    return words


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(row, max_size=12),
    end=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
    chunk_rows=st.integers(1, 5),
    deaths=st.lists(st.integers(1, 12), max_size=4),
)
def test_every_row_is_registered_or_named(
    rows: list[list[str]], end: str, bom: bool, chunk_rows: int, deaths: list[int]
) -> None:
    # Cells that break a ragged row into several lines are another test's matter.
    rows = [
        cells
        if len(cells) == len(COLUMNS)
        else [text.replace("\n", "").replace("\r", "") for text in cells]
        for cells in rows
    ]
    expected: dict[Key, tuple[str, ...]] = {}
    bad_lines = []
    bad_cells = []
    line = 2
    for cells in rows:
        identifier = registrable(cells)
        if identifier is None or identifier.key() in expected:
            bad_lines.append(line)
            bad_cells.append(cells if len(cells) == len(COLUMNS) else ["", "", ""])
        else:
            expected[identifier.key()] = tuple(cells)
        line += 1 + sum(text.count("\n") for text in cells)
    registry, report, bad = run(encode(rows, end, bom), chunk_rows, deaths)
    assert {key: item.cells for key, item in registry.rows.items()} == expected
    assert (report.rows, report.good, report.failed, report.written) == (
        len(rows),
        len(expected),
        len(bad_lines),
        len(expected),
    )
    assert [int(told["_line"]) for told in bad] == bad_lines
    assert [[told[title] for title in COLUMNS] for told in bad] == bad_cells
    assert all(told["_code"] and told["_reason"] for told in bad)
    for item in registry.rows.values():
        assert [(v.index, v.type, v.text) for v in item.values] == [
            (index, title, text)
            for index, (title, text) in enumerate(zip(COLUMNS, item.cells, strict=True), 1)
            if text
        ]


@settings(max_examples=300, deadline=None)
@given(
    body=st.lists(
        st.sampled_from(
            [
                b'"',
                b'""',
                b",",
                b"\n",
                b"\r\n",
                b"\r",
                b"x",
                b"y",
                b" ",
                b"\0",
                b"\xff",
                b"\xe4\xbd",
            ]
        ),
        max_size=40,
    ).map(b"".join),
    chunk_rows=st.integers(1, 4),
    deaths=st.lists(st.integers(1, 8), max_size=3),
)
@example(body=b'x,"\ny,"\nz,1\n"', chunk_rows=1, deaths=[1, 2, 3])
def test_broken_files_give_the_same_story_however_often_they_are_interrupted(
    body: bytes, chunk_rows: int, deaths: list[int]
) -> None:
    data = b"name,a\n" + body
    try:
        whole, expected, bad = run(data, chunk_rows)
    except InvalidFile:
        return
    registry, report, again = run(data, chunk_rows, deaths)
    assert registry.rows == whole.rows
    assert again == bad
    assert (report.rows, report.good, report.failed) == (
        expected.rows,
        expected.good,
        expected.failed,
    )
    assert expected.rows == expected.good + expected.failed == len(bad) + len(whole.rows)
    lines = [int(told["_line"]) for told in bad] + [item.line for item in whole.rows.values()]
    assert len(set(lines)) == len(lines), "a line is the start of one row only"
