"""The Handle protocol's transports over real sockets: framing, order, limits, bad peers, UDP.

What is asked is answered by a stand-in (handle_desk), so that only the transports are tested.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import pytest
import uvloop

from biaojie.wire.handle import (
    DATAGRAM_OCTETS_MAX,
    MEDIA_TYPE,
    MESSAGE_OCTETS_MAX,
    Message,
    OpFlag,
    Reassembly,
    ResolveResponse,
    ResponseCode,
    StreamFraming,
    decode_message,
    split,
    whole_frames,
)
from resolver.front.handle import HandleFront, HandleLimits
from resolver.front.handle.guard import is_cut_form
from resolver.front.handle.listening import CannotListen, listen
from resolver.front.handle.tcp import HELD_OCTETS_FREE
from resolver.front.http.connection import HttpLimits
from resolver.front.http.server import HttpFront
from resolver.observe import Observer
from tests.system.handle_desk import Desk, ask

P = ParamSpec("P")
LAST_S = 10.0
SLOW_CONNECTIONS = 5_000
ROOT = Path(__file__).parents[2]


def on_uvloop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on the event loop that nodes run on."""

    @wraps(test)
    def run(*arguments: P.args, **named: P.kwargs) -> None:
        uvloop.run(test(*arguments, **named))

    return run


class Served:
    def __init__(self, front: HandleFront, desk: Desk, port: int) -> None:
        self.front = front
        self.desk = desk
        self.port = port

    def count(self, name: str) -> float:
        return {**self.front.counts(), **self.front.readings()}[f"handle_{name}"]


@asynccontextmanager
async def serving(host: str = "127.0.0.1", **limits: Any) -> AsyncIterator[Served]:
    desk = Desk()
    front = HandleFront(desk, HandleLimits(**limits))
    port = await front.start(host, 0)
    try:
        yield Served(front, desk, port)
    finally:
        await front.stop(0.2)


