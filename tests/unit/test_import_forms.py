"""Imports of files that are no plain UTF-8 CSV: what is read, what is refused, and how far."""

from __future__ import annotations

import csv
import gzip
import json
import os
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import msgpack
import pytest
import xlsxwriter

from biaojie.errors import InvalidFile, TooLarge
from biaojie.record import Permissions, Status
from registry.import_prepare import Form, Making, prepare
from registry.import_report import fix_of
from registry.import_rows import RowMapping
from registry.imports import Aside, ImportReport, import_file
from tests.unit.test_imports import Registry, Stopped

WHOLE = RowMapping()
BY_SERIAL = RowMapping("88.118.8", "SN-{serial}")


async def run(
    file: Path,
    registry: Registry,
    mapping: RowMapping = WHOLE,
    *,
    form: Form | None = None,
    encoding: str = "",
    **more: Any,
) -> ImportReport:
    rows = file.with_name("rows")
    made = prepare(file, rows, Making(file.name, form, encoding))
    aside = Aside(made, bool(encoding), report_file=file.with_name("report"))
    errors = file.with_name(f"errors.{'csv' if made in ('csv', 'xlsx') else 'ndjson'}")
    return await import_file(rows, mapping, registry, aside=aside, error_file=errors, **more)


def faults(report: ImportReport) -> list[tuple[int, str, str]]:
    return [(fault.line, fault.column, fault.code) for fault in report.faults]


def values(registry: Registry) -> dict[str, list[tuple[int, str, bytes]]]:
    return {
        str(row.identifier): [(v.index, v.type, v.data) for v in row.values]
        for row in registry.rows.values()
    }


# NDJSON and msgpack ---------------------------------------------------------------------


async def test_records_as_ndjson_and_their_errors_corrected(tmp_path: Path) -> None:
    file = tmp_path / "f.ndjson"
    good = {"identifier": "88.118.8/A", "values": [{"index": 1, "type": "URL", "data": "x"}]}
    lines = [
        json.dumps(good),
        json.dumps(
            {**good, "identifier": "88.118.8/B", "status": "frozen", "template": "88.118.8/T"}
        ),
        "",
        json.dumps({**good, "identifier": "nothing"}),
        json.dumps({**good, "identifier": "88.118.8/C", "values": [{"index": 0, "type": "URL"}]}),
        json.dumps({**good, "identifier": "88.118.8/D", "status": "retired", "colour": "red"}),
        "{broken",
        "[1]",
        json.dumps(good),
        json.dumps({"values": []}),
    ]
    file.write_text("\ufeff" + "\n".join(lines))
    registry = Registry()
    report = await run(file, registry)
    assert (report.rows, report.good, report.failed) == (9, 2, 7)
    assert faults(report) == [
        (4, "identifier", "invalid-identifier"),
        (5, "values[0].data", "invalid-record"),
        (6, "colour", "invalid-record"),
        (6, "status", "invalid-record"),
        (7, "", "invalid-record"),
        (8, "", "invalid-record"),
        (9, "identifier", "identifier-taken"),
        (10, "identifier", "invalid-record"),
    ]
    b = registry.rows[next(key for key in registry.rows if b"B" in key.suffix.upper())]
    assert (b.status, b.template) == (Status.FROZEN, "88.118.8/T")
    assert report.error_file is not None
    bad = [json.loads(line) for line in report.error_file.read_text().splitlines()]
    assert [row["_line"] for row in bad] == [4, 5, 6, 7, 8, 9, 10]
    assert bad[3]["_text"] == "{broken"
    for row in bad:
        row["identifier"] = f"88.118.8/again-{row['_line']}"
        row |= {"status": "active", "values": []}
        row.pop("colour", None)
    again = tmp_path / "again.ndjson"
    again.write_text("\n".join(json.dumps(row) for row in bad))
    report = await run(again, registry)
    assert (report.good, report.failed) == (7, 0)
    told = [json.loads(line) for line in (tmp_path / "report").read_text().splitlines()]
    assert len(told) == 8
    assert all(one["reason"] and one["reason_zh"] and one["fix"] and one["fix_zh"] for one in told)


