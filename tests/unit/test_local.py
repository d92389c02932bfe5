"""The registry as a step: gathered look-ups, and what is said while it does not answer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from biaojie.errors import (
    IdentifierNotFound,
    Internal,
    OverCapacity,
    TemporarilyUnavailable,
)
from biaojie.record import Status
from registry.memory import MemoryStore
from registry.operations import Retire
from resolver.core import Answer, Resolver, Source
from resolver.health import Health
from resolver.steps.local import BATCH_KEYS_MAX, LocalStep
from tests.core_parts import (
    GatedStore,
    create,
    home,
    identifier,
    key,
    nothing_left_behind,
    opened,
    put,
    registering,
    secret,
    value,
    write,
)


async def filled(count: int = 3) -> GatedStore:
    store = GatedStore()
    async with registering(store) as registrar:
        await home(registrar)
        await write(registrar, *(create(f"S{n}", str(n)) for n in range(count)))
    store.calls.clear()
    return store


def step(store: Any, **options: Any) -> LocalStep:
    return LocalStep(store, Health(), **{"timeout_s": 0.3, **options})


# Gathering ------------------------------------------------------------------------------


async def test_names_asked_together_are_looked_up_together() -> None:
    store = await filled(1_000)
    local = step(store)
    found = await asyncio.gather(*(local.fetch(key(f"S{n}")) for n in range(1_000)))
    assert store.calls["look_up"] <= 3
    for n, (_, record) in enumerate(found):
        assert record is not None
        assert record.values[0].text == str(n)


async def test_who_comes_during_a_look_up_shares_the_next() -> None:
    store = await filled(200)
    local = step(store, lanes=1)
    store.close_gate("look_up")
    first = asyncio.create_task(local.fetch(key("S0")))
    await store.reached("look_up")
    rest = [asyncio.create_task(local.fetch(key(f"S{n}"))) for n in range(1, 200)]
    same = [asyncio.create_task(local.fetch(key("S5"))) for _ in range(50)]
    await asyncio.sleep(0)
    store.open_gate("look_up")
    await asyncio.gather(first, *rest, *same)
    assert store.calls["look_up"] == 2


async def test_a_lone_miss_waits_for_no_timer() -> None:
    local = step(await filled())
    task = asyncio.create_task(local.fetch(key("S1")))
    for _ in range(30):
        await asyncio.sleep(0)
    assert task.done()


async def test_a_batch_has_a_bound() -> None:
    sizes = []

    class Counting(MemoryStore):
        async def look_up(self, keys: Any) -> Any:
            sizes.append(len(keys))
            return await super().look_up(keys)

    store = Counting()
    local = step(store, pending_max=10_000)
    await asyncio.gather(*(local.fetch(key(f"S{n}")) for n in range(2_000)))
    assert max(sizes) == BATCH_KEYS_MAX
    assert sum(sizes) == 2_000


async def test_lanes_run_side_by_side() -> None:
    store = await filled()
    local = step(store, lanes=2)
    store.close_gate("look_up")
    tasks = []
    for n in range(3):
        tasks.append(asyncio.create_task(local.fetch(key(f"S{n}"))))
        await asyncio.sleep(0.001)
    await store.reached("look_up", 2)
    assert store.calls["look_up"] == 2
    store.open_gate("look_up")
    await asyncio.gather(*tasks)


async def test_whoever_asks_again_at_once_is_looked_after() -> None:
    """No moment at which both lanes have just stopped and nobody starts another."""
    local = step(await filled(50))

    async def ask_on(number: int) -> None:
        for n in range(50):
            await local.fetch(key(f"S{(n * number) % 50}"))

    for callers in range(1, 8):
        async with asyncio.timeout(5):
            await asyncio.gather(*(ask_on(number) for number in range(callers)))


async def test_callers_that_gave_up_are_not_looked_up() -> None:
    store = await filled()
    local = step(store, lanes=1)
    store.close_gate("look_up")
    first = asyncio.create_task(local.fetch(key("S0")))
    await store.reached("look_up")
    given_up = [asyncio.create_task(local.fetch(key(f"X{n}"))) for n in range(BATCH_KEYS_MAX + 5)]
    last = asyncio.create_task(local.fetch(key("S1")))
    await asyncio.sleep(0)
    for task in given_up:
        task.cancel()
    await asyncio.sleep(0)
    store.open_gate("look_up")
    await asyncio.gather(first, last)
    assert store.calls["look_up"] == 2


async def test_waiting_callers_are_bounded_however_few_the_names() -> None:
    store = await filled()
    local = step(store, lanes=1, pending_max=10)
    store.close_gate("look_up")
    first = asyncio.create_task(local.fetch(key("S0")))
    await store.reached("look_up")
    waiting = [asyncio.create_task(local.fetch(key("S1"))) for _ in range(10)]
    await asyncio.sleep(0)
    for suffix in ("S1", "S2"):
        with pytest.raises(OverCapacity):
            await local.fetch(key(suffix))
    store.open_gate("look_up")
    await asyncio.gather(first, *waiting)
    assert (await local.fetch(key("S1"))).record is not None


async def test_who_asks_after_a_commit_is_not_answered_by_a_look_up_from_before() -> None:
    store = await filled()
    local = step(store, lanes=1)
    async with registering(store) as registrar:
        for n in range(20):
            early = asyncio.create_task(local.fetch(key("S1")))
            await asyncio.sleep(0)
            await write(registrar, put("S1", f"new {n}"))
            late = await local.fetch(key("S1"))
            assert late.record is not None
            assert late.record.values[0].text == f"new {n}"
            await early


async def test_closing_waits_for_what_is_under_way() -> None:
    store = await filled()
    local = step(store)
    async with nothing_left_behind():
        store.close_gate("look_up")
        task = asyncio.create_task(local.fetch(key("S1")))
        await store.reached("look_up")
        closing = asyncio.create_task(local.close())
        await asyncio.sleep(0)
        assert not closing.done()
        store.open_gate("look_up")
        await closing
        assert (await task).record is not None
        await local.close()


# What the public gets -------------------------------------------------------------------


async def test_what_is_not_homed_here_is_asked_onward() -> None:
    elsewhere = Answer(None, IdentifierNotFound, Source.STORE, 0, 0)
    asked = []

    class Elsewhere:
        async def resolve(self, keys: Any, onward: Any) -> list[Answer]:
            asked.extend(keys)
            return [elsewhere for _ in keys]

    resolver = Resolver([step(await filled()), Elsewhere()])
    assert await resolver.resolve(key("X", "88.118.9")) is elsewhere
    assert (await resolver.resolve(key("X"))).absence is IdentifierNotFound
    assert asked == [key("X", "88.118.9")]


async def test_the_public_answer_has_no_private_values() -> None:
    store = GatedStore()
    async with registering(store) as registrar:
        await home(registrar)
        await write(registrar, create("A", values=(value(), secret())))
        await write(registrar, create("D", status=Status.DRAFT), create("R"))
        await write(registrar, Retire(identifier("R")))
    local = step(store)
    answer = await Resolver([local]).resolve(key("A"))
    assert [v.index for v in answer.found().values] == [1]
    assert answer.source is Source.STORE
    # Those with rights ask elsewhere.
    fetched = await local.fetch(key("A"))
    assert fetched.record is not None
    assert [v.index for v in fetched.record.values] == [1, 9]


# When it does not answer ----------------------------------------------------------------


async def test_a_look_up_that_fails_marks_the_registry_as_down() -> None:
    store = await filled()
    local = step(store)
    async with nothing_left_behind():
        store.errors["look_up"] = TemporarilyUnavailable("gone", "没了", outcome="x")
        errors = await asyncio.gather(
            *(local.fetch(key(f"S{n % 5}")) for n in range(20)), return_exceptions=True
        )
        assert {type(error) for error in errors} == {TemporarilyUnavailable}
        assert {error.detail for error in errors} == {("gone", "没了")}  # type: ignore[union-attr]
        assert len({id(error) for error in errors}) == 20
        assert local._health.down
        # From now on nobody asks it.
        calls = store.calls["look_up"]
        with pytest.raises(TemporarilyUnavailable):
            await local.fetch(key("S1"))
        with pytest.raises(TemporarilyUnavailable):
            await local.find_key(bytes(32))
        assert store.calls["look_up"] == calls
        assert store.calls["find_key"] == 0


async def test_a_look_up_that_hangs_ends_at_its_timeout_for_all_who_wait() -> None:
    """Also for those in the queue behind it: they must not wait once more each."""
    store = await filled()
    local = step(store, timeout_s=0.1, lanes=2)
    async with nothing_left_behind():
        store.close_gate("look_up")
        started = time.monotonic()
        tasks = []
        for n in range(5 * BATCH_KEYS_MAX):
            tasks.append(asyncio.create_task(local.fetch(key(f"N{n}"))))
            if n < 2:
                await store.reached("look_up", n + 1)
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(error) for error in errors} == {TemporarilyUnavailable}
        assert store.calls["look_up"] == 2
        assert time.monotonic() - started < 1.5
    store.open_gate("look_up")


async def test_a_key_look_up_that_hangs_ends_too() -> None:
    store = await filled()
    local = step(store, timeout_s=0.05)
    store.close_gate("find_key")
    with pytest.raises(TemporarilyUnavailable):
        await local.find_key(bytes(32))
    assert local._health.down


@pytest.mark.parametrize("batch", [1, 2, 7, 100])
async def test_a_record_that_cannot_be_read_harms_no_other(batch: int) -> None:
    class Damaged(MemoryStore):
        async def look_up(self, keys: Any) -> Any:
            if key("S0") in keys:
                raise ValueError("not msgpack")
            return await super().look_up(keys)

    store = Damaged()
    async with registering(store) as registrar:
        await home(registrar)
        await write(registrar, *(create(f"S{n}", str(n)) for n in range(1, 100)))
    local = step(store)
    outcomes: list[Any] = await asyncio.gather(
        *(local.fetch(key(f"S{n}")) for n in range(batch)), return_exceptions=True
    )
    assert isinstance(outcomes[0], Internal)
    assert [o.record.values[0].text for o in outcomes[1:]] == [str(n) for n in range(1, batch)]
    assert not local._health.down, "it answered"


async def test_a_damaged_row_in_a_database(database_url: str) -> None:
    async with opened(database_url) as store, registering(store) as registrar:
        await home(registrar)
        await write(registrar, *(create(f"S{n}", str(n)) for n in range(20)))
        async with store._pools.write() as connection:
            await connection.exec_driver_sql(
                "UPDATE records SET blob = '' WHERE suffix = %s"
                % ("X'5337'" if "sqlite" in database_url else r"'\x5337'")
            )
        local = step(store, timeout_s=5)
        outcomes = await asyncio.gather(
            *(local.fetch(key(f"S{n}")) for n in range(20)), return_exceptions=True
        )
        assert [n for n, o in enumerate(outcomes) if isinstance(o, Exception)] == [7]
        assert isinstance(outcomes[7], Internal)