class Line:
    """A TCP connection of a client. Every wait is bounded."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._framing = StreamFraming()
        self._frames: list[bytes] = []

    @classmethod
    async def open(cls, port: int, host: str = "127.0.0.1", **options: Any) -> Line:
        return cls(*await asyncio.open_connection(host, port, **options))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, timeout_s: float = LAST_S) -> Message:
        """The next message; ConnectionError at the end."""
        async with asyncio.timeout(timeout_s):
            while not self._frames:
                data = await self.reader.read(65536)
                if not data:
                    raise ConnectionError("closed")
                self._frames += self._framing.feed(data)
        return decode_message(self._frames.pop(0))

    async def ended(self, timeout_s: float = LAST_S) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                while await self.reader.read(65536):
                    pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self.writer.close()


class Datagrams:
    """A client's UDP socket."""

    def __init__(self, port: int, source: str = "127.0.0.1", host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind((source, 0))
        self.socket.connect((host, port))

    def send(self, *packets: bytes) -> None:
        for packet in packets:
            self.socket.send(packet)

    async def packet(self, timeout_s: float = LAST_S) -> bytes:
        async with asyncio.timeout(timeout_s):
            return await asyncio.get_running_loop().sock_recv(self.socket, 65536)

    async def answer(self, timeout_s: float = LAST_S) -> Message:
        reassembly = Reassembly()
        while True:
            frame = reassembly.take("node", await self.packet(timeout_s), 0.0)
            if frame is not None:
                return decode_message(frame)

    def waiting(self) -> list[bytes]:
        packets = []
        with suppress(BlockingIOError):
            while True:
                packets.append(self.socket.recv(65536))
        return packets

    def __enter__(self) -> Datagrams:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


async def until(holds: Any, timeout_s: float = LAST_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


def size_of(message: Message) -> int:
    assert message.response_code == ResponseCode.SUCCESS
    assert isinstance(message.body, ResolveResponse)
    return len(message.body.values[0].data)


# TCP ------------------------------------------------------------------------------------


@on_uvloop
async def test_a_connection_stays_open_whatever_its_messages_say() -> None:
    async with serving() as served:
        line = await Line.open(served.port)
        for number, flags in enumerate((0, OpFlag.KEEP_CONNECTION, 0), 1):
            line.send(ask("size/30", number, flags=flags))
            answer = await line.answer()
            assert (answer.request_id, size_of(answer)) == (number, 30)
        peers = served.desk.peers
        assert len(peers) == 3
        assert peers[0] is peers[2]
        assert peers[0].scope is not None
        assert (peers[0].address, peers[0].transport, peers[0].verified) == (
            "127.0.0.1",
            "tcp",
            True,
        )
        assert served.desk.forgotten == []
        line.close()
        await until(lambda: served.desk.forgotten == [peers[0]])


@on_uvloop
async def test_replies_go_out_as_they_get_done() -> None:
    async with serving() as served:
        line = await Line.open(served.port)
        names = "abcdef"
        line.send(b"".join(ask(f"late/{name}", n) for n, name in enumerate(names, 1)))
        await served.desk.until_asked(6)
        for name in "fbdace":
            served.desk.release(name)
            assert (await line.answer()).request_id == names.index(name) + 1
        line.send(ask("late/g", 7) + ask("size/3", 8))
        assert (await line.answer()).request_id == 8
        served.desk.release("g")
        assert (await line.answer()).request_id == 7
        line.close()


@on_uvloop
async def test_messages_may_come_octet_by_octet_and_many_in_one() -> None:
    async with serving() as served:
        line = await Line.open(served.port)
        line.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in ask("size/5", 1) + ask("size/6", 2):
            line.send(bytes((octet,)))
            await asyncio.sleep(0.0005)
        assert size_of(await line.answer()) == 5
        assert size_of(await line.answer()) == 6
        count = 2_000
        line.send(b"".join(ask("size/1", n) for n in range(1, count + 1)))
        answered = {(await line.answer()).request_id for _ in range(count)}
        assert answered == set(range(1, count + 1))
        assert served.desk.running_most <= HandleLimits().handle_pipeline_max
        line.close()


@on_uvloop
async def test_only_so_many_at_a_time_on_one_connection() -> None:
    async with serving(handle_pipeline_max=4) as served:
        line = await Line.open(served.port)
        line.send(b"".join(ask("late/all", n) for n in range(1, 11)))
        await served.desk.until_asked(4)
        other = await Line.open(served.port)
        other.send(ask("size/1"))  # nobody else waits for them
        await other.answer()
        assert served.desk.running == 4
        assert len(served.desk.asked) == 5
        served.desk.release("all")
        assert {(await line.answer()).request_id for _ in range(10)} == set(range(1, 11))
        assert served.desk.running_most <= 5
        line.close()
        other.close()


@on_uvloop
async def test_beyond_what_the_node_can_do_it_says_so_at_once() -> None:
    async with serving(handle_requests_max=3) as served:
        lines = [await Line.open(served.port) for _ in range(2)]
        lines[0].send(ask("late/x", 1) + ask("late/x", 2) + ask("late/x", 3))
        await served.desk.until_asked(3)
        began = time.monotonic()
        lines[1].send(ask("size/1", 9))
        busy = await lines[1].answer()
        assert time.monotonic() - began < 0.5
        assert (busy.response_code, busy.request_id) == (ResponseCode.SERVER_BUSY, 9)
        with Datagrams(served.port) as client:
            client.send(ask("size/1", 5))
            assert (await client.answer()).response_code == ResponseCode.SERVER_BUSY
        assert served.count("too_busy") == 2
        served.desk.release("x")
        for _ in range(3):
            assert (await lines[0].answer()).response_code == ResponseCode.SUCCESS
        lines[1].send(ask("size/1", 10))
        assert size_of(await lines[1].answer()) == 1
        for line in lines:
            line.close()


@on_uvloop
async def test_a_streamed_answer_is_several_messages() -> None:
    async with serving() as served:
        line = await Line.open(served.port)
        line.send(ask("many/40", 3))
        messages = [await line.answer() for _ in range(40)]
        assert {message.request_id for message in messages} == {3}
        assert [message.has(OpFlag.CONTINUOUS) for message in messages] == [True] * 39 + [False]
        line.close()


@on_uvloop
async def test_a_broken_answer_is_an_error_and_the_connection_lives() -> None:
    async with serving() as served:
        line = await Line.open(served.port)
        line.send(ask("broken", 1))
        assert (await line.answer()).response_code == ResponseCode.ERROR
        line.send(ask("silent", 2) + ask("size/2", 3))
        assert (await line.answer()).request_id == 3
        assert served.count("requests_running") == 0
        line.close()


@on_uvloop
async def test_who_shuts_one_side_still_gets_his_answers() -> None:
    async with serving() as served:
        line = await Line.open(served.port)
        line.send(ask("late/a", 1) + ask("size/4", 2))
        line.writer.write_eof()
        assert (await line.answer()).request_id == 2
        served.desk.release("a")
        assert (await line.answer()).request_id == 1
        assert await line.ended(1)
        await until(lambda: not served.count("tcp_connections"))


@on_uvloop
async def test_who_goes_away_is_no_longer_worked_for() -> None:
    async with serving() as served:
        line = await Line.open(served.port)
        line.send(ask("late/a", 1))
        await served.desk.until_asked(1)
        made = line.writer.get_extra_info("socket")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line.writer.transport.abort()  # a reset: an end in one direction might be half of it
        await until(lambda: served.desk.cancelled == ["late/a"])
        await until(lambda: len(served.desk.forgotten) == 1)
        assert served.count("requests_running") == 0


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: node.test\r\n\r\n", id="http"),
        pytest.param(bytes(200), id="zeros"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60), id="tls"),
    ],
)
@on_uvloop
async def test_what_is_no_handle_message_ends_the_connection(garbage: bytes) -> None:
    async with serving() as served:
        line = await Line.open(served.port)
        line.send(ask("late/a", 7) + garbage)
        served.desk.release("a")
        assert (await line.answer()).request_id == 7
        assert await line.ended(3)
        assert served.count("tcp_malformed") == 1


