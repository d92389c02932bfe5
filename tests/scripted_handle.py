"""A Handle server in miniature, UDP and TCP on one real loopback port, that misbehaves when told.

It keeps records in a dictionary, challenges writes, lists in parts, signs, and holds encrypted
sessions; codec and keys are the library's own, which other tests hold against the captures of
real servers (`captured_records`). `faults` holds what shall happen to the coming requests, one
each; `seen` is every request that could be read, as `(transport, message)`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from biaojie import keys
from biaojie.record import Reference, Value
from biaojie.wire.handle import (
    ENVELOPE_OCTETS,
    SIGNED,
    AnswerRequest,
    Body,
    Challenge,
    Cipher,
    CreateResponse,
    Credential,
    Done,
    Failure,
    HandleRequest,
    Interface,
    KeyExchange,
    KeyRequest,
    ListResponse,
    Malformed,
    Message,
    OpCode,
    OpFlag,
    Reassembly,
    Referral,
    RemoveRequest,
    ResolveRequest,
    ResolveResponse,
    ResponseCode,
    Server,
    SessionKey,
    SessionRequest,
    SessionResponse,
    Site,
    SiteResponse,
    StreamFraming,
    ValuesRequest,
    Version,
    answer_to,
    asked_for,
    covered,
    decode_envelope,
    decode_message,
    decode_payload,
    decode_public_key_answer,
    encode_message,
    mac_matches,
    secret_answer_matches,
    split,
    with_mac,
)

CAPTURES = Path(__file__).parent / "vectors" / "handle" / "captures.jsonl"
IDENTITY = "300:88.118.8/ADMIN"
SECRET = b"a secret of the tests"
Send = Callable[[bytes], Awaitable[None]]


@dataclass
class Met:
    """A request and what the server would say to it: `frames`, which go out with `send`."""

    transport: str
    request: Message
    frames: list[bytes]
    send: Send
    close: Callable[[], None]

    async def say_all(self) -> None:
        for frame in self.frames:
            await self.send(frame)


Fault = Callable[[Met], Awaitable[None]]


@dataclass
class _Session:
    key: SessionKey | None
    identity: Reference
    proven: bool = False
    counter: int = 0
    private: keys.PrivateKey | None = None


@dataclass
class ScriptedHandle:
    port: int = 0
    records: dict[str, tuple[str, tuple[Value, ...]]] = field(default_factory=dict)
    prefixes: set[str] = field(default_factory=set)
    referrals: dict[str, tuple[ResponseCode, Referral]] = field(default_factory=dict)
    faults: deque[Fault] = field(default_factory=deque)
    seen: list[tuple[str, Message]] = field(default_factory=list)
    done: list[tuple[int, str]] = field(default_factory=list)
    hangs_up: bool = False
    open_to_all: bool = False
    says_version: Version | None = None
    site_key: keys.PrivateKey | None = None
    user_key: keys.PublicKey | None = None
    sessions: dict[int, _Session] = field(default_factory=dict)
    connections: int = 0
    part_names: int = 3
    _pending: dict[int, tuple[Message, Challenge, bytes]] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"hdl://127.0.0.1:{self.port}"

    @property
    def site(self) -> Site:
        public = b"" if self.site_key is None else keys.encode_public_key(self.site_key.public)
        both = (Interface(3, 1, self.port), Interface(2, 0, self.port))
        return Site((Server.at(1, "127.0.0.1", public, both),))

    def over(self) -> list[str]:
        return [f"{transport} {message.opcode}" for transport, message in self.seen]

    def put(self, handle: str, *values: Value) -> None:
        self.records[handle.upper()] = (handle, values)

    # What it answers --------------------------------------------------------------------

    def answers(self, request: Message) -> list[bytes]:
        body, code = self._judge(request)
        bodies: list[Body] = [body]
        if isinstance(body, ListResponse):
            names, size = body.handles, self.part_names
            cut = [names[at : at + size] for at in range(0, len(names), size)]
            bodies = [ListResponse(part) for part in cut] or [body]
        original = request
        if isinstance(request.body, AnswerRequest):
            original = self._pending[request.session_id][0]
            original = replace(original, request_id=request.request_id)
        frames = []
        for number, part in enumerate(bodies, 1):
            message = answer_to(original, part, code, session_id=self._session_id)
            if number < len(bodies):
                message = replace(message, flags=message.flags | OpFlag.CONTINUOUS)
            if self.says_version is not None:
                message = replace(message, version=self.says_version, suggested=self.says_version)
            frames.append(self._written(message, request))
        return frames

    def _written(self, message: Message, request: Message) -> bytes:
        session = self.sessions.get(request.session_id)
        if session is not None and session.key is not None and request.has(OpFlag.ENCRYPT):
            session.counter += 1
            message = with_mac(message, session.key.octets, session.counter)
            key, version = session.key, message.version
            return encode_message(message, lambda data: keys.encrypt_message(key, version, data))
        if request.has(OpFlag.CERTIFY) and self.site_key is not None:
            octets = keys.sign(self.site_key, "SHA-256", covered(message))
            message = replace(message, credential=Credential(SIGNED, "SHA-256", octets))
        return encode_message(message)

    def _judge(self, request: Message) -> tuple[Body, int]:
        self._session_id = request.session_id
        body, proven = request.body, self.open_to_all
        session = self.sessions.get(request.session_id)
        if session is not None and session.proven:
            proven = True
        if isinstance(body, AnswerRequest):
            if not self._proves(request.session_id, body):
                return Failure("wrong"), ResponseCode.AUTHENTICATION_FAILED
            request, proven = self._pending[request.session_id][0], True
            body = request.body
            if session is not None:
                session.proven = True
        for start, (code, referral) in self.referrals.items():
            if getattr(body, "handle", "").upper().startswith(start.upper()):
                return referral, code
        match request.opcode, body:
            case OpCode.RESOLUTION, ResolveRequest(handle, indexes, types):
                return self._resolve(request, handle, indexes, types, proven)
            case OpCode.GET_SITE_INFO, _:
                return SiteResponse(self.site), ResponseCode.SUCCESS
            case OpCode.SESSION_SETUP, SessionRequest():
                return self._set_up(body, request)
            case OpCode.SESSION_EXCHANGE_KEY, KeyRequest(wrapped):
                assert session is not None
                assert session.private is not None
                session.key = keys.unwrap(session.private, wrapped, request.version)
                return Done(), ResponseCode.SUCCESS
            case OpCode.SESSION_TERMINATE, _:
                return Done(), ResponseCode.SUCCESS
        if not proven:
            return self._challenge(request)
        return self._change(request, body)

    def _resolve(
        self,
        request: Message,
        handle: str,
        indexes: tuple[int, ...],
        types: tuple[str, ...],
        proven: bool,
    ) -> tuple[Body, int]:
        if handle.upper() not in self.records:
            return Failure(), ResponseCode.HANDLE_NOT_FOUND
        values = asked_for(self.records[handle.upper()][1], indexes, types)
        public = tuple(value for value in values if value.permissions & 2)
        if len(public) < len(values) and not request.has(OpFlag.PUBLIC_ONLY) and not proven:
            return self._challenge(request)
        readable = values if proven else public
        if not readable:
            return Failure(), ResponseCode.VALUES_NOT_FOUND
        return ResolveResponse(handle, readable), ResponseCode.SUCCESS

    def _challenge(self, request: Message) -> tuple[Body, int]:
        challenge = Challenge(secrets.token_bytes(16))
        if request.session_id not in self.sessions:
            self._session_id = secrets.randbelow(1 << 31)
        digest = answer_to(request, challenge, ResponseCode.AUTHENTICATION_NEEDED).digest
        assert digest is not None
        self._pending[self._session_id] = (request, challenge, digest.octets)
        return challenge, ResponseCode.AUTHENTICATION_NEEDED

    def _proves(self, session_id: int, body: AnswerRequest) -> bool:
        _, challenge, digest = self._pending[session_id]
        if body.type == "HS_SECKEY":
            return secret_answer_matches(body.answer, SECRET, challenge.nonce, digest)
        assert self.user_key is not None
        told = decode_public_key_answer(body.answer)
        data = challenge.nonce + digest
        user = body.key.identifier
        return keys.verify(self.user_key, told.algorithm, data, told.signature, user)

    def _set_up(self, body: SessionRequest, request: Message) -> tuple[Body, int]:
        version = Version(2, 11)
        session = _Session(keys.new_session_key(Cipher.AES), body.identity)
        assert session.key is not None
        if body.mode == KeyExchange.DIFFIE_HELLMAN:
            theirs = keys.decode_dh_key(body.public_key)
            mine = keys.DiffieHellman(theirs)
            session.key = mine.agree(theirs, Cipher.AES)
            data = mine.reply(Cipher.AES, version)
        elif body.mode == KeyExchange.SERVER_KEY:
            session.private = self.site_key
            assert self.site_key is not None
            data = keys.encode_public_key(self.site_key.public)
        else:
            public = keys.decode_public_key(body.public_key) if body.public_key else self.user_key
            assert public is not None
            data = keys.wrap(public, session.key, version)
        self._session_id = secrets.randbelow(1 << 31) + 1
        self.sessions[self._session_id] = session
        return SessionResponse(body.mode, data), ResponseCode.SUCCESS

    def _change(self, request: Message, body: Body) -> tuple[Body, int]:
        handle = getattr(body, "handle", "")
        name = handle.upper()
        self.done.append((request.opcode, handle))
        old = {value.index: value for value in self.records.get(name, ("", ()))[1]}
        match request.opcode, body:
            case OpCode.LIST_HANDLES, HandleRequest():
                start = name.removeprefix("0.NA/") + "/"
                found = [kept for key, (kept, _) in self.records.items() if key.startswith(start)]
                return ListResponse(tuple(found)), ResponseCode.SUCCESS
            case OpCode.LIST_HOMED_PREFIXES, _:
                return ListResponse(tuple(sorted(self.prefixes))), ResponseCode.SUCCESS
            case OpCode.HOME_PREFIX, _:
                self.prefixes.add(handle)
                return Done(), ResponseCode.SUCCESS
            case OpCode.UNHOME_PREFIX, _:
                self.prefixes.discard(handle)
                return Done(), ResponseCode.SUCCESS
            case OpCode.CREATE_HANDLE, ValuesRequest(values=values):
                if request.has(OpFlag.MINT_SUFFIX):
                    handle += secrets.token_hex(4)
                elif name in self.records and not request.has(OpFlag.OVERWRITE):
                    return Failure(), ResponseCode.HANDLE_ALREADY_EXISTS
                self.put(handle, *values)
                made = handle if request.has(OpFlag.MINT_SUFFIX) else None
                return CreateResponse(made), ResponseCode.SUCCESS
        if name not in self.records:
            return Failure(), ResponseCode.HANDLE_NOT_FOUND
        match request.opcode, body:
            case OpCode.DELETE_HANDLE, _:
                del self.records[name]
            case OpCode.ADD_VALUE, ValuesRequest(values=values):
                if any(value.index in old for value in values):
                    return Failure(), ResponseCode.VALUE_ALREADY_EXISTS
                self.put(handle, *old.values(), *values)
            case OpCode.MODIFY_VALUE, ValuesRequest(values=values):
                if any(value.index not in old for value in values):
                    return Failure(), ResponseCode.VALUES_NOT_FOUND
                self.put(handle, *(old | {value.index: value for value in values}).values())
            case OpCode.REMOVE_VALUE, RemoveRequest(indexes=indexes):
                self.put(handle, *(v for v in old.values() if v.index not in indexes))
            case _:
                return Failure(), ResponseCode.OPERATION_NOT_SUPPORTED
        return Done(), ResponseCode.SUCCESS

    # Transports -------------------------------------------------------------------------

    async def meet(
        self, transport: str, frame: bytes, send: Send, close: Callable[[], None]
    ) -> None:
        envelope = decode_envelope(frame)
        session = self.sessions.get(envelope.session_id)
        if envelope.encrypted:
            assert session is not None
            assert session.key is not None
            payload = keys.decrypt_message(session.key, envelope.version, frame[ENVELOPE_OCTETS:])
            request = decode_payload(envelope, payload)
            assert mac_matches(request, session.key.octets)
        else:
            request = decode_message(frame)
        self.seen.append((transport, request))
        met = Met(transport, request, self.answers(request), send, close)
        await (self.faults.popleft()(met) if self.faults else met.say_all())
        if self.hangs_up and transport == "tcp":
            close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        framing = StreamFraming()

        async def send(frame: bytes) -> None:
            writer.write(frame)
            await writer.drain()

        try:
            while data := await reader.read(65_536):
                for frame in framing.feed(data):
                    self._spawn(self.meet("tcp", frame, send, writer.close))
        except (OSError, Malformed):
            pass
        finally:
            writer.close()

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # type: ignore[arg-type]
        task.add_done_callback(self._tasks.discard)  # type: ignore[arg-type]

    def datagram(self, transport: asyncio.DatagramTransport, data: bytes, peer: object) -> None:
        frame = self._reassembly.take(peer, data, asyncio.get_running_loop().time())

        async def send(answer: bytes) -> None:
            for packet in split(answer):
                transport.sendto(packet, peer)  # type: ignore[arg-type]

        if frame is not None:
            self._spawn(self.meet("udp", frame, send, lambda: None))

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[ScriptedHandle]:
        loop = asyncio.get_running_loop()
        self._reassembly = Reassembly()
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        datagrams, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(self), local_addr=("127.0.0.1", self.port)
        )
        try:
            yield self
        finally:
            datagrams.close()
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, handle: ScriptedHandle) -> None:
        self._handle = handle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, peer: object) -> None:
        self._handle.datagram(self._transport, data, peer)  # type: ignore[arg-type]


def captured_records() -> dict[str, tuple[Value, ...]]:
    """Records that a real server gave over UDP, by handle."""
    found: dict[str, tuple[Value, ...]] = {}
    reassembly = Reassembly()
    for line in CAPTURES.read_text().splitlines():
        packet = json.loads(line)
        if packet["proto"] != "udp" or packet["dir"] != "S>C":
            continue
        frame = reassembly.take(packet["conn"], bytes.fromhex(packet["hex"]), 0.0)
        body = None if frame is None else decode_message(frame).body
        if isinstance(body, ResolveResponse):
            found[body.handle] = body.values
    return found


# Faults ---------------------------------------------------------------------------------


async def lost(met: Met) -> None:
    """It never arrived, or its answer did not."""


async def hung_up(met: Met) -> None:
    met.close()


def before(*noise: Callable[[Met], bytes]) -> Fault:
    """Something else first, then the answer."""

    async def fault(met: Met) -> None:
        for make in noise:
            await met.send(make(met))
        await met.say_all()

    return fault
