"""biaojie:// from bad peers: no answer goes to the wrong caller, one fault harms no other call,
and memory is bounded."""

from __future__ import annotations

import asyncio
import random
import struct
import time
from collections.abc import AsyncIterator

import pytest

from biaojie import Client, Value
from biaojie.errors import (
    BiaojieError,
    DeadlineExceeded,
    MalformedAnswer,
)
from biaojie.identifier import Identifier
from biaojie.native_connection import Connection
from biaojie.record import Record
from biaojie.retry import Backoff
from biaojie.wire.native import (
    HEAD,
    Kind,
    Welcome,
    encode_frame,
    encode_resolution,
    encode_welcome,
)
from tests.scripted_native import (
    Fault,
    Met,
    ScriptedNative,
    framing,
    held,
    reads,
    saying,
)

SECRET = "bj_12345678_verysecret"
QUICK = Backoff(base_s=0.001, cap_s=0.002)
OTHER = encode_resolution(Record(Identifier("99.1", "other"), ()), 1, 1, "cache")


@pytest.fixture
async def node() -> AsyncIterator[ScriptedNative]:
    scripted = ScriptedNative()
    scripted.node.add("99.1/a")
    async with scripted.serving():
        yield scripted


@pytest.fixture
async def client(node: ScriptedNative) -> AsyncIterator[Client]:
    async with Client(node.url, SECRET, backoff=QUICK) as client:
        yield client


# Answers that are wrong -----------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        framing(Kind.ANSWER, b"\xc1"),
        framing(Kind.ANSWER, b"\xc0"),
        framing(Kind.ANSWER, b"\x94\x01\x01\x00\xc0"),
        framing(Kind.ANSWER, OTHER[:-1]),
        framing(Kind.ANSWER, b"\x91" * 3000 + b"\xc0"),
        framing(Kind.PART, OTHER),
        framing(Kind.END, b"\x91\xc0"),
        framing(0x99, OTHER),
        framing(Kind.RESOLVE, b"\x91\xa1x"),
        framing(Kind.ERROR, b"\xc0"),
        framing(Kind.ERROR, b"\x94\xa4boo!\xa0\xa0\x80"),
    ],
)
async def test_one_wrong_answer_harms_no_other_call(
    node: ScriptedNative, client: Client, fault: Fault
) -> None:
    go = asyncio.Event()
    node.faults.extend([held(go), fault])
    good = asyncio.create_task(reads(client))
    await node.arrived(1)
    with pytest.raises(MalformedAnswer):
        await client.resolve("99.1/a")
    go.set()
    assert await good
    assert await reads(client)
    assert len(node.hellos) == 1


async def test_lists_whose_frames_are_wrong(node: ScriptedNative, client: Client) -> None:
    for number in range(30):
        node.node.add(f"99.1/{number:02}")
    for fault in (
        framing(Kind.ANSWER, b"\x90"),
        framing(Kind.PART, b"\xc0"),
        framing(Kind.END, b"\xc0"),
        framing(Kind.END, b"\x91\x01"),
        framing(Kind.ERROR, b"\xc0"),
    ):
        end = saying(lambda met: encode_frame(met.id, Kind.END, b"\x91\xc0"))

        async def both(met: Met, fault: Fault = fault, end: Fault = end) -> None:
            await fault(met)
            await end(met)

        node.faults.append(both)
        with pytest.raises(MalformedAnswer):
            assert [record async for record in client.records("99.1", page_rows=5)]

        async def honest(met: Met) -> None:
            await met.answer()

        node.faults.extend([honest, both])
        with pytest.raises(MalformedAnswer):
            assert [record async for record in client.records("99.1", page_rows=5)]
    same = saying(lambda met: encode_frame(met.id, Kind.END, b"\x91\xc4\x015"))
    node.faults.extend([honest, same])
    with pytest.raises(MalformedAnswer, match="cursor"):
        assert [record async for record in client.records("99.1", page_rows=5)]


