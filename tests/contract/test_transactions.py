"""Transactions: all or nothing, invisible until done, one at a time across processes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from biaojie.account import ApiKey, Prefix, Role
from biaojie.change import Entry
from biaojie.errors import IdentifierTaken
from biaojie.identifier import Key
from registry.changelog import ZERO, Verifier
from registry.store import ReceiptKey, Store, StoredReceipt, Transaction
from tests.contract.sample import PREFIX, append, entry_for, home, keyed, put, record

RECEIPT = StoredReceipt(bytes(32), b"reply", 100)


async def write_everything(transaction: Transaction) -> None:
    await transaction.put_prefixes([Prefix("1.2", "t")])
    await append(transaction, record("new"), record("SN1", version=2))
    await transaction.purge_records([Key(PREFIX, b"SN2")], 2)
    await transaction.put_keys({b"d" * 32: ApiKey("k1", "t", Role.READER)})
    await transaction.revoke_keys({"k0": 5})
    await transaction.put_receipts({ReceiptKey("k1", "i"): RECEIPT})
    await transaction.forget_receipts(1, 10)


async def state(store: Store) -> list[object]:
    async with store.transaction() as transaction:
        receipts = await transaction.find_receipts([ReceiptKey("k1", "i"), ReceiptKey("a", "b")], 0)
    return [
        await store.list_prefixes(None, 10),
        await store.list_records(PREFIX, None, 10),
        await store.list_keys(None, 10),
        await store.list_changes(0, 10),
        await store.head(),
        await store.find_key(b"d" * 32),
        receipts,
    ]


async def prepare(store: Store) -> None:
    await home(store)
    await put(store, record("SN1"), record("SN2"))
    async with store.transaction() as transaction:
        await transaction.put_keys({b"0" * 32: ApiKey("k0", "t", Role.ADMIN)})
        await transaction.put_receipts({ReceiptKey("a", "b"): replace(RECEIPT, expires=0)})


@pytest.mark.parametrize("error", [IdentifierTaken(), KeyError("x"), OSError(5, "not the store's")])
async def test_an_exception_rolls_everything_back_and_passes_through(
    store: Store, error: Exception
) -> None:
    await prepare(store)
    before = await state(store)

    async def fail() -> None:
        async with store.transaction() as transaction:
            await write_everything(transaction)
            raise error

    with pytest.raises(type(error)) as raised:
        await fail()
    assert raised.value is error
    assert await state(store) == before
    async with store.transaction() as transaction:
        await write_everything(transaction)
    assert await state(store) != before


async def test_a_cancelled_transaction_leaves_nothing(store: Store) -> None:
    await prepare(store)
    before = await state(store)
    written = asyncio.Event()

    async def write() -> None:
        async with store.transaction() as transaction:
            await write_everything(transaction)
            written.set()
            await asyncio.Event().wait()

    for _ in range(3):
        written.clear()
        task = asyncio.create_task(write())
        await written.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await state(store) == before


async def test_cancelling_at_any_moment_leaves_all_or_nothing(store: Store) -> None:
    await home(store)

    async def write(n: int) -> None:
        async with store.transaction() as transaction:
            await append(transaction, record(f"A{n}"), record(f"B{n}"))

    for n in range(60):
        task = asyncio.create_task(write(n))
        await asyncio.sleep(n * 0.0003)
        task.cancel()
        await asyncio.wait([task])
    names = {r.identifier.suffix for r in await store.list_records(PREFIX, None, 1000)}
    assert {n[1:] for n in names if n[0] == "A"} == {n[1:] for n in names if n[0] == "B"}
    log = await store.list_changes(0, 1000)
    assert [e.sequence for e in log] == list(range(1, len(names) // 2 + 1))
    await asyncio.gather(*(write(n) for n in range(100, 110)))
    assert len(await store.list_changes(0, 1000)) == len(log) + 10


async def test_a_transaction_reads_what_it_wrote(store: Store) -> None:
    await prepare(store)
    async with store.transaction() as transaction:
        await write_everything(transaction)
        found = await transaction.look_up(
            [Key(PREFIX, b"NEW"), Key(PREFIX, b"SN1"), Key(PREFIX, b"SN2"), Key("1.2", b"X")]
        )
        assert [f.record and f.record.version for f in found] == [1, 2, None, None]
        assert found[3].prefix == Prefix("1.2", "t")
        assert (await transaction.head())[0] == 1
        keys = await transaction.find_keys_by_id(["k0", "k1", "none"])
        assert {id_: key.revoked for id_, key in keys.items()} == {"k0": 5, "k1": 0}
        wanted = [ReceiptKey("k1", "i"), ReceiptKey("a", "b")]
        assert await transaction.find_receipts(wanted, 0) == {wanted[0]: RECEIPT}


async def test_nobody_sees_an_open_transaction(store: Store, peer: Store) -> None:
    await prepare(store)
    async with store.transaction() as transaction:
        await write_everything(transaction)
        for reader in (store, peer):
            assert [p.name for p in await reader.list_prefixes(None, 10)] == [PREFIX]
            assert await reader.list_records(PREFIX, None, 10) == [record("SN1"), record("SN2")]
            [new] = await reader.look_up([Key(PREFIX, b"NEW")])
            assert new.record is None
            assert await reader.head() == (0, ZERO)
            assert await reader.list_changes(0, 10) == []
            assert await reader.find_key(b"d" * 32) is None
            assert [k.revoked for k in await reader.list_keys(None, 10)] == [0]
    for reader in (store, peer):
        assert len(await reader.list_prefixes(None, 10)) == 2
        assert (await reader.head())[0] == 1
        [new] = await reader.look_up([Key(PREFIX, b"NEW")])
        assert new.record == record("new")


async def test_transactions_of_two_stores_are_serial_and_the_log_has_no_gap(
    store: Store, peer: Store
) -> None:
    await home(store)
    async with store.transaction() as transaction:
        await transaction.put_records(keyed(record("counter", version=1)))
    key = Key(PREFIX, b"COUNTER")
    open_now = 0

    async def count(on: Store) -> None:
        nonlocal open_now
        async with on.transaction() as transaction:
            open_now += 1
            assert open_now == 1
            [found] = await transaction.look_up([key])
            assert found.record is not None
            await append(transaction, replace(found.record, version=found.record.version + 1))
            open_now -= 1

    await asyncio.gather(*(count(on) for _ in range(20) for on in (store, peer)))
    [found] = await store.look_up([key])
    assert found.record is not None
    assert found.record.version == 41
    assert found.record.sequence == 40
    verifier = Verifier()
    for entry in await peer.list_changes(0, 100):
        verifier.feed(entry)
    verifier.end(await store.head(), await peer.newest_record_sequence())
    assert verifier.faults == []
    assert verifier.head[0] == 40


async def test_log_entries_come_back_as_written_and_paged(store: Store) -> None:
    await home(store)
    assert await store.head() == (0, ZERO)
    written: list[Entry] = []
    for n in range(5):
        async with store.transaction() as transaction:
            written.append(await append(transaction, *(record(f"S{i}") for i in range(n + 1))))
    assert await store.list_changes(0, 100) == written
    assert await store.list_changes(2, 2) == written[2:4]
    assert await store.list_changes(5, 2) == []
    assert await store.list_changes(99, 2) == []
    assert await store.head() == (5, written[-1].hash)


@pytest.mark.parametrize("at", [0, 2, 7])
async def test_an_entry_must_follow_the_head(store: Store, at: int) -> None:
    await home(store)
    async with store.transaction() as transaction:
        entry = await append(transaction, record())
    wrong = replace(entry_for((0, ZERO), record()), sequence=at)
    if at == 2:
        async with store.transaction() as transaction:
            await transaction.append(wrong)
        return
    with pytest.raises(AssertionError):
        async with store.transaction() as transaction:
            await transaction.append(wrong)
    assert await store.head() == (1, entry.hash)


async def test_what_the_log_tells_of_can_be_read(store: Store, peer: Store) -> None:
    """However close the one who follows the log is behind the one who writes."""
    await home(store)
    last = 60

    async def write() -> None:
        for number in range(1, last + 1):
            async with store.transaction() as transaction:
                await append(transaction, record("SN1", version=number))

    writing = asyncio.create_task(write())
    seen = 0
    try:
        while seen < last:
            await asyncio.sleep(0)
            head, _ = await peer.head()
            entries = await peer.list_changes(seen, 3)
            told = max([head, *(entry.sequence for entry in entries)])
            [found] = await peer.look_up([Key(PREFIX, b"SN1")])
            assert (found.record.sequence if found.record else 0) >= told
            seen = max(seen, told)
            if writing.done():
                await writing
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
