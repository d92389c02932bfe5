"""Mutated Handle packets against the codec: a value or Malformed, in bounded time and memory.

    python -m tests.fuzz.handle_packets --packets 1000000 --seed 1
    python -m tests.fuzz.handle_packets --seconds 60

The seeds are the golden vectors: every message type there is one target. Ends with 1, the
target and the packet in hex when anything else comes out than a value or Malformed, when a
value does not survive encoding, or when a packet takes too long or too much memory.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import struct
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from biaojie.wire import handle as h
from tests.handle_meaning import vectors

PACKET_S_MAX = 0.25
"""CPU time; ITERATIONS_MAX of PBKDF2 take a fifth of it."""
MEMORY_FACTOR = 40
MEMORY_BASE = 65_536
GROWTH_KIB_MAX = 65_536
SAMPLE_EVERY = 200
SECRET = b"peer-secret"

_NUMBERS = [
    *(number.to_bytes(4, "big") for number in (0, 1, 2, 3, 4, 16, 255, 256, 492, 2047, 2048, 2049)),
    *(number.to_bytes(4, "big") for number in (65_535, 262_144, 262_145, 2**31 - 1, 2**31)),
    *(number.to_bytes(4, "big") for number in (2**32 - 1, 2**32 - 4, 2**30, 100, 300, 402, 1000)),
]


@dataclass(slots=True)
class Target:
    """Something that takes octets, and the seeds that it is fed with."""

    name: str
    take: Callable[[bytes], Any]
    seeds: list[bytes] = field(default_factory=list)
    framed: bool = False  # the seeds are whole frames, whose lengths are worth correcting


class Found(Exception):
    """A packet that the codec does not bear."""


# Targets --------------------------------------------------------------------------------


def take_frame(data: bytes) -> h.Message:
    """Decode; what was understood must encode, and mean the same again."""
    try:
        message = h.decode_message(data)
    except h.Malformed:
        reply = h.refusal(data, h.ResponseCode.PROTOCOL_ERROR, "?")
        if reply is not None:
            assert len(reply) <= h.DATAGRAM_OCTETS_MAX
            h.decode_message(reply)
        raise
    if _same_code(message):
        assert h.decode_message(h.encode_message(message)) == message
    h.mac_matches(message, SECRET)
    h.covered(message)
    if message.is_request:
        answer = h.answer_to(message, h.Failure("no"), h.ResponseCode.ERROR)
        assert h.decode_message(h.encode_message(answer)).request_id == message.request_id
    _take_inside(message)
    return message


def _same_code(message: h.Message) -> bool:
    """Whether re-encoding is expected to mean the same."""
    if message.has(h.OpFlag.REQUEST_DIGEST) and not message.version.reaches((2, 1)):
        return False  # a digest that its version has no place for
    old = not message.version.reaches((2, 5))
    return not (old and message.response_code in {7, 202, 303})


_TYPED: dict[str, Callable[[bytes], Any]] = {
    "HS_ADMIN": h.decode_admin,
    "HS_VLIST": h.decode_value_list,
    "HS_SITE": h.decode_site,
    "HS_PUBKEY": h.decode_public_key,
    "HS_NAMESPACE": h.decode_namespace,
}


def _take_inside(message: h.Message) -> None:
    """What a server or client would look at next."""
    match message.body:
        case h.ResolveResponse(_, values) | h.ValuesRequest(_, values) | h.Referral(_, values):
            for value in values or ():
                decode = _TYPED.get(value.type)
                if decode is not None:
                    _or_malformed(decode, value.data)
            h.asked_for(values or (), (1, 2), ("URL.", "x"))
        case h.ResolveRequest(handle, indexes, types):
            h.asked_for((), indexes, types)
            h.handle_hash(handle, 0)
            assert h.tunnel_path(handle).isascii()
        case h.AnswerRequest(type_, _, answer) if type_ == h.PUBLIC_KEY:
            _or_malformed(h.decode_public_key_answer, answer)
        case h.SessionRequest(_, _, _, public_key):
            _or_malformed(h.decode_public_key, public_key)
        case h.SessionResponse(_, data):
            _or_malformed(h.decode_session_key, data)
        case h.SiteResponse(site) if site.servers and site.hash_option < 3:
            site.server_for("88.118.8/SN1").ip  # noqa: B018 — must not raise


def _or_malformed(decode: Callable[[bytes], Any], data: bytes) -> None:
    try:
        decode(data)
    except h.Malformed:
        return


def take_typed(type_: str) -> Callable[[bytes], Any]:
    """Decode, encode, decode: the same."""

    def take(data: bytes) -> Any:
        decoded = _TYPED[type_](data)
        if type_ == "HS_VLIST":
            again = h.encode_value_list(decoded)
        elif type_ == "HS_PUBKEY":
            again = h.encode_public_key(decoded)
        else:
            try:
                again = decoded.encode()
            except ValueError:
                if type_ != "HS_NAMESPACE":
                    raise
                return decoded  # a template may have names that our writer does not take
        assert _TYPED[type_](again) == decoded
        return decoded

    return take


def take_secret_answer(data: bytes) -> bool:
    return h.secret_answer_matches(data, SECRET, b"n" * 16, b"d" * 32, frozenset(h.AnswerForm))


class Streams:
    """One connection fed with packets; a new one after each fault."""

    def __init__(self) -> None:
        self.framing = h.StreamFraming(20_000)

    def __call__(self, data: bytes) -> int:
        try:
            frames = list(self.framing.feed(data))
            assert self.framing.buffered <= 20_020
            return len(frames)
        except h.Malformed:
            self.framing = h.StreamFraming(20_000)
            raise


class Packets:
    """A node's UDP port: every packet from one of a hundred sources, time goes on."""

    def __init__(self) -> None:
        self.reassembly = h.Reassembly(partial_max=64, octets_max=100_000)
        self.count = 0

    def __call__(self, data: bytes) -> bytes | None:
        self.count += 1
        frame = self.reassembly.take(self.count * 7919 % 100, data, self.count / 1_000)
        assert len(self.reassembly) <= 64
        assert self.reassembly.octets <= 100_000
        if frame is not None:
            assert h.decode_envelope(frame).length == len(frame) - h.ENVELOPE_OCTETS
        return frame


