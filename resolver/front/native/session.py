"""What is asked on one connection of the native protocol: hello, requests, streams.

The hello says in whose name; from then on the key is held against the registry with every
request (`Service.authenticate` keeps it for two seconds), and a connection whose key is not
valid any more is hung up on. Requests run side by side and are answered as they get done.
"""

from __future__ import annotations

import asyncio
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from biaojie.errors import (
    BiaojieError,
    InvalidRequest,
    OverCapacity,
    TemporarilyUnavailable,
    TooManyRequests,
    Unauthenticated,
)
from biaojie.wire.native import Hello, Kind, decode_request, requests
from biaojie.wire.native.answers import Welcome
from registry.accounts import digest
from registry.admission import PUBLIC, Caller

from ...exchange import Waiting, new_request_id, serve, serve_at_hand
from ...observe import CROWDED_LINE_S
from ...overload import PLACE_OCTETS, READ_SHARE, RETRY_S
from .greeting import GREETING
from .operations import (
    OPERATIONS,
    PING,
    WAIT_S,
    Operation,
    PublicResolve,
    Refusal,
    unknown,
)
from .streams import STREAMS, Sheet, Stream, end
from .work import Asked, ReadyResolution, busy_frame

if TYPE_CHECKING:
    from .connection import Connection
    from .server import NativeFront

BODY_OCTETS_FREE: Final = 65_536
"""A request up to this size is decoded on the loop and not counted as held."""
JOINING_SHARE: Final = 8
"""How many may be waiting with others for the same names, as a share of `native_requests_max`."""
STREAMS_MAX: Final = 16
"""Streams of one connection at a time."""
MANY: Final = (Kind.RESOLVE_MANY, Kind.WRITE_MANY)
NOTHING_READY: Final[dict[bytes, ReadyResolution]] = {}
"""The lane of those who may not use it."""


