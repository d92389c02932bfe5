"""Bytes in, bytes out: the web server around the route table.

Uses aiohttp's low-level server, so that routing sees the path exactly as it was sent. The
limits on what strangers may send are enforced here, those on connections in `connection`.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aiohttp import web

from biaojie.errors import (
    BiaojieError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    OverCapacity,
    TemporarilyUnavailable,
    TooLarge,
    TooManyRequests,
    Unauthenticated,
)
from biaojie.wire.handle import ENVELOPE_OCTETS, MEDIA_TYPE, Malformed, ResponseCode, is_tunnel
from registry.admission import PUBLIC, Caller

from ...exchange import new_request_id, serve
from ...observe import Observer
from ...overload import Gate, Place
from ...service import Service
from ..listening import BACKLOG
from .connection import ConnectionServer
from .door import ALWAYS_SERVED, Door
from .endpoint import Asked, Endpoint, Reply, problem_reply, rate_limit
from .forwarded import Proxies
from .gathering import Gathering
from .handler import Handler, HttpLimits
from .lane import REQUEST_ID, HttpLane, Noted
from .models import NoQuery
from .replies import response_of
from .routes import Routes
from .tls_client import client_certificate
from .transfers import parts_of, send_file, unread

if TYPE_CHECKING:
    from .tls import TlsContext

_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")
_BATCHES = frozenset({"batch", "resolve-many", "list", "search", "search-handles", "handle-list"})
_QUICK = frozenset({"resolve", "handle-get", "page"})
"""Whose time says whether requests wait for each other."""
_ABSOLUTE = re.compile(r"\Ahttps?://[^/?#]*", re.IGNORECASE)  # the form that proxies send

_RESPONSE_CODE = slice(ENVELOPE_OCTETS + 4, ENVELOPE_OCTETS + 8)
_SERVER_BUSY = ResponseCode.SERVER_BUSY.to_bytes(4, "big")
ACCEPTED_S = 0.05
BODY_BYTES_FREE = 65_536
"""A body up to this size is decoded on the loop and not counted; see BODIES_MAX."""
BODIES_MAX = 32
"""Bodies of the largest size that may be in memory at once; beyond: OverCapacity."""


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
        tunnel: Callable[[bytes, str], Awaitable[bytes]] | None = None,
        lane: HttpLane | None = None,
        gate: Gate | None = None,
    ) -> None:
        """`tunnel` answers Handle messages, given the body and the peer's address."""
        self._service = service
        self._tunnel = tunnel
        self._lane = lane if lane is not None and lane.enabled else None
        endpoints = tuple(endpoints)
        self._routes = Routes(endpoints)
        self._observer = observer
        self._limits = limits
        self._public_url = public_url.rstrip("/")
        self.gate = gate or Gate(limits.requests_max)
        self._proxies = Proxies(limits.trusted_proxies, limits.forwarded_header)
        self._body_bytes = 0
        self._runner: web.ServerRunner | None = None
        self._server: ConnectionServer | None = None
        self._over_tls: list[asyncio.Server] = []
        self.door = Door(
            service,
            observer,
            self.gate,
            find=self._routes.find,
            origin=self._origin,
            proxies=self._proxies,
            header_bytes_max=limits.header_bytes_max,
        )
        self._gathering = None
        if self._lane is not None:
            self._gathering = Gathering(
                service,
                endpoints,
                observer,
                self.gate,
                self._lane,
                find=self._routes.find,
                origin=self._origin,
                proxies=self._proxies,
                deadline_s=limits.deadline_s,
            )

    async def start(
        self, host: str, port: int, *, drain_s: float = 10.0, sockets: Sequence[socket.socket] = ()
    ) -> int:
        """Listen, and return the port (useful when asked for port 0); on `sockets` instead, if
        they are given."""
        server = ConnectionServer(
            self._handle,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=self._limits.keepalive_timeout_s,
            max_line_size=self._limits.header_bytes_max,
            max_field_size=self._limits.header_bytes_max,
            lingering_time=2.0,
            auto_decompress=False,  # what is sent encoded is refused: see Asked.body_as
        )
        server.limits = self._limits
        server.refused = self._refused
        server.lane = self._lane
        server.door = self.door
        server.gathering = self._gathering
        self._server = server
        self._runner = web.ServerRunner(server, shutdown_timeout=drain_s)
        await self._runner.setup()
        sites: list[web.BaseSite] = [
            web.SockSite(self._runner, each, backlog=BACKLOG) for each in sockets
        ] or [web.TCPSite(self._runner, host, port, backlog=BACKLOG, reuse_address=True)]
        for site in sites:
            await site.start()
        server.sweep()
        return int(self._runner.addresses[0][1])

    async def start_tls(
        self, host: str, port: int, context: TlsContext, *, sockets: Sequence[socket.socket] = ()
    ) -> int:
        """After `start`: listen for TLS as well, and return that port."""
        assert self._server is not None
        loop = asyncio.get_running_loop()
        over: dict[str, Any] = {
            "ssl": context,
            "ssl_handshake_timeout": self._limits.header_timeout_s,
            "ssl_shutdown_timeout": 2.0,
            "backlog": BACKLOG,
        }
        for each in sockets:
            self._over_tls.append(await loop.create_server(self._server, sock=each, **over))
        if not sockets:
            self._over_tls.append(
                await loop.create_server(self._server, host, port, reuse_address=True, **over)
            )
        return int(self._over_tls[0].sockets[0].getsockname()[1])

    async def stop(self, linger_s: float = 0.0) -> None:
        """Take no more connections and answer what has come. For `linger_s` before connections
        are closed each may still ask once, and is told with the answer that it was the last."""
        over_tls, self._over_tls = self._over_tls, []
        for server in over_tls:
            server.close()
        if self._runner is None or self._server is None:
            return
        if linger_s:
            self._server.draining = True
            self._server.drain()
            for site in tuple(self._runner.sites):
                await site.stop()
            await self._until_left(linger_s, least_s=linger_s if over_tls else ACCEPTED_S)
        await self._runner.cleanup()
        self._runner = None
        if self._gathering is not None:
            await self._gathering.stop()

    async def _until_left(self, most_s: float, least_s: float) -> None:
        """Connections that have just been taken, or are still shaking hands, are not yet among
        the others: for them `least_s`."""
        assert self._server is not None
        loop = asyncio.get_running_loop()
        began = loop.time()
        while (passed := loop.time() - began) < most_s:
            if passed >= least_s and not self._server.open:
                return
            await asyncio.sleep(ACCEPTED_S)

    def readings(self) -> dict[str, float]:
        connections = len(self._server.open) if self._server is not None else 0
        return {
            "http_connections": connections,
            "http_requests_running": self.gate.running,
            "http_requests_limit": self.gate.limit,
            "http_connections_held": len(self.gate.penalties) + len(self._service.quotas.penalties),
            "http_lane_entries": len(self._lane) if self._lane is not None else 0,
            "http_lane_bytes": self._lane.bytes if self._lane is not None else 0,
        }

    def counts(self) -> dict[str, float]:
        return {"http_refused_at_the_door": self.door.refused}

    # One request ------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        handler = request.protocol
        assert isinstance(handler, Handler)
        lane_key, handler.key = handler.key, None
        place = Place(self.gate, handler.began)
        handler.began = None
        try:
            response = await self._answer(request, lane_key, place)
        finally:
            place.leave()
        if place.penalties is not None:
            handler.hold(place.penalties)
        if response.keep_alive:
            handler.answered += 1
        return response

    async def _answer(
        self, request: web.BaseRequest, lane_key: bytes | None, place: Place
    ) -> web.StreamResponse:
        given = request.headers.get("X-Request-Id", "")
        request_id = (
            given
            if REQUEST_ID.fullmatch(given.encode(errors="surrogateescape"))
            else new_request_id()
        )
        if request.method == "POST" and is_tunnel(request.headers.get("Content-Type", "")):
            reply = await self._tunnelled(request, request_id)
            if reply.body[_RESPONSE_CODE] == _SERVER_BUSY:
                place.penalties = self.gate.penalties
            response = response_of(reply, request_id)
            await self._send(request, response)
            return response
        asked, endpoint, refusal = await self._receive(request, request_id, place)
        if endpoint is None:
            assert refusal is not None
            reply = self._unrouted(asked, refusal)
        else:
            try:
                reply = await self._serve(endpoint, asked, refusal, place)
            finally:
                self._body_bytes -= _beyond(len(asked.body))
            place.leave(quick=endpoint.operation in _QUICK and reply.status < 500)
        if reply.file is not None:
            return await send_file(request, reply, request_id, self._limits.reply_timeout_s)
        for_all = asked.method in ("GET", "HEAD", "OPTIONS")
        response = response_of(reply, request_id, for_all=for_all)
        await self._send(request, response)
        if lane_key is not None and reply.entry is not None and self._lane is not None:
            assert endpoint is not None
            assert isinstance(asked.headers, Noted)
            if asked.headers.decided_by_profile():
                tally = endpoint.front, endpoint.operation
                self._lane.learn(lane_key, asked.method, response, reply.entry, tally)
        return response

    async def _tunnelled(self, request: web.BaseRequest, request_id: str) -> Reply:
        """A Handle message, whatever the path: the body says what is asked."""
        try:
            if self._tunnel is None:
                raise NotFound()
            body = await self._read(request)
            try:
                answer = await self._tunnel(body, self._peer(request))
            finally:
                self._body_bytes -= _beyond(len(body))
        except Malformed as error:
            refusal: BiaojieError = InvalidRequest(
                f"The body is no Handle message: {error}.",
                f"正文不是 Handle 报文：{error}。",
                errors=[],
            )
        except BiaojieError as error:
            refusal = error
        else:
            return Reply(200, answer, MEDIA_TYPE, {"Cache-Control": "no-store"})
        refusal.request_id = request_id
        self._refused(refusal, self._peer(request))
        return problem_reply(refusal, chinese=False)

    async def _receive(
        self, request: web.BaseRequest, request_id: str, place: Place
    ) -> tuple[Asked, Endpoint[Any, Any] | None, BiaojieError | None]:
        """The request as a value, the endpoint it is for, and why it is refused if it is."""
        path, _, query = _printable(_ABSOLUTE.sub("", request.raw_path)).partition("?")
        refusal: BiaojieError | None = None
        endpoint: Endpoint[Any, Any] | None = None
        tail, body, parts = "", b"", None
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
            if endpoint.operation in ALWAYS_SERVED or (
                endpoint.operation == "changes" and "wait=" in request.raw_path
            ):
                place.leave()  # those who wait for news have a bound of their own
            elif endpoint.upload:
                place.leave()  # and so have those who send files
                parts = parts_of(request, self._limits.body_timeout_s)
            elif endpoint.body is not None:
                place.expect()  # it takes up none while its body is on the way
                body = await self._read(request)
                place.enter(len(body) if endpoint.operation == "resolve-many" else 0)
            else:
                place.enter()
        except BiaojieError as error:
            refusal = error
        asked = Asked(
            method=request.method,
            path=path,
            query=query.partition("#")[0],
            headers=Noted({n.lower(): _printable(value) for n, value in request.headers.items()}),
            body=body,
            peer=self._peer(request),
            request_id=request_id,
            origin=self._origin(request.secure, request.headers.get("Host", "")),
            tail=tail,
            tls=request.secure,
            certificate=client_certificate(request.transport),
            parts=parts,
        )
        return asked, endpoint, refusal

    async def _read(self, request: web.BaseRequest) -> bytes:
        limit = self._limits.body_bytes_max
        too_large = TooLarge(
            f"The body is larger than {limit} bytes.", f"正文超过 {limit} 字节。", bytes_max=limit
        )
        if (request.content_length or 0) > limit:
            raise too_large
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                while part := await request.content.readany():
                    if len(body) + len(part) > limit:
                        raise too_large
                    self._body_bytes += _beyond(len(body) + len(part)) - _beyond(len(body))
                    body += part
                    if self._body_bytes > BODIES_MAX * limit and _beyond(len(body)):
                        raise OverCapacity()
        except BaseException as error:
            self._body_bytes -= _beyond(len(body))
            raise unread(error, self._limits.body_timeout_s) from None
        return bytes(body)

    def _peer(self, request: web.BaseRequest) -> str:
        """Over our own TLS a proxy only passes octets on, and the client has written them all."""
        told = () if request.secure else request.headers.getall(self._proxies.header, ())
        return self._proxies.asker(request.remote or "", told)

    def _origin(self, secure: bool, host: str) -> str:
        if self._public_url:
            return self._public_url
        return f"http{'s' * secure}://{host}" if _HOST.fullmatch(host) else ""

    async def _serve(
        self,
        endpoint: Endpoint[Any, Any],
        asked: Asked,
        refusal: BiaojieError | None,
        place: Place,
    ) -> Reply:
        caller = PUBLIC

        async def answer(decode: Callable[[Asked], Any]) -> Any:
            nonlocal caller
            if isinstance(refusal, OverCapacity):
                raise refusal  # whoever it is: nobody is asked
            caller = await self._authenticate(endpoint, asked)
            try:
                self._service.admit(caller)
            except TooManyRequests:
                place.penalties = self._service.quotas.penalties
                raise
            if len(asked.body) > BODY_BYTES_FREE:
                # Long enough to keep others waiting: beside the loop, not on it.
                question = await asyncio.to_thread(decode, asked)
            else:
                question = decode(asked)
            if endpoint.query is NoQuery and not endpoint.keyless and endpoint.tag:
                asked.query_as(NoQuery)
            return await endpoint.service(self._service, caller, question)

        deadline_s = self._limits.deadline_s
        if endpoint.operation in _BATCHES:
            deadline_s = self._limits.batch_deadline_s
        elif endpoint.upload:
            deadline_s = self._limits.import_upload_s
        elif endpoint.operation == "changes":
            deadline_s += 31.0  # it may have been asked to wait; the wait itself is bounded
        # Callers are known before what they say is looked at.
        decode = endpoint.decode if refusal is None else _refusing(refusal)
        reply = await serve(
            replace(endpoint, decode=lambda asked: decode),
            answer,
            asked,
            deadline_s=deadline_s,
            observer=self._observer,
            request_id=asked.request_id,
            peer=asked.peer,
        )
        left = self._service.left(caller)
        if left is not None and "RateLimit" not in reply.headers:
            headers = {**reply.headers, **rate_limit(self._service.quotas.rate_max, left, 1)}
            return replace(reply, headers=headers)
        return reply

    async def _authenticate(self, endpoint: Endpoint[Any, Any], asked: Asked) -> Caller:
        if endpoint.keyless:
            return PUBLIC
        try:
            if endpoint.authenticate is not None:
                return await endpoint.authenticate(asked)
            caller = await self._service.authenticate(asked.key, asked.peer)
        except TemporarilyUnavailable:
            # A reader whose key cannot be checked just now still gets what everybody gets.
            if endpoint.public:
                return PUBLIC
            raise
        if caller.role is None and not endpoint.public:
            raise Unauthenticated()
        return caller

    def _refused(self, error: BiaojieError, peer: str, fault: BaseException | None = None) -> None:
        """Count and log what reached no endpoint."""
        self._observer.answered(
            "http", "none", error.code, 0.0, request_id=error.request_id, peer=peer, fault=fault
        )

    def _unrouted(self, asked: Asked, refusal: BiaojieError) -> Reply:
        refusal.request_id = asked.request_id
        if asked.method == "OPTIONS" and isinstance(refusal, MethodNotAllowed):
            self._observer.answered(
                "http", "options", "ok", 0.0, request_id=asked.request_id, peer=asked.peer
            )
            return self._preflight(refusal)
        self._refused(refusal, asked.peer)
        reply = problem_reply(refusal, chinese=asked.chinese)
        if isinstance(refusal, MethodNotAllowed):
            reply = replace(reply, headers={**reply.headers, "Allow": _allow(refusal)})
        return reply

    def _preflight(self, refusal: MethodNotAllowed) -> Reply:
        headers = {"Allow": _allow(refusal), "Cache-Control": "public, max-age=600"}
        if "GET" in refusal.fields["allow"]:
            headers["Access-Control-Allow-Methods"] = "GET, HEAD"
            headers["Access-Control-Allow-Headers"] = "Accept, If-None-Match"
            headers["Access-Control-Max-Age"] = "600"
        return Reply(204, headers=headers)

    async def _send(self, request: web.BaseRequest, response: web.Response) -> None:
        """Write the reply within its time: a reader who does not read must not hold us."""
        if self._server is not None and self._server.draining:
            response.force_close()
        try:
            async with asyncio.timeout(self._limits.reply_timeout_s):
                await response.prepare(request)
                await response.write_eof()
        except (TimeoutError, ConnectionError):  # too slow to take it, or gone
            if request.transport is not None:
                request.transport.abort()


def _allow(refusal: MethodNotAllowed) -> str:
    return ", ".join(refusal.fields["allow"])


def _beyond(octets: int) -> int:
    """How much of a body of this size counts towards what all bodies may take together."""
    return max(0, octets - BODY_BYTES_FREE)


def _printable(text: str) -> str:
    """Text that may be repeated in a reply: what was no UTF-8 on the wire is replaced."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _refusing(refusal: BiaojieError) -> Callable[[Asked], Any]:
    """A decoder for requests that were refused on their way in."""

    def decode(asked: Asked) -> Any:
        raise refusal

    return decode
