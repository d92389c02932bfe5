"""One connection: what strangers may hold open, and for how long. aiohttp's, with more limits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from biaojie.errors import BiaojieError, Internal, InvalidRequest, OverCapacity, RequestTimeout

from ...exchange import new_request_id
from .endpoint import Reply, problem_reply

DISMISSED_S = 1.0
"""How long a peer has to read why it is sent away, and"""
DISMISSED_SHARE = 1.25
"""how many connections there may be then, as a share of `connections_max`."""


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


class Connection(RequestHandler):  # type: ignore[type-arg,misc,unused-ignore]
    """aiohttp's connection with two more limits: one for slow headers, one on their number."""

    __slots__ = ("_head_timer", "_limits")

    def __init__(self, manager: ConnectionServer, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._limits = manager.limits
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(self._manager, ConnectionServer)
        crowded = len(self._manager.connections) >= self._limits.connections_max
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            # A peer that takes nothing of what we wrote holds the connection no longer than this.
            milliseconds = int(self._limits.reply_timeout_s * 1000)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        if crowded:
            # Answered before a request is read: cheap for us, clear for the client.
            self._dismiss(OverCapacity())
            if len(self._manager.connections) > self._limits.connections_max * DISMISSED_SHARE:
                self.force_close()

    def data_received(self, data: bytes) -> None:
        before = self._request_count
        super().data_received(data)
        if self._request_count > before or self._request_in_progress:
            self._stop_head_timer()
        elif data and self._head_timer is None:
            # Part of a request head: it must be whole in time, however it trickles in.
            self._head_timer = self._loop.call_later(self._limits.header_timeout_s, self._cut)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cut(self) -> None:
        self._head_timer = None
        if not self._request_in_progress:
            self._dismiss(RequestTimeout())

    def _dismiss(self, error: BiaojieError) -> None:
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
    draining = False
    refused: Callable[..., None]

    def __call__(self) -> RequestHandler:  # type: ignore[type-arg,unused-ignore]
        return Connection(self, loop=self._loop, **self._kwargs)


def response_of(reply: Reply, request_id: str) -> web.Response:
    response = web.Response(status=reply.status, body=reply.body or None)
    if reply.body:
        response.headers["Content-Type"] = reply.content_type
    response.headers.update(reply.headers)
    response.headers["X-Request-Id"] = request_id
    response.headers["Server"] = "biaojie"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    if reply.headers.get("Connection") == "close":
        response.force_close()
    return response
