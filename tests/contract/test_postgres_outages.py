"""PostgreSQL killed, frozen, full or hanging: calls end in time, and work again after it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import make_url

from biaojie.errors import StorageFull, TemporarilyUnavailable
from biaojie.identifier import Key
from registry.sql import SqlStore, migrate, open_store
from tests.contract.sample import PREFIX, append, home, put, record
from tests.postgres import Postgres, run_apart

READ_S, WRITE_S = 0.8, 1.5
SLACK_S = 3.0
"""What a busy machine may add to a timeout."""
KEY = Key(PREFIX, b"SN1")


@pytest.fixture(scope="module")
def own() -> Iterator[Postgres]:
    """A server these tests may kill and freeze."""
    server = Postgres()
    run_apart(migrate(server.url()))
    yield server
    server.close()


@pytest.fixture
async def store(own: Postgres) -> AsyncIterator[SqlStore]:
    """With one record, SN1, and the short timeouts above."""
    patient = await open_store(own.url(), write_timeout_s=20)
    await home(patient)
    await put(patient, record("SN1"))
    async with patient.transaction() as transaction:
        await transaction.purge_records([Key(PREFIX, b"SN2")], 2)
    await patient.close()
    opened = await open_store(
        own.url(), connect_timeout_s=READ_S, read_timeout_s=READ_S, write_timeout_s=WRITE_S
    )
    yield opened
    await opened.close()


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds + SLACK_S


async def write(store: SqlStore, suffix: str = "SN2") -> None:
    async with store.transaction() as transaction:
        await append(transaction, record(suffix))


async def is_unavailable(call: Awaitable[object], seconds: float) -> None:
    async with within(seconds):
        with pytest.raises(TemporarilyUnavailable):
            await call


async def works(store: SqlStore) -> None:
    assert (await store.look_up([KEY]))[0].record == record("SN1")
    await write(store)


async def eventually(check: Callable[[], Awaitable[bool]], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not await check():
        assert time.monotonic() < deadline, "still not after the time allowed"
        await asyncio.sleep(0.05)


async def test_every_call_fails_in_time_while_the_server_is_down(
    own: Postgres, store: SqlStore
) -> None:
    await asyncio.gather(*(store.look_up([KEY]) for _ in range(8)))
    await asyncio.to_thread(own.kill)
    try:
        for _ in range(2):
            await is_unavailable(store.look_up([KEY]), READ_S)
            await is_unavailable(store.list_records(PREFIX, None, 1), READ_S)
            await is_unavailable(store.find_prefixes([PREFIX]), READ_S)
            await is_unavailable(store.list_prefixes(None, 1), READ_S)
            await is_unavailable(store.find_key(bytes(32)), READ_S)
            await is_unavailable(store.find_keys_by_id(["a"]), READ_S)
            await is_unavailable(store.list_keys(None, 1), READ_S)
            await is_unavailable(store.list_changes(0, 1), READ_S)
            await is_unavailable(store.head(), READ_S)
            await is_unavailable(store.newest_record_sequence(), READ_S)
            await is_unavailable(write(store), WRITE_S)
        with pytest.raises(TemporarilyUnavailable):
            await open_store(own.url())
    finally:
        await asyncio.to_thread(own.start)
    await works(store)
    assert store.connections()["used"] == 0


async def test_a_restart_between_calls_is_not_noticed(own: Postgres, store: SqlStore) -> None:
    await asyncio.gather(*(store.look_up([KEY]) for _ in range(8)))
    await asyncio.to_thread(own.kill)
    await asyncio.to_thread(own.start)
    found = await asyncio.gather(*(store.look_up([KEY]) for _ in range(8)), write(store))
    assert found[0][0].record == record("SN1")


async def test_connections_ended_by_the_server_are_not_noticed(
    own: Postgres, store: SqlStore
) -> None:
    ours = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name='biaojie'"
    for _ in range(2):
        await asyncio.gather(*(store.look_up([KEY]) for _ in range(8)))
        await asyncio.to_thread(own.execute, ours)
        await works(store)


async def test_every_call_ends_in_time_while_the_server_is_frozen(
    own: Postgres, store: SqlStore
) -> None:
    await asyncio.gather(*(store.look_up([KEY]) for _ in range(8)))
    own.freeze()
    try:
        async with within(WRITE_S + 0.5):
            results = await asyncio.gather(
                *(store.look_up([KEY]) for _ in range(20)),
                *(write(store) for _ in range(5)),
                return_exceptions=True,
            )
        assert {type(result) for result in results} == {TemporarilyUnavailable}
        await is_unavailable(store.head(), READ_S)
        await is_unavailable(write(store), WRITE_S)
    finally:
        own.thaw()
    await works(store)
    await asyncio.gather(*(store.look_up([KEY]) for _ in range(8)))
    assert store.connections()["used"] == 0


async def test_a_frozen_postmaster_alone_stops_only_new_connections(
    own: Postgres, store: SqlStore
) -> None:
    await works(store)
    own.signal(signal.SIGSTOP)
    try:
        await works(store)
        with pytest.raises(TemporarilyUnavailable):
            await open_store(own.url(), connect_timeout_s=0.3, read_timeout_s=0.3)
    finally:
        own.signal(signal.SIGCONT)


@pytest.mark.parametrize(("how", "write_s"), [("kill", 20.0), ("freeze", WRITE_S)])
async def test_a_commit_cut_off_says_that_its_outcome_is_unknown(
    own: Postgres, store: SqlStore, how: str, write_s: float
) -> None:
    patient = await open_store(own.url(), write_timeout_s=write_s)
    committing = 0.0

    async def commit_into_nothing() -> None:
        nonlocal committing
        async with patient.transaction() as transaction:
            await append(transaction, record("SN2"))
            await transaction.head()  # so that nothing but the commit is left to do
            await asyncio.to_thread(own.kill if how == "kill" else own.freeze)
            committing = time.monotonic()

    try:
        with pytest.raises(TemporarilyUnavailable) as raised:
            await commit_into_nothing()
        assert time.monotonic() - committing < WRITE_S + SLACK_S
    finally:
        await asyncio.to_thread(own.start if how == "kill" else own.thaw)
    assert raised.value.fields == {"outcome": "unknown"}
    before = (await store.head())[0]
    await works(store)
    assert (await store.head())[0] in (before + 1, before + 2)
    await patient.close()


async def test_a_statement_cut_off_rolls_back(own: Postgres, store: SqlStore) -> None:
    before = await store.head()

    async def write_into_nothing() -> None:
        async with store.transaction() as transaction:
            await append(transaction, record("SN2"))
            await asyncio.to_thread(own.freeze)
            await append(transaction, record("SN3"))

    try:
        with pytest.raises(TemporarilyUnavailable) as raised:
            await write_into_nothing()
    finally:
        own.thaw()
    assert raised.value.fields == {}
    assert await store.head() == before
    await works(store)


async def test_what_follows_a_lost_connection_in_a_transaction_fails_too(
    own: Postgres, store: SqlStore
) -> None:
    async def carry_on() -> None:
        async with store.transaction() as transaction:
            pid = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            idle = " WHERE application_name = 'biaojie' AND state = 'idle in transaction'"
            await asyncio.to_thread(own.execute, pid + idle)
            with contextlib.suppress(TemporarilyUnavailable):
                await transaction.head()
            await append(transaction, record("SN2"))

    with pytest.raises(TemporarilyUnavailable):
        await carry_on()
    await works(store)


async def test_a_transaction_that_takes_too_long_is_ended(store: SqlStore) -> None:
    async def dawdle() -> None:
        async with store.transaction() as transaction:
            await append(transaction, record("SN2"))
            await asyncio.Event().wait()

    await is_unavailable(dawdle(), WRITE_S)
    assert (await store.look_up([Key(PREFIX, b"SN2")]))[0].record is None
    await works(store)


async def test_waiting_for_the_lock_is_bounded_and_leaves_no_waiter_behind(
    own: Postgres, store: SqlStore
) -> None:
    patient = await open_store(own.url(), write_timeout_s=30)
    others = [await open_store(own.url(), write_timeout_s=WRITE_S) for _ in range(3)]
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"

    async def none_waits() -> bool:
        [row] = await asyncio.to_thread(own.execute, waiting)
        return bool(row[0] == 0)

    async with patient.transaction():
        async with within(WRITE_S):
            writing = [asyncio.create_task(write(other)) for other in others]
            results = await asyncio.gather(*writing, return_exceptions=True)
        assert {type(result) for result in results} == {TemporarilyUnavailable}
        await eventually(none_waits)
    for opened in (patient, *others):
        await write(opened)
        await opened.close()


FREEZES = """
import asyncio, os, signal, sys
from registry.sql import open_store

