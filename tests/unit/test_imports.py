"""The importer: what is read, what is refused and said, and that stopping it never matters."""

import asyncio
import csv
import tomllib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from biaojie.change import Action, Receipt, RowResult
from biaojie.errors import (
    InvalidFile,
    InvalidIdentifier,
    TooLarge,
)
from biaojie.identifier import Identifier, Key
from biaojie.record import Permissions, Record, Reference, Status, Value
from registry.exports import export_csv
from registry.import_csv import ROW_BYTES_MAX
from registry.imports import ImportReport, Row, RowMapping, import_file

BY_NAME = RowMapping(prefix="88.118.8", suffix="P-{name}")
WHOLE = RowMapping()


class Stopped(BaseException):
    """Stands for kill -9: passes every `except Exception`."""


class Registry:
    """What a node does with chunks: refuses taken names, remembers idempotency keys."""

    def __init__(self) -> None:
        self.rows: dict[Key, Row] = {}
        self.receipts: dict[str, tuple[list[Row], list[RowResult]]] = {}
        self.calls = 0
        self.stop_before = self.stop_after = -1
        self.refuse: dict[str, tuple[str, str, str]] = {}
        self.rows_max = 2_000

    async def __call__(
        self, rows: Sequence[Row], key: str, *, dry_run: bool
    ) -> Sequence[RowResult]:
        await asyncio.sleep(0)
        self.calls += 1
        if self.calls == self.stop_before:
            raise Stopped
        if len(rows) > self.rows_max:
            raise TooLarge()
        if not dry_run and key in self.receipts:
            before, results = self.receipts[key]
            assert before == list(rows), "an idempotency key came with other rows"
            return results
        assert dry_run == (not key)
        results, new = [], {}
        for number, row in enumerate(rows, 1):
            name, lookup = str(row.identifier), row.identifier.key()
            refusal = self.refuse.get(name)
            if refusal is None and (lookup in self.rows or lookup in new):
                refusal = ("identifier-taken", "It is registered already.", "已被注册。")
            if refusal:
                results.append(RowResult(number, name, None, *refusal))
            else:
                new[lookup] = row
                receipt = Receipt(name, Action.CREATE, "active", 1, self.calls)
                results.append(RowResult(number, name, receipt))
        if not dry_run:
            self.rows |= new
            self.receipts[key] = (list(rows), results)
        if self.calls == self.stop_after:
            raise Stopped
        return results

    @property
    def names(self) -> set[str]:
        return {str(row.identifier) for row in self.rows.values()}


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def error_rows(report: ImportReport) -> list[dict[str, str]]:
    if report.error_file is None:
        return []
    with report.error_file.open(encoding="utf-8", newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


async def test_cells_become_values_at_the_index_of_their_column(tmp_path: Path) -> None:
    file = write(
        tmp_path / "p.csv",
        '\ufeffname,power_w,note\r\nA  1,5,"two\r\nlines"\r\nB,,"say ""hi"", 你好"\r\n\r\nC,7,\r\n',
    )
    registry = Registry()
    report = await import_file(file, BY_NAME, registry)
    assert (report.rows, report.good, report.failed, report.written) == (3, 3, 0, 3)
    assert report.error_file is None
    first, second, third = registry.rows.values()
    assert str(first.identifier) == "88.118.8/P-A-1"
    assert [(v.index, v.type, v.text) for v in first.values] == [
        (1, "name", "A  1"),
        (2, "power_w", "5"),
        (3, "note", "two\r\nlines"),
    ]
    assert [(v.index, v.text) for v in second.values] == [(1, "B"), (3, 'say "hi", 你好')]
    assert (first.line, second.line, third.line) == (2, 4, 6)
    assert files(tmp_path) == ["p.csv"], "nothing is left behind"


async def test_a_column_of_whole_identifiers_with_status_and_template(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", "URL,identifier,HS_SECKEY\nhttps://a.example,88.1.1/X,s3\n")
    mapping = RowMapping(status=Status.DRAFT, template="88.1.1/T")
    # 88.1.1 breaks the national rule: the second label has 3 to 5 digits
    registry = Registry()
    report = await import_file(file, mapping, registry)
    assert [fault.code for fault in report.faults] == ["invalid-identifier"]
    write(file, file.read_text().replace("88.1.1/X", "hdl:88.118.8/X%20Y"))
    await import_file(file, mapping, registry)
    (row,) = registry.rows.values()
    assert (str(row.identifier), row.status, row.template) == (
        "88.118.8/X Y",
        Status.DRAFT,
        "88.1.1/T",
    )
    assert [(v.index, v.type) for v in row.values] == [(1, "URL"), (2, "HS_SECKEY")]
    assert not row.values[1].permissions & Permissions.PUBLIC_READ


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no header row"),
        (b"\n\n", "no header row"),
        (b"\xef\xbb\xbf", "no header row"),
        (b"name,a,name\nx,1,2\n", "both named name"),
        (b"name,a,Name \nx,1,2\n", "both named Name"),
        (b"name,,b\nx,1,2\n", "Column 2 has no name"),
        (b"name," + b",".join(b"c%d" % n for n in range(200)), "201 columns, at most 200"),
        (b"name," + b"x" * 129 + b"\n", "must be 1 to 128 printable"),
        (b'"name,a\nx,1\n', "never closed"),
        (b"title,a\nx,1\n", "names a column 'name' that is not there"),
        ("name,厂家\nA,北京\n".encode("gbk"), "looks like GBK"),
        ("name,maker\nA,北京\nB,上海\n".encode("gbk"), "Line 2 is not UTF-8"),
        ("name,a\nx,1\n".encode("utf-16"), "UTF-16"),
        (b"PK\x03\x04 and so on", "Excel workbook"),
        (b"name,a\rx,1\ry,2\r", "bare carriage returns"),
        (b"name," + b"x" * (ROW_BYTES_MAX + 10) + b"\nA,1\n", "longer than"),
    ],
)
async def test_a_file_that_is_no_catalogue_is_refused_before_the_first_row(
    tmp_path: Path, data: bytes, said: str
) -> None:
    registry = Registry()
    with pytest.raises(InvalidFile, match=said) as caught:
        await import_file(write(tmp_path / "p.csv", data), BY_NAME, registry)
    assert any("\u4e00" <= c <= "\u9fff" for c in caught.value.detail.zh)
    assert registry.calls == 0
    assert files(tmp_path) == ["p.csv"]


