"""The login of the national clients: in a session of their choice, for one connection."""

from __future__ import annotations

from dataclasses import replace

import pytest

from biaojie.keys import (
    decrypt_message,
    encrypt_message,
)
from biaojie.record import Reference
from biaojie.wire.handle import (
    Done,
    KeyExchange,
    Message,
    OpCode,
    OpFlag,
    ResolveResponse,
    ResponseCode,
    Version,
)
from registry.operations import Modify
from tests.core_parts import identifier, write
from tests.handle_sessions import SM2, SM2KEY, SN1, Clock, clock, here, open_session
from tests.handle_talk import (
    PREFIX,
    PRIVATE,
    PUBKEY,
    RSA,
    SECKEY,
    Desk,
    about,
    create,
    login,
    proof,
    resolve,
)

__all__ = ["clock", "here"]


@pytest.mark.parametrize("number", [0, 10_001])
@pytest.mark.parametrize("key", [SECKEY, PUBKEY])
async def test_a_login_authenticates_the_connection(
    here: Desk, key: Reference, number: int
) -> None:
    talk = here.talk()
    site = await talk.answer(about(OpCode.GET_SITE_INFO, "/", session_id=number))
    assert (site.response_code, site.session_id) == (ResponseCode.SUCCESS, number)
    challenged = await talk.answer(login(key, session_id=number))
    assert (challenged.opcode, challenged.response_code) == (OpCode.LOGIN, 402)
    assert challenged.session_id == number or number == 0
    done = await talk.answer(proof(challenged, key, flags=OpFlag.REQUEST_DIGEST))
    assert (done.opcode, done.response_code, done.body) == (OpCode.LOGIN, 1, Done())
    made = await talk.answer(create(f"{PREFIX}/IIIS", session_id=number))
    assert made.response_code == ResponseCode.SUCCESS
    read = await talk.answer(resolve(SN1, flags=PRIVATE, session_id=number))
    assert isinstance(read.body, ResolveResponse)
    assert len(read.body.values) == 2
    # not another session of the connection, not another connection
    other = number + 1
    assert await talk.code(create(f"{PREFIX}/Y", session_id=other)) == ResponseCode.LOGIN_FIRST
    elsewhere = await here.talk().code(create(f"{PREFIX}/Y", session_id=number))
    assert elsewhere == (ResponseCode.LOGIN_FIRST if number else ResponseCode.AUTHENTICATION_NEEDED)


async def test_a_login_is_always_challenged_and_bound_to_one_user(here: Desk) -> None:
    talk = here.talk()
    for _ in range(2):  # again, by the same
        assert await talk.code(proof(await talk.answer(login(session_id=7)))) == 1
    assert await talk.code(login(PUBKEY, session_id=7)) == ResponseCode.LOGIN_AGAIN
    assert await talk.code(proof(await talk.answer(login(PUBKEY, session_id=8)), PUBKEY)) == 1


async def test_a_login_answered_by_somebody_else(here: Desk) -> None:
    talk = here.talk()
    challenged = await talk.answer(login(PUBKEY, session_id=7))
    assert await talk.code(proof(challenged, SECKEY)) == ResponseCode.AUTHENTICATION_FAILED
    assert await talk.code(create(f"{PREFIX}/X", session_id=7)) == ResponseCode.LOGIN_FIRST


async def test_a_login_ends_with_its_connection_and_with_its_key(here: Desk, clock: Clock) -> None:
    peer = here.peer()
    talk = here.talk(peer)
    assert await talk.code(proof(await talk.answer(login(session_id=7)))) == 1
    clock.now += 80_000
    assert await talk.code(create(f"{PREFIX}/A", session_id=7)) == ResponseCode.SUCCESS
    clock.now += 80_000  # longer than any session, as clients log in once per connection
    assert await talk.code(create(f"{PREFIX}/B", session_id=7)) == ResponseCode.SUCCESS
    here.operations.forget(peer)
    assert await talk.code(create(f"{PREFIX}/C", session_id=7)) == ResponseCode.LOGIN_FIRST
    assert await talk.code(proof(await talk.answer(login(session_id=7)))) == 1
    await write(here.parts.registrar, Modify(identifier("ADMIN"), remove=(300,)))
    clock.now += 2.1
    assert await talk.code(create(f"{PREFIX}/D", session_id=7)) == ResponseCode.LOGIN_FIRST
    assert len(here.operations.sessions) == 1


async def test_a_login_without_a_connection_proves_and_is_forgotten(here: Desk) -> None:
    for transport in ("udp", "http"):
        talk = here.talk(here.peer(transport))  # type: ignore[arg-type]
        done = await talk.answer(proof(await talk.answer(login(session_id=7))))
        assert (done.opcode, done.response_code) == (OpCode.LOGIN, ResponseCode.SUCCESS)
        assert await talk.code(create(f"{PREFIX}/X")) == ResponseCode.AUTHENTICATION_NEEDED


@pytest.mark.parametrize("key", [PUBKEY, SM2KEY])
async def test_an_encrypted_login_in_a_session_the_client_chose(here: Desk, key: Reference) -> None:
    private_key = RSA if key == PUBKEY else SM2
    talk = here.talk()
    session = await open_session(
        here,
        KeyExchange.HANDLE_KEY,
        identity=Reference("", 0),
        talk=talk,
        exchange=(key, private_key),
        version=Version(2, 10),
        session_id=10_002,
    )
    assert session.number == 10_002

    async def sealed(message: Message) -> Message:
        inside = replace(message, session_id=10_002)
        return await talk.answer(
            inside,
            lambda data: encrypt_message(session.key, session.version, data),
            lambda data: decrypt_message(session.key, session.version, data),
        )

    assert await sealed(create(f"{PREFIX}/E")) is not None
    assert (await sealed(create(f"{PREFIX}/E"))).response_code == ResponseCode.LOGIN_FIRST
    challenged = await sealed(login(key))
    done = await sealed(proof(challenged, key, private_key=private_key))
    assert (done.opcode, done.response_code) == (OpCode.LOGIN, ResponseCode.SUCCESS)
    assert (await sealed(create(f"{PREFIX}/E"))).response_code == ResponseCode.SUCCESS
    # an outsider who knows the number is in no session of this one
    assert await here.talk().code(create(f"{PREFIX}/F", session_id=10_002)) == 408


async def test_a_connection_has_so_many_sessions(here: Desk) -> None:
    talk = here.talk()
    for number in range(1, 17):
        assert await talk.code(proof(await talk.answer(login(session_id=number)))) == 1
    busy = await talk.code(proof(await talk.answer(login(session_id=99))))
    assert busy == ResponseCode.SERVER_BUSY
