"""The one write path: group commit, isolation, idempotency, failures, races."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from biaojie.account import Prefix, PrefixStatus, Role
from biaojie.change import Action, Entry, Receipt
from biaojie.errors import (
    BatchRejected,
    BiaojieError,
    DeadlineExceeded,
    Forbidden,
    IdempotencyMismatch,
    IdempotencyRunning,
    IdentifierNotFound,
    IdentifierTaken,
    Internal,
    OverCapacity,
    PrefixNotHere,
    StorageFull,
    TemporarilyUnavailable,
    VersionMismatch,
)
from biaojie.record import Status
from registry.accounts import new_key
from registry.admission import SYSTEM, Caller
from registry.audit import audit
from registry.changelog import Verifier
from registry.memory import MemoryStore
from registry.operations import (
    ChangePrefix,
    Condition,
    HomePrefix,
    IssueKey,
    Operation,
    Purge,
    Retire,
    RevokeKey,
)
from registry.registrar import RECEIPTS_SWEPT, Idempotency, Outcome, Registrar
from registry.staging import Rules
from tests.core_parts import (
    ACME,
    BETA,
    PREFIX,
    GatedStore,
    create,
    home,
    identifier,
    key,
    modify,
    opened,
    put,
    registering,
    value,
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


def later(registrar: Registrar, *operations: Operation, **options: Any) -> asyncio.Task[Outcome]:
    caller = options.pop("caller", ACME)
    return asyncio.create_task(registrar.submit(caller, operations, **options))


async def settled(tasks: list[asyncio.Task[Outcome]]) -> list[Any]:
    async with asyncio.timeout(5):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def records(store: Any, *suffixes: str) -> list[Any]:
    return [found.record for found in await store.look_up([key(s) for s in suffixes])]


def token(text: str = "k", body: str = "body") -> Idempotency:
    return Idempotency(text, hashlib.sha256(body.encode()).digest())


# Group commit ---------------------------------------------------------------------------


async def test_concurrent_submissions_share_a_transaction(
    store: GatedStore, registrar: Registrar
) -> None:
    store.close_gate("commit")
    first = later(registrar, create("A"))
    await store.reached("commit")
    rest = [later(registrar, create(f"B{n}")) for n in range(50)]
    await asyncio.sleep(0.01)
    assert store.calls["transaction"] == 1, "the second group waits for the first to return"
    store.open_gate("commit")
    outcomes = await settled([first, *rest])
    assert store.calls["transaction"] == 2
    assert [outcome.sequence for outcome in outcomes] == [2] + [3] * 50
    entries = await store.list_changes(1, 10)
    assert [entry.count for entry in entries] == [1, 50]


async def test_a_lone_submission_waits_for_no_timer(registrar: Registrar) -> None:
    task = later(registrar, create())
    for _ in range(60):  # turns of the loop, none of which takes time
        await asyncio.sleep(0)
    assert task.done()


async def test_a_commit_takes_no_more_than_its_bound(store: GatedStore) -> None:
    async with registering(store, commit_operations_max=10) as registrar:
        await home(registrar)
        store.close_gate("commit")
        tasks = [later(registrar, create("A"))]
        await store.reached("commit")
        tasks += [later(registrar, *(create(f"{n}-{i}") for i in range(4))) for n in range(7)]
        await asyncio.sleep(0)
        store.open_gate("commit")
        await settled(tasks)
        assert [e.count for e in await store.list_changes(1, 100)] == [1, 8, 8, 8, 4]


async def test_answers_are_in_order_and_true(registrar: Registrar, store: GatedStore) -> None:
    outcomes = await settled([later(registrar, create(f"S{n}")) for n in range(20)])
    for n, outcome in enumerate(outcomes):
        assert outcome.single().identifier == f"{PREFIX}/S{n}"
    [outcome] = await settled([later(registrar, create("X"), put("S1"), Retire(identifier("S2")))])
    assert outcome.results == tuple(
        Receipt(f"{PREFIX}/{suffix}", action, status, version, outcome.sequence)
        for suffix, action, status, version in [
            ("X", Action.CREATE, "active", 1),
            ("S1", Action.PUT, "active", 2),
            ("S2", Action.RETIRE, "retired", 2),
        ]
    )
    found = await records(store, "X", "S1", "S2")
    assert [(r.version, r.sequence) for r in found] == [(v, outcome.sequence) for v in (1, 2, 2)]


async def test_the_log_is_one_entry_for_a_commit_and_verifies(
    registrar: Registrar, store: GatedStore
) -> None:
    await settled([later(registrar, create(f"S{n}")) for n in range(20)])
    await write(registrar, Purge(identifier("S3")))
    assert (await audit(store)).faults == []
    verifier = Verifier()
    for entry in await store.list_changes(0, 100):
        verifier.feed(entry)
    assert verifier.faults == []


# One submission and the others ----------------------------------------------------------


async def together(
    store: GatedStore, registrar: Registrar, *submissions: tuple[list[Operation], dict[str, Any]]
) -> list[Any]:
    """Submit so that all are in one group."""
    store.close_gate("commit")
    first = later(registrar, create(f"first-{store.calls['commit']}"))
    await store.reached("commit")
    before = store.calls["transaction"]
    tasks = [later(registrar, *operations, **options) for operations, options in submissions]
    await asyncio.sleep(0)
    store.open_gate("commit")
    outcomes = await settled([first, *tasks])
    assert store.calls["transaction"] >= before + 1
    return outcomes[1:]


async def test_a_refused_submission_harms_no_other(store: GatedStore, registrar: Registrar) -> None:
    await write(registrar, create("TAKEN"))
    good, taken, foreign, missing = await together(
        store,
        registrar,
        ([create("A"), create("B")], {}),
        ([create("C"), create("TAKEN")], {}),
        ([create("D")], {"caller": BETA}),
        ([Retire(identifier("NONE"))], {}),
    )
    assert len(good.results) == 2
    assert isinstance(taken, BatchRejected)
    assert isinstance(foreign, Forbidden)
    assert isinstance(missing, IdentifierNotFound)
    assert [r is not None for r in await records(store, "A", "B", "C", "D")] == [1, 1, 0, 0]


async def test_what_the_store_cannot_keep_harms_only_its_author(
    store: GatedStore, registrar: Registrar
) -> None:
    def refuse(record: Any) -> None:
        if record.identifier.suffix == "POISON":
            raise ValueError("too odd to write")

    store.refuse = refuse
    one, poison, two = await together(
        store,
        registrar,
        ([create("A")], {}),
        ([create("POISON")], {"idempotency": token()}),
        ([create("B"), create("C")], {}),
    )
    assert isinstance(poison, Internal)
    assert one.single().version == 1
    assert len(two.results) == 2
    assert await records(store, "POISON") == [None]
    assert all(await records(store, "A", "B", "C"))
    assert (await audit(store)).faults == []
    # Nothing was kept of it, so it may be tried again.
    store.refuse = lambda record: None
    [again] = await settled([later(registrar, create("POISON"), idempotency=token())])
    assert again.single().version == 1


async def test_a_mistake_in_deciding_harms_only_its_author(
    store: GatedStore, registrar: Registrar
) -> None:
    broken = replace(create("A"), values=(None,))  # type: ignore[arg-type]
    good, bad = await together(store, registrar, ([create("B")], {}), ([broken], {}))
    assert good.single().version == 1
    assert isinstance(bad, Internal)


async def test_later_submissions_of_a_group_see_the_earlier(
    store: GatedStore, registrar: Registrar
) -> None:
    first, second, third = await together(
        store, registrar, ([create("A")], {}), ([create("A")], {}), ([put("A")], {})
    )
    assert first.single().version == 1
    assert isinstance(second, IdentifierTaken)
    assert third.single().version == 2


async def test_operations_of_a_batch_see_each_other(
    store: GatedStore, registrar: Registrar
) -> None:
    outcome = await write(
        registrar,
        create("a", "1"),
        put("A", "2"),
        modify("a", set=(value("3", 2),)),
        Retire(identifier("A")),
        Purge(identifier("a")),
        create("A", "again"),
    )
    assert [(r.action.value, r.version) for r in outcome.results] == [
        ("create", 1),
        ("put", 2),
        ("modify", 3),
        ("retire", 4),
        ("purge", 5),
        ("create", 1),
    ]
    [record] = await records(store, "A")
    assert (str(record.identifier), record.version) == (f"{PREFIX}/A", 1)
    outcome = await write(registrar, create("B"), Purge(identifier("B")))
    assert await records(store, "B") == [None]
    assert (await audit(store)).faults == []


async def test_a_prefix_changed_in_a_batch_holds_for_what_follows(
    store: GatedStore, registrar: Registrar
) -> None:
    await write(registrar, HomePrefix("88.118.9", "beta"), create(prefix="88.118.9"))
    moved, refused, taken = await together(
        store,
        registrar,
        ([ChangePrefix(PREFIX, "beta", PrefixStatus.ACTIVE)], {"caller": SYSTEM}),
        ([create("A")], {"caller": ACME}),
        ([create("A")], {"caller": BETA}),
    )
    assert moved.single().version == 2
    assert isinstance(refused, Forbidden)
    assert taken.single().version == 1
    assert (await audit(store)).faults == []


# Modes ----------------------------------------------------------------------------------


async def test_all_or_nothing(store: GatedStore, registrar: Registrar) -> None:
    await write(registrar, create("TAKEN"))
    head = await store.head()
    [error] = await settled([later(registrar, create("A"), create("TAKEN"), create("B"))])
    assert isinstance(error, BatchRejected)
    results = error.fields["results"]
    assert [getattr(r, "code", "ok") for r in results] == ["ok", "identifier-taken", "ok"]
    assert await records(store, "A", "B") == [None, None]
    assert await store.head() == head
    # With one operation its own error is raised.
    with pytest.raises(IdentifierTaken):
        await write(registrar, create("TAKEN"))


async def test_valid_rows(store: GatedStore, registrar: Registrar) -> None:
    await write(registrar, create("TAKEN"))
    outcome = await registrar.submit(
        ACME, [create("A"), create("TAKEN"), create("B")], mode="valid-rows"
    )
    assert [getattr(r, "code", "ok") for r in outcome.results] == ["ok", "identifier-taken", "ok"]
    assert outcome.sequence == (await store.head())[0]
    assert all(await records(store, "A", "B"))
    none = await registrar.submit(ACME, [create("TAKEN")], mode="valid-rows")
    assert none.sequence == 0
    with pytest.raises(IdentifierTaken):
        none.single()


@pytest.mark.parametrize("mode", ["all", "valid-rows"])
async def test_a_dry_run_decides_and_writes_nothing(
    store: GatedStore, registrar: Registrar, mode: Any
) -> None:
    await write(registrar, create("TAKEN"))
    head = await store.head()
    operations = [create("A"), put("A"), Retire(identifier("TAKEN"))]
    outcome = await registrar.submit(ACME, operations, mode=mode, dry_run=True, idempotency=token())
    assert [r.version for r in outcome.results if isinstance(r, Receipt)] == [1, 2, 2]
    assert outcome.sequence == 0
    assert await store.head() == head
    assert await records(store, "A") == [None]
    # It used up neither the name nor the Idempotency-Key.
    wet = await registrar.submit(ACME, operations, mode=mode, idempotency=token(body="wet"))
    assert wet.sequence == head[0] + 1
    assert not wet.replayed


async def test_a_dry_run_in_a_group_shows_others_nothing(
    store: GatedStore, registrar: Registrar
) -> None:
    dry, wet = await together(
        store, registrar, ([create("A")], {"dry_run": True}), ([create("A")], {})
    )
    assert dry.sequence == 0
    assert wet.single().version == 1


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
    rows = [create("A"), create("TAKEN"), put("B", condition=Condition(version=4))]
    replies = [
        await registrar.submit(ACME, rows, mode="valid-rows", idempotency=token()) for _ in "12"
    ]
    for reply in replies:
        receipt, taken, mismatch = reply.results
        assert isinstance(receipt, Receipt)
        assert isinstance(taken, IdentifierTaken)
        assert isinstance(mismatch, VersionMismatch)
    assert [r.detail for r in replies[0].results[1:]] == [r.detail for r in replies[1].results[1:]]
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
            await registrar.submit(
                ACME, [put("A"), Retire(identifier("B"))][1:], idempotency=token()
            )
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


@pytest.mark.parametrize("at", ["transaction", "head", "look_up", "commit", "committed"])
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
    if at in ("head", "look_up"):
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


# Keys -----------------------------------------------------------------------------------


async def test_only_one_first_key_even_in_one_commit(store: GatedStore) -> None:
    async with registering(store) as registrar:
        operations = [new_key("", Role.ADMIN, first=True)[1] for _ in range(3)]
        outcomes = await settled([later(registrar, op, caller=SYSTEM) for op in operations])
        assert [type(o) for o in outcomes] == [Outcome, Forbidden, Forbidden]
        [error] = await settled([later(registrar, operations[1], caller=SYSTEM)])
        assert isinstance(error, Forbidden)
        assert [k.id for k in await store.list_keys(None, 10)] == [operations[0].id]


async def test_a_key_id_is_given_once(database_url: str) -> None:
    async with opened(database_url) as store, registering(store) as registrar:
        await home(registrar)
        await write(registrar, IssueKey("samename", b"1" * 32, "acme", Role.READER))
        taken, fine = await settled(
            [
                later(registrar, op, caller=SYSTEM)
                for op in (IssueKey("samename", b"2" * 32, "", Role.ADMIN), create())
            ]
        )
        assert taken.code == "invalid-request"
        assert fine.single().version == 1
        issued = await store.find_key(b"1" * 32)
        assert issued is not None
        assert issued.role is Role.READER
        assert await store.find_key(b"2" * 32) is None


async def test_a_key_issued_and_revoked_in_one_batch(database_url: str) -> None:
    async with opened(database_url) as store, registering(store) as registrar:
        _, operation = new_key("acme", Role.READER)
        await write(registrar, operation, RevokeKey(operation.id), RevokeKey(operation.id))
        found = await store.find_key(operation.digest)
        assert found is not None
        assert found.revoked
        assert (await audit(store)).faults == []


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
