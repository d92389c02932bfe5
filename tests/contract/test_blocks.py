"""Rows over blocks: every store shows one record for a name, whichever layer keeps it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from biaojie.identifier import Key
from biaojie.record import Record, Status
from registry.blocks import Block, seal
from registry.members import Member
from registry.store import Store
from tests.contract.sample import PREFIX, home, keyed, put, record


def member(record: Record) -> Member:
    return Member(record.identifier.key().suffix, record)


async def put_blocks(store: Store, *runs: list[Record], sequence: int = 3) -> list[Block]:
    made = [
        sealed.at(sequence) for run in runs for sealed in seal([member(r) for r in run], sequence)
    ]
    async with store.transaction() as tx:
        await tx.put_blocks(PREFIX, made)
    return made


def run(first: int, last: int, step: int = 1, sequence: int = 3) -> list[Record]:
    return [record(f"sn{n:03}", sequence=sequence) for n in range(first, last, step)]


async def found(store: Store, *suffixes: str) -> list[Record | None]:
    keys = [Key(PREFIX, suffix.encode()) for suffix in suffixes]
    looked_up = [at.record for at in await store.look_up(keys)]
    async with store.transaction() as tx:
        assert [at.record for at in await tx.look_up(keys)] == looked_up
    return looked_up


async def listed(store: Store, limit: int) -> list[Record]:
    records: list[Record] = []
    after: bytes | None = None
    while True:
        page = await store.list_records(PREFIX, after, limit)
        async with store.transaction() as tx:
            assert await tx.list_records(PREFIX, after, limit) == page
        records += page
        if len(page) < limit:
            return records
        after = page[-1].identifier.key().suffix


async def test_members_are_found_and_others_are_not(store: Store) -> None:
    await home(store)
    await put_blocks(store, run(100, 250, 2), run(300, 310))
    assert await found(store, "SN100", "SN248", "SN300", "SN309") == [
        record(f"sn{n}", sequence=3) for n in (100, 248, 300, 309)
    ]
    absent = ["SN099", "SN101", "SN249", "SN250", "SN299", "SN310", "SN1000", "S", "SN100 "]
    assert await found(store, *absent) == [None] * len(absent)
    homeless = await store.look_up([Key("no.such", b"SN100")])
    assert homeless == [(None, None)]


async def test_a_row_wins_and_a_marker_hides(store: Store) -> None:
    await home(store)
    await put_blocks(store, run(0, 100))
    changed = record("SN005", version=2, status=Status.RETIRED, sequence=4)
    await put(store, changed, record("SN0055", sequence=4))
    async with store.transaction() as tx:
        await tx.purge_records([Key(PREFIX, s) for s in (b"SN006", b"SN0055", b"NONE")], 5)
    assert await found(store, "SN005", "SN006", "SN0055", "SN007") == [
        changed,
        None,
        None,
        record("sn007", sequence=3),
    ]
    expected = [r for r in run(0, 100) if r.identifier.suffix != "sn006"]
    expected[5] = changed
    for limit in (1, 7, 48, 99, 200):
        assert await listed(store, limit) == expected
    rows = await store.list_rows(PREFIX, None, 10)
    assert [(row.suffix, row.record, row.sequence) for row in rows] == [
        (b"SN005", changed, 4),
        (b"SN006", None, 5),  # nothing lay beneath the other, which is gone
    ]
    await put(store, again := record("SN006", sequence=6))
    assert await found(store, "SN006") == [again]
    async with store.transaction() as tx:
        await tx.remove_rows(PREFIX, [b"SN005", b"SN006"])
    assert await listed(store, 30) == run(0, 100)


async def test_more_markers_than_a_page(store: Store) -> None:
    await home(store)
    await put_blocks(store, run(0, 300))
    async with store.transaction() as tx:
        await tx.purge_records([Key(PREFIX, b"SN%03d" % n) for n in range(10, 290)], 5)
    assert await listed(store, 10) == run(0, 10) + run(290, 300)


async def test_blocks_are_listed_and_replaced(store: Store) -> None:
    await home(store)
    first, second, third = await put_blocks(store, run(0, 10), run(20, 30), run(40, 50))
    assert await store.list_blocks(PREFIX, None, 2) == [first, second]
    assert await store.list_blocks(PREFIX, first.first, 5) == [second, third]
    assert await store.list_blocks("no.such", None, 5) == []
    async with store.transaction() as tx:
        assert await tx.blocks_in(PREFIX, b"SN009", b"SN020") == [first, second]
        assert await tx.blocks_in(PREFIX, b"SN010", b"SN019") == []
        assert await tx.blocks_in(PREFIX, b"SN045", b"SN046") == [third]
        assert await tx.blocks_in(PREFIX, b"A", b"Z") == [first, second, third]
        await tx.remove_blocks(PREFIX, [first.first, third.first])
        assert await tx.blocks_in(PREFIX, b"A", b"Z") == [second]
    assert await listed(store, 100) == run(20, 30)


async def test_what_is_touched(store: Store) -> None:
    await home(store)
    await put_blocks(store, run(10, 20))
    await put(store, record("SN030"))
    async with store.transaction() as tx:
        await tx.purge_records([Key(PREFIX, b"SN012")], 5)
        spans = [(b"SN000", b"SN009"), (b"SN015", b"SN016"), (b"SN018", b"SN025")]
        spans += [(b"SN026", b"SN029"), (b"SN030", b"SN030"), (b"SN031", b"SN040")]
        assert await tx.touched(PREFIX, spans) == [1, 2, 4]
        assert await tx.touched(PREFIX, spans[:1]) == []
        assert await tx.touched(PREFIX, []) == []


async def test_nothing_of_a_transaction_that_fails_is_kept(store: Store) -> None:
    await home(store)
    await put_blocks(store, run(0, 10))

    async def fail() -> None:
        async with store.transaction() as tx:
            await tx.put_blocks(PREFIX, [s.at(4) for s in seal([member(record("x"))], 4)])
            await tx.remove_blocks(PREFIX, [b"SN000"])
            await tx.put_records(keyed(record("SN003", version=2)))
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    assert await listed(store, 100) == run(0, 10)
    assert await store.newest_record_sequence() == 3


async def test_members_carry_their_own_sequence(store: Store) -> None:
    await home(store)
    older = [replace(r, sequence=n + 1) for n, r in enumerate(run(0, 9))]
    await put_blocks(store, older, sequence=9)
    assert await listed(store, 100) == older
    assert await store.newest_record_sequence() == 9
