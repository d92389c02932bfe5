"""What waits for its turn, at the gate, for a quota or because much came at once, is answered in
the end, whoever goes before it and however."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import pytest

from biaojie.errors import InvalidRequest, OverCapacity
from biaojie.wire.native import Hello, Kind, Resolve, encode_frame
from biaojie.wire.native import encode_request as encoded
from biaojie.wire.native.requests import FindPrefix, Mint
from resolver.front.native.server import BEGUN_AT_ONCE
from resolver.overload import Penalties
from tests.core_parts import GatedStore
from tests.native_world import Peer, World, error, event_loop_policy, request, world

__all__ = ["event_loop_policy"]
PREFIX = "88.118.8"
BROKEN = b"\xc1"
"""No msgpack: who sends it is answered by the call that begins his request."""


@contextmanager
def unhandled() -> Iterator[list[Any]]:
    """What the event loop has to say of exceptions that nobody caught."""
    said: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: said.append(context))
    try:
        yield said
    finally:
        loop.set_exception_handler(None)


async def crowd(node: World, stack: AsyncExitStack, count: int) -> list[Peer]:
    """Peers of acme, whose key is trusted from here on."""
    peers = [await stack.enter_async_context(node.peer(node.acme)) for _ in range(count)]
    for peer in peers:
        await peer.answer(FindPrefix(PREFIX))
    return peers


@pytest.mark.parametrize("refused_by", ["the codec", "the registrar"])
async def test_a_crowd_that_is_answered_at_once_is_let_in_one_after_the_other(
    refused_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each who leaves makes room for the next: as a chain of calls that would be a hundred deep."""
    store = GatedStore()
    with unhandled() as said:
        async with world(store=store, native_requests_max=16) as node, AsyncExitStack() as stack:
            # Nobody is refused while he waits: all are let in as others leave.
            node.front.gate.penalties = Penalties(60.0, refusal_s=1e-9)
            public = await stack.enter_async_context(node.peer())
            peers = await crowd(node, stack, 200)
            store.close_gate("look_up")
            public.send(*(request(n, Resolve(f"{PREFIX}/NO{n}")) for n in range(1, 17)))
            await store.reached("look_up")
            assert node.front.gate.full
            if refused_by == "the codec":
                asked = [encode_frame(n, Kind.WRITE, BROKEN) for n in range(10, 50)]
            else:
                monkeypatch.setattr(node.parts.registrar._queue, "has_room", lambda *_: False)
                asked = [request(n, Mint(PREFIX, f"M{n}-", ())) for n in range(10, 50)]
            for peer in peers:
                peer.send(*asked)
            async with asyncio.timeout(5):
                while len(node.front.gate.penalties) < len(peers):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            store.open_gate("look_up")
            answered = await asyncio.gather(*(peer.frames(len(asked)) for peer in peers))
            errors = {type(error(frame)) for frames in answered for frame in frames}
            expected = InvalidRequest if refused_by == "the codec" else OverCapacity
            assert expected in errors
            assert errors <= {InvalidRequest, OverCapacity}
            await public.frames(16)
            assert (node.front.gate.running, len(node.front.gate.penalties)) == (0, 0)
    assert said == []


@pytest.mark.parametrize("pings", [0, BEGUN_AT_ONCE - 1, BEGUN_AT_ONCE, 3 * BEGUN_AT_ONCE])
@pytest.mark.parametrize("end", ["half-closed", "drained"])
async def test_what_came_before_the_end_is_answered(pings: int, end: str) -> None:
    """Also behind more than is begun in one turn, and behind what is answered by the call."""
    async with world() as node, node.peer(node.acme) as peer:
        await peer.answer(FindPrefix(PREFIX))
        asked = [encode_frame(n, Kind.PING, b"\x90") for n in range(2, 2 + pings)]
        asked.append(encode_frame(9_000, Kind.WRITE, BROKEN))
        asked += [request(9_001 + n, Mint(PREFIX, f"M{n}-", ())) for n in range(3)]
        peer.send(*asked)
        if end == "half-closed":
            peer.writer.write_eof()
        else:
            (connection,) = node.front.connections
            while not connection._session.running and not connection._penalized:  # noqa: ASYNC110
                await asyncio.sleep(0)
            connection.drain()
        frames = await peer.rest()
        assert len(frames) == len(asked)
        kinds = {frame.id: frame.kind for frame in frames}
        assert kinds[9_000] == Kind.ERROR
        assert {kinds[9_001 + n] for n in range(3)} == {Kind.ANSWER}


async def test_who_waits_for_a_quota_is_not_cut_for_half_a_message() -> None:
    limits = {"tenant_rate_max": 1}
    async with (
        world(service=limits, native_message_timeout_s=0.4) as node,
        AsyncExitStack() as stack,
    ):
        peers = [await stack.enter_async_context(node.peer(node.acme)) for _ in range(250)]
        await peers[0].answer(FindPrefix(PREFIX))
        for peer in peers:
            peer.send(*(request(n, FindPrefix(PREFIX)) for n in range(2, 42)))
        await asyncio.sleep(2.5)
        assert len(node.parts.service.quotas.penalties) > 0, "they wait"
        assert node.front.counts["native_cut"] == 0


async def test_half_a_message_behind_a_refusal_is_cut() -> None:
    """The wait for us ends, and with it the excuse."""
    async with world(native_message_timeout_s=0.4) as node, node.peer() as peer:
        gate = node.front.gate
        gate.running += gate.limit
        whole = request(1, Resolve(f"{PREFIX}/unknown"))
        peer.send(whole, whole[:7])
        assert isinstance(error(await peer.frame()), OverCapacity)
        gate.running -= gate.limit
        began = time.monotonic()
        assert await peer.rest() == []
        assert time.monotonic() - began < 3
        assert node.front.counts["native_cut"] == 1


@pytest.mark.parametrize("rest", [b"", bytes(4), bytes(13), encode_frame(1, Kind.PING, b"\x90")])
async def test_who_was_dismissed_is_dismissed_once(rest: bytes) -> None:
    with unhandled() as said:
        async with world() as node, node.peer(greet=False) as peer:
            peer.send(encode_frame(0, *encoded(Hello(9, 9, None, "test"))) + rest)
            (frame,) = await peer.rest()
            assert isinstance(error(frame), InvalidRequest)
            assert node.front.counts["native_malformed"] == 0
    assert said == []
