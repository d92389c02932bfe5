"""Stopped, refused or gone on with: an import loses no row and counts none twice."""

import asyncio
import json
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from biaojie.change import Action, Receipt, RowResult
from biaojie.errors import (
    InvalidFile,
    PrefixNotHere,
    TemporarilyUnavailable,
)
from registry.imports import Row, import_file
from tests.unit.test_imports import BY_NAME, Registry, Stopped, error_rows, files, write

CATALOGUE = "name,a\n" + "".join(
    f"{name},{n}\n"
    for n, name in enumerate(
        ["p1", "", "p2", "P1", "p3", "p4", "", "", "", "p5", "p2", "p6", "p7", "p8", "p3", "p9"]
    )
)


@pytest.mark.parametrize("mode", ["valid-rows", "all"])
@pytest.mark.parametrize("where", ["before", "after"])
async def test_stopped_anywhere_it_goes_on_as_if_it_never_was(
    tmp_path: Path, where: str, mode: str
) -> None:
    faultless = "name,a\n" + "\n".join(f"q{n},1" for n in range(9))
    text = CATALOGUE if mode == "valid-rows" else faultless
    whole = Registry()
    source = write(tmp_path / "whole.csv", text)
    expected = await import_file(source, BY_NAME, whole, mode=mode, chunk_rows=3)
    for call in range(1, whole.calls + 1):
        registry = Registry()
        file = write(tmp_path / f"{where}{call}.csv", text)
        setattr(registry, f"stop_{where}", call)
        with pytest.raises(Stopped):
            await import_file(file, BY_NAME, registry, mode=mode, chunk_rows=3)
        registry.stop_before = registry.stop_after = -1
        report = await import_file(file, BY_NAME, registry, mode=mode, chunk_rows=2)
        assert registry.names == whole.names
        assert (report.rows, report.good, report.failed, report.written, report.codes) == (
            expected.rows,
            expected.good,
            expected.failed,
            expected.written,
            expected.codes,
        )
        assert error_rows(report) == error_rows(expected)
        assert not [name for name in files(tmp_path) if "state" in name]


async def test_a_state_that_was_not_noted_is_made_up_for(tmp_path: Path) -> None:
    """kill -9 between the error file and the state: the lines written since are cut off."""
    file = write(tmp_path / "p.csv", CATALOGUE)
    registry = Registry()
    registry.stop_before = 4
    with pytest.raises(Stopped):
        await import_file(file, BY_NAME, registry, chunk_rows=3)
    errors = tmp_path / "p.errors.csv"
    errors.write_bytes(errors.read_bytes() + b'half a li"ne')
    report = await import_file(file, BY_NAME, registry)
    assert report.resumed
    assert [int(row["_line"]) for row in error_rows(report)] == [3, 5, 8, 9, 10, 12, 16]


