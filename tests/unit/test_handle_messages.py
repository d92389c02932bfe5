"""Versions, response codes, answers to requests, refusals, and the limits of the Handle codec."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from biaojie.errors import ERRORS, BiaojieError, Elsewhere, IdentifierNotFound, Internal
from biaojie.record import Reference, Value
from biaojie.wire.handle import (
    DATAGRAM_OCTETS_MAX,
    ENVELOPE_OCTETS,
    ERROR_CLASSES,
    MESSAGE_OCTETS_MAX,
    RESPONSE_CODES,
    Challenge,
    Credential,
    Digest,
    DigestAlgorithm,
    Done,
    Failure,
    HandleRequest,
    ListResponse,
    Message,
    Opaque,
    OpCode,
    OpFlag,
    Oversized,
    ResolveRequest,
    ResolveResponse,
    ResponseCode,
    SessionRequest,
    Version,
    answer_to,
    answer_version,
    decode_message,
    encode_message,
    error_of,
    lower,
    refusal,
    response_code_of,
)
from biaojie.wire.handle.cursor import u8, u16, u32

HANDLE = "88.118.8/SN1"
ASK = Message(OpCode.RESOLUTION, ResolveRequest(HANDLE), request_id=7)
DELETE = Message(OpCode.DELETE_HANDLE, HandleRequest(HANDLE), request_id=8)


# Versions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suggested", "answered"),
    [
        ((2, 1), (2, 1)),
        ((2, 9), (2, 9)),
        ((2, 11), (2, 11)),
        ((2, 12), (2, 11)),
        ((2, 255), (2, 11)),
        ((3, 0), (2, 11)),
        ((5, 0), (5, 0)),
        ((2, 0), (2, 0)),
    ],
)
def test_answers_come_in_the_suggested_version_as_far_as_we_speak_it(
    suggested: tuple[int, int], answered: tuple[int, int]
) -> None:
    assert answer_version(Version(*suggested)) == answered
    request = replace(ASK, suggested=Version(*suggested))
    answer = answer_to(request, Done())
    assert (answer.version, answer.suggested) == (answered, (2, 11))


def test_five_is_less_than_two() -> None:
    old = Version(5, 0)
    assert not old.reaches((2, 1))
    assert old.reaches((5, 0))
    assert Version(2, 1).reaches(old)
    assert lower(old, Version(2, 1)) == lower(Version(2, 1), old) == old
    assert Version(3, 0).reaches((2, 11))
    assert not Version(2, 9).reaches((2, 10))
    assert str(Version(2, 10)) == "2.10"


@pytest.mark.parametrize(
    ("code", "version", "written"),
    [
        (ResponseCode.INVALID_VALUE, (2, 4), 201),
        (ResponseCode.INVALID_VALUE, (2, 5), 202),
        (ResponseCode.INVALID_VALUE, (5, 0), 201),
        (ResponseCode.SERVER_BACKUP, (2, 4), 303),
        (ResponseCode.SERVER_BACKUP, (2, 5), 7),
        (ResponseCode.VALUE_ALREADY_EXISTS, (2, 4), 201),
        (ResponseCode.HANDLE_NOT_FOUND, (2, 1), 100),
    ],
)
def test_response_codes_that_old_clients_lack(
    code: ResponseCode, version: tuple[int, int], written: int
) -> None:
    answer = answer_to(replace(ASK, suggested=Version(*version)), Failure("no"), code)
    frame = encode_message(answer)
    assert int.from_bytes(frame[24:28], "big") == written
    assert decode_message(frame).body == Failure("no")


# Errors ---------------------------------------------------------------------------------


def test_every_error_has_a_response_code_and_back() -> None:
    assert RESPONSE_CODES.keys() == ERRORS.keys()
    for code, cls in ERRORS.items():
        response_code = response_code_of(cls())
        assert response_code not in {ResponseCode.REQUEST, ResponseCode.SUCCESS}
        back = error_of(response_code)
        assert isinstance(back, BiaojieError)
        # what may be tried again says so on both sides
        assert not cls.retryable or back.retryable or code == "identifier-retired"
    assert ERROR_CLASSES.keys() == set(ResponseCode) - {0, 1}


def test_a_node_in_trouble_never_says_not_found() -> None:
    absent = {code for code, number in RESPONSE_CODES.items() if number == 100}
    assert absent == {"identifier-not-found", "identifier-retired", "not-found"}
    assert response_code_of(Elsewhere()) == ResponseCode.SERVICE_REFERRAL


@pytest.mark.parametrize("number", [100, 603, 301, 2])
def test_an_error_tells_the_number_and_the_text(number: int) -> None:
    error = error_of(number, "标识 gone" * 200)
    assert error.fields["response_code"] == number
    assert str(number) in error.detail.en
    assert str(number) in error.detail.zh
    assert "标识 gone" in error.detail.zh
    assert len(error.detail.en) < 700


def test_an_unknown_response_code_is_internal() -> None:
    for number in (777, 0, 1, 2**32 - 1):
        assert type(error_of(number)) is Internal
    assert type(error_of(100)) is IdentifierNotFound


# Answers --------------------------------------------------------------------------------


def test_an_answer_echoes_the_request() -> None:
    request = replace(
        ASK,
        flags=OpFlag.RECURSIVE | OpFlag.PUBLIC_ONLY,
        session_id=3,
        recursion_count=2,
        expiration=1_800_000_000,
        site_serial=4,
    )
    answer = answer_to(
        decode_message(encode_message(request)), Done(), flags=OpFlag.AUTHORITATIVE, site_serial=9
    )
    assert (answer.request_id, answer.session_id, answer.opcode) == (7, 3, 1)
    assert (answer.recursion_count, answer.expiration, answer.site_serial) == (2, 1_800_000_000, 9)
    assert answer.has(OpFlag.AUTHORITATIVE)
    assert answer.has(OpFlag.RECURSIVE)
    assert not answer.has(OpFlag.CERTIFY)
    assert answer.digest is None
    assert not answer.is_request


@pytest.mark.parametrize(
    ("version", "algorithm", "size"),
    [
        ((2, 1), DigestAlgorithm.SHA1, 20),
        ((2, 6), DigestAlgorithm.SHA1, 20),
        ((2, 7), DigestAlgorithm.SHA256, 32),
        ((2, 11), DigestAlgorithm.SHA256, 32),
        ((2, 0), DigestAlgorithm.LEGACY, 16),
        ((5, 0), DigestAlgorithm.LEGACY, 16),
    ],
)
def test_a_challenge_always_names_its_request(
    version: tuple[int, int], algorithm: int, size: int
) -> None:
    request = decode_message(
        encode_message(replace(ASK, version=Version(*version), suggested=Version(*version)))
    )
    answer = answer_to(request, Challenge(b"n" * 16), ResponseCode.AUTHENTICATION_NEEDED)
    got = decode_message(encode_message(answer))
    assert got.digest is not None
    assert got.digest.algorithm == algorithm
    assert len(got.digest.octets) == size
    assert got.digest.matches(request.header_and_body())
    assert got.body == Challenge(b"n" * 16)


def test_a_digest_goes_along_when_asked_for() -> None:
    request = decode_message(encode_message(replace(DELETE, flags=OpFlag.REQUEST_DIGEST)))
    answer = decode_message(encode_message(answer_to(request, Done())))
    assert answer.digest is not None
    assert answer.digest.matches(request.header_and_body())
    chosen = Digest.of(b"x", DigestAlgorithm.MD5)
    assert answer_to(request, Done(), digest=chosen).digest == chosen


def test_no_flag_without_a_digest() -> None:
    answer = replace(answer_to(DELETE, Done()), flags=OpFlag.REQUEST_DIGEST)
    assert not decode_message(encode_message(answer)).has(OpFlag.REQUEST_DIGEST)


def test_digests_compare_octets_of_any_length() -> None:
    assert not Digest(0, b"").matches(b"")
    assert not Digest(2, b"x").matches(b"x")
    assert Digest.of(b"x").matches(b"x")


# Refusals -------------------------------------------------------------------------------


def test_a_refusal_echoes_what_can_be_read() -> None:
    frame = encode_message(replace(ASK, session_id=5))
    for broken in (frame[:-1], frame[:40] + b"\xff" * 4 + frame[44:], frame + b"??"):
        reply = refusal(broken, ResponseCode.PROTOCOL_ERROR, "坏" * 1_000)
        assert reply is not None
        assert len(reply) <= DATAGRAM_OCTETS_MAX
        message = decode_message(reply)
        assert (message.request_id, message.session_id, message.opcode) == (7, 5, 1)
        assert message.response_code == ResponseCode.PROTOCOL_ERROR
        assert isinstance(message.body, Failure)
        assert message.body.message.startswith("坏坏")


def test_a_refusal_of_an_envelope_alone() -> None:
    reply = refusal(encode_message(ASK)[:ENVELOPE_OCTETS], ResponseCode.PROTOCOL_ERROR)
    assert reply is not None
    assert (decode_message(reply).opcode, decode_message(reply).request_id) == (0, 7)


def test_nothing_to_refuse() -> None:
    assert refusal(b"", 4) is None
    assert refusal(b"\2\13" + bytes(17), 4) is None
    assert refusal(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 4) is None
    answer = encode_message(answer_to(ASK, Failure("no"), ResponseCode.ERROR))
    assert refusal(answer, 4) is None, "an error about an error would never end"


# Limits ---------------------------------------------------------------------------------


def test_a_message_over_the_limit_is_not_sent() -> None:
    values = tuple(Value(index, "T", bytes(60_000)) for index in range(1, 6))
    with pytest.raises(Oversized):
        encode_message(answer_to(ASK, ResolveResponse(HANDLE, values)))
    frame = encode_message(answer_to(DELETE, Opaque(bytes(MESSAGE_OCTETS_MAX - 28))))
    assert len(frame) == MESSAGE_OCTETS_MAX + ENVELOPE_OCTETS
    assert len(decode_message(frame).received) == MESSAGE_OCTETS_MAX - 4


@pytest.mark.parametrize(
    "message",
    [
        replace(ASK, request_id=2**32),
        replace(ASK, request_id=-1),
        replace(ASK, session_id=2**32),
        replace(ASK, recursion_count=256),
        replace(ASK, site_serial=65_536),
        replace(ASK, flags=2**32),
        replace(ASK, opcode=-1),
        replace(ASK, version=Version(2, 256)),
        replace(ASK, suggested=Version(32, 0)),
        replace(ASK, body=ResolveRequest(HANDLE, indexes=(-1,))),
        replace(ASK, body=ResolveRequest("\ud800")),
        replace(ASK, body=SessionRequest(3, 60, Reference("a", 1))),
        replace(ASK, body=SessionRequest(65_536, 60, Reference("a", 1))),
        replace(ASK, credential=Credential("HS_MAC", "x", b"", counter=2**32)),
    ],
)
def test_what_does_not_fit_is_a_value_error(message: Message) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 — any text will do
        encode_message(message)


@pytest.mark.parametrize(("write", "most"), [(u8, 0xFF), (u16, 0xFFFF), (u32, 0xFFFF_FFFF)])
def test_numbers_fit_their_octets(write: object, most: int) -> None:
    assert callable(write)
    assert int.from_bytes(write(most), "big") == most
    for wrong in (-1, most + 1):
        with pytest.raises(ValueError, match="does not fit"):
            write(wrong)


def test_flags_of_strangers_are_not_remembered() -> None:
    frame = bytearray(encode_message(ASK))
    frame[28:32] = b"\x12\x34\x56\x78"
    message = decode_message(bytes(frame))
    assert type(message.flags) is int
    assert type(message.opcode) is int
    assert message.flags == 0x12345678


def test_an_error_text_in_another_encoding_does_not_hide_the_code() -> None:
    frame = bytearray(encode_message(answer_to(ASK, Failure("abcd"), ResponseCode.ERROR)))
    frame[48:52] = "标识".encode("gbk")
    message = decode_message(bytes(frame))
    assert message.response_code == ResponseCode.ERROR
    assert isinstance(message.body, Failure)
    assert len(message.body.message) >= 2


def test_long_lists() -> None:
    handles = tuple(f"88.118.8/{number}" for number in range(10_000))
    answer = answer_to(replace(ASK, opcode=OpCode.LIST_HANDLES), ListResponse(handles))
    assert decode_message(encode_message(answer)).body == ListResponse(handles)


def test_a_handle_request_is_enough_for_many() -> None:
    request = Message(OpCode.HOME_PREFIX, HandleRequest("0.NA/88.118.9"))
    assert decode_message(encode_message(request)) == request


def test_the_codec_loads_no_network() -> None:
    code = (
        "import sys, biaojie.wire.handle;"
        "print({'aiohttp', 'asyncio', 'ssl', 'socket', 'cryptography'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "set()"
