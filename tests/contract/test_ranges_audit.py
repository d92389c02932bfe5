"""`verify` over ranges: what was done by the rules holds, what was done by hand is named."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing

import pytest
from sqlalchemy import make_url

from biaojie.record import Status, Value
from registry.audit import audit
from registry.operations import Create, HomePrefix, Modify, Purge, Put, Retire
from registry.registrar import Registrar
from registry.sql import open_store
from registry.store import Store
from tests.contract.sample import PREFIX
from tests.contract.test_ranges import cut, name, ranged, registrar, submit

__all__ = ["registrar"]


async def some_history(registrar: Registrar) -> None:
    await submit(registrar, ranged("SN{00000000..99999999}"))
    await submit(
        registrar,
        ranged("B{000..999..3}"),
    )
    await submit(
        registrar,
        Modify(name("SN00000005"), status=Status.FROZEN),
        Put(name("B003"), (Value(1, "URL", b"x"),)),
        Purge(name("SN00000006")),
        Retire(name("SN00000007")),
        Create(name("other"), ()),
    )
    await submit(registrar, Create(name("SN00000006"), ()))
    await submit(registrar, Purge(name("SN00000006")), Purge(name("SN00000008")))
    await submit(registrar, cut("SN{00000000..00000999}"))
    await submit(registrar, Purge(name("SN00000011")))
    await submit(registrar, cut("SN{00000010..00000019}", purge=True))
    await submit(registrar, cut("B{000..999}", purge=True))
    await submit(registrar, ranged("SN{00000010..00000012}"))


async def test_nothing_is_wrong_with_what_was_done(store: Store, registrar: Registrar) -> None:
    await some_history(registrar)
    found = await audit(store)
    assert found.faults == []
    assert found.records < 100, "a range is checked as one, not member by member"


async def test_while_ranges_come_and_go(store: Store, registrar: Registrar) -> None:
    await some_history(registrar)
    done = 0

    running = asyncio.create_task(audit(store))
    while not running.done():
        await submit(registrar, ranged(f"R{done}-{{0..9}}"))
        await submit(registrar, Put(name(f"R{done}-5"), ()), Purge(name(f"R{done}-6")))
        await submit(registrar, cut(f"R{done}-{{0..4}}", purge=True))
        done += 1
        if done == 30:
            break
    assert (await running).faults == []
    assert (await audit(store)).faults == []


@pytest.fixture
async def tampered(sqlite_url: str) -> AsyncIterator[tuple[Store, sqlite3.Connection]]:
    """A store with a history, and a connection behind its back."""
    store = await open_store(sqlite_url)
    writer = Registrar(store, clock=lambda: 1_700_000_000)
    writer.start()
    await submit(writer, HomePrefix(PREFIX, "acme"))
    await some_history(writer)
    await writer.stop()
    database = make_url(sqlite_url).database
    assert database is not None
    with closing(sqlite3.connect(database)) as connection:
        yield store, connection
    await store.close()


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("DELETE FROM ranges WHERE first = CAST('00001000' AS BLOB)", "has lost it"),
        ("UPDATE ranges SET status = 1", "is not what the log says"),
        ("UPDATE ranges SET version = 7", "is not what the log says"),
        ("UPDATE ranges SET sequence = 3", "is not what the log says"),
        ("UPDATE ranges SET template = 'x'", "is not what the log says"),
        ("UPDATE ranges SET written = 2", "is not what the log says"),
        ("UPDATE ranges SET last = CAST('99999990' AS BLOB)", "cannot be read"),
        ("UPDATE ranges SET blob = CAST('x' AS BLOB)", "cannot be read"),
        (
            "INSERT INTO ranges SELECT prefix_id, CAST('X' || shape AS BLOB), first, last, status,"
            " version, sequence, written, template, blob FROM ranges LIMIT 1",
            "cannot be read",
        ),
        ("DELETE FROM records WHERE suffix = CAST('SN00000005' AS BLOB)", "the log says"),
    ],
)
async def test_what_was_done_by_hand_is_named(
    tampered: tuple[Store, sqlite3.Connection], statement: str, says: str
) -> None:
    store, connection = tampered
    assert (await audit(store)).faults == []
    with connection:
        assert connection.execute(statement).rowcount > 0
    faults = (await audit(store)).faults
    assert any(says in fault for fault in faults), faults
