"""SQLite: the hot statements, and connections that go to their thread once for each call.

aiosqlite alone goes there four times a statement (open a cursor, execute, fetch, close), and
each time costs more than the look-up of a record. What runs there avoids many small steps: at
each one the thread lets go of the interpreter and may wait for it behind the event loop.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any, TypeVar
from urllib.parse import quote

import aiosqlite
from sqlalchemy import URL, Table, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from biaojie.identifier import Key

from ..patterns import sought
from .direct import Beginning, LogRow, Put, Row, Rows
from .tables import IN_BLOCK, blocks, changelog, upsert

T = TypeVar("T")

_LOCK = "BEGIN IMMEDIATE"
"""What a writer says first: from here on it is the only one."""
_BUSY_WAIT_S = 0.25
"""How long SQLite itself waits for another process's lock; in its thread it cannot be cancelled."""


class _Cursor:
    """The part of a cursor that SQLAlchemy uses."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows: list[Any] = []
        self.arraysize = 1
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None

    async def __aenter__(self) -> _Cursor:
        return self

    def _run(self, call: Callable[..., sqlite3.Cursor], *arguments: Any) -> None:
        cursor = call(*arguments)
        self.description = cursor.description
        self._rows = cursor.fetchall() if cursor.description else []
        self.rowcount = cursor.rowcount
        self.lastrowid = cursor.lastrowid
        cursor.close()

    async def execute(self, *arguments: Any) -> _Cursor:
        await self._connection.run(lambda raw: self._run(raw.execute, *arguments))
        return self

    async def executemany(self, *arguments: Any) -> _Cursor:
        await self._connection.run(lambda raw: self._run(raw.executemany, *arguments))
        return self

    async def fetchall(self) -> list[Any]:
        return self._rows

    async def close(self) -> None:
        self._rows = []


_PREFIX = """
SELECT name, id, spelling, tenant, status, created, version, sequence, searchable,
       indexed_to IS NOT NULL
FROM prefixes INDEXED BY prefixes_name_key
"""
_RECORD = """
WITH w (n, prefix_id, suffix) AS (VALUES {rows})
SELECT w.n, r.status, r.version, r.sequence, r.template, r.blob, NULL
FROM w CROSS JOIN records AS r ON r.prefix_id = w.prefix_id AND r.suffix = w.suffix
"""
_BLOCK = f"""
WITH w (n, prefix_id, suffix) AS (VALUES {{rows}})
SELECT w.n, {IN_BLOCK}, b.count, b.sequence, NULL, b.blob, NULL
FROM w CROSS JOIN blocks AS b ON b.rowid = (
    SELECT rowid FROM blocks WHERE prefix_id = w.prefix_id AND first_suffix <= w.suffix
    ORDER BY first_suffix DESC LIMIT 1
) AND b.last_suffix >= w.suffix
"""  # noqa: S608  (a number)
_RANGE = """
WITH w (n, prefix_id, shape, run) AS (VALUES {rows})
SELECT w.n, w.run, r.status, r.version, r.sequence, r.written, r.template, r.blob
FROM w CROSS JOIN ranges AS r ON r.prefix_id = w.prefix_id AND r.shape = w.shape AND r.first = (
    SELECT max(first) FROM ranges
    WHERE prefix_id = w.prefix_id AND shape = w.shape AND first <= w.run
) AND r.last >= w.run
"""
RANGED = "SELECT 1 FROM ranges WHERE prefix_id = ? LIMIT 1"
_SOUGHT_MAX = 4_096
"""Ways to be a member that one statement asks for: of each it takes four parameters."""
TOUCHED = """
SELECT EXISTS (SELECT 1 FROM records WHERE prefix_id = ?1 AND suffix BETWEEN ?2 AND ?3)
    OR ?2 <= (
        SELECT last_suffix FROM blocks WHERE prefix_id = ?1 AND first_suffix <= ?3
        ORDER BY first_suffix DESC LIMIT 1
    )
