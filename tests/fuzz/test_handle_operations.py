"""Mutated Handle requests against the operations: each is answered or passed over, none fails, and
nothing grows without bound."""

from __future__ import annotations

import random
from pathlib import Path

from biaojie.wire.handle import OpFlag, ResponseCode, decode_message, encode_message
from tests.handle_meaning import vectors
from tests.handle_talk import PREFIX, about, create, desk, login, resolve

FRAMES = 6_000


def mutated(chance: random.Random, frame: bytes) -> bytes:
    octets = bytearray(frame)
    for _ in range(chance.choice((0, 1, 1, 2, 4))):
        octets[chance.randrange(len(octets))] = chance.choice(
            (0, 1, 127, 255, chance.randrange(256))
        )
    if chance.random() < 0.3:
        del octets[chance.randrange(20, len(octets) + 1) :]
        octets[16:20] = (len(octets) - 20).to_bytes(4, "big")
    return bytes(octets)


async def test_mutated_requests(tmp_path: Path) -> None:
    chance = random.Random(20_260_101)
    seeds = [bytes.fromhex(v["hex"]) for v in (*vectors("iiis"), *vectors("messages"))]
    seeds += [bytes.fromhex(v["hex"]) for v in vectors("captures") if v["dir"] == "C>S"]
    asked = [
        resolve(f"{PREFIX}/SN1", flags=OpFlag.CERTIFY),
        create(f"{PREFIX}/FUZZ"),
        about(105, f"0.NA/{PREFIX}"),
        about(2, "/"),
        login(),
    ]
    seeds += [encode_message(message) for message in asked]
    codes = set()
    async with desk(tmp_path) as here:
        peers = [here.peer(), here.peer("udp"), here.peer("http")]
        for _ in range(FRAMES):
            frame = mutated(chance, chance.choice(seeds))
            answers = [m async for m in here.operations.answer(frame, chance.choice(peers))]
            assert len(answers) <= 1
            for answer in answers:
                if not answer[2] & 0x40:
                    codes.add(decode_message(answer).response_code)
        assert here.operations.pending.octets < 64 * 2**20
        assert len(here.operations.sessions) <= 1_000
    assert ResponseCode.ERROR not in codes
    assert {ResponseCode.SUCCESS, ResponseCode.PROTOCOL_ERROR} <= codes
