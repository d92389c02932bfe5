"""Where the Handle transports listen, and how they stop."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from resolver.front.handle import HandleFront, HandleLimits
from resolver.front.listening import CannotListen, listen
from tests.system.handle_desk import Desk, ask
from tests.system.handle_peers import (
    Datagrams,
    Line,
    on_uvloop,
    size_of,
)


@on_uvloop
async def test_ipv6_on_the_same_port() -> None:
    desk = Desk()
    front = HandleFront(desk, HandleLimits())
    port = await front.start("", 0, fallback="127.0.0.1")
    try:
        for host in ("127.0.0.1", "::1"):
            line = await Line.open(port, host)
            line.send(ask("size/7", 1))
            assert size_of(await line.answer()) == 7
            line.close()
            with Datagrams(port, host, host) as client:
                client.send(ask("size/7", 1))
                assert size_of(await client.answer()) == 7
        assert [peer.address for peer in desk.peers] == ["127.0.0.1"] * 2 + ["::1"] * 2
    finally:
        await front.stop(0)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@on_uvloop
async def test_a_port_that_is_taken_is_named(kind: socket.SocketKind) -> None:
    with socket.socket(type=kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=rf"127\.0\.0\.1 port {port} .*HANDLE_PORT"):
            await listen("", port, fallback="127.0.0.1")


@on_uvloop
async def test_stopping_answers_what_has_come() -> None:
    desk = Desk()
    front = HandleFront(desk, HandleLimits(handle_pipeline_max=2))
    port = await front.start("127.0.0.1", 0)
    busy, idle = await Line.open(port), await Line.open(port)
    idle.send(ask("size/1", 1))
    await idle.answer()
    busy.send(b"".join(ask("late/a", n) for n in range(1, 6)))
    with Datagrams(port) as client:
        client.send(ask("late/a", 9))
        await desk.until_asked(4)
        stopping = asyncio.create_task(front.stop(5))
        assert await idle.ended(3)
        with pytest.raises(ConnectionRefusedError):
            await Line.open(port)
        desk.release("a")
        assert {(await busy.answer()).request_id for _ in range(5)} == {1, 2, 3, 4, 5}
        assert (await client.answer()).request_id == 9
    assert await busy.ended(3)
    busy.close()
    idle.close()
    async with asyncio.timeout(3):
        await stopping
    assert front.readings()["handle_tcp_connections"] == 0


@on_uvloop
async def test_stopping_does_not_wait_for_ever() -> None:
    desk = Desk()
    front = HandleFront(desk, HandleLimits())
    port = await front.start("127.0.0.1", 0)
    line = await Line.open(port)
    line.send(ask("late/never", 1))
    with Datagrams(port) as client:
        client.send(ask("late/never", 1))
        await desk.until_asked(2)
        began = time.monotonic()
        await front.stop(0.3)
        assert time.monotonic() - began < 2
    assert sorted(desk.cancelled) == ["late/never"] * 2
    assert await line.ended(1)
