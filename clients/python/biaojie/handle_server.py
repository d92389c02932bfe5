"""One Handle server: asking it by the transport that fits, telling its answers from others',
logging in, and its keys. Where to ask instead, and when to ask again, is `handle_exchange`'s.

A request has the server put its digest into the answer, so an answer belongs to the question
or is none. A write is sent over TCP, once; when nobody can say whether it arrived, the caller
hears just that (OutcomeUnknown).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from .errors import (
    BiaojieError,
    DeadlineExceeded,
    InvalidRequest,
    MalformedAnswer,
    Text,
    TooLarge,
    Unauthenticated,
    Unreachable,
)
from .handle_answer import Asked, read_answer
from .handle_connections import Connections, Lost, Question
from .handle_datagrams import Accept, Datagrams, Nothing
from .handle_options import HandleOptions, Login, address_of
from .handle_proof import answer_challenge, signed_by, site_keys
from .handle_session import Session, set_up
from .keys import PublicKey
from .transport import Options
from .wire.handle import (
    DATAGRAM_OCTETS_MAX,
    VERSION_CAUTIOUS,
    Body,
    Challenge,
    Failure,
    HandleRequest,
    KeyExchange,
    Message,
    OpCode,
    OpFlag,
    Oversized,
    ResponseCode,
    SiteResponse,
    encode_message,
    error_of,
)

_LIFE_S: Final = 12 * 3_600
"""Of a request, as clients have always said."""
_REST_S: Final = 60.0
"""How long UDP is left alone after it brought nothing and TCP did."""
_CLOSE_S: Final = 1.0
_CHALLENGES_MAX: Final = 2
"""The second is from servers that had to ask a third one, which speaks an older version."""
_FORGOTTEN: Final = frozenset(
    {
        ResponseCode.SESSION_TIMEOUT,
        ResponseCode.SESSION_FAILED,
        ResponseCode.INVALID_SESSION_KEY,
        ResponseCode.SESSION_MESSAGE_REJECTED,
    }
)
_IN_DOUBT: Final = frozenset(
    {
        ResponseCode.CHANNEL_ERROR,
        ResponseCode.CHANNEL_TIMEOUT,
        ResponseCode.TRYING,
        ResponseCode.FORWARDED,
        ResponseCode.QUEUED,
    }
)
"""What a server says that has passed a write on to another."""


class OutcomeUnknown(DeadlineExceeded):
    """A write left, and no answer came back. Field `outcome` is `unknown`."""

    title = Text("Nobody can say whether the write happened", "无法确定写入是否已生效")
    advice = Text(
        "Look at the identifier before you repeat it: the Handle protocol has no idempotency key.",
        "重试前请先查询该标识：Handle 协议没有幂等键。",
    )
    retryable = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server answers: `tcp` and `udp` are ports, None where it does not. `keys` is what
    its answers may be signed with, where that is known beforehand."""

    host: str
    tcp: int | None
    udp: int | None
    keys: tuple[PublicKey, ...] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """An operation, for whichever server is responsible for `handle`.

    `write`: it must not happen twice. `take` gets all parts of a long answer but the last.
    `bulk`: one of many, which go over TCP. `hops`: how many servers sent us on before.
    """

    opcode: int
    body: Body
    handle: str
    flags: int = 0
    write: bool = False
    take: Callable[[Message], None] | None = None
    bulk: bool = False
    hops: int = 0


@dataclass(slots=True)
class _Talk:
    """An Ask under way: what has been said so far, for answers name it by its digest."""

    ask: Ask
    deadline: float
    session: Session | None = None
    certified: bool = False
    said: list[bytes] = field(default_factory=list)


