"""Statistics: what is counted bit by bit is what a count of the whole log gives."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from biaojie.account import Prefix
from biaojie.change import Action
from biaojie.errors import BiaojieError, TemporarilyUnavailable
from biaojie.identifier import Identifier, fold_prefix
from biaojie.record import Value
from registry import statistics
from registry.admission import SYSTEM
from registry.blocks import Chunk, cut
from registry.operations import Purge, Retire
from registry.registrar import Registrar
from registry.sql.tables import metadata
from registry.statistics import (
    ALL_DAYS,
    ALL_PREFIXES,
    RESOLVED,
    Cell,
    Census,
    Octets,
    Scope,
    Statistics,
    Templates,
    Totals,
    date_of,
    day_of,
    report,
)
from registry.store import Store
from tests.audited import traffic
from tests.core_parts import create, home, identifier, modify, put, registering, write

A, B = "88.118.8", "cn.Acme"
DAY_MS = 86_400_000
LARGE = 10_000
TODAY = 20_000


class Clock:
    """Time as the registrar sees it: TODAY unless a test says otherwise."""

    def __init__(self) -> None:
        self.day = TODAY

    def __call__(self) -> float:
        return self.day * 86_400 + 5.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def registrar(store: Store, clock: Clock) -> AsyncIterator[Registrar]:
    async with registering(store, clock=clock) as made:
        await home(made, A)
        await home(made, B, "beta")
        yield made


async def fold(store: Store) -> None:
    while await store.fold_statistics():
        pass


async def counted_at_once(store: Any) -> Counter[Cell]:
    """From all changes, one by one."""
    counts: Counter[Cell] = Counter()
    for entry in await store.list_changes(0, 1_000_000):
        for change in entry.changes:
            if "/" not in change.subject:
                continue
            prefix = fold_prefix(change.subject.partition("/")[0])
            for day in (entry.time_ms // DAY_MS, ALL_DAYS):
                for name in (prefix, ALL_PREFIXES):
                    counts[Cell(day, name, change.action.value)] += 1
    return counts


async def everything(store: Store, days: list[int]) -> Statistics:
    names = [ALL_PREFIXES, fold_prefix(A), fold_prefix(B), "88.118.9"]
    return await store.read_statistics(names, [ALL_DAYS, *days])


async def test_what_is_counted_is_what_the_log_says(
    store: Store, registrar: Registrar, clock: Clock
) -> None:
    await write(registrar, *(create(f"S{n}") for n in range(5)), create("S0", prefix=B))
    await write(registrar, create("S6"), put("S6", "again"), modify("S1", set=()))
    await fold(store)
    assert (await everything(store, [TODAY])).counts == await counted_at_once(store)
    clock.day += 1
    await write(registrar, Retire(identifier("S2")), Purge(identifier("S3")))
    await write(registrar, Purge(Identifier(B, "S0")))
    await fold(store)
    got = await everything(store, [TODAY, TODAY + 1])
    assert got.sequence == (await store.head())[0]
    assert got.counts == await counted_at_once(store)
    assert got.totals(ALL_DAYS, [ALL_PREFIXES]) == Totals(7, 2, 1, 2)
    assert got.totals(ALL_DAYS, [ALL_PREFIXES]).identifiers == 5
    assert got.totals(TODAY + 1, [fold_prefix(B)]) == Totals(purged=1)


async def test_counting_beside_writers_and_beside_others_counts_each_entry_once(
    store: Store, peer: Store, registrar: Registrar
) -> None:
    await home(registrar, "88.118.9", "beta")
    async with traffic(registrar, 3) as busy:
        while sum(each.done for each in busy) < 150:
            counting = [each.fold_statistics() for each in (store, peer, store)]
            await asyncio.gather(*counting)
            got = await everything(store, [])
            assert got.sequence <= (await store.head())[0]
    await asyncio.gather(fold(store), fold(peer))
    got = await everything(store, [TODAY])
    assert got.sequence == (await store.head())[0]
    assert got.counts == await counted_at_once(store)
    assert got.totals(ALL_DAYS, [ALL_PREFIXES]).registered > 20


async def test_more_entries_than_are_counted_at_once(
    store: Store, registrar: Registrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(statistics.ENTRIES_MAX + 3):
        await write(registrar, create(f"S{n}"))
    assert await store.fold_statistics()
    assert (await everything(store, [])).sequence == statistics.ENTRIES_MAX
    assert not await store.fold_statistics()
    assert not await store.fold_statistics()
    assert (await everything(store, [TODAY])).counts == await counted_at_once(store)


async def test_resolutions_are_added_by_those_who_answered(store: Store, peer: Store) -> None:
    await store.add_resolutions(TODAY, 7)
    await peer.add_resolutions(TODAY, 5)
    await store.add_resolutions(TODAY + 1, 1)
    got = await peer.read_statistics([ALL_PREFIXES], [ALL_DAYS, TODAY, TODAY + 1])
    assert [got.counts[Cell(day, ALL_PREFIXES, RESOLVED)] for day in (TODAY, TODAY + 1)] == [12, 1]
    assert got.totals(ALL_DAYS, [ALL_PREFIXES]).resolved == 13


async def test_a_report_of_all_of_a_tenant_and_of_a_prefix(
    store: Store, registrar: Registrar, clock: Clock
) -> None:
    await write(registrar, create("S1"), create("S2"), create("S1", prefix=B))
    clock.day += 2
    await write(registrar, create("S3"), Retire(identifier("S1")))
    await store.add_resolutions(clock.day, 9)
    await fold(store)
    everybody = await report(store, Scope(), clock.day, 4)
    assert everybody.whole
    assert everybody.sequence == (await store.head())[0]
    assert everybody.total == Totals(4, 0, 1, 0, 9)
    assert [(date_of(day), totals.registered) for day, totals in everybody.days] == [
        ("2024-10-03", 0),
        ("2024-10-04", 3),
        ("2024-10-05", 0),
        ("2024-10-06", 1),
    ]
    assert everybody.days[-1][1].resolved == 9
    assert everybody.octets == await store.octets()
    names = [(prefix.name, totals.identifiers) for prefix, totals in everybody.prefixes]
    assert names == [(A, 3), (B, 1)]
    page = await report(store, Scope(after=A, limit=1), clock.day, 1)
    assert [prefix.name for prefix, _ in page.prefixes] == [B]
    assert page.total == everybody.total

    beta = await report(store, Scope(tenant="beta"), clock.day, 4)
    assert (beta.whole, beta.total, beta.octets) == (False, Totals(1), None)
    assert [prefix.name for prefix, _ in beta.prefixes] == [B]
    nobody = await report(store, Scope(tenant="none"), clock.day, 4)
    assert (nobody.total, nobody.prefixes) == (Totals(), ())
    one = await report(store, Scope(prefix=Prefix(A, "acme")), clock.day, 1)
    assert (one.total, one.octets) == (Totals(3, 0, 1), None)
    assert one.days == ((clock.day, Totals(1, 0, 1)),)


async def test_bytes_grow_with_what_is_written(
    store: Store, registrar: Registrar, store_url: str | None
) -> None:
    before = await store.octets()
    chance = random.Random(1)  # what is drawn by lot cannot be compressed
    data = [chance.randbytes(100) for _ in range(1_000)]
    run = Chunk(A, [f"S{n:04}" for n in range(1_000)], [[Value(1, "X", b"")]], [data])
    await registrar.load(SYSTEM, cut(run, 1_700_000_000))
    large = [Value(1, "X", chance.randbytes(LARGE)) for _ in range(64)]
    await write(registrar, *(create(f"R{n}", values=(each,)) for n, each in enumerate(large)))
    after = await store.octets()
    if store_url is None:
        assert before == after == Octets()
        return
    assert after.total - before.total > 64 * LARGE
    if store_url.startswith("sqlite"):
        assert (before.tables, after.tables) == ({}, {})
        return
    assert list(after.tables) == sorted(metadata.tables)
    assert after.total == sum(after.tables.values())
    assert after.tables["records"] - before.tables["records"] > 64 * LARGE
    assert after.tables["blocks"] > before.tables["blocks"]
    assert after.tables["api_keys"] == before.tables["api_keys"]


async def test_a_report_is_of_one_moment_or_none(store: Store, registrar: Registrar) -> None:
    class Racing:
        """Entries are counted between any two reads, the first few times."""

        def __init__(self, races: int) -> None:
            self.races = races

        async def list_prefixes(self, *arguments: Any) -> list[Prefix]:
            return await store.list_prefixes(*arguments)

        async def read_statistics(self, *arguments: Any) -> Statistics:
            found = await store.read_statistics(*arguments)
            if self.races:
                self.races -= 1
                await write(registrar, create(f"R{self.races}"))
                await fold(store)
            return found

        async def read_census(self, *arguments: Any) -> Census:
            return await store.read_census(*arguments)

        async def read_templates(self, *arguments: Any) -> Templates:
            return await store.read_templates(*arguments)

        async def octets(self) -> Octets:
            return await store.octets()

    racing: Any = Racing(4)
    made = await report(racing, Scope(), TODAY, 1)
    assert made.sequence == (await store.head())[0]
    assert made.total.registered == sum(totals.registered for _, totals in made.prefixes) == 4
    with pytest.raises(TemporarilyUnavailable):
        await report(Racing(10**6), Scope(), TODAY, 1)  # type: ignore[arg-type]


def test_days_before_the_first_are_not_all_days() -> None:
    assert day_of(-5) == day_of(0) == 1
    assert day_of(TODAY * DAY_MS - 1) == TODAY - 1
    assert day_of(TODAY * DAY_MS) == TODAY


async def test_chances_of_every_kind(store: Store, registrar: Registrar, clock: Clock) -> None:
    chance = random.Random(3)
    for _ in range(40):
        clock.day = TODAY + chance.randrange(3)
        prefix = chance.choice([A, B])
        names = [f"N{chance.randrange(6)}" for _ in range(chance.randrange(1, 4))]
        kind: Any = chance.choice([create, put, Retire, Purge])
        operations: list[Any] = [
            kind(name, prefix=prefix) if kind in (create, put) else kind(Identifier(prefix, name))
            for name in dict.fromkeys(names)
        ]
        try:
            await write(registrar, *operations)
        except BiaojieError:
            continue
        if chance.random() < 0.3:
            await store.fold_statistics()
    await fold(store)
    days = [TODAY, TODAY + 1, TODAY + 2]
    assert (await everything(store, days)).counts == await counted_at_once(store)
    listed = sum([len(await store.list_records(fold_prefix(p), None, 1_000)) for p in (A, B)])
    whole = await report(store, Scope(), TODAY + 2, 3)
    assert whole.total.identifiers == listed
    assert Action.CREATE in {cell.action for cell in (await everything(store, days)).counts}