class Session:
    """`running` are the requests that have to wait, by their ids, with the tasks of those that
    have one to themselves; `places` is what they take of the pipeline; `in_lane`: the express lane
    is for it; `octets` is what large requests and pages of streams take up."""

    __slots__ = (
        "_connection",
        "_front",
        "_hashed",
        "_key",
        "_streams",
        "_tenant",
        "_unwelcome",
        "crowded",
        "greeted",
        "in_lane",
        "octets",
        "peer",
        "places",
        "running",
    )

    def __init__(self, front: NativeFront, connection: Connection) -> None:
        self._front = front
        self._connection = connection
        self._key: str | None = None
        self._hashed = b""
        self._streams: dict[bytes, Stream] = {}
        self._tenant = ""  # who is charged, once that is known
        self._unwelcome = False
        self.crowded = False
        self.greeted = False
        self.peer = ""
        self.octets = self.places = 0
        self.running: dict[bytes, asyncio.Task[None] | Waiting | None] = {}
        self.in_lane = False

    @property
    def public(self) -> bool:
        return self._key is None

    @property
    def full(self) -> bool:
        """Whether what comes next has to wait: for a request to end, or for the hello's answer."""
        if not self.greeted:
            return bool(self.running)
        return self.places >= self._front.limits.native_pipeline_max

    @property
    def roomy(self) -> bool:
        """Whether it is worth while to read on: not for one request at a time."""
        return self.places <= self._front.limits.native_pipeline_max // 2

    def lost(self) -> None:
        """The connection is gone."""
        self._streams.clear()
        for task in tuple(self.running.values()):
            if task is not None:
                task.cancel()

    def end_following(self) -> None:
        """End the streams that have no end of their own."""
        for id_, stream in tuple(self._streams.items()):
            if stream.operation == "follow":
                self._cancel(id_)

    # Beginning --------------------------------------------------------------------------

    def begin(self, id_: bytes, kind: int, body: bytes) -> None:
        asked = Asked(id_, kind, body, self.peer, new_request_id(), self._key is None)
        if not self.greeted:
            self._greet(asked)
        elif id_ in self.running:
            self._refuse(asked, _taken())
        elif kind == Kind.RESOLVE and asked.public:
            # The service gives what the cache holds; else the request has to wait for it.
            resolve = self._front.resolve
            if not self._answer_at_hand(asked, resolve, self._front.service.at_hand):
                self._gather(asked, resolve)
        elif (self._front.gate.full or self._tenant) and not self._let_in(asked):
            pass
        elif kind == Kind.CANCEL:
            self._cancel_asked(asked)
        elif kind == Kind.PING:
            self._answer_at_hand(asked, PING, lambda request: request)
        elif kind in OPERATIONS:
            self._ask(asked, OPERATIONS[kind])
        elif kind in STREAMS:
            self._start_stream(asked)
        else:
            self._refuse(asked, unknown(asked))

    def _let_in(self, asked: Asked) -> bool:
        """Whether there is room for a request and its tenant may ask; else it is told so, before
        anything is made of it."""
        front = self._front
        codec = OPERATIONS.get(asked.kind) or STREAMS.get(asked.kind)
        if codec is None or codec is PING:
            return True
        if front.gate.full:
            if isinstance(codec, Operation) and codec.waits:
                return True
            self._over_capacity(asked, codec.operation)
            return False
        asked.admitted = bool(self._tenant)
        quotas = front.service.quotas
        wait_s = quotas.take(self._tenant) if self._tenant else 0.0
        if not wait_s:
            return True
        self._refuse(asked, Refusal(quotas.refusal(wait_s), codec.operation))
        self._connection.penalize(quotas.penalties)
        return False

    def _over_capacity(self, asked: Asked, operation: str) -> None:
        front, now = self._front, monotonic()
        front.gate.crowd()
        self._connection.send(busy_frame(asked.id, asked.request_id))
        if now >= front.in_full or operation != front.resolve.operation:
            front.in_full = now + CROWDED_LINE_S
            front.observer.answered(
                "native",
                operation,
                OverCapacity.code,
                0.0,
                request_id=asked.request_id,
                peer=self.peer,
            )
        else:
            front.crowded.leave_out(0.0)
        self._connection.penalize(front.gate.penalties, READ_SHARE)

    def _admit(self, caller: Caller, asked: Asked) -> None:
        """Charge the caller's tenant, unless that is done. Raises TooManyRequests."""
        service = self._front.service
        self._tenant = service.charged(caller)
        if asked.admitted:
            return
        asked.admitted = True
        try:
            service.admit(caller)
        except TooManyRequests:
            self._connection.penalize(service.quotas.penalties)
            raise

    def _answer_at_hand(self, asked: Asked, codec: Any, service: Any) -> bool:
        reply = serve_at_hand(
            codec,
            service,
            asked,
            observer=self._front.observer,
            request_id=asked.request_id,
            peer=self.peer,
        )
        if reply is None:
            return False
        self._connection.send(reply)
        return True

    def _refuse(self, asked: Asked, refusal: Refusal) -> None:
        self._answer_at_hand(asked, refusal, lambda question: question)

    def _run(self, asked: Asked, task: asyncio.Task[None], slot: int) -> None:
        self.running[asked.id] = task
        held = len(asked.body) if len(asked.body) > BODY_OCTETS_FREE else 0
        self.octets += held
        if slot:
            if asked.kind == Kind.RESOLVE_MANY:
                slot = self._front.gate.places_for(len(asked.body))
            self._front.gate.come_back(slot)  # there was room just now
        # Of the pipeline it takes as many as it asks for: a thousand requests for a thousand
        # identifiers each would else hold a million look-ups and their answers.
        places = 1 + (len(asked.body) // PLACE_OCTETS if asked.kind in MANY else 0)
        self.places += places
        began = monotonic() if asked.kind == Kind.RESOLVE else None
        task.add_done_callback(partial(self._done, asked.id, held, slot, places, began))

    def _done(
        self,
        id_: bytes,
        held: int,
        slot: int,
        places: int,
        began: float | None,
        task: asyncio.Task[None],
    ) -> None:
        if self.running.get(id_) is task:
            del self.running[id_]
            stream = self._streams.pop(id_, None)
            if stream is not None and task.cancelled():
                self._connection.send(end(id_, stream))
        self.octets -= held
        self.places -= places
        if slot:
            self._front.gate.leave(None if began is None else monotonic() - began, slot)
        if self._unwelcome:
            self._unwelcome = False
            self._connection.dismiss()
        self._connection.answered()
        if not task.cancelled():
            task.result()

    # Hello ------------------------------------------------------------------------------

    def _greet(self, asked: Asked) -> None:
        if self.crowded:
            self._refuse(asked, Refusal(OverCapacity(retry_after_s=RETRY_S), "hello"))
            self._connection.dismiss()
        elif self._answer_at_hand(asked, GREETING, self._welcome_public):
            if not self.greeted:
                self._connection.dismiss()
        else:
            self._run(asked, self._front.loop.create_task(self._greet_with_key(asked)), 1)

    def _welcome_public(self, hello: Hello) -> Welcome | None:
        if hello.key is not None:
            return None
        self.greeted = True
        self.in_lane = True
        return self._front.welcome(PUBLIC)

    async def _greet_with_key(self, asked: Asked) -> None:
        async def service(hello: Hello) -> Welcome:
            try:
                caller = await self._front.service.authenticate(hello.key, self.peer)
            except TemporarilyUnavailable:
                caller = PUBLIC  # it is asked again with every request
            self._key = hello.key
            self._hashed = digest(hello.key) if hello.key is not None else b""
            self.greeted = True
            return self._front.welcome(caller)

        self._connection.send(await self._serve(GREETING, service, asked, 0.0))
        self._unwelcome = not self.greeted

    # One answer -------------------------------------------------------------------------

    def _ask(self, asked: Asked, operation: Operation | PublicResolve) -> None:
        front = self._front
        if asked.public and not operation.public:
            self._refuse(asked, Refusal(Unauthenticated(), operation.operation))
        elif (
            isinstance(operation, Operation)
            and operation.begin is not None
            and len(asked.body) <= BODY_OCTETS_FREE
            and (caller := front.service.callers.trusted(self._hashed)) is not None
        ):
            self._begin(asked, operation, operation.begin, caller)
        else:
            task = front.loop.create_task(self._answer(asked, operation))
            self._run(asked, task, 0 if operation.waits else 1)

    async def _answer(self, asked: Asked, operation: Operation | PublicResolve) -> None:
        async def service(asked: Asked) -> Any:
            # Callers are known before what they say is looked at.
            caller = await self._caller(operation.public)
            self._admit(caller, asked)
            if len(asked.body) > BODY_OCTETS_FREE:
                # Long enough to keep others waiting: beside the loop, not on it.
                question = await asyncio.to_thread(operation.decode, asked)
            else:
                question = operation.decode(asked)
            return await operation.service(self._front.service, caller, question)

        limits = self._front.limits
        extra_s = WAIT_S if operation.waits else 0.0
        if operation.batch:
            extra_s = max(limits.batch_deadline_s - limits.deadline_s, 0.0)
        reply = await self._serve(_Whole(operation), service, asked, extra_s)
        # Whoever has read the answer may use its id again, before this task counts as done.
        del self.running[asked.id]
        self._connection.send(reply)

    async def _serve(self, codec: Any, service: Any, asked: Asked, extra_s: float) -> Any:
        return await serve(
            codec,
            service,
            asked,
            deadline_s=self._front.limits.deadline_s + extra_s,
            observer=self._front.observer,
            request_id=asked.request_id,
            peer=self.peer,
        )

    async def _caller(self, public: bool) -> Caller:
        """Who asks. Raises Unauthenticated, after whose reply the connection is hung up."""
        try:
            return await self._front.service.authenticate(self._key, self.peer)
        except TemporarilyUnavailable:
            # A reader whose key cannot be checked just now still gets what everybody gets.
            if public:
                return PUBLIC
            raise
        except Unauthenticated:
            self._unwelcome = True
            raise

    # Answers by a call ------------------------------------------------------------------

    def _begin(self, asked: Asked, operation: Operation, begin: Any, caller: Caller) -> None:
        front = self._front
        try:
            self._admit(caller, asked)
        except TooManyRequests as error:
            self._refuse(asked, Refusal(error, operation.operation))
            return
        self.places += 1
        front.gate.come_back()  # there was room just now
        self.running[asked.id] = None
        waiting = front.later.serve(
            operation, partial(begin, front.service, caller), asked, partial(self._told, asked)
        )
        if waiting is not None:
            self.running[asked.id] = waiting

    def _told(self, asked: Asked, reply: bytes | None) -> None:
        self.gathered(asked, reply or b"")
        self._front.gate.leave()
        self.answered()

    # Answers together -------------------------------------------------------------------

    def _gather(self, asked: Asked, resolve: PublicResolve) -> None:
        front = self._front
        if front.gate.full and not self._may_join(asked):
            self._over_capacity(asked, resolve.operation)
        elif asked.question.authoritative:
            self._ask(asked, resolve)
        else:
            self.running[asked.id] = None
            self.places += 1
            front.gate.come_back()  # whoever joins others is let in beyond the limit
            front.gather(self, asked)

    def _may_join(self, asked: Asked) -> bool:
        """A name that others have asked for already costs hardly more than a refusal."""
        front, gate = self._front, self._front.gate
        if gate.running >= gate.most * JOINING_SHARE:
            return False
        return asked.body in front.gathering or front.service.is_coming(asked.question)

    def gathered(self, asked: Asked, reply: bytes) -> None:
        """The reply to one of those; empty where there is none for once."""
        del self.running[asked.id]
        self.places -= 1
        self._connection.send(reply)

    def answered(self) -> None:
        """So much for those that were answered together."""
        self._connection.answered()

    # Streams ----------------------------------------------------------------------------

    def _start_stream(self, asked: Asked) -> None:
        front = self._front
        kind = STREAMS[asked.kind]
        if asked.public:
            self._refuse(asked, Refusal(Unauthenticated(), kind.operation))
            return
        try:
            stream = kind(decode_request(asked.kind, asked.body))
        except BiaojieError as error:
            self._refuse(asked, Refusal(error, kind.operation))
            return
        if len(self._streams) >= STREAMS_MAX:
            self._over_capacity(asked, stream.operation)
        else:
            self._streams[asked.id] = stream
            task = front.loop.create_task(self._send_stream(asked, stream))
            self._run(asked, task, 0)

    async def _send_stream(self, asked: Asked, stream: Stream) -> None:
        try:
            while True:
                asked.request_id = new_request_id()
                sheet = await self._sheet(asked, stream)
                if not isinstance(sheet, Sheet):
                    self._connection.send(sheet)
                    return
                await self._send_sheet(sheet)
                more = await stream.onward(self._front.service, sheet)
                if not more or self._connection.last:
                    break
        except BiaojieError as error:
            self._refuse(asked, Refusal(error, stream.operation))
            return
        self._connection.send(end(asked.id, stream))

    async def _sheet(self, asked: Asked, stream: Stream) -> Sheet | bytes:
        async def service(asked: Asked) -> Any:
            caller = await self._caller(public=False)
            self._admit(caller, asked)
            return await stream.page(self._front.service, caller)

        limits = self._front.limits
        extra_s = max(limits.batch_deadline_s - limits.deadline_s, 0.0)
        self._front.gate.come_back()
        try:
            sheet: Sheet | bytes = await self._serve(_Whole(stream), service, asked, extra_s)
        finally:
            self._front.gate.leave()
        return sheet

    async def _send_sheet(self, sheet: Sheet) -> None:
        self.octets += sheet.octets
        try:
            for part in sheet.parts:
                self._connection.send(part)
                await self._connection.writable()
        finally:
            self.octets -= sheet.octets

    def _cancel_asked(self, asked: Asked) -> None:
        try:
            request = decode_request(asked.kind, asked.body)
        except BiaojieError as error:
            self._refuse(asked, Refusal(error, "cancel"))
            return
        assert isinstance(request, requests.Cancel)
        self._cancel(request.request.to_bytes(4, "big"))

    def _cancel(self, id_: bytes) -> None:
        """End a stream where it is. What is no stream, or ended already, is answered anyway."""
        task = self.running[id_] if id_ in self._streams else None
        if task is not None:
            task.cancel()


class _Whole:
    """A codec that hands the whole request to the service, which decodes it once it knows who
    asks."""

    __slots__ = ("_codec", "encode", "encode_error", "front", "operation")

    def __init__(self, codec: Any) -> None:
        self.front = codec.front
        self.operation = codec.operation
        self.encode = codec.encode
        self.encode_error = codec.encode_error

    def decode(self, data: Asked) -> Asked:
        return data


def _taken() -> Refusal:
    return Refusal(
        InvalidRequest(
            "The id is that of a request still worked on.", "该编号的请求仍在处理。", errors=[]
        )
    )
