"""The tail of the change log: what others commit is forgotten here, and watchers are woken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from biaojie.account import PrefixStatus
from biaojie.change import Entry
from biaojie.errors import (
    IdentifierNotFound,
    IdentifierRetired,
    PrefixNotHere,
    PrefixSuspended,
    TemporarilyUnavailable,
)
from registry.memory import MemoryStore
from registry.operations import ChangePrefix, Retire
from resolver.core import Source
from resolver.health import Health
from resolver.tail import NUDGED_S, PAGE, Tail
from tests.core_parts import (
    GatedStore,
    Parts,
    create,
    home,
    identifier,
    key,
    nothing_left_behind,
    opened,
    put,
    registering,
    write,
)


class Listener:
    def __init__(self) -> None:
        self.heard: list[int] = []
        self.cleared = 0

    def forget(self, entry: Entry) -> None:
        self.heard.append(entry.sequence)

    def clear(self) -> None:
        self.cleared += 1


async def until(condition: Any, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@pytest.fixture
async def pair(database_url: str) -> AsyncIterator[tuple[Parts, Parts]]:
    """Two nodes' parts over one database, with the poll interval of a real node."""
    async with (
        opened(database_url) as one,
        opened(database_url) as two,
        Parts(one, poll_s=0.25) as first,
        Parts(two, poll_s=0.25) as second,
    ):
        yield first, second


# Two processes --------------------------------------------------------------------------


async def test_what_another_process_commits_is_gone_within_a_second(
    pair: tuple[Parts, Parts],
) -> None:
    here, there = pair
    await home(there.registrar)

    async def becomes(suffix: str, expected: Any) -> float:
        """Seconds until `here` answers `expected`, asked all the time so that it is cached."""
        started = time.monotonic()
        while True:
            answer = await here.resolver.resolve(key(suffix))
            got = answer.absence or answer.found().values[0].text
            if got == expected:
                return time.monotonic() - started
            assert time.monotonic() - started < 1.0, (got, expected)
            await asyncio.sleep(0.005)

    await becomes("SN1", IdentifierNotFound)
    await write(there.registrar, create("SN1", "first"), create("SN2"))
    worst = await becomes("SN1", "first")
    for n in range(3):
        await write(there.registrar, put("sn1", f"new {n}"))
        worst = max(worst, await becomes("SN1", f"new {n}"))
    await write(there.registrar, Retire(identifier("SN1")))
    worst = max(worst, await becomes("SN1", IdentifierRetired))
    await becomes("SN2", "first")
    await write(there.registrar, ChangePrefix("88.118.8", status=PrefixStatus.SUSPENDED))
    worst = max(worst, await becomes("SN1", PrefixSuspended))
    await becomes("SN2", PrefixSuspended)
    assert worst < 1.0
    # The one that wrote never waits.
    answer = await there.resolver.resolve(key("SN2"))
    assert answer.absence is PrefixSuspended


async def test_a_prefix_another_process_homes(pair: tuple[Parts, Parts]) -> None:
    here, there = pair
    assert (await here.resolver.resolve(key())).absence is PrefixNotHere
    await home(there.registrar)
    await write(there.registrar, create())
    await asyncio.sleep(0.6)
    assert (await here.resolver.resolve(key())).found().version == 1


# One tail -------------------------------------------------------------------------------


async def test_every_entry_once_and_in_order() -> None:
    store = MemoryStore()
    async with registering(store) as registrar:
        await home(registrar)
        listener = Listener()
        tail = Tail(store, Health(), [listener], poll_s=0.005)
        await tail.start()
        for n in range(3 * PAGE + 1):
            await write(registrar, create(f"S{n}"))
        await until(lambda: tail.sequence == 3 * PAGE + 2)
        await tail.stop()
    assert listener.heard == list(range(2, 3 * PAGE + 3)), "from the head at the start on"
    assert listener.cleared == 0


async def test_own_commits_are_not_told_twice() -> None:
    """What was cached since the commit is true and stays."""
    store = GatedStore()
    async with Parts(store, poll_s=0.005) as parts:
        await home(parts.registrar)
        await write(parts.registrar, create())
        assert (await parts.resolver.resolve(key())).source is Source.STORE
        await until(lambda: parts.tail.sequence == 2)
        assert (await parts.resolver.resolve(key())).source is Source.CACHE
        assert not store.calls["list_changes"], "nor read again"


async def test_a_failing_look_at_the_log_marks_the_registry_as_down_until_it_is_read() -> None:
    store = GatedStore()
    health = Health()
    listener = Listener()
    async with registering(store.inner) as registrar, nothing_left_behind():
        await home(registrar)
        tail = Tail(store, health, [listener], poll_s=0.005, timeout_s=0.1)
        await tail.start()
        store.errors["head"] = TemporarilyUnavailable()
        await until(lambda: health.down)
        for n in range(2 * PAGE):
            await write(registrar, create(f"S{n}"))
        calls = store.calls["look_up"]
        heard: list[int] = []
        answered = health.answered

        def note() -> None:
            heard.append(len(listener.heard))
            answered()

        health.answered = note  # type: ignore[method-assign]
        store.errors.clear()
        await until(lambda: not health.down)
        assert heard[0] == 2 * PAGE, "everything was forgotten before anybody was told"
        assert store.calls["look_up"] > calls, "records were asked for too"
        store.errors["head"] = RuntimeError("a mistake of ours")
        await until(lambda: health.down)
        store.errors.clear()
        await until(lambda: not health.down)
        store.close_gate("head")
        await until(lambda: health.down)
        assert health.reason
        store.open_gate("head")
        await until(lambda: not health.down)
        await tail.stop()


