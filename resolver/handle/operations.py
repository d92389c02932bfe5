"""Every operation of the Handle protocol, from octets to octets, whatever carries them.

    async for message in operations.answer(frame, peer): …

A request passes `resolver.exchange.serve` once. Who must prove an identity is challenged
(proving.py); what is done is done by the service, in its words.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import structlog

from biaojie.errors import (
    BiaojieError,
    Elsewhere,
    MethodNotAllowed,
    OverCapacity,
    PrefixNotHere,
    Unauthenticated,
)
from biaojie.identifier import Key, fold_prefix
from biaojie.wire.handle import (
    SERIAL_UNKNOWN,
    Body,
    Done,
    Failure,
    HandleRequest,
    Message,
    OpCode,
    OpFlag,
    RemoveRequest,
    ResponseCode,
    SiteResponse,
    ValuesRequest,
    refusal,
    response_code_of,
)
from registry.admission import elsewhere
from registry.store import ReadStore

from ..core import Cached
from ..exchange import new_request_id, serve
from ..observe import Observer
from ..service import Service
from ..steps.local import LocalStep
from ..steps.referral import ReferralStep
from . import nodekey
from . import site as sites
from .asked import ADMINISTRATION, Answered, Asked, identifier_of, prefix_of
from .challenges import PendingRequests
from .direct import DirectWrites
from .exchange import Exchange, is_response
from .identity import Authenticator
from .key_exchange import KeyExchanges
from .lane import HandleLane
from .listing import LISTS, Listing
from .numbers import ALONE, Numbers
from .peer import Peer
from .proving import Proving
from .repeats import Repeats
from .resolution import Resolution
from .sessions import Sessions
from .together import Together
from .writing import WRITES, Writing

FAILED: Final = "internal error 内部错误"
log = structlog.get_logger("biaojie.handle")


@dataclass(frozen=True, slots=True)
class HandleRules:
    """Settings of the same names say what each is for."""

    deadline_s: float = 2.0
    batch_deadline_s: float = 10.0
    handle_delete: Literal["purge", "retire"] = "purge"
    suffix_case_sensitive: bool = False


class Operations:
    """`open` before the transports start, `publish` once their ports are known."""

    def __init__(
        self,
        service: Service,
        local: LocalStep,
        referral: ReferralStep,
        store: ReadStore,
        observer: Observer,
        rules: HandleRules,
        *,
        authenticator: Authenticator | None = None,
        lane: HandleLane | None = None,
        numbers: Numbers = ALONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        case_sensitive = rules.suffix_case_sensitive
        self.authenticator = authenticator or Authenticator(
            local, service.callers.guesses, case_sensitive=case_sensitive
        )
        self.sessions = Sessions(numbers=numbers, clock=clock)
        self.pending = PendingRequests(numbers=numbers, clock=clock)
        self.site: sites.NodeSite | None = None
        self._key: nodekey.NodeKey | None = None
        self.together = Together(service, observer, lane, self._serial, rules.deadline_s)
        self._lane = lane
        self._service = service
        self._local = local
        self._referral = referral
        self._observer = observer
        self._rules = rules
        self._proving = Proving(
            self.authenticator,
            self.sessions,
            self.pending,
            case_sensitive=case_sensitive,
            clock=clock,
        )
        self._exchanges = KeyExchanges(
            self.sessions, self.authenticator, case_sensitive=case_sensitive
        )
        self._resolution = Resolution(
            service, local, referral, lambda: self.site, case_sensitive=case_sensitive
        )
        self._writing = Writing(service, store, rules.handle_delete)
        self.direct = DirectWrites(
            service,
            self._writing,
            self._resolution,
            self.sessions,
            self._proving,
            self._serial,
            observer,
            rules.batch_deadline_s,
        )
        self._listing = Listing(service, local, store, case_sensitive=case_sensitive)
        self._repeats = Repeats(clock=clock)

    async def open(self, data_dir: Path) -> None:
        """Load the node's key, or make it. Raises InvalidKey, OSError."""
        self._key = await nodekey.load(data_dir)

    def publish(
        self, addresses: list[str], ports: sites.Ports, name: str, data_dir: Path
    ) -> sites.NodeSite:
        """Say from now on that the node is to be found there. Raises ValueError, OSError."""
        assert self._key is not None
        built = sites.build(addresses, ports, self._key.octets, name)
        self.site = sites.publish(built, data_dir)
        if self._lane is not None:
            self._lane.clear()
        return self.site

    # The seam -----------------------------------------------------------------------------

    async def answer(self, frame: bytes, peer: Peer) -> AsyncGenerator[bytes, None]:
        """See `Answerer`."""
        if is_response(frame):
            return
        repeat = self._repeats.name(frame, peer)
        if repeat is not None:
            kept = await self._repeats.find(repeat)
            if kept is not None:
                yield kept
                return
            self._repeats.begin(repeat)
        last: bytes | None = None
        try:
            async for message in self._answers(frame, peer):
                last = message
                yield message
        except Exception as error:
            code = ResponseCode.ERROR
            if isinstance(error, BiaojieError):
                code = response_code_of(error)
            else:
                log.error("an answer failed", transport=peer.transport, exc_info=error)
            failure = refusal(frame, code, FAILED if code == ResponseCode.ERROR else str(error))
            if failure is not None:
                yield failure
        finally:
            if repeat is not None:
                self._repeats.end(repeat, last)

    def forget(self, peer: Peer) -> None:
        if peer.scope is not None:
            self.sessions.forget(peer.scope)

    def remembers(self, scope: object, number: int) -> bool:
        """Whether a session number means something here, on this connection or on any."""
        names = ((scope, number), (None, number))
        return any(name in self.sessions or name in self.pending for name in names)

    def readings(self) -> dict[str, float]:
        return {"handle_sessions": len(self.sessions), "handle_challenges": len(self.pending)}

    async def _answers(self, frame: bytes, peer: Peer) -> AsyncGenerator[bytes, None]:
        key = self._key
        if key is None:  # not open yet
            raise OverCapacity()
        more: AsyncIterator[Body] | None = None
        entry: Cached | None = None

        async def service(asked: Asked) -> Answered:
            nonlocal more, entry
            answered = await self._serve(exchange, asked)
            more, entry = answered.more, answered.entry
            return answered

        exchange = Exchange(frame, peer, self.sessions, self._proving, self._serial)
        first = await serve(
            exchange,
            service,
            frame,
            deadline_s=self._rules.batch_deadline_s,
            observer=self._observer,
            request_id=new_request_id(),
            peer=peer.address,
        )
        if isinstance(first, Message):
            message = await exchange.finished(first, key)
            if entry is not None and self._lane is not None:
                self._lane.learn(frame, message, entry)
            yield message
        elif first is not None:
            yield first
        if more is not None:
            async for part in self._following(more):
                yield await exchange.finished(exchange.encode(frame, part), key)

    async def _following(self, more: AsyncIterator[Body]) -> AsyncGenerator[Answered, None]:
        """The other parts of a list. One is read ahead, for all but the last announce more."""
        try:
            body = await self._next(more)
            while body is not None:
                ahead = await self._next(more)
                yield Answered(body, more=None if ahead is None else more)
                body = ahead
        except (BiaojieError, TimeoutError):
            yield Answered(Failure("the list broke off 列表中断"), ResponseCode.SERVER_BUSY)

    async def _next(self, more: AsyncIterator[Body]) -> Body | None:
        async with asyncio.timeout(self._rules.batch_deadline_s):
            return await anext(more, None)

    def _serial(self) -> int:
        return SERIAL_UNKNOWN if self.site is None else self.site.serial

    # Operations ---------------------------------------------------------------------------

    async def _serve(self, exchange: Exchange, asked: Asked) -> Answered:
        asked = exchange.asked = await self._proving.identified(asked)
        if asked.request.opcode == OpCode.CHALLENGE_RESPONSE:
            asked = exchange.answer_instead(await self._proving.answered(asked))
            if asked.request.opcode == OpCode.LOGIN:
                return await self._proving.logged_in(asked)
        self._service.admit(asked.caller)
        try:
            return await self._operate(asked)
        except Elsewhere as error:
            if asked.request.has(OpFlag.DO_NOT_REFER):
                raise PrefixNotHere() from error
            return await self._resolution.refer(error)

    async def _operate(self, asked: Asked) -> Answered:
        opcode = asked.request.opcode
        if opcode in ADMINISTRATION and asked.caller.is_public:
            await self._check_homed(asked)
            raise Unauthenticated()
        if opcode in WRITES:
            return await self._writing.write(asked)
        if opcode in LISTS:
            return await self._listing.answer(asked)
        match opcode:
            case OpCode.RESOLUTION:
                async with asyncio.timeout(self._rules.deadline_s):
                    return await self._resolution.resolve(asked)
            case OpCode.GET_SITE_INFO:
                if self.site is None:
                    raise OverCapacity()
                return Answered(SiteResponse(self.site.main))
            case OpCode.VERIFY_RESPONSE:
                return await self._proving.verified(asked)
            case OpCode.LOGIN:
                self._proving.check_login(asked)
                raise Unauthenticated()
            case OpCode.SESSION_SETUP | OpCode.SESSION_EXCHANGE_KEY:
                assert self._key is not None
                if opcode == OpCode.SESSION_SETUP:
                    return await self._exchanges.set_up(asked, self._key)
                return await self._exchanges.exchange(asked, self._key)
            case OpCode.SESSION_TERMINATE:
                if asked.session is not None:
                    self.sessions.close(asked.session)
                return Answered(Done())
        raise MethodNotAllowed(
            f"Operation {opcode} is not supported here.", f"本节点不支持操作 {opcode}。"
        )

    async def _check_homed(self, asked: Asked) -> None:
        """Before anybody is asked to prove anything: is it here at all? Raises PrefixNotHere,
        Elsewhere, InvalidIdentifier."""
        request, body = asked.request, asked.request.body
        if request.opcode in (OpCode.HOME_PREFIX, OpCode.LIST_HOMED_PREFIXES):
            return
        if isinstance(body, ValuesRequest | RemoveRequest):
            prefix = identifier_of(_named(body.handle, request)).prefix
        else:
            assert isinstance(body, HandleRequest)
            about_prefix = request.opcode in LISTS or request.opcode == OpCode.UNHOME_PREFIX
            prefix = prefix_of(body.handle) if about_prefix else identifier_of(body.handle).prefix
        found = (await self._local.fetch(Key(fold_prefix(prefix), b""))).prefix
        if found is not None and found.status.elsewhere:
            raise elsewhere(found)
        if found is None:
            responsible = await self._referral.responsible(fold_prefix(prefix))
            if responsible is not None:
                raise elsewhere(responsible)
            raise PrefixNotHere()


def _named(handle: str, request: Message) -> str:
    """What a suffix is yet to be made for may end with the slash."""
    minting = request.opcode == OpCode.CREATE_HANDLE and request.has(OpFlag.MINT_SUFFIX)
    return f"{handle.partition('/')[0]}/-" if minting else handle
