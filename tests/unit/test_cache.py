"""The cache step: lifetimes, bounds, flights."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from dataclasses import replace

import pytest

from biaojie.account import PrefixStatus
from biaojie.errors import (
    BiaojieError,
    Elsewhere,
    IdentifierNotFound,
    IdentifierRetired,
    PrefixNotHere,
    PrefixSuspended,
    TemporarilyUnavailable,
)
from biaojie.identifier import Identifier, Key
from biaojie.record import Record, Reference, Status, Value
from registry.operations import ChangePrefix, Retire
from registry.sql.blob import decode_blob, encode_blob
from resolver.core import Answer, Source
from resolver.query import Query
from tests.cache_world import World, turns
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


@pytest.fixture
def world() -> World:
    return World()


# Lifetimes ------------------------------------------------------------------------------


async def test_what_is_at_hand(world: World) -> None:
    """What `resolve` would say without asking anybody, but where a name lives."""
    cache = world.cache
    assert cache.at_hand(key("SN1")) is None
    await world.ask()
    found = cache.at_hand(key("SN1"))
    assert found is not None
    assert (found.source, found.record is not None) == (Source.CACHE, True)
    for absence in (IdentifierNotFound, IdentifierRetired, PrefixNotHere, PrefixSuspended):
        cache._keep(key("A"), Answer(None, absence, Source.STORE, 0, 0), world.now)
        absent = cache.at_hand(key("A"))
        assert absent is not None
        assert absent.absence is absence
    cache._keep(key("B"), Answer(None, Elsewhere, Source.STORE, 0, 0), world.now)
    assert cache.at_hand(key("B")) is None
    world.now += 5
    assert cache.at_hand(key("A")) is None
    world.now += 95
    assert cache.at_hand(key("SN1")) is None


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


SHAPES: dict[str, tuple[bytes, int, int]] = {
    "empty": (b"", 0, 0),
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
    data, values, references = SHAPES[shape]
    count = 3 if values * references > 1_000 else 500
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
    world.cache._keep(at, Answer(record, None, Source.STORE, 0, 100), world.now)


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
