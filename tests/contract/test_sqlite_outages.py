"""SQLite locked by another process, full, gone or slow: calls end in time, and work again after."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from biaojie.errors import StorageFull, TemporarilyUnavailable
from biaojie.identifier import Key
from biaojie.record import Value
from registry.sql import SqlStore, open_store
from registry.sql.faults import Fault, fault_of
from tests.contract.sample import PREFIX, append, home, put, record

READ_S, WRITE_S = 0.8, 1.5
SLACK_S = 3.0
"""What a busy machine may add to a timeout."""
KEY = Key(PREFIX, b"SN1")

HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
async def store(sqlite_url: str) -> AsyncIterator[SqlStore]:
    opened = await open_store(sqlite_url, read_timeout_s=READ_S, write_timeout_s=WRITE_S)
    await home(opened)
    await put(opened, record("SN1"))
    yield opened
    await opened.close()


def file_of(url: str) -> str:
    return make_url(url).database or ""


@asynccontextmanager
async def held(url: str, *statements: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Another process that has run the statements and keeps what locks they took."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        HOLDER,
        file_of(url),
        *statements,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 10) == b"held\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def write(store: SqlStore, suffix: str = "SN2") -> None:
    async with store.transaction() as transaction:
        await append(transaction, record(suffix))


async def is_unavailable(call: Awaitable[object], seconds: float) -> None:
    start = time.monotonic()
    with pytest.raises(TemporarilyUnavailable):
        await call
    assert time.monotonic() - start < seconds + SLACK_S


async def test_a_lock_held_elsewhere_stops_writes_in_time_and_no_reads(
    store: SqlStore, sqlite_url: str
) -> None:
    async with held(sqlite_url, "BEGIN IMMEDIATE"):
        writing = [asyncio.create_task(write(store, f"W{n}")) for n in range(3)]
        assert (await store.look_up([KEY]))[0].record == record("SN1")
        for task in writing:
            await is_unavailable(task, WRITE_S)
    await write(store)
    assert (await store.head())[0] == 1
    assert store.connections()["used"] == 0


async def test_a_write_waits_for_a_lock_that_is_let_go(sqlite_url: str) -> None:
    store = await open_store(sqlite_url, write_timeout_s=10)
    await home(store)
    async with held(sqlite_url, "BEGIN IMMEDIATE") as process:
        writing = asyncio.create_task(write(store))
        await asyncio.wait([writing], timeout=0.4)
        assert not writing.done()
        process.kill()
        await writing
    await store.close()


async def test_a_file_locked_for_itself_by_another_process(sqlite_url: str) -> None:
    exclusive = ["PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE"]
    async with held(sqlite_url, *exclusive):
        opening = open_store(sqlite_url, read_timeout_s=READ_S, write_timeout_s=WRITE_S)
        await is_unavailable(opening, READ_S + WRITE_S)
    store = await open_store(sqlite_url)
    await home(store)
    await store.close()


async def test_cancelled_while_waiting_for_the_lock(store: SqlStore, sqlite_url: str) -> None:
    async with held(sqlite_url, "BEGIN IMMEDIATE"):
        task = asyncio.create_task(write(store))
        await asyncio.wait([task], timeout=0.1)
        task.cancel()
        await asyncio.wait([task], timeout=SLACK_S)
        assert task.cancelled()
    await write(store)


async def test_a_full_disk_is_storage_full_and_leaves_nothing(store: SqlStore) -> None:
    async def limit(pages: int) -> None:
        async with store._pools.write() as connection:
            await connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    big = [record(f"B{n}", values=(Value(1, "URL", bytes(50_000)),)) for n in range(20)]
    await limit(1)  # SQLite takes the size it has for the least
    with pytest.raises(StorageFull):
        await put(store, record("first"), *big)
    assert await store.list_records(PREFIX, None, 100) == [record("SN1")]
    await limit(1_000_000)
    await put(store, *big)
    assert len(await store.list_records(PREFIX, None, 100)) == 21


async def test_a_commit_that_cannot_be_written_has_an_unknown_outcome(
    sqlite_url: str, tmp_path: Path
) -> None:
    """In WAL it is the commit that writes the pages; here it meets a file size limit."""
    program = """
