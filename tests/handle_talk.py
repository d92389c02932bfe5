"""A Handle client for tests, made of the codec alone: it says just what it is told to, right or
wrong, to operations in this process or to a node over TCP, UDP or HTTP.
"""

from __future__ import annotations

import http.client
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from biaojie.keys import PrivateKey, RsaPrivateKey, default_hash, encode_public_key, generate, sign
from biaojie.record import PERMISSIONS_SECRET, Permissions, Reference, Value
from biaojie.wire.handle import (
    FLAGS_DEFAULT,
    MEDIA_TYPE,
    PUBLIC_KEY,
    SECRET_KEY,
    AnswerForm,
    AnswerRequest,
    Body,
    Challenge,
    HandleRequest,
    LoginRequest,
    Message,
    OpCode,
    OpFlag,
    PublicKeyAnswer,
    Reassembly,
    ResolveRequest,
    ResponseCode,
    StreamFraming,
    ValuesRequest,
    decode_message,
    encode_message,
    secret_answer,
    split,
    whole_frames,
)
from registry.memory import MemoryStore
from registry.operations import Create, HomePrefix
from resolver.handle import site
from resolver.handle.operations import HandleRules, Operations
from resolver.handle.peer import Peer
from resolver.observe import Observer
from tests.core_parts import Parts, identifier, write

PREFIX = "88.118.8"
ADMIN = f"{PREFIX}/ADMIN"
SECRET = b"correct horse"
SECKEY = Reference(ADMIN, 300)
PUBKEY = Reference(ADMIN, 301)
RSA = generate("rsa")
PRIVATE = OpFlag.RECURSIVE | OpFlag.CACHE_AUTHENTICATE
"""Flags of who wants private values too."""
WAIT_S = 10.0


def text_value(index: int = 1, data: str = "https://example.com/", type_: str = "URL") -> Value:
    return Value(index, type_, data.encode())


def hidden(index: int = 9, data: str = "for us") -> Value:
    return Value(index, "NOTE", data.encode(), permissions=Permissions.parse("1100"))


def key_values() -> tuple[Value, ...]:
    """What the record of the administrator holds: a secret at 300, an RSA key at 301."""
    assert isinstance(RSA, RsaPrivateKey)
    return (
        Value(300, "HS_SECKEY", SECRET, permissions=PERMISSIONS_SECRET),
        Value(301, "HS_PUBKEY", encode_public_key(RSA.public)),
    )


_last = secrets.randbelow(10**6)


def request(opcode: int, body: Body, flags: int = FLAGS_DEFAULT, **fields: Any) -> Message:
    """A request with a number of its own, as existing clients send it."""
    global _last
    _last += 1
    given = {"request_id": _last, "expiration": int(time.time()) + 43_200, **fields}
    return Message(opcode, body, flags=flags, **given)


def resolve(handle: str, *, indexes: Any = (), types: Any = (), **fields: Any) -> Message:
    return request(
        OpCode.RESOLUTION, ResolveRequest(handle, tuple(indexes), tuple(types)), **fields
    )


def create(handle: str, *values: Value, **fields: Any) -> Message:
    return request(OpCode.CREATE_HANDLE, ValuesRequest(handle, values or (text_value(),)), **fields)


def about(opcode: int, handle: str, **fields: Any) -> Message:
    return request(opcode, HandleRequest(handle), **fields)


def login(key: Reference = SECKEY, **fields: Any) -> Message:
    given = {"flags": OpFlag.REQUEST_DIGEST, **fields}
    return request(OpCode.LOGIN, LoginRequest(key), **given)


def proof(
    challenged: Message,
    key: Reference = SECKEY,
    *,
    secret: bytes = SECRET,
    private_key: PrivateKey = RSA,
    form: AnswerForm = AnswerForm.PBKDF2,
    **fields: Any,
) -> Message:
    """The answer to a challenge, in the session that it came in."""
    assert challenged.response_code == ResponseCode.AUTHENTICATION_NEEDED, challenged
    assert isinstance(challenged.body, Challenge)
    assert challenged.digest is not None
    nonce, digest = challenged.body.nonce, challenged.digest.octets
    if key.index == SECKEY.index:
        type_ = SECRET_KEY
        answer = secret_answer(form, secret, nonce, digest, salt=secrets.token_bytes(16))
    else:
        type_ = PUBLIC_KEY
        name = default_hash(private_key, (2, 11))
        signature = sign(private_key, name, nonce + digest, key.identifier)
        answer = PublicKeyAnswer(name, signature).encode()
    body = AnswerRequest(type_, key, answer)
    given = {"session_id": challenged.session_id, "version": challenged.version, **fields}
    return request(OpCode.CHALLENGE_RESPONSE, body, **given)


