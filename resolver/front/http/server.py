"""Bytes in, bytes out: the web server around the route table.

Uses aiohttp's low-level server, so that routing sees the path exactly as it was sent. Every
limit on what strangers may send or hold open is enforced here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, ContentLengthError, TransferEncodingError
from aiohttp.web_protocol import RequestHandler, RequestPayloadError

from biaojie.errors import (
    BiaojieError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    OverCapacity,
    RequestTimeout,
    TemporarilyUnavailable,
    TooLarge,
)
from registry.admission import PUBLIC, Caller

from ...exchange import new_request_id, serve
from ...observe import Observer
from ...service import Service
from .endpoint import Asked, Endpoint, Reply, problem_reply

_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_ALWAYS_SERVED = frozenset({"healthz", "readyz", "metrics"})
_BATCHES = frozenset({"batch", "resolve-many", "list"})


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
        if crowded:
            # Answered before a request is read: cheap for us, clear for the client.
            reply = problem_reply(OverCapacity(), chinese=False)
            head = (
                f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: {reply.content_type}\r\n"
                f"Content-Length: {len(reply.body)}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
            )
            assert self.transport is not None
            self.transport.write(head.encode() + reply.body)
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
        if self.transport is not None and not self._request_in_progress:
            reply = problem_reply(RequestTimeout(), chinese=False)
            head = (
                f"HTTP/1.1 408 Request Timeout\r\nContent-Type: {reply.content_type}\r\n"
                f"Content-Length: {len(reply.body)}\r\nConnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + reply.body)
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What the parser refused: the same problem document as everywhere else."""
        error: BiaojieError = InvalidRequest(
            "The HTTP message is malformed or its headers are too large.",
            "HTTP 报文格式错误或头部过大。",
            errors=[],
        )
        error.request_id = new_request_id()
        if request.writer.output_size > 0:
            raise ConnectionError("the reply had already begun")
        response = _response(problem_reply(error, chinese=False), error.request_id)
        response.force_close()
        return response


class ConnectionServer(web.Server):
    limits: HttpLimits

    def __call__(self) -> RequestHandler:  # type: ignore[type-arg,unused-ignore]
        return Connection(self, loop=self._loop, **self._kwargs)


def _response(reply: Reply, request_id: str) -> web.Response:
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


class Routes:
    """The route table. An exact path wins over a tail; a longer fixed part over a shorter."""

    def __init__(self, endpoints: Iterable[Endpoint[Any, Any]]) -> None:
        self._exact: dict[str, dict[str, Endpoint[Any, Any]]] = {}
        self._tails: dict[str, dict[str, Endpoint[Any, Any]]] = {}
        for endpoint in endpoints:
            fixed, brace, _ = endpoint.path.partition("{")
            table = self._tails if brace else self._exact
            methods = table.setdefault(fixed, {})
            assert endpoint.method not in methods, endpoint.path
            methods[endpoint.method] = endpoint
        self._starts = sorted(self._tails, key=len, reverse=True)

    def find(self, path: str) -> tuple[Mapping[str, Endpoint[Any, Any]], str]:
        """The endpoints at a path by method, and the tail; raises NotFound."""
        exact = self._exact.get(path)
        if exact is not None:
            return exact, ""
        for start in self._starts:
            if not path.startswith(start):
                continue
            tail = path[len(start) :]
            methods = self._tails[start]
            if tail and (next(iter(methods.values())).whole_tail or "/" not in tail):
                if start == "/" and path.startswith("/api/"):
                    break  # no identifier has a prefix `api`: say "not here" in JSON
                return methods, tail
        raise NotFound()


