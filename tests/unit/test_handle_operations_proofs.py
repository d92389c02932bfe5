"""Challenges: who is believed, once, within a minute; and octets that are no request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from biaojie.record import Reference, Value
from biaojie.wire.handle import (
    AnswerForm,
    AnswerRequest,
    Failure,
    Message,
    OpCode,
    OpFlag,
    ResolveRequest,
    ResponseCode,
    Version,
    decode_message,
    encode_message,
)
from registry.operations import Create, Modify
from resolver.handle.peer import Peer
from tests.core_parts import identifier, write
from tests.handle_sessions import SM2, SM2KEY, SN1, Clock, clock, here
from tests.handle_talk import (
    ADMIN,
    PREFIX,
    PRIVATE,
    PUBKEY,
    RSA,
    SECKEY,
    Desk,
    about,
    create,
    proof,
    request,
    resolve,
    text_value,
)

__all__ = ["clock", "here"]


# Challenges -----------------------------------------------------------------------------


async def test_a_challenge_is_answered_from_any_connection(here: Desk) -> None:
    challenged = await here.talk().answer(create(f"{PREFIX}/C"))
    assert challenged.session_id
    assert challenged.digest is not None
    made = await here.talk().answer(proof(challenged))
    assert (made.opcode, made.response_code) == (OpCode.CREATE_HANDLE, ResponseCode.SUCCESS)
    assert made.session_id == 0  # as the request that was challenged


async def test_a_challenge_is_answered_once(here: Desk) -> None:
    talk = here.talk()
    challenged = await talk.answer(create(f"{PREFIX}/C"))
    sent = proof(challenged)
    assert await talk.code(sent) == ResponseCode.SUCCESS
    for again in (sent, proof(challenged), replace(sent, request_id=sent.request_id + 10_000)):
        assert await talk.code(again) == ResponseCode.AUTHENTICATION_TIMEOUT


async def test_a_wrong_answer_uses_it_up(here: Desk) -> None:
    talk = here.talk()
    challenged = await talk.answer(create(f"{PREFIX}/C"))
    assert await talk.code(proof(challenged, secret=b"guess")) == 403
    assert await talk.code(proof(challenged)) == ResponseCode.AUTHENTICATION_TIMEOUT
    assert await talk.code(resolve(f"{PREFIX}/C")) == ResponseCode.HANDLE_NOT_FOUND


async def test_an_answer_that_comes_too_late(here: Desk, clock: Clock) -> None:
    challenged = await here.talk().answer(create(f"{PREFIX}/C"))
    clock.now += 60.1
    assert await here.talk().code(proof(challenged)) == ResponseCode.AUTHENTICATION_TIMEOUT


async def test_nonces_never_repeat_and_are_128_bits(here: Desk) -> None:
    nonces, numbers = set(), set()
    for number in range(100):
        challenged = await here.talk().answer(create(f"{PREFIX}/N{number}"))
        nonces.add(challenged.body.nonce)  # type: ignore[attr-defined]
        numbers.add(challenged.session_id)
    assert len(nonces) == len(numbers) == 100
    assert {len(nonce) for nonce in nonces} == {16}


async def test_the_answer_to_one_challenge_is_no_answer_to_another(here: Desk) -> None:
    talk = here.talk()
    one = await talk.answer(create(f"{PREFIX}/ONE"))
    other = await talk.answer(about(OpCode.DELETE_HANDLE, SN1))
    swapped = proof(one, session_id=other.session_id)
    assert await talk.code(swapped) == ResponseCode.AUTHENTICATION_FAILED
    assert await talk.code(resolve(SN1)) == ResponseCode.SUCCESS


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (AnswerRequest("HS_SECKEY", Reference("no handle", 1), b"x"), 403),
        (AnswerRequest("HS_SECKEY", Reference(ADMIN, 1), b"x"), 403),
        (AnswerRequest("HS_SECKEY", SECKEY, b""), 403),
        (AnswerRequest("HS_SECKEY", SECKEY, b"\x22" + b"\xff" * 40), 403),
        (AnswerRequest("HS_PUBKEY", PUBKEY, b"\0\0\0\1"), 403),
        (AnswerRequest("HS_PUBKEY", SECKEY, b"\0\0\0\0\0\0\0\0"), 403),
        (AnswerRequest("HS_SECKEY", Reference("99.9/ADMIN", 300), b"x"), 403),
        (AnswerRequest("HS_OTHER", SECKEY, b"x"), 404),
    ],
)
async def test_answers_that_prove_nothing(here: Desk, body: AnswerRequest, code: int) -> None:
    challenged = await here.talk().answer(create(f"{PREFIX}/C"))
    sent = request(OpCode.CHALLENGE_RESPONSE, body, session_id=challenged.session_id)
    assert await here.talk().code(sent) == code


@pytest.mark.parametrize(
    ("key", "private_key", "version"),
    [
        (PUBKEY, RSA, Version(2, 11)),
        (PUBKEY, RSA, Version(2, 5)),
        (SM2KEY, SM2, Version(2, 10)),
    ],
)
async def test_public_keys(here: Desk, key: Reference, private_key: Any, version: Version) -> None:
    asked = create(f"{PREFIX}/C", version=version, suggested=version)
    challenged = await here.talk().answer(asked)
    answer = await here.talk().answer(proof(challenged, key, private_key=private_key))
    assert answer.response_code == ResponseCode.SUCCESS


@pytest.mark.parametrize(
    ("version", "form"),
    [(Version(2, 6), AnswerForm.SHA1), (Version(2, 1), AnswerForm.SHA1)],
)
async def test_secret_keys_of_older_clients(here: Desk, version: Version, form: AnswerForm) -> None:
    challenged = await here.talk().answer(create(f"{PREFIX}/C", version=version, suggested=version))
    assert challenged.version == version
    sent = proof(challenged, form=form)
    assert (await here.talk().answer(sent)).response_code == ResponseCode.SUCCESS


async def test_guessing_is_slowed_down(here: Desk) -> None:
    guesser = here.talk(here.peer(address="198.51.100.9"))
    codes = []
    for _ in range(8):
        challenged = await guesser.answer(create(f"{PREFIX}/C"))
        codes.append(await guesser.code(proof(challenged, secret=b"guess")))
    assert codes[:5] == [403] * 5
    assert codes[-1] == ResponseCode.SERVER_BUSY
    # others are not
    assert (await here.talk().authorized(create(f"{PREFIX}/C"))).response_code == 1


async def test_a_source_that_answers_a_challenge_is_no_forgery(here: Desk) -> None:
    peer = here.peer("udp")
    challenged = await here.talk(peer).answer(create(f"{PREFIX}/C"))
    assert not peer.verified
    await here.talk(peer).answer(proof(challenged))
    assert peer.verified
    other = Peer("203.0.113.5", "udp", verified=False)
    challenged = await here.talk(peer).answer(create(f"{PREFIX}/D"))
    await here.talk(other).answer(proof(challenged))
    assert not other.verified


async def test_a_datagram_that_is_sent_again_gets_the_same_answer_and_is_done_once(
    here: Desk,
) -> None:
    talk = here.talk(here.peer("udp"))
    sent = proof(await talk.answer(create(f"{PREFIX}/C")))
    first = await talk.answer(sent)
    assert first.response_code == ResponseCode.SUCCESS
    assert await talk.answer(sent) == first
    elsewhere = here.talk(here.peer("udp", "203.0.113.5"))
    assert await elsewhere.code(sent) == ResponseCode.AUTHENTICATION_TIMEOUT
    # but what it reads is told once
    sent = proof(await talk.answer(resolve(SN1, flags=PRIVATE)))
    assert await talk.code(sent) == ResponseCode.SUCCESS
    assert await talk.code(sent) == ResponseCode.AUTHENTICATION_TIMEOUT


async def test_requests_that_wait_are_bounded(here: Desk) -> None:
    big = tuple(text_value(n, "x" * 60_000) for n in range(1, 4))
    here.operations.pending._octets_max = 2_000_000
    first = await here.talk().answer(create(f"{PREFIX}/B0", *big))
    for number in range(1, 8):
        last = await here.talk().answer(create(f"{PREFIX}/B{number}", *big))
    assert here.operations.pending.octets <= 2_000_000
    assert len(here.operations.pending) < 8
    assert await here.talk().code(proof(first)) == ResponseCode.AUTHENTICATION_TIMEOUT
    assert await here.talk().code(proof(last)) == ResponseCode.SUCCESS


async def test_small_values_count_by_what_they_take_up(here: Desk) -> None:
    pending = here.operations.pending
    many = tuple(Value(n, "", b"") for n in range(1, 1_001))
    await here.talk().answer(create(f"{PREFIX}/B1", *many))
    of_values = pending.octets
    assert of_values > 200_000
    named = Value(1, "A", b"", references=(Reference("", 0),) * 1_000)
    await here.talk().answer(create(f"{PREFIX}/B2", named))
    assert pending.octets - of_values > 100_000


# What is no request -----------------------------------------------------------------------


async def test_octets_that_are_no_message(here: Desk) -> None:
    whole = encode_message(resolve(SN1, session_id=0))
    for cut in range(20, len(whole)):
        frame = whole[:16] + (cut - 20).to_bytes(4, "big") + whole[20:cut]
        answers = await here.talk().exchange(frame)
        for answer in answers:
            message = decode_message(answer)
            assert message.response_code in (ResponseCode.PROTOCOL_ERROR, ResponseCode.SUCCESS)
            assert message.request_id == decode_message(whole).request_id
    assert await here.talk().exchange(b"") == []
    assert await here.talk().exchange(b"GET / HTTP/1.1\r\n\r\n") == []


async def test_a_response_is_not_answered(here: Desk) -> None:
    answer = Message(OpCode.RESOLUTION, Failure("no"), ResponseCode.ERROR, request_id=7)
    assert await here.talk().exchange(encode_message(answer)) == []
    odd = Message(OpCode.RESOLUTION, ResolveRequest(SN1), 999, request_id=7)
    assert await here.talk().exchange(encode_message(odd)) == []


async def test_a_fault_of_ours_shows_nothing(here: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(here.parts.service, "resolve", broken)
    answer = await here.talk().answer(resolve(SN1))
    assert answer.response_code == ResponseCode.ERROR
    assert "secret" not in answer.body.message  # type: ignore[attr-defined]
    monkeypatch.setattr(here.operations._key, "signed", broken)
    answer = await here.talk().answer(about(OpCode.GET_SITE_INFO, "/", flags=OpFlag.CERTIFY))
    assert answer.response_code == ResponseCode.ERROR
    assert "secret" not in answer.body.message  # type: ignore[attr-defined]


async def test_a_record_too_long_for_a_message_says_so(here: Desk) -> None:
    big = tuple(text_value(n, "x" * 65_000) for n in range(1, 5))
    await write(here.parts.registrar, Create(identifier("BIG"), big[:4]))
    more = tuple(text_value(n, "y" * 20) for n in range(10, 60))
    await write(here.parts.registrar, Modify(identifier("BIG"), more))
    answer = await here.talk().answer(resolve(f"{PREFIX}/BIG"))
    assert answer.response_code == ResponseCode.PROTOCOL_ERROR
    assert await here.talk().code(resolve(f"{PREFIX}/BIG", indexes=[1])) == ResponseCode.SUCCESS
