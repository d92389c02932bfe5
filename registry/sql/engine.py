"""Two pools for each database, and every use of a connection bounded in time.

Readers are in autocommit and read-only; there is one writer. `bounded` is the deadline,
`attempts` the only place that retries. A connection whose use did not end as planned is
closed, never given back to its pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import URL, exc, make_url
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import QueuePool

from biaojie.errors import StorageFull, TemporarilyUnavailable

from . import postgresql, sqlite
from .faults import FULL, SLOW, UNDECIDED, Fault, fault_of, translated

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
        except exc.DBAPIError as error:
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


class Pools:
    """The readers and the writer of one database."""

    def __init__(self, url: URL, limits: Limits) -> None:
        self._limits = limits
        if url.get_backend_name() == "sqlite":
            self._lock = sqlite.LOCK
            self._reader = sqlite.make_engine(
                url, writes=False, connections=limits.readers, wait_s=limits.read_s
            )
            self._writer = sqlite.make_engine(
                url, writes=True, connections=1, wait_s=limits.write_s
            )
        else:
            self._lock = postgresql.LOCK
            self._reader = postgresql.make_engine(
                url,
                writes=False,
                connections=limits.readers,
                wait_s=limits.read_s,
                connect_s=limits.connect_s,
                statement_s=limits.read_s,
            )
            self._writer = postgresql.make_engine(
                url,
                writes=True,
                connections=1,
                wait_s=limits.write_s,
                connect_s=limits.connect_s,
                statement_s=limits.write_s,
            )

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

        async with bounded(self._limits.read_s):
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
        async with bounded(self._limits.write_s) as fields:
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
    except Exception as error:
        if fault_of(error) is Fault.FULL:  # said by the database itself: nothing was written
            raise StorageFull(*FULL) from error
        raise TemporarilyUnavailable(*UNDECIDED, outcome="unknown") from error
