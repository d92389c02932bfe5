"""Records that are made again from their numbers, and what is said of a load of them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from bench.loading import disk, telling
from bench.loading.drivers import postgresql_rows, rows_of, sqlite_rows
from bench.loading.plan import LOT, PREFIXES, TEMPLATES, Plan, columns, prefix_of
from bench.loading.reading import recent, repeated, spread
from bench.words import BenchFault
from biaojie.identifier import Identifier
from registry.blocks import Chunk, cut
from registry.columns import check_chunk


def test_a_larger_plan_begins_with_the_smaller() -> None:
    small, large = Plan("s", 100_000), Plan("s", 1_000_000)
    assert large.pieces[: len(small.pieces)] == small.pieces
    assert Plan("t", 100_000).pieces != small.pieces
    assert small.total - small.pieces[-1].size < 100_000 <= small.total


def test_enterprises_are_of_very_different_size() -> None:
    sizes = [0] * PREFIXES
    for piece in Plan("s", 50_000_000).pieces:
        sizes[piece.rank] += piece.size
    largest = sorted(sizes, reverse=True)
    assert sum(largest[:10]) > sum(sizes) / 4
    assert sum(size > 0 for size in sizes) > PREFIXES // 2
    assert max(sizes[500:]) < 100_000


def test_no_name_comes_twice_and_each_is_made_again_from_its_number() -> None:
    plan = Plan("s", 150_000)
    seen: set[tuple[str, str]] = set()
    for piece in plan.pieces:
        made = columns("s", piece.rank, piece.line, piece.first, piece.size)
        seen |= {(prefix_of(piece.rank), suffix.upper()) for suffix in made.suffixes}
        for at in (0, 1, 63, 64, piece.size - 1):
            again = plan.expected(piece.start + at)
            assert (again.prefix, again.suffix) == (prefix_of(piece.rank), made.suffixes[at])
            assert [data for _, _, data in again.values] == [each[at] for each in made.data]
    assert len(seen) == plan.total


@pytest.mark.parametrize("line", range(len(TEMPLATES)))
@pytest.mark.parametrize("first", [0, 20_000_000 - 2_048, 100_000_000])
def test_each_template_makes_chunks_that_can_be_cut(line: int, first: int) -> None:
    made = columns("s", 999, line, first, 4_096)
    chunk = Chunk(prefix_of(999), made.suffixes, [made.shape], made.data)
    check_chunk(chunk)
    assert cut(chunk, 0).count == 4_096
    assert Identifier(prefix_of(999), made.suffixes[0]).suffix == made.suffixes[0]
    [secret] = [
        column
        for value, column in zip(made.shape, made.data, strict=True)
        if value.type in ("KEY", "DIGEST", "FINGERPRINT")
    ]
    assert len(set(secret)) == 4_096
    assert {len(each) for each in secret} <= {20, 40}


def test_which_chunks_make_up_so_many_records() -> None:
    plan = Plan("s", 200_000)
    assert plan.pieces_for(0) == 0
    assert plan.pieces_for(1) == 1
    for pieces in range(1, len(plan.pieces) + 1):
        assert plan.pieces_for(plan.records_in(pieces)) == pieces
    assert plan.pieces_for(10**9) == len(plan.pieces)
    assert LOT % 64 == 32  # lots and the groups of random octets do not end together


def test_which_names_are_asked_for() -> None:
    assert set(recent(1_000, 10, 1)) == set(range(990, 1_000))
    assert max(spread(1_000, 500, 1)) < 1_000
    assert len(set(spread(10**9, 500, 1))) == 500
    assert list(repeated([7, 8, 9], 2, 5)) == [7, 8, 7, 8, 7]


async def test_the_bare_drivers_load_the_same_records(tmp_path: Path, postgres_url: str) -> None:
    rows = rows_of(Plan("s", 30_000), 30_000)
    assert len(rows) == 30_000
    assert len({row[:2] for row in rows}) == 30_000
    assert sqlite_rows(tmp_path, rows).rows == 30_000
    assert os.listdir(tmp_path) == []
    assert (await postgresql_rows(postgres_url, rows, time.process_time)).rows == 30_000


def test_a_disk_without_room_is_told_of_before_anything_is_written(tmp_path: Path) -> None:
    place = disk.place_of("sqlite", tmp_path)
    place.check_free(1_000)
    with pytest.raises(BenchFault, match="GB free"):
        place.check_free(10**15)
    with pytest.raises(BenchFault, match="postgresql"):
        disk.place_of("mysql://x", tmp_path)


def result() -> dict[str, Any]:
    def point(count: int, seconds: float, p99: float) -> dict[str, Any]:
        times = {"p50_ms": 0.1, "p99_ms": p99, "count": 10}
        return {
            "count": count,
            "wall_s": seconds,
            "cpu_s": seconds * 2,
            "octets": count * 30,
            "resident_octets": 2**20,
            "warm": times,
            "cold": times,
        }

    step = {"wall_s": 60.0, "cpu_s": 60.0}
    reading = {"what": "random, cold", "count": 10, "p50_ms": 1.0, "p99_ms": 2.0, "max_ms": 3.0}
    return {
        "machine": {
            **dict.fromkeys(("date", "cpu", "system", "python", "commit", "command"), "x"),
            "cores": 2,
            "memory_bytes": 2**30,
        },
        "kind": "SQLite",
        "points": [point(1_000, 1.0, 0.5), point(10_000, 20.0, 0.75)],
        "readings": [reading | {"wall_s": 1.0, "cpu_s": 1.0, "disk_octets": 40}],
        "cold": "so",
        "resumed": 2,
        "resident_octets": 3 * 2**20,
        "total_s": 120.0,
        "steps": {
            "change": step | {"count": 5},
            "verify": step | {"records": 10_000, "entries": 7},
        },
    }


def test_what_is_told_of_a_volume(tmp_path: Path) -> None:
    told = telling.volume(result(), "curve.png")
    assert "| 10,000 | 0.3 | 0.7 | 500 | 250 | 30.0 | 1 | 0.100 | 0.750 |" in told
    assert "p99 is 1.50 times that at 1,000" in told
    assert "2.0 min (went on after 2 stops)" in told
    assert "3 MiB resident" in told
    telling.draw(result(), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
