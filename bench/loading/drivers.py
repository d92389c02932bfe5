"""What the bare drivers load: the limit that the bulk entrance is held against.

The same records, one row each, with nothing around them: no blocks, no check, no change log. The
rows are made before the clock starts. SQLite gets 1,000 of them in one INSERT, PostgreSQL a
binary COPY; the commits are as large as a chunk of ours, and each is on disk before the next.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

from ..processes import cpu_s
from .disk import Place
from .plan import Plan, columns

COMMIT_ROWS: Final = 24_576
_INSERT_ROWS: Final = 1_000
_TABLE: Final = "bench_driver_rows"
Row = tuple[int, bytes, bytes]


class Bare(NamedTuple):
    """`cpu_s` of all processes that took part."""

    rows: int
    wall_s: float
    cpu_s: float


def rows_of(plan: Plan, count: int) -> list[Row]:
    """The first `count` records of a plan in the order of their keys, as far as it has them."""
    rows: list[Row] = []
    for piece in plan.pieces:
        made = columns(plan.seed, piece.rank, piece.line, piece.first, piece.size)
        head = [(value.index, value.type) for value in made.shape]
        for suffix, data in zip(made.suffixes, zip(*made.data, strict=True), strict=True):
            blob = msgpack.packb([(*about, each) for about, each in zip(head, data, strict=True)])
            rows.append((piece.rank, suffix.upper().encode(), blob))
        if len(rows) >= count:
            break
    return sorted(rows[:count])


def _commits(rows: Sequence[Row]) -> list[Sequence[Row]]:
    return [rows[at : at + COMMIT_ROWS] for at in range(0, len(rows), COMMIT_ROWS)]


def sqlite_rows(folder: Path, rows: Sequence[Row]) -> Bare:
    """Into a new file in `folder`, which is removed again."""
    file = folder / "bench-driver.db"
    file.unlink(missing_ok=True)
    connection = sqlite3.connect(file, isolation_level=None)
    try:
        for pragma in ("page_size = 8192", "journal_mode = WAL", "synchronous = FULL"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute(
            f"CREATE TABLE {_TABLE} (prefix INT, suffix BLOB, blob BLOB NOT NULL,"
            " PRIMARY KEY (prefix, suffix)) WITHOUT ROWID"
        )
        began, busy = time.perf_counter(), time.process_time()
        for commit in _commits(rows):
            connection.execute("BEGIN IMMEDIATE")
            for at in range(0, len(commit), _INSERT_ROWS):
                some = commit[at : at + _INSERT_ROWS]
                values = ", ".join(["(?, ?, ?)"] * len(some))
                connection.execute(
                    f"INSERT INTO {_TABLE} VALUES {values}",  # noqa: S608  (question marks)
                    tuple(chain.from_iterable(some)),
                )
            connection.execute("COMMIT")
        return Bare(len(rows), time.perf_counter() - began, time.process_time() - busy)
    finally:
        connection.close()
        for end in ("", "-wal", "-shm"):
            file.with_name(file.name + end).unlink(missing_ok=True)


async def postgresql_rows(url: str, rows: Sequence[Row], busy_s: Callable[[], float]) -> Bare:
    """Into a table of its own in that database, which is dropped again. `busy_s` tells the seconds
    of processor so far: asked while the connection, and so its server process, is there."""
    import asyncpg

    connection = await asyncpg.connect(
        url.replace("postgresql+asyncpg://", "postgresql://"), timeout=10.0, command_timeout=300.0
    )
    try:
        await connection.execute(f"DROP TABLE IF EXISTS {_TABLE}")
        await connection.execute(
            f"CREATE TABLE {_TABLE} (prefix int, suffix bytea, blob bytea NOT NULL,"
            " PRIMARY KEY (prefix, suffix))"
        )
        began, busy = time.perf_counter(), busy_s()
        for commit in _commits(rows):
            await connection.copy_records_to_table(
                _TABLE, records=commit, columns=["prefix", "suffix", "blob"]
            )
        return Bare(len(rows), time.perf_counter() - began, busy_s() - busy)
    finally:
        await connection.execute(f"DROP TABLE IF EXISTS {_TABLE}")
        await connection.close()


async def driven(place: Place, folder: Path, plan: Plan, count: int) -> dict[str, Any]:
    """`driver`, which one it is, and `bare`, what it took for the first `count` records there."""
    rows = rows_of(plan, count)
    if place.file is not None:
        name, bare = "SQLite, 1,000 rows in an INSERT", sqlite_rows(folder, rows)
    else:
        name = "asyncpg, COPY"
        bare = await postgresql_rows(place.url, rows, lambda: cpu_s(place.all_pids()))
    return {"driver": name, "bare": bare._asdict()}
