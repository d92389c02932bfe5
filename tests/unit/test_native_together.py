"""Over native: misses of all connections go together, registrations are answered by a call."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import AsyncExitStack

from biaojie.change import Action
from biaojie.errors import IdentifierNotFound, IdentifierTaken, TemporarilyUnavailable
from biaojie.wire.native import Kind, requests
from biaojie.wire.native.answers import decode_written
from resolver.front.native.server import BEGUN_AT_ONCE
from tests.core_parts import PREFIX, GatedStore, create, key, value
from tests.native_world import Peer, error, event_loop_policy, request, world

__all__ = ["event_loop_policy"]


def reset(peer: Peer) -> None:
    """Gone, and not only done with asking: to whom only says so, all is still answered."""
    connection = peer.writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.writer.transport.abort()


def resolve(id_: int, suffix: str) -> bytes:
    return request(id_, requests.Resolve(f"{PREFIX}/{suffix}"))


async def test_misses_of_many_connections_are_one_look_up() -> None:
    store = GatedStore()
    async with world(store=store) as made:
        await made.write(*(create(f"N{n}") for n in range(40)))
        async with made.peer() as one, made.peer() as two:
            store.close_gate("look_up")
            one.send(resolve(1, "SN1"))
            two.send(resolve(1, "SN2"))
            await store.reached("look_up")
            before = store.calls["look_up"]
            one.send(*(resolve(n, f"N{n}") for n in range(2, 20)), resolve(90, "NO"))
            two.send(*(resolve(n, f"N{n}") for n in range(2, 40)))
            await asyncio.sleep(0.05)
            store.open_gate("look_up")
            frames = [*await one.frames(20), *await two.frames(39)]
            assert store.calls["look_up"] - before <= 3
            wrong = [frame for frame in frames if frame.kind == Kind.ERROR]
            assert [(frame.id, type(error(frame))) for frame in wrong] == [(90, IdentifierNotFound)]
        assert made.front.gate.running == 0


async def test_a_turn_of_the_loop_is_short_however_much_is_asked() -> None:
    """Who asks for one name has it long before who asks for hundreds has all."""
    flood, most = 400, BEGUN_AT_ONCE + BEGUN_AT_ONCE // 2
    async with world() as made, AsyncExitStack() as stack:
        loud = [await stack.enter_async_context(made.peer()) for _ in range(4)]
        other = await stack.enter_async_context(made.peer())
        begun: list[int] = []
        ask, end = made.front.begin, made.front._end_turn

        def begin() -> None:
            begun[-1:] = [begun[-1] + 1]
            ask()

        def end_turn() -> None:
            begun.append(0)
            end()

        begun.append(0)
        made.front.begin, made.front._end_turn = begin, end_turn  # type: ignore[method-assign]
        for n, peer in enumerate(loud):
            peer.send(*(resolve(id_, f"NO{n}-{id_}") for id_ in range(1, flood + 1)))
        other.send(resolve(1, "SN1"))
        assert (await other.frame()).kind == Kind.ANSWER
        assert sum(begun) < 4 * flood  # it has not waited for them
        answers = await asyncio.gather(*(peer.frames(flood) for peer in loud))
        assert [{frame.id for frame in some} for some in answers] == [
            set(range(1, flood + 1)) for _ in loud
        ]
        assert max(begun) <= most
        assert sum(begun) == 4 * flood + 1
        assert len(made.front._in_turn) == 0
        assert made.front.gate.running == 0


async def test_who_leaves_before_his_turn_holds_nobody_up() -> None:
    async with world() as made:
        async with made.peer() as gone, made.peer() as stays:
            gone.send(*(resolve(id_, f"NO{id_}") for id_ in range(1, 900)))
            stays.send(*(resolve(id_, f"NO{id_}") for id_ in range(1, 300)))
            reset(gone)
            assert {frame.id for frame in await stays.frames(299)} == set(range(1, 300))
        await asyncio.sleep(0.05)
        assert len(made.front._in_turn) == 0
        assert made.front.gate.running == 0


async def test_nobody_waits_for_what_he_did_not_ask_for() -> None:
    store = GatedStore()
    async with world(store=store) as made, made.peer() as peer:
        await made.write(create("OTHER"))
        store.close_gate("look_up")
        peer.send(resolve(1, "SN1"))
        await store.reached("look_up")
        held = store.gates.pop("look_up")  # from now on others get through
        peer.send(resolve(2, "SN1"), resolve(3, "OTHER"), resolve(4, "NO"))
        assert {(await peer.frame()).id for _ in range(2)} == {3, 4}
        assert made.front.gate.running == 2
        held.set()
        assert {(await peer.frame()).id for _ in range(2)} == {1, 2}
        assert made.front.gate.running == 0


async def test_a_connection_lost_meanwhile_harms_no_other() -> None:
    store = GatedStore()
    async with world(store=store) as made:
        store.close_gate("look_up")
        async with made.peer() as one:
            async with made.peer() as gone:
                gone.send(resolve(1, "SN1"), resolve(2, "SN2"))
                one.send(resolve(1, "SN1"), resolve(2, "SN2"))
                await store.reached("look_up")
                reset(gone)
            await asyncio.sleep(0.02)
            store.open_gate("look_up")
            assert {frame.kind for frame in await one.frames(2)} == {Kind.ANSWER}
        assert made.front.gate.running == 0


async def test_misses_while_the_registry_is_down_are_told_so_at_once() -> None:
    store = GatedStore()
    async with world(store=store) as made, made.peer() as peer:
        made.parts.health.failed("test")
        peer.send(resolve(1, "A"), resolve(2, "B"))
        errors = [error(frame) for frame in await peer.frames(2)]
        assert [type(e) for e in errors] == [TemporarilyUnavailable] * 2
        assert errors[0].request_id != errors[1].request_id


async def test_misses_that_hang_end_by_the_deadline() -> None:
    store = GatedStore()
    async with world(store=store, deadline_s=0.1) as made, made.peer() as peer:
        store.close_gate("look_up")
        peer.send(resolve(1, "A"), resolve(2, "B"))
        errors = [error(frame) for frame in await peer.frames(2)]
        assert {e.code for e in errors} == {"deadline-exceeded"}
        store.open_gate("look_up")
        assert made.front.gate.running == 0


def create_request(id_: int, suffix: str) -> bytes:
    operation = requests.Operation(Action.CREATE, f"{PREFIX}/{suffix}", (value("x"),))
    return request(id_, requests.Write(operation))


async def test_registrations_take_no_task_each_and_share_a_commit() -> None:
    store = GatedStore()
    async with world(store=store) as made, made.peer(made.acme) as peer:
        store.close_gate("transaction")
        peer.send(create_request(1, "W1"))
        await store.reached("transaction")
        before = len(asyncio.all_tasks())
        peer.send(*(create_request(n, f"W{n % 30}") for n in range(2, 50)))
        await asyncio.sleep(0.05)
        assert len(asyncio.all_tasks()) == before
        store.open_gate("transaction")
        frames = await peer.frames(49)
        good = [frame for frame in frames if frame.kind == Kind.ANSWER]
        assert len(good) == 30
        assert {type(error(f)) for f in frames if f.kind == Kind.ERROR} == {IdentifierTaken}
        assert all(not decode_written(frame.body)[1] for frame in good)
        assert made.front.gate.running == 0


async def test_a_registration_whose_caller_is_gone_before_its_commit_is_not_done() -> None:
    store = GatedStore()
    async with world(store=store) as made:
        async with made.peer(made.acme) as one, made.peer(made.acme) as gone:
            store.close_gate("transaction")
            one.send(create_request(1, "W1"))
            await store.reached("transaction")
            gone.send(create_request(1, "W2"))
            await asyncio.sleep(0.05)
            reset(gone)
            await asyncio.sleep(0.05)
            store.open_gate("transaction")
            assert (await one.frame()).kind == Kind.ANSWER
        found = await store.look_up([key("W1"), key("W2")])
        assert [f.record is not None for f in found] == [True, False]
        assert made.front.gate.running == 0


async def test_a_registration_that_hangs_ends_by_the_deadline() -> None:
    store = GatedStore()
    async with world(store=store, deadline_s=0.1) as made, made.peer(made.acme) as peer:
        store.close_gate("commit")
        peer.send(create_request(1, "W1"))
        assert error(await peer.frame()).code == "deadline-exceeded"
        store.open_gate("commit")
        peer.send(create_request(1, "W2"))
        assert (await peer.frame()).kind == Kind.ANSWER
