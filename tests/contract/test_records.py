"""Records and prefixes: what is written is read back, found by key, listed in octet order."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from biaojie.account import Prefix, PrefixStatus
from biaojie.identifier import Identifier, Key
from biaojie.record import Status
from registry.store import Store
from tests.contract.sample import PREFIX, home, keyed, odd_record, put, record


async def test_an_unknown_prefix_is_not_an_unknown_record(store: Store) -> None:
    await home(store)
    here, elsewhere = await store.look_up([Key(PREFIX, b"NONE"), Key("1.2", b"NONE")])
    assert here.prefix == Prefix(PREFIX, "acme", created=7)
    assert here.record is None
    assert elsewhere == (None, None)
    assert await store.look_up([]) == []


async def test_records_come_back_as_written(store: Store) -> None:
    await home(store)
    written = [record("SN1"), odd_record(), record("empty", values=(), template="")]
    await put(store, *written)
    found = await store.look_up([r.identifier.key() for r in written])
    assert [f.record for f in found] == written
    assert {f.prefix for f in found} == {Prefix(PREFIX, "acme", created=7)}
    assert {r.identifier.suffix: r for r in await store.list_records(PREFIX, None, 10)} == {
        r.identifier.suffix: r for r in written
    }


@pytest.mark.parametrize("status", list(Status))
async def test_every_status_is_kept(store: Store, status: Status) -> None:
    await home(store)
    await put(store, record("SN1", status=status))
    [found] = await store.look_up([Key(PREFIX, b"SN1")])
    assert found.record is not None
    assert found.record.status is status


async def test_the_first_spelling_is_kept_and_any_case_finds_it(store: Store) -> None:
    await home(store, "Cn.Acme")
    mixed = record("sn-Äb/ç", prefix="cn.aCME")
    await put(store, mixed)
    keys = [Identifier("CN.ACME", "SN-ÄB/ç").key(), Identifier("cn.acme", "sn-Äb/ç").key()]
    assert keys[0] == keys[1]
    for found in await store.look_up(keys):
        assert found.record == mixed
        assert found.prefix is not None
        assert found.prefix.name == "Cn.Acme"
    assert await store.list_records("CN.ACME", None, 5) == [mixed]
    assert await store.list_records("cn.acme", None, 5) == []


async def test_case_sensitive_suffixes_are_different_records(store: Store) -> None:
    await home(store)
    both = [record("abc"), record("ABC")]
    await put(store, *[])
    async with store.transaction() as transaction:
        await transaction.put_records({r.identifier.key(case_sensitive=True): r for r in both})
    found = await store.look_up([r.identifier.key(case_sensitive=True) for r in both])
    assert [f.record for f in found] == both


async def test_a_second_put_replaces(store: Store) -> None:
    await home(store)
    await put(store, odd_record("SN1"))
    second = record("SN1", version=2, sequence=2)
    await put(store, second)
    assert await store.list_records(PREFIX, None, 10) == [second]


async def test_look_up_of_4096_keys_keeps_their_order(store: Store) -> None:
    await home(store, PREFIX, "88.118.9")
    await put(store, *(record(f"SN{n:05}") for n in range(0, 4000, 2)))
    keys = [Key("88.118.9" if n % 5 == 0 else PREFIX, f"SN{n:05}".encode()) for n in range(4094)]
    keys = [*reversed(keys), keys[2], Key("nowhere", b"SN00002")]
    found = await store.look_up(keys)
    assert len(found) == 4096
    for key, (prefix, hit) in zip(keys, found, strict=True):
        assert (prefix and prefix.name) == (None if key.prefix == "nowhere" else key.prefix)
        number = int(key.suffix[2:])
        expected = key.prefix == PREFIX and number % 2 == 0 and number < 4000
        assert (hit is not None) == expected
        assert hit is None or hit.identifier.key() == key


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 257])
async def test_look_up_of_any_number_of_keys(store: Store, count: int) -> None:
    await home(store)
    await put(store, *(record(f"SN{n}") for n in range(count)))
    found = await store.look_up([Key(PREFIX, f"SN{n}".encode()) for n in range(count)])
    assert [str(f.record and f.record.identifier) for f in found] == [
        f"{PREFIX}/SN{n}" for n in range(count)
    ]


SUFFIXES = ["", "0", "00", "A", "A/", "A0", "AA", "Z", "_", "á", "é", "ü", "ñ", "中", "国",
            "標", "\uffdc", "😀", "𠀀", "-", "~", "A B", "Ａ"]  # fmt: skip


async def test_suffixes_are_listed_in_octet_order(store: Store) -> None:
    await home(store, PREFIX, "88.118.80")
    records = [record(f"x{suffix}") for suffix in SUFFIXES]
    await put(store, *records, record("other", prefix="88.118.80"))
    listed = [r.identifier.key().suffix for r in await store.list_records(PREFIX, None, 100)]
    assert listed == sorted(r.identifier.key().suffix for r in records)


async def test_paging_visits_every_record_once(store: Store) -> None:
    await home(store)
    await put(store, *(record(f"x{suffix}") for suffix in SUFFIXES))
    seen: list[bytes] = []
    after: bytes | None = None
    while page := await store.list_records(PREFIX, after, 5):
        assert len(page) <= 5
        seen += [r.identifier.key().suffix for r in page]
        after = seen[-1]
    assert seen == sorted(Identifier(PREFIX, f"x{s}").key().suffix for s in SUFFIXES)
    assert await store.list_records("no.such", None, 5) == []


async def test_paging_under_concurrent_inserts_repeats_and_misses_nothing(
    store: Store, peer: Store
) -> None:
    await home(store)
    first = [f"A{n:03}" for n in range(100)]
    await put(store, *(record(name) for name in first))

    async def insert() -> None:
        for n in range(100):
            await put(peer, record(f"A{n:03}X"))

    inserting = asyncio.create_task(insert())
    seen: list[str] = []
    after: bytes | None = None
    while page := await store.list_records(PREFIX, after, 7):
        seen += [r.identifier.suffix for r in page]
        after = seen[-1].encode()
        await asyncio.sleep(0)
    await inserting
    assert seen == sorted(set(seen))
    assert set(first) <= set(seen)
    assert len(await store.list_records(PREFIX, None, 1000)) == 200


async def test_tombstones_stay_and_purged_records_go(store: Store) -> None:
    await home(store)
    tombstone = record("dead", status=Status.RETIRED, values=(), version=3)
    await put(store, tombstone, record("purged"))
    async with store.transaction() as transaction:
        await transaction.purge_records([Key(PREFIX, b"PURGED"), Key("no.such", b"X")], 2)
        await transaction.purge_records([], 2)
    found = await store.look_up([Key(PREFIX, b"DEAD"), Key(PREFIX, b"PURGED")])
    assert [f.record for f in found] == [tombstone, None]
    assert await store.list_records(PREFIX, None, 10) == [tombstone]
    await put(store, record("purged", version=9))
    assert len(await store.list_records(PREFIX, None, 10)) == 2


async def test_a_record_needs_its_prefix(store: Store) -> None:
    with pytest.raises(AssertionError, match="not homed"):
        await put(store, record())
    async with store.transaction() as transaction:
        await transaction.put_prefixes([Prefix(PREFIX, "acme")])
        await transaction.put_records(keyed(record()))
    assert len(await store.list_records(PREFIX, None, 10)) == 1


async def test_prefixes_are_found_replaced_and_listed(store: Store) -> None:
    await home(store, "B", "a", "88.1", "88.118", "C-9", tenant="acme")
    await home(store, "b1", tenant="other")
    changed = Prefix("A", "new", PrefixStatus.SUSPENDED, 2**33, 5, 2**40)
    async with store.transaction() as transaction:
        await transaction.put_prefixes([changed])
        await transaction.put_prefixes([])
        assert await transaction.find_prefixes(["A", "NONE"]) == {"A": changed}
    assert (await store.find_prefixes(["A", "B", "NONE"])).keys() == {"A", "B"}
    assert await store.find_prefixes([]) == {}
    everything = await store.list_prefixes(None, 100)
    assert [p.name for p in everything] == ["88.1", "88.118", "A", "B", "b1", "C-9"]
    assert [p.name for p in await store.list_prefixes("88.118", 2)] == ["A", "B"]
    assert [p.name for p in await store.list_prefixes("A", 9, "acme")] == ["B", "C-9"]
    assert await store.list_prefixes(None, 9, "no one") == []


async def test_replacing_a_prefix_keeps_its_records(store: Store) -> None:
    await home(store)
    await put(store, record())
    async with store.transaction() as transaction:
        await transaction.put_prefixes([Prefix(PREFIX, "b", PrefixStatus.SUSPENDED)])
    [found] = await store.look_up([Key(PREFIX, b"SN1")])
    assert found.prefix == Prefix(PREFIX, "b", PrefixStatus.SUSPENDED)
    assert found.record == record()


async def test_newest_record_sequence_counts_records_and_prefixes(store: Store) -> None:
    assert await store.newest_record_sequence() == 0
    async with store.transaction() as transaction:
        await transaction.put_prefixes([Prefix(PREFIX, "acme", sequence=3)])
    assert await store.newest_record_sequence() == 3
    await put(store, record("a", sequence=7), record("b", sequence=2**40), record("c", sequence=5))
    assert await store.newest_record_sequence() == 2**40


async def test_a_record_of_the_greatest_size(store: Store) -> None:
    await home(store)
    big = replace(odd_record(), values=tuple(
        replace(odd_record().values[0], index=n, data=bytes([n]) * 65_536) for n in range(1, 5)
    ))  # fmt: skip
    await put(store, big)
    [found] = await store.look_up([big.identifier.key()])
    assert found.record == big
