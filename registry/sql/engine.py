"""Connections: how they are opened, bounded in time, retried, and what their errors mean.

Each store has two pools: readers, in autocommit and read-only, and one writer. Every use of a
connection goes through `bounded` (the deadline) and `attempts` (the only place that retries).
A connection whose statement did not end as planned is closed, never given back to its pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeVar
from urllib.parse import quote

import asyncpg
from sqlalchemy import URL, event, exc, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import QueuePool

from biaojie.errors import StorageFull, TemporarilyUnavailable, Text

T = TypeVar("T")

LOCK_NUMBER = 0x6269616F6A6965
"""The PostgreSQL advisory lock that all writers of one registry take ("biaojie")."""
_GRACE_S = 0.5
"""After its deadline a statement gets this long to close its connection."""
_BUSY_WAIT_S = 0.25
"""SQLite waits this long for a lock in its own thread, where it cannot be cancelled."""
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. A transaction has `write_s` in all, its wait for other writers included."""

    connect_s: float = 2.0
    read_s: float = 2.0
    write_s: float = 5.0
    readers: int = 4


class Fault(Enum):
    BUSY = auto()  # another process holds the file's lock: ask again until the deadline
    BROKEN = auto()  # the connection is dead, a new one may work
    CONFLICT = auto()  # the database asks for the statement to be repeated
    FULL = auto()  # no space, or read-only
    OURS = auto()  # a mistake in this program
    OTHER = auto()


_SQLITE = {5: Fault.BUSY, 6: Fault.BUSY, 8: Fault.FULL, 13: Fault.FULL} | dict.fromkeys(
    (1, 19, 20, 21, 25), Fault.OURS
)
_SQLSTATE = {
    "53100": Fault.FULL,
    "25006": Fault.FULL,
    "40001": Fault.CONFLICT,
    "40P01": Fault.CONFLICT,
    "0A000": Fault.CONFLICT,  # cached plan outdated by a migration
    "42501": Fault.OTHER,  # rights on a table taken away
}
_SQLSTATE_CLASS = {"22": Fault.OURS, "23": Fault.OURS, "42": Fault.OURS}


def fault_of(error: BaseException) -> Fault:
    """What a driver's or SQLAlchemy's error means to us."""
    if isinstance(error, exc.DBAPIError):
        if error.connection_invalidated:
            return Fault.BROKEN
        sqlite_code = getattr(error.orig, "sqlite_errorcode", None)
        if sqlite_code is not None:
            return _SQLITE.get(sqlite_code & 0xFF, Fault.OTHER)
        sqlstate = getattr(error.orig, "sqlstate", None) or ""
        return _SQLSTATE.get(sqlstate) or _SQLSTATE_CLASS.get(sqlstate[:2], Fault.OTHER)
    outside = (OSError, TimeoutError, exc.TimeoutError, exc.PendingRollbackError)
    return Fault.OTHER if isinstance(error, outside) else Fault.OURS


_UNREACHABLE = Text("The registry's database does not answer.", "注册库的数据库没有响应。")
_FULL = Text(
    "The registry's database has no space left or is read-only.",
    "注册库的数据库空间已满或为只读。",
)
_SLOW = Text("The registry's database did not answer in time.", "注册库的数据库未在限时内响应。")


@contextmanager
def translated() -> Iterator[None]:
    """Turn whatever keeps the database from answering into the project's errors."""
    try:
        yield
    except (exc.SQLAlchemyError, OSError) as error:
        fault = fault_of(error)
        if fault is Fault.OURS:
            raise
        if fault is Fault.FULL:
            raise StorageFull(*_FULL) from error
        raise TemporarilyUnavailable(*_UNREACHABLE) from error


@asynccontextmanager
async def bounded(seconds: float) -> AsyncIterator[dict[str, str]]:
    """Raise TemporarilyUnavailable if the block has not ended after `seconds`.

    What the block puts into the dictionary it is given becomes fields of that error.
    """
    fields: dict[str, str] = {}
    # The first timeout cancels the statement; SQLAlchemy then closes the connection, and
    # where even that hangs the second one cuts it off.
    last, first = asyncio.timeout(seconds + _GRACE_S), asyncio.timeout(seconds)
    try:
        async with last, first:
            yield fields
    except TimeoutError as error:
        if first.expired() or last.expired():
            raise TemporarilyUnavailable(*_SLOW, **fields) from error
        raise


async def attempts(attempt: Callable[[], Awaitable[T]]) -> T:
    """Run `attempt`, again where that can help. Call it only on what can be repeated."""
    left = _TRIES
    while True:
        try:
            return await attempt()
        except exc.DBAPIError as error:
            fault = fault_of(error)
            if fault is not Fault.BUSY:  # for which the deadline is limit enough
                left -= 1
            if fault not in (Fault.BUSY, Fault.BROKEN, Fault.CONFLICT) or not left:
                raise
        await asyncio.sleep(0.005)


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    async def close(self, *, timeout: float | None = None) -> None:
        """Hang up. Waiting for a frozen server to say goodbye would outlast the deadline."""
        self.terminate()


