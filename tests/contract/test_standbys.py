"""Reads on a real streaming standby: never older than what is known, and without it if need be."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from biaojie.identifier import Identifier, Key
from biaojie.record import Value
from registry.admission import SYSTEM
from registry.blocks import Chunk, cut
from registry.operations import Purge, RegisterRange
from registry.patterns import parse_pattern
from registry.sql import SqlStore, open_store
from registry.sql.standbys import StandbyStore, open_standbys
from tests.contract.sample import PREFIX, append, home, put, record
from tests.core_parts import registering
from tests.postgres import Postgres, Standby

KEY = Key(PREFIX, b"SN1")
READ_S = 1.5
SLACK_S = 3.0


@pytest.fixture
async def store(primary: Postgres, standby: Standby) -> AsyncIterator[SqlStore]:
    if not standby.running:
        standby.start()
    standby.thaw()
    standby.resume()
    opened = await open_store(primary.url(), write_timeout_s=20)
    await home(opened)
    await put(opened, record("SN1"))
    yield opened
    await opened.close()


class Seen:
    """What a process knows of the log."""

    def __init__(self) -> None:
        self.sequence = 0


@contextlib.asynccontextmanager
async def reading(store: SqlStore, *urls: str) -> AsyncIterator[tuple[StandbyStore, Seen]]:
    seen = Seen()
    seen.sequence = (await store.head())[0]
    readers = await open_standbys(store, urls, read_timeout_s=READ_S)
    readers.position = lambda: seen.sequence
    try:
        yield readers, seen
    finally:
        await readers.close()


async def eventually(check: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "still not after the time allowed"
        await asyncio.sleep(0.02)


def ready(readers: StandbyStore) -> bool:
    return readers.readings()["standbys_ready"] == 1


async def answered_by(readers: StandbyStore, call: Awaitable[object]) -> str:
    before = readers.counts()
    await call
    after = readers.counts()
    [(name, grown)] = [(n, after[n] - before[n]) for n in after if after[n] != before[n]]
    assert grown == 1
    return name.removeprefix("reads_from_")


async def commit(store: SqlStore, seen: Seen, version: int) -> None:
    """As a node does: from then on it knows of the entry."""
    async with store.transaction() as transaction:
        entry = await append(transaction, record("SN1", version=version))
    seen.sequence = entry.sequence


async def version(store: SqlStore) -> int:
    [found] = await store.look_up([KEY])
    assert found.record is not None
    return found.record.version


async def test_what_is_up_to_date_is_read_from(store: SqlStore, standby: Standby) -> None:
    async with reading(store, standby.url()) as (readers, _):
        assert await answered_by(readers, readers.look_up([KEY])) == "primary"  # not known yet
        await eventually(lambda: ready(readers))
        assert await answered_by(readers, readers.look_up([KEY])) == "standby"
        assert await answered_by(readers, readers.find_prefixes([PREFIX])) == "standby"
        assert await readers.look_up([KEY]) == await store.look_up([KEY])
        assert await readers.look_up([]) == []
        assert await readers.list_records(PREFIX, None, 9) == await store.list_records(
            PREFIX, None, 9
        )
        assert await readers.head() == await store.head()


async def test_members_of_runs_and_ranges_are_read_there(store: SqlStore, standby: Standby) -> None:
    """Of each layer, with what lies over them, one by one and listed."""
    shape = Value(1, "URL", b"{suffix}")
    suffixes = [f"B{n:02}" for n in range(60)]
    run = cut(Chunk(PREFIX, suffixes, [[shape]], [[b"x"] * 60]), 1_700_000_000)
    async with registering(store) as registrar:
        await registrar.load(SYSTEM, run)
        rule = parse_pattern("R{000..999}")
        await registrar.submit(SYSTEM, [RegisterRange(PREFIX, rule, (shape,))])
        purged = [Purge(Identifier(PREFIX, name)) for name in ("B05", "R005")]
        done = await registrar.submit(SYSTEM, purged)
    names = ["B00", "B59", "B05", "R000", "R999", "R005", "R1000", "SN1"]
    keys = [Key(PREFIX, name.encode()) for name in names]
    async with reading(store, standby.url()) as (readers, seen):
        await eventually(lambda: ready(readers))
        assert seen.sequence == done.sequence
        assert await answered_by(readers, readers.look_up(keys)) == "standby"
        found = await readers.look_up(keys)
        there = [name for name, each in zip(names, found, strict=True) if each.record]
        assert there == ["B00", "B59", "R000", "R999", "SN1"]
        assert found == await store.look_up(keys)
        whole = await readers.list_records(PREFIX, None, 2_000)
        assert whole == await store.list_records(PREFIX, None, 2_000)
        assert len(whole) == 60 + 1_000 - 2 + 1
        assert len(await readers.list_ranges(PREFIX, None, 9)) == 1
        assert readers.counts()["reads_from_standby"] >= 4


async def test_every_commit_is_read_at_once(store: SqlStore, standby: Standby) -> None:
    """Whoever answers: the position is compared within the read, not before it."""
    async with reading(store, standby.url()) as (readers, seen):
        await eventually(lambda: ready(readers))
        for number in range(2, 150):
            await commit(store, seen, number)
            assert await version(readers) == number
        counts = readers.counts()
        assert counts["reads_from_primary"] + counts["reads_from_standby"] == 148
        await eventually(lambda: ready(readers))
        assert await answered_by(readers, readers.look_up([KEY])) == "standby"


async def test_one_that_is_behind_is_left_out_and_comes_back(
    store: SqlStore, standby: Standby
) -> None:
    async with reading(store, standby.url()) as (readers, seen):
        await eventually(lambda: ready(readers))
        await asyncio.to_thread(standby.pause)
        # What nobody here knows of yet may be missing; this is the freshness of the log's tail.
        await commit(store, Seen(), 200)
        assert await answered_by(readers, readers.look_up([KEY])) == "standby"
        await commit(store, seen, 201)
        assert await answered_by(readers, version(readers)) == "primary"
        assert await version(readers) == 201
        assert [p.name for p in (await readers.find_prefixes([PREFIX])).values()] == [PREFIX]
        await asyncio.sleep(0.3)
        assert not ready(readers)
        await asyncio.to_thread(standby.resume)
        await eventually(lambda: ready(readers))
        assert await answered_by(readers, version(readers)) == "standby"
        assert await version(readers) == 201


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_one_that_is_gone_is_left_out_and_comes_back(
    store: SqlStore, standby: Standby, how: str
) -> None:
    async with reading(store, standby.url()) as (readers, seen):
        await eventually(lambda: ready(readers))
        await asyncio.to_thread(standby.kill if how == "killed" else standby.freeze)
        start = time.monotonic()
        assert await answered_by(readers, readers.look_up([KEY])) == "primary"
        assert time.monotonic() - start < READ_S + SLACK_S
        assert not ready(readers)
        start = time.monotonic()
        for number in range(300, 310):  # nobody waits for it any more
            await commit(store, seen, number)
            assert await version(readers) == number
        assert time.monotonic() - start < SLACK_S
        await asyncio.to_thread(standby.start if how == "killed" else standby.thaw)
        await eventually(lambda: ready(readers))
        assert await answered_by(readers, version(readers)) == "standby"


async def test_another_registry_is_never_read(
    store: SqlStore, standby: Standby, postgres_url: str
) -> None:
    other = await open_store(postgres_url)
    await home(other)
    while (await other.head())[0] < (await store.head())[0] + 3:
        async with other.transaction() as transaction:
            await append(transaction, record("SN1", version=9_999))
    await other.close()
    async with reading(store, postgres_url, standby.url()) as (readers, _):
        await eventually(lambda: ready(readers))
        await asyncio.sleep(0.3)
        assert ready(readers)  # one of the two
        for _ in range(4):
            assert await answered_by(readers, readers.look_up([KEY])) == "standby"
            assert await version(readers) != 9_999


async def test_when_the_log_is_another_all_are_looked_at_again(
    store: SqlStore, standby: Standby
) -> None:
    async with reading(store, standby.url()) as (readers, _):
        await eventually(lambda: ready(readers))
        readers.clear()
        assert await answered_by(readers, readers.look_up([KEY])) == "primary"
        await eventually(lambda: ready(readers))


async def test_nothing_is_read_there_before_the_position_is_known(
    store: SqlStore, standby: Standby
) -> None:
    readers = await open_standbys(store, [standby.url()])
    await asyncio.sleep(0.3)
    assert await answered_by(readers, readers.look_up([KEY])) == "primary"
    await readers.close()
    with pytest.raises(ValueError, match="standby"):
        await open_standbys(store, ["sqlite:///x.db"])