@pytest.mark.parametrize("length", [0, 23, MESSAGE_OCTETS_MAX + 1, 0xFFFF_FFFF])
@on_uvloop
async def test_a_wrong_length_gets_one_error_and_the_end(length: int) -> None:
    async with serving() as served:
        line = await Line.open(served.port)
        frame = bytearray(ask("size/1", 41))
        frame[16:20] = struct.pack("!I", length)
        line.send(bytes(frame))
        answer = await line.answer()
        assert (answer.response_code, answer.request_id) == (ResponseCode.PROTOCOL_ERROR, 41)
        assert await line.ended(3)


@on_uvloop
async def test_a_message_of_the_greatest_length_is_taken() -> None:
    async with serving() as served:
        line = await Line.open(served.port)
        frame = ask("size/1", 5)
        body = frame[20:] + bytes(MESSAGE_OCTETS_MAX - len(frame) + 20)
        line.send(frame[:16] + struct.pack("!I", len(body)) + body)
        answer = await line.answer()  # the stand-in finds octets after the credential
        assert answer.response_code == ResponseCode.PROTOCOL_ERROR
        line.send(ask(f"size/{MESSAGE_OCTETS_MAX - 200}", 6))
        assert size_of(await line.answer()) == MESSAGE_OCTETS_MAX - 200
        line.close()


@on_uvloop
async def test_a_good_frame_with_a_bad_body_does_not_end_the_connection() -> None:
    async with serving() as served:
        line = await Line.open(served.port)
        frame = bytearray(ask("size/1", 4))
        frame[44:48] = b"\xff\xff\xff\xff"
        line.send(bytes(frame) + ask("size/8", 5))
        first, second = await line.answer(), await line.answer()
        assert (first.request_id, first.response_code) == (4, ResponseCode.PROTOCOL_ERROR)
        assert size_of(second) == 8
        line.close()


# Peers who take their time --------------------------------------------------------------


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
    monkeypatch.setattr("resolver.front.handle.tcp.HELD_OCTETS_MAX", 2_000_000)
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


