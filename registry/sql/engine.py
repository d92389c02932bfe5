"""Readers and one writer for each database, and every use of a connection bounded in time.

Readers are in autocommit and read-only. `bounded` is the deadline, `attempts` the only place
that retries. A connection whose use did not end as planned is closed, never used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sqlalchemy import URL, exc, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from biaojie.errors import StorageFull, TemporarilyUnavailable

from .direct import Direct, direct
from .faults import FULL, SLOW, UNDECIDED, Fault, drivers, fault_of, translated

T = TypeVar("T")

_GRACE_S = 0.5
"""After its deadline a statement gets this long to close its connection."""
_TRIES = 3
_PAUSE_S = 0.005


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. A transaction has `write_s` in all, its wait for other writers included."""

    connect_s: float = 2.0
    read_s: float = 2.0
    write_s: float = 5.0
    readers: int = 4


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
            raise TemporarilyUnavailable(*SLOW, **fields) from error
        raise


async def attempts(attempt: Callable[[], Awaitable[T]]) -> T:
    """Run `attempt`, again where that can help. Call it only on what can be repeated."""
    left = _TRIES
    while True:
        try:
            return await attempt()
        except drivers() as error:
            fault = fault_of(error)
            if fault is not Fault.BUSY:  # for which the deadline is limit enough
                left -= 1
            if fault not in (Fault.BUSY, Fault.BROKEN, Fault.CONFLICT) or not left:
                raise
        await asyncio.sleep(_PAUSE_S)


_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
_PARAMETERS = {"sqlite": set[str](), "postgresql": {"host", "port", "ssl", "target_session_attrs"}}


def read_url(text: str) -> URL:
    """A database URL with the driver filled in; raises ValueError on one we cannot use.

    Parameters for PostgreSQL: host (a directory for a Unix socket), port, ssl or sslmode
    (disable to verify-full), target_session_attrs. None for SQLite.
    """
    try:
        url = make_url(text)
    except exc.ArgumentError as error:
        raise ValueError("not a database URL") from error
    kind = url.get_backend_name()
    if kind not in _DRIVERS or (kind == "sqlite" and url.database in (None, "", ":memory:")):
        raise ValueError(f"not a database this program knows: {kind}")
    if kind == "postgresql" and "sslmode" in url.query:
        mode = url.query["sslmode"]
        url = url.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})
    unknown = set(url.query) - _PARAMETERS[kind]
    if unknown:
        raise ValueError(f"not a parameter of a {kind} database: {', '.join(sorted(unknown))}")
    return url.set(drivername=_DRIVERS[kind])


class _Pool:
    """At most `size` connections of an engine, kept open and ready.

    SQLAlchemy's own pool makes and unmakes its objects at each use, which costs more than
    the hot statements do.
    """

    def __init__(self, engine: AsyncEngine, size: int) -> None:
        self._engine = engine
        self._turns = asyncio.Semaphore(size)
        self._idle: list[AsyncConnection] = []
        self.used = 0

    @property
    def open(self) -> int:
        return self.used + len(self._idle)

    async def take(self) -> AsyncConnection:
        await self._turns.acquire()
        self.used += 1
        try:
            while self._idle:
                connection = self._idle.pop()
                if not direct(connection).is_closed():
                    return connection
                await _hang_up(connection)
            return await self._engine.connect()
        except BaseException:
            self._leave()
            raise

    async def give(self, connection: AsyncConnection, *, sound: bool) -> None:
        """Back. Unless it is `sound`, it is closed."""
        try:
            if sound and connection.in_transaction():
                # What SQLAlchemy takes for one; to the database it means nothing.
                await connection.rollback()
            if not sound:
                await _hang_up(connection)
            else:
                self._idle.append(connection)
        finally:
            self._leave()

    def _leave(self) -> None:
        self.used -= 1
        self._turns.release()

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()
        await self._engine.dispose()


async def _hang_up(connection: AsyncConnection) -> None:
    await connection.invalidate()
    await connection.close()


class Reach(Protocol):
    """What a store needs of a database; see `Pools`."""

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T: ...

    def write(self) -> AbstractAsyncContextManager[AsyncConnection]: ...

    def connections(self) -> dict[str, int]: ...

    async def close(self) -> None: ...


class Pools:
    """The readers and the writer of one database."""

    def __init__(self, url: URL, limits: Limits, *, distributed: bool = False) -> None:
        """`distributed` is the registry over the workers of Citus."""
        self._limits = limits

        def engine(writes: bool) -> AsyncEngine:
            if url.get_backend_name() == "sqlite":
                from . import sqlite

                return sqlite.make_engine(url, writes=writes)
            from . import citus, postgresql

            return postgresql.make_engine(
                url,
                writes=writes,
                connect_s=limits.connect_s,
                statement_s=limits.write_s if writes else limits.read_s,
                connection_class=(citus if distributed else postgresql).Connection,
            )

        self._readers = _Pool(engine(writes=False), limits.readers)
        self._writer = _Pool(engine(writes=True), 1)

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run read-only `work` on a connection; may run it again after a failure."""

        async def attempt() -> T:
            connection = await self._readers.take()
            done = False
            try:
                result = await work(connection)
                done = True
                return result
            finally:
                await self._readers.give(connection, sound=done)

        async with bounded(self._limits.read_s):
            with translated():
                return await attempts(attempt)

    async def _begin(self) -> AsyncConnection:
        connection = await self._writer.take()
        begun = False
        try:
            await direct(connection).begin()
            begun = True
            return connection
        finally:
            if not begun:
                await self._writer.give(connection, sound=False)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that holds the one write lock; commits, or rolls back on any error."""
        async with bounded(self._limits.write_s) as fields:
            with translated():
                connection = await attempts(self._begin)
            settled = False
            try:
                driver = direct(connection)
                try:
                    yield connection
                except Exception:
                    with suppress(*drivers()):
                        await driver.rollback()
                        settled = True
                    raise
                fields["outcome"] = "unknown"
                await _commit(driver)
                settled = True
            finally:
                await self._writer.give(connection, sound=settled)

    def connections(self) -> dict[str, int]:
        """Open and used connections, readers and writer together."""
        pools = (self._readers, self._writer)
        return {"used": sum(p.used for p in pools), "open": sum(p.open for p in pools)}

    async def close(self) -> None:
        await self._readers.close()
        await self._writer.close()


async def _commit(driver: Direct) -> None:
    try:
        await driver.commit()
    except Exception as error:
        if fault_of(error) is Fault.FULL:  # said by the database itself: nothing was written
            raise StorageFull(*FULL) from error
        raise TemporarilyUnavailable(*UNDECIDED, outcome="unknown") from error
