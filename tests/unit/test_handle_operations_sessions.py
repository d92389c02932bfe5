"""Sessions: keys agreed on, identities proved once, messages that count once, and their ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from biaojie.keys import (
    DiffieHellman,
    decode_public_key,
    encrypt_message,
    new_session_key,
    verify,
)
from biaojie.record import PERMISSIONS_SECRET, Reference, Value
from biaojie.wire.handle import (
    MAC,
    AnswerForm,
    Cipher,
    Credential,
    Done,
    KeyExchange,
    KeyRequest,
    OpCode,
    OpFlag,
    RemoveRequest,
    ResponseCode,
    SessionKey,
    SessionRequest,
    ValuesRequest,
    Version,
    covered,
    decode_message,
    encode_message,
    mac_matches,
)
from registry.operations import Modify
from tests.core_parts import identifier, write
from tests.handle_sessions import SM2, SM2KEY, SN1, Clock, Within, clock, here, open_session
from tests.handle_talk import (
    PREFIX,
    PRIVATE,
    PUBKEY,
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


ALL_MODES = list(KeyExchange)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("mode", ALL_MODES)
async def test_a_session_proves_once_and_then_its_macs_do(
    here: Desk, mode: KeyExchange, sealed: bool
) -> None:
    session = await open_session(here, mode)
    await session.prove()
    for message in (
        request(OpCode.ADD_VALUE, ValuesRequest(SN1, (text_value(2),))),
        request(OpCode.REMOVE_VALUE, RemoveRequest(SN1, (2,))),
        about(OpCode.LIST_HANDLES, f"0.NA/{PREFIX}"),
        resolve(SN1, flags=PRIVATE),
        about(OpCode.DELETE_HANDLE, SN1),
    ):
        answer = await session.ask(message, sealed=sealed)
        assert answer.response_code == ResponseCode.SUCCESS
        assert answer.session_id == session.number


async def test_an_sm2_key_at_a_handle(here: Desk) -> None:
    session = await open_session(here, KeyExchange.HANDLE_KEY, exchange=(SM2KEY, SM2))
    assert session.key.cipher == Cipher.SM4
    await session.prove()
    answer = await session.ask(about(OpCode.DELETE_HANDLE, SN1), sealed=True)
    assert answer.response_code == ResponseCode.SUCCESS


async def test_answers_under_the_sessions_mac(here: Desk) -> None:
    session = await open_session(here, KeyExchange.DIFFIE_HELLMAN)
    counters = set()
    for _ in range(3):
        answer = await session.ask(resolve(SN1, flags=OpFlag.CERTIFY | OpFlag.PUBLIC_ONLY))
        assert answer.credential is not None
        assert answer.credential.type == MAC
        assert mac_matches(answer, session.key.octets)
        counters.add(answer.credential.counter)
    assert len(counters) == 3
    assert 0 not in counters


async def test_the_answer_to_a_set_up_is_signed_by_the_node(here: Desk) -> None:
    body = SessionRequest(KeyExchange.DIFFIE_HELLMAN, 0, SECKEY, DiffieHellman().offer())
    answer = await here.talk().answer(request(OpCode.SESSION_SETUP, body, flags=OpFlag.CERTIFY))
    assert here.operations.site is not None
    key = decode_public_key(here.operations.site.main.servers[0].public_key)
    assert answer.credential is not None
    assert verify(key, "SHA-256", covered(answer), answer.credential.signature)


async def test_a_message_in_a_session_counts_once(here: Desk) -> None:
    session = await open_session(here, KeyExchange.DIFFIE_HELLMAN)
    await session.prove()
    message = session.mac(request(OpCode.ADD_VALUE, ValuesRequest(SN1, (text_value(2),))))
    talk = here.talk()
    assert await talk.code(message) == ResponseCode.SUCCESS
    assert await talk.code(message) == ResponseCode.SESSION_MESSAGE_REJECTED
    # captured, and given another counter or number: then it is not right
    assert message.credential is not None
    later = replace(message, credential=replace(message.credential, counter=99))
    assert await talk.code(later) == ResponseCode.INVALID_SESSION_KEY
    renamed = replace(message, request_id=message.request_id + 1)
    assert await talk.code(renamed) == ResponseCode.INVALID_SESSION_KEY
    # messages may overtake each other
    early, late = session.mac(resolve(SN1), 50), session.mac(resolve(SN1), 49)
    assert [await talk.code(early), await talk.code(late)] == [1, 1]
    assert await talk.code(late) == ResponseCode.SESSION_MESSAGE_REJECTED
    zero = session.mac(resolve(SN1), 0)
    assert await talk.code(zero) == ResponseCode.SESSION_MESSAGE_REJECTED
    assert await talk.code(session.mac(resolve(SN1), 5_000)) == 1
    assert await talk.code(session.mac(resolve(SN1), 3_900)) == 505  # before the window


async def test_without_its_mac_a_message_is_anybodys(here: Desk) -> None:
    session = await open_session(here, KeyExchange.DIFFIE_HELLMAN)
    await session.prove()
    plain = about(OpCode.DELETE_HANDLE, SN1, session_id=session.number)
    assert await here.talk().code(plain) == ResponseCode.AUTHENTICATION_NEEDED
    forged = replace(
        plain, credential=Credential(MAC, "HMAC-SHA256", bytes(32), session.counter + 1)
    )
    assert await here.talk().code(forged) == ResponseCode.INVALID_SESSION_KEY
    assert await here.talk().code(resolve(SN1)) == ResponseCode.SUCCESS


async def test_a_session_speaks_only_for_who_it_was_set_up_for(here: Desk) -> None:
    session = await open_session(here, KeyExchange.DIFFIE_HELLMAN, identity=PUBKEY)
    await session.prove(SECKEY)  # somebody else: this request is theirs, the session is not
    answer = await session.ask(about(OpCode.DELETE_HANDLE, SN1))
    assert answer.response_code == ResponseCode.AUTHENTICATION_NEEDED
    anonymous = await open_session(here, KeyExchange.DIFFIE_HELLMAN, identity=Reference("", 0))
    await anonymous.prove(SECKEY)
    answer = await anonymous.ask(about(OpCode.DELETE_HANDLE, SN1))
    assert answer.response_code == ResponseCode.AUTHENTICATION_NEEDED


async def test_a_proof_for_a_request_without_mac_does_not_make_the_session_speak(
    here: Desk,
) -> None:
    session = await open_session(here, KeyExchange.DIFFIE_HELLMAN)
    intruder = create(f"{PREFIX}/X", session_id=session.number)  # who knows the number only
    challenged = await here.talk().answer(intruder)
    assert await here.talk().code(proof(challenged)) == ResponseCode.SUCCESS
    answer = await session.ask(about(OpCode.DELETE_HANDLE, SN1))
    assert answer.response_code == ResponseCode.AUTHENTICATION_NEEDED


@pytest.mark.parametrize("version", [Version(2, 4), Version(2, 5), Version(2, 6)])
async def test_where_macs_do_not_cover_the_counter_each_request_is_challenged(
    here: Desk, version: Version
) -> None:
    session = await open_session(here, KeyExchange.DIFFIE_HELLMAN, version=version)
    for number in range(2):
        message = create(f"{PREFIX}/OLD{number}", suggested=version)
        challenged = await session.ask(message)
        sent = proof(challenged, form=AnswerForm.SHA1)
        assert (await session.talk.answer(sent)).response_code == ResponseCode.SUCCESS


async def test_a_key_that_is_no_more_ends_the_sessions_word(here: Desk, clock: Clock) -> None:
    session = await open_session(here, KeyExchange.DIFFIE_HELLMAN)
    await session.prove()
    new = Value(300, "HS_SECKEY", b"changed", permissions=PERMISSIONS_SECRET)
    await write(here.parts.registrar, Modify(identifier("ADMIN"), (new,)))
    clock.now += 2.1
    answer = await session.ask(about(OpCode.DELETE_HANDLE, SN1))
    assert answer.response_code == ResponseCode.AUTHENTICATION_NEEDED


async def test_sessions_end(here: Desk, clock: Clock) -> None:
    lost = ResponseCode.SESSION_TIMEOUT
    session = await open_session(here, KeyExchange.DIFFIE_HELLMAN)
    over = about(OpCode.SESSION_TERMINATE, "/", session_id=session.number)
    assert await here.talk().code(over) == ResponseCode.INVALID_SESSION_KEY  # anybody could
    assert (await session.ask(over)).body == Done()
    assert (await session.ask(resolve(SN1))).response_code == lost
    assert (await session.ask(over)).response_code == lost
    # idle
    session = await open_session(here, KeyExchange.DIFFIE_HELLMAN, timeout_s=60)
    clock.now += 59
    assert (await session.ask(resolve(SN1))).response_code == ResponseCode.SUCCESS
    clock.now += 61
    assert (await session.ask(resolve(SN1))).response_code == lost
    # old
    session = await open_session(here, KeyExchange.DIFFIE_HELLMAN, timeout_s=10**8)
    for _ in range(24):
        clock.now += 3_599
        assert (await session.ask(resolve(SN1))).response_code == ResponseCode.SUCCESS
    clock.now += 100
    assert (await session.ask(resolve(SN1))).response_code == lost


async def test_messages_of_sessions_that_are_not(here: Desk) -> None:
    lost = ResponseCode.SESSION_TIMEOUT
    nobody = Within(here.talk(), 4711, SessionKey(Cipher.AES, bytes(16)))
    assert (await nobody.ask(resolve(SN1))).response_code == lost
    udp = here.talk(here.peer("udp"))
    assert await udp.code(create(f"{PREFIX}/X", session_id=4711)) == lost
    exchange = request(OpCode.SESSION_EXCHANGE_KEY, KeyRequest(bytes(256)), session_id=4711)
    assert await udp.code(exchange) == lost
    sealed = encode_message(
        resolve(SN1, session_id=4711),
        lambda data: encrypt_message(nobody.key, nobody.version, data),
    )
    (frame,) = await here.talk().exchange(sealed)
    assert decode_message(frame).response_code == lost


async def test_whatever_is_wrong_with_a_sealed_message_it_looks_the_same(here: Desk) -> None:
    session = await open_session(here, KeyExchange.DIFFIE_HELLMAN)
    other = new_session_key()
    failed = []
    for seal in (
        lambda data: encrypt_message(other, session.version, data),
        lambda data: encrypt_message(session.key, session.version, b"nonsense"),
        lambda data: encrypt_message(session.key, session.version, data)[:-1],
        lambda data: bytes(15),
        lambda data: b"",
    ):
        frame = encode_message(resolve(SN1, session_id=session.number), seal)
        (answer,) = await here.talk().exchange(frame)
        failed.append(decode_message(answer))
    assert {answer.response_code for answer in failed} == {ResponseCode.SESSION_FAILED}
    assert len({answer.body.message for answer in failed}) == 1  # type: ignore[attr-defined]


async def test_key_exchanges_that_fail(here: Desk) -> None:
    async def code(mode: int, offer: bytes = b"", key: Reference | None = None) -> int:
        body = SessionRequest(mode, 0, SECKEY, offer, key)
        return await here.talk().code(request(OpCode.SESSION_SETUP, body))

    assert await code(9) == ResponseCode.SESSION_FAILED
    assert await code(KeyExchange.CLIENT_KEY, b"junk") == ResponseCode.SESSION_FAILED
    assert await code(KeyExchange.DIFFIE_HELLMAN, b"junk") == ResponseCode.SESSION_FAILED
    assert await code(KeyExchange.HANDLE_KEY, key=SECKEY) == ResponseCode.SESSION_FAILED
    assert await code(KeyExchange.HANDLE_KEY, key=Reference("x", 1)) == ResponseCode.SESSION_FAILED
    twice = await open_session(here, KeyExchange.SERVER_KEY)
    again = request(OpCode.SESSION_EXCHANGE_KEY, KeyRequest(bytes(256)), session_id=twice.number)
    assert await here.talk().code(again) == ResponseCode.SESSION_FAILED


async def test_a_wrapped_key_that_is_wrong_is_not_told_from_a_right_one(here: Desk) -> None:
    body = SessionRequest(KeyExchange.SERVER_KEY, 0, SECKEY)
    begun = await here.talk().answer(request(OpCode.SESSION_SETUP, body))
    junk = request(OpCode.SESSION_EXCHANGE_KEY, KeyRequest(bytes(256)), session_id=begun.session_id)
    assert (await here.talk().answer(junk)).body == Done()
    session = Within(here.talk(), begun.session_id, SessionKey(Cipher.AES, bytes(16)))
    answer = await session.ask(resolve(SN1))
    assert answer.response_code == ResponseCode.INVALID_SESSION_KEY


async def test_whoever_opens_too_many_sessions_loses_their_own(here: Desk) -> None:
    here.operations.sessions._per_address_max = 5
    mine = await open_session(here, KeyExchange.DIFFIE_HELLMAN, talk=here.talk(here.peer()))
    greedy = here.talk(here.peer(address="198.51.100.1"))
    many = [await open_session(here, KeyExchange.SERVER_KEY, talk=greedy) for _ in range(9)]
    assert len(here.operations.sessions) == 6
    assert (await many[0].ask(resolve(SN1))).response_code == ResponseCode.SESSION_TIMEOUT
    assert (await many[-1].ask(resolve(SN1))).response_code == ResponseCode.SUCCESS
    assert (await mine.ask(resolve(SN1))).response_code == ResponseCode.SUCCESS


async def test_sessions_that_prove_nothing_go_before_those_that_do(here: Desk) -> None:
    """Set-ups with a forged address do not end the sessions of who has that address."""
    here.operations.sessions._per_address_max = 5
    mine = await open_session(here, KeyExchange.DIFFIE_HELLMAN)
    await mine.prove()
    for _ in range(20):
        await open_session(here, KeyExchange.SERVER_KEY)
    answer = await mine.ask(about(OpCode.DELETE_HANDLE, SN1))
    assert answer.response_code == ResponseCode.SUCCESS
