"""The Handle protocol on TCP: framing, order, limits, errors.

What is asked is answered by a stand-in (handle_desk), so that only the transport is tested.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time

import pytest

from biaojie.wire.handle import (
    MESSAGE_OCTETS_MAX,
    OpFlag,
    ResponseCode,
)
from resolver.front.handle import HandleLimits
from tests.system.handle_desk import ask
from tests.system.handle_peers import (
    Datagrams,
    Line,
    on_uvloop,
    serving,
    size_of,
    until,
)


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