class HttpFront:
    """`start()` listens, `stop()` drains. One per process."""

    def __init__(
        self,
        service: Service,
        endpoints: Iterable[Endpoint[Any, Any]],
        observer: Observer,
        limits: HttpLimits,
        *,
        public_url: str = "",
    ) -> None:
        self._service = service
        self._routes = Routes(endpoints)
        self._observer = observer
        self._limits = limits
        self._public_url = public_url.rstrip("/")
        self._requests = 0
        self._runner: web.ServerRunner | None = None

    async def start(self, host: str, port: int, *, drain_s: float = 10.0) -> int:
        """Listen, and return the port (useful when asked for port 0)."""
        server = ConnectionServer(
            self._handle,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=self._limits.keepalive_timeout_s,
            max_line_size=self._limits.header_bytes_max,
            max_field_size=self._limits.header_bytes_max,
            lingering_time=2.0,
        )
        server.limits = self._limits
        self._runner = web.ServerRunner(server, shutdown_timeout=drain_s)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, backlog=1024, reuse_address=True)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def readings(self) -> dict[str, float]:
        connections = 0
        if self._runner is not None and isinstance(self._runner.server, web.Server):
            connections = len(self._runner.server.connections)
        return {"http_connections": connections, "http_requests_running": self._requests}

    # One request ------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        given = request.headers.get("X-Request-Id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_request_id()
        asked, endpoint, refusal = await self._receive(request, request_id)
        if endpoint is None:
            assert refusal is not None
            refusal.request_id = request_id
            if isinstance(refusal, MethodNotAllowed):
                reply = self._preflight(asked, refusal)
            else:
                reply = problem_reply(refusal, chinese=asked.chinese)
        else:
            self._requests += 1
            try:
                reply = await self._serve(endpoint, asked, refusal)
            finally:
                self._requests -= 1
        response = _response(reply, request_id)
        if asked.method in ("GET", "HEAD", "OPTIONS"):
            response.headers["Access-Control-Allow-Origin"] = "*"
            response.headers["Access-Control-Expose-Headers"] = (
                "ETag, Biaojie-Source, Biaojie-Age, Retry-After, X-Request-Id"
            )
        await self._send(request, response)
        return response

    async def _receive(
        self, request: web.BaseRequest, request_id: str
    ) -> tuple[Asked, Endpoint[Any, Any] | None, BiaojieError | None]:
        """The request as a value, the endpoint it is for, and why it is refused if it is."""
        path, _, query = request.raw_path.partition("?")
        refusal: BiaojieError | None = None
        endpoint: Endpoint[Any, Any] | None = None
        tail, body = "", b""
        try:
            methods, tail = self._routes.find(path.partition("#")[0])
            endpoint = methods.get("GET" if request.method == "HEAD" else request.method)
            if endpoint is None:
                allow = sorted({*methods, *({"HEAD"} if "GET" in methods else ()), "OPTIONS"})
                raise MethodNotAllowed(
                    f"{request.method} is not possible here.",
                    f"此处不支持 {request.method}。",
                    allow=allow,
                )
            crowded = self._requests >= self._limits.requests_max
            if crowded and endpoint.operation not in _ALWAYS_SERVED:
                raise OverCapacity()
            if endpoint.body is not None:
                body = await self._read(request)
        except BiaojieError as error:
            refusal = error
        asked = Asked(
            method=request.method,
            path=path,
            query=query.partition("#")[0],
            headers={name.lower(): value for name, value in request.headers.items()},
            body=body,
            peer=request.remote or "",
            request_id=request_id,
            origin=self._origin(request),
            tail=tail,
        )
        return asked, endpoint, refusal

    async def _read(self, request: web.BaseRequest) -> bytes:
        limit = self._limits.body_bytes_max
        too_large = TooLarge(
            f"The body is larger than {limit} bytes.", f"正文超过 {limit} 字节。", bytes_max=limit
        )
        if (request.content_length or 0) > limit:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                while part := await request.content.readany():
                    size += len(part)
                    if size > limit:
                        raise too_large
                    parts.append(part)
        except TimeoutError:
            raise RequestTimeout(
                f"The body did not arrive within {self._limits.body_timeout_s:g} s.",
                f"正文未在 {self._limits.body_timeout_s:g} 秒内到达。",
            ) from None
        except (
            RequestPayloadError,
            BadHttpMessage,
            ContentLengthError,
            TransferEncodingError,
        ):
            raise InvalidRequest(
                "The body is not encoded as the headers say.",
                "正文编码与头部不符。",
                errors=[],
            ) from None
        return b"".join(parts)

    def _origin(self, request: web.BaseRequest) -> str:
        if self._public_url:
            return self._public_url
        host = request.headers.get("Host", "")
        return f"http://{host}" if _HOST.fullmatch(host) else ""

    async def _serve(
        self, endpoint: Endpoint[Any, Any], asked: Asked, refusal: BiaojieError | None
    ) -> Reply:
        async def answer(question: Any) -> Any:
            caller = await self._authenticate(endpoint, asked)
            return await endpoint.service(self._service, caller, question)

        deadline_s = self._limits.deadline_s
        if endpoint.operation in _BATCHES:
            deadline_s = self._limits.batch_deadline_s
        elif endpoint.operation == "changes":
            deadline_s += 31.0  # it may have been asked to wait; the wait itself is bounded
        if refusal is not None:
            endpoint = replace(endpoint, decode=_refusing(refusal))
        return await serve(
            endpoint,
            answer,
            asked,
            deadline_s=deadline_s,
            observer=self._observer,
            request_id=asked.request_id,
            peer=asked.peer,
        )

    async def _authenticate(self, endpoint: Endpoint[Any, Any], asked: Asked) -> Caller:
        try:
            return await self._service.authenticate(asked.key, asked.peer)
        except TemporarilyUnavailable:
            # A reader whose key cannot be checked just now still gets what everybody gets.
            if endpoint.public:
                return PUBLIC
            raise

    def _preflight(self, asked: Asked, refusal: MethodNotAllowed) -> Reply:
        allow = ", ".join(refusal.fields["allow"])
        if asked.method == "OPTIONS":
            headers = {"Allow": allow, "Cache-Control": "public, max-age=600"}
            if "GET" in refusal.fields["allow"]:
                headers["Access-Control-Allow-Methods"] = "GET, HEAD"
                headers["Access-Control-Allow-Headers"] = "Accept, If-None-Match"
                headers["Access-Control-Max-Age"] = "600"
            return Reply(204, headers=headers)
        reply = problem_reply(refusal, chinese=asked.chinese)
        return Reply(
            reply.status, reply.body, reply.content_type, {**reply.headers, "Allow": allow}
        )

    async def _send(self, request: web.BaseRequest, response: web.Response) -> None:
        """Write the reply within its time: a reader who does not read must not hold us."""
        try:
            async with asyncio.timeout(self._limits.reply_timeout_s):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()


def _refusing(refusal: BiaojieError) -> Callable[[Asked], Any]:
    """A decoder for requests that were refused on their way in."""

    def decode(asked: Asked) -> Any:
        raise refusal

    return decode
