"""aiohttp's side of a connection: what `connection` hands it, and how slowly that may come.

Rule: it says itself when it is `at_rest`, and until then nobody else answers.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler

from biaojie.errors import BiaojieError, Internal, InvalidRequest, RequestTimeout

from ...exchange import new_request_id
from ...overload import Penalties
from .endpoint import problem_reply
from .replies import response_of

if TYPE_CHECKING:
    from .connection import Connection, ConnectionServer

DISMISSED_S = 1.0
"""How long a peer has to read why it is sent away."""
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
        gate = self._connection.gate
        if not gate.full and gate.enter():  # who finds no room is counted when he is told
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
        return not (self._reading_paused or self._buffer_paused)

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
        if not self._quiet():
            return False
        self._stop_head_timer()  # what set it was the end of something, and no beginning
        return True

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
        self._connection.refused(error, str((self.peername or ("",))[0]))
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
        if self._manager is not None:
            fault = exc if status != 400 else None
            self._connection.refused(error, request.remote or "", fault)
        if request.writer.output_size > 0:
            raise ConnectionError("the reply had already begun")
        response = response_of(problem_reply(error, chinese=False), error.request_id)
        response.force_close()
        return response


def _announces_body(message: Any) -> bool:
    headers = getattr(message, "headers", None)
    return headers is None or "Content-Length" in headers or "Transfer-Encoding" in headers
