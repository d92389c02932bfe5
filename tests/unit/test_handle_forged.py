"""What a sender gains who puts somebody else's address on his datagrams: nothing."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from biaojie.record import PERMISSIONS_SECRET, Value
from biaojie.wire.handle import (
    Challenge,
    Digest,
    KeyExchange,
    OpCode,
    ResponseCode,
    VerifyRequest,
    Version,
    encode_message,
)
from biaojie.wire.handle.digest import DigestAlgorithm
from registry.operations import Modify
from resolver.handle import identity
from resolver.handle.sessions import Proof, Sessions
from tests.core_parts import identifier, write
from tests.handle_sessions import Clock, Within, clock, here, open_session
from tests.handle_talk import PREFIX, PRIVATE, SECKEY, Desk, create, proof, request, resolve

__all__ = ["clock", "here"]

OURS, VICTIM = "198.51.100.1", "203.0.113.9"


async def test_a_nonce_is_told_to_one_address_only(here: Desk) -> None:
    """Whoever answers with it is where he says he is, and may be sent long answers."""
    session = await open_session(here, KeyExchange.SERVER_KEY, talk=here.talk(udp(here, OURS)))
    asked = replace(resolve(f"{PREFIX}/SN1", flags=PRIVATE), session_id=session.number)
    told_victim = await here.talk(udp(here, VICTIM)).answer(asked)
    told_us = await here.talk(udp(here, OURS)).answer(asked)
    again = await here.talk(udp(here, OURS)).answer(asked)
    nonces = [answer.body for answer in (told_victim, told_us, again)]
    assert all(isinstance(body, Challenge) for body in nonces)
    assert nonces[0] != nonces[1] == nonces[2], "the same only to the same who asks again"
    forged = udp(here, VICTIM)
    await here.talk(forged).exchange(encode_message(proof(told_us)))
    assert not forged.verified


def udp(here: Desk, address: str) -> Any:
    return here.peer("udp", address)


async def test_forged_misses_lock_nobody_out(here: Desk) -> None:
    wrong = VerifyRequest(SECKEY, bytes(16), Digest(DigestAlgorithm.SHA1, bytes(20)), bytes(21))
    codes = set()
    for _ in range(14):
        answer = await here.talk(udp(here, VICTIM)).answer(request(OpCode.VERIFY_RESPONSE, wrong))
        codes.add(answer.response_code)
    assert len(codes) > 1, "guessing over UDP is slowed down all the same"
    here.parts.service.callers.guesses.check(VICTIM, time.monotonic())
    talk = here.talk(here.peer("tcp", VICTIM))
    answer = await talk.authorized(create(f"{PREFIX}/A1"))
    assert answer.response_code == ResponseCode.SUCCESS


async def test_a_session_is_no_more_than_the_key_it_was_proved_with(
    here: Desk, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the key is replaced while the proof is looked at."""
    session: Within = await open_session(here, KeyExchange.SERVER_KEY)
    challenged = await session.ask(create(f"{PREFIX}/A1"))
    replaced = Value(300, "HS_SECKEY", b"new secret", permissions=PERMISSIONS_SECRET)
    to_thread = asyncio.to_thread

    async def checked(*call: Any) -> Any:
        found = await to_thread(*call)
        monkeypatch.undo()
        await write(here.parts.registrar, Modify(identifier("ADMIN"), (replaced,)))
        return found

    monkeypatch.setattr(identity.asyncio, "to_thread", checked)
    assert await session.talk.code(proof(challenged)) == ResponseCode.SUCCESS
    clock.now += 2.3
    answer = await session.ask(create(f"{PREFIX}/A2"))
    assert answer.response_code == ResponseCode.AUTHENTICATION_NEEDED


def test_sessions_that_proved_nothing_end_none_that_did() -> None:
    sessions = Sessions(sessions_max=2_000, per_address_max=100)
    proved = [sessions.open(None, 0, f"192.0.2.{n % 250}", Version(2, 11)) for n in range(1_000)]
    for session in proved:
        session.proof = Proof(None, b"", 0.0)  # type: ignore[arg-type]
    for n in range(25_000):
        sessions.open(None, 0, f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", Version(2, 11))
    assert len(sessions) == 2_000
    assert all(sessions.find(None, session.number) is session for session in proved)
    assert len(sessions._unproved) <= 2_000


def test_one_network_has_as_many_sessions_as_one_address() -> None:
    sessions = Sessions(per_address_max=10)
    for n in range(50):
        sessions.open(None, 0, f"2001:db8::{n:x}", Version(2, 11))
    assert len(sessions) == 10
