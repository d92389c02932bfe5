"""Spoilt frames against a live native front: it answers, refuses or hangs up, and goes on.

FUZZ_CONNECTIONS says how many connections (default 300), each with up to 40 frames.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import struct
from pathlib import Path

import pytest

from biaojie.errors import ERRORS
from biaojie.wire.native import Kind, Resolve, decode_error, requests
from tests.core_parts import create
from tests.native_world import HungUp, Peer, World, hello, world
from tests.native_world import event_loop_policy as event_loop_policy  # noqa: PLC0414

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")

CONNECTIONS = int(os.environ.get("FUZZ_CONNECTIONS", "300"))
VECTORS = Path(__file__).parents[1] / "vectors/native/frames.jsonl"
_SERVED = frozenset({Kind.ANSWER, Kind.END, Kind.PART, Kind.ERROR})


def samples() -> list[bytes]:
    lines = VECTORS.read_text().splitlines()
    # None that waits for news for long.
    return [
        bytes.fromhex(json.loads(line)["hex"]).replace(struct.pack(">d", 25.0), bytes(8))
        for line in lines
    ]


SAMPLES = samples()


def spoilt(chance: random.Random, octets: bytes) -> bytes:
    """A frame with some octets changed, lost, doubled or put in; often its length is made right."""
    frame = bytearray(octets)
    for _ in range(chance.choice((0, 1, 1, 2, 5))):
        at = chance.randrange(len(frame))
        match chance.randrange(5):
            case 0:
                frame[at] = chance.randrange(256)
            case 1:
                frame[at] ^= 1 << chance.randrange(8)
            case 2:
                del frame[at : at + chance.randrange(1, 9)]
            case 3:
                frame[at:at] = frame[at : at + chance.randrange(1, 20)]
            case 4:
                other = chance.choice(SAMPLES)
                frame[at:] = other[chance.randrange(len(other)) :]
        if not frame:
            frame = bytearray(b"\0")
    if chance.random() < 0.8 and len(frame) >= 9:
        frame[:4] = (len(frame) - 4).to_bytes(4, "big")
        if chance.random() < 0.5:
            frame[8] = chance.randrange(1, 0x16)
    return bytes(frame)


async def harass(node: World, seed: int) -> int:
    """One connection's worth of it; how many frames came back."""
    chance = random.Random(seed)
    key = chance.choice((None, node.acme, node.admin, node.reader))
    async with node.peer(greet=False) as peer:
        octets = b"" if chance.random() < 0.05 else hello(key)
        for _ in range(chance.randrange(1, 40)):
            octets += spoilt(chance, chance.choice(SAMPLES))
        at = 0
        while at < len(octets):
            size = chance.choice((1, 7, 50, 400, 5_000))
            peer.send(octets[at : at + size])
            at += size
            if chance.random() < 0.2:
                await asyncio.sleep(0)
        peer.writer.write_eof()
        return await read_all(peer)


async def read_all(peer: Peer) -> int:
    count = 0
    try:
        while True:
            frame = await peer.frame(20)
            count += 1
            assert frame.kind in _SERVED
            if frame.kind == Kind.ERROR:
                assert decode_error(frame.body).code in ERRORS
                assert decode_error(frame.body).code not in ("internal", "malformed-answer")
    except HungUp:
        return count


async def test_spoilt_frames_harm_nobody() -> None:
    async with world(native_message_timeout_s=1.0) as node:
        await node.write(*(create(f"F{n}") for n in range(50)))
        answered = 0
        for start in range(0, CONNECTIONS, 10):
            seeds = range(start, start + 10)
            async with asyncio.timeout(60):
                answered += sum(await asyncio.gather(*(harass(node, seed) for seed in seeds)))
            async with node.peer() as peer:
                # Of what it may do, it may do anything: the prefix may be suspended by now.
                frame = await peer.ask(Resolve("88.118.8/F7"))
                assert frame.kind == Kind.ANSWER or decode_error(frame.body).code != "internal"
        assert answered > CONNECTIONS
        async with asyncio.timeout(10):
            while node.front.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (node.front.gate.running, node.front.held_octets) == (0, 0)


async def test_octets_that_are_no_frames_harm_nobody() -> None:
    chance = random.Random(7)
    async with world(native_message_timeout_s=0.5) as node:
        for _ in range(60):
            async with node.peer(greet=False) as peer:
                peer.send(hello() if chance.random() < 0.5 else b"", chance.randbytes(500))
                peer.writer.write_eof()
                await read_all(peer)
        async with node.peer() as peer:
            assert (await peer.ask(requests.Ping())).kind == Kind.ANSWER
