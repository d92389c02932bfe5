"""Who counts: resolutions are added once each, whatever fails or stops in between."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from biaojie.errors import Forbidden, PrefixNotHere, TemporarilyUnavailable, Unauthenticated
from registry.admission import PUBLIC
from registry.memory import MemoryStore
from registry.statistics import ALL_DAYS, ALL_PREFIXES, Scope
from resolver.observe import Observer
from resolver.statistics import Statistician, ask
from tests.core_parts import (
    ACME,
    ACME_READER,
    ADMIN,
    BETA,
    GatedStore,
    create,
    home,
    registering,
    write,
)

DAY = 20_000


class Count:
    """How many the node has answered."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def counting(
    store: Any, resolved: Count, poll_s: float = 3_600, folds: bool = True
) -> Statistician:
    clock = lambda: DAY * 86_400.0  # noqa: E731
    return Statistician(store, resolved, folds=folds, poll_s=poll_s, clock=clock)


async def added(store: MemoryStore) -> int:
    found = await store.read_statistics([ALL_PREFIXES], [ALL_DAYS, DAY])
    whole, today = (found.totals(day, [ALL_PREFIXES]).resolved for day in (ALL_DAYS, DAY))
    assert whole == today
    return whole


async def test_each_resolution_is_added_once() -> None:
    store, resolved = GatedStore(), Count()
    statistician = counting(store, resolved)
    await statistician.count()
    assert store.calls["add_resolutions"] == 0, "nothing to add"
    resolved.now = 5
    await statistician.count()
    await statistician.count()
    assert await added(store.inner) == 5
    store.errors["add_resolutions"] = TemporarilyUnavailable()
    resolved.now = 9
    with pytest.raises(TemporarilyUnavailable):
        await statistician.count()
    del store.errors["add_resolutions"]
    await statistician.count()
    assert await added(store.inner) == 9
    assert store.calls["add_resolutions"] == 3


async def test_an_orderly_stop_adds_the_rest() -> None:
    store, resolved = GatedStore(), Count()
    statistician = counting(store, resolved)
    statistician.start()
    await asyncio.sleep(0)
    resolved.now = 7
    await statistician.stop()
    await statistician.stop()
    assert await added(store.inner) == 7


async def test_a_stop_in_the_middle_neither_forgets_nor_adds_twice() -> None:
    store, resolved = GatedStore(), Count()
    store.close_gate("add_resolutions")
    statistician = counting(store, resolved, poll_s=0.001)
    resolved.now = 3
    statistician.start()
    await store.reached("add_resolutions")
    resolved.now = 4
    stopping = asyncio.create_task(statistician.stop())
    await asyncio.sleep(0.01)
    assert not stopping.done()
    store.open_gate("add_resolutions")
    await asyncio.wait_for(stopping, 5)
    assert await added(store.inner) == 4


async def test_it_goes_on_after_the_registry_was_away() -> None:
    store, resolved = GatedStore(), Count()
    store.errors["fold_statistics"] = TemporarilyUnavailable()
    store.errors["add_resolutions"] = RuntimeError("a mistake of ours")
    statistician = counting(store, resolved, poll_s=0.001)
    resolved.now = 1
    statistician.start()
    async with asyncio.timeout(5):
        while store.calls["add_resolutions"] < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        store.errors.pop("add_resolutions")
        while store.calls["fold_statistics"] < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        store.errors.clear()
    await statistician.stop()
    assert await added(store.inner) == 1


async def test_only_one_worker_counts_the_log() -> None:
    store = GatedStore()
    await counting(store, Count(), folds=False).count()
    assert store.calls["fold_statistics"] == 0
    await counting(store, Count()).count()
    assert store.calls["fold_statistics"] == 1


def test_resolutions_are_what_the_metrics_count() -> None:
    observer = Observer()
    observer.tally("http", "resolve").add(0.001)
    observer.tally("native", "resolve").add(0.001, 10)
    observer.tally("handle-udp", "resolution").add(0.001, 100)
    observer.tally("http", "page").add(0.001, 1_000)
    observer.tally("http", "resolve", "identifier-not-found").add(0.001, 5)
    observer.tally("http", "put").add(0.001, 5)
    assert observer.resolved == 1_111


async def test_who_may_see_which_numbers() -> None:
    store = MemoryStore()
    async with registering(store) as registrar:
        await home(registrar)
        await home(registrar, "88.118.9", "beta")
        await write(registrar, create("S1"), create("S2"), create("S1", prefix="88.118.9"))
    while await store.fold_statistics():
        pass

    async def total(caller: Any, prefix: str | None = None) -> tuple[int, bool]:
        made = await ask(store, caller, prefix, 1, Scope(limit=10))
        return made.total.identifiers, made.whole

    assert await total(ADMIN) == (3, True)
    assert await total(ACME) == await total(ACME_READER) == (2, False)
    assert await total(BETA) == (1, False)
    assert await total(ADMIN, "88.118.9") == await total(BETA, "88.118.9") == (1, False)
    for caller, error in ((ACME, Forbidden), (PUBLIC, Unauthenticated)):
        with pytest.raises(error):
            await total(caller, "88.118.9")
    with pytest.raises(Unauthenticated):
        await total(PUBLIC)
    with pytest.raises(PrefixNotHere):
        await total(ADMIN, "88.118.77")
