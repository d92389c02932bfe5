"""A Handle client's side of a session, and a desk whose clock a test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from biaojie.keys import (
    DiffieHellman,
    Sm2PrivateKey,
    decode_public_key,
    decrypt_message,
    encode_public_key,
    encrypt_message,
    generate,
    new_session_key,
    read_reply,
    unwrap,
    wrap,
)
from biaojie.record import Reference, Value
from biaojie.wire.handle import (
    VERSION_OURS,
    Done,
    KeyExchange,
    KeyRequest,
    Message,
    OpCode,
    ResponseCode,
    SessionKey,
    SessionRequest,
    SessionResponse,
    Version,
    with_mac,
)
from registry.operations import Modify
from tests.core_parts import identifier, write
from tests.handle_talk import (
    ADMIN,
    PREFIX,
    PUBKEY,
    RSA,
    SECKEY,
    Desk,
    Talk,
    create,
    desk,
    proof,
    request,
)

SN1 = f"{PREFIX}/SN1"
SM2 = generate("sm2")
SM2KEY = Reference(ADMIN, 302)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def here(tmp_path: Path, clock: Clock) -> AsyncIterator[Desk]:
    """A desk by this clock, whose administrator has an SM2 key at 302 as well."""
    async with desk(tmp_path, clock=clock) as made:
        assert isinstance(SM2, Sm2PrivateKey)
        sm2 = Value(302, "HS_PUBKEY", encode_public_key(SM2.public))
        await write(made.parts.registrar, Modify(identifier("ADMIN"), (sm2,)))
        yield made


@dataclass
class Within:
    """A client's side of a session."""

    talk: Talk
    number: int
    key: SessionKey
    version: Version = VERSION_OURS
    counter: int = 0

    def mac(self, message: Message, counter: int | None = None) -> Message:
        if counter is None:
            self.counter += 1
            counter = self.counter
        inside = replace(message, session_id=self.number, version=self.version)
        return with_mac(inside, self.key.octets, counter)

    async def ask(self, message: Message, *, sealed: bool = False) -> Message:
        message = self.mac(message)
        if not sealed:
            return await self.talk.answer(message)
        return await self.talk.answer(
            message,
            lambda data: encrypt_message(self.key, self.version, data),
            lambda data: decrypt_message(self.key, self.version, data),
        )

    async def prove(self, key: Reference = SECKEY) -> None:
        """Do something that needs a proof, which makes the session speak for its identity."""
        challenged = await self.ask(create(f"{PREFIX}/IN{self.number}"))
        assert challenged.session_id == self.number
        made = await self.talk.answer(proof(challenged, key))
        assert made.response_code == ResponseCode.SUCCESS, made
        assert made.session_id == self.number


async def open_session(
    here: Desk | None,
    mode: KeyExchange,
    *,
    identity: Reference = SECKEY,
    talk: Talk | None = None,
    version: Version = VERSION_OURS,
    exchange: tuple[Reference, Any] = (PUBKEY, RSA),
    timeout_s: int = 0,
    **fields: Any,
) -> Within:
    if talk is None:
        assert here is not None
        talk = here.talk()
    own = generate("rsa")
    diffie_hellman = DiffieHellman()
    offer = {
        KeyExchange.CLIENT_KEY: encode_public_key(own.public),
        KeyExchange.DIFFIE_HELLMAN: diffie_hellman.offer(),
    }.get(mode, b"")
    key = exchange[0] if mode == KeyExchange.HANDLE_KEY else None
    body = SessionRequest(mode, timeout_s, identity, offer, key, trailing=b"\0\0")
    answer = await talk.answer(
        request(OpCode.SESSION_SETUP, body, version=version, suggested=version, **fields)
    )
    assert isinstance(answer.body, SessionResponse), answer
    number, data = answer.session_id, answer.body.data
    match mode:
        case KeyExchange.CLIENT_KEY:
            agreed = unwrap(own, data, version)
        case KeyExchange.HANDLE_KEY:
            agreed = unwrap(exchange[1], data, version)
        case KeyExchange.SERVER_KEY:
            agreed = new_session_key()
            wrapped = wrap(decode_public_key(data), agreed, version)
            told = await talk.answer(
                request(OpCode.SESSION_EXCHANGE_KEY, KeyRequest(wrapped), session_id=number)
            )
            assert told.body == Done()
        case _:
            cipher, public = read_reply(data, version)
            agreed = diffie_hellman.agree(public, cipher)
    return Within(talk, number, agreed, version)
