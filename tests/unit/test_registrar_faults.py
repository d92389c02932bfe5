"""The registrar when callers give up, commits fail and the node stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from biaojie.change import Entry
from biaojie.errors import (
    BiaojieError,
    DeadlineExceeded,
    Internal,
    OverCapacity,
    StorageFull,
    TemporarilyUnavailable,
)
from registry.audit import audit
from registry.registrar import Outcome, Registrar
from tests.core_parts import (
    ACME,
    GatedStore,
    create,
    home,
    later,
    put,
    records,
    registering,
    settled,
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


# Bounds and callers that give up --------------------------------------------------------


async def test_the_queue_is_bounded(store: GatedStore) -> None:
    async with registering(store, queue_operations_max=10) as registrar:
        await home(registrar)
        store.close_gate("commit")
        tasks = [later(registrar, create("A"))]
        await store.reached("commit")
        tasks += [later(registrar, *(create(f"{n}-{i}") for i in range(5))) for n in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(OverCapacity):
            await registrar.submit(ACME, [create("B")], idempotency=token())
        tasks[1].cancel()
        store.open_gate("commit")
        await settled(tasks)
        # Refused, so its key is free; and there is room again.
        assert not (await registrar.submit(ACME, [create("B")], idempotency=token())).replayed


async def test_who_gives_up_in_the_queue_is_not_served(
    store: GatedStore, registrar: Registrar
) -> None:
    store.close_gate("commit")
    tasks = [later(registrar, create("A"))]
    await store.reached("commit")
    tasks += [later(registrar, create(s), idempotency=token(s)) for s in ("B", "C")]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    store.open_gate("commit")
    await settled(tasks)
    assert [r is not None for r in await records(store, "A", "B", "C")] == [True, False, True]
    outcome = await registrar.submit(ACME, [create("B")], idempotency=token("B"))
    assert not outcome.replayed


async def test_who_gives_up_during_the_commit_harms_nobody(
    store: GatedStore, registrar: Registrar
) -> None:
    store.close_gate("commit")
    tasks = [later(registrar, create(s)) for s in ("A", "B", "C")]
    await store.reached("commit")
    tasks[1].cancel()
    await asyncio.sleep(0)
    store.open_gate("commit")
    outcomes = await settled(tasks)
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert outcomes[0].sequence == outcomes[2].sequence == 2
    assert all(await records(store, "A", "B", "C"))


# Failures -------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["transaction", "load", "put_records", "commit", "committed"])
@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (TemporarilyUnavailable("Gone.", outcome="unknown"), TemporarilyUnavailable),
        (StorageFull("Full."), StorageFull),
        (OSError("odd"), Internal),
    ],
)
async def test_a_failed_commit_fails_its_group_and_the_next_works(
    store: GatedStore, at: str, raised: Exception, seen: type[BiaojieError]
) -> None:
    told: list[Entry] = []
    if at in ("load", "put_records"):
        store = _FailingInside(at)
    async with registering(store, on_commit=told.append) as registrar:
        await home(registrar)
        told.clear()
        store.errors[at] = raised
        errors = await settled([later(registrar, create(f"S{n}")) for n in range(3)])
        assert [type(error) for error in errors] == [seen] * 3
        assert len({id(error) for error in errors}) == 3
        if isinstance(raised, BiaojieError):
            assert errors[0].fields == raised.fields
            assert errors[0].detail == raised.detail
        assert told == []
        del store.errors[at]
        assert (await write(registrar, create("NEXT"))).single().version == 1
        assert len(told) == 1
        if at != "committed":
            assert await records(store, "S0", "S1", "S2") == [None] * 3
        assert (await audit(store)).faults == []


class _FailingInside(GatedStore):
    """Fails in a method of the transaction."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def transaction(self) -> Any:
        context = super().transaction()
        name, errors = self._name, self.errors

        class Wrapped:
            async def __aenter__(self) -> Any:
                transaction = await context.__aenter__()

                async def fail(*arguments: Any) -> Any:
                    if name in errors:
                        raise errors[name]
                    return await getattr(transaction._inner, name)(*arguments)

                setattr(transaction, name, fail)
                return transaction

            async def __aexit__(self, *exc_info: Any) -> Any:
                return await context.__aexit__(*exc_info)

        return Wrapped()