def targets() -> list[Target]:
    """One for each message type, each typed value, and each transport."""
    messages: dict[str, Target] = {}
    frames: list[bytes] = []
    for vector in vectors("messages"):
        frame = bytes.fromhex(vector["hex"])
        frames.append(frame)
        said = vector["message"]
        name = f"{h.OpCode(said['opcode']).name if said['opcode'] in set(h.OpCode) else 'unknown'}"
        name += f" {said.get('response_code', 0)}"
        messages.setdefault(name, Target(name, take_frame, framed=True)).seeds.append(frame)
    streams = Target("TCP stream", Streams(), frames, framed=True)
    packets = Target("UDP packets", Packets())
    for vector in vectors("captures"):
        octets = bytes.fromhex(vector["hex"])
        if vector["proto"] == "udp":
            packets.seeds.append(octets)
            frames.append(octets)
    packets.seeds += h.split(h.encode_message(h.Message(1, h.Failure("x" * 5_000), 2)))
    captured = Target("captures", take_frame, framed=True)
    captured.seeds = [frame for frame in frames if len(frame) < 2_000]
    macs = Target("MAC", take_frame, framed=True)
    macs.seeds = [bytes.fromhex(vector["hex"]) for vector in vectors("macs")]
    typed = {name: Target(name, take_typed(name)) for name in _TYPED}
    for vector in vectors("typed"):
        typed[vector["type"]].seeds.append(bytes.fromhex(vector["hex"]))
    answers = Target("secret-key answer", take_secret_answer)
    answers.seeds = [bytes.fromhex(vector["answer"]) for vector in vectors("answers")]
    return [*messages.values(), captured, macs, streams, packets, *typed.values(), answers]


# Mutations ------------------------------------------------------------------------------


def mutated(target: Target, chance: random.Random) -> bytes:
    """A seed with a few faults in it; of a frame mostly with its lengths put right again, so
    that the faults inside are reached."""
    data = bytearray(chance.choice(target.seeds))
    for _ in range(1 if chance.random() < 0.5 else chance.randint(2, 6)):
        _spoil(data, target, chance)
    if target.framed and len(data) >= 44 and chance.random() < 0.7:
        struct.pack_into("!I", data, 16, len(data) - 20)
        if chance.random() < 0.7:
            credential = 4 if chance.random() < 0.8 else chance.randint(0, len(data) - 44)
            struct.pack_into("!I", data, 40, max(len(data) - 44 - credential, 0))
    return bytes(data)