class HandleServer:
    """Everything that is kept of one server, for one event loop."""

    def __init__(
        self, place: Place, options: Options, handle: HandleOptions, login: Login | None
    ) -> None:
        self.place = place
        self._handle = handle
        self._login = login
        self._loop = asyncio.get_running_loop()
        self._datagrams: Datagrams | None = None
        self._udp_rests_until = 0.0
        self._keys = place.keys
        self._session: Session | None = None
        self._learning = asyncio.Lock()
        self._setting_up = asyncio.Lock()
        self._tcp: Connections | None = None
        if place.tcp is not None:
            self._tcp = Connections(
                place.host,
                place.tcp,
                most=options.connections_max,
                connect_timeout_s=options.connect_timeout_s,
                idle_s=options.idle_s,
            )

    @property
    def address(self) -> str:
        return address_of(self.place.host, self.place.tcp or self.place.udp or 0)

    @property
    def busy(self) -> bool:
        """Whether somebody waits for it over TCP."""
        return self._tcp is not None and self._tcp.busy

    @property
    def session(self) -> Session | None:
        """The session that writes go through, once one has been set up."""
        return self._session

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None and self._loop.time() < session.until:
            end = Ask(OpCode.SESSION_TERMINATE, HandleRequest(""), "", write=True)
            with suppress(BiaojieError):  # else it ends by itself
                deadline = self._loop.time() + _CLOSE_S
                await self._say(_Talk(end, deadline, session), end.opcode, end.body)
        if self._datagrams is not None:
            self._datagrams.close()
        if self._tcp is not None:
            await self._tcp.close()

    # Asking -----------------------------------------------------------------------------

    async def ask(self, ask: Ask, deadline: float) -> Message:
        """The last part of the answer, success or referral; raises what else was answered, or
        Unreachable, DeadlineExceeded, MalformedAnswer, OutcomeUnknown."""
        message = await self._ask(ask, deadline)
        used = self._session
        if message.response_code in _FORGOTTEN and used is not None:
            self._forget(used)  # the server knows it no more, and has done nothing
            message = await self._ask(ask, deadline)
        if ask.write and message.response_code in _IN_DOUBT:
            error = error_of(message.response_code)
            raise OutcomeUnknown(*error.detail, **error.fields, outcome="unknown")
        return _good(message)

    async def _ask(self, ask: Ask, deadline: float) -> Message:
        """In a session if there is to be one: from the start for writes and lists, else only
        once the server has asked who we are."""
        if self._handle.certified:
            await self._learn_keys(deadline)
        talk = _Talk(ask, deadline, certified=self._handle.certified)
        if self._handle.session is None or self._login is None:
            return await self._converse(talk)
        known = self._session is not None and self._session.proven
        if not (known or ask.write or ask.take):
            message = await self._say(talk, ask.opcode, ask.body)
            if not isinstance(message.body, Challenge):
                return message
        session = await self._open_session(self._handle.session, self._login, deadline)
        talk = _Talk(ask, deadline, session)
        if session.proven:
            return await self._converse(talk)
        await self._acquire(session.proving, deadline)
        try:
            message = await self._converse(talk)
            if len(talk.said) > 1 and not isinstance(message.body, Challenge):
                session.proven = session.proven or message.response_code < 400
            return message
        finally:
            session.proving.release()

    async def _converse(self, talk: _Talk) -> Message:
        """Ask, prove who we are if asked to, and bring back what comes of it."""
        message = await self._say(talk, talk.ask.opcode, talk.ask.body)
        for _ in range(_CHALLENGES_MAX):
            if not isinstance(message.body, Challenge):
                return message
            proof = answer_challenge(self._login, message, talk.said)
            message = await self._say(talk, OpCode.CHALLENGE_RESPONSE, proof, message)
        if isinstance(message.body, Challenge):
            raise Unauthenticated(
                "The Handle server asks for proof again and again.",
                "Handle 服务器反复要求身份验证。",
            )
        return message

    async def _say(
        self,
        talk: _Talk,
        opcode: int,
        body: Body,
        challenge: Message | None = None,
        session_id: int = 0,
    ) -> Message:
        """One message to the server and the answer to it, whatever that says."""
        ask, session = talk.ask, talk.session
        certify = OpFlag.CERTIFY if talk.certified else 0
        request = Message(
            opcode,
            body,
            flags=ask.flags | certify | OpFlag.REQUEST_DIGEST | OpFlag.KEEP_CONNECTION,
            request_id=secrets.randbelow(0x7FFF_FFFF) + 1,
            session_id=session_id if challenge is None else challenge.session_id,
            version=VERSION_CAUTIOUS if challenge is None else challenge.version,
            recursion_count=min(ask.hops, 255),
            expiration=int(time.time()) + _LIFE_S,
        )
        try:
            if session is not None:
                request, frame = session.seal(request)
            else:
                frame = encode_message(request)
        except Oversized as fault:
            raise TooLarge(f"{fault}.", f"{fault}。") from None
        except ValueError as fault:
            raise InvalidRequest(
                f"The request cannot be written: {fault}.", f"请求无法写出：{fault}。"
            ) from None
        talk.said.append(request.header_and_body())
        keys = self._keys if talk.certified else None
        asked = Asked(request.request_id, ask.opcode, tuple(talk.said), session, keys)
        return await self._send(talk, request, frame, lambda got: read_answer(got, asked))

    async def _send(self, talk: _Talk, request: Message, frame: bytes, accept: Accept) -> Message:
        ask, deadline = talk.ask, talk.deadline
        got: Message | Nothing = Nothing.CUT
        over_udp = not (ask.write or ask.take or ask.bulk) and talk.session is None
        if over_udp and len(frame) <= DATAGRAM_OCTETS_MAX:
            got = await self._by_udp(frame, request.request_id, accept, deadline)
            if isinstance(got, Message):
                return got
        if self._tcp is None:
            raise Unreachable(
                f"{self.address} gave no answer over UDP.", f"{self.address} 未通过 UDP 答复。"
            )
        question = Question(frame, request.request_id, accept, ask.take)
        error: BiaojieError
        try:
            async with asyncio.timeout_at(deadline):
                message = await self._tcp.ask(question, alone=ask.take is not None, fresh=ask.write)
            if got is Nothing.SILENCE:
                self._udp_rests_until = self._loop.time() + _REST_S
            return message
        except Lost as fault:
            error = Unreachable(f"{self.address}: {fault}.", f"{self.address}：{fault}。")
        except TimeoutError:
            error = DeadlineExceeded(
                f"{self.address} did not answer in time.", f"{self.address} 未在限时内答复。"
            )
        except MalformedAnswer as fault:
            if ask.write:
                fault.fields = {**fault.fields, "outcome": "unknown"}
            raise
        if ask.write and question.sent:
            raise OutcomeUnknown(*error.detail, outcome="unknown")
        raise error

    async def _by_udp(
        self, frame: bytes, request_id: int, accept: Accept, deadline: float
    ) -> Message | Nothing:
        port = self.place.udp
        if port is None or not self._handle.udp or self._loop.time() < self._udp_rests_until:
            return Nothing.CUT
        if self._datagrams is None or not self._datagrams.usable:
            try:
                async with asyncio.timeout_at(deadline):
                    self._datagrams = await Datagrams.open(self.place.host, port)
            except (OSError, TimeoutError):
                return Nothing.CUT
        return await self._datagrams.ask(frame, request_id, accept, deadline)

    # Keys and sessions ------------------------------------------------------------------

    async def _learn_keys(self, deadline: float) -> None:
        """The server's keys, from itself; the answer must be signed with one of them."""
        if self._keys:
            return
        await self._acquire(self._learning, deadline)
        try:
            if not self._keys:
                self._keys = await self._own_keys(deadline)
        finally:
            self._learning.release()

    async def _own_keys(self, deadline: float) -> tuple[PublicKey, ...]:
        ask = Ask(OpCode.GET_SITE_INFO, HandleRequest("/"), "/", OpFlag.CERTIFY)
        message = _good(await self._say(_Talk(ask, deadline), ask.opcode, ask.body))
        keys = site_keys(message.body.site) if isinstance(message.body, SiteResponse) else ()
        if not signed_by(message, keys):
            raise MalformedAnswer(
                f"{self.address} did not sign the description of itself.",
                f"{self.address} 未对自身的站点信息签名。",
            )
        return keys

    async def _open_session(self, mode: KeyExchange, login: Login, deadline: float) -> Session:
        await self._learn_keys(deadline)

        async def send(opcode: int, body: Body, session_id: int) -> Message:
            ask = Ask(opcode, body, "", write=True)
            talk = _Talk(ask, deadline, certified=True)
            return _good(await self._say(talk, opcode, body, session_id=session_id))

        await self._acquire(self._setting_up, deadline)
        try:
            now = self._loop.time()
            if self._session is None or now >= self._session.until:
                self._session = await set_up(mode, login, send, now)
            return self._session
        finally:
            self._setting_up.release()

    def _forget(self, session: Session) -> None:
        if self._session is session:
            self._session = None

    async def _acquire(self, lock: asyncio.Lock, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await lock.acquire()
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self.address} did not answer in time.", f"{self.address} 未在限时内答复。"
            ) from None


def _good(message: Message) -> Message:
    if isinstance(message.body, Failure):
        raise error_of(message.response_code, message.body.message)
    return message