import asyncio, resource, signal, sys
sys.path.insert(0, ".")
from biaojie.errors import BiaojieError
from biaojie.record import Value
from registry.sql import open_store
from tests.contract.sample import PREFIX, home, put, record

async def main():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = await open_store(sys.argv[1])
    await home(store)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    big = [record(f"B{n}", values=(Value(1, "URL", bytes(50_000)),)) for n in range(20)]
    try:
        await put(store, *big)
    except BiaojieError as error:
        print(error.code, dict(error.fields))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(len(await store.list_records(PREFIX, None, 100)))
    await put(store, *big)
    print(len(await store.list_records(PREFIX, None, 100)))
    await store.close()

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, sqlite_url, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert out.decode().splitlines() == [
        "temporarily-unavailable {'outcome': 'unknown'}",
        "0",
        "20",
    ]


async def test_a_read_only_file_is_storage_full(sqlite_url: str) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///file:{file_of(sqlite_url)}?mode=ro&uri=true")
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError) as raised:
            await connection.exec_driver_sql("DELETE FROM records")
    await engine.dispose()
    assert fault_of(raised.value) is Fault.FULL


async def test_a_file_that_is_gone_is_unavailable_and_not_made_anew(
    sqlite_url: str, tmp_path: Path
) -> None:
    store = await open_store(sqlite_url, read_timeout_s=READ_S, write_timeout_s=WRITE_S)
    await store._pools.close()  # so that the next call opens the file
    os.rename(file_of(sqlite_url), tmp_path / "away")
    await is_unavailable(store.look_up([KEY]), READ_S)
    await is_unavailable(write(store), WRITE_S)
    assert not os.path.exists(file_of(sqlite_url))  # noqa: ASYNC240
    os.rename(tmp_path / "away", file_of(sqlite_url))
    await home(store)
    await write(store)
    await store.close()


async def test_a_read_that_takes_too_long_is_stopped(store: SqlStore) -> None:
    endless = "WITH RECURSIVE n (i) AS (VALUES (0) UNION ALL SELECT i + 1 FROM n)"
    busy = time.process_time()
    slow = store._pools.read(lambda c: c.exec_driver_sql(f"{endless} SELECT max(i) FROM n"))
    await is_unavailable(slow, READ_S)
    used = time.process_time() - busy
    await asyncio.sleep(0.3)
    assert time.process_time() - busy - used < 0.15  # its thread has stopped too
    assert (await store.look_up([KEY]))[0].record == record("SN1")


async def test_a_transaction_that_takes_too_long_is_ended(store: SqlStore) -> None:
    async def dawdle() -> None:
        async with store.transaction() as transaction:
            await append(transaction, record("SN2"))
            await asyncio.Event().wait()

    await is_unavailable(dawdle(), WRITE_S)
    assert (await store.head())[0] == 0
    await write(store)


async def test_more_readers_than_connections_wait_their_turn(sqlite_url: str) -> None:
    store = await open_store(sqlite_url, pool_size=1)
    await home(store)
    await put(store, record("SN1"))
    found = await asyncio.gather(*(store.look_up([KEY]) for _ in range(50)))
    assert [f[0].record for f in found] == [record("SN1")] * 50
    assert store.connections() == {"used": 0, "open": 2}
    await store.close()


async def test_acknowledged_writes_are_in_the_file_when_the_process_dies(sqlite_url: str) -> None:
    program = """
import asyncio, os, signal, sys
sys.path.insert(0, ".")
from registry.sql import open_store
from tests.contract.sample import home, put, record

async def main():
    store = await open_store(sys.argv[1])
    await home(store)
    await put(store, record("kept"))
    async with store.transaction() as transaction:
        await transaction.purge_records([record("kept").identifier.key()], 2)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, sqlite_url)
    assert await asyncio.wait_for(process.wait(), 30) == -9
    store = await open_store(sqlite_url)
    assert await store.list_records(PREFIX, None, 10) == [record("kept")]
    await store.close()
    check = sqlite3.connect(file_of(sqlite_url)).execute("PRAGMA integrity_check").fetchone()
    assert check == ("ok",)