async def test_unusable_mappings_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", "name,a\nx,1\n")
    with pytest.raises(InvalidFile, match="names no column"):
        await import_file(file, RowMapping("88.118.8", "fixed"), Registry())
    with pytest.raises(InvalidFile, match=r"no column named identifier.*Columns: name, a"):
        await import_file(file, WHOLE, Registry())
    with pytest.raises(InvalidIdentifier, match="prefix-character"):
        await import_file(file, RowMapping("88 8", "{name}"), Registry())
    with pytest.raises(InvalidFile, match="cannot be read"):
        await import_file(tmp_path / "none.csv", BY_NAME, Registry())
    with pytest.raises(InvalidFile, match="1 to 2000 rows"):
        await import_file(file, BY_NAME, Registry(), chunk_rows=2_001)


async def test_every_fault_is_named_by_line_column_and_reason(tmp_path: Path) -> None:
    long = b"x" * 65_537
    lines = [
        b"name,a,b",  # 1
        b"good1,1,2",  # 2
        b",1,2",  # 3: no name
        b"short,1",  # 4
        b"long,1,2,3",  # 5
        b'"stray"x,1,2',  # 6
        b"good2,1,2",  # 7
        b'open,"1,2',  # 8: the quote ends on line 9, where something follows it
        b'good3,1,"2"',  # 9
        b"nul,a\0b,2",  # 10
        b"bytes,\xb1\xb1\xbe\xa9,2",  # 11
        b"wide," + long + b"," + long,  # 12: two faults
        b"control\x07,1,2",  # 13
        b"lone,1\r2,3",  # 14
        b"x" * 10_000_000,  # 15
        b'"two\nlines",1,2',  # 16, 17
        "好 ü,1,2".encode(),  # 18
        b"GOOD1,1,2",  # 19
        b'last,"1,2',  # 20
    ]
    registry = Registry()
    file = write(tmp_path / "p.csv", b"\n".join(lines))
    report = await import_file(file, BY_NAME, registry, chunk_rows=4)
    assert registry.names == {f"88.118.8/P-{n}" for n in ("good1", "good2", "good3", "好-ü")}
    assert (report.rows, report.good, report.failed) == (18, 4, 14)
    rows = {int(row["_line"]): row for row in error_rows(report)}
    told = {line: (row["_column"], row["_code"]) for line, row in rows.items()}
    assert told == {
        3: ("name", "invalid-record"),
        4: ("b", "invalid-record"),
        5: ("", "invalid-record"),
        6: ("", "invalid-record"),
        8: ("", "invalid-record"),
        10: ("a", "invalid-record"),
        11: ("a", "invalid-record"),
        12: ("a; b", "invalid-record"),
        13: ("name", "invalid-identifier"),
        14: ("", "invalid-record"),
        15: ("", "invalid-record"),
        16: ("name", "invalid-record"),
        19: ("name", "identifier-taken"),
        20: ("", "invalid-record"),
    }
    assert "The row has 4 cells, the header 3" in rows[5]["_reason"]
    assert rows[5]["_text"] == "long,1,2,3"
    assert "closing quote" in rows[6]["_reason"]
    assert "never closed" in rows[20]["_reason"]
    assert rows[20]["_text"] == 'last,"1,2'
    assert rows[12]["a"] == rows[12]["b"] == long.decode()
    assert rows[11]["a"].encode("utf-8", "surrogateescape") == b"\xb1\xb1\xbe\xa9"
    assert "U+0007" in rows[13]["_reason"]
    assert "\x07" not in rows[13]["_reason"]
    assert "from line 16 to 17" in rows[16]["_reason"]
    assert len(rows[15]["_text"]) < 40_000
    assert [(fault.line, fault.column) for fault in report.faults][:2] == [(3, "name"), (4, "b")]
    assert report.codes == {"invalid-record": 13, "invalid-identifier": 1, "identifier-taken": 1}


