"""Races for one name on every store, clocks that jump, names that fold."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from biaojie.account import Prefix
from biaojie.errors import (
    BiaojieError,
    IdentifierTaken,
    PrefixNotHere,
    VersionMismatch,
)
from biaojie.record import Status
from registry.audit import audit
from registry.memory import MemoryStore
from registry.operations import (
    Condition,
)
from registry.registrar import Outcome, Registrar
from registry.staging import Rules
from tests.core_parts import (
    ACME,
    GatedStore,
    create,
    home,
    key,
    opened,
    put,
    records,
    registering,
    token,
    write,
)


@pytest.fixture
def store() -> GatedStore:
    return GatedStore()


@pytest.fixture
async def registrar(store: GatedStore) -> AsyncIterator[Registrar]:
    """Over a store with one homed prefix; its own calls are not counted."""
    async with registering(store) as opened:
        await home(opened)
        store.calls.clear()
        yield opened


# Races and clocks -----------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def two_stores(request: pytest.FixtureRequest) -> AsyncIterator[list[Any]]:
    """The same data as two processes have it (one object in memory, which has one process)."""
    if request.param == "memory":
        memory = MemoryStore()
        yield [memory, memory]
        return
    name = {"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]
    url: str = request.getfixturevalue(name)
    async with opened(url, write_timeout_s=20) as one, opened(url, write_timeout_s=20) as two:
        yield [one, two]


async def test_200_callers_for_one_identifier(two_stores: list[Any]) -> None:
    one, two = two_stores
    async with (
        registering(one, commit_timeout_s=20) as first,
        registering(two, commit_timeout_s=20) as second,
    ):
        await home(first)
        for round_ in range(3):
            spellings = [f"race{round_}", f"RACE{round_}", f"Race{round_}"]
            tasks = [
                asyncio.create_task(
                    (first, second)[n % 2].submit(ACME, [create(spellings[n % 3], str(n))])
                )
                for n in range(200)
            ]
            async with asyncio.timeout(30):
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            kinds = Counter(type(outcome) for outcome in outcomes)
            assert kinds == {Outcome: 1, IdentifierTaken: 199}
            [winner] = [n for n, o in enumerate(outcomes) if isinstance(o, Outcome)]
            [found] = await two.look_up([key(f"race{round_}")])
            assert found.record.values[0].text == str(winner)
            assert found.record.identifier.suffix == spellings[winner % 3]
        entries = await two.list_changes(1, 1_000)
        assert sum(entry.count for entry in entries) == 3
        assert (await audit(two)).faults == []


async def test_every_increment_counts(two_stores: list[Any]) -> None:
    """Optimistic writers with If-Match: nothing is overwritten unseen."""
    one, two = two_stores
    async with registering(one) as first, registering(two) as second:
        await home(first)
        await write(first, create("N", "0"))

        async def increment(registrar: Registrar, store: Any) -> None:
            while True:
                [found] = await store.look_up([key("N")])
                record = found.record
                now = int(record.values[0].text)
                condition = Condition(version=record.version, sequence=record.sequence)
                try:
                    await write(registrar, put("N", str(now + 1), condition=condition))
                except VersionMismatch:
                    continue
                return

        async with asyncio.timeout(30):
            await asyncio.gather(
                *(increment(r, s) for r, s in [(first, one), (second, two)] for _ in range(8))
            )
        [found] = await one.look_up([key("N")])
        assert found.record.values[0].text == "16"
        assert found.record.version == 17


async def test_a_clock_that_jumps(store: GatedStore) -> None:
    """Order comes from sequence and version; a clock set back or forward breaks neither."""
    now = [1_700_000_000.0]
    async with registering(store, clock=lambda: now[0]) as registrar:
        await home(registrar)
        await registrar.submit(ACME, [create()], idempotency=token())
        for jump in (-3_600, -86_400, 2 * 86_400, -86_400 + 3_600, 86_400):
            now[0] += jump
            before = (await records(store, "SN1"))[0]
            receipt = (await write(registrar, put())).single()
            assert receipt.version == before.version + 1
            assert receipt.sequence == before.sequence + 1
            again = await registrar.submit(ACME, [create()], idempotency=token())
            assert again.replayed, "a jump of a day must not make receipts forgotten"
        entries = await store.list_changes(0, 100)
        assert [e.sequence for e in entries] == list(range(1, len(entries) + 1))
        assert len({e.time_ms for e in entries}) > 3
        assert (await audit(store)).faults == []


async def test_rules_are_the_nodes(store: GatedStore) -> None:
    rules = Rules(case_sensitive=True, strict_slash=True)
    async with registering(store, rules=rules) as registrar:
        await home(registrar)
        await write(registrar, create("a"), create("A"))
        with pytest.raises(BiaojieError) as error:
            await write(registrar, create("a/b"))
        assert error.value.code == "invalid-record"
        assert (await audit(store, case_sensitive=True)).faults == []


async def test_prefixes_fold(store: GatedStore) -> None:
    async with registering(store) as registrar:
        await home(registrar, "ACME.x")
        for name in ("acme.X", "ACME.X"):
            with pytest.raises(BiaojieError) as error:
                await home(registrar, name)
            assert error.value.code == "prefix-taken"
        receipt = (await write(registrar, create(prefix="acme.X"))).single()
        assert receipt.identifier == "acme.X/SN1"
        with pytest.raises(IdentifierTaken):
            await write(registrar, create("sn1", prefix="ACME.X"))
        with pytest.raises(PrefixNotHere):
            await write(registrar, create(prefix="ACME.Y"))
        [found] = await store.look_up([key("sn1", "acme.x")])
        assert found.prefix == Prefix(
            "ACME.x", "acme", created=found.prefix.created, sequence=found.prefix.sequence
        )
        assert found.record.status is Status.ACTIVE
        assert (await audit(store)).faults == []
