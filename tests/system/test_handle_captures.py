"""What a real client said to a real server, said again to a node: the answers mean the same.

Nonces, numbers of sessions, keys agreed on and times cannot be the same, so the client's half is
made anew where it depends on them: proofs for the new nonce, MACs under the new key.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from biaojie.keys import DiffieHellman, decode_public_key, encode_public_key, read_reply, verify
from biaojie.record import Reference
from biaojie.wire.handle import (
    MAC,
    AnswerRequest,
    Challenge,
    Failure,
    ListResponse,
    Message,
    OpCode,
    OpFlag,
    Reassembly,
    ResolveResponse,
    ResponseCode,
    SessionKey,
    SessionRequest,
    SessionResponse,
    SiteResponse,
    StreamFraming,
    covered,
    decode_message,
    encode_message,
    with_mac,
)
from tests.handle_meaning import vectors
from tests.handle_talk import RSA, TcpLine, about, proof, udp_exchange

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

PREFIX = "88.111.1"
ADMIN = f"{PREFIX}/ADMIN"
SECRET = b"peer-secret"
KNOWN = f"{PREFIX}/P00000042"


@dataclass(frozen=True)
class Exchange:
    """One request as captured, and all messages of its answer."""

    proto: str
    request: Message
    answers: list[Message] = field(default_factory=list)


def captured() -> list[Exchange]:
    """In the order in which the requests were sent."""
    streams: dict[tuple[str, str], StreamFraming] = {}
    reassembly = Reassembly()
    exchanges: dict[int, Exchange] = {}
    for line in vectors("captures"):
        flow = (line["conn"], line["dir"])
        octets = bytes.fromhex(line["hex"])
        if line["proto"] == "udp":
            frame = reassembly.take(flow, octets, 0.0)
            frames = [frame] if frame is not None else []
        else:
            frames = list(streams.setdefault(flow, StreamFraming()).feed(octets))
        for message in map(decode_message, frames):
            if message.is_request:
                exchanges[message.request_id] = Exchange(line["proto"], message)
            else:
                exchanges[message.request_id].answers.append(message)
    return list(exchanges.values())


EXCHANGES = captured()


@pytest.fixture(scope="module")
def peer(make_node: Callable[..., RunningNode]) -> Iterator[RunningNode]:
    """A node with the records that the captured server had, as far as the client saw them."""
    node = make_node()
    body = {"prefix": PREFIX, "tenant": "acme", "admin": f"0:{ADMIN}"}
    assert node.ask("POST", "/api/v1/prefixes", body).status == 201
    (resolved,) = (
        message.body.values
        for exchange in EXCHANGES
        for message in exchange.answers
        if isinstance(message.body, ResolveResponse)
    )
    octets = {
        ADMIN: [
            (300, "HS_SECKEY", SECRET, "1100"),
            (301, "HS_PUBKEY", encode_public_key(RSA.public), "1110"),  # type: ignore[union-attr]
        ],
        KNOWN: [(v.index, v.type, v.data, str(v.permissions)) for v in resolved],
    }
    for handle, values in octets.items():
        listed = [
            {
                "index": index,
                "type": type_,
                "permissions": permissions,
                "data": {"format": "base64", "value": base64.b64encode(data).decode()},
            }
            for index, type_, data, permissions in values
        ]
        reply = node.ask("PUT", f"/api/v1/identifiers/{handle}", {"values": listed})
        assert reply.status == 201, reply.body
    names = [
        name
        for exchange in EXCHANGES
        for message in exchange.answers
        if isinstance(message.body, ListResponse)
        for name in message.body.handles
        if name not in octets
    ]
    for at in range(0, len(names), 2_000):
        rows = [{"identifier": name, "values": []} for name in names[at : at + 2_000]]
        reply = node.ask("POST", "/api/v1/identifiers:batch", {"mode": "all", "rows": rows})
        assert reply.status == 200, reply.body[:300]
    yield node
    node.stop()


class Replay:
    """The client's half, with what it learnt from the node in place of what was captured."""

    def __init__(self, node: RunningNode) -> None:
        self._node = node
        self.numbers: dict[int, int] = {}  # captured session number → ours
        self.keys: dict[int, SessionKey] = {}
        self.challenges: dict[int, Message] = {}
        self._offer = DiffieHellman()

    def request(self, message: Message) -> Message:
        """What to send for a captured request."""
        session = message.session_id
        body = message.body
        now = int(time.time()) + 43_200
        fresh = replace(
            message, session_id=self.numbers.get(session, 0), expiration=now, received=b""
        )
        if isinstance(body, SessionRequest):
            fresh = replace(fresh, body=replace(body, public_key=self._offer.offer()))
        elif isinstance(body, AnswerRequest):
            key = Reference(ADMIN, body.key.index)
            made = proof(self.challenges[session], key, secret=SECRET).body
            assert isinstance(made, AnswerRequest)
            assert (made.type, made.key) == (body.type, body.key)
            fresh = replace(fresh, body=made)
        if message.credential is not None:
            assert message.credential.type == MAC
            fresh = with_mac(fresh, self.keys[session].octets, message.credential.counter)
        return fresh

    def learn(self, expected: Message, answer: Message) -> None:
        self.numbers.setdefault(expected.session_id, answer.session_id)
        if isinstance(answer.body, SessionResponse):
            cipher, public = read_reply(answer.body.data, answer.version)
            self.keys[expected.session_id] = self._offer.agree(public, cipher)
        elif isinstance(answer.body, Challenge):
            self.challenges[expected.session_id] = answer

    async def ask(self, proto: str, message: Message) -> list[Message]:
        frame = encode_message(message)
        if proto == "udp":
            (answer,) = await udp_exchange(self._node.handle_port, frame)
            if not answer[2] & 0x20:
                return [decode_message(answer)]
            # too much for UDP from an unknown source; a client asks over TCP then
        line = TcpLine(self._node.handle_port)
        try:
            return [decode_message(answer) for answer in await line.exchange(frame)]
        finally:
            line.close()