async def test_the_error_file_can_be_mended_and_imported(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", "name,a\n,1\nok,2\nragged\nok,3\n")
    registry = Registry()
    first = await import_file(file, BY_NAME, registry)
    assert first.error_file == tmp_path / "p.errors.csv"
    unmended = await import_file(first.error_file, BY_NAME, registry)
    assert (unmended.good, unmended.failed) == (0, 3)
    assert unmended.error_file == tmp_path / "p.errors.errors.csv"
    assert [row["_text"] for row in error_rows(unmended)] == ["", "ragged", ""]
    text = first.error_file.read_text()
    header = text.splitlines()[0]
    assert header == "name,a,_line,_column,_code,_reason,_text"
    rows = error_rows(first)
    rows[0]["name"], rows[1]["name"], rows[2]["name"] = "one", "two", "three"
    with first.error_file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, header.split(","))
        writer.writeheader()
        writer.writerows(rows)
    mended = await import_file(first.error_file, BY_NAME, registry)
    assert (mended.good, mended.failed) == (3, 0)
    assert registry.names == {f"88.118.8/P-{n}" for n in ("ok", "one", "two", "three")}
    one = next(row for row in registry.rows.values() if str(row.identifier).endswith("one"))
    assert [(v.index, v.type, v.text) for v in one.values] == [(1, "name", "one"), (2, "a", "1")]