def read_url(text: str) -> URL:
    """A database URL with the driver filled in; raises ValueError on another kind."""
    url = make_url(text)
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
    kind = url.get_backend_name()
    if kind not in drivers or (kind == "sqlite" and url.database in (None, "", ":memory:")):
        raise ValueError(f"not a database this program knows: {kind}")
    return url.set(drivername=drivers[kind])


def _sqlite(url: URL, limits: Limits, writes: bool) -> AsyncEngine:
    assert url.database is not None
    # mode=rw: a file that is gone must be an error, not a new empty registry
    url = url.set(database=f"file:{quote(url.database)}").update_query_dict(
        {"mode": "rw", "uri": "true"}
    )
    engine = create_async_engine(
        url,
        isolation_level=None if writes else "AUTOCOMMIT",
        # The writer says BEGIN itself, which SQLAlchemy takes for autocommit.
        skip_autocommit_rollback=not writes,
        pool_size=1 if writes else limits.readers,
        max_overflow=0,
        pool_timeout=limits.write_s if writes else limits.read_s,
        connect_args={"timeout": _BUSY_WAIT_S, "isolation_level": None},
    )

    def prepare(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        if writes:
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = FULL")
        else:
            cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    event.listen(engine.sync_engine, "connect", prepare)
    return engine


def _postgresql(url: URL, limits: Limits, writes: bool) -> AsyncEngine:
    seconds = limits.write_s if writes else limits.read_s
    settings = {
        "application_name": "biaojie",
        # Should this process freeze, the server frees what it holds.
        "statement_timeout": f"{int(seconds * 1000)}",
        "idle_in_transaction_session_timeout": f"{int(seconds * 1000)}",
        "client_connection_check_interval": "1000",
        "default_transaction_read_only": "off" if writes else "on",
        # The only joins are keyed look-ups: the primary key, row by row, is always right.
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
        "jit": "off",
    }
    return create_async_engine(
        url,
        isolation_level=None if writes else "AUTOCOMMIT",
        skip_autocommit_rollback=True,
        pool_size=1 if writes else limits.readers,
        max_overflow=0,
        pool_timeout=seconds,
        connect_args={
            "timeout": limits.connect_s,
            "connection_class": _Connection,
            "server_settings": settings,
        },
    )


class Pools:
    """The readers and the writer of one database."""

    def __init__(self, url: URL, limits: Limits) -> None:
        self.limits = limits
        self.dialect = url.get_backend_name()
        make = {"sqlite": _sqlite, "postgresql": _postgresql}[self.dialect]
        self._reader = make(url, limits, writes=False)
        self._writer = make(url, limits, writes=True)
        self._lock = {
            "sqlite": "BEGIN IMMEDIATE",
            "postgresql": f"SELECT pg_advisory_xact_lock({LOCK_NUMBER})",
        }[self.dialect]

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run read-only `work` on a connection; may run it again after a failure."""

        async def attempt() -> T:
            connection = await self._reader.connect()
            done = False
            try:
                result = await work(connection)
                done = True
                return result
            finally:
                if not done:
                    await connection.invalidate()
                await connection.close()

        async with bounded(self.limits.read_s):
            with translated():
                return await attempts(attempt)

    async def _begin(self) -> AsyncConnection:
        connection = await self._writer.connect()
        begun = False
        try:
            await connection.begin()
            await connection.exec_driver_sql(self._lock)
            begun = True
            return connection
        finally:
            if not begun:
                await connection.invalidate()
                await connection.close()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that holds the one write lock; commits, or rolls back on any error."""
        async with bounded(self.limits.write_s) as fields:
            with translated():
                connection = await attempts(self._begin)
            settled = False
            try:
                try:
                    yield connection
                except Exception:
                    with suppress(exc.SQLAlchemyError, OSError):
                        await connection.rollback()
                        settled = True
                    raise
                fields["outcome"] = "unknown"
                await _commit(connection)
                settled = True
            finally:
                if not settled:
                    await connection.invalidate()
                await connection.close()

    def connections(self) -> dict[str, int]:
        """Open and used connections, readers and writer together."""
        pools = [engine.pool for engine in (self._reader, self._writer)]
        counted = [pool for pool in pools if isinstance(pool, QueuePool)]
        used = sum(pool.checkedout() for pool in counted)
        return {"used": used, "open": used + sum(pool.checkedin() for pool in counted)}

    async def close(self) -> None:
        await self._reader.dispose()
        await self._writer.dispose()


async def _commit(connection: AsyncConnection) -> None:
    try:
        await connection.commit()
    except (exc.SQLAlchemyError, OSError) as error:
        if fault_of(error) is Fault.FULL:  # said by the database itself: nothing was written
            raise StorageFull(*_FULL) from error
        raise TemporarilyUnavailable(
            "The database went away during the commit; the change may or may not be kept.",
            "数据库在提交时中断；更改可能已保存，也可能未保存。",
            outcome="unknown",
        ) from error