async def test_a_registry_set_back_to_a_backup_clears_everything() -> None:
    """As after a restore, or when a standby that lacked the last commits took over."""
    store = MemoryStore()
    async with Parts(store, poll_s=0.005) as parts:
        await home(parts.registrar)
        await write(parts.registrar, create(data="in the backup"))
        before = (list(store._state.log), dict(store._state.records))
        await write(parts.registrar, put(data="lost"))
        await until(lambda: parts.tail.sequence == 3)
        assert (await parts.resolver.resolve(key())).found().values[0].text == "lost"
        assert (await parts.resolver.resolve(key())).source is Source.CACHE
        store._state.log[:] = before[0]
        store._state.records.clear()
        store._state.records.update(before[1])
        await until(lambda: parts.tail.sequence == 2)
        assert (await parts.resolver.resolve(key())).found().values[0].text == "in the backup"
        await write(parts.registrar, put(data="onward"))
        assert (await parts.resolver.resolve(key())).found().values[0].text == "onward"


async def test_a_log_that_was_replaced_by_a_longer_one_clears_everything() -> None:
    store, other = GatedStore(), MemoryStore()
    listener = Listener()
    async with registering(store) as registrar, registering(other) as elsewhere:
        for each in (registrar, elsewhere):
            await home(each)
            await write(each, create(data=repr(each)))
        await write(elsewhere, put())
        tail = Tail(store, Health(), [listener], poll_s=0.005)
        await tail.start()
        await asyncio.sleep(0.02)
        assert listener.cleared == 0
        store.inner = other  # same length, other hash, then one entry more
        await until(lambda: listener.cleared > 0)
        await until(lambda: tail.sequence == 3)
        await tail.stop()
    assert listener.heard == [3]


# Watchers -------------------------------------------------------------------------------


async def test_watchers_wake_on_own_commits_and_on_those_of_others() -> None:
    store = MemoryStore()
    async with Parts(store, poll_s=0.02) as parts, registering(store) as elsewhere:
        for registrar in (parts.registrar, elsewhere):
            after = (await store.head())[0]
            await until(lambda after=after: parts.tail.sequence == after)
            waiting = asyncio.create_task(parts.tail.wait(after, 10))
            await asyncio.sleep(0)
            assert not waiting.done()
            await home(registrar, f"88.118.{after}")
            async with asyncio.timeout(2):
                await waiting


async def test_a_watcher_of_the_past_does_not_wait() -> None:
    async with Parts(MemoryStore()) as parts:
        await home(parts.registrar)
        await until(lambda: parts.tail.sequence == 1)
        async with asyncio.timeout(0.5):
            await parts.tail.wait(0, 10)


async def test_a_watchers_time_is_up() -> None:
    async with Parts(MemoryStore()) as parts:
        started = time.monotonic()
        await parts.tail.wait(5, 0.05)
        assert 0.04 < time.monotonic() - started < 2


async def test_stopping_lets_all_watchers_go() -> None:
    async with Parts(MemoryStore()) as parts:
        waiting = [asyncio.create_task(parts.tail.wait(5, 30)) for _ in range(10)]
        await asyncio.sleep(0)
        parts.tail.release()
        async with asyncio.timeout(1):
            await asyncio.gather(*waiting)
            await parts.tail.wait(5, 30)
    async with nothing_left_behind(), asyncio.timeout(1):
        tail = Tail(MemoryStore(), Health(), [])
        await tail.stop()
        await tail.start()
        await tail.stop()


async def test_a_nudge_makes_it_look_at_once_but_not_without_end() -> None:
    looks = 0

    class Counted(MemoryStore):
        async def head(self) -> tuple[int, bytes]:
            nonlocal looks
            looks += 1
            return await super().head()

    store = Counted()
    async with registering(store) as registrar:
        listener = Listener()
        tail = Tail(store, Health(), [listener], poll_s=60.0)
        await tail.start()
        try:
            await until(lambda: looks == 2)  # one to begin with
            await asyncio.sleep(2 * NUDGED_S)
            await home(registrar)
            assert listener.heard == []
            tail.nudge()
            await until(lambda: listener.heard == [1], seconds=1.0)
            before = looks
            until_s = time.monotonic() + 10 * NUDGED_S
            while time.monotonic() < until_s:
                tail.nudge()
                await asyncio.sleep(0)
            assert 2 <= looks - before <= 12
        finally:
            await tail.stop()
