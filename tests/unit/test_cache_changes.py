"""The cache and change: what a commit drops, and what stays when the registry is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from biaojie.change import Action, Change
from biaojie.errors import (
    BiaojieError,
    DeadlineExceeded,
    IdentifierNotFound,
    Internal,
    OverCapacity,
    PrefixNotHere,
    TemporarilyUnavailable,
)
from biaojie.identifier import Identifier, Key
from biaojie.record import Record
from resolver.core import Answer, Source
from resolver.steps.cache import SPANS_MAX, STALE_TTL_S
from tests.cache_world import World, turns
from tests.core_parts import (
    PREFIX,
    identifier,
    key,
)


@pytest.fixture
def world() -> World:
    return World()


# Invalidation ---------------------------------------------------------------------------


async def test_a_commit_drops_the_record_at_once(world: World) -> None:
    await world.ask()
    cached = world.cache.cached.entries[key()]
    world.commit(f"{PREFIX}/sn1")
    assert not cached.alive
    answer = await world.ask()
    assert (answer.source, answer.found().version) == (Source.STORE, 2)


async def test_a_commit_drops_an_absence_at_once(world: World) -> None:
    world.absence = IdentifierNotFound
    await world.ask()
    world.absence = None
    world.commit(action=Action.CREATE)
    assert (await world.ask()).record is not None


@pytest.mark.parametrize("action", [Action.ISSUE_KEY, Action.REVOKE_KEY])
async def test_changes_of_keys_drop_nothing(world: World, action: Action) -> None:
    await world.ask()
    world.commit("88.118.8", action)
    assert (await world.ask()).source is Source.CACHE


async def test_a_change_drops_only_what_it_names(world: World) -> None:
    await world.ask("SN1")
    await world.ask("SN2")
    world.commit(f"{PREFIX}/SN2")
    assert (await world.ask("SN1")).source is Source.CACHE
    assert (await world.ask("SN2")).source is Source.STORE


async def test_case_counts_where_the_node_says_so() -> None:
    world = World(case_sensitive=True)
    at = Identifier(PREFIX, "sn1").key(case_sensitive=True)
    await world.cache.resolve([at], world.onward)
    world.commit(f"{PREFIX}/SN1")
    assert len(world.cache.cached) == 1
    world.commit(f"{PREFIX}/sn1")
    assert len(world.cache.cached) == 0


@pytest.mark.parametrize("absence", [None, IdentifierNotFound])
async def test_a_change_during_a_flight_is_not_overwritten_by_its_old_answer(
    world: World, absence: type[BiaojieError] | None
) -> None:
    world.absence = absence
    gate = world.gate = asyncio.Event()
    old = world.later()
    await turns()
    world.commit()
    world.absence = None
    # Who asks now does not join the old flight.
    new = world.later()
    await turns()
    assert len(world.asked) == 2
    gate.set()
    assert (await new).found().version == 2
    await old
    answer = await world.ask()
    assert (answer.source, answer.found().version) == (Source.CACHE, 2)


async def test_an_old_flight_that_lands_last_changes_nothing(world: World) -> None:
    first = world.gate = asyncio.Event()
    old = world.later()
    await turns()
    world.commit()
    world.gate = None
    assert (await world.ask()).found().version == 2
    first.set()
    assert (await old).found().version == 1, "it was asked before the change"
    answer = await world.ask()
    assert (answer.source, answer.found().version) == (Source.CACHE, 2)


async def test_an_old_flight_that_lands_does_not_end_the_new_one(world: World) -> None:
    first = world.gate = asyncio.Event()
    old = world.later()
    await turns()
    world.commit()
    second = world.gate = asyncio.Event()
    new = world.later()
    await turns()
    first.set()
    await old
    third = world.later()
    await turns()
    assert len(world.asked) == 2, "the third joined the second"
    second.set()
    assert (await new).found().version == (await third).found().version == 2


async def test_a_change_of_a_prefix_drops_all_its_names(world: World) -> None:
    await world.ask("SN1")
    await world.ask("SN1", "88.118.9")
    world.absence = IdentifierNotFound
    await world.ask("SN2")
    await world.ask("SN2", "88.118.9")
    world.absence = None
    gate = world.gate = asyncio.Event()
    old = world.later("SN3")
    await turns()
    world.commit("88.118.8", Action.CHANGE_PREFIX)
    gate.set()
    await old
    assert {at.prefix for at in world.cache.cached} == {"88.118.9"}
    assert {at.prefix for at in world.cache.absent} == {"88.118.9"}
    assert not world.cache._flights


async def test_a_change_of_a_prefix_drops_what_was_said_of_those_below(world: World) -> None:
    world.absence = PrefixNotHere
    for prefix in ("88.118.8.1", "88.118.8.1.2", "88.118.80"):
        await world.ask(prefix=prefix)
    world.commit("88.118.8", Action.CHANGE_PREFIX)
    assert {at.prefix for at in world.cache.absent} == {"88.118.80"}


async def test_a_prefix_homed_elsewhere_yesterday(world: World) -> None:
    world.absence = PrefixNotHere
    await world.ask()
    world.absence = None
    world.commit("88.118.8", Action.HOME_PREFIX)
    assert (await world.ask()).record is not None


async def test_clearing_drops_everything(world: World) -> None:
    await world.ask("SN1")
    world.absence = IdentifierNotFound
    await world.ask("SN2")
    world.absence = None
    gate = world.gate = asyncio.Event()
    old = world.later("SN3")
    await turns()
    world.cache.clear()
    gate.set()
    await old
    assert (len(world.cache.cached), len(world.cache.absent)) == (0, 0)
    assert world.cache.cached.bytes == 0


async def test_the_log_may_name_what_would_not_parse_today(world: World) -> None:
    """A name registered under older rules is dropped all the same."""
    odd = Key(PREFIX, "A\u0001B".encode())
    answer = Answer(Record(identifier(), ()), None, Source.STORE, 0, 100)

    async def onward(keys: Sequence[Key]) -> list[Answer]:
        return [answer for _ in keys]

    await world.cache.resolve([odd], onward)
    world.commit(f"{PREFIX}/a\u0001b")
    assert odd not in world.cache.cached.entries


# Stale ----------------------------------------------------------------------------------


async def test_while_the_registry_is_down_warm_names_are_stale(world: World) -> None:
    await world.ask()
    world.health.failed("test")
    world.now += 10
    answer = await world.ask()
    assert (answer.source, answer.age_s, answer.ttl_s) == (Source.STALE, 10, STALE_TTL_S)
    world.now += 1_000  # its TTL is long over
    answer = await world.ask()
    assert (answer.source, answer.age_s, answer.ttl_s) == (Source.STALE, 1_010, 0)
    assert len(world.asked) == 1, "nobody waits for a registry that is down"
    assert world.cache.counts["stale"] == 2


async def test_stale_has_an_end() -> None:
    world = World(stale_s=3_600)
    world.ttl_s = 10
    await world.ask()
    world.health.failed("test")
    world.error = TemporarilyUnavailable()
    world.now += 3_599
    assert (await world.ask()).source is Source.STALE
    world.now += 1
    with pytest.raises(TemporarilyUnavailable):
        await world.ask()


@pytest.mark.parametrize(
    "error", [TemporarilyUnavailable, DeadlineExceeded, OverCapacity, Internal]
)
async def test_an_expired_name_is_stale_when_it_cannot_be_asked(
    world: World, error: type[BiaojieError]
) -> None:
    await world.ask()
    world.now += 500
    world.error = error()
    assert (await world.ask()).source is Source.STALE
    with pytest.raises(error):
        await world.ask("UNKNOWN")
    # A failure replaces nothing.
    world.error = None
    assert (await world.ask()).source is Source.STORE


async def test_what_changed_while_it_was_asked_is_not_stale(world: World) -> None:
    await world.ask()
    world.now += 500
    world.error = TemporarilyUnavailable()
    world.gate = asyncio.Event()
    task = world.later()
    await turns()
    world.commit()
    world.gate.set()
    with pytest.raises(TemporarilyUnavailable):
        await task


async def test_an_absence_is_never_stale(world: World) -> None:
    """Not even one that is seconds old: it may have been registered meanwhile."""
    world.absence = IdentifierNotFound
    await world.ask()
    world.health.failed("test")
    world.error = TemporarilyUnavailable()
    for _ in range(2):
        with pytest.raises(TemporarilyUnavailable):
            await world.ask()
        world.now += 100


async def test_when_it_is_back_stale_ends_at_once(world: World) -> None:
    await world.ask()
    world.health.failed("test")
    assert (await world.ask()).source is Source.STALE
    world.health.answered()
    assert (await world.ask()).source is Source.CACHE
    world.now += 500
    assert (await world.ask()).source is Source.STORE


# Ranges ---------------------------------------------------------------------------------


async def test_a_new_range_ends_absences_of_its_members_and_no_others(world: World) -> None:
    world.absence = IdentifierNotFound
    for suffix in ("SN05", "SM05", "SX05"):
        await world.ask(suffix)
    world.absence = None
    world.commit(f"{PREFIX}/sn{{00..99}}", Action.REGISTER_RANGE)
    assert (await world.ask("SN05")).record is not None
    for suffix in ("SM05", "SX05"):
        assert (await world.ask(suffix)).absence is IdentifierNotFound
    asked = len(world.asked)
    world.absence = IdentifierNotFound
    world.now += 1
    await world.ask("SN06")  # absent after the commit is absent
    await world.ask("SN06")
    assert len(world.asked) == asked + 1


async def test_a_look_up_that_began_before_a_range_is_not_kept(world: World) -> None:
    world.absence, world.gate = IdentifierNotFound, asyncio.Event()
    early = world.later("SN05")
    await turns()
    world.commit(f"{PREFIX}/SN{{00..99}}", Action.REGISTER_RANGE)
    world.absence = None
    late = world.later("SN05")
    await turns()
    world.gate.set()
    assert (await early).absence is IdentifierNotFound
    assert (await late).record is not None
    assert (await world.ask("SN05")).source is Source.CACHE


async def test_very_many_ranges_forget_all_absences(world: World) -> None:
    world.absence = IdentifierNotFound
    await world.ask("SN05")
    world.absence = None
    for number in range(SPANS_MAX + 1):
        world.commit(f"{PREFIX}/X{number}-{{0..9}}", Action.REGISTER_RANGE)
    assert (await world.ask("SN05")).record is not None


@pytest.mark.parametrize("others", [0, 400])  # looks at all, or at each name
async def test_a_cut_drops_the_members_at_once(world: World, others: int) -> None:
    for suffix in ("SN05", "SN15", "TN05", *map(str, range(others))):
        await world.ask(suffix)
    cut, other = (world.cache.cached.entries[key(suffix)] for suffix in ("SN05", "TN05"))
    parts = [("SN{00..99}", bytes(32)), ("SN{00..04}", b"d" * 32), ("SN{06..99}", b"d" * 32)]
    changes = [Change(Action.CUT_RANGE, f"{PREFIX}/{text}", 1, "k", d) for text, d in parts]
    world.append(*changes)
    assert not cut.alive
    assert other.alive
    assert (await world.ask("SN15")).source is Source.CACHE
    assert (await world.ask("SN05")).source is Source.STORE


# Bulk registration ----------------------------------------------------------------------


def run(first: str, last: str, action: Action = Action.BULK) -> Change:
    return Change(action, f"{PREFIX}/{first}", 0, "key", bytes(32), last, 2)


async def test_new_runs_end_absences_between_their_ends(world: World) -> None:
    world.absence = IdentifierNotFound
    for suffix in ("SN05", "SN95", "TN05"):
        await world.ask(suffix)
    world.absence = None
    world.append(run("SN00", "SN09"), run("SN90", "SN99"))
    for suffix in ("SN05", "SN95"):
        assert (await world.ask(suffix)).record is not None
    assert (await world.ask("TN05")).absence is IdentifierNotFound


async def test_a_look_up_that_began_before_a_run_is_not_kept(world: World) -> None:
    world.absence, world.gate = IdentifierNotFound, asyncio.Event()
    early = world.later("SN05")
    await turns()
    world.append(run("SN00", "SN09"))
    world.absence = None
    late = world.later("SN05")
    await turns()
    world.gate.set()
    assert (await early).absence is IdentifierNotFound
    assert (await late).record is not None


async def test_compaction_drops_nothing(world: World) -> None:
    await world.ask("SN05")
    changes = [run("SN00", "SN09", action) for action in (Action.COMPACT, Action.DISSOLVE)]
    world.append(*changes, Change(Action.FOLD, f"{PREFIX}/SN05", 1, "key", bytes(32), "", 1))
    assert (await world.ask("SN05")).source is Source.CACHE