async def test_plain_objects_are_rows_under_the_names_of_the_first(tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl"
    rows: list[dict[str, Any]] = [
        {"serial": "A", "power_w": 5, "on": True, "note": None},
        {"note": "n", "serial": 7},
        {"serial": "C", "colour": "red"},
        {"serial": "D", "note": ["x"]},
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    registry = Registry()
    report = await run(file, registry, BY_SERIAL)
    assert values(registry) == {
        "88.118.8/SN-A": [(1, "serial", b"A"), (2, "power_w", b"5"), (3, "on", b"true")],
        "88.118.8/SN-7": [(1, "serial", b"7"), (4, "note", b"n")],
    }
    assert faults(report) == [(3, "colour", "invalid-record"), (4, "note", "invalid-record")]


async def test_msgpack_maps_and_arrays(tmp_path: Path) -> None:
    file = tmp_path / "f.msgpack"
    rows: list[Any] = [
        {"identifier": "88.118.8/A", "values": [{"index": 1, "type": "URL", "data": b"\xff\x00"}]},
        ["88.118.8/B", [[1, "URL", b"x"], [2, "HS_SECKEY", "s"]]],
        [
            "88.118.8/C",
            [[1, "URL", b"x", 60, False, 0, 15, [["88.118.8/A", 1]]]],
            "draft",
            "88.118.8/T",
        ],
        ["88.118.8/D", [[1]]],
        7,
        {"identifier": "88.118.8/E", "values": [], 1: 2},
    ]
    file.write_bytes(b"".join(msgpack.packb(row) for row in rows))
    registry = Registry()
    report = await run(file, registry)
    assert values(registry)["88.118.8/A"] == [(1, "URL", b"\xff\x00")]
    b, c = list(registry.rows.values())[1:3]
    assert [value.permissions for value in b.values] == [Permissions(14), Permissions(12)]
    assert (c.status, c.template, c.values[0].ttl) == (Status.DRAFT, "88.118.8/T", 60)
    assert c.values[0].references[0].identifier == "88.118.8/A"
    assert [line for line, _, _ in faults(report)] == [4, 5, 6]


async def test_a_msgpack_stream_that_is_cut_says_where_and_keeps_what_was_before(
    tmp_path: Path,
) -> None:
    file = tmp_path / "f.msgpack"
    row = msgpack.packb(["88.118.8/A", []])
    file.write_bytes(row + msgpack.packb(["88.118.8/B", [[1, "URL", b"x" * 99]]])[:-5])
    registry = Registry()
    with pytest.raises(InvalidFile) as cut:
        await run(file, registry, chunk_rows=1)
    assert cut.value.fields["line"] == 2
    assert set(values(registry)) == {"88.118.8/A"}


# Workbooks ------------------------------------------------------------------------------


def workbook(path: Path, rows: list[list[Any]], *, down: int = 0, right: int = 0) -> Path:
    with xlsxwriter.Workbook(path) as book:
        sheet = book.add_worksheet("goods")
        dates = book.add_format({"num_format": "yyyy-mm-dd"})
        for number, row in enumerate(rows):
            for at, cell in enumerate(row):
                place = (number + down, at + right)
                if isinstance(cell, date):
                    sheet.write_datetime(*place, cell, dates)
                elif isinstance(cell, tuple):
                    sheet.write_formula(*place, cell[0], None, cell[1])
                else:
                    sheet.write(*place, cell)
        book.add_worksheet("other").write(0, 0, "not looked at")
    return path


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, 2)])
async def test_a_workbook(tmp_path: Path, down: int, right: int) -> None:
    rows: list[list[Any]] = [
        ["serial", "made", "power", "sum"],
        ["A1", date(2026, 3, 1), 1.5, ("=1+1", 2)],
        ["A2", "", 7.0, ("=1+1", "")],
        [1234567890123456789, "", 1, 1],
        [],
        ["A3", "中文\nzwei", True, "", "more"],
        ["A4"],
    ]
    file = workbook(tmp_path / "f.xlsx", rows, down=down, right=right)
    registry = Registry()
    report = await run(file, registry, BY_SERIAL)
    assert values(registry) == {
        "88.118.8/SN-A1": [
            (1, "serial", b"A1"),
            (2, "made", b"2026-03-01"),
            (3, "power", b"1.5"),
            (4, "sum", b"2"),
        ],
        "88.118.8/SN-A4": [(1, "serial", b"A4")],
    }
    row = down + 1
    assert faults(report) == [
        (row + 2, "sum", "invalid-record"),
        (row + 3, "serial", "invalid-record"),
        (row + 5, "", "invalid-record"),
    ]
    assert ["formula" in fault.en for fault in report.faults] == [True, False, False]
    assert "15 digits" in report.faults[1].en
    assert all("电子表格" in fix_of(fault).zh or fix_of(fault).zh for fault in report.faults)
    assert report.error_file is not None
    assert report.error_file.read_bytes().startswith(b"\xef\xbb\xbf"), "spreadsheets open it"
    with report.error_file.open(encoding="utf-8-sig", newline="") as told:
        assert [one["serial"] for one in csv.DictReader(told)] == [
            "A2",
            "1.234567890123457e+18",
            "",
        ]


