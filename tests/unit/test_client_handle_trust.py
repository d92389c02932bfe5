"""hdl:// with distrust: signed answers, keys on first use or given, encrypted sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from biaojie import Client, Permissions, Value, handle_datagrams, keys
from biaojie.errors import (
    BiaojieError,
    InvalidRecord,
    InvalidRequest,
    MalformedAnswer,
    OverCapacity,
    Unauthenticated,
)
from biaojie.handle_options import HandleOptions
from biaojie.keys import PrivateKey
from biaojie.retry import Backoff
from biaojie.wire.handle import (
    SIGNED,
    Challenge,
    Credential,
    Failure,
    Interface,
    KeyExchange,
    Message,
    OpFlag,
    Referral,
    ResolveResponse,
    ResponseCode,
    Server,
    SessionResponse,
    Site,
    answer_to,
    covered,
    decode_message,
    encode_message,
)
from tests.scripted_handle import IDENTITY, SECRET, Met, ScriptedHandle

A = "88.118.8/A"
URL = Value(1, "URL", b"https://a.example")
PIN = Value(3, "PIN", b"1234", permissions=Permissions.parse("1100"))
OURS, THEIRS = keys.generate("rsa"), keys.generate("rsa")
SM2 = keys.generate("sm2")
QUICK = Backoff(base_s=0.01, cap_s=0.01)
CERTIFIED = HandleOptions(certified=True)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle_datagrams, "TIMEOUTS_S", (0.05, 0.1))


@pytest.fixture
async def server() -> AsyncIterator[ScriptedHandle]:
    scripted = ScriptedHandle(site_key=OURS, user_key=THEIRS.public)
    scripted.put(A, URL, PIN)
    async with scripted.serving():
        yield scripted


def signed(message: Message, key: PrivateKey, name: str = "SHA-256") -> bytes:
    octets = keys.sign(key, name, covered(message))
    return encode_message(replace(message, credential=Credential(SIGNED, name, octets)))


# Signed answers -------------------------------------------------------------------------


async def test_signed_answers_with_the_key_learnt_first(server: ScriptedHandle) -> None:
    async with Client(server.url, handle=CERTIFIED) as client:
        assert (await client.resolve(A)).record.values == (URL,)
        got = [each async for each in client.resolve_many([A] * 5)]
        assert len(got) == 5
        with pytest.raises(BiaojieError) as caught:
            await client.resolve("88.118.8/NOBODY")
        assert caught.value.code == "identifier-not-found"
    assert server.seen[0][1].opcode == 2
    server.seen.clear()
    async with Client(server.url, handle=replace(CERTIFIED, udp=False)) as client:
        assert len([each async for each in client.resolve_many([A] * 50)]) == 50
    assert [message.opcode for _, message in server.seen].count(2) == 1
    assert all(message.has(OpFlag.CERTIFY) for _, message in server.seen)


@pytest.mark.parametrize("key", [OURS.public, keys.encode_public_key(OURS.public)])
async def test_signed_answers_with_a_key_given(
    server: ScriptedHandle, key: keys.PublicKey | bytes
) -> None:
    trusting = HandleOptions(certified=True, site_key=key)
    async with Client(server.url, identity=IDENTITY, secret=SECRET, handle=trusting) as client:
        assert (await client.resolve(A)).record.values == (URL, PIN)
        await client.register("88.118.8/B", {"URL": "x"})
        assert [str(record.identifier) async for record in client.records("88.118.8")]
    assert 2 not in {message.opcode for _, message in server.seen}


async def test_a_key_that_is_none() -> None:
    with pytest.raises(InvalidRecord):
        HandleOptions(site_key=b"junk")
    with pytest.raises(InvalidRequest):
        HandleOptions(hops_max=-1)
    with pytest.raises(InvalidRequest):
        HandleOptions(session=9)  # type: ignore[arg-type]


LIES = {
    "unsigned": lambda message: encode_message(message),
    "signed by another": lambda message: signed(message, THEIRS),
    "signed with MD5": lambda message: signed(message, OURS, "MD5"),
    "another's signature": lambda message: encode_message(
        replace(message, credential=decode_message(signed(
            replace(message, request_id=message.request_id ^ 1), OURS)).credential)
    ),
    "a MAC": lambda message: encode_message(
        replace(message, credential=Credential("HS_MAC", "HMAC-SHA256", bytes(32)))
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("udp", [True, False])
async def test_a_forged_answer_is_not_believed(server: ScriptedHandle, lie: str, udp: bool) -> None:
    async def evil(met: Met) -> None:
        body = ResolveResponse(A, (Value(1, "URL", b"https://evil"),))
        await met.send(LIES[lie](answer_to(met.request, body)))
        await met.say_all()

    async def gone(met: Met) -> None:
        await met.send(LIES[lie](answer_to(met.request, Failure(), 100)))
        await met.say_all()

    async with Client(server.url, handle=replace(CERTIFIED, udp=udp), retries=0) as client:
        await client.resolve(A)
        for fault in (evil, gone):
            server.faults.append(fault)
            try:
                found = await client.resolve(A)
            except MalformedAnswer:
                assert not udp  # over TCP it is the server itself that lies
            else:
                assert found.record.values == (URL,)
                assert udp


async def test_a_server_that_does_not_sign_is_not_certified(server: ScriptedHandle) -> None:
    server.site_key = None
    async with Client(server.url, handle=CERTIFIED, retries=0) as client:
        with pytest.raises(MalformedAnswer):
            await client.resolve(A)
    server.site_key = OURS
    wrong = HandleOptions(certified=True, site_key=THEIRS.public)
    async with Client(server.url, handle=wrong, retries=0) as client:
        with pytest.raises(MalformedAnswer):
            await client.resolve(A)


async def test_a_refusal_that_says_nothing_needs_no_signature(server: ScriptedHandle) -> None:
    async def busy(met: Met) -> None:
        await met.send(encode_message(answer_to(met.request, Failure("later"), 3)))

    async with Client(server.url, handle=CERTIFIED, backoff=QUICK) as client:
        await client.resolve(A)
        server.faults.append(busy)
        assert (await client.resolve(A)).record.values == (URL,)
        server.faults.extend([busy] * 9)
        with pytest.raises(OverCapacity):
            await client.resolve(A)


async def test_a_challenge_for_another_request_is_not_answered(server: ScriptedHandle) -> None:
    async def tricky(met: Met) -> None:
        other = replace(met.request, request_id=met.request.request_id, received=b"another")
        lie = answer_to(other, Challenge(bytes(16)), 402, session_id=7)
        await met.send(signed(lie, OURS))

    server.faults.append(tricky)
    options = HandleOptions(udp=False)
    async with Client(
        server.url, identity=IDENTITY, secret=SECRET, handle=options, retries=0
    ) as client:
        with pytest.raises(MalformedAnswer) as caught:
            await client.register("88.118.8/B", {})
        assert caught.value.fields["outcome"] == "unknown"
    assert server.over() == ["tcp 100"]


async def test_keys_of_a_referral_are_those_it_was_signed_with(server: ScriptedHandle) -> None:
    other = ScriptedHandle(site_key=THEIRS)
    other.put("88.118.9/X", URL)
    async with other.serving():
        both = (Interface(3, 1, other.port), Interface(2, 0, other.port))

        def refer(key: PrivateKey) -> None:
            public = keys.encode_public_key(key.public)
            site = Site((Server.at(1, "127.0.0.1", public, both),))
            value = Value(1, "HS_SITE", site.encode())
            server.referrals["88.118.9/"] = (
                ResponseCode.SERVICE_REFERRAL, Referral("", (value,))
            )  # fmt: skip

        async with Client(server.url, handle=CERTIFIED, retries=0) as client:
            refer(THEIRS)
            assert (await client.resolve("88.118.9/X")).record.values == (URL,)
            refer(OURS)
            with pytest.raises(MalformedAnswer):
                await client.resolve("88.118.9/X")


# Sessions -------------------------------------------------------------------------------

WAYS = [
    (KeyExchange.DIFFIE_HELLMAN, None),
    (KeyExchange.CLIENT_KEY, None),
    (KeyExchange.SERVER_KEY, None),
    (KeyExchange.HANDLE_KEY, THEIRS),
    (KeyExchange.HANDLE_KEY, SM2),
]


def session_client(
    server: ScriptedHandle, way: KeyExchange, private: PrivateKey | None, udp: bool = False
) -> Client:
    options = HandleOptions(session=way, udp=udp)
    if private is None:
        return Client(server.url, identity=IDENTITY, secret=SECRET, handle=options, backoff=QUICK)
    server.user_key = private.public
    return Client(server.url, identity=IDENTITY, private_key=private, handle=options, backoff=QUICK)


@pytest.mark.parametrize(("way", "private"), WAYS)
async def test_writes_go_through_an_encrypted_session(
    server: ScriptedHandle, way: KeyExchange, private: PrivateKey | None
) -> None:
    async with session_client(server, way, private) as client:
        await client.register("88.118.8/S1", {"URL": "x"})
        await client.register("88.118.8/S2", {"URL": "x"})
        await client.modify("88.118.8/S2", [Value(1, "URL", b"y")])
        assert (await client.resolve(A)).record.values == (URL, PIN)
        assert len([record async for record in client.records("88.118.8")]) == 3
    opcodes = [message.opcode for _, message in server.seen]
    assert opcodes.count(400) == 1
    assert opcodes.count(200) == 1
    assert opcodes[-1] == 401
    (session,) = server.sessions
    inside = [message for _, message in server.seen if message.opcode not in (2, 400, 402)]
    assert {message.session_id for message in inside} == {session}
    assert all(message.has(OpFlag.ENCRYPT) for message in inside)
    counters = [message.credential.counter for message in inside if message.credential]
    assert counters == list(range(1, len(inside) + 1))


async def test_many_writes_at_once_prove_themselves_once(server: ScriptedHandle) -> None:
    from biaojie import Row

    async with session_client(server, KeyExchange.DIFFIE_HELLMAN, None) as client:
        rows = [Row(f"88.118.8/R{n}", [URL]) for n in range(40)]
        assert all([result.ok async for result in client.register_many(rows)])
    opcodes = [message.opcode for _, message in server.seen]
    assert (opcodes.count(400), opcodes.count(200), opcodes.count(100)) == (1, 1, 40)


async def test_a_read_that_needs_no_login_needs_no_session(server: ScriptedHandle) -> None:
    server.put("88.118.8/P", URL)
    async with session_client(server, KeyExchange.DIFFIE_HELLMAN, None, udp=True) as client:
        assert (await client.resolve("88.118.8/P")).record.values == (URL,)
        assert server.over() == ["udp 1"]
        assert (await client.resolve(A)).record.values == (URL, PIN)
    assert server.over()[:2] == ["udp 1", "udp 1"]
    assert 400 in {message.opcode for _, message in server.seen}


async def test_a_forgotten_session_is_set_up_anew(server: ScriptedHandle) -> None:
    async with session_client(server, KeyExchange.DIFFIE_HELLMAN, None) as client:
        await client.register("88.118.8/S1", {"URL": "x"})

        async def forgotten(met: Met) -> None:
            lost = answer_to(met.request, Failure("who?"), ResponseCode.SESSION_TIMEOUT)
            await met.send(encode_message(replace(lost, request_id=0, digest=None)))

        server.faults.append(forgotten)
        assert (await client.resolve(A)).record.values == (URL, PIN)
    opcodes = [message.opcode for _, message in server.seen]
    assert opcodes.count(400) == 2


async def test_a_session_needs_the_servers_signature(server: ScriptedHandle) -> None:
    async def between(met: Met) -> None:
        lie = answer_to(met.request, met_body(met), 1, session_id=7)
        await met.send(signed(lie, THEIRS))

    async with session_client(server, KeyExchange.DIFFIE_HELLMAN, None) as client:
        await client.prefixes.home("88.118.9", "")
        client._transport._exchange._servers.popitem()  # type: ignore[attr-defined]
    trusting = HandleOptions(session=KeyExchange.DIFFIE_HELLMAN, site_key=OURS.public, udp=False)
    server.faults.append(between)
    async with Client(
        server.url, identity=IDENTITY, secret=SECRET, handle=trusting, retries=0
    ) as client:
        with pytest.raises(MalformedAnswer):
            await client.register("88.118.8/S1", {})


def met_body(met: Met) -> SessionResponse:
    body = decode_message(met.frames[0]).body
    assert isinstance(body, SessionResponse)
    return body


@pytest.mark.parametrize("what", ["plain", "other key", "no mac", "junk"])
async def test_inside_a_session_only_the_session_is_believed(
    server: ScriptedHandle, what: str
) -> None:
    async def lies(met: Met) -> None:
        message = answer_to(met.request, ResolveResponse(A, (Value(1, "URL", b"evil"),)))
        if what == "plain":
            await met.send(signed(message, OURS))
            return
        session = server.sessions[met.request.session_id]
        assert session.key is not None
        key = keys.new_session_key() if what == "other key" else session.key
        version = message.version
        junk = what == "junk"
        await met.send(encode_message(
            message,
            lambda data: b"x" * 64 if junk else keys.encrypt_message(key, version, data),
        ))  # fmt: skip

    async with session_client(server, KeyExchange.DIFFIE_HELLMAN, None) as client:
        await client.register("88.118.8/S1", {"URL": "x"})
        server.faults.append(lies)
        with pytest.raises(MalformedAnswer):
            await client.resolve(A)
        assert (await client.resolve(A)).record.values == (URL, PIN)


async def test_sessions_that_cannot_be(server: ScriptedHandle) -> None:
    dsa = keys.generate("dsa")
    server.put("88.118.8/P", URL)
    for private in (None, dsa):
        async with session_client(server, KeyExchange.HANDLE_KEY, private) as client:
            with pytest.raises(InvalidRequest):
                await client.register("88.118.8/S1", {})

    async def refused(met: Met) -> None:
        no = answer_to(met.request, Failure("no"), ResponseCode.SESSION_FAILED)
        await met.send(signed(no, OURS))

    async def other_kind(met: Met) -> None:
        body = SessionResponse(KeyExchange.CLIENT_KEY, b"")
        await met.send(signed(answer_to(met.request, body, session_id=3), OURS))

    async def no_key(met: Met) -> None:
        body = SessionResponse(KeyExchange.DIFFIE_HELLMAN, b"\0\0\0\3nothing")
        await met.send(signed(answer_to(met.request, body, session_id=3), OURS))

    for fault, error in (
        (refused, Unauthenticated), (other_kind, MalformedAnswer), (no_key, MalformedAnswer)
    ):  # fmt: skip
        async with session_client(server, KeyExchange.DIFFIE_HELLMAN, None) as client:
            await client.resolve("88.118.8/P")
            exchange = client._transport._exchange  # type: ignore[attr-defined]
            (known,) = exchange._servers.values()
            await known._learn_keys(1e9)
            server.faults.append(fault)
            with pytest.raises(error):
                await client.register("88.118.8/S1", {})
    assert "88.118.8/S1" not in server.records
