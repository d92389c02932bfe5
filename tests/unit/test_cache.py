"""The cache step: lifetimes, bounds, flights, invalidation, serving stale."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest

from biaojie.account import PrefixStatus
from biaojie.change import Action, Change, Entry
from biaojie.errors import (
    BiaojieError,
    DeadlineExceeded,
    IdentifierNotFound,
    IdentifierRetired,
    Internal,
    OverCapacity,
    PrefixNotHere,
    PrefixSuspended,
    TemporarilyUnavailable,
)
from biaojie.identifier import Identifier, Key
from biaojie.record import Record, Reference, Status, Value
from registry.changelog import ZERO, next_entry
from registry.operations import ChangePrefix, Retire
from registry.sql.blob import decode_blob, encode_blob
from resolver.core import Answer, Source
from resolver.health import Health
from resolver.service import Query
from resolver.steps.cache import STALE_TTL_S, CacheStep
from tests.core_parts import (
    ACME,
    PREFIX,
    GatedStore,
    Parts,
    create,
    home,
    identifier,
    key,
    nothing_left_behind,
    put,
    secret,
    value,
    write,
)


class World:
    """A cache over an onward step that answers what it is told, when it is told."""

    def __init__(self, **options: Any) -> None:
        self.now = 1_000.0
        self.health = Health()
        self.cache = CacheStep(self.health, clock=lambda: self.now, **options)
        self.asked: list[Key] = []
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None
        self.absence: type[BiaojieError] | None = None
        self.ttl_s = 100
        self.version = 1

    async def onward(self, at: Key) -> Answer:
        self.asked.append(at)
        error, absence, version = self.error, self.absence, self.version
        if self.gate is not None:
            await self.gate.wait()
        if error is not None:
            raise error
        if absence is not None:
            return Answer(None, absence, Source.STORE, 0, 0)
        record = Record(Identifier(at.prefix, at.suffix.decode()), (value(),), version=version)
        return Answer(record, None, Source.STORE, 0, self.ttl_s)

    async def ask(self, suffix: str = "SN1", prefix: str = PREFIX) -> Answer:
        return await self.cache.resolve(key(suffix, prefix), self.onward)

    def later(self, suffix: str = "SN1") -> asyncio.Task[Answer]:
        return asyncio.create_task(self.ask(suffix))

    def commit(self, subject: str = f"{PREFIX}/SN1", action: Action = Action.PUT) -> None:
        self.version += 1
        self.cache.forget(entry(subject, action))


def entry(subject: str, action: Action = Action.PUT) -> Entry:
    return next_entry((0, ZERO), 0, [Change(action, subject, 1, "k", bytes(32))])


async def turns() -> None:
    """Let everything happen that needs no time."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def world() -> World:
    return World()


# Lifetimes ------------------------------------------------------------------------------


async def test_an_answer_lives_for_its_ttl(world: World) -> None:
    first = await world.ask()
    assert (first.source, first.age_s, first.ttl_s) == (Source.STORE, 0, 100)
    world.now += 99.5
    again = await world.ask()
    assert (again.source, again.age_s, again.ttl_s) == (Source.CACHE, 99, 1)
    world.now += 0.5
    assert (await world.ask()).source is Source.STORE
    assert len(world.asked) == 2
    assert world.cache.counts == {"hit": 1, "stale": 0, "absent-hit": 0, "miss": 2, "joined": 0}


async def test_ttl_0_is_asked_every_time(world: World) -> None:
    world.ttl_s = 0
    for _ in range(3):
        assert (await world.ask()).source is Source.STORE
    assert len(world.asked) == 3


async def test_the_nodes_bound_shortens_a_long_ttl() -> None:
    world = World(ttl_max_s=10)
    await world.ask()
    world.now += 9
    answer = await world.ask()
    assert (answer.source, answer.ttl_s) == (Source.CACHE, 91), "others may keep it as long"
    world.now += 1
    assert (await world.ask()).source is Source.STORE


@pytest.mark.parametrize(
    ("values", "ttl_s"),
    [
        ((), 172_800),
        ((value(ttl=60), value(index=2, ttl=30)), 30),
        ((value(ttl=10**9),), 172_800),
        ((value(ttl=1_700_000_050, ttl_absolute=True),), 50),
        ((value(ttl=1_600_000_000, ttl_absolute=True),), 0),
        ((value(ttl=60), value(index=2, ttl=1_700_000_020, ttl_absolute=True)), 20),
        ((value(ttl=60), replace(secret(), ttl=5)), 60),
    ],
)
async def test_ttl_of_a_record(values: tuple[Value, ...], ttl_s: int) -> None:
    """Relative and absolute; of the public values only, lest a private one shows."""
    async with Parts(GatedStore(), local={"clock": lambda: 1_700_000_000.0}) as parts:
        await home(parts.registrar)
        await write(parts.registrar, create(values=values))
        assert (await parts.resolver.resolve(key())).ttl_s == ttl_s