# UDP ------------------------------------------------------------------------------------


@on_uvloop
async def test_a_short_answer_comes_over_udp() -> None:
    async with serving() as served:
        with Datagrams(served.port) as client:
            client.send(ask("size/30", 5))
            answer = await client.answer()
            assert (answer.request_id, size_of(answer)) == (5, 30)
            peer = served.desk.peers[0]
            assert (peer.transport, peer.verified, peer.scope) == ("udp", False, None)
            assert peer.address == "127.0.0.1"


@on_uvloop
async def test_a_long_answer_is_cut_and_comes_over_tcp() -> None:
    async with serving() as served:
        with Datagrams(served.port) as client:
            frame = ask("size/900", 5)
            client.send(frame)
            packet = await client.packet()
            assert is_cut_form(packet)
            assert len(packet) <= 3 * len(frame)
            # As one whole message of one packet: what the Java client reads and acts on.
            answer = decode_message(packet)
            assert (answer.response_code, answer.request_id) == (ResponseCode.ERROR, 5)
            assert served.count("udp_truncated") == 1
        line = await Line.open(served.port)
        line.send(frame)
        assert size_of(await line.answer()) == 900
        line.close()


@on_uvloop
async def test_a_source_that_is_no_forgery_gets_fragments() -> None:
    async with serving() as served:
        with Datagrams(served.port) as client:
            client.send(ask("verified/3000", 5))
            packets = [await client.packet() for _ in range(7)]
            assert max(map(len, packets)) == DATAGRAM_OCTETS_MAX
            reassembly = Reassembly()
            frames = [reassembly.take("node", packet, 0.0) for packet in reversed(packets)]
            assert frames[-1] is not None
            assert size_of(decode_message(frames[-1])) == 3000


@on_uvloop
async def test_the_factor_is_a_setting() -> None:
    async with serving(handle_udp_amplification_max=100.0) as served:
        with Datagrams(served.port) as client:
            client.send(ask("size/3000", 5))
            assert size_of(await client.answer()) == 3000


@on_uvloop
async def test_a_stream_is_cut_over_udp() -> None:
    async with serving(handle_udp_amplification_max=1000.0) as served:
        with Datagrams(served.port) as client:
            client.send(ask("many/3", 5))
            assert is_cut_form(await client.packet())
            assert served.count("requests_running") == 0


@on_uvloop
async def test_requests_in_fragments() -> None:
    """In any order, some of them twice, from two clients with the same numbers."""
    handle = "size/20/" + "x" * 1500
    packets = split(ask(handle, 5))
    assert len(packets) == 4
    async with serving() as served:
        with Datagrams(served.port) as one, Datagrams(served.port) as two:
            shuffled = [*packets, *packets[:3]]
            random.Random(7).shuffle(shuffled)
            two.send(*packets[:3])
            one.send(*packets[:-1])
            assert served.desk.asked == []
            one.send(packets[-1])
            assert size_of(await one.answer()) == 20
            two.send(packets[3])
            assert size_of(await two.answer()) == 20
            one.send(*shuffled)
            assert size_of(await one.answer()) == 20


@on_uvloop
async def test_fragments_that_lie_are_neither_answered_nor_kept() -> None:
    packets = split(ask("size/20/" + "x" * 1500, 5))
    async with serving() as served:
        with Datagrams(served.port) as client:
            client.send(packets[0], packets[1], packets[3])  # one is lost
            changed = packets[1][:-1] + b"y"
            client.send(changed)  # overlaps: the message begins anew
            client.send(packets[2])
            await until(lambda: served.count("udp_packets") == 5)
            assert served.desk.asked == []
            assert served.count("udp_reassembly_messages") == 1
            beyond = bytearray(packets[3])
            beyond[12:16] = struct.pack("!I", 9)
            client.send(bytes(beyond))  # no such fragment
            answer = await client.answer()
            assert answer.response_code == ResponseCode.PROTOCOL_ERROR
            for number in range(3, 2000):  # messages that never get whole
                client.send(packets[0][:8] + struct.pack("!I", number) + packets[0][12:])
                if not number % 100:
                    await asyncio.sleep(0)
            await until(lambda: served.count("udp_packets") >= 1000)
            assert served.count("udp_reassembly_messages") <= 8
            assert served.count("udp_reassembly_bytes") <= 8 * 1600
            assert served.desk.asked == []