def meaning(message: Message) -> object:
    """A message without what is another one each time, or put into words by each server."""
    body: object = message.body
    match message.body:
        case ResolveResponse(handle, values):
            body = (handle, tuple(replace(value, timestamp=0) for value in values))
        case Failure():
            body = Failure
        case Challenge(nonce):
            body = (Challenge, len(nonce))
        case SessionResponse(mode):
            body = (SessionResponse, mode)
        case ListResponse():
            body = ListResponse
    credential = message.credential
    return (
        message.opcode,
        message.response_code,
        body,
        hex(message.flags & ~OpFlag.CONTINUOUS),
        message.request_id,
        message.session_id != 0,
        message.version,
        message.suggested,
        message.site_serial,
        message.recursion_count,
        message.digest.algorithm if message.digest is not None else None,
        (credential.type, credential.algorithm) if credential is not None else None,
    )


async def test_a_node_answers_as_the_captured_server_did(peer: RunningNode) -> None:
    assert len(EXCHANGES) > 20
    replay = Replay(peer)
    line = TcpLine(peer.handle_port)
    site = decode_message((await line.exchange(encode_message(about(2, "/"))))[0]).body
    line.close()
    assert isinstance(site, SiteResponse)
    site_key = decode_public_key(site.site.servers[0].public_key)
    seen: set[tuple[int, int]] = set()
    for exchange in EXCHANGES:
        sent = replay.request(exchange.request)
        answers = await replay.ask(exchange.proto, sent)
        expected = exchange.answers
        assert meaning(answers[0]) == meaning(expected[0])
        replay.learn(expected[0], answers[0])
        for answer in answers:
            seen.add((answer.opcode, answer.response_code))
            now = time.time()
            assert now < answer.expiration < now + 2 * 86_400 + 60
            if answer.digest is not None:
                assert answer.digest.matches(encode_message(sent)[20 : 20 + 24 + _body(sent)])
            if answer.credential is not None and answer.credential.type != MAC:
                signature = answer.credential.signature
                assert verify(site_key, answer.credential.algorithm, covered(answer), signature)
        assert all(meaning(answer) == meaning(expected[0]) for answer in answers)
        assert _handles(answers) == _handles(expected)
        assert [a.has(OpFlag.CONTINUOUS) for a in answers] == [True] * (len(answers) - 1) + [False]
    assert seen == {
        (OpCode.RESOLUTION, ResponseCode.SUCCESS),
        (OpCode.RESOLUTION, ResponseCode.HANDLE_NOT_FOUND),
        (OpCode.RESOLUTION, ResponseCode.SERVER_NOT_RESPONSIBLE),
        (OpCode.SESSION_SETUP, ResponseCode.SUCCESS),
        (OpCode.CREATE_HANDLE, ResponseCode.AUTHENTICATION_NEEDED),
        (OpCode.CREATE_HANDLE, ResponseCode.SUCCESS),
        (OpCode.ADD_VALUE, ResponseCode.SUCCESS),
        (OpCode.MODIFY_VALUE, ResponseCode.SUCCESS),
        (OpCode.REMOVE_VALUE, ResponseCode.SUCCESS),
        (OpCode.DELETE_HANDLE, ResponseCode.SUCCESS),
        (OpCode.LIST_HANDLES, ResponseCode.AUTHENTICATION_NEEDED),
        (OpCode.LIST_HANDLES, ResponseCode.SUCCESS),
    }


async def test_what_was_captured_is_refused_when_it_is_sent_again_as_it_was(
    peer: RunningNode,
) -> None:
    """The octets of the captured client prove nothing here: other nonces, other keys."""
    refused = {
        ResponseCode.SESSION_TIMEOUT,
        ResponseCode.LOGIN_FIRST,
        ResponseCode.AUTHENTICATION_TIMEOUT,
        ResponseCode.AUTHENTICATION_NEEDED,
    }
    public = (OpCode.RESOLUTION, OpCode.SESSION_SETUP)
    messages = [e.request for e in EXCHANGES if e.request.opcode not in public]
    assert len(messages) >= 10
    replay = Replay(peer)
    for message in messages:
        (answer,) = await replay.ask("tcp", replace(message, received=b""))
        assert answer.response_code in refused, answer


def _body(message: Message) -> int:
    return len(message.body.encode())


def _handles(messages: list[Message]) -> list[str]:
    return [h for m in messages if isinstance(m.body, ListResponse) for h in m.body.handles]