async def test_a_changed_file_mapping_or_state_is_not_resumed(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", CATALOGUE)
    registry = Registry()
    registry.stop_before = 3
    with pytest.raises(Stopped):
        await import_file(file, BY_NAME, registry, chunk_rows=3, target="http://a")
    for mapping, target in (
        (replace(BY_NAME, suffix="Q-{name}"), "http://a"),
        (BY_NAME, "http://b"),
    ):
        with pytest.raises(InvalidFile, match=r"differ since .* at line \d+ .*--restart"):
            await import_file(file, mapping, registry, target=target)
    errors = tmp_path / "p.errors.csv"
    kept = errors.read_bytes()
    errors.write_bytes(b"name")
    with pytest.raises(InvalidFile, match="no longer what this import wrote"):
        await import_file(file, BY_NAME, registry, target="http://a")
    errors.write_bytes(kept)
    write(file, CATALOGUE + "more,1\n")
    with pytest.raises(InvalidFile, match="The file has changed"):
        await import_file(file, BY_NAME, registry, target="http://a")
    state = tmp_path / "p.csv.import-state.json"
    state.write_text("{")
    with pytest.raises(InvalidFile, match="cannot be understood"):
        await import_file(file, BY_NAME, registry, target="http://a")
    report = await import_file(file, BY_NAME, registry, target="http://a", restart=True)
    assert not state.exists()
    assert "88.118.8/P-more" in registry.names
    assert report.codes["identifier-taken"] == 3 + 4, "the rows written before count as taken"


async def test_two_imports_of_one_file_do_not_run_at_once(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", CATALOGUE)
    entered = asyncio.Event()
    leave = asyncio.Event()
    registry = Registry()

    async def slow(rows: Sequence[Row], key: str, *, dry_run: bool) -> Sequence[RowResult]:
        entered.set()
        await leave.wait()
        return await registry(rows, key, dry_run=dry_run)

    first = asyncio.create_task(import_file(file, BY_NAME, slow))
    await entered.wait()
    with pytest.raises(InvalidFile, match="Another import"):
        await import_file(file, BY_NAME, registry)
    leave.set()
    assert (await first).good == 9


async def test_cancelling_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", CATALOGUE)
    registry = Registry()
    hanging = asyncio.Event()

    async def hang(rows: Sequence[Row], key: str, *, dry_run: bool) -> Sequence[RowResult]:
        if registry.calls == 2:
            hanging.set()
            await asyncio.Event().wait()
        return await registry(rows, key, dry_run=dry_run)

    task = asyncio.create_task(import_file(file, BY_NAME, hang, chunk_rows=3))
    await hanging.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    state = json.loads((tmp_path / "p.csv.import-state.json").read_text())
    # the third chunk is three rows without a name, which need no node
    assert (state["chunk"], state["line"], state["rows"]) == (3, 10, 9)
    assert (await import_file(file, BY_NAME, registry)).good == 9


async def test_a_node_that_fails_stops_the_import_and_loses_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", CATALOGUE)
    registry = Registry()

    async def failing(rows: Sequence[Row], key: str, *, dry_run: bool) -> Sequence[RowResult]:
        if registry.calls == 2:
            raise TemporarilyUnavailable()
        return await registry(rows, key, dry_run=dry_run)

    with pytest.raises(TemporarilyUnavailable):
        await import_file(file, BY_NAME, failing, chunk_rows=3)
    assert (await import_file(file, BY_NAME, registry)).good == 9


async def test_what_a_node_finds_too_large_goes_in_halves(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", CATALOGUE)
    registry = Registry()
    registry.rows_max = 2
    report = await import_file(file, BY_NAME, registry)
    assert (report.good, report.failed) == (9, 7)
    registry = Registry()
    registry.rows_max = 0
    report = await import_file(file, BY_NAME, registry)
    assert (report.good, report.codes) == (0, {"invalid-record": 4, "too-large": 12})


async def test_a_refusal_of_the_whole_prefix_is_an_error_not_a_list(tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", "name,a\nx,1\ny,2\n")
    registry = Registry()
    registry.refuse = {
        f"88.118.8/P-{name}": ("prefix-not-here", "Not homed here.", "未托管。") for name in "xy"
    }
    with pytest.raises(PrefixNotHere, match="Not homed here"):
        await import_file(file, BY_NAME, registry)
    registry.refuse = {}
    report = await import_file(file, BY_NAME, registry)
    assert (report.good, report.resumed) == (2, True), "judged anew, not answered from memory"


async def test_memory_is_bounded_by_a_chunk_not_by_the_file(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        file = tmp_path / f"{rows}.csv"
        with file.open("w") as out:
            out.write("name,a,b\n")
            out.writelines(f"n{n},{'x' * 50},\n" for n in range(rows))

        async def take(rows: Sequence[Row], key: str, *, dry_run: bool) -> Sequence[RowResult]:
            receipt = Receipt("", Action.CREATE, "active", 1, 1)
            return [RowResult(0, "", receipt)] * len(rows)

        tracemalloc.start()
        asyncio.run(import_file(file, BY_NAME, take))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    small, large = await asyncio.to_thread(peak, 2_000), await asyncio.to_thread(peak, 12_000)
    assert large < 1.5 * small + 1_000_000
