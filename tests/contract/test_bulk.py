"""The bulk entrance on every store: rights, modes, names that are taken, repetition, limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from biaojie.account import PrefixStatus, Role
from biaojie.change import Entry
from biaojie.errors import (
    BiaojieError,
    Forbidden,
    IdempotencyMismatch,
    IdentifierTaken,
    InvalidRecord,
    PrefixNotHere,
    PrefixSuspended,
    TooLarge,
    Unauthenticated,
)
from biaojie.identifier import Key
from biaojie.record import Status, Value
from registry import bulk as bulks
from registry.admission import PUBLIC, SYSTEM, Caller
from registry.audit import audit
from registry.blocks import Bulk, Chunk, cut
from registry.changelog import pack_changes, unpack_changes
from registry.compaction import compact, last_entry_before
from registry.operations import ChangePrefix, Purge
from registry.registrar import Idempotency, Registrar
from registry.staging import Rules
from registry.store import Store
from tests.core_parts import PREFIX, create, home, identifier, later, modify, registering, write

NOW = 1_700_000_000
OWN = Caller("k1", "acme", Role.REGISTRAR)


@pytest.fixture
async def entries() -> list[Entry]:
    return []


@pytest.fixture
async def registrar(store: Store, entries: list[Entry]) -> AsyncIterator[Registrar]:
    async with registering(store, on_commit=entries.append, clock=lambda: float(NOW)) as opened:
        await home(opened)
        entries.clear()
        yield opened


def names(first: int, last: int, step: int = 1) -> list[str]:
    return [f"sn{n:05}" for n in range(first, last, step)]


def chunk(suffixes: list[str], prefix: str = PREFIX, data: bytes = b"x", **fields: Any) -> Bulk:
    shape = [Value(1, "URL", b"")]
    return cut(Chunk(prefix, suffixes, [shape], [[data] * len(suffixes)], **fields), NOW)


async def count(store: Store) -> int:
    total = 0
    after: bytes | None = None
    while page := await store.list_records(PREFIX, after, 500):
        total += len(page)
        after = page[-1].identifier.key().suffix
    return total


async def test_a_chunk_is_one_commit(
    store: Store, registrar: Registrar, entries: list[Entry]
) -> None:
    outcome = await registrar.load(OWN, chunk(names(0, 1_000)))
    assert (outcome.count, outcome.refused, outcome.sequence) == (1_000, (), 2)
    [entry] = entries
    assert (entry.action, entry.prefix, entry.actor) == ("bulk", PREFIX, "k1")
    assert sum(change.count for change in entry.changes) == 1_000
    assert entry.changes[0].subject == f"{PREFIX}/SN00000"
    assert entry.changes[-1].last == "SN00999"
    assert await store.list_changes(1, 5) == [entry]
    assert unpack_changes(pack_changes(entry.changes)) == entry.changes
    [found] = await store.look_up([Key(PREFIX, b"SN00500")])
    assert found.record is not None
    assert (str(found.record.identifier), found.record.sequence) == (f"{PREFIX}/sn00500", 2)
    assert await count(store) == 1_000
    assert (await audit(store)).faults == []


@pytest.mark.parametrize("mode", ["all", "valid-rows"])
async def test_names_that_are_taken(store: Store, registrar: Registrar, mode: Any) -> None:
    await registrar.load(OWN, chunk(names(100, 200)))
    await write(registrar, create("SN00300"), create("SN00301"), Purge(identifier("sn00150")))
    await write(registrar, modify("SN00160", status=Status.DRAFT))
    outcome = await registrar.load(OWN, chunk(names(0, 400), data=b"new"), mode=mode)
    taken = {f"{PREFIX}/{name}" for name in [*names(100, 200), "sn00300", "sn00301"]}
    taken.remove(f"{PREFIX}/sn00150")
    assert set(outcome.refused) == taken
    if mode == "all":
        assert (outcome.count, outcome.sequence) == (0, 0)
        assert await count(store) == 101
        return
    assert outcome.count == 400 - len(taken)
    assert await count(store) == 400
    [again, kept] = await store.look_up([Key(PREFIX, b"SN00150"), Key(PREFIX, b"SN00151")])
    assert again.record is not None
    assert kept.record is not None
    assert (again.record.values[0].data, again.record.sequence) == (b"new", outcome.sequence)
    assert (kept.record.values[0].data, kept.record.sequence) == (b"x", 2)
    assert (await audit(store)).faults == []


async def test_the_same_again_writes_nothing(
    store: Store, registrar: Registrar, entries: list[Entry]
) -> None:
    bulk = chunk(names(0, 500))
    await registrar.load(OWN, bulk)
    outcome = await registrar.load(OWN, bulk)
    assert (outcome.count, outcome.sequence, len(outcome.refused)) == (0, 0, 500)
    assert len(entries) == 1


async def test_an_idempotency_key(registrar: Registrar, entries: list[Entry]) -> None:
    key = Idempotency("a key", b"f" * 32)
    await registrar.load(OWN, chunk(["A"]))
    first = await registrar.load(OWN, chunk(["A", "B"]), idempotency=key)
    assert (first.count, first.refused, first.replayed) == (1, (f"{PREFIX}/A",), False)
    again = await registrar.load(OWN, chunk(["A", "B"]), idempotency=key)
    assert again == replace(first, replayed=True)
    other = Idempotency("a key", b"g" * 32)
    with pytest.raises(IdempotencyMismatch):
        await registrar.load(OWN, chunk(["C"]), idempotency=other)
    assert len(entries) == 2


async def test_one_winner_for_each_name(store: Store, registrar: Registrar) -> None:
    loads = [registrar.load(OWN, chunk(names(n, 300, 3 - n), data=b"%d" % n)) for n in range(3)]
    singles = [later(registrar, create(f"SN{n:05}")) for n in range(0, 300, 7)]
    outcomes = await asyncio.gather(*loads)
    created = 0
    for task in singles:
        with suppress(IdentifierTaken):
            (await task).single()
            created += 1
    assert sum(outcome.count for outcome in outcomes) + created == await count(store) == 300
    assert (await audit(store)).faults == []


@pytest.mark.parametrize(
    ("caller", "prefix", "error"),
    [
        (PUBLIC, PREFIX, Unauthenticated),
        (Caller("k", "acme", Role.READER), PREFIX, Forbidden),
        (Caller("k", "beta", Role.REGISTRAR), PREFIX, Forbidden),
        (OWN, "88.118.77", PrefixNotHere),
        (PUBLIC, "88.118.77", Unauthenticated),
    ],
)
async def test_who_may_not(
    store: Store, registrar: Registrar, caller: Caller, prefix: str, error: type[BiaojieError]
) -> None:
    with pytest.raises(error):
        await registrar.load(caller, chunk(["A"], prefix))
    assert (await store.head())[0] == 1


async def test_a_suspended_prefix(registrar: Registrar) -> None:
    await write(registrar, ChangePrefix(PREFIX, status=PrefixStatus.SUSPENDED))
    with pytest.raises(PrefixSuspended):
        await registrar.load(OWN, chunk(["A"]))
    assert (await registrar.load(SYSTEM, chunk(["A"]))).count == 1


async def test_slashes_where_none_may_be(store: Store) -> None:
    async with registering(store, rules=Rules(strict_slash=True)) as registrar:
        await home(registrar)
        with pytest.raises(InvalidRecord):
            await registrar.load(OWN, chunk(["A", "B/C"]))
        assert (await registrar.load(OWN, chunk(["A"]))).count == 1


async def test_names_too_scattered_for_one_commit(
    store: Store, registrar: Registrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registrar.load(OWN, chunk(names(0, 1_000, 2)))
    monkeypatch.setattr(bulks, "REWRITTEN_MAX", 5)
    with pytest.raises(TooLarge):
        await registrar.load(OWN, chunk(names(1, 1_000, 2)))
    assert await count(store) == 500
    assert (await registrar.load(OWN, chunk(names(1, 100, 2)))).count == 50


async def test_compaction_shows_nowhere(
    store: Store, registrar: Registrar, entries: list[Entry]
) -> None:
    await registrar.load(OWN, chunk(names(0, 200)))
    await write(registrar, *(create(f"T{n:04}", "v") for n in range(1_100)))
    await write(registrar, modify("sn00007", status=Status.DRAFT))
    await write(registrar, Purge(identifier("sn00008")))
    before = await store.list_records(PREFIX, None, 2_000)
    head = (await store.head())[0]
    report = await compact(store, registrar, SYSTEM, before=head + 1)
    assert (report.prefixes, report.rows, report.markers) == (1, 1_101, 1)
    assert await store.list_records(PREFIX, None, 2_000) == before
    assert await store.list_rows(PREFIX, None, 10) == []
    assert {entry.action for entry in entries[-2:]} == {"compact"}
    [purged] = await store.look_up([Key(PREFIX, b"SN00008")])
    assert purged.record is None
    assert (await registrar.load(OWN, chunk(["sn00008"]))).count == 1
    assert (await audit(store)).faults == []
    again = await compact(store, registrar, SYSTEM, before=head + 1, prefixes=[PREFIX.lower()])
    assert (again.rows, again.blocks, again.made) == (0, 0, 0)


async def test_what_changed_lately_stays_a_row(store: Store, registrar: Registrar) -> None:
    await write(registrar, *(create(f"A{n:02}") for n in range(20)))
    old = (await store.head())[0]
    await write(registrar, *(create(f"B{n:02}") for n in range(20)))
    await registrar.compact(SYSTEM, PREFIX, before=old + 1)
    rows = await store.list_rows(PREFIX, None, 100)
    assert [row.suffix for row in rows] == [b"B%02d" % n for n in range(20)]
    with pytest.raises(Forbidden):
        await registrar.compact(OWN, PREFIX, before=old)


async def test_the_last_entry_before_a_time(store: Store) -> None:
    now = 1_000.0
    async with registering(store, clock=lambda: now) as registrar:
        await home(registrar)
        for n in range(20):
            now = 1_010.0 + 10 * n
            await write(registrar, create(f"A{n}"))
    assert await last_entry_before(store, 0) == 0
    assert await last_entry_before(store, 1_000_001) == 1
    assert await last_entry_before(store, 1_055_000) == 6
    assert await last_entry_before(store, 10**9) == 21
