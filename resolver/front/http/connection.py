"""One connection: what strangers may hold open, and for how long.

`Connection` owns the transport. It answers from the express lane what it can, asks for more of that
kind itself (see `gathering`), and hands all else, octet by octet, to aiohttp's handler, which it
makes when it first needs it. Rule: it answers only `at rest`: whatever aiohttp was handed has been
parsed to the end of a message and answered, so that neither order nor the meaning of octets can
come out differently.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler

from biaojie.errors import BiaojieError, Internal, InvalidRequest, OverCapacity, RequestTimeout

from ...exchange import new_request_id
from ...overload import ASIDE_OCTETS, Gate, Penalties
from .door import ALWAYS_SERVED_STARTS, Door
from .endpoint import problem_reply
from .gathering import Awaited, Gathering
from .lane import HttpLane
from .replies import response_of
from .tls_client import client_certificate

DISMISSED_S = 1.0
"""How long a peer has to read why it is sent away, and"""
DISMISSED_SHARE = 1.25
"""how many connections there may be then, as a share of `connections_max`."""
SWEEP_S = 5.0
"""How often idle connections are looked for, at the most."""
SHED_MAX = 128
"""So many are made to take less room at a time, which takes some milliseconds; then again after"""
SHED_AGAIN_S = 0.1
_HEAD_END = b"\r\n\r\n"
_monotonic = time.monotonic


@dataclass(frozen=True, slots=True)
class HttpLimits:
    body_bytes_max: int = 8 * 2**20
    header_bytes_max: int = 16_384
    header_timeout_s: float = 10.0
    body_timeout_s: float = 15.0
    reply_timeout_s: float = 30.0
    keepalive_timeout_s: float = 75.0
    connections_max: int = 10_000
    requests_max: int = 512
    deadline_s: float = 2.0
    batch_deadline_s: float = 10.0
    trusted_proxies: str = ""
    forwarded_header: str = "x-forwarded-for"
    import_upload_s: float = 3_600.0


class Connection(asyncio.Protocol):
    """`used` is when something was last asked, or it was opened (monotonic). What comes before
    `_again` came too soon after a refusal: it is put `_aside` and waits `_among` those who were
    refused for the same reason. `_waited`: what is looked at has done so. `_awaited` has been asked
    for without aiohttp. `_held`: it is not read from until then, because `_more` has come or
    something was refused by aiohttp."""

    __slots__ = (
        "_again",
        "_among",
        "_aside",
        "_awaited",
        "_express",
        "_handler",
        "_held",
        "_lane",
        "_more",
        "_paused",
        "_server",
        "_waited",
        "_write",
        "transport",
        "used",
    )

    transport: asyncio.Transport
    _write: Callable[[bytes], None]

    def __init__(self, server: ConnectionServer) -> None:
        self._server = server
        self._handler: Handler | None = None
        self._lane: HttpLane | None = None
        self._express = False  # at rest, and the lane may answer
        self._paused = False
        self._held = False
        self._waited = False
        self._aside: tuple[bytes, bytes, bytes, float] | None = None
        self._awaited: Awaited | None = None
        self._more = b""
        self._again = 0.0
        self._among = server.door.gate.penalties
        self.used = _monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._write = self.transport.write
        server = self._server
        limits = server.limits
        crowded = len(server.open) >= limits.connections_max
        server.open.add(self)
        connection = transport.get_extra_info("socket")
        if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            # A peer that takes nothing of what we wrote holds the connection no longer than this.
            milliseconds = int(limits.reply_timeout_s * 1000)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        if crowded:
            # Answered before a request is read: cheap for us, clear for the client.
            handler = self._begin()
            handler.dismiss(OverCapacity())
            if len(server.open) > limits.connections_max * DISMISSED_SHARE:
                handler.force_close()
        elif not client_certificate(transport):  # else it is somebody who asks
            self._lane = server.lane
            self._express = self._lane is not None

    def data_received(self, data: bytes) -> None:
        lane = self._lane
        key = None
        if lane is not None and (self._express or self._at_rest()):
            start, _, block = data.partition(b" HTTP/1.1\r\n")
            profile = lane.profiles.get(block)
            known = profile is not None
            if profile is None:
                profile = lane.profile(block)
            now = _monotonic()
            if profile is not None:
                key = profile + start
                reply = lane.reply(key, now)
                if reply is not None:
                    self.used = now
                    if not known and lane.request_id is not None:
                        reply = lane.renamed(reply)
                    self._write(reply)
                    return
                if not lane.is_start(start):
                    key = None
            if self._server.door.closed(now) and self._turned_away(
                data, start, block if key else b"", now
            ):
                return
            if key is not None and self._asked_for(data, key, start, block, now):
                return
        elif self._aside is not None or self._awaited is not None:
            self._more += data
            self._held = True
            self.transport.pause_reading()
            return
        self._hand_over(data, key, start if key else b"", now if key else 0.0)

    def _hand_over(
        self, data: bytes, key: bytes | None, start: bytes, now: float, *, placed: bool = False
    ) -> None:
        """To aiohttp. With `key` it is one plain request, which begins with `start`, came at `now`
        and may have its place at the gate already."""
        self._express = False
        self.used = _monotonic()
        handler = self._handler or self._begin()
        handler.key = key
        if placed:
            handler.began = now
        elif key is not None and start not in ALWAYS_SERVED_STARTS:
            handler.enter(now)
        handler.data_received(data)

    # Asked for together with others -----------------------------------------------------

    def _asked_for(self, data: bytes, key: bytes, start: bytes, block: bytes, now: float) -> bool:
        """Whether a plain request needs no aiohttp."""
        gathering, lane = self._server.gathering, self._lane
        if gathering is None or lane is None or not start.startswith(gathering.starts):
            return False
        if len(data) > lane.octets_max:
            return False
        told = gathering.ask(self, data, key, start, block, now)
        if told is None:
            return False
        self.used = now
        if isinstance(told, bytes):
            self._write(told)
        else:
            self._awaited = told
            self._express = False
        return True

    def answer(self, told: bytes, now: float) -> None:
        """What was awaited, at the monotonic time `now`."""
        self._settled()
        self.used = now
        self._write(told)
        self._read_on()

    def fall_through(self) -> None:
        """What was awaited is for aiohttp after all."""
        awaited = self._settled()
        self._hand_over(awaited.data, awaited.key, awaited.start, awaited.came, placed=True)
        self._read_on()

    def _settled(self) -> Awaited:
        awaited, self._awaited = self._awaited, None
        assert awaited is not None
        awaited.connection = None
        return awaited

    def _read_on(self) -> None:
        more, self._more = self._more, b""
        held, self._held = self._held, False
        self._express = self._lane is not None and not self._paused and self._handler is None
        if self.transport.is_closing():
            return
        if more:
            self.data_received(more)
        if held and not self._held and (self._handler is None or self._handler.reads):
            self.transport.resume_reading()

    @property
    def waits(self) -> bool:
        return self._awaited is not None

    def _turned_away(self, data: bytes, start: bytes, block: bytes, now: float) -> bool:
        """Whether `data` was refused, or waits for that. `block` is empty where it is no plain
        request."""
        if start in ALWAYS_SERVED_STARTS:
            return False
        if not self._waited and len(data) <= ASIDE_OCTETS:
            gate = self._server.door.gate
            among = gate.penalties if gate.full else self._among
            at_once = among is gate.penalties and not gate.full
            if now < self._again or not (at_once or among.allow(now)):
                self._aside = data, start, block, now
                self._express = False
                among.add(self, now)
                return True
        return self._refused(data, start, block, now)

    def _refused(
        self, data: bytes, start: bytes, block: bytes, now: float, waited_s: float = 0.0
    ) -> bool:
        door = self._server.door
        told = door.plain_refusal(start, block, now, waited_s)
        penalties = door.gate.penalties
        if told is None:
            refusal = door.refusal(data, self.transport, waited_s)
            if refusal is None:
                self._again, self._among = 0.0, penalties
                return False
            told, penalties = refusal
        self.used = now
        self._again = now + penalties.pause_s
        self._among = penalties
        self._write(told)
        return True

    def hold(self, penalties: Penalties) -> None:
        """A request was refused after all: do not read on at once."""
        if not self._held and not self.transport.is_closing():
            self._held = True
            self.transport.pause_reading()
            penalties.add(self, _monotonic())

    def read_again(self, now: float) -> None:
        (aside, more), self._aside, self._more = (self._aside, self._more), None, b""
        held, self._held = self._held, False
        if self.transport.is_closing():
            return
        if aside is not None:
            data, start, block, came = aside
            self._express = self._lane is not None and not self._paused
            shut = self._express and self._server.door.closed(now)
            if not (shut and self._refused(data, start, block, now, now - came)):
                self._waited = True
                self.data_received(data)
                self._waited = False
        if more:
            self.data_received(more)
        if held and not self._held and (self._handler is None or self._handler.reads):
            self.transport.resume_reading()

    @property
    def gate(self) -> Gate:
        return self._server.door.gate

    def _begin(self) -> Handler:
        """From here on with aiohttp."""
        handler = self._handler = self._server.handler(self)
        handler.connection_made(self.transport)
        if self._paused:
            handler.pause_writing()
        return handler

    def _at_rest(self) -> bool:
        handler = self._handler
        busy = self._paused or self._aside or self._awaited
        self._express = not busy and (handler is None or handler.at_rest())
        return self._express

    def leave_lane(self) -> None:
        """From here on with aiohttp, which knows what is to be the last of a connection."""
        self._lane = None
        if self._awaited is not None:
            self.fall_through()

    def close_idle(self, since: float) -> None:
        """Hang up if nothing was asked since then; where aiohttp is in charge, it does that."""
        if self._handler is None and self._awaited is None and self.used < since:
            self.close()

    def shed(self) -> bool:
        """Go on without aiohttp's handler, which takes ten times the memory of all else, until
        one is needed again; whether there was one."""
        if self._handler is None or self._lane is None or not self._at_rest():
            return False
        handler, self._handler = self._handler, None
        handler.retire()
        return True

    def close(self) -> None:
        """Hang up, if nothing is asked that aiohttp would answer first."""
        self._lane = None
        if self._handler is not None:
            return
        if self.transport.get_write_buffer_size():  # of what nobody takes, nobody waits for
            self.transport.abort()
        else:
            self.transport.close()

    # What the transport tells, handed on ------------------------------------------------

    def pause_writing(self) -> None:
        """The peer does not read: from here on with aiohttp, which waits for it."""
        self._paused = True
        self._express = False
        if self._handler is not None:
            self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._paused = False
        if self._handler is not None:
            self._handler.resume_writing()

    def eof_received(self) -> None:
        if self._handler is not None:
            self._handler.eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.open.discard(self)
        self._lane = None
        if self._awaited is not None:
            assert self._server.gathering is not None
            self._server.gathering.drop(self._settled())
        if self._handler is not None:
            self._handler.connection_lost(exc)
            self._handler = None


class Handler(RequestHandler):  # type: ignore[type-arg,misc,unused-ignore]
    """aiohttp's side of a connection, with one more limit: on slow headers. `key` is what the
    reply to the request just handed over may be kept by, None where it may not; `answered` is
    how many requests were, to the end of the reply and with the connection kept open. `began`:
    when the request just handed over came, if it has a place at the gate and is not begun."""

    __slots__ = (
        "_connection",
        "_ended",
        "_head_timer",
        "_limits",
        "_payload",
        "_strange",
        "answered",
        "began",
        "key",
    )

    def __init__(self, manager: ConnectionServer, connection: Connection, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._connection = connection
        self._limits = manager.limits
        self._head_timer: asyncio.TimerHandle | None = None
        self.key: bytes | None = None
        self.began: float | None = None
        self.answered = 0
        self._ended = True  # what came last was the end of a head
        self._strange = False
        self._payload: StreamReader = EMPTY_PAYLOAD

    def enter(self, now: float) -> None:
        """What came at `now` is one request to work on: it takes its place before it is looked
        at, for many come in one turn of the loop."""
        self.give_back()
        if self._connection.gate.enter():
            self.began = now

    def give_back(self) -> None:
        """The place of a request that was never begun."""
        if self.began is not None:
            self.began = None
            self._connection.gate.leave()

    def hold(self, penalties: Penalties) -> None:
        """What is being answered is refused: read less often from here."""
        self._connection.hold(penalties)

    @property
    def reads(self) -> bool:
        """Whether aiohttp wants to be given what comes."""
        return not self._reading_paused

    def data_received(self, data: bytes) -> None:
        """aiohttp calls this itself as well, without data, to have parsed what it has put aside."""
        before = self._request_count
        super().data_received(data)
        if self._messages:
            message, self._payload = self._messages[-1]
            # A length beyond all lengths: aiohttp takes it for no body, its parser does not.
            self._strange = self._strange or (
                self._payload is EMPTY_PAYLOAD and _announces_body(message)
            )
        if data:
            self._ended = data.endswith(_HEAD_END)
        self._strange = self._strange or self._upgraded
        if self._request_count > before or self._request_in_progress:
            self._stop_head_timer()
        elif data and self._head_timer is None:
            # Part of a request head: it must be whole in time, however it trickles in.
            self._head_timer = self._loop.call_later(self._limits.header_timeout_s, self._cut)

    def at_rest(self) -> bool:
        """Whether all that was handed over is parsed, to the end of a message, and answered.

        Answered is enough: aiohttp's task may still be on its way back to waiting, but has
        nothing more to say. The parser has put nothing aside, and the last it got was an empty
        line while no body was to come. After that line it can be nowhere but before a new
        message: within a head it would have ended that head.
        """
        if not self._quiet():
            return False
        self.data_received(b"")
        return self._quiet()

    def _quiet(self) -> bool:
        return (
            self._ended
            and not self._strange
            and self._payload.is_eof()
            and self.answered == self._request_count
            and not (self._reading_paused or self._buffer_paused)
            and not (self._close or self._force_close)
        )

    def _process_keepalive(self) -> None:
        """What was answered without us counts as use of the connection."""
        if self._connection.waits:
            self._connection.used = _monotonic()
        used_until = self._connection.used + self._keepalive_timeout
        self._next_keepalive_close_time = max(self._next_keepalive_close_time, used_until)
        super()._process_keepalive()

    def retire(self) -> None:
        """For aiohttp it is as if the connection had ended."""
        self.transport = None
        self.connection_lost(None)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.give_back()
        self._stop_head_timer()
        super().connection_lost(exc)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cut(self) -> None:
        self._head_timer = None
        if not self._request_in_progress:
            self.dismiss(RequestTimeout())

    def dismiss(self, error: BiaojieError) -> None:
        """Say why and hang up, without having read a request."""
        if self.transport is None:
            return
        error.request_id = new_request_id()
        assert isinstance(self._manager, ConnectionServer)
        self._manager.refused(error, str((self.peername or ("",))[0]))
        reply = problem_reply(error, chinese=False)
        headers = {
            **reply.headers,
            "Content-Type": reply.content_type,
            "Content-Length": str(len(reply.body)),
            "X-Request-Id": error.request_id,
            "Connection": "close",
        }
        head = f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(head.encode() + b"\r\n" + reply.body)
        # Closed at once, bytes that are still to come would make the peer lose our words.
        self._force_close = True
        if self._waiter is not None:
            self._waiter.cancel()
        if self.transport.can_write_eof():  # within TLS it cannot
            self.transport.write_eof()
        self._head_timer = self._loop.call_later(DISMISSED_S, self.force_close)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What the parser refused, or our own mistake: the same problem document as ever."""
        self.give_back()
        error: BiaojieError = Internal()
        if status == 400:
            error = InvalidRequest(
                "The HTTP message is malformed or its headers are too large.",
                "HTTP 报文格式错误或头部过大。",
                errors=[],
            )
        error.request_id = new_request_id()
        if isinstance(self._manager, ConnectionServer):
            self._manager.refused(error, request.remote or "", exc if status != 400 else None)
        if request.writer.output_size > 0:
            raise ConnectionError("the reply had already begun")
        response = response_of(problem_reply(error, chinese=False), error.request_id)
        response.force_close()
        return response


