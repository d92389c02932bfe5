"""The native front's express lane sends what the ordinary path sends, octet by octet.

Two fronts over the same parts, one with a lane and one without, are asked the same; a common clock
makes age and ttl the same too. Only request ids differ, and are taken off.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from biaojie.account import PrefixStatus
from biaojie.record import Value
from biaojie.wire.native import (
    Frame,
    Kind,
    Resolve,
    ResolveMany,
    decode_error,
    decode_resolution,
    encode_frame,
    requests,
    shapes,
)
from registry.operations import ChangePrefix, Retire
from resolver.front import connections
from resolver.front.native import connection, server
from tests.core_parts import create, identifier, put, secret, value
from tests.native_world import Peer, request, world
from tests.native_world import event_loop_policy as event_loop_policy  # noqa: PLC0414

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")

NAMES = ("SN1", "sn1", "LONG", "泵-1", "MANY")
WARM = [f"88.118.8/{name}" for name in NAMES]


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def two(monkeypatch: pytest.MonkeyPatch, **options: Any) -> AsyncIterator[tuple[Any, ...]]:
    """The world, a peer in the lane, one that is not, and the clock. WARM names are ready."""
    clock = Clock()
    for module in (connection, server, connections):
        monkeypatch.setattr(module, "monotonic", clock)
    patient: dict[str, Any] = {"native_idle_timeout_s": 1e6, "native_message_timeout_s": 1e6}
    cache = {"clock": clock, **options.pop("cache", {})}
    async with world(cache=cache, **patient, **options) as node:
        await node.write(
            create("LONG", "x" * 30_000),
            create("泵-1", "中文"),
            create("MANY", values=tuple(Value(n, "T", b"d" * n) for n in range(1, 200))),
            create("SHORT", values=(value(ttl=30),)),
        )
        async with node.peer() as lane, node.peer(ordinary=True) as ordinary:
            for name in WARM:
                for _ in range(3):
                    await lane.answer(Resolve(name))
            yield node, lane, ordinary, clock


def bare(frame: Frame) -> tuple[Any, ...]:
    """A frame without the request id that an error has."""
    if frame.kind == Kind.ERROR:
        error = decode_error(frame.body)
        return (frame.id, frame.kind, error.code, error.detail, dict(error.fields))
    return frame


async def same(lane: Peer, ordinary: Peer, octets: bytes, count: int, *, cut: int = 0) -> Any:
    """Both answer the same to the same octets, in whatever order; the frames by id."""
    got = []
    for peer in (lane, ordinary):
        peer.send(octets[: cut or len(octets)])
        if cut:
            await peer.writer.drain()
            await settle()
            peer.send(octets[cut:])
        frames = await peer.frames(count)
        got.append(sorted((bare(frame) for frame in frames), key=lambda f: f[0]))
    assert got[0] == got[1]
    return got[0]


async def settle() -> None:
    """Give the node a look at what has been sent so far."""
    for _ in range(4):
        await asyncio.sleep(0)


def mixture(chance: random.Random, size: int) -> tuple[bytes, int]:
    """Requests warm and cold, good and bad, each with another id; how many answers there are."""
    made: list[bytes] = []
    for n in range(1, size + 1):
        name = chance.choice(WARM)
        made.append(
            chance.choice(
                [
                    request(n, Resolve(name)),
                    request(n, Resolve(name)),
                    request(n, Resolve(name)),
                    request(n, Resolve(f"hdl:{name}")),
                    request(n, Resolve(name, (1,), (), False)),
                    request(n, Resolve(name, (), ("URL.", "t"), False)),
                    request(n, Resolve("88.118.8/SN2")),
                    request(n, Resolve("88.118.8/absent")),
                    request(n, Resolve("88.118.999/absent")),
                    request(n, Resolve("no identifier")),
                    request(n, requests.Ping()),
                    request(n, requests.ListRecords("88.118.8")),
                    request(n, ResolveMany((name, "88.118.8/absent"))),
                    encode_frame(n, 2, b"\xc1"),
                    encode_frame(n, 2, b""),
                    encode_frame(n, 0x55, b"\xc0"),
                    encode_frame(n, 2, shapes.pack([name, [], [], False, "later"])),
                    encode_frame(n, 2, shapes.pack([name]) + b"\xc0"),
                ]
            )
        )
    return b"".join(made), len(made)


async def warmed(lane: Peer) -> None:
    for name in ("SN2", "absent"):
        lane.send(request(7, Resolve(f"88.118.8/{name}")))
        await lane.frame()
    lane.send(request(7, Resolve("88.118.999/absent")))
    await lane.frame()


@pytest.mark.parametrize("name", WARM)
async def test_a_hit_is_what_the_cache_would_send(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(monkeypatch) as (node, lane, ordinary, clock):
        before = node.front.lane.hits
        for n, passed in enumerate((0.0, 0.4, 0.59, 0.02, 7.0, 3_000.0), start=1):
            clock.now += passed
            ((id_, kind, body),) = await same(lane, ordinary, request(2**32 - n, Resolve(name)), 1)
            assert (id_, kind) == (2**32 - n, Kind.ANSWER)
            found = decode_resolution(body)
            assert (found.source, found.age_s) == ("cache", int(clock.now - 1_000))
            assert found.age_s + found.ttl_s == 86_400
        assert node.front.lane.hits == before + 6


async def test_split_at_every_octet(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(monkeypatch) as (node, lane, ordinary, _):
        await warmed(lane)
        octets = b"".join(
            (
                request(1, Resolve("88.118.8/SN1")),
                request(2, Resolve("88.118.8/absent")),
                request(3, requests.Ping()),
                request(4, Resolve("88.118.8/泵-1")),
                request(5, Resolve("88.118.8/SN1", (1,), (), False)),
            )
        )
        before = node.front.lane.hits
        for cut in range(1, len(octets)):
            await same(lane, ordinary, octets, 5, cut=cut)
        assert node.front.lane.hits - before >= 2 * (len(octets) - 1)


@pytest.mark.parametrize("seed", range(24))
async def test_pipelined_mixtures(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    async with two(monkeypatch) as (node, lane, ordinary, clock):
        await warmed(lane)
        before = node.front.lane.hits
        for _ in range(8):
            octets, count = mixture(chance, chance.randrange(1, 60))
            cut = chance.randrange(len(octets))
            await same(lane, ordinary, octets, count, cut=cut)
            clock.now += chance.choice((0, 0, 0.3, 1.7))
        assert node.front.lane.hits > before


async def test_hundreds_at_once_are_all_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(monkeypatch) as (node, lane, ordinary, _):
        octets = b"".join(request(n, Resolve(WARM[n % len(WARM)])) for n in range(1, 1_500))
        frames = await same(lane, ordinary, octets, 1_499)
        assert [frame[0] for frame in frames] == list(range(1, 1_500))
        assert node.front.held_octets == 0


async def test_a_change_shows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(monkeypatch) as (node, lane, ordinary, _):
        for n in range(20):
            await node.write(put("SN1", f"text {n}"))
            for _ in range(3):
                ((*_, body),) = await same_but_source(lane, ordinary, "88.118.8/SN1")
                assert decode_resolution(body).record.values[0].text == f"text {n}"


async def same_but_source(lane: Peer, ordinary: Peer, name: str) -> Any:
    """After a change the first to ask is answered from the registry."""
    lane.send(request(9, Resolve(name)))
    await lane.frame()
    return await same(lane, ordinary, request(9, Resolve(name)), 1)


async def test_what_is_retired_is_gone_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(monkeypatch) as (node, lane, ordinary, _):
        await node.write(Retire(identifier("SN1")))
        for _ in range(3):
            ((_, _, code, *_),) = await same(lane, ordinary, request(9, Resolve(WARM[0])), 1)
            assert code == "identifier-retired"
        keys = [key for key in node.front.lane.table() if b"SN1" in key]
        assert keys == []


async def test_a_suspended_prefix_is_silent_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(monkeypatch) as (node, lane, ordinary, _):
        await node.write(ChangePrefix("88.118.8", status=PrefixStatus.SUSPENDED))
        for name in WARM:
            ((_, _, code, *_),) = await same(lane, ordinary, request(9, Resolve(name)), 1)
            assert code == "prefix-suspended"
        await node.write(ChangePrefix("88.118.8", status=PrefixStatus.ACTIVE))
        for name in WARM:
            ((_, kind, *_),) = await same_but_source(lane, ordinary, name)
            assert kind == Kind.ANSWER


async def test_a_value_that_becomes_private_is_never_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(monkeypatch) as (node, lane, ordinary, _):
        for _ in range(4):
            await same_but_source(lane, ordinary, "88.118.8/SN2")
        assert not [key for key in node.front.lane.table() if b"SN2" in key]
        await node.write(put("SN1", values=(value("public"), secret())))
        for _ in range(4):
            ((*_, body),) = await same_but_source(lane, ordinary, "88.118.8/SN1")
            assert len(decode_resolution(body).record.values) == 1
        assert not [key for key in node.front.lane.table() if b"SN1" in key]


async def test_it_dies_of_age(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(monkeypatch) as (node, lane, ordinary, clock):
        name = "88.118.8/SHORT"
        for _ in range(3):
            await lane.answer(Resolve(name))
        before = node.front.lane.hits
        clock.now += 29.5
        ((*_, body),) = await same(lane, ordinary, request(9, Resolve(name)), 1)
        assert (decode_resolution(body).age_s, decode_resolution(body).ttl_s) == (29, 1)
        assert node.front.lane.hits == before + 1
        clock.now += 0.5
        assert decode_resolution(await lane.answer(Resolve(name))).source == "store"
        assert node.front.lane.hits == before + 1


async def test_stale_answers_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(monkeypatch) as (node, lane, ordinary, _):
        # The tail, which can read the log, would call it up again in the middle of this.
        monkeypatch.setattr(type(node.parts.health), "answered", lambda health: None)
        node.parts.health.failed("test")
        before = node.front.lane.hits
        for name in WARM:
            ((*_, body),) = await same(lane, ordinary, request(9, Resolve(name)), 1)
            assert decode_resolution(body).source == "stale"
        ((_, _, code, *_),) = await same(lane, ordinary, request(9, Resolve("88.118.8/new")), 1)
        assert code == "temporarily-unavailable"
        assert node.front.lane.hits == before


async def test_who_asks_with_a_key_is_not_in_the_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(monkeypatch) as (node, *_):
        before = node.front.lane.hits
        for key in (node.acme, node.beta, node.admin):
            async with node.peer(key) as peer:
                for _ in range(4):
                    for name in WARM:
                        await peer.answer(Resolve(name))
        assert node.front.lane.hits == before


async def test_before_the_hello_nothing_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(monkeypatch) as (node, *_):
        before = node.front.lane.hits
        async with node.peer(greet=False) as peer:
            peer.send(request(1, Resolve(WARM[0])))
            (frame,) = await peer.rest()
            assert decode_error(frame.body).code == "invalid-request"
        assert node.front.lane.hits == before


async def test_it_is_bounded_in_octets(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(monkeypatch, lane_bytes=100_000) as (node, lane, ordinary, _):
        await node.write(*(create(f"B{n}", "x" * 900) for n in range(300)))
        for _ in range(3):
            octets = b"".join(request(n + 1, Resolve(f"88.118.8/B{n}")) for n in range(300))
            lane.send(octets)
            await lane.frames(300)
            assert node.front.lane.bytes <= 100_000
        await same(lane, ordinary, octets, 300)


async def test_an_entry_pushed_out_of_the_cache_is_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two(monkeypatch, cache={"bytes_max": 200_000}) as (node, lane, _, _):
        await node.write(*(create(f"B{n}", "x" * 900) for n in range(400)))
        for _ in range(2):
            octets = b"".join(request(n + 1, Resolve(f"88.118.8/B{n}")) for n in range(400))
            lane.send(octets)
            await lane.frames(400)
        kept = {id(entry) for entry in node.parts.cache.cached.entries.values()}
        alive = [ready for ready in node.front.lane.table().values() if ready.entry.alive]
        assert alive
        assert all(id(ready.entry) in kept for ready in alive)