async def test_an_error_file_is_never_overwritten(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", "name,a\n,1\n")
    mine = write(tmp_path / "p.errors.csv", "being mended")
    report = await import_file(file, BY_NAME, Registry())
    assert report.error_file == tmp_path / "p.errors-2.csv"
    assert mine.read_text() == "being mended"


async def test_a_dry_run_writes_nothing_and_finds_duplicates_across_chunks(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", "name,a\nx,1\ny,1\nz,1\nX,1\n,1\n")
    registry = Registry()
    report = await import_file(file, BY_NAME, registry, dry_run=True, chunk_rows=2)
    assert (report.good, report.failed, report.written, registry.rows) == (3, 2, 0, {})
    taken, unnamed = report.faults
    assert (taken.line, taken.code) == (5, "identifier-taken")
    assert "Line 2" in taken.en
    assert unnamed.line == 6
    sensitive = await import_file(
        file, BY_NAME, registry, dry_run=True, chunk_rows=2, case_sensitive=True
    )
    assert sensitive.good == 4


async def test_mode_all_writes_only_a_file_without_faults(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", "name,a\nx,1\ny,1\nz,1\nX,1\n")
    registry = Registry()
    report = await import_file(file, BY_NAME, registry, mode="all", chunk_rows=2)
    assert (report.failed, report.written, registry.rows) == (1, 0, {})
    write(file, "name,a\nx,1\ny,1\nz,1\nv,1\n")
    report = await import_file(file, BY_NAME, registry, mode="all", chunk_rows=2)
    assert (report.failed, report.written, len(registry.rows)) == (0, 4, 4)


async def test_mode_all_reports_what_was_taken_between_check_and_write(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", "name,a\nx,1\ny,1\n")
    registry = Registry()

    async def racing(rows: Sequence[Row], key: str, *, dry_run: bool) -> Sequence[RowResult]:
        results = await registry(rows, key, dry_run=dry_run)
        if dry_run:
            registry.rows[Identifier("88.118.8", "P-y").key()] = rows[1]
        return results

    report = await import_file(file, BY_NAME, racing, mode="all")
    assert (report.good, report.failed, report.written) == (1, 1, 1)
    assert report.faults[0].code == "identifier-taken"


async def test_a_csv_export_imports_as_it_was(tmp_path: Path) -> None:
    def record(suffix: str, *values: Value, **fields: object) -> Record:
        made = Record(Identifier("88.118.8", suffix), values, created=1, modified=2)
        return replace(made, **fields)

    records = [
        record("a", Value(1, "URL", b"https://a.example"), Value(2, "_x", b"1")),
        record("b", Value(1, "URL", b'line\rend\n,"'), Value(3, "url", "你".encode())),
        record("c", Value(1, "URL", b"x", ttl=5), Value(7, "bin", b"\xff\0"), Value(8, "e", b"")),
        record("d", Value(1, "other", b"x", references=(Reference("88.118.8/a", 1),))),
        record("e, f", Value(9, "URL[9]", b"9"), status=Status.DRAFT, template="88.118.8/T"),
        record("g", Value(4, "HS_SECKEY", b"k", permissions=Permissions(0x0C))),
    ]

    async def stream() -> AsyncIterator[Record]:
        for item in records:
            yield item

    file = tmp_path / "export.csv"
    with file.open("wb") as out:
        assert await export_csv(stream(), out) == len(records)
    header = file.read_text().splitlines()[0]
    assert header == (
        "identifier,status,template,version,created,modified,"
        "URL,url[3],HS_SECKEY[4],URL[9][9],_more"
    )
    registry = Registry()
    report = await import_file(file, WHOLE, registry)
    assert report.faults == ()
    again = [
        Record(row.identifier, row.values, row.status, row.template, created=1, modified=2)
        for row in registry.rows.values()
    ]
    assert again == records


async def test_a_retired_identifier_of_an_export_is_not_registered_again(tmp_path: Path) -> None:
    file = write(
        tmp_path / "x.csv",
        "identifier,status,template,version,created,modified,_more\n"
        "88.118.8/a,retired,,2,,,\n"
        '88.118.8/b,active,,1,,,"[{""index"": 0}]"\n'
        "88.118.8/c,active,,1,,,[\n",
    )
    report = await import_file(file, WHOLE, Registry())
    assert [(fault.line, fault.column) for fault in report.faults] == [
        (2, "status"),
        (3, "_more"),
        (4, "_more"),
    ]


SAMPLES = Path(__file__).parents[2] / "deploy" / "samples"
CATALOGUES = tomllib.loads((SAMPLES / "catalogue.toml").read_text())["catalogue"]


@pytest.mark.parametrize("item", CATALOGUES, ids=lambda item: item["file"])
async def test_of_the_sample_data_exactly_the_rows_that_repeat_a_name_are_refused(
    tmp_path: Path, item: dict[str, Any]
) -> None:
    with (SAMPLES / item["file"]).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    registry = Registry()
    report = await import_file(
        SAMPLES / item["file"],
        RowMapping("88.118.8", item["suffix"]),
        registry,
        state_file=tmp_path / "state",
        error_file=tmp_path / "errors.csv",
        chunk_rows=2_000,
    )
    assert (report.rows, report.failed) == (item["rows"], item["refused"])
    assert set(report.codes) <= {"identifier-taken"}
    kept = {row.cells[0].upper() for row in registry.rows.values()}
    for told in error_rows(report):
        again = rows[int(told["_line"]) - 2]
        assert {name: told[name] for name in again} == again
        assert again["name"].upper() in kept
    assert not (tmp_path / "state").exists()
    assert not list(SAMPLES.glob("*state*")) + list(SAMPLES.glob("*errors*"))