class ConnectionServer(web.Server):
    """`refused(error, peer, fault)` is told of what never became a request. While `draining`,
    each answer is the last on its connection and says so (Connection: close)."""

    limits: HttpLimits
    door: Door
    gathering: Gathering | None = None
    lane: HttpLane | None = None
    draining = False
    refused: Callable[..., None]
    _sweeper: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.open: set[Connection] = set()

    def __call__(self) -> Connection:  # type: ignore[override]
        return Connection(self)

    def handler(self, connection: Connection) -> Handler:
        return Handler(self, connection, loop=self._loop, **self._kwargs)

    def sweep(self) -> None:
        """Close what is idle, now and from now on; what has just become so takes less room."""
        timeout_s = self.limits.keepalive_timeout_s
        every_s = min(SWEEP_S, timeout_s / 4)
        now, shed = _monotonic(), 0
        for connection in tuple(self.open):
            connection.close_idle(now - timeout_s)
            if connection.used < now - every_s and shed < SHED_MAX:
                shed += connection.shed()
        again_s = min(SHED_AGAIN_S, every_s) if shed == SHED_MAX else every_s
        self._sweeper = self._loop.call_later(again_s, self.sweep)

    def drain(self) -> None:
        """Nothing is answered by the lane any more, for what it sends is never the last."""
        self.lane = None
        for connection in self.open:
            connection.leave_lane()

    def pre_shutdown(self) -> None:
        self.drain()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in tuple(self.open):
            connection.close()
        super().pre_shutdown()


def _announces_body(message: Any) -> bool:
    headers = getattr(message, "headers", None)
    return headers is None or "Content-Length" in headers or "Transfer-Encoding" in headers