async def main():
    store = await open_store(sys.argv[1], write_timeout_s=1.0)
    async with store.transaction() as transaction:
        await transaction.head()
        print("locked", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)

asyncio.run(main())
"""


async def test_a_node_that_freezes_with_the_lock_does_not_stop_the_others(own: Postgres) -> None:
    store = await open_store(own.url(), write_timeout_s=5.0)
    frozen = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FREEZES, own.url(), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert frozen.stdout is not None
        assert await asyncio.wait_for(frozen.stdout.readline(), 10) == b"locked\n"
        async with within(3):
            await write(store)
    finally:
        frozen.kill()
        await frozen.wait()
    await store.close()


@pytest.mark.parametrize(
    ("sqlstate", "error"),
    [
        ("53100", StorageFull),  # disk full
        ("25006", StorageFull),  # read-only: a standby
        ("53200", TemporarilyUnavailable),  # out of memory
        ("57014", TemporarilyUnavailable),  # statement timeout
        ("40001", TemporarilyUnavailable),  # serialization failure
        ("58030", TemporarilyUnavailable),  # input/output error
    ],
)
async def test_what_the_server_says_becomes_our_error(
    postgres: Postgres, postgres_url: str, sqlstate: str, error: type[Exception]
) -> None:
    store = await open_store(postgres_url)
    await home(store)
    postgres.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION 'made up' USING ERRCODE = '{sqlstate}'; END $$",
        "CREATE TRIGGER fail BEFORE INSERT ON changelog EXECUTE FUNCTION fail()",
        database=make_url(postgres_url).database or "",
    )
    with pytest.raises(error):
        await write(store)
    postgres.execute(
        "DROP TRIGGER fail ON changelog", database=make_url(postgres_url).database or ""
    )
    assert await store.list_records(PREFIX, None, 10) == []
    await write(store)
    await store.close()


async def test_a_slow_read_is_ended_here_and_there(own: Postgres, store: SqlStore) -> None:
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"

    async def none_sleeps() -> bool:
        [row] = await asyncio.to_thread(own.execute, sleeping)
        return bool(row[0] == 0)

    slow = store._pools.read(lambda c: c.exec_driver_sql("SELECT pg_sleep(60)"))
    await is_unavailable(slow, READ_S)
    await eventually(none_sleeps)


async def test_a_read_is_repeated_where_the_server_asks_for_it(store: SqlStore) -> None:
    tries = 0

    async def conflict_once(connection: object) -> int:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise_it = "DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$"
            await connection.exec_driver_sql(raise_it)  # type: ignore[attr-defined]
        return tries

    assert await store._pools.read(conflict_once) == 2
