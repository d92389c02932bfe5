"""Idempotency: a retry never registers twice, and a key means one request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import count

import pytest

from biaojie.account import Role
from biaojie.change import Receipt
from biaojie.errors import (
    IdempotencyMismatch,
    IdempotencyRunning,
    IdentifierNotFound,
    IdentifierTaken,
    VersionMismatch,
)
from biaojie.record import Value
from registry.admission import SYSTEM, Caller
from registry.audit import audit
from registry.blocks import Chunk
from registry.blocks import cut as cut_blocks
from registry.memory import MemoryStore
from registry.operations import Condition, Operation, Retire
from registry.registrar import RECEIPTS_SWEPT, Registrar
from tests.core_parts import (
    ACME,
    PREFIX,
    GatedStore,
    create,
    home,
    identifier,
    later,
    opened,
    put,
    records,
    registering,
    settled,
    token,
    write,
)

VALUES = [Value(1, "URL", b"")]


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


# Idempotency ----------------------------------------------------------------------------


async def test_the_same_key_and_body_get_the_first_reply(
    store: GatedStore, registrar: Registrar
) -> None:
    first = await registrar.submit(ACME, [create(), create("TWO")], idempotency=token())
    head = await store.head()
    again = await registrar.submit(ACME, [create(), create("TWO")], idempotency=token())
    assert again == replace(first, replayed=True)
    assert await store.head() == head
    with pytest.raises(IdempotencyMismatch):
        await registrar.submit(ACME, [create("THREE")], idempotency=token(body="other"))
    assert await records(store, "THREE") == [None]


async def test_a_replay_tells_of_failed_rows_too(registrar: Registrar) -> None:
    await write(registrar, create("TAKEN"))
    rows: list[Operation] = [create("A"), create("TAKEN"), put("B", condition=Condition(version=4))]
    replies = [
        await registrar.submit(ACME, rows, mode="valid-rows", idempotency=token()) for _ in "12"
    ]
    for reply in replies:
        receipt, taken, mismatch = reply.results
        assert isinstance(receipt, Receipt)
        assert isinstance(taken, IdentifierTaken)
        assert isinstance(mismatch, VersionMismatch)
    details = [[getattr(r, "detail", None) for r in reply.results] for reply in replies]
    assert details[0] == details[1]
    assert replies[0].results[0] == replies[1].results[0]


async def test_a_key_that_is_still_running(store: GatedStore, registrar: Registrar) -> None:
    store.close_gate("commit")
    first = later(registrar, create(), idempotency=token())
    await store.reached("commit")
    with pytest.raises(IdempotencyRunning):
        await registrar.submit(ACME, [create()], idempotency=token())
    with pytest.raises(IdempotencyMismatch):
        await registrar.submit(ACME, [create("B")], idempotency=token(body="other"))
    # Another caller's key of the same text has nothing to do with it.
    other = later(registrar, create("C"), caller=SYSTEM, idempotency=token())
    store.open_gate("commit")
    assert (await first).single().version == 1
    assert not (await other).replayed
    assert (await registrar.submit(ACME, [create()], idempotency=token())).replayed


async def test_receipts_belong_to_the_key_that_sent_them(registrar: Registrar) -> None:
    colleague = Caller("acme0009", "acme", Role.REGISTRAR)
    await registrar.submit(ACME, [create()], idempotency=token())
    with pytest.raises(IdentifierTaken):
        await registrar.submit(colleague, [create()], idempotency=token())


async def test_refusals_are_not_kept(registrar: Registrar) -> None:
    """What failed may be mended and sent again under the same key."""
    for _ in "12":
        with pytest.raises(IdentifierNotFound):
            await registrar.submit(ACME, [Retire(identifier("B"))], idempotency=token())
    await write(registrar, create("B"))
    outcome = await registrar.submit(ACME, [Retire(identifier("B"))], idempotency=token())
    assert not outcome.replayed


async def test_receipts_expire_and_are_removed() -> None:
    now = [1_000_000.0]
    store = MemoryStore()
    async with registering(store, clock=lambda: now[0], receipts_kept_s=100) as registrar:
        await home(registrar)
        numbers = count()

        async def fill() -> None:
            tokens = [token(f"t{next(numbers)}") for _ in range(RECEIPTS_SWEPT)]
            tasks = [later(registrar, create(t.key), idempotency=t, caller=SYSTEM) for t in tokens]
            assert not any(outcome.replayed for outcome in await settled(tasks))

        kept = store._state.receipts
        await registrar.submit(ACME, [create()], idempotency=token())
        now[0] += 100
        assert (await registrar.submit(ACME, [create()], idempotency=token())).replayed
        now[0] += 1
        with pytest.raises(IdentifierTaken):
            await registrar.submit(ACME, [create()], idempotency=token())
        for _ in range(4):
            await fill()
        assert len(kept) >= 4 * RECEIPTS_SWEPT
        now[0] += 101
        for _ in range(3):  # however many there were, they are gone before as many came again
            await fill()
        assert len(kept) == 3 * RECEIPTS_SWEPT


async def test_receipts_of_bulk_loads_are_removed_too() -> None:
    now = [1_000_000.0]
    store = MemoryStore()
    async with registering(store, clock=lambda: now[0], receipts_kept_s=100) as registrar:
        await home(registrar)
        numbers = count()

        async def load_many() -> None:
            for number in (next(numbers) for _ in range(RECEIPTS_SWEPT)):
                bulk = cut_blocks(Chunk(PREFIX, [f"n{number}"], [VALUES], [[b"x"]]), int(now[0]))
                outcome = await registrar.load(ACME, bulk, idempotency=token(f"t{number}"))
                assert outcome.count == 1

        await load_many()
        now[0] += 101
        await load_many()
        assert len(store._state.receipts) == RECEIPTS_SWEPT


@pytest.mark.parametrize("cut", [0, 3, 40])
async def test_a_reply_cut_after_the_commit(cut: int, database_url: str) -> None:
    """The caller is gone when the commit returns; what it asked is done once all the same."""
    async with opened(database_url) as real, registering(store := GatedStore(real)) as registrar:
        await home(registrar)
        for n in range(5):
            store.close_gate("committed")
            task = later(registrar, create(f"S{n}"), idempotency=token(f"t{n}"))
            await store.reached("committed")
            for _ in range(cut):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            store.open_gate("committed")
            while True:
                try:
                    again = await registrar.submit(
                        ACME, [create(f"S{n}")], idempotency=token(f"t{n}")
                    )
                    break
                except IdempotencyRunning:
                    await asyncio.sleep(0)
            assert again.replayed
            assert again.single().version == 1
        assert (await store.head())[0] == 6
        assert (await audit(store)).faults == []


async def test_another_process_replays_too(database_url: str) -> None:
    async with (
        opened(database_url) as one,
        opened(database_url) as two,
        registering(one) as first,
        registering(two) as second,
    ):
        await home(first)
        outcomes = await settled(
            [later(r, create("A"), caller=ACME, idempotency=token()) for r in (first, second)]
        )
        assert sorted(outcome.replayed for outcome in outcomes) == [False, True]
        assert outcomes[0].results == outcomes[1].results
        with pytest.raises(IdempotencyMismatch):
            await second.submit(ACME, [create("B")], idempotency=token(body="other"))
