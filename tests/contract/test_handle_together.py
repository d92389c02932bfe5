"""What is answered together is answered as each alone would be, octet by octet, and holds up
nobody."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from biaojie.errors import TemporarilyUnavailable
from biaojie.wire.handle import (
    FLAGS_DEFAULT,
    OpFlag,
    ResponseCode,
    decode_message,
    encode_message,
    whole_frames,
)
from biaojie.wire.handle.message import answer_to, encode_plain_answer
from resolver.front.handle import mmsg
from resolver.node import Node
from resolver.overload import Penalties
from tests.contract.handle_lanes import (
    ELSEWHERE,
    PREFIX,
    RECORDS,
    Transport,
    Twins,
    assert_alike,
    datagrams,
    stream,
    twins,
)
from tests.contract.test_handle_lane import GROUPS, TRANSPORTS, ask, on_uvloop
from tests.core_parts import GatedStore

WAIT_S = 10.0


class SlowNames(GatedStore):
    """Look-ups with one of the names in `slow` wait until `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.slow: set[bytes] = set()
        self.held = asyncio.Event()
        self.go = asyncio.Event()

    async def look_up(self, keys: Any) -> Any:
        if any(key.suffix in self.slow for key in keys):
            self.held.set()
            await self.go.wait()
        return await self.inner.look_up(keys)


def hundred() -> list[bytes]:
    """Questions of all kinds, each with a number of its own. Those for the same name come first:
    together even as datagrams, of which 64 are received at a time. Else whether the second is
    answered by the registry or the cache, and it says which, is a matter of time."""
    frames = [ask(f"{PREFIX}/{suffix}") for suffix in RECORDS]
    frames += [ask(f"{PREFIX}/{suffix}", flags=OpFlag.RECURSIVE) for suffix in RECORDS]
    for prefix in ELSEWHERE:
        frames += [ask(f"{prefix}/SN1"), ask(f"{prefix}/no"), ask(f"{prefix}.1/no")]
        frames.append(ask(f"{prefix}/SN1", flags=FLAGS_DEFAULT | OpFlag.DO_NOT_REFER))
    frames += [ask(f"0.NA/{prefix}") for prefix in (PREFIX, *ELSEWHERE)]
    frames += [ask(f"{PREFIX}/many", (2, 3), ()), ask(f"{PREFIX}/many", (), ("URL.",))]
    frames += [ask(f"{PREFIX}/many", (99,), ()), ask("10.1/x"), ask(""), ask("/")]
    assert len(frames) <= mmsg.BATCH
    suffixes = ["draft", "frozen", "gone", *(f"no{n}" for n in range(40))]
    frames += [ask(f"{PREFIX}/{suffix}") for suffix in suffixes]
    assert len(frames) >= 100
    return [frame[:8] + struct.pack("!I", n) + frame[12:] for n, frame in enumerate(frames)]


def totals(node: Node) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in node.observer.page().decode().splitlines())
    wanted = 'biaojie_requests_total{front="handle'
    return {name: float(number) for name, _, number in lines if name.startswith(wanted)}


def taken(pair: Twins, transport: Transport) -> list[Any]:
    """What the second node is going to take to answer together."""
    assert pair.laned.handle is not None
    front = pair.laned.handle
    gathering: Any = front.tcp.gathering if transport == "tcp" else front.udp.gathering
    took: list[Any] = []
    take = gathering.take

    def watched(asked: Any, to: Any) -> None:
        took.append(asked)
        take(asked, to)

    gathering.take = watched
    return took


def running(pair: Twins) -> list[int]:
    return [node.handle.gate.running for node in (pair.plain, pair.laned) if node.handle]


# The same octets ----------------------------------------------------------------------------


@TRANSPORTS
@on_uvloop
async def test_a_hundred_in_one_turn(tmp_path: Path, transport: Transport) -> None:
    frames = hundred()
    case = [b"".join(frames)] if transport == "tcp" else frames
    async with twins(tmp_path) as pair:
        took = taken(pair, transport)
        (answers,) = await pair.same(transport, [case], rounds=3)
        assert len(took) > 60, "else the ordinary path is compared with itself"
        codes = {int.from_bytes(answer[24:28], "big") for answer in answers}
        assert codes >= {
            ResponseCode.SUCCESS,
            ResponseCode.HANDLE_NOT_FOUND,
            ResponseCode.PREFIX_REFERRAL,
            ResponseCode.SERVICE_REFERRAL,
        }
        assert len(answers) == len(frames)
        assert totals(pair.plain) == totals(pair.laned), "each is counted, and once"
        assert running(pair) == [0, 0]


@TRANSPORTS
@on_uvloop
async def test_while_the_registry_cannot_be_asked(tmp_path: Path, transport: Transport) -> None:
    """What was known is answered stale, all else told so, each with a request id of its own."""
    store = GatedStore()
    known = [ask(f"{PREFIX}/ttl0"), ask(f"{PREFIX}/ttl-past"), ask(f"{PREFIX}/SN1")]
    frames = hundred()
    case = [b"".join(frames)] if transport == "tcp" else frames
    async with twins(tmp_path, store) as pair:
        await pair.same(transport, [[frame] for frame in known], rounds=1)
        store.errors["look_up"] = TemporarilyUnavailable()
        (answers,) = await pair.same(transport, [case], rounds=1)
        codes = [int.from_bytes(answer[24:28], "big") for answer in answers]
        assert codes.count(ResponseCode.SUCCESS) >= len(known)
        assert codes.count(ResponseCode.SERVER_BUSY) > 60
        del store.errors["look_up"]


@TRANSPORTS
@on_uvloop
async def test_beyond_the_deadline(tmp_path: Path, transport: Transport) -> None:
    store = GatedStore()
    frames = [ask(f"{PREFIX}/{suffix}", request_id=n) for n, suffix in enumerate(RECORDS)]
    async with twins(tmp_path, store, deadline_s=0.2, store_timeout_s=0.15) as pair:
        for node in (pair.plain, pair.laned):  # so that the deadline comes first
            node.local._timeout_s = WAIT_S
        store.close_gate("look_up")
        (answers,) = await pair.same(transport, [frames], rounds=1)
        assert {answer[27] for answer in answers} == {ResponseCode.SERVER_BUSY}
        store.open_gate("look_up")
        assert totals(pair.plain) == totals(pair.laned)
        assert any('outcome="deadline-exceeded"' in name for name in totals(pair.laned))
        assert running(pair) == [0, 0]


@on_uvloop
async def test_more_than_there_is_room_for(tmp_path: Path) -> None:
    store = GatedStore()
    frames = [ask(f"{PREFIX}/no{n}", request_id=n) for n in range(60)]
    async with twins(tmp_path, store, handle_requests_max=50) as pair:
        told = []
        for node in (pair.plain, pair.laned):
            assert node.handle is not None
            node.handle.gate.penalties = Penalties(refusal_s=1e-9)
            store.close_gate("look_up")
            asking = asyncio.create_task(datagrams(node, frames))
            await store.reached("look_up")
            async with asyncio.timeout(WAIT_S):
                while node.handle.udp.counts["handle_udp_packets"] < 60:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert node.handle.gate.running == 50
            store.open_gate("look_up")
            told.append(sorted(await asking))
            assert node.handle.gate.running == 0
            assert node.handle.gate.refused == 10
        for one, other in zip(*told, strict=True):
            assert_alike(one, other)


@on_uvloop
async def test_more_than_the_pipeline_holds(tmp_path: Path) -> None:
    frames = [ask(f"{PREFIX}/no{n}", request_id=n) for n in range(50)]
    async with twins(tmp_path, handle_pipeline_max=3) as pair:
        took = taken(pair, "tcp")
        await pair.same("tcp", [[b"".join(frames)], frames], rounds=1)
        assert len(took) >= 50


def test_a_message_from_octets_as_from_a_message() -> None:
    whole = 0
    for frame in _readable():
        for code in ResponseCode:
            request = decode_message(frame)
            failure = decode_message(ask()).body
            expected = encode_message(answer_to(request, failure, code, flags=1, site_serial=7))
            got = encode_plain_answer(frame, failure.encode(), code, 1, 7, request.expiration)
            assert got == expected, frame.hex()
            whole += 1
    assert whole > 1_000


def _readable() -> Iterator[bytes]:
    for group in ("versions", "flags", "fields"):
        for frame in GROUPS[group]():
            try:
                message = decode_message(frame)
            except ValueError:
                continue
            wanted = message.flags & OpFlag.REQUEST_DIGEST
            if message.is_request and not (wanted or message.session_id or frame[2] & 0x20):
                yield frame


# Who waits for whom -------------------------------------------------------------------------


async def received(line: socket.socket, count: int) -> list[int]:
    """The numbers of so many answers, in the order of the numbers."""
    loop = asyncio.get_running_loop()
    answers: list[bytes] = []
    async with asyncio.timeout(WAIT_S):
        while len(answers) < count:
            answers += whole_frames(await loop.sock_recv(line, 2**20))
    return sorted(int.from_bytes(answer[8:12], "big") for answer in answers)


@TRANSPORTS
@on_uvloop
async def test_nobody_waits_for_what_he_did_not_ask_for(
    tmp_path: Path, transport: Transport
) -> None:
    store = SlowNames()
    async with twins(tmp_path, store) as pair:
        front = pair.laned.handle
        assert front is not None
        kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, kind) as line:
            line.setblocking(False)
            await asyncio.get_running_loop().sock_connect(
                line, ("127.0.0.1", pair.laned.handle_port)
            )

            def send(frames: Sequence[bytes]) -> None:
                for piece in [b"".join(frames)] if transport == "tcp" else frames:
                    line.send(piece)

            known = [ask(f"{PREFIX}/ttl600", request_id=1), ask(f"{PREFIX}/no", request_id=2)]
            send(known)
            assert await received(line, 2) == [1, 2]
            store.slow = {b"SN1"}
            send([ask(f"{PREFIX}/SN1", request_id=10)])
            async with asyncio.timeout(WAIT_S):
                await store.held.wait()
            # The slow one again, others, and what was asked for before, all in one turn.
            others = [ask(f"{PREFIX}/no{n}", request_id=20 + n) for n in range(20)]
            others += [ask(f"{PREFIX}/many", request_id=40), ask("10.1/x", request_id=41)]
            send([ask(f"{PREFIX}/SN1", request_id=11), *others, *known])
            assert await received(line, 24) == [1, 2, *range(20, 42)]
            assert front.gate.running == 2
            store.go.set()
            assert await received(line, 2) == [10, 11]
            assert front.gate.running == 0


@on_uvloop
async def test_who_hangs_up_meanwhile_harms_no_other(tmp_path: Path) -> None:
    store = GatedStore()
    frames = [ask(f"{PREFIX}/{suffix}", request_id=n) for n, suffix in enumerate(RECORDS)]
    async with twins(tmp_path, store) as pair:
        store.close_gate("look_up")
        _, gone = await asyncio.open_connection("127.0.0.1", pair.laned.handle_port)
        gone.write(b"".join(frames) + ask(f"{PREFIX}/mixed", flags=OpFlag.RECURSIVE))
        staying = asyncio.create_task(stream(pair.laned, [b"".join(frames)]))
        await store.reached("look_up")
        assert pair.laned.handle is not None
        async with asyncio.timeout(WAIT_S):
            while pair.laned.handle.gate.running <= len(frames):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        gone.transport.abort()
        await asyncio.sleep(0.02)
        store.open_gate("look_up")
        assert len(await staying) == len(frames)
        async with asyncio.timeout(WAIT_S):
            while sum(running(pair)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@TRANSPORTS
@on_uvloop
async def test_what_came_before_the_end_is_answered(tmp_path: Path, transport: Transport) -> None:
    """A node that stops finishes what it has taken, and the connection ends behind it."""
    store = GatedStore()
    frames = [ask(f"{PREFIX}/{suffix}", request_id=n) for n, suffix in enumerate(RECORDS)]
    async with twins(tmp_path, store, handle_udp_amplification_max=100.0) as pair:
        store.close_gate("look_up")
        case = [b"".join(frames)] if transport == "tcp" else frames
        asking = asyncio.create_task(pair.ask(transport, pair.laned, case))
        async with asyncio.timeout(WAIT_S):
            while running(pair)[1] < len(frames):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        stopping = asyncio.create_task(pair.laned.stop())
        await asyncio.sleep(0.05)
        store.open_gate("look_up")
        assert len(await asking) >= len(frames)
        await stopping
