"""The generator's own codecs against the library's, and the judge of answers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bench.checking import STALE_S, Acknowledged, Checker
from bench.fronts import ABSENT, CUT, RECORD, Answer, StreamWire
from bench.fronts.handle import HandleTcpWire, HandleUdpWire
from bench.fronts.http import HttpWire
from bench.fronts.native import NativeWire
from bench.names import OwnNames
from bench.schedule import KINDS
from biaojie.identifier import Identifier
from biaojie.record import Record, Value
from biaojie.wire.handle import (
    FLAGS_DEFAULT,
    Failure,
    Message,
    OpCode,
    OpFlag,
    ResolveRequest,
    ResolveResponse,
    ResponseCode,
    answer_to,
    decode_message,
    encode_message,
    split,
)
from biaojie.wire.native.frames import Kind, encode_frame, encode_resolve
from biaojie.wire.native.shapes import pack
from biaojie.wire.native.values import encode_record
from tests.bench_servers import Script, http_reply

NAMES = OwnNames("88.118.8", 100)
HIT, MISS, UNKNOWN = (KINDS.index(kind) for kind in ("hit", "miss", "unknown"))


def record(number: int, generation: int = 0) -> Record:
    prefix, _, suffix = NAMES.name(number).partition("/")
    values = (Value(1, "URL", NAMES.data(number, generation)),)
    return Record(Identifier(prefix, suffix), values)


def handle_answer(number: int, id_: int, octets: int = 0) -> bytes:
    values = (*record(number).values, *([Value(2, "FILL", bytes(octets))] if octets else []))
    asked = decode_message(HandleTcpWire().question(id_, NAMES.name(number), False))
    return encode_message(answer_to(asked, ResolveResponse(NAMES.name(number), values)))


def native_answer(number: int, id_: int) -> bytes:
    times = b"\xce\0\0\0\1\xce\0\0\0\2\1"
    return encode_frame(id_, Kind.ANSWER, b"\x94" + times + pack(encode_record(record(number))))


@pytest.mark.parametrize("authoritative", [False, True])
def test_handle_questions_are_those_of_the_library(authoritative: bool) -> None:
    flags = FLAGS_DEFAULT | OpFlag.KEEP_CONNECTION
    if authoritative:
        flags |= OpFlag.AUTHORITATIVE
    for name in ("88.118.8/SN1", "88.118.8/编号-" + "x" * 80):
        message = Message(OpCode.RESOLUTION, ResolveRequest(name), flags=flags, request_id=77)
        assert HandleTcpWire().question(77, name, authoritative) == encode_message(message)


def test_native_questions_are_those_of_the_library() -> None:
    assert NativeWire().question(77, "88.118.8/SN1", False) == encode_resolve(77, "88.118.8/SN1")


def test_http_questions() -> None:
    wire = HttpWire("127.0.0.1:80", "/node/")
    assert wire.question(0, "88.118/a b", True).startswith(
        b"GET /node/api/v1/identifiers/88.118/a%20b?auth=1 HTTP/1.1\r\nHost: 127.0.0.1:80\r\n"
    )
    assert wire.question(0, "88.118/SN-1", False).startswith(
        b"GET /node/api/v1/identifiers/88.118/SN-1 HTTP/1.1\r\n"
    )


STREAMS: list[tuple[StreamWire, list[bytes]]] = [
    (HandleTcpWire(), [handle_answer(n, n + 1) for n in range(3)]),
    (NativeWire(), [native_answer(n, n + 1) for n in range(3)]),
    (HttpWire("h"), [http_reply(Script(NAMES), NAMES.name(n)) for n in range(3)]),
]


@pytest.mark.parametrize(("wire", "replies"), STREAMS)
def test_answers_in_any_split(wire: StreamWire, replies: list[bytes]) -> None:
    stream = b"".join(replies)
    for size in (1, 7, 60, len(stream)):
        buffer = bytearray()
        answers: list[Answer] = []
        for start in range(0, len(stream), size):
            buffer += stream[start : start + size]
            answers += wire.answers(buffer)
        assert not buffer
        assert [answer.code for answer in answers] == [RECORD] * 3
        if not wire.ordered:
            assert [answer.id for answer in answers] == [1, 2, 3]
        for number, answer in enumerate(answers):
            assert NAMES.generation_of(number, wire.found(answer.body)) == 0
            assert NAMES.generation_of(number + 1, wire.found(answer.body)) is None


def test_other_answers() -> None:
    asked = decode_message(HandleTcpWire().question(5, "88.118.8/x", False))
    for response, code in (
        (ResponseCode.HANDLE_NOT_FOUND, ABSENT),
        (ResponseCode.SERVER_BUSY, "over-capacity"),
        (ResponseCode.INVALID_HANDLE, "invalid-identifier"),
    ):
        frame = encode_message(answer_to(asked, Failure("no"), response))
        assert HandleTcpWire().answers(bytearray(frame))[0][:2] == (5, code)
    error = encode_frame(9, Kind.ERROR, pack(["over-capacity", "en", "zh", {}, ""]))
    assert NativeWire().answers(bytearray(error))[0][:2] == (9, "over-capacity")


def test_datagrams_whole_in_fragments_and_cut() -> None:
    wire = HandleUdpWire()
    whole = wire.answer(handle_answer(1, 7))
    assert whole is not None
    assert (whole.id, whole.code) == (7, RECORD)
    packets = split(handle_answer(1, 8, octets=900))
    assert len(packets) > 1
    answers = [wire.answer(packet) for packet in reversed(packets)]
    assert answers[:-1] == [None] * (len(packets) - 1)
    assert answers[-1] is not None
    assert answers[-1].id == 8
    assert len(wire.found(answers[-1].body)[1]) == 2
    short = handle_answer(1, 9)
    cut = wire.answer(short[:2] + bytes((short[2] | 0x20,)) + short[3:])
    assert cut is not None
    assert cut[:2] == (9, CUT)
    assert wire.answer(b"") is None
    assert wire.answer(bytes(60)) is None


@pytest.mark.parametrize("wire", [HandleTcpWire(), NativeWire(), HttpWire("h")])
def test_what_is_no_such_stream(wire: StreamWire) -> None:
    with pytest.raises(ValueError, match="no "):
        wire.answers(bytearray(b"\xff" * 100_000))


# Judging --------------------------------------------------------------------------------


def body(number: int, generation: int = 0) -> Answer:
    return Answer(1, RECORD, pack(encode_record(record(number, generation))), "")


def test_right_and_wrong_answers() -> None:
    checker = Checker(NAMES, NativeWire())
    absent = Answer(1, ABSENT, b"", "")
    for _ in range(2):
        assert checker.fault(HIT, 3, 0, body(3)) is None
    assert checker.decoded == 1
    assert checker.fault(UNKNOWN, 3, 0, absent) is None
    for kind, number, answer in (
        (HIT, 3, body(4)),
        (MISS, 4, body(3)),
        (HIT, 3, absent),
        (HIT, 3, Answer(1, RECORD, b"\xc1", "")),
        (UNKNOWN, 3, body(3)),
    ):
        fault = checker.fault(kind, number, 0, answer)
        assert fault
        shown = NAMES.unknown(number) if kind == UNKNOWN else NAMES.name(number)
        assert shown in fault
    assert checker.fault(HIT, 3, 0, body(3)) is None


def test_what_is_older_than_an_acknowledged_change_is_wrong_after_a_second() -> None:
    acknowledged, path = Acknowledged.create([3, 5])
    try:
        reader = Acknowledged.open(path, [3, 5])
    finally:
        path.unlink()
    checker = Checker(NAMES, NativeWire(), reader)
    now = time.monotonic()
    assert checker.fault(HIT, 5, now, body(5)) is None  # octets known from now on
    acknowledged.note(5, 10, now)
    for sent, generation, right in (
        (now + STALE_S * 0.9, 0, True),
        (now + STALE_S * 1.1, 0, False),
        (now + STALE_S * 1.1, 10, True),
        (now + STALE_S * 1.1, 11, True),  # written, not acknowledged yet
    ):
        assert (checker.fault(HIT, 5, sent, body(5, generation)) is None) is right
    acknowledged.note(5, 20, now + 3)
    assert checker.fault(HIT, 5, now + 3.5, body(5, 10)) is None
    assert checker.fault(HIT, 5, now + 3.5, body(5, 0)) is not None
    assert checker.fault(HIT, 5, now + 4.5, body(5, 10)) is not None
    assert checker.fault(HIT, 3, now + 9, body(3)) is None
    assert Path(path).exists() is False