"""
_ADD_BLOCK = f"INSERT INTO blocks VALUES ({', '.join('?' * len(blocks.c))})"  # noqa: S608
_RECEIPT = "SELECT key, actor, fingerprint, reply, expires FROM receipts"
FORGET = """
DELETE FROM receipts WHERE (key, actor) IN (
    SELECT key, actor FROM receipts WHERE expires < ? ORDER BY expires LIMIT ?
)
"""
_MOVE_HEAD = "UPDATE chain_head SET sequence = ?, hash = ? WHERE id = 1 AND sequence = ?"
_APPEND = f"INSERT INTO changelog VALUES ({', '.join('?' * len(changelog.c))})"  # noqa: S608
_ROWS_MAX = 256
"""Most rows in one INSERT."""


def _rounded(size: int) -> int:
    """The next power of two: few statements serve every number of keys."""
    return 1 << (size - 1).bit_length()


@cache
def prefix_statement(size: int) -> str:
    return f"{_PREFIX} WHERE name IN ({', '.join('?' * size)})"


@cache
def record_statement(size: int) -> str:
    return _RECORD.format(rows=", ".join(f"({n}, ?, ?)" for n in range(size)))


@cache
def block_statement(size: int) -> str:
    return _BLOCK.format(rows=", ".join(["(?, ?, ?)"] * size))


@cache
def range_statement(size: int) -> str:
    return _RANGE.format(rows=", ".join(["(?, ?, ?, ?)"] * size))


@cache
def receipt_statement(size: int) -> str:
    return f"{_RECEIPT} WHERE key IN ({', '.join('?' * size)})"


@cache
def _insert(table: Table, key: tuple[str, ...], rows: int) -> str:
    return upsert(table, "sqlite", *key, rows=rows)


def _padded(values: Sequence[Any], each: int = 1) -> list[Any]:
    """With as many NULLs, which equal nothing, as a rounded statement takes."""
    size = _rounded(len(values) // each) * each
    return [*values, *[None] * (size - len(values))]


def _look_up(raw: sqlite3.Connection, keys: Sequence[Key]) -> Rows:
    if not keys:
        return Rows([], [])
    names = _padded(list({key.prefix for key in keys}))
    prefixes = raw.execute(prefix_statement(len(names)), names).fetchall()
    ids = {row[0]: row[1] for row in prefixes}
    wanted: list[Any] = []
    for key in keys:
        wanted += (ids.get(key.prefix), key.suffix)
    padded = _padded(wanted, 2)
    rows = raw.execute(record_statement(len(padded) // 2), padded).fetchall()
    if len(rows) < len(keys):
        having = {row[0] for row in rows}
        without: list[Any] = []
        for n in range(len(keys)):
            if n not in having and wanted[2 * n] is not None:
                without += (n, wanted[2 * n], wanted[2 * n + 1])
        rows += _in_blocks(raw, without)
        ranges = _in_ranges(raw, without) if without else ()
        return Rows(prefixes, rows, ranges)
    return Rows(prefixes, rows)


def _in_blocks(raw: sqlite3.Connection, names: Sequence[Any]) -> list[Row]:
    """Of names given as number, prefix_id, suffix, one after the other."""
    if not names:
        return []
    names = _padded(names, 3)
    return raw.execute(block_statement(len(names) // 3), names).fetchall()


def _in_ranges(raw: sqlite3.Connection, names: Sequence[Any]) -> list[Row]:
    """Of names given as number, prefix_id, suffix, one after the other."""
    ids = names[1::3]
    ranged = {id_ for id_ in set(ids) if raw.execute(RANGED, (id_,)).fetchone()}
    if not ranged:
        return []  # as nearly always
    wanted: list[Any] = []
    for n, id_, suffix in zip(names[::3], ids, names[2::3], strict=True):
        if id_ in ranged:
            for shape, run in sought(suffix):
                wanted += (n, id_, shape, run)
    rows: list[Row] = []
    for at in range(0, len(wanted), 4 * _SOUGHT_MAX):
        some = _padded(wanted[at : at + 4 * _SOUGHT_MAX], 4)
        rows += raw.execute(range_statement(len(some) // 4), some).fetchall()
    return rows


def _touched(
    raw: sqlite3.Connection, prefix_id: int, spans: Sequence[tuple[bytes, bytes]]
) -> list[int]:
    def has(first: bytes, last: bytes) -> bool:
        return bool(raw.execute(TOUCHED, (prefix_id, first, last)).fetchone()[0])

    if raw.execute(RANGED, (prefix_id,)).fetchone():
        return list(range(len(spans)))  # shapes are no intervals of names
    if not spans or not has(spans[0][0], spans[-1][1]):
        return []  # as nearly always
    return [n for n, span in enumerate(spans) if has(*span)]


def _load(raw: sqlite3.Connection, keys: Sequence[Key], receipts: Sequence[str]) -> Beginning:
    head = raw.execute("SELECT sequence, hash FROM chain_head WHERE id = 1").fetchone()
    rows = _look_up(raw, keys)
    if not receipts:
        return Beginning(head, rows, [])
    wanted = _padded(receipts)
    found = raw.execute(receipt_statement(len(wanted)), wanted).fetchall()
    return Beginning(head, rows, found)


def _runs(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """In runs whose lengths are powers of two."""
    at = 0
    while at < len(rows):
        size = min(1 << (len(rows) - at).bit_length() - 1, _ROWS_MAX)
        yield rows[at : at + size]
        at += size


def _write(raw: sqlite3.Connection, puts: Sequence[Put], log: LogRow | None) -> None:
    for put in puts:
        for run in _runs(put.rows):
            statement = _insert(put.table, put.key, len(run))
            raw.execute(statement, tuple(chain.from_iterable(run)))
    if log is not None:
        at, hash_ = log.row[0], log.row[8]
        moved = raw.execute(_MOVE_HEAD, (at, hash_, log.before))
        assert moved.rowcount == 1, f"entry {at} does not follow the head"
        raw.execute(_APPEND, log.row)


class Connection(aiosqlite.Connection):
    """See registry.sql.direct.Direct."""

    def cursor(self) -> _Cursor:  # type: ignore[override]
        return _Cursor(self)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` in the connection's thread; stop it there too if the caller is cancelled."""
        try:
            done: T = await self._execute(work, self._conn)  # type: ignore[no-untyped-call]
        except asyncio.CancelledError:
            self._conn.interrupt()
            raise
        return done

    def is_closed(self) -> bool:
        return self._connection is None

    async def begin(self) -> None:
        await self.run(lambda raw: raw.execute(_LOCK))

    async def commit(self) -> None:
        await self.run(lambda raw: raw.execute("COMMIT"))

    async def rollback(self) -> None:
        await self.run(lambda raw: raw.execute("ROLLBACK"))

    async def look_up(self, keys: Sequence[Key]) -> Rows:
        def in_one_state(raw: sqlite3.Connection) -> Rows:
            raw.execute("BEGIN")
            try:
                return _look_up(raw, keys)
            finally:
                raw.execute("COMMIT")

        within = self._conn.in_transaction
        return await self.run((lambda raw: _look_up(raw, keys)) if within else in_one_state)

    async def load(self, keys: Sequence[Key], receipts: Sequence[str]) -> Beginning:
        return await self.run(lambda raw: _load(raw, keys, receipts))

    async def in_blocks(self, prefix_ids: Sequence[int], suffixes: Sequence[bytes]) -> list[Row]:
        named = zip(range(len(suffixes)), prefix_ids, suffixes, strict=True)
        wanted = list(chain.from_iterable(named))
        return await self.run(lambda raw: _in_blocks(raw, wanted))

    async def in_ranges(self, prefix_ids: Sequence[int], suffixes: Sequence[bytes]) -> list[Row]:
        named = zip(range(len(suffixes)), prefix_ids, suffixes, strict=True)
        wanted = list(chain.from_iterable(named))
        return await self.run(lambda raw: _in_ranges(raw, wanted))

    async def touched(self, prefix_id: int, spans: Sequence[tuple[bytes, bytes]]) -> list[int]:
        return await self.run(lambda raw: _touched(raw, prefix_id, spans))

    async def add_blocks(self, rows: Sequence[Row]) -> None:
        await self.run(lambda raw: raw.executemany(_ADD_BLOCK, rows))

    async def forget_receipts(self, now: int, limit: int) -> None:
        await self.run(lambda raw: raw.execute(FORGET, (now, limit)))

    async def write(self, puts: Sequence[Put], log: LogRow | None) -> None:
        await self.run(lambda raw: _write(raw, puts, log))


def make_engine(url: URL, *, writes: bool) -> AsyncEngine:
    """The file must exist."""
    # mode=rw: a file that is gone must be an error, not a new and empty registry
    file = f"file:{quote(url.database or '')}?mode=rw"

    async def connect() -> aiosqlite.Connection:
        connection = Connection(
            lambda: sqlite3.connect(
                file, uri=True, timeout=_BUSY_WAIT_S, isolation_level=None, check_same_thread=False
            ),
            iter_chunk_size=64,
        )
        connection._thread.daemon = True  # as SQLAlchemy does: never keeps the process alive
        return await connection

    engine = create_async_engine(
        url,
        async_creator=connect,
        isolation_level="AUTOCOMMIT",  # transactions are ours: see Connection.begin
        skip_autocommit_rollback=True,
        hide_parameters=True,  # private values and digests stay out of logs
        poolclass=NullPool,
    )

    def prepare(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        if writes:
            cursor.execute("PRAGMA page_size = 8192")  # heeded by a new file alone
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = FULL")
        else:
            cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    event.listen(engine.sync_engine, "connect", prepare)
    return engine
