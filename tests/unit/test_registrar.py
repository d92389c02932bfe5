"""The one write path: group commit, batches, modes; one submission and the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from biaojie.account import PrefixStatus, Role
from biaojie.change import Action, Receipt
from biaojie.errors import (
    BatchRejected,
    Forbidden,
    IdentifierNotFound,
    IdentifierTaken,
    Internal,
)
from registry.accounts import new_key
from registry.admission import SYSTEM
from registry.audit import audit
from registry.changelog import Verifier
from registry.operations import (
    ChangePrefix,
    HomePrefix,
    IssueKey,
    Operation,
    Purge,
    Retire,
    RevokeKey,
)
from registry.registrar import Outcome, Registrar
from tests.core_parts import (
    ACME,
    BETA,
    PREFIX,
    GatedStore,
    create,
    home,
    identifier,
    later,
    modify,
    opened,
    put,
    records,
    registering,
    settled,
    token,
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
    operations: list[Operation] = [create("A"), put("A"), Retire(identifier("TAKEN"))]
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
