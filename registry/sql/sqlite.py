"""SQLite engines, whose connections go to their thread once per statement.

aiosqlite alone goes there four times (open a cursor, execute, fetch, close), and each time
costs more than the look-up of a record.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import aiosqlite
from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

LOCK = "BEGIN IMMEDIATE"
"""What a writer says first: from here on it is the only one."""
_BUSY_WAIT_S = 0.25
"""How long SQLite itself waits for another process's lock; in its thread it cannot be cancelled."""


class _Cursor:
    """The part of a cursor that SQLAlchemy uses."""

    def __init__(self, connection: _Connection) -> None:
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


class _Connection(aiosqlite.Connection):
    def cursor(self) -> _Cursor:  # type: ignore[override]
        return _Cursor(self)

    async def run(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Do `work` in the connection's thread; stop it there too if the caller is cancelled."""
        try:
            await self._execute(lambda: work(self._conn))  # type: ignore[no-untyped-call]
        except asyncio.CancelledError:
            self._conn.interrupt()
            raise


def make_engine(url: URL, *, writes: bool, connections: int, wait_s: float) -> AsyncEngine:
    """`wait_s` bounds the wait for a free connection. The file must exist."""
    # mode=rw: a file that is gone must be an error, not a new and empty registry
    file = f"file:{quote(url.database or '')}?mode=rw"

    async def connect() -> aiosqlite.Connection:
        connection = _Connection(
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
        isolation_level=None if writes else "AUTOCOMMIT",
        hide_parameters=True,  # private values and digests stay out of logs
        # The writer says BEGIN itself, which SQLAlchemy takes for autocommit.
        skip_autocommit_rollback=not writes,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=wait_s,
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
