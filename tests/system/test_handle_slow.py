"""Handle peers over TCP who take their time, or too much, and the normal users beside them."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from biaojie.wire.handle import (
    MESSAGE_OCTETS_MAX,
    OpFlag,
    ResponseCode,
)
from resolver.front.connections import HELD_OCTETS_FREE
from tests.system.handle_desk import ask
from tests.system.handle_peers import (
    Line,
    on_uvloop,
    serving,
    size_of,
    until,
)

SLOW_CONNECTIONS = 5_000
ROOT = Path(__file__).parents[2]


@on_uvloop
async def test_a_message_must_come_whole_in_time() -> None:
    async with serving(handle_message_timeout_s=0.6) as served:
        silent, half, dripping, good = [await Line.open(served.port) for _ in range(4)]
        half.send(ask("size/1", 1)[:30])

        async def drip() -> None:
            with suppress(ConnectionError, RuntimeError):  # uvloop's word for a closed one
                for octet in ask("size/1", 1):
                    dripping.send(bytes((octet,)))
                    await dripping.writer.drain()
                    await asyncio.sleep(0.1)

        dripper = asyncio.create_task(drip())
        good.send(ask("size/1", 1))
        await good.answer()
        for line in (silent, half, dripping):
            assert await line.ended(3)
        assert served.count("tcp_cut") == 3
        good.send(ask("size/1", 2))  # it has been idle for longer, which is allowed
        assert (await good.answer()).request_id == 2
        await dripper
        good.close()


@on_uvloop
async def test_an_idle_connection_is_closed_a_working_one_is_not() -> None:
    async with serving(handle_idle_timeout_s=0.5) as served:
        idle, working = [await Line.open(served.port) for _ in range(2)]
        idle.send(ask("size/1", 1))
        await idle.answer()
        working.send(ask("late/a", 1))
        assert await idle.ended(3)
        assert served.count("tcp_idle") == 1
        served.desk.release("a")
        assert (await working.answer()).request_id == 1
        working.close()


@on_uvloop
async def test_who_does_not_read_is_not_read_from_and_cut() -> None:
    async with serving(reply_timeout_s=1.0) as served:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", served.port))
        sender = asyncio.create_task(
            loop.sock_sendall(raw, b"".join(ask("size/200000", n) for n in range(1, 20_000)))
        )
        await until(lambda: served.count("tcp_held_bytes") > HELD_OCTETS_FREE)
        asked = len(served.desk.asked)
        assert asked <= 200
        good = await Line.open(served.port)
        good.send(ask("size/200000", 1))
        assert size_of(await good.answer()) == 200_000
        await until(lambda: served.count("tcp_connections") == 1, 5)
        assert len(served.desk.asked) <= asked + 65
        assert served.count("tcp_held_bytes") == 0
        with suppress(ConnectionError):
            await sender
        raw.close()
        good.close()


@on_uvloop
async def test_who_reads_too_slowly_is_cut() -> None:
    async with serving(reply_timeout_s=1.0) as served:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", served.port))
        await loop.sock_sendall(raw, ask("many/1000", 1))
        began = loop.time()
        with suppress(ConnectionError):
            while served.count("tcp_connections"):
                await loop.sock_recv(raw, 2_000)  # enough for the system to see us alive
                await asyncio.sleep(0.02)
                assert loop.time() - began < 5
        assert served.count("tcp_cut") == 1
        raw.close()


@on_uvloop
async def test_a_stream_waits_for_its_reader() -> None:
    async with serving() as served:
        line = await Line.open(served.port, limit=1024)
        line.send(ask("many/1000", 1))  # about 27 MB
        await until(lambda: served.count("tcp_held_bytes") > 0)
        held = served.count("tcp_held_bytes")
        assert held < 1_000_000
        assert served.count("requests_running") == 0  # it takes up no room meanwhile
        for _ in range(1000):
            answer = await line.answer()
        assert not answer.has(OpFlag.CONTINUOUS)
        line.close()


@on_uvloop
async def test_what_all_unfinished_messages_hold_together_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resolver.front.connections.HELD_OCTETS_MAX", 2_000_000)
    async with serving() as served:
        lines = [await Line.open(served.port) for _ in range(30)]
        start = ask("size/1", 1)
        start = start[:16] + struct.pack("!I", MESSAGE_OCTETS_MAX) + start[20:]
        for line in lines:
            line.send(start + bytes(200_000))
        await until(lambda: served.count("tcp_cut") > 0)
        assert served.count("tcp_held_bytes") <= 2_300_000
        small = await Line.open(served.port)
        small.send(ask("size/1", 1))
        assert size_of(await small.answer()) == 1
        for line in [*lines, small]:
            line.close()
        await until(lambda: not served.count("tcp_connections"))
        assert served.count("tcp_held_bytes") == 0


@on_uvloop
async def test_when_there_are_too_many_connections_a_new_one_is_told() -> None:
    async with serving(handle_connections_max=8) as served:
        lines = [await Line.open(served.port) for _ in range(8)]
        for line in lines:
            line.send(ask("size/1", 1))
            await line.answer()
        ninth = await Line.open(served.port)
        frame = ask("size/1", 9)
        ninth.send(frame[:30])
        await asyncio.sleep(0.05)
        ninth.send(frame[30:])
        busy = await ninth.answer()
        assert (busy.response_code, busy.request_id) == (ResponseCode.SERVER_BUSY, 9)
        assert await ninth.ended(3)
        more = [await Line.open(served.port) for _ in range(20)]
        assert all([await line.ended(3) for line in more])
        lines[0].send(ask("size/1", 2))
        assert (await lines[0].answer()).request_id == 2
        lines[0].close()
        await until(lambda: served.count("tcp_connections") == 7)
        again = await Line.open(served.port)
        again.send(ask("size/1", 3))
        assert size_of(await again.answer()) == 1
        for line in [*lines, again]:
            line.close()


@contextmanager
def process(**limits: Any) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server of its own process, and its port."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.system.handle_desk", json.dumps(limits)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        yield server, int(server.stdout.readline())
    finally:
        server.terminate()
        server.wait(10)
        server.stdin.close()
        server.stdout.close()


def report(server: subprocess.Popen[str]) -> dict[str, float]:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write("\n")
    server.stdin.flush()
    answer: dict[str, float] = json.loads(server.stdout.readline())
    return answer


@on_uvloop
async def test_five_thousand_slow_connections_beside_normal_users() -> None:
    """Normal users get every answer and soon; the slow ones cost at most 200 MB."""
    with process(handle_message_timeout_s=60) as (server, port):
        before = report(server)["rss"]
        start = ask("size/1", 1)
        slow = []
        for number in range(SLOW_CONNECTIONS):
            made = socket.socket()
            made.setblocking(False)
            with suppress(BlockingIOError):
                made.connect(("127.0.0.1", port))
            slow.append(made)
            if not number % 250:
                await asyncio.sleep(0.01)
        await until(lambda: report(server)["handle_tcp_connections"] >= SLOW_CONNECTIONS)

        async def drip(octet: int) -> None:
            for number, made in enumerate(slow):
                made.send(start[octet : octet + 1])
                if not number % 250:
                    await asyncio.sleep(0)

        async def user(took: list[float]) -> None:
            line = await Line.open(port)
            for number in range(1, 301):
                began = time.monotonic()
                line.send(ask("size/30", number))
                assert (await line.answer()).request_id == number
                took.append(time.monotonic() - began)
            line.close()

        took: list[float] = []
        users = [asyncio.create_task(user(took)) for _ in range(8)]
        for octet in range(6):
            await drip(octet)
        await asyncio.gather(*users)
        took.sort()
        assert len(took) == 8 * 300
        assert took[len(took) * 99 // 100] < 0.5
        grown = report(server)
        assert grown["handle_tcp_connections"] >= SLOW_CONNECTIONS
        assert grown["rss"] - before <= 200e6, (before, grown["rss"])
        for made in slow:
            made.close()
        await until(lambda: report(server)["handle_tcp_connections"] == 0)


@on_uvloop
async def test_sigterm_drains() -> None:
    with process() as (server, port):
        line = await Line.open(port)
        line.send(b"".join(ask("size/50", n) for n in range(1, 501)))
        await line.answer()
        server.send_signal(signal.SIGTERM)
        for _ in range(499):
            await line.answer()
        assert await line.ended(3)
        line.close()
        assert server.wait(5) == 0