@pytest.mark.parametrize("absence", [IdentifierNotFound, IdentifierRetired, PrefixNotHere])
async def test_an_absence_is_kept_for_a_short_time(absence: type[BiaojieError]) -> None:
    world = World(absent_ttl_s=5)
    world.absence = absence
    for _ in range(3):
        with pytest.raises(absence):
            (await world.ask()).found()
    world.now += 4.9
    answer = await world.ask()
    assert (answer.source, answer.age_s) == (Source.CACHE, 4)
    assert len(world.asked) == 1
    world.now += 0.1
    await world.ask()
    assert len(world.asked) == 2


async def test_what_appears_or_goes_replaces_the_other(world: World) -> None:
    world.absence = IdentifierNotFound
    await world.ask()
    world.absence = None
    world.now += 5
    assert (await world.ask()).record is not None
    assert not world.cache.absent
    world.now += 100
    world.absence = IdentifierRetired
    assert (await world.ask()).absence is IdentifierRetired
    assert len(world.cache.cached) == 0


async def test_no_absences_are_kept_where_none_may_be() -> None:
    world = World(absent_max=0)
    world.absence = IdentifierNotFound
    await world.ask()
    assert not world.cache.absent


# Bounds ---------------------------------------------------------------------------------


async def test_a_flood_of_absent_names_is_bounded_and_spares_the_records() -> None:
    world = World(absent_max=100)
    await world.ask("KNOWN")
    world.absence = IdentifierNotFound
    for n in range(1_000):
        await world.ask(f"R{n}")
    assert len(world.cache.absent) == 100
    assert list(world.cache.absent)[-1] == key("R999")
    assert (await world.ask("KNOWN")).source is Source.CACHE
    assert not world.cache._flights


async def test_a_flood_of_records_is_bounded_in_bytes() -> None:
    world = World(bytes_max=100_000)
    for n in range(1_000):
        await world.ask(f"R{n}")
        assert world.cache.cached.bytes <= 100_000
    assert 50 < len(world.cache.cached) < 200
    assert not world.cache._flights


SHAPES = {
    "empty": (),
    "one short value": (b"x" * 30, 1, 0),
    "one long value": (b"x" * 5_000, 1, 0),
    "many values": (b"x" * 50, 40, 0),
    "references": (b"x", 3, 30),
    "all there may be": (b"x", 512, 64),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("suffix", ["SN%07d", "标识" * 40 + "%07d"], ids=["short", "long"])
def test_bytes_are_counted_as_memory_has_them(shape: str, suffix: str) -> None:
    """Whatever a tenant registers, the bound on the cache is a bound on memory."""
    data, values, references = SHAPES[shape] or (b"", 0, 0)
    count = 3 if values * references > 1_000 else 200
    blobs = []
    for n in range(count):
        name = Identifier(PREFIX, suffix % n)
        linked = tuple(Reference(f"{PREFIX}/R{n}-{i}", i) for i in range(references))
        all_values = tuple(value(data.decode(), i + 1, references=linked) for i in range(values))
        blobs.append((name.key(), encode_blob(Record(name, all_values), name.key())))
    world = World(bytes_max=10**10)
    gc.collect()
    tracemalloc.start()
    for n, (at, blob) in enumerate(blobs):
        fresh = Key(at.prefix.encode().decode(), bytes(bytearray(at.suffix)))
        world.now = 1_000.5 + n
        record = decode_blob(blob, fresh, Status.ACTIVE, 1, 10**6 + n, None)
        _land(world, fresh, record)
    del record, fresh
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(world.cache.cached) == count
    assert 0.8 < world.cache.cached.bytes / used < 1.35


def _land(world: World, at: Key, record: Record) -> None:
    """Put into the cache without the tasks of a flight, which would be measured too."""
    task = _Done(Answer(record, None, Source.STORE, 0, 100))
    world.cache._landed(at, _Done, task)  # type: ignore[arg-type]


class _Done:
    current = True

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def cancelled(self) -> bool:
        return False

    def exception(self) -> None:
        return None

    def result(self) -> Answer:
        return self._answer


# Flights --------------------------------------------------------------------------------


async def test_one_flight_for_all_who_ask(world: World) -> None:
    world.gate = asyncio.Event()
    tasks = [world.later() for _ in range(100)]
    await turns()
    world.gate.set()
    answers = await asyncio.gather(*tasks)
    assert len(world.asked) == 1
    assert {answer.record for answer in answers} == {answers[0].record}
    assert (world.cache.counts["miss"], world.cache.counts["joined"]) == (1, 99)


async def test_10_000_ask_for_one_cold_name_and_the_store_is_asked_once() -> None:
    async with Parts(GatedStore(), poll_s=10) as parts:
        await home(parts.registrar)
        await write(parts.registrar, create())
        before = parts.store.calls["look_up"]
        answers = await asyncio.gather(*(parts.resolver.resolve(key()) for _ in range(10_000)))
        assert parts.store.calls["look_up"] == before + 1
        assert all(answer.record is answers[0].record for answer in answers)
        # Nor do 10,000 for a name that is not there.
        answers = await asyncio.gather(*(parts.resolver.resolve(key("X")) for _ in range(10_000)))
        assert parts.store.calls["look_up"] == before + 2
        assert {answer.absence for answer in answers} == {IdentifierNotFound}


async def test_who_gives_up_does_not_end_the_flight_of_others(world: World) -> None:
    world.gate = asyncio.Event()
    tasks = [world.later() for _ in range(3)]
    await turns()
    tasks[0].cancel()  # the one that began it
    tasks[1].cancel()
    await turns()
    world.gate.set()
    assert (await tasks[2]).record is not None
    assert tasks[0].cancelled()
    assert tasks[1].cancelled()
    assert (await world.ask()).source is Source.CACHE
    assert len(world.asked) == 1


async def test_a_flight_all_have_left_still_fills_the_cache(world: World) -> None:
    world.gate = asyncio.Event()
    task = world.later()
    await turns()
    task.cancel()
    await asyncio.wait([task])
    world.gate.set()
    await turns()
    assert (await world.ask()).source is Source.CACHE


async def test_a_failing_flight_fails_all_and_leaves_nothing(world: World) -> None:
    world.error = TemporarilyUnavailable("gone")
    world.gate = asyncio.Event()
    async with nothing_left_behind():
        tasks = [world.later() for _ in range(10)]
        await turns()
        for task in tasks[:5]:
            task.cancel()
        await turns()
        world.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(o) for o in outcomes[5:]] == [TemporarilyUnavailable] * 5
    assert not world.cache._flights
    assert not world.cache.absent
    world.error = None
    assert (await world.ask()).record is not None