async def test_a_commit_that_hangs_ends_at_its_timeout(store: GatedStore) -> None:
    async with registering(store, commit_timeout_s=0.05) as registrar:
        await home(registrar)
        store.close_gate("commit")
        errors = await settled([later(registrar, create(f"S{n}")) for n in range(3)])
        assert [type(error) for error in errors] == [DeadlineExceeded] * 3
        store.open_gate("commit")
        assert (await write(registrar, create("NEXT"))).single().version == 1
        assert await records(store, "S0") == [None]


async def test_listeners_that_fail_stop_nobody(store: GatedStore) -> None:
    def fail(entry: Entry) -> None:
        raise RuntimeError("not your problem")

    async with registering(store, on_commit=fail) as registrar:
        await home(registrar)
        assert (await write(registrar, create())).single().version == 1
        assert (await write(registrar, put())).single().version == 2


async def test_listeners_hear_before_the_writer(store: GatedStore) -> None:
    heard: list[str] = []
    async with registering(store, on_commit=lambda entry: heard.append("cache")) as registrar:
        await home(registrar)
        heard.clear()
        tasks = [later(registrar, create(f"S{n}")) for n in range(3)]
        for task in tasks:
            task.add_done_callback(lambda task: heard.append("writer"))
        await settled(tasks)
        await asyncio.sleep(0)
    assert heard == ["cache", "writer", "writer", "writer"]


async def test_the_watcher_is_told_of_every_commit(store: GatedStore) -> None:
    class Watcher:
        def __init__(self) -> None:
            self.seen: list[tuple[int, bool]] = []

        def committed(self, operations: int, seconds: float, ok: bool) -> None:
            assert seconds >= 0
            self.seen.append((operations, ok))

    watcher = Watcher()
    async with registering(store, watcher=watcher) as registrar:
        await home(registrar)
        await write(registrar, create("A"), create("B"))
        store.errors["commit"] = TemporarilyUnavailable()
        await settled([later(registrar, create("C"))])
    assert watcher.seen == [(1, True), (2, True), (1, False)]


# Starting and stopping ------------------------------------------------------------------


async def test_stopping_commits_what_is_queued_and_refuses_what_comes(store: GatedStore) -> None:
    registrar = Registrar(store, commit_operations_max=2)
    registrar.start()
    await home(registrar)
    store.close_gate("commit")
    tasks = [later(registrar, create(f"S{n}")) for n in range(7)]
    await store.reached("commit")
    stopping = asyncio.create_task(registrar.stop())
    await asyncio.sleep(0)
    with pytest.raises(OverCapacity):
        await registrar.submit(ACME, [create("LATE")])
    store.open_gate("commit")
    assert all(isinstance(outcome, Outcome) for outcome in await settled(tasks))
    async with asyncio.timeout(5):
        await stopping
    assert all(await records(store, *(f"S{n}" for n in range(7))))


async def test_stopping_an_idle_registrar(store: GatedStore) -> None:
    registrar = Registrar(store)
    await registrar.stop()
    registrar = Registrar(store)
    registrar.start()
    async with asyncio.timeout(5):
        await registrar.stop()


async def test_nobody_waits_for_a_registrar_that_was_cut_off(store: GatedStore) -> None:
    registrar = Registrar(store, commit_operations_max=1)
    registrar.start()
    await home(registrar)
    store.close_gate("commit")
    tasks = [later(registrar, create(f"S{n}")) for n in range(3)]
    await store.reached("commit")
    stopping = asyncio.create_task(registrar.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    errors = await settled(tasks)
    assert [type(error) for error in errors] == [TemporarilyUnavailable] * 3
    assert errors[0].fields == {"outcome": "unknown"}
    await asyncio.wait([stopping])
    with pytest.raises(OverCapacity):
        await registrar.submit(ACME, [create("LATE")])
