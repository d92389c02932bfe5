"""The change log as each tenant may see it, and waiting for news."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from biaojie.account import Role
from biaojie.change import Entry
from biaojie.errors import OverCapacity
from registry.admission import SYSTEM, Caller
from registry.changelog import Verifier
from registry.memory import MemoryStore
from registry.operations import ChangePrefix, HomePrefix, Purge
from resolver import service as service_module
from tests.core_parts import (
    ACME,
    ACME_READER,
    ADMIN,
    BETA,
    PREFIX,
    GatedStore,
    Parts,
    create,
    home,
    identifier,
    issue,
    put,
    registering,
    write,
)

OTHER = "88.118.9"


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    """A node with acme's 88.118.8 and beta's 88.118.9."""
    async with Parts(GatedStore()) as parts:
        await home(parts.registrar)
        await home(parts.registrar, OTHER, "beta")
        yield parts


# The log as a tenant sees it --------------------------------------------------------------


async def changes(parts: Parts, caller: Caller, **options: Any) -> tuple[list[Entry], int]:
    asked = {"after": 0, "limit": 1_000, "wait_s": 0.0} | options
    found: tuple[list[Entry], int] = await parts.service.list_changes(caller, **asked)
    return found


async def together(parts: Parts, *submissions: tuple[Caller, list[Any]]) -> None:
    """Commit in one entry."""
    parts.store.close_gate("transaction")
    first = asyncio.create_task(parts.registrar.submit(SYSTEM, [create("FIRST", prefix=OTHER)]))
    await parts.store.reached("transaction")
    tasks = [asyncio.create_task(parts.registrar.submit(c, ops)) for c, ops in submissions]
    await asyncio.sleep(0)
    parts.store.open_gate("transaction")
    await asyncio.gather(first, *tasks)


async def test_an_admin_sees_the_whole_log(parts: Parts) -> None:
    await write(parts.registrar, create())
    await issue(parts.registrar)
    entries, onward = await changes(parts, ADMIN)
    assert entries == await parts.store.list_changes(0, 100)
    assert onward == 4
    verifier = Verifier()
    for entry in entries:
        verifier.feed(entry)
    assert verifier.faults == []


async def test_a_tenant_sees_its_own_changes_and_no_trace_of_others(parts: Parts) -> None:
    text, acme_id = await issue(parts.registrar, "acme")
    acme = await parts.service.authenticate(text, "")
    text, beta_id = await issue(parts.registrar, "beta")
    beta = await parts.service.authenticate(text, "")
    await together(
        parts,
        (acme, [create("MINE", "acme secret"), create("TOO")]),
        (beta, [create("HIS", "beta secret", OTHER)] * 1),
        (SYSTEM, [create("BY-OPERATOR")]),
    )
    await write(parts.registrar, create("ALONE", prefix=OTHER), caller=beta)
    await write(parts.registrar, put("MINE"), caller=acme)
    entries, onward = await changes(parts, acme)
    assert onward == (await parts.store.head())[0], "it goes on after what was left out"
    shown = [
        (
            e.sequence,
            e.count,
            e.actor,
            e.action,
            e.prefix,
            [(c.subject, c.actor) for c in e.changes],
        )
        for e in entries
    ]
    mine = (f"{PREFIX}/MINE", acme_id)
    assert shown == [
        (1, 1, "", "home-prefix", PREFIX, [(PREFIX, "")]),
        (
            6,
            3,
            "",
            "create",
            PREFIX,
            [mine, (f"{PREFIX}/TOO", acme_id), (f"{PREFIX}/BY-OPERATOR", "")],
        ),
        (8, 1, acme_id, "put", PREFIX, [mine]),
    ]
    assert beta_id not in repr(entries)
    assert "HIS" not in repr(entries)
    assert OTHER not in repr(entries)
    # The digests of its own changes are the true ones.
    whole = {e.sequence: e for e in (await changes(parts, ADMIN))[0]}
    for entry in entries:
        assert (entry.hash, entry.root) == (whole[entry.sequence].hash, whole[entry.sequence].root)
        true = {c.digest for c in whole[entry.sequence].changes}
        assert all(c.digest in true for c in entry.changes)


async def test_a_reader_sees_what_its_tenant_sees(parts: Parts) -> None:
    await write(parts.registrar, create(), create("X", prefix=OTHER))
    assert await changes(parts, ACME_READER) == await changes(parts, ACME)


async def test_changes_of_keys_are_the_operators(parts: Parts) -> None:
    await issue(parts.registrar, "acme")
    _, key_id = await issue(parts.registrar, "acme", Role.ADMIN)
    entries, _ = await changes(parts, ACME)
    assert key_id not in repr(entries)
    assert [e.sequence for e in entries] == [1]


async def test_whoever_gets_a_prefix_learns_nothing_of_the_keys_before(parts: Parts) -> None:
    text, acme_id = await issue(parts.registrar, "acme")
    acme = await parts.service.authenticate(text, "")
    await write(parts.registrar, create(), caller=acme)
    await write(parts.registrar, ChangePrefix(PREFIX, tenant="beta"))
    entries, _ = await changes(parts, BETA)
    assert f"{PREFIX}/SN1" in repr(entries), "it is theirs now"
    assert acme_id not in repr(entries)
    assert "SN1" not in repr((await changes(parts, acme))[0])


async def test_a_tenant_without_prefixes_sees_nothing(parts: Parts) -> None:
    await write(parts.registrar, create())
    entries, onward = await changes(parts, Caller("k", "gamma", Role.READER))
    assert entries == []
    assert onward == 3


@pytest.mark.parametrize("limit", [1, 2, 3, 50, 1_000])
async def test_the_log_in_pages(parts: Parts, limit: int) -> None:
    for n in range(45):
        await write(parts.registrar, create(f"S{n}", prefix=OTHER if n % 3 else PREFIX))
    for caller, expected in ((ADMIN, 47), (ACME, 16), (BETA, 31)):
        seen: list[int] = []
        after = 0
        while True:
            entries, onward = await changes(parts, caller, after=after, limit=limit)
            seen += [e.sequence for e in entries]
            assert len(entries) <= limit
            if onward == after:
                break
            after = onward
        assert len(seen) == expected
        assert seen == sorted(set(seen))


async def test_a_page_of_large_entries_ends_early(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "PAGE_CHANGES_MAX", 30)
    for n in range(20):
        await write(parts.registrar, *(create(f"S{n}-{i}") for i in range(10)))
    entries, onward = await changes(parts, ADMIN)
    assert len(entries) < 20
    assert onward == entries[-1].sequence


async def test_many_prefixes_in_one_page(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "NAMES_MAX", 7)
    names = [f"A.{n}" for n in range(40)]
    await write(
        parts.registrar, *(HomePrefix(n, "acme" if i % 2 else "x") for i, n in enumerate(names))
    )
    await write(parts.registrar, *(create(prefix=name) for name in names))
    entries, _ = await changes(parts, ACME)
    assert [e.count for e in entries] == [1, 20, 20]


# Waiting for news -----------------------------------------------------------------------


async def waiting(parts: Parts, caller: Caller, wait_s: float = 10) -> asyncio.Task[Any]:
    after = (await parts.store.head())[0]
    task = asyncio.create_task(changes(parts, caller, after=after, wait_s=wait_s))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_news_end_the_wait(parts: Parts) -> None:
    task = await waiting(parts, ACME)
    await write(parts.registrar, create())
    async with asyncio.timeout(2):
        entries, onward = await task
    assert [e.sequence for e in entries] == [3]
    assert onward == 3


async def test_what_was_there_already_is_not_waited_for(parts: Parts) -> None:
    async with asyncio.timeout(2):
        entries, _ = await changes(parts, ADMIN, wait_s=10)
    assert len(entries) == 2


async def test_news_of_others_end_no_wait(parts: Parts) -> None:
    started = time.monotonic()
    task = await waiting(parts, ACME, 0.3)
    admin = await waiting(parts, ADMIN)
    for n in range(5):
        await write(parts.registrar, create(f"S{n}", prefix=OTHER))
        await asyncio.sleep(0.01)
    assert not task.done()
    async with asyncio.timeout(2):
        entries, onward = await task
    assert entries == []
    assert time.monotonic() - started >= 0.3
    assert onward == 7
    assert len((await admin)[0]) >= 1


async def test_own_news_after_those_of_others_end_the_wait(parts: Parts) -> None:
    task = await waiting(parts, ACME)
    await write(parts.registrar, create("S1", prefix=OTHER))
    await asyncio.sleep(0.05)
    await write(parts.registrar, create())
    async with asyncio.timeout(2):
        entries, _ = await task
    assert [e.sequence for e in entries] == [4]


async def test_a_sequence_beyond_the_end(parts: Parts) -> None:
    entries, onward = await changes(parts, ADMIN, after=10**12, wait_s=0.05)
    assert (entries, onward) == ([], 10**12)


async def test_watchers_are_bounded_and_leave_no_trace() -> None:
    async with Parts(MemoryStore(), service={"watchers_max": 3}) as parts:
        await home(parts.registrar)
        tasks = [await waiting(parts, ADMIN) for _ in range(3)]
        with pytest.raises(OverCapacity):
            await changes(parts, ADMIN, after=1, wait_s=5)
        assert len((await changes(parts, ADMIN))[0]) == 1, "who need not wait may ask"
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        tasks[0] = await waiting(parts, ADMIN)
        parts.tail.release()
        async with asyncio.timeout(2):
            assert [entries for entries, _ in await asyncio.gather(*tasks)] == [[], [], []]
            assert await changes(parts, ADMIN, after=1, wait_s=30) == ([], 1)
        assert parts.service._watchers == 0


async def test_news_from_another_process_end_the_wait() -> None:
    store = MemoryStore()
    async with Parts(store) as parts, registering(store) as elsewhere:
        await home(parts.registrar)
        task = await waiting(parts, ACME)
        await write(elsewhere, create(), Purge(identifier()))
        async with asyncio.timeout(2):
            entries, _ = await task
        assert [c.action.value for c in entries[0].changes] == ["create", "purge"]