def test_workbooks_that_are_none(tmp_path: Path) -> None:
    file, rows = tmp_path / "f.xlsx", tmp_path / "rows"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(InvalidFile):
        prepare(file, rows, Making("f.xlsx"))
    file.write_bytes(workbook(tmp_path / "whole.xlsx", [["a"], ["b"]]).read_bytes()[:-300])
    with pytest.raises(InvalidFile):
        prepare(file, rows, Making("f.xlsx"))
    file.write_bytes(b"identifier\n88.118.8/A\n")
    with pytest.raises(InvalidFile, match="no Excel workbook"):
        prepare(file, rows, Making("f.xlsx"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.xlsx", "whole.xlsx"]


def test_a_workbook_that_unfolds_without_end(tmp_path: Path) -> None:
    file = tmp_path / "f.xlsx"
    whole = workbook(tmp_path / "whole.xlsx", [["serial"], ["A"]])
    with zipfile.ZipFile(whole) as parts, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for part in parts.namelist():
            data = parts.read(part)
            if part.endswith("sheet1.xml"):
                data = data.replace(b"<sheetData>", b"<sheetData>" + b" " * 100_000_000)
            out.writestr(part, data)
    assert file.stat().st_size < 200_000
    with pytest.raises(InvalidFile, match="unfolds to"):
        prepare(file, tmp_path / "rows", Making("f.xlsx"))


def test_a_workbook_that_takes_more_memory_than_it_may(tmp_path: Path) -> None:
    file = tmp_path / "f.xlsx"
    with xlsxwriter.Workbook(file, {"constant_memory": True}) as book:
        sheet = book.add_worksheet()
        sheet.write(0, 0, "serial")
        sheet.write(1_048_575, 400, "far away")  # the library makes a cell for all between
    with pytest.raises(TooLarge, match="CSV"):
        prepare(file, tmp_path / "rows", Making("f.xlsx", workbook_memory_bytes=512 * 2**20))


# Columns, formulas, duplicates -----------------------------------------------------------


async def test_columns_are_mapped(tmp_path: Path) -> None:
    file = tmp_path / "f.csv"
    file.write_text(
        "编码,网址,状态,模板,内部\n88.118.8/A,https://x/,frozen,88.118.8/T,1\n88.118.8/B,y,,,2\n88.118.8/C,z,gone,,3\n"
    )
    columns = (
        ("编码", "identifier"),
        ("网址", "URL[7]"),
        ("状态", "status"),
        ("模板", "template"),
        ("内部", "-"),
    )
    registry = Registry()
    report = await run(file, registry, RowMapping(columns=columns))
    a, b = registry.rows.values()
    assert [(v.index, v.type, v.text) for v in a.values] == [(7, "URL", "https://x/")]
    assert (a.status, a.template) == (Status.FROZEN, "88.118.8/T")
    assert (b.status, b.template) == (Status.ACTIVE, None)
    assert faults(report) == [(4, "状态", "invalid-record")]
    for wrong in (
        (("不存在", "URL"),),
        (("编码", "identifier"), ("网址", "identifier")),
        (("编码", "identifier"), ("网址", "URL[1]"), ("内部", "X[1]")),
    ):
        with pytest.raises(InvalidFile):
            await run(file, registry, RowMapping(columns=wrong))


@pytest.mark.parametrize("formulas", ["refuse", "text"])
async def test_formulas(tmp_path: Path, formulas: Any) -> None:
    file = tmp_path / "f.csv"
    file.write_text(
        'identifier,URL\n88.118.8/A,"=HYPERLINK(""x"")"\n88.118.8/B,-1\n88.118.8/C,+86\n88.118.8/D,=\n'
    )
    registry = Registry()
    report = await run(file, registry, RowMapping(formulas=formulas))
    assert report.failed == (1 if formulas == "refuse" else 0)
    assert faults(report) == ([(2, "URL", "invalid-record")] if report.failed else [])


async def test_what_the_file_says_twice_is_named_with_its_first_line_after_a_kill_too(
    tmp_path: Path,
) -> None:
    file = tmp_path / "f.csv"
    names = [f"88.118.8/A{n}" for n in range(10)]
    file.write_text(
        "identifier\n" + "\n".join([*names, "88.118.8/a3", "88.118.8/A9", "88.118.8/taken"]) + "\n"
    )
    registry = Registry()
    registry.refuse["88.118.8/taken"] = ("identifier-taken", "It is registered.", "已被注册。")
    registry.stop_after = 3
    aside = Aside(seen_file=tmp_path / "seen.db", report_file=tmp_path / "report", keep_state=True)

    async def go() -> ImportReport:
        return await import_file(
            file, WHOLE, registry, aside=aside, chunk_rows=3, state_file=tmp_path / "state"
        )

    with pytest.raises(Stopped):
        await go()
    first = await go()
    assert (first.rows, first.good, first.failed, first.resumed) == (13, 10, 3, True)
    told = [json.loads(line) for line in (tmp_path / "report").read_text().splitlines()]
    assert [(one["line"], one["reason"]) for one in told] == [
        (12, "Line 5 of this file has the same identifier."),
        (13, "Line 11 of this file has the same identifier."),
        (14, "It is registered."),
    ]
    calls = registry.calls
    again = await go()
    assert (again.rows, again.good, again.failed) == (13, 10, 3), "an end that was not noted"
    assert registry.calls == calls
    os.truncate(tmp_path / "seen.db", 100)
    (tmp_path / "state").unlink()
    assert (await go()).failed == 13, "a damaged memory costs a reason, not the import"


def test_what_begins_like_csv_is_none(tmp_path: Path) -> None:
    for name, data, form in (
        ("f.csv", b'{"a": 1}', "csv"),
        ("f", b' \n{"a": 1}', "ndjson"),
        ("f", b"a,b\n", "csv"),
        ("f.msgpack", b"\x91\x01", "msgpack"),
        ("f.ndjson.gz", gzip.compress(b'{"identifier": "88.118.8/A"}\n'), "ndjson"),
    ):
        file = tmp_path / name
        file.write_bytes(data)
        assert prepare(file, tmp_path / "rows", Making(name)) == form
