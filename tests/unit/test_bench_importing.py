"""Files that a node's imports are measured with, what is checked of them, and what is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import orjson
import pytest

from bench import results
from bench.loading import importing, telling
from bench.loading.importing import FORMS, expected, line_of, measure, write_file
from bench.loading.reading import WrongAnswer
from biaojie.calls import Resolved
from biaojie.errors import NotFound
from biaojie.identifier import Identifier
from biaojie.record import Record, Value


def rows_of(file: Path, form: str) -> list[importing.Expected]:
    """What a file says."""
    if form == "csv":
        titles, *lines = (line.split(",") for line in file.read_text().splitlines())
        return [
            (
                name,
                tuple((n, type_, data.encode()) for n, (type_, data) in enumerate(pairs, 1)),
            )
            for name, *cells in lines
            for pairs in [list(zip(titles[1:], cells, strict=True))]
        ]
    if form == "ndjson":
        return [
            (
                row["identifier"],
                tuple((v["index"], v["type"], v["data"].encode()) for v in row["values"]),
            )
            for row in map(orjson.loads, file.read_bytes().splitlines())
        ]
    with file.open("rb") as packed:
        return [
            (name, tuple(tuple(value) for value in values))
            for name, values in msgpack.Unpacker(packed)
        ]


@pytest.mark.parametrize("form", FORMS)
def test_a_file_has_the_records_that_are_expected(tmp_path: Path, form: str) -> None:
    file = tmp_path / "f"
    write_file(file, form, "sorted", "s", line_of(2), 9_000)
    found = rows_of(file, form)
    assert found == [expected("s", line_of(2), number) for number in range(9_000)]
    assert [name for name, _ in found] == sorted(name for name, _ in found)
    write_file(file, form, "shuffled", "s", line_of(2), 9_000)
    shuffled = rows_of(file, form)
    assert shuffled != found
    assert sorted(shuffled) == found


def test_files_of_one_run_have_no_name_in_common(tmp_path: Path) -> None:
    names = {expected("s", line_of(number), 7)[0] for number in range(6)}
    assert len(names) == 6


class Answers:
    """A client of a registry that holds these."""

    def __init__(self, held: Sequence[importing.Expected]) -> None:
        self._held = dict(held)

    async def resolve_many(self, names: Sequence[str]) -> AsyncIterator[Any]:
        for name in names:
            if name in self._held:
                values = tuple(Value(*each) for each in self._held[name])
                yield Resolved(Record(Identifier.parse(name), values))
            else:
                yield NotFound()


@pytest.mark.parametrize("wrong", ["", "lost", "changed", "more"])
async def test_what_is_not_as_it_was_sent_is_found(wrong: str) -> None:
    line = line_of(0)
    held = [expected("s", line, number) for number in range(50)]
    if wrong == "lost":
        del held[49]
    elif wrong == "changed":
        held[0] = (held[0][0], ((1, "URL", b"x"),))
    elif wrong == "more":
        held.append(expected("s", line, 50))
    client: Any = Answers(held)
    if not wrong:
        await importing._check(client, "s", line, 50)
        return
    with pytest.raises(WrongAnswer):
        await importing._check(client, "s", line, 50)


async def test_a_node_of_its_own_is_measured(tmp_path: Path) -> None:
    said: list[str] = []
    result = await measure(
        "sqlite", tmp_path, "s", 3_000, ["msgpack"], ["sorted", "shuffled"], 1_000, said.append
    )
    assert [run["order"] for run in result["runs"]] == ["sorted", "shuffled"]
    assert all(run["storing_cpu_s"] > 0 and run["job_s"] > 0 for run in result["runs"])
    assert len(said) == 2
    assert not (tmp_path / "rows.msgpack").exists()


def test_what_is_told(tmp_path: Path) -> None:
    run = {
        "form": "csv",
        "order": "sorted",
        "rows": 1_000_000,
        "upload_s": 1.0,
        "upload_cpu_s": 0.5,
        "job_s": 4.0,
        "reading_cpu_s": 2.5,
        "storing_cpu_s": 1.0,
        "server_cpu_s": 0.0,
        "resident_octets": 2**28,
    }
    machine = dict.fromkeys(("date", "cpu", "system", "python", "commit", "command"), "x")
    result = {
        "machine": machine | {"cores": 2, "memory_bytes": 2**30},
        "kind": "SQLite",
        "runs": [run],
        "driver": "it",
        "bare": {"rows": 100_000, "wall_s": 0.5, "cpu_s": 0.25},
    }
    told = telling.imported(result)
    assert (
        "| csv, sorted | 1,000,000 | 250,000 | 200,000 | 2,000,000 | 400,000 | 1,000,000 | – |"
        " 250,000 | 1.25 | 0.71 | 256 |"
    ) in told
    for kind in ("sqlite", "postgresql"):
        file = tmp_path / kind
        file.write_text(results.FILE.read_text(encoding="utf-8"), encoding="utf-8")
        results.write(f"import-{kind}", told, file)
        assert told in file.read_text(encoding="utf-8")