async def test_answers_to_nobody_are_passed_over(node: ScriptedNative, client: Client) -> None:
    async def noisy(met: Met) -> None:
        for id_ in (met.id + 1, met.id + 7, 2**32 - 1):
            for kind in (Kind.ANSWER, Kind.PART, Kind.END, Kind.ERROR, 0x99):
                met.send(encode_frame(id_, kind, OTHER) * 50)
        met.send(encode_frame(0, Kind.ANSWER, OTHER))
        await met.answer()
        await met.answer()
        await met.answer()

    node.faults.append(noisy)
    assert await reads(client)
    for _ in range(20):
        assert await reads(client)
    assert len(node.hellos) == 1


@pytest.mark.parametrize("seed", range(12))
async def test_mutated_answers_end_as_errors_in_time(seed: int) -> None:
    dice = random.Random(seed)
    node = ScriptedNative()
    value = Value(1, "URL", b"https://a.example")
    for number in range(40):
        name = Identifier("99.1", f"{number:02}")
        node.node.records[str(name)] = Record(name, (value,))

    async def nasty(met: Met) -> None:
        octets = bytearray(b"".join(await met.frames()))
        for _ in range(dice.randint(0, 3)):
            match dice.randrange(4):
                case 0:
                    octets[dice.randrange(len(octets))] = dice.randrange(256)
                case 1:
                    del octets[dice.randrange(len(octets)) :]
                    octets += b"\0"
                case 2:
                    octets += dice.randbytes(dice.randrange(40))
                case _:
                    octets[:4] = struct.pack(">I", dice.randrange(2 ** dice.randrange(1, 32)))
        met.send(bytes(octets))
        if dice.random() < 0.3:
            met.abort()

    async with node.serving(), Client(node.url, timeout_s=0.3, backoff=QUICK) as client:
        for _ in range(6):
            node.always = nasty

            async def use(number: int) -> None:
                if number % 3:
                    await client.resolve(f"99.1/{number:02}")
                else:
                    assert [r async for r in client.records("99.1", page_rows=9)]

            calls = [asyncio.create_task(use(number)) for number in range(20)]
            done, late = await asyncio.wait(calls, timeout=8)
            assert not late
            for call in done:
                assert call.exception() is None or isinstance(call.exception(), BiaojieError)
            node.always = None
            try:
                assert await reads(client, "99.1/07")
            except DeadlineExceeded:  # taken for the rest of a frame that was too long; and now:
                assert await reads(client, "99.1/07")


async def test_octets_one_at_a_time(node: ScriptedNative, client: Client) -> None:
    async def dribble(met: Met) -> None:
        for octet in b"".join(await met.frames()):
            met.send(bytes((octet,)))
            await asyncio.sleep(0)

    node.faults.append(dribble)
    assert await reads(client)


async def test_an_answer_that_trickles(node: ScriptedNative, client: Client) -> None:
    async def trickle(met: Met) -> None:
        met.send(HEAD.pack(10_000, met.id, Kind.ANSWER))
        for _ in range(100):
            met.send(b"\0")
            await asyncio.sleep(0.02)

    node.faults.append(trickle)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await client.resolve("99.1/a", timeout_s=0.3)
    assert time.monotonic() - started < 3


# Memory ---------------------------------------------------------------------------------


async def test_a_frame_that_is_too_large(node: ScriptedNative) -> None:
    """It is not taken in: the length alone ends the connection."""
    node.always = saying(lambda met: HEAD.pack(2**31, met.id, Kind.ANSWER) + b"\0" * 1000)
    async with Client(node.url, backoff=QUICK) as client:
        with pytest.raises(MalformedAnswer, match="2147483648"):
            await client.resolve("99.1/a")
    async with Client(node.url, reply_octets_max=2_000, backoff=QUICK) as client:
        node.always = None
        assert await reads(client)
        node.node.records["99.1/big"] = Record(
            Identifier("99.1", "big"), (Value(1, "A", b"b" * 3_000),)
        )
        with pytest.raises(MalformedAnswer, match="2000"):
            await client.resolve("99.1/big")
        assert await reads(client)


