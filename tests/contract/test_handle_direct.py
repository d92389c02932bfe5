"""A write in a proved session that is answered by a call is answered as the ordinary path would,
octet by octet; what is not for certain one of those goes the ordinary way, unchanged."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from biaojie.account import PrefixStatus
from biaojie.errors import TemporarilyUnavailable
from biaojie.wire.handle import (
    FLAGS_DEFAULT,
    KeyExchange,
    Message,
    OpCode,
    OpFlag,
    RemoveRequest,
    ResponseCode,
    ValuesRequest,
    Version,
    decode_message,
    encode_message,
)
from biaojie.wire.handle.framing import whole_until
from registry.operations import ChangePrefix, Create, HomePrefix, Retire
from resolver.front.handle.server import HandleFront
from resolver.front.handle.work import HandleLimits
from resolver.handle.peer import Peer
from resolver.handle.sessions import Session
from tests.contract.handle_lanes import assert_alike
from tests.core_parts import GatedStore, identifier, write
from tests.handle_sessions import Clock, Within, open_session
from tests.handle_talk import (
    PREFIX,
    Desk,
    about,
    create,
    desk,
    request,
    resolve,
    text_value,
)

WAIT_S = 10.0
AWAY = "88.118.22"
"""A prefix that others answer for."""
SN1 = f"{PREFIX}/SN1"


@dataclass
class Pair:
    """Two desks that know the same, and the same proved session at both."""

    plain: Desk
    direct: Desk
    session: Within
    peer: Peer

    def frame(self, message: Message, counter: int | None = None) -> bytes:
        return encode_message(self.session.mac(message, counter))

    async def ordinary(self, frame: bytes) -> bytes:
        (answer,) = [one async for one in self.plain.operations.answer(frame, self.peer)]
        return answer

    async def called(self, frame: bytes) -> bytes | None:
        """None where it is not for those that are answered by a call."""
        writes = self.direct.operations.direct
        asked = writes.read(frame, self.peer)
        if asked is None:
            return None
        answers: asyncio.Queue[bytes | None] = asyncio.Queue()
        writes.begin(asked, answers.put_nowait)
        async with asyncio.timeout(WAIT_S):
            answer = await answers.get()
        assert answer is not None
        return answer

    async def same(self, message: Message) -> Message:
        frame = self.frame(message)
        expected, got = await self.ordinary(frame), await self.called(frame)
        assert got is not None, "else the ordinary path is compared with itself"
        assert_alike(got, expected, str(message))
        return decode_message(got)

    def tallied(self) -> list[dict[str, float]]:
        """What the nodes counted, of requests in this session."""
        counted = []
        for each in (self.plain, self.direct):
            lines = each.operations._observer.page().decode().splitlines()
            named = (line.rpartition(" ") for line in lines)
            wanted = 'biaojie_requests_total{front="handle-tcp"'
            counted.append({n: float(c) for n, _, c in named if n.startswith(wanted)})
        return counted


@asynccontextmanager
async def two(data_dir: Path, clock: Clock, stores: tuple[object, object]) -> AsyncIterator[Pair]:
    async with (
        desk(data_dir, stores[0], clock=clock) as plain,
        desk(data_dir, stores[1], clock=clock) as direct,
    ):
        for each in (plain, direct):
            for operation in (
                Create(identifier("gone"), (text_value(),)),
                Retire(identifier("gone")),
                HomePrefix(AWAY, "acme"),
                ChangePrefix(AWAY, status=PrefixStatus.REFERRED),
                HomePrefix("10.5", "beta"),
                HomePrefix("88.118.9", "acme"),
                ChangePrefix("88.118.9", status=PrefixStatus.SUSPENDED),
            ):
                (await write(each.parts.registrar, operation)).single()
        session = await open_session(plain, KeyExchange.DIFFIE_HELLMAN)
        await session.prove()
        await write(
            direct.parts.registrar, Create(identifier(f"IN{session.number}"), (text_value(),))
        )
        known = plain.operations.sessions.find(None, session.number)
        assert known is not None
        other = direct.operations.sessions.open(
            None, session.number, known.address, known.version, 0
        )
        copied(known, other)
        yield Pair(plain, direct, session, plain.peer())


def copied(known: Session, other: Session) -> None:
    assert known.proof is not None
    other.key, other.identity, other.proof = known.key, known.identity, replace(known.proof)
    for counter in range(1, known.counters._highest + 1):
        other.counters.take(counter)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def pair(tmp_path: Path, clock: Clock) -> AsyncIterator[Pair]:
    async with two(tmp_path, clock, (None, None)) as made:
        yield made


def values(handle: str, *indexes: int) -> ValuesRequest:
    return ValuesRequest(handle, tuple(text_value(index) for index in indexes))


# The same octets ----------------------------------------------------------------------------


async def test_each_write_and_each_refusal(pair: Pair) -> None:
    overwrite = FLAGS_DEFAULT | OpFlag.OVERWRITE
    stay = FLAGS_DEFAULT | OpFlag.DO_NOT_REFER
    new, seven = f"{PREFIX}/NEW", Version(2, 10)
    S, code = OpCode, ResponseCode
    cases = [
        (create(new), code.SUCCESS),
        (create(new), code.HANDLE_ALREADY_EXISTS),
        (create(f"{PREFIX}/零件"), code.SUCCESS),
        (create(f"{PREFIX}/old", suggested=seven, version=seven), code.SUCCESS),
        (create(f"{PREFIX}/gone"), code.HANDLE_ALREADY_EXISTS),
        (create(new, flags=overwrite), code.SUCCESS),
        (create(f"{PREFIX}/put", flags=overwrite), code.SUCCESS),
        (create(f"{PREFIX}/bad", text_value(1), text_value(1)), None),
        (create("10.5/no"), None),
        (create("10.6/none"), None),
        (create("88.118.9/no"), None),
        (create(f"{AWAY}/no"), None),
        (create(f"{AWAY}/no", flags=stay), None),
        (create(""), None),
        (create("/"), None),
        (create(f"{PREFIX}/" + "x" * 2000), None),
        (request(S.ADD_VALUE, values(SN1, 2, 3)), code.SUCCESS),
        (request(S.ADD_VALUE, values(SN1, 2)), None),
        (request(S.ADD_VALUE, values(SN1, 2), flags=overwrite), code.SUCCESS),
        (request(S.ADD_VALUE, ValuesRequest(SN1, ())), None),
        (request(S.MODIFY_VALUE, values(SN1, 3)), code.SUCCESS),
        (request(S.MODIFY_VALUE, values(SN1, 77)), None),
        (request(S.MODIFY_VALUE, ValuesRequest(SN1, ())), None),
        (request(S.REMOVE_VALUE, RemoveRequest(SN1, (2, 2, 3))), code.SUCCESS),
        (request(S.REMOVE_VALUE, RemoveRequest(SN1, ())), None),
        (request(S.REMOVE_VALUE, RemoveRequest(f"{PREFIX}/no", (1,))), code.HANDLE_NOT_FOUND),
        (about(S.DELETE_HANDLE, SN1), code.SUCCESS),
        (about(S.DELETE_HANDLE, SN1), code.HANDLE_NOT_FOUND),
        (about(S.UNHOME_PREFIX, "0.NA/10.5"), None),
        (about(S.UNHOME_PREFIX, SN1), None),
        (about(S.UNHOME_PREFIX, f"0.NA/{PREFIX}"), None),
    ]
    given = []
    for message, expected in cases:
        answer = await pair.same(message)
        given.append(answer.response_code)
        assert expected in (None, answer.response_code), (message, answer)
    assert len(set(given)) >= 8, given
    plain, direct = pair.tallied()
    assert {n: c - plain.get(n, 0) for n, c in direct.items()} == dict.fromkeys(direct, 0)


async def test_a_minted_name(pair: Pair) -> None:
    frame = pair.frame(create(f"{PREFIX}/M-", flags=FLAGS_DEFAULT | OpFlag.MINT_SUFFIX))
    one, other = await pair.ordinary(frame), await pair.called(frame)
    assert other is not None
    assert len(one) == len(other)
    body = decode_message(other).body
    assert body.handle.startswith(f"{PREFIX}/M-")  # type: ignore[attr-defined]


async def test_while_the_registry_cannot_be_written_to(tmp_path: Path, clock: Clock) -> None:
    stores = (GatedStore(), GatedStore())
    async with two(tmp_path, clock, stores) as pair:
        for store in stores:
            store.errors["commit"] = TemporarilyUnavailable()
        answer = await pair.same(create(f"{PREFIX}/NEW"))
        assert answer.response_code == ResponseCode.SERVER_BUSY


# What goes the ordinary way, and that nothing is lost by it ------------------------------------


Spoil = Callable[[Pair, Clock], bytes]


def flagged(flag: OpFlag) -> Spoil:
    return lambda pair, _: pair.frame(create(f"{PREFIX}/X", flags=FLAGS_DEFAULT | flag))


def wrong_mac(pair: Pair, _: Clock) -> bytes:
    frame = pair.frame(create(f"{PREFIX}/X"))
    return frame[:-1] + bytes((frame[-1] ^ 1,))


def other_body(pair: Pair, _: Clock) -> bytes:
    frame = pair.frame(create(f"{PREFIX}/X"))
    at = frame.index(b"/X")
    return frame[: at + 1] + b"Y" + frame[at + 2 :]


def other_octet(at: int) -> Spoil:
    def spoil(pair: Pair, _: Clock) -> bytes:
        frame = pair.frame(create(f"{PREFIX}/X"))
        return frame[:at] + bytes((frame[at] ^ 1,)) + frame[at + 1 :]

    return spoil


def without_mac(pair: Pair, _: Clock) -> bytes:
    frame = pair.frame(create(f"{PREFIX}/X"))
    end = 44 + int.from_bytes(frame[40:44], "big")
    return frame[:16] + (end - 16).to_bytes(4, "big") + frame[20:end] + bytes(4)


def before_2_8(pair: Pair, _: Clock) -> bytes:
    pair.session.version = Version(2, 7)
    return pair.frame(create(f"{PREFIX}/X", suggested=Version(2, 7)))


def long_ago(pair: Pair, clock: Clock) -> bytes:
    clock.now += 3
    return pair.frame(create(f"{PREFIX}/X"))


def no_such_session(pair: Pair, _: Clock) -> bytes:
    pair.session.number ^= 1
    return pair.frame(create(f"{PREFIX}/X"))


@pytest.mark.parametrize(
    "spoil",
    [
        flagged(OpFlag.REQUEST_DIGEST),
        flagged(OpFlag.CERTIFY),
        flagged(OpFlag.ENCRYPT),
        flagged(OpFlag.CONTINUOUS),
        wrong_mac,
        other_body,
        *(other_octet(at) for at in (3, 7, 11, 31, 35, 39, 43)),
        without_mac,
        before_2_8,
        long_ago,
        no_such_session,
        lambda pair, _: pair.frame(create(f"{PREFIX}/X"), 0),
        lambda pair, _: pair.frame(resolve(SN1)),
        lambda pair, _: pair.frame(about(OpCode.HOME_PREFIX, f"0.NA/{PREFIX}.1")),
        lambda pair, _: pair.frame(about(OpCode.LIST_HANDLES, f"0.NA/{PREFIX}")),
        lambda pair, _: pair.frame(replace(create(SN1), response_code=1)),
    ],
)
async def test_what_is_not_for_certain_goes_the_ordinary_way(
    pair: Pair, clock: Clock, spoil: Spoil
) -> None:
    frame = spoil(pair, clock)
    session = pair.direct.operations.sessions.find(None, pair.session.number)
    seen = None if session is None else session.counters._seen
    assert await pair.called(frame) is None
    assert seen == (None if session is None else session.counters._seen)


async def test_each_counts_once_whichever_way_it_went(pair: Pair) -> None:
    frame = pair.frame(create(f"{PREFIX}/ONE"))
    first = await pair.called(frame)
    assert first is not None
    assert decode_message(first).response_code == ResponseCode.SUCCESS
    assert await pair.called(frame) is None
    (again,) = [one async for one in pair.direct.operations.answer(frame, pair.peer)]
    assert decode_message(again).response_code == ResponseCode.SESSION_MESSAGE_REJECTED


async def test_every_cut_of_a_message_goes_the_ordinary_way(pair: Pair) -> None:
    frame = pair.frame(create(f"{PREFIX}/CUT"))
    for length in range(len(frame)):
        cut = frame[:length]
        assert whole_until(cut, 0) == 0
        assert pair.direct.operations.direct.read(cut, pair.peer) is None, length
        if length >= 20:
            whole = cut[:16] + (length - 20).to_bytes(4, "big") + cut[20:]
            assert pair.direct.operations.direct.read(whole, pair.peer) is None, length
    assert await pair.called(frame) is not None


# On a connection ----------------------------------------------------------------------------


@asynccontextmanager
async def served(pair: Pair, **limits: int) -> AsyncIterator[tuple[HandleFront, int]]:
    operations = pair.direct.operations
    front = HandleFront(operations, HandleLimits(**limits), direct=operations.direct)
    port = await front.start("127.0.0.1", 0)
    try:
        yield front, port
    finally:
        await front.stop(1.0)


async def test_many_in_one_piece_and_octet_by_octet(pair: Pair) -> None:
    frames = [pair.frame(create(f"{PREFIX}/P{n}")) for n in range(40)]
    async with served(pair, handle_pipeline_max=8) as (front, port), asyncio.timeout(WAIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"".join(frames[:39]))
        for octet in frames[39]:
            writer.write(bytes((octet,)))
            await writer.drain()
        writer.write_eof()
        data = await reader.read(2**20)
        while part := await reader.read(2**20):
            data += part
        writer.close()
        codes = []
        at = 0
        while end := whole_until(data, at):
            codes.append(decode_message(data[at:end]).response_code)
            at = end
        assert codes == [ResponseCode.SUCCESS] * 40
        assert front.gate.running == 0


async def test_who_hangs_up_is_no_longer_worked_for(tmp_path: Path, clock: Clock) -> None:
    stores = (GatedStore(), GatedStore())
    async with two(tmp_path, clock, stores) as pair, served(pair) as (front, port):
        stores[1].close_gate("transaction")
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(WAIT_S):
            writer.write(pair.frame(create(f"{PREFIX}/BEGUN")))
            await stores[1].reached("transaction")
            writer.write(pair.frame(create(f"{PREFIX}/NEVER")))
            while front.gate.running < 2:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)
            line = writer.get_extra_info("socket")
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            while front.gate.running:  # noqa: ASYNC110
                await asyncio.sleep(0)
        stores[1].open_gate("transaction")
        (await write(pair.direct.parts.registrar, Create(identifier("AFTER"), ()))).single()
        found = await pair.direct.parts.store.look_up([identifier(n).key() for n in ("NEVER",)])
        assert [one.record for one in found] == [None]


async def test_its_time_is_up(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = (GatedStore(), GatedStore())
    async with two(tmp_path, clock, stores) as pair:
        monkeypatch.setattr(pair.direct.operations.direct._later, "_deadline_s", 0.05)
        stores[1].close_gate("transaction")
        answer = await pair.called(pair.frame(create(f"{PREFIX}/LATE")))
        assert answer is not None
        assert decode_message(answer).response_code == ResponseCode.SERVER_BUSY
        stores[1].open_gate("transaction")