def _spoil(data: bytearray, target: Target, chance: random.Random) -> None:
    size = len(data)
    at = chance.randrange(size) if size else 0
    match chance.randrange(9):
        case 0 if size:
            data[at] ^= 1 << chance.randrange(8)
        case 1 if size:
            data[at] = chance.choice((0, 1, 2, 0x20, 0x40, 0x7F, 0x80, 0xFF))
        case 2 if size > 4:
            at = chance.randrange(size - 3)
            data[at : at + 4] = chance.choice(_NUMBERS)
        case 3:
            del data[at:]
        case 4:
            del data[at : at + chance.randint(1, 8)]
        case 5:
            data[at:at] = chance.randbytes(chance.randint(1, 8))
        case 6:
            other = chance.choice(target.seeds)
            start = chance.randrange(len(other)) if other else 0
            data[at:] = other[start:]
        case 7:
            piece = data[at : at + chance.randint(1, 64)]
            data[at:at] = piece * chance.randint(1, 20)
        case _:
            data += chance.randbytes(chance.randint(1, 16))


# Running --------------------------------------------------------------------------------


def feed(target: Target, data: bytes, sample: bool) -> str:
    """What became of it: `value` or `malformed`. Raises Found."""
    if sample:
        tracemalloc.start()
    start = time.thread_time()
    try:
        target.take(data)
        outcome = "value"
    except h.Malformed as error:
        outcome = "malformed"
        # a stream counts from what it held before
        last = len(data) + (20_020 if isinstance(target.take, Streams) else 0)
        if not 0 <= error.offset <= last or len(str(error)) > 300:
            raise Found(f"{target.name}: {error!r} for {data.hex()}") from error
    except Exception as error:
        raise Found(f"{target.name}: {error!r} for {data.hex()}") from error
    taken = time.thread_time() - start
    if sample:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if peak > MEMORY_BASE + MEMORY_FACTOR * len(data):
            raise Found(f"{target.name}: {peak} octets of memory for {data.hex()}")
    elif taken > PACKET_S_MAX:
        raise Found(f"{target.name}: {taken:.3f} s for {data.hex()}")
    return outcome


def outcomes(seed: int) -> Iterator[tuple[str, str]]:
    """Endless: target and outcome of one mutated packet after the other."""
    chance = random.Random(seed)
    everything = targets()
    number = 0
    while True:
        for target in everything:
            number += 1
            yield target.name, feed(target, mutated(target, chance), number % SAMPLE_EVERY == 0)


def run(*, packets: int | None, seconds: float | None, seed: int) -> Counter[tuple[str, str]]:
    """Until so many packets or seconds have passed. Raises Found."""
    end = None if seconds is None else time.monotonic() + seconds
    counts: Counter[tuple[str, str]] = Counter()
    before = None
    for number, outcome in enumerate(outcomes(seed), 1):
        counts[outcome] += 1
        if number == 20_000:
            before = _memory_kib()
        if number == packets or (end is not None and time.monotonic() > end):
            break
    gc.collect()
    if before is not None and _memory_kib() - before > GROWTH_KIB_MAX:
        raise Found(f"memory grew by {_memory_kib() - before} KiB")
    return counts


def _memory_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--packets", type=int, help="stop after so many")
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    packets = given.packets
    if packets is None and given.seconds is None:
        packets = 1_000_000
    start = time.monotonic()
    try:
        counts = run(packets=packets, seconds=given.seconds, seed=given.seed)
    except Found as found:
        print(f"seed {given.seed}: {found}", file=sys.stderr)
        return 1
    for name in dict.fromkeys(name for name, _ in counts):
        print(f"{name:32} {counts[name, 'value']:9} values {counts[name, 'malformed']:9} malformed")
    took = time.monotonic() - start
    print(f"{counts.total()} packets, {took:.0f} s, {_memory_kib()} KiB, seed {given.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