@dataclass
class Talk:
    """`ask` sends a message and gives the whole answer; `answer` its only message."""

    exchange: Callable[[bytes], Awaitable[list[bytes]]]

    async def ask(
        self,
        message: Message,
        seal: Callable[[bytes], bytes] | None = None,
        unseal: Callable[[bytes], bytes] | None = None,
    ) -> list[Message]:
        frames = await self.exchange(encode_message(message, seal))
        return [decode_message(frame, unseal) for frame in frames]

    async def answer(self, message: Message, *sealing: Any) -> Message:
        (only,) = await self.ask(message, *sealing)
        assert only.request_id == message.request_id
        return only

    async def authorized(self, message: Message, key: Reference = SECKEY) -> Message:
        """The answer after the challenge."""
        return await self.answer(proof(await self.answer(message), key))

    async def code(self, message: Message) -> int:
        return (await self.answer(message)).response_code


@dataclass
class Desk:
    """Operations in this process over an empty registry, with an administrator of `PREFIX`."""

    parts: Parts
    operations: Operations
    data_dir: Path
    peers: list[Peer] = field(default_factory=list)

    def peer(
        self, transport: Literal["udp", "tcp", "http"] = "tcp", address: str = "192.0.2.1"
    ) -> Peer:
        scope = object() if transport == "tcp" else None
        return Peer(address, transport, verified=transport != "udp", scope=scope)

    def talk(self, peer: Peer | None = None) -> Talk:
        """By `peer`, else on a TCP connection of its own."""
        peer = peer or self.peer()

        async def exchange(frame: bytes) -> list[bytes]:
            return [message async for message in self.operations.answer(frame, peer)]

        return Talk(exchange)


@asynccontextmanager
async def desk(data_dir: Path, store: Any = None, **rules: Any) -> AsyncIterator[Desk]:
    clock = rules.pop("clock", time.monotonic)
    async with Parts(store or MemoryStore()) as parts:
        operations = Operations(
            parts.service,
            parts.local,
            parts.service._referral,
            parts.store,
            Observer(),
            HandleRules(**rules),
            clock=clock,
        )
        await operations.open(data_dir)
        operations.publish(["127.0.0.1", "::1"], site.Ports(2641, 8080), "test", data_dir)
        admin = Reference(ADMIN, 0)
        for operation in (
            HomePrefix(PREFIX, "acme", admin=admin),
            Create(identifier("ADMIN"), key_values()),
            Create(identifier("SN1"), (text_value(), hidden())),
        ):
            (await write(parts.registrar, operation)).single()
        yield Desk(parts, operations, data_dir)


# A node over sockets ------------------------------------------------------------------------


class TcpLine:
    """A TCP connection; blocking, for nodes in other processes."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._socket = socket.create_connection((host, port), WAIT_S)
        self._framing = StreamFraming()
        self._frames: list[bytes] = []

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> bytes:
        while not self._frames:
            data = self._socket.recv(65_536)
            if not data:
                raise EOFError("the node hung up")
            self._frames += self._framing.feed(data)
        return self._frames.pop(0)

    async def exchange(self, frame: bytes) -> list[bytes]:
        self.send(frame)
        answers = [self.receive()]
        while decode_envelope_flags(answers[-1]) & OpFlag.CONTINUOUS:
            answers.append(self.receive())
        return answers

    def close(self) -> None:
        self._socket.close()


def decode_envelope_flags(frame: bytes) -> int:
    """The operation flags of a frame that is not sealed, else 0."""
    return 0 if frame[2] & 0x40 else int.from_bytes(frame[28:32], "big")


async def udp_exchange(port: int, frame: bytes, host: str = "127.0.0.1") -> list[bytes]:
    """One question over UDP, whose answer may be the cut form (ask over TCP), as it came. Raises
    TimeoutError where nothing comes."""
    reassembly = Reassembly()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.settimeout(WAIT_S)
        for packet in split(frame):
            line.sendto(packet, (host, port))
        while True:
            packet, source = line.recvfrom(65_536)
            if packet[2] & 0x20 and len(packet) - 20 == int.from_bytes(packet[16:20], "big"):
                return [packet]
            whole = reassembly.take(source, packet, time.monotonic())
            if whole is not None:
                return [whole]


async def http_exchange(port: int, frame: bytes, host: str = "127.0.0.1") -> list[bytes]:
    """One question through the HTTP tunnel."""
    connection = http.client.HTTPConnection(host, port, timeout=WAIT_S)
    try:
        connection.request("POST", "/", frame, {"Content-Type": MEDIA_TYPE, "Accept": MEDIA_TYPE})
        response = connection.getresponse()
        assert response.getheader("Content-Type") == MEDIA_TYPE
        return list(whole_frames(response.read()))
    finally:
        connection.close()


def replayed(message: Message, **changed: Any) -> Message:
    """The same message again, as far as not changed."""
    return replace(message, received=b"", **changed)
