"""Who finds no room is told the same by the quick way and by the ordinary one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from biaojie.wire.handle import ENVELOPE_OCTETS, ResponseCode, refusal
from resolver.front.handle.work import FORMS_MAX, TOO_BUSY, Work
from resolver.handle.lane import RENEWED_S
from resolver.overload import PENALTY_S, Gate, Penalties
from tests.contract.handle_lanes import Twins, datagrams, stream, twins
from tests.contract.test_handle_lane import GROUPS, ask, changed, on_uvloop

MANY = 300


@contextmanager
def full(pair: Twins) -> Iterator[list[Gate]]:
    """Both nodes work on all they can. As much may be refused as is asked."""
    gates = [node.handle.gate for node in (pair.plain, pair.laned) if node.handle is not None]
    for gate in gates:
        gate.penalties = Penalties(refusal_s=1e-9)
        gate.running += gate.limit
    try:
        yield gates
    finally:
        for gate in gates:
            gate.running -= gate.limit


@pytest.mark.parametrize("group", GROUPS)
@on_uvloop
async def test_the_same_octets(tmp_path: Path, group: str) -> None:
    cases = [[frame] for frame in GROUPS[group]()]
    async with twins(tmp_path) as pair:
        with full(pair) as gates:
            told = await pair.same("tcp", cases, rounds=2)
            assert gates[0].refused == gates[1].refused > 0
    busy = [reply for replies in told for reply in replies if reply[27] == ResponseCode.SERVER_BUSY]
    assert len(busy) * 2 == gates[1].refused, "each refusal is counted"


@on_uvloop
async def test_in_pieces_and_many_at_once(tmp_path: Path) -> None:
    frame = ask()
    two = frame + changed(frame, 8, bytes((0, 0, 0, 9)))
    cases = [[two[:at], two[at:]] for at in range(0, len(two), 7)]
    cases += [[two], [frame, frame], [frame * 9], [frame * 3 + frame[:30], frame[30:]]]
    async with twins(tmp_path) as pair:
        with full(pair):
            await pair.same("tcp", cases, rounds=1)


@on_uvloop
async def test_a_hit_of_the_lane_is_never_refused(tmp_path: Path) -> None:
    async with twins(tmp_path) as pair:
        await pair.same("tcp", [[ask()]])
        with full(pair) as gates:
            (answer,) = await stream(pair.laned, [ask()])
            assert answer[27] == ResponseCode.SUCCESS
            assert gates[1].refused == 0


@on_uvloop
async def test_who_asks_on_at_once_waits(tmp_path: Path) -> None:
    async with twins(tmp_path) as pair:
        with full(pair) as gates:
            reader, writer = await asyncio.open_connection("127.0.0.1", pair.laned.handle_port)
            loop = asyncio.get_running_loop()
            took = []
            for number in range(4):
                began = loop.time()
                writer.write(ask(request_id=number))
                reply = await reader.readexactly(ENVELOPE_OCTETS)
                reply += await reader.readexactly(int.from_bytes(reply[16:20], "big"))
                took.append(loop.time() - began)
                assert int.from_bytes(reply[8:12], "big") == number
                assert reply[27] == ResponseCode.SERVER_BUSY
            assert min(took[1:]) > 0.9 * PENALTY_S
            assert gates[1].refused == 4
            # What he asks meanwhile is neither lost nor answered out of turn.
            writer.write(ask(request_id=5))
            await asyncio.sleep(PENALTY_S / 3)
            writer.write(ask(request_id=6) + ask(request_id=7))
            writer.write_eof()
            rest = await reader.read()
            ids = []
            while rest:
                size = ENVELOPE_OCTETS + int.from_bytes(rest[16:20], "big")
                ids.append(int.from_bytes(rest[8:12], "big"))
                rest = rest[size:]
            assert ids == [5, 6, 7]
            writer.close()


@on_uvloop
async def test_who_waits_is_not_cut_for_half_a_message(tmp_path: Path) -> None:
    """What came in halves is whole before its time is up; it is looked at only later."""
    async with twins(tmp_path, handle_message_timeout_s=0.4) as pair:
        with full(pair) as gates:
            for gate in gates:
                gate.penalties = Penalties(2.0, refusal_s=1e-9)
            halves = ask(request_id=3)
            for node in (pair.plain, pair.laned):
                reader, writer = await asyncio.open_connection("127.0.0.1", node.handle_port)
                writer.write(ask(request_id=1) + ask(request_id=2) + halves[:30])
                await asyncio.sleep(0.1)
                writer.write(halves[30:])
                ids = []
                for _ in range(3):
                    reply = await reader.readexactly(ENVELOPE_OCTETS)
                    await reader.readexactly(int.from_bytes(reply[16:20], "big"))
                    ids.append(int.from_bytes(reply[8:12], "big"))
                assert ids == [1, 2, 3]
                writer.close()


@on_uvloop
async def test_what_waits_behind_a_refusal_is_answered_before_the_end(tmp_path: Path) -> None:
    frames = [ask(request_id=n) for n in range(1, 13)]
    async with twins(tmp_path) as pair:
        with full(pair):
            for node in (pair.plain, pair.laned):
                assert node.handle is not None
                answers = await stream(node, [b"".join(frames)])
                assert [int.from_bytes(answer[8:12], "big") for answer in answers] == [
                    *range(1, 13)
                ]
                reader, writer = await asyncio.open_connection("127.0.0.1", node.handle_port)
                writer.write(b"".join(frames))
                await asyncio.sleep(0.01)
                (connection,) = node.handle.tcp.connections
                connection.drain()
                rest = await asyncio.wait_for(reader.read(), 5)
                assert rest.count(b"over capacity") == len(frames)
                writer.close()


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0, 3.0])
@on_uvloop
async def test_a_refusal_over_udp_is_no_longer_than_it_may_be(
    tmp_path: Path, factor: float
) -> None:
    frame = ask()
    async with twins(tmp_path, handle_udp_amplification_max=factor) as pair:
        with full(pair):
            answers = await datagrams(pair.laned, [frame])
            (answer,) = answers
            assert len(answer) <= factor * len(frame)
            assert answer[27] == ResponseCode.SERVER_BUSY


@on_uvloop
async def test_no_answer_is_kept_long_without_a_look_at_the_clock(tmp_path: Path) -> None:
    """The time of day may be set; what an answer says of it is then right again soon."""
    async with twins(tmp_path) as pair:
        for _ in range(3):
            await stream(pair.laned, [ask()])
        (ready,) = pair.lane.table().values()
        assert ready.until <= asyncio.get_running_loop().time() + RENEWED_S


@on_uvloop
async def test_room_lets_in_who_waits(tmp_path: Path) -> None:
    async with twins(tmp_path) as pair:
        with full(pair) as gates:
            gates[1].penalties = Penalties(60.0, refusal_s=1e-9)
            working = asyncio.create_task(stream(pair.laned, [ask(request_id=1)]))
            (first,) = await working
            assert first[27] == ResponseCode.SERVER_BUSY
            gates[1].penalties.charge(1e9)  # nobody more may be refused at once
            waiting = asyncio.create_task(stream(pair.laned, [ask(request_id=2)]))
            async with asyncio.timeout(10):
                while not len(gates[1].penalties):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            room = gates[1].limit // 2
            gates[1].running -= room
            gates[1].come_back()
            gates[1].leave()
            (second,) = await waiting
            gates[1].running += room
            assert second[27] == ResponseCode.SUCCESS


def test_from_memory_as_worked_out() -> None:
    chance = random.Random(7)
    gate = Gate(1)
    work = Work(_nobody(), gate)
    told = 0
    for number in range(MANY):
        frame = bytearray(ask(request_id=number))
        for _ in range(chance.choice((0, 0, 1, 2))):
            frame[chance.randrange(len(frame))] = chance.randrange(256)
        if number % 9 == 0:
            del frame[chance.randrange(len(frame)) :]
        octets = bytes(frame)
        for _ in range(2):
            expected = refusal(octets, ResponseCode.SERVER_BUSY, TOO_BUSY)
            assert work.refuse(octets) == expected, octets.hex()
            told += expected is not None
    assert gate.refused == told > MANY
    for opcode in range(2 * FORMS_MAX):
        octets = changed(ask(), 20, (opcode + 10_000).to_bytes(4, "big"))
        assert work.refuse(octets) == refusal(octets, ResponseCode.SERVER_BUSY, TOO_BUSY)
    assert len(work._busy) <= FORMS_MAX
    answer = changed(ask(), 24, (1).to_bytes(4, "big"))
    assert work.refuse(answer) is None, "an answer is never answered"


def _nobody() -> Any:
    return None