async def test_a_failing_flight_nobody_waits_for_any_more(world: World) -> None:
    world.error = TemporarilyUnavailable("gone")
    world.gate = asyncio.Event()
    async with nothing_left_behind():
        task = world.later()
        await turns()
        task.cancel()
        await asyncio.wait([task])
        world.gate.set()
    assert not world.cache._flights


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
    await world.cache.resolve(at, world.onward)
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

    async def onward(at: Key) -> Answer:
        return answer

    await world.cache.resolve(odd, onward)
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


# With real parts ------------------------------------------------------------------------


async def test_the_writer_reads_its_write() -> None:
    async with Parts(GatedStore(), poll_s=10) as parts:
        await home(parts.registrar)
        with pytest.raises(IdentifierNotFound):
            (await parts.resolver.resolve(key())).found()
        await write(parts.registrar, create())
        for n in range(20):
            await parts.resolver.resolve(key())
            await write(parts.registrar, put(data=str(n)))
            answer = await parts.resolver.resolve(key())
            assert answer.found().values[0].text == str(n)


async def test_private_values_and_drafts_never_enter_the_cache() -> None:
    async with Parts(GatedStore()) as parts:
        await home(parts.registrar)
        await write(
            parts.registrar,
            create("MIXED", values=(value(), secret())),
            create("DRAFT", status=Status.DRAFT),
            create("SECRET", values=(secret(),)),
        )
        for suffix in ("MIXED", "SECRET"):
            answer = await parts.resolver.resolve(key(suffix))
            assert all(v.index != 9 for v in answer.found().values)
        assert (await parts.resolver.resolve(key("DRAFT"))).absence is IdentifierNotFound
        # Neither do reads by those who may see them put anything there.
        for suffix in ("MIXED", "DRAFT", "SECRET"):
            await parts.service.resolve(Query(identifier(suffix)), ACME)
        assert b"secret" not in repr(parts.cache.cached.entries).encode()
        assert set(parts.cache.cached) == {key("MIXED"), key("SECRET")}


async def test_every_state_as_the_public_sees_it() -> None:
    async with Parts(GatedStore()) as parts:
        await home(parts.registrar)
        await write(
            parts.registrar,
            create("ACTIVE"),
            create("FROZEN", status=Status.FROZEN),
            create("DRAFT", status=Status.DRAFT),
            create("GONE"),
            Retire(identifier("GONE")),
        )
        resolve = parts.resolver.resolve
        for _ in "12":  # from the store, then from the cache
            assert (await resolve(key("ACTIVE"))).found().status is Status.ACTIVE
            assert (await resolve(key("FROZEN"))).found().status is Status.FROZEN
            assert (await resolve(key("DRAFT"))).absence is IdentifierNotFound
            assert (await resolve(key("NONE"))).absence is IdentifierNotFound
            assert (await resolve(key("GONE"))).absence is IdentifierRetired
            assert (await resolve(key("X", "88.118.9"))).absence is PrefixNotHere
        suspend = ChangePrefix(PREFIX, status=PrefixStatus.SUSPENDED)
        await write(parts.registrar, suspend)
        for suffix in ("ACTIVE", "FROZEN", "DRAFT", "NONE", "GONE"):
            assert (await resolve(key(suffix))).absence is PrefixSuspended
        await write(parts.registrar, ChangePrefix(PREFIX, status=PrefixStatus.ACTIVE))
        assert (await resolve(key("ACTIVE"))).found().version == 1
