"""Who finds no room is told so before more is made of what he asks, and waits before he is told
again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from biaojie.errors import OverCapacity
from biaojie.wire.native import Kind, Resolve, ResolveMany, encode_request
from resolver.front.native.work import error_frame
from resolver.overload import PENALTY_S, REFUSED_AT_ONCE, Penalties
from tests.native_world import Peer, World, error, event_loop_policy, request, world

__all__ = ["event_loop_policy"]
PREFIX = "88.118.8"


@contextmanager
def full(node: World, pause_s: float = PENALTY_S) -> Iterator[Penalties]:
    """It works on all it can. As much may be refused as is asked."""
    gate = node.front.gate
    gate.penalties = Penalties(pause_s, refusal_s=1e-9)
    gate.running += gate.limit
    try:
        yield gate.penalties
    finally:
        gate.running -= gate.limit


def bypassing(id_: int, name: str = "SN1") -> bytes:
    return request(id_, Resolve(f"{PREFIX}/{name}", authoritative=True))


async def refused(peer: Peer, *octets: bytes) -> list[int]:
    """The ids of the refusals that it is told, one for each."""
    peer.send(*octets)
    frames = await peer.frames(len(octets))
    assert {type(error(frame)) for frame in frames} == {OverCapacity}
    assert {error(frame).fields["retry_after_s"] for frame in frames} == {1}
    return [frame.id for frame in frames]


async def test_the_quick_way_says_what_the_ordinary_says(tmp_path: Path) -> None:
    """The first is worked out, and so is what is no single whole request; the others are not."""
    async with world() as node, node.peer() as peer:
        with full(node):
            for id_, name in enumerate(("SN1", "SN1", "x" * 200, "标识", "unknown", "SN1"), 1):
                peer.send(bypassing(id_, name))
                frame = await peer.frame()
                told = error(frame)
                assert isinstance(told, OverCapacity)
                whole = error_frame(
                    id_.to_bytes(4, "big"),
                    OverCapacity(request_id=told.request_id, retry_after_s=1),
                )
                assert whole[8:] == bytes((Kind.ERROR,)) + frame.body
                assert len(told.request_id) == 16
        assert node.front.gate.refused == 6
        assert node.front.crowded.count == 6, "each is counted"


async def test_each_has_a_line_or_is_counted_by_the_next() -> None:
    async with world() as node, node.peer() as peer:
        crowded = node.front.crowded
        with full(node), capture_logs() as lines:
            for id_ in range(1, 30):
                assert await refused(peer, bypassing(id_)) == [id_]
        told = sum(1 + line.get("left_out", 0) for line in lines)
        assert 0 < len(lines) < 29
        assert told + crowded.said.left_out == crowded.count == 29


async def test_every_way_to_ask_is_refused_alike() -> None:
    async with world() as node, node.peer() as peer:
        with full(node):
            whole = bypassing(1)
            assert await refused(peer, whole) == [1]
            for at in (1, 4, 9, len(whole) - 1):
                peer.send(whole[:at])
                await asyncio.sleep(0.01)
                assert await refused(peer, whole[at:]) == [1]
            cold = request(7, Resolve(f"{PREFIX}/unknown"))
            assert await refused(peer, cold) == [7]
            assert await refused(peer, *(bypassing(n) for n in range(1, 10))) == [*range(1, 10)]
        assert node.front.gate.refused == node.front.crowded.count == 15


async def test_what_the_cache_has_is_never_refused() -> None:
    async with world() as node, node.peer() as peer:
        await peer.answer(Resolve(f"{PREFIX}/SN1"))
        spelled = Resolve("88.118.8/sn1", types=("URL",))  # not in the lane
        with full(node):
            for _ in range(3):
                await peer.answer(Resolve(f"{PREFIX}/SN1"))
                await peer.answer(spelled)
        assert node.front.gate.refused == 0


async def test_who_asks_on_at_once_waits_and_loses_nothing() -> None:
    async with world() as node, node.peer() as peer:
        with full(node):
            assert await refused(peer, bypassing(1)) == [1]
            began = time.monotonic()
            peer.send(bypassing(2))
            await asyncio.sleep(PENALTY_S / 3)
            peer.send(bypassing(3)[:6])
            await asyncio.sleep(0)
            assert await refused(peer, bypassing(3)[6:]) == [2]
            assert time.monotonic() - began > 0.9 * PENALTY_S
            assert (await peer.frame()).id == 3
            peer.send(bypassing(4))
            peer.writer.write_eof()
            assert [frame.id for frame in await peer.rest()] == [4]


async def test_the_lane_answers_who_was_refused_at_once() -> None:
    async with world() as node, node.peer() as peer:
        for _ in range(3):  # then the lane has it
            await peer.answer(Resolve(f"{PREFIX}/SN1"))
        with full(node, pause_s=60.0):
            assert await refused(peer, bypassing(1)) == [1]
            await peer.answer(Resolve(f"{PREFIX}/SN1"))


async def test_room_lets_in_who_waits() -> None:
    async with world() as node, node.peer() as peer:
        gate = node.front.gate
        with full(node, pause_s=60.0) as penalties:
            assert await refused(peer, bypassing(1)) == [1]
            peer.send(bypassing(2))
            async with asyncio.timeout(10):
                while not len(penalties):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            room = gate.limit // 2
            gate.running -= room
            gate.come_back()
            gate.leave()
            assert (await peer.frame()).kind == Kind.ANSWER
            gate.running += room


async def test_with_a_key_it_is_the_same() -> None:
    async with world() as node, node.peer(node.acme) as peer:
        with full(node):
            assert await refused(peer, bypassing(1)) == [1]
            began = time.monotonic()
            assert await refused(peer, bypassing(2)) == [2]
            assert time.monotonic() - began > 0.9 * PENALTY_S


async def test_of_a_quota_too_and_then_no_more() -> None:
    async with world(service={"tenant_rate_max": 5}) as node, node.peer(node.acme) as peer:
        ask = Resolve(f"{PREFIX}/SN2")
        codes = []
        began = time.monotonic()
        for _ in range(30):
            codes.append((await peer.ask(ask)).kind)
        refusals = codes.count(Kind.ERROR)
        passed = time.monotonic() - began
        assert refusals > 10
        # The first of them comes at once, each other a pause later at the least.
        assert passed > 0.8 * (refusals - 1) * PENALTY_S
        await asyncio.sleep(1.0)
        assert (await peer.ask(ask)).kind == Kind.ANSWER


async def test_a_lost_connection_waits_for_nothing() -> None:
    async with world() as node:
        with full(node) as penalties:
            async with node.peer() as peer:
                assert await refused(peer, bypassing(1)) == [1]
                peer.send(*(bypassing(n) for n in range(2 * REFUSED_AT_ONCE)))
            await asyncio.sleep(4 * PENALTY_S)
            assert not len(penalties)
        async with asyncio.timeout(5):
            while node.front.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def test_what_is_bypassed_is_told_from_the_octets() -> None:
    """The quick way knows an authoritative request by its ends alone."""
    for name in ("a/b", "88.118.8/" + "x" * 60):
        kind, body = encode_request(Resolve(name, authoritative=True))
        assert bytes((kind, body[0])) == b"\x02\x94"
        assert body[-1] == 0xC3
        for other in (Resolve(name), Resolve(name, (1,)), Resolve(name, (), ("URL",))):
            assert encode_request(other)[1][-1] != 0xC3


async def test_to_ask_for_many_takes_more_places() -> None:
    async with world(native_requests_max=64) as node, node.peer() as peer:
        gate = node.front.gate
        taken = []
        begin = node.parts.service.resolve_many

        async def resolve_many(*arguments: Any, **named: Any) -> Any:
            taken.append(gate.running)
            return await begin(*arguments, **named)

        node.parts.service.resolve_many = resolve_many  # type: ignore[method-assign]
        for count in (2, 1_000):
            names = tuple(f"{PREFIX}/name{n}" for n in range(count))
            await peer.answer(ResolveMany(names))
        assert taken == [1, 8]
        assert gate.running == 0