async def test_an_endless_answer_in_parts(node: ScriptedNative) -> None:
    """A page is no longer than an answer may be; what comes beyond is thrown away."""
    sent = 0

    async def endless(met: Met) -> None:
        nonlocal sent
        while not met.writer.is_closing() and sent < 2**27:
            met.send(encode_frame(met.id, Kind.PART, b"\x90" + b"\0" * 60_000))
            sent += 60_000
            await met.writer.drain()

    node.faults.append(endless)
    async with Client(node.url, reply_octets_max=2**20, timeout_s=5) as client:
        with pytest.raises(MalformedAnswer, match="1048576"):
            assert [record async for record in client.records("99.1")]
        connection = _connections(client)[0]
        assert sum(len(part) for sink in connection.parted.values() for part in sink._parts) == 0


def _connections(client: Client) -> list[Connection]:
    pool = client._transport._native._pool  # type: ignore[attr-defined]
    return [] if pool is None else list(pool._shared)


async def test_storms_of_cancellation_leave_nothing(node: ScriptedNative) -> None:
    node.limits["pipeline_max"] = 256
    dice = random.Random(3)

    async def slowly(met: Met) -> None:
        frames = await met.frames()
        await asyncio.sleep(dice.random() / 50)
        met.send(*frames)

    node.always = slowly
    names = [f"99.1/{number}" for number in range(400)]
    for name in names:
        node.node.add(name)
    async with Client(node.url, connections_max=2) as client:
        for _ in range(5):
            calls = [asyncio.create_task(reads(client, name)) for name in names for _ in range(4)]
            for turn in range(4):
                await asyncio.sleep(0.005)
                for call in calls[turn::5]:
                    call.cancel()
            got = await asyncio.gather(*calls, return_exceptions=True)
            # Whoever was not cancelled got an answer, and his own.
            assert {True} <= {each for each in got if not isinstance(each, BaseException)} == {True}
            assert all(isinstance(each, bool | asyncio.CancelledError) for each in got)
            for connection in _connections(client):
                assert connection.load <= 256
        for _ in range(100):
            if not any(connection.load for connection in _connections(client)):
                break
            await asyncio.sleep(0.01)
        assert [connection.load for connection in _connections(client)] == [0, 0]
        assert not client._transport._native._pool._queue  # type: ignore[attr-defined]
        assert all(await asyncio.gather(*(reads(client, name) for name in names)))
    assert node.open_most == 2
    assert node.running_most <= 512


async def test_a_node_that_does_not_read(node: ScriptedNative) -> None:
    """What cannot be written waits with its caller, up to the deadline, and not in a buffer."""
    quiet = asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        welcome = encode_welcome(Welcome(1, "x", {"pipeline_max": 1024}))
        writer.write(encode_frame(0, Kind.ANSWER, welcome))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await quiet.wait()
        writer.transport.abort()

    server = await asyncio.start_server(deaf, "127.0.0.1", 0, limit=1000)
    port = server.sockets[0].getsockname()[1]
    big = {"A": "b" * 60_000}
    url = f"biaojie://127.0.0.1:{port}"
    async with server, Client(url, connections_max=1, retries=0) as client:
        calls = [
            asyncio.create_task(client.register(f"99.1/{n}", big, timeout_s=2)) for n in range(400)
        ]
        for _ in range(150):
            if _connections(client) and _connections(client)[0].load:
                break
            await asyncio.sleep(0.01)
        (connection,) = _connections(client)
        await asyncio.sleep(0.2)
        # 24 MB are to be written. What the system's own buffers take is sent, and no more held.
        assert not connection.ready
        assert connection.load < 300
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() < 2**20
        got = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(error) for error in got} == {DeadlineExceeded}
        quiet.set()


async def test_ids_go_round(node: ScriptedNative, client: Client) -> None:
    await reads(client)
    (connection,) = _connections(client)
    go = asyncio.Event()
    node.faults.append(held(go))
    waiting = asyncio.create_task(reads(client))
    await node.arrived(2)
    (taken,) = connection.waiting
    connection._next_id = 2**32 - 3
    for _ in range(10):
        assert await reads(client)
    assert taken in connection.waiting
    assert 0 not in connection.waiting
    go.set()
    assert await waiting
    assert len(node.hellos) == 1
