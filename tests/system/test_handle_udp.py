"""The Handle protocol on UDP: fragments, answers that are cut, garbage, forged sources."""

from __future__ import annotations

import asyncio
import random
import struct
from contextlib import suppress

from biaojie.wire.handle import (
    DATAGRAM_OCTETS_MAX,
    OpFlag,
    Reassembly,
    ResponseCode,
    decode_message,
    split,
)
from resolver.front.handle.guard import is_cut_form
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