@on_uvloop
async def test_two_nodes_do_not_answer_each_other_for_ever() -> None:
    async with serving() as served:
        with Datagrams(served.port) as client:
            packets = [ask("size/1", 1), b"\x02\x0a" + bytes(18), ask("size/1", 2)[:40], bytes(3)]
            client.send(*packets)
            rounds = 0
            while replies := await gathered(client, 0.2):
                rounds += 1
                assert rounds < 3
                client.send(*replies)  # as if the node had asked itself
            assert served.count("udp_malformed") >= 2


@on_uvloop
async def test_answers_are_not_answered() -> None:
    async with serving() as served:
        with Datagrams(served.port) as client:
            client.send(ask("size/1", 1))
            client.send(await client.packet())
            await until(lambda: served.count("udp_malformed") == 1)
            assert len(served.desk.peers) == 1
            assert await gathered(client, 0.1) == []


async def gathered(client: Datagrams, seconds: float) -> list[bytes]:
    packets = []
    with suppress(TimeoutError):
        while True:
            packets.append(await client.packet(seconds))
    return packets


@on_uvloop
async def test_garbage_is_never_answered_with_more() -> None:
    chosen = random.Random(3)
    async with serving(handle_udp_rate_max=0) as served:
        with Datagrams(served.port) as client:
            frame = ask("size/10", 5, flags=OpFlag.REQUEST_DIGEST)
            sent = received = 0
            for number in range(2_000):
                packet = bytearray(frame[: chosen.randrange(len(frame) + 1)])
                for _ in range(chosen.randrange(4) if packet else 0):
                    packet[chosen.randrange(len(packet))] = chosen.randrange(256)
                packet += chosen.randbytes(chosen.choice((0, 0, 0, 500)))
                client.send(bytes(packet))
                sent += len(packet)
                if not number % 50:
                    await asyncio.sleep(0.005)
                received += sum(map(len, client.waiting()))
            received += sum(map(len, await gathered(client, 0.2)))
            assert 0 < received <= 3 * sent
            client.send(ask("size/3", 9))
            assert size_of(await client.answer()) == 3


@on_uvloop
async def test_a_flood_from_forged_sources_is_not_sent_on() -> None:
    """Every address of 127.0.0.0/8 is ours on loopback: the victims are sockets on some of them."""
    async with serving(handle_udp_rate_max=20) as served:
        victims = [
            Datagrams(served.port, f"127.{a}.{b}.{c}")
            for a, b in ((7, 1), (7, 2), (9, 9))
            for c in (1, 2, 3, 4)
        ]
        frame = ask("size/30/" + "n" * 20, 5)
        sent, packets = 0, []
        for _ in range(200):
            for victim in victims:
                victim.send(frame)
                sent += len(frame)
            await asyncio.sleep(0)
        await until(lambda: served.count("udp_packets") == 2_400)
        for victim in victims:
            packets += await gathered(victim, 0.1)
        received = sum(map(len, packets))
        assert received <= sent  # far below the factor, since most was not answered at all
        cut = sum(map(is_cut_form, packets))
        whole = len(packets) - cut
        assert 60 <= whole <= 60 + 3 * 20 * 5  # a second's worth each, and what time has added
        limited = served.count("udp_limited")
        assert limited == 2_400 - whole
        assert abs(cut - limited / 2) <= 3  # slip: every second
        for victim in victims:
            victim.socket.close()
        # Who is told so and asks over TCP gets his answer; so does everybody else over UDP.
        line = await Line.open(served.port, local_addr=("127.7.1.1", 0))
        line.send(frame)
        assert size_of(await line.answer()) == 30
        line.close()
        with Datagrams(served.port, "127.55.0.1") as other:
            other.send(frame)
            assert size_of(await other.answer()) == 30


