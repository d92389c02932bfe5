"""What the bare drivers can do: the limit that the registry's rates are held against.

Only the driver and an event loop: concurrent callers, each with one request outstanding, gather
into one statement, the next of which leaves when the last has returned. Values of 250 octets,
prepared statements, every commit on disk before it is answered. Each function makes a scratch
schema and removes it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

VALUE_BYTES = 250
READ_KEYS = 100_000
BATCH_MAX = 512
READ_CONNECTIONS = 2
TIMEOUT_S = 10.0
SCHEMA = "biaojie_limits"
_BLOCK = 10_000


@dataclass(frozen=True, slots=True)
class Limit:
    """`requests` answered in `seconds`; `cpu_s` is this process's user and system time."""

    requests: int
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


Send = Callable[[list[bytes]], Awaitable[Sequence[bytes | None]]]


class _Gather:
    """Callers hand in a name and wait; each lane sends all that wait as one statement."""

    def __init__(self, lanes: Sequence[Send]) -> None:
        self._lanes = lanes
        self._idle = list(lanes)
        self._waiting: dict[bytes, asyncio.Future[bytes | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, name: bytes) -> bytes | None:
        """Names asked for at the same moment must differ."""
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._waiting[name] = future
        if self._idle:
            task = asyncio.create_task(self._drain(self._idle.pop()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _drain(self, lane: Send) -> None:
        try:
            while self._waiting:
                batch = dict(itertools.islice(self._waiting.items(), BATCH_MAX))
                for name in batch:
                    del self._waiting[name]
                try:
                    answers = await lane(list(batch))
                except Exception as error:
                    for future in batch.values():
                        if not future.done():
                            future.set_exception(error)
                    continue
                for future, answer in zip(batch.values(), answers, strict=True):
                    if not future.done():
                        future.set_result(answer)
        finally:
            self._idle.append(lane)


async def _measure(callers: int, seconds: float, call: Callable[[int], Awaitable[None]]) -> Limit:
    """`callers` tasks that `call` (with their number) again and again for `seconds`."""
    done = 0
    end = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await call(number)
            done += 1

    started, busy = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    return Limit(done, time.perf_counter() - started, time.process_time() - busy)


@asynccontextmanager
async def _scratch(dsn: str, connections: int) -> AsyncIterator[list[Any]]:
    """Connections to a PostgreSQL URL (also in the form the node takes), in a schema of our own."""
    dsn = dsn.replace("postgresql+asyncpg://", "postgresql://")
    schema = f"{SCHEMA}_{os.getpid()}_{threading.get_native_id()}"
    settings = {"search_path": schema, "application_name": "biaojie-limits", "jit": "off"}
    opened: list[Any] = []
    try:
        for _ in range(connections):
            opened.append(
                await asyncpg.connect(
                    dsn, timeout=TIMEOUT_S, command_timeout=60.0, server_settings=settings
                )
            )
        await opened[0].execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        await opened[0].execute(f"CREATE SCHEMA {schema}")
        yield opened
    finally:
        if opened and not opened[0].is_closed():
            await opened[0].execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        for connection in opened:
            await connection.close(timeout=TIMEOUT_S)


_TABLE = """
CREATE TABLE records (
    prefix int NOT NULL, name bytea NOT NULL, value bytea NOT NULL, PRIMARY KEY (prefix, name)
)
"""
_READ = """
SELECT w.n, r.value FROM unnest($1::bytea[]) WITH ORDINALITY AS w (name, n)
JOIN LATERAL (SELECT value FROM records WHERE prefix = 1 AND name = w.name OFFSET 0) AS r ON true
"""
_WRITE = "INSERT INTO records SELECT 1, * FROM unnest($1::bytea[], $2::bytea[])"


def _name(number: int) -> bytes:
    return b"SN%08d" % number


async def gathered_reads(dsn: str, callers: int, seconds: float) -> Limit:
    """Single reads by key out of 100,000 warm rows, gathered over two connections."""
    async with _scratch(dsn, READ_CONNECTIONS) as connections:
        await connections[0].execute(_TABLE)
        for first in range(0, READ_KEYS, _BLOCK):
            rows = [
                (1, _name(number), os.urandom(VALUE_BYTES))
                for number in range(first, first + _BLOCK)
            ]
            await connections[0].copy_records_to_table(
                "records", records=rows, columns=["prefix", "name", "value"]
            )
        await connections[0].execute("ANALYZE records")

        def lane(read: Any) -> Send:
            async def send(names: list[bytes]) -> list[bytes | None]:
                values: list[bytes | None] = [None] * len(names)
                for at, value in await read.fetch(names):
                    values[at - 1] = value
                return values

            return send

        gather = _Gather([lane(await c.prepare(_READ)) for c in connections])
        await connections[0].fetchval("SELECT count(value) FROM records")
        chosen = random.Random(1)  # noqa: S311  (keys to read, not secrets)

        async def call(number: int) -> None:
            # A share of the names for each caller, so that none is asked twice at one moment.
            at = chosen.randrange(READ_KEYS // callers) * callers + number
            value = await gather.ask(_name(at))
            assert value is not None
            assert len(value) == VALUE_BYTES

        return await _measure(callers, seconds, call)


async def group_commit(dsn: str, callers: int, seconds: float) -> Limit:
    """Single durable inserts, gathered into one statement and one commit at a time.

    Raises RuntimeError on a server that acknowledges before its disk has the data.
    """
    async with _scratch(dsn, 1) as (connection,):
        for setting in ("fsync", "synchronous_commit"):
            if await connection.fetchval(f"SHOW {setting}") == "off":
                raise RuntimeError(f"{setting} is off: its commits are not durable")
        await connection.execute(_TABLE)
        write = await connection.prepare(_WRITE)

        async def send(names: list[bytes]) -> list[bytes | None]:
            await write.fetch(names, [os.urandom(VALUE_BYTES) for _ in names])
            return [None] * len(names)

        gather = _Gather([send])
        numbers = itertools.count()

        async def call(_number: int) -> None:
            await gather.ask(_name(next(numbers)))

        limit = await _measure(callers, seconds, call)
        assert await connection.fetchval("SELECT count(*) FROM records") == limit.requests
        return limit
