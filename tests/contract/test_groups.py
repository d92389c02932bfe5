"""What one commit reads and writes at once: all shapes of groups come back as they were put."""

from __future__ import annotations

from dataclasses import replace

import pytest

from biaojie.account import Prefix
from biaojie.identifier import Key
from biaojie.record import Record, Status
from registry.changelog import ZERO
from registry.store import Found, ReceiptKey, Store, StoredReceipt
from tests.contract.sample import PREFIX, append, entry_for, home, keyed, odd_record, put, record

OTHER = "88.118.9"
ALIKE = [record(f"S{n}") for n in range(300)]
GROUPS = {
    "one": [record("S1")],
    "two": ALIKE[:2],
    "alike": ALIKE,
    "alike, with a template": [replace(r, template="88.118.8/T") for r in ALIKE[:5]],
    "prefixes": [record("S1"), record("S1", OTHER), record("S2")],
    "statuses": [record("S1", status=Status.DRAFT), record("S2"), record("S3")],
    "versions": [record("S1"), record("S2", version=7), record("S3")],
    "sequences": [record("S1"), record("S2"), record("S3", sequence=2**40)],
    "templates": [record("S1", template="88.118.8/T"), record("S2"), record("S3")],
    "odd": [odd_record(), record("S2")],
}


@pytest.mark.parametrize("name", GROUPS)
async def test_every_shape_of_group_comes_back(store: Store, name: str) -> None:
    group: list[Record] = GROUPS[name]
    await home(store, PREFIX, OTHER)
    for _ in range(2):  # inserted, then replaced
        await put(store, *group)
        keys = [r.identifier.key() for r in group]
        assert [found.record for found in await store.look_up(keys)] == group


async def test_receipts_of_one_and_of_many_callers(store: Store) -> None:
    alike = {ReceiptKey("a", str(n)): StoredReceipt(b"%032d" % n, b"r", 9) for n in range(70)}
    mixed = {ReceiptKey(str(n), "k"): StoredReceipt(b"%032d" % n, b"", n) for n in range(70)}
    for kept in (alike, mixed):
        async with store.transaction() as transaction:
            await transaction.put_receipts(kept)
        async with store.transaction() as transaction:
            assert await transaction.find_receipts(list(kept), 0) == kept


async def test_load_brings_head_records_and_receipts(store: Store) -> None:
    await home(store)
    kept = {ReceiptKey("a", "1"): StoredReceipt(bytes(32), b"reply", 100)}
    keys = [Key(PREFIX, b"SN1"), Key(PREFIX, b"NONE"), Key(OTHER, b"SN1"), Key(PREFIX, b"SN1")]
    asked = [*kept, ReceiptKey("b", "1"), ReceiptKey("a", "2")]
    prefix = Prefix(PREFIX, "acme", created=7)
    nothing = Found(prefix, None)
    async with store.transaction() as transaction:
        loaded = await transaction.load(keys, asked, 100)
        assert loaded == ((0, ZERO), [nothing, nothing, Found(None, None), nothing], {})
        await transaction.put_receipts(kept)
        entry = await append(transaction, record("SN1"))
        one = Found(prefix, record("SN1"))
        wanted = ((1, entry.hash), [one, nothing, Found(None, None), one], kept)
        assert await transaction.load(keys, asked, 100) == wanted
    async with store.transaction() as transaction:
        assert await transaction.load(keys, asked, 100) == wanted
        assert await transaction.load([], [], 0) == ((1, entry.hash), [], {})
        assert (await transaction.load(keys[:1], asked, 101)).receipts == {}


async def test_the_last_of_what_is_put_twice_holds(store: Store) -> None:
    await home(store)
    async with store.transaction() as transaction:
        for version in (1, 2, 3):
            await transaction.put_records(keyed(record("A", version=version), record("B")))
        await transaction.purge_records([Key(PREFIX, b"B")], 2)
    records = await store.list_records(PREFIX, None, 10)
    assert records == [record("A", version=3)]


async def test_two_entries_in_one_transaction(store: Store) -> None:
    await home(store)
    async with store.transaction() as transaction:
        first = await append(transaction, record("A"))
        second = entry_for((1, first.hash), record("B"))
        await transaction.append(second)
    assert await store.list_changes(0, 10) == [first, second]
    assert await store.head() == (2, second.hash)


async def test_what_is_put_under_a_prefix_of_the_same_transaction(store: Store) -> None:
    async with store.transaction() as transaction:
        await transaction.put_prefixes([Prefix(PREFIX, "acme")])
        await append(transaction, record("SN1"))
    [found] = await store.look_up([Key(PREFIX, b"SN1")])
    assert found == Found(Prefix(PREFIX, "acme"), record("SN1"))
