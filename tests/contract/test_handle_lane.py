"""What the express lane answers is what the ordinary path answers, octet by octet."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from biaojie.account import PrefixStatus
from biaojie.identifier import Identifier
from biaojie.wire.handle import (
    FLAGS_DEFAULT,
    MAC,
    Credential,
    HandleRequest,
    Message,
    OpCode,
    OpFlag,
    ResolveRequest,
    Version,
    decode_message,
    encode_message,
    split,
)
from registry.operations import ChangePrefix, Create, Modify, Purge, Retire
from resolver.front.handle import mmsg, udp
from resolver.front.handle.guard import is_cut_form
from tests.contract.handle_lanes import (
    ELSEWHERE,
    PREFIX,
    RECORDS,
    ROUNDS,
    Transport,
    assert_alike,
    datagrams,
    twins,
    value,
)

TRANSPORTS = pytest.mark.parametrize("transport", ["tcp", "udp"])


def on_uvloop(test: Any) -> Any:
    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        uvloop.run(test(*arguments, **named))

    return run


def ask(handle: str = f"{PREFIX}/SN1", *lists: Any, **fields: Any) -> bytes:
    """A resolution as existing clients send it; `token` and `trailing` go into its body."""
    body = ResolveRequest(
        handle, *lists, **{n: fields.pop(n) for n in ("token", "trailing") if n in fields}
    )
    given = {
        "flags": FLAGS_DEFAULT,
        "request_id": 77,
        "expiration": int(time.time()) + 43_200,
        **fields,
    }
    return encode_message(Message(OpCode.RESOLUTION, body, **given))


def changed(frame: bytes, at: int, octets: bytes) -> bytes:
    return frame[:at] + octets + frame[at + len(octets) :]


# Cases --------------------------------------------------------------------------------------


def versions() -> Iterator[bytes]:
    for minor in range(13):
        own = Version(2, minor)
        for suggested in (own, Version(2, 11), Version(3, 0)):
            yield ask(version=own, suggested=suggested)
    for major in (0, 1, 3, 4, 5):
        yield ask(version=Version(major, 0), suggested=Version(2, 11))
        yield changed(ask(), 2, bytes((major, 3)))


def flags() -> Iterator[bytes]:
    for flag in OpFlag:
        yield ask(flags=flag)
        yield ask(flags=FLAGS_DEFAULT ^ flag)
        yield ask(f"{PREFIX}/mixed", flags=flag)
    for number in (0, 1, 2, 8, 0x0008_0000, 0x1B7F_FFFF, 0xFFFF_FFFF):
        yield ask(flags=number)


LISTS: list[Any] = [
    ((), ()),
    ((1,), ()),
    ((2, 3), ()),
    ((3, 2), ()),
    ((1, 1), ()),
    ((99,), ()),
    ((0,), ()),
    ((0xFFFF_FFFF,), ()),
    ((), ("URL",)),
    ((), ("url",)),
    ((), ("URL.",)),
    ((), ("Url.Mirror",)),
    ((), ("NOPE",)),
    ((), ("",)),
    ((), (".",)),
    ((1,), ("EMAIL",)),
    ((99,), ("NOPE",)),
    (tuple(range(100)), ()),
    (tuple(range(2048)), ()),
    ((), ("NOTE",)),
    ((9,), ()),
]


def lists() -> Iterator[bytes]:
    for suffix in ("many", "mixed", "secret"):
        for indexes, types in LISTS:
            yield ask(f"{PREFIX}/{suffix}", indexes, types)
            yield ask(f"{PREFIX}/{suffix}", indexes, types, flags=OpFlag.RECURSIVE)


def names() -> Iterator[bytes]:
    for suffix in RECORDS:
        for spelled in dict.fromkeys((suffix, suffix.upper(), suffix.lower(), suffix.title())):
            yield ask(f"{PREFIX}/{spelled}")
    for suffix in ("draft", "frozen", "gone", "unknown", "SN1 ", "SN1\0", "", "x" * 300, "é"):
        yield ask(f"{PREFIX}/{suffix}")
    for prefix in ELSEWHERE:
        yield ask(f"{prefix}/SN1")
        yield ask(f"0.NA/{prefix}")
        yield ask(f"0.na/{prefix}", flags=OpFlag.DO_NOT_REFER)
        yield ask(f"{prefix}/SN1", flags=FLAGS_DEFAULT | OpFlag.DO_NOT_REFER)
    for handle in ("", "/", "0", "0.NA/", f"0.NA/{PREFIX}", PREFIX, "10.1/x", "//", "a" * 2_048):
        yield ask(handle)


def fields() -> Iterator[bytes]:
    frame = ask()
    for number in (0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF):
        yield ask(request_id=number)
        yield ask(expiration=number)
        yield ask(session_id=number)
        yield changed(frame, 12, number.to_bytes(4, "big"))  # the sequence number
        yield changed(frame, 24, number.to_bytes(4, "big"))  # the response code
    yield ask(expiration=int(time.time()) - 100)
    yield ask(expiration=int(time.time()) + 10)
    for number in (0, 1, 39, 40, 41, 255):
        yield ask(recursion_count=number)
        yield changed(frame, 35, bytes((number,)))  # reserved
    for number in (0, 1, 2, 0xFFFE, 0xFFFF):
        yield ask(site_serial=number)
    for mark in (0x20, 0x40, 0x80, 0xE0):
        yield changed(frame, 2, bytes((frame[2] | mark,)))
    for token in (None, b"", b"\0\0\0\0", b"a token"):
        yield ask(token=token)
        yield ask(token=token, trailing=b"more")
    for opcode in (0, 2, 3, *OpCode, 9_999):
        yield changed(frame, 20, opcode.to_bytes(4, "big"))
    yield ask(credential=Credential(MAC, "HMAC-SHA256", bytes(32), 1))
    yield encode_message(Message(OpCode.GET_SITE_INFO, HandleRequest("/"), request_id=9))


def lengths() -> Iterator[bytes]:
    """Octets that lie about how many they are."""
    frame = ask(token=b"")
    for size in range(20, len(frame)):
        yield changed(frame[:size], 16, (size - 20).to_bytes(4, "big"))
    for more in (1, 3, 4, 5):
        longer = frame + bytes(more)
        yield changed(longer, 16, (len(longer) - 20).to_bytes(4, "big"))
    body = int.from_bytes(frame[40:44], "big")
    for lie in (0, 1, body - 1, body + 1, body + 4, body + 5, 0xFFFF_FFFF):
        yield changed(frame, 40, lie.to_bytes(4, "big"))


GROUPS = {f.__name__: f for f in (versions, flags, lists, names, fields, lengths)}


@TRANSPORTS
@pytest.mark.parametrize("group", GROUPS)
@on_uvloop
async def test_the_same_octets(tmp_path: Path, transport: Transport, group: str) -> None:
    cases = [split(f) if transport == "udp" else [f] for f in GROUPS[group]()]
    async with twins(tmp_path) as pair:
        await pair.same(transport, cases)
        assert pair.lane.hits >= ROUNDS - 2


@TRANSPORTS
@on_uvloop
async def test_plain_questions_are_answered_in_the_lane(
    tmp_path: Path, transport: Transport
) -> None:
    """So that the comparisons above are not between the ordinary path and itself."""
    frames = [ask(f"{PREFIX}/many", indexes, types) for indexes, types in LISTS[:5] + LISTS[8:12]]
    frames += [ask(version=Version(2, minor), token=b"") for minor in range(12)]
    frames += [ask(recursion_count=3), ask(site_serial=1), ask(flags=OpFlag.KEEP_CONNECTION)]
    async with twins(tmp_path, handle_udp_amplification_max=20.0) as pair:
        answers = await pair.same(transport, [[frame] for frame in frames])
        assert pair.lane.hits >= len(frames) * (ROUNDS - 2)
        assert all(decode_message(only).response_code == 1 for (only,) in answers)
        page = pair.laned.observer.page().decode()
        total = f'front="handle-{transport}",operation="resolution",outcome="ok"}} '
        assert f"biaojie_requests_total{{{total}{float(len(frames) * ROUNDS)}" in page


@TRANSPORTS
@on_uvloop
async def test_what_must_never_enter_the_lane(tmp_path: Path, transport: Transport) -> None:
    frames = [
        *(ask(flags=FLAGS_DEFAULT | flag) for flag in (OpFlag.AUTHORITATIVE, OpFlag.CERTIFY)),
        *(ask(flags=FLAGS_DEFAULT | flag) for flag in (OpFlag.REQUEST_DIGEST, OpFlag.ENCRYPT)),
        ask(session_id=5),
        ask(token=b"a token"),
        ask(f"{PREFIX}/mixed"),
        ask(f"{PREFIX}/mixed", flags=OpFlag.RECURSIVE),
        ask(f"{PREFIX}/mixed", (1,), flags=OpFlag.RECURSIVE),
        ask(f"{PREFIX}/secret"),
        ask(f"{PREFIX}/ttl0"),
        ask(f"{PREFIX}/unknown"),
        ask(f"0.NA/{PREFIX}"),
        ask("0.NA/88.118.22"),
        ask("88.118.20/SN1"),
    ]
    async with twins(tmp_path) as pair:
        await pair.same(transport, [[frame] for frame in frames])
        assert (pair.lane.hits, len(pair.lane)) == (0, 0)


# How octets arrive ----------------------------------------------------------------------------


@on_uvloop
async def test_cut_at_every_octet(tmp_path: Path) -> None:
    frame = ask(token=b"")
    two = frame + changed(frame, 8, bytes((0, 0, 0, 9)))
    async with twins(tmp_path) as pair:
        await pair.same("tcp", [[frame]])
        await pair.same("tcp", [[two[:at], two[at:]] for at in range(1, len(two))], rounds=1)
        await pair.same("tcp", [[bytes((octet,)) for octet in two]], rounds=2)
        await pair.same("tcp", [[frame[:at]] for at in range(len(frame))], rounds=1)


@TRANSPORTS
@on_uvloop
async def test_mixtures(tmp_path: Path, transport: Transport) -> None:
    chance = random.Random(11)
    pool = [
        *(ask(f"{PREFIX}/{suffix}") for suffix in ("SN1", "many", "frozen", "ttl600", "l300")),
        *(ask(f"{PREFIX}/{suffix}") for suffix in ("mixed", "unknown", "l700")),
        ask(flags=OpFlag.REQUEST_DIGEST),
        ask("88.118.21/SN1"),
        encode_message(Message(OpCode.GET_SITE_INFO, HandleRequest("/"))),
    ]
    async with twins(tmp_path) as pair:
        await pair.same(transport, [[frame] for frame in pool])
        for size in (1, 2, 3, 10, 40, 64, 65, 130):
            frames = [
                changed(chance.choice(pool), 8, number.to_bytes(4, "big")) for number in range(size)
            ]
            if transport == "tcp":
                data = b"".join(frames)
                cuts = sorted(chance.sample(range(1, len(data)), min(size, 5)))
                edges = zip([0, *cuts], [*cuts, len(data)], strict=True)
                frames = [data[start:end] for start, end in edges]
            answers = await pair.same(transport, [frames], rounds=2)
            assert len(answers[0]) == size
        assert pair.lane.hits > 100


@on_uvloop
async def test_garbage_behind_what_the_lane_has(tmp_path: Path) -> None:
    frame = ask()
    async with twins(tmp_path) as pair:
        await pair.same("tcp", [[frame]])
        for rest in (b"\x01", b"GET / HTTP/1.1\r\n\r\n" * 2, changed(frame, 16, b"\xff" * 4)):
            await pair.same("tcp", [[frame + frame + rest]], rounds=2)


@on_uvloop
async def test_an_answer_that_nobody_takes(tmp_path: Path) -> None:
    """A peer that asks and does not read is read from no more, in the lane too."""
    frame = ask(f"{PREFIX}/l5000")
    async with twins(tmp_path) as pair:
        await pair.same("tcp", [[frame]])
        _, writer = await asyncio.open_connection("127.0.0.1", pair.laned.handle_port)
        hits = pair.lane.hits
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while pair.lane.hits - hits < 20_000:
                    writer.write(frame * 100)
                    await writer.drain()
        assert 100 < pair.lane.hits - hits < 20_000
        assert pair.laned.handle is not None
        assert pair.laned.handle.tcp.held_octets < 2**20
        writer.transport.abort()


@on_uvloop
async def test_fragments(tmp_path: Path) -> None:
    long = ask(f"{PREFIX}/SN1", tuple(range(200)), ("URL",))
    short = ask()
    pieces = split(long)
    assert len(pieces) > 1
    async with twins(tmp_path) as pair:
        await pair.same("udp", [pieces, pieces[::-1], [*pieces[:1], short, *pieces[1:]]])
        await pair.same("udp", [[changed(p, 2, b"\x02") for p in pieces]])
        await pair.same("udp", [[short + bytes(600)], [b""], [bytes(1)], [short[:43]]], rounds=2)


@on_uvloop
async def test_long_answers_are_cut_over_udp(tmp_path: Path) -> None:
    async with twins(tmp_path) as pair:
        frames = [ask(f"{PREFIX}/{suffix}") for suffix in ("l300", "l700", "l5000")]
        assert all(is_cut_form(only) for (only,) in await pair.same("udp", [[f] for f in frames]))
        await pair.same("tcp", [[frame] for frame in frames])  # now the lane has them
        assert len(pair.lane) == 3
        assert all(is_cut_form(only) for (only,) in await pair.same("udp", [[f] for f in frames]))
    async with twins(tmp_path / "more", handle_udp_amplification_max=100.0) as pair:
        answers = await pair.same("udp", [[frame] for frame in frames])
        assert [len(packets) for packets in answers] == [1, 2, 11]


@on_uvloop
async def test_beyond_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with twins(tmp_path, handle_udp_rate_max=10) as pair:
        await pair.same("tcp", [[ask()]])  # the lane has it
        now = time.monotonic()
        monkeypatch.setattr(udp, "time", SimpleNamespace(monotonic=lambda: now))
        packets = [changed(ask(), 8, number.to_bytes(4, "big")) for number in range(100)]
        (answers,) = await pair.same("udp", [packets], rounds=1)
        assert len(answers) == 10 + 45
        assert sum(map(is_cut_form, answers)) == 45
        for node in (pair.plain, pair.laned):
            assert node.handle is not None
            assert node.handle.udp.counts["handle_udp_limited"] == 90
        assert pair.lane.hits == 2 + 10


@on_uvloop
async def test_one_by_one_where_there_are_no_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmsg, "AVAILABLE", False)
    async with twins(tmp_path) as pair:
        await pair.same("udp", [[frame] for frame in (*versions(), *flags(), *lengths())])
        assert pair.lane.hits > 50


@on_uvloop
async def test_ipv6(tmp_path: Path) -> None:
    async with twins(tmp_path) as pair:
        for number in range(4):
            frame = ask(request_id=number)
            (expected,) = await datagrams(pair.plain, [frame], "::1")
            (got,) = await datagrams(pair.laned, [frame], "::1")
            assert_alike(got, expected)
        assert pair.lane.hits == 2


# Time and change ------------------------------------------------------------------------------


def _changes() -> dict[str, Any]:
    one = Identifier(PREFIX, "SN1")
    new = (value(1, "URL", "https://example.com/new"),)
    return {
        "modified": [Modify(one, set=new)],
        "added": [Modify(one, set=(value(2, "EMAIL", "a@example.com"),))],
        "hidden": [
            Modify(one, set=(value(5, "NOTE", "x", permissions=RECORDS["secret"][0].permissions),))
        ],
        "retired": [Retire(one)],
        "purged": [Purge(one)],
        "made anew": [Purge(one), Create(one, new)],
        "suspended": [ChangePrefix(PREFIX, status=PrefixStatus.SUSPENDED)],
        "delegated": [ChangePrefix(PREFIX, status=PrefixStatus.DELEGATED)],
        "unhomed": [ChangePrefix(PREFIX, status=PrefixStatus.UNHOMED)],
    }


@TRANSPORTS
@pytest.mark.parametrize("change", _changes())
@pytest.mark.parametrize("here", [True, False], ids=["here", "elsewhere"])
@on_uvloop
async def test_after_a_change(
    tmp_path: Path, transport: Transport, change: str, here: bool
) -> None:
    cases = [
        [ask()],
        [ask(flags=OpFlag.RECURSIVE)],
        [ask(f"{PREFIX}/sn1")],
        [ask(f"{PREFIX}/many")],
    ]
    async with twins(tmp_path, handle_udp_amplification_max=20.0) as pair:
        await pair.same(transport, cases)
        assert pair.lane.hits >= 8
        await pair.write(pair.laned if here else pair.plain, *_changes()[change])
        await pair.same(transport, cases)


@TRANSPORTS
@on_uvloop
async def test_while_the_registry_is_down(tmp_path: Path, transport: Transport) -> None:
    cases = [[ask()], [ask(f"{PREFIX}/many")], [ask(f"{PREFIX}/unknown")], [ask(f"{PREFIX}/ttl1")]]
    async with twins(tmp_path, handle_udp_amplification_max=20.0) as pair:
        await pair.same(transport, cases)
        hits = pair.lane.hits
        for node in (pair.plain, pair.laned):
            node.health.answered = lambda: None  # type: ignore[method-assign]
            node.health.failed("test")
        await pair.same(transport, [*cases, [ask(f"{PREFIX}/frozen")]])
        assert pair.lane.hits == hits
        for node in (pair.plain, pair.laned):
            del node.health.answered
            node.health.answered()
        await pair.same(transport, cases)
        assert pair.lane.hits > hits


@TRANSPORTS
@on_uvloop
async def test_answers_die_of_age(tmp_path: Path, transport: Transport) -> None:
    cases = [[ask(f"{PREFIX}/{suffix}")] for suffix in ("ttl1", "ttl600", "ttl-day", "ttl-far")]
    async with twins(tmp_path) as pair:
        await pair.same(transport, cases)
        await asyncio.sleep(1.2)
        await pair.same(transport, cases)
        hits = pair.lane.hits
        assert hits >= 6 * 2
        flags_ = [(await pair.ask(transport, pair.laned, case))[0][28] for case in cases]
        assert not any(octet & 0x80 for octet in flags_)


@on_uvloop
async def test_the_expiration_follows_the_clock(tmp_path: Path) -> None:
    """Of a record that may be kept for less than the least time, and of one for longer."""
    async with twins(tmp_path) as pair:
        for suffix in ("ttl600", "ttl-day", "ttl-two"):
            for _ in range(3):
                await pair.same("tcp", [[ask(f"{PREFIX}/{suffix}")]])
                await asyncio.sleep(0.7)


# Everything at once ---------------------------------------------------------------------------


def mutated(chance: random.Random, frame: bytes) -> bytes:
    octets = bytearray(frame)
    for _ in range(chance.choice((1, 1, 2, 4))):
        octets[chance.randrange(len(octets))] = chance.choice(
            (0, 1, 127, 255, chance.randrange(256))
        )
    if chance.random() < 0.2:
        del octets[chance.randrange(20, len(octets) + 1) :]
        octets[16:20] = (len(octets) - 20).to_bytes(4, "big")
    return bytes(octets)


@TRANSPORTS
@pytest.mark.parametrize("seed", [1, 2])
@on_uvloop
async def test_mutated_frames(tmp_path: Path, transport: Transport, seed: int) -> None:
    chance = random.Random(seed)
    seeds = [ask(), ask(f"{PREFIX}/many", (1,), ("URL.",)), ask(f"{PREFIX}/mixed"), ask(token=b"")]
    async with twins(tmp_path) as pair:
        await pair.same(transport, [[frame] for frame in seeds])
        cases = [[mutated(chance, chance.choice(seeds))] for _ in range(600)]
        await pair.same(transport, cases, rounds=3)
        assert pair.lane.hits > 100


# Sessions ---------------------------------------------------------------------------------------


@on_uvloop
async def test_a_login_without_a_number_leaves_the_lane(tmp_path: Path) -> None:
    async with twins(tmp_path) as pair:
        await pair.same("tcp", [[ask()]])
        hits = pair.lane.hits
        handle = pair.laned.handle
        assert handle is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.laned.handle_port)
        writer.write(ask())
        assert await reader.readexactly(20)
        assert pair.lane.hits == hits + 1
        (connection,) = handle.tcp.connections
        connection._peer.logged_in = True
        writer.write(ask() * 2)
        async with asyncio.timeout(5):
            await reader.read(2**16)
        assert pair.lane.hits == hits + 1
        writer.close()