# Listening ------------------------------------------------------------------------------


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


# Stopping -------------------------------------------------------------------------------


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


# Inside HTTP ----------------------------------------------------------------------------


@asynccontextmanager
async def tunnelling(desk: Desk, **limits: Any) -> AsyncIterator[int]:
    tunnel = HandleFront(desk, HandleLimits(**limits)).tunnel.answer
    front = HttpFront(None, (), Observer(), HttpLimits(), tunnel=tunnel)  # type: ignore[arg-type]
    port = await front.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await front.stop()


async def post(
    port: int, body: bytes, path: str = "/88.118.8/X", headers: Sequence[str] = ()
) -> tuple[str, dict[str, str], bytes]:
    """As the Java client posts; the reply is read to its announced end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = [
        f"POST {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Accept: {MEDIA_TYPE}",
        "User-Agent: CNRI-HCL 2.0",
        *(headers or (f"Content-Type: {MEDIA_TYPE}",)),
        f"Content-Length: {len(body)}",
    ]
    writer.write("\r\n".join([*head, "", ""]).encode() + body)
    async with asyncio.timeout(LAST_S):
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        found = {name.lower(): text for name, _, text in (line.partition(": ") for line in lines)}
        content = await reader.readexactly(int(found["content-length"]))
    writer.close()
    return lines[0], found, content


@pytest.mark.parametrize("path", ["/88.118.8/X", "/0.NA/88.118.8", "/api/v1/identifiers", "/%2F"])
@on_uvloop
async def test_a_message_inside_http(path: str) -> None:
    desk = Desk()
    async with tunnelling(desk) as port:
        status, headers, body = await post(port, ask("size/5000", 5), path)
        assert status == "HTTP/1.1 200 OK"
        assert headers["content-type"] == MEDIA_TYPE
        assert "transfer-encoding" not in headers
        assert "content-encoding" not in headers
        assert size_of(decode_message(body)) == 5000
        peer = desk.peers[0]
        assert (peer.transport, peer.verified, peer.scope) == ("http", True, None)
        assert peer.address == "127.0.0.1"


@on_uvloop
async def test_a_stream_inside_http_is_frames_in_a_row() -> None:
    async with tunnelling(Desk()) as port:
        _, _, body = await post(port, ask("many/20", 5))
        frames = whole_frames(body)
        assert len(frames) == 20
        assert not decode_message(frames[-1]).has(OpFlag.CONTINUOUS)
        _, _, body = await post(port, ask("many/900", 5))  # more than is held for a reply
        assert decode_message(body).response_code == ResponseCode.ERROR


@on_uvloop
async def test_bad_messages_inside_http() -> None:
    async with tunnelling(Desk()) as port:
        frame = ask("size/1", 5)
        for wrong in (frame[:-1], frame + b"\x02", frame + frame):
            status, _, body = await post(port, wrong)
            assert status == "HTTP/1.1 200 OK"
            answer = decode_message(body)
            assert (answer.response_code, answer.request_id) == (ResponseCode.PROTOCOL_ERROR, 5)
        for nothing in (b"", b"x", b"{}" * 40):
            status, headers, body = await post(port, nothing)
            assert status.startswith("HTTP/1.1 400 ")
            assert headers["content-type"] == "application/problem+json"
            assert json.loads(body)["code"] == "invalid-request"
        long = frame[:16] + struct.pack("!I", 300_000) + bytes(300_000)
        assert decode_message((await post(port, long))[2]).request_id == 5
        status, _, _ = await post(port, frame, headers=("Content-Type: text/plain",))
        assert status.startswith("HTTP/1.1 404 ")


@on_uvloop
async def test_beyond_capacity_inside_http() -> None:
    desk = Desk()
    async with tunnelling(desk, handle_requests_max=1) as port:
        first = asyncio.create_task(post(port, ask("late/a", 1)))
        await desk.until_asked(1)
        _, _, body = await post(port, ask("size/1", 2))
        assert decode_message(body).response_code == ResponseCode.SERVER_BUSY
        desk.release("a")
        assert decode_message((await first)[2]).request_id == 1
