"""The door of the HTTP front: who is refused whatever he asks is told so at once, and no request
is made of what he sent.

Two refuse here: the gate, when as much is worked on as can be done in time, and the quotas, when a
tenant whose key is known has used up its rate. Rules: only one whole message, in the strictest
reading of HTTP/1.1, is refused here, while nothing else is under way on the connection; all else
goes the ordinary way, which refuses it as well. What is told is what the ordinary path says, octet
by octet, and it is counted like that.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from biaojie.errors import BiaojieError, NotFound
from biaojie.wire.handle import is_tunnel

from ...exchange import new_request_id
from ...observe import CROWDED_LINE_S, Observer, Tally
from ...overload import Gate, Penalties
from ...service import Service
from .endpoint import Asked, Endpoint, Reply
from .forwarded import Proxies
from .lane import BLOCK, HEADERS_MAX, REQUEST_ID, REQUEST_OCTETS_MAX, http_date
from .negotiation import language
from .replies import response_of

ALWAYS_SERVED: Final = frozenset({"healthz", "readyz", "metrics"})
_ALWAYS_SERVED: Final = re.compile(
    rb"(?:GET|HEAD) /(?:%s)(?=[ ?#]|$)" % "|".join(sorted(ALWAYS_SERVED)).encode()
)
BLOCKS_MAX: Final = 512
"""Header blocks that are remembered, and"""
FORMS_MAX: Final = 256
"""refusals."""
_START: Final = re.compile(rb"(GET|HEAD|POST|PUT|PATCH|DELETE) (/[!-~]*+)")
_LENGTH: Final = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_NOT_HERE: Final = re.compile(
    r"transfer-encoding|content-encoding|expect|te|trailer|upgrade|http2-settings|range"
    r"|proxy-[a-z-]*|sec-websocket-[a-z0-9-]*"
)
_RESOLVE: Final = b"GET /api/v1/identifiers/"
_NO_TAIL: Final = (b"", b"?", b"#")
_ID_PLACE: Final = "@@@@@@@@@@@@@@@@"
Form = tuple[bytes, bytes, bytes, bytes]
"""Status line, what is between Date and the id, what is between the id in the head and that in
the body, and the rest."""
_monotonic = time.monotonic


def always_served(data: bytes) -> bool:
    """Whether what begins so asks how the node is, in any version of HTTP: probes must not take a
    node that has much to do for one that is dead."""
    return _ALWAYS_SERVED.match(data) is not None


@dataclass(frozen=True, slots=True)
class Block:
    """A header block in the strict reading; `body_octets` is what has to follow it."""

    headers: Mapping[str, str]
    body_octets: int
    chinese: bool

    @classmethod
    def read(cls, octets: bytes) -> Block | None:
        if BLOCK.fullmatch(octets) is None or octets.count(b"\r\n") > HEADERS_MAX + 2:
            return None
        headers: dict[str, str] = {}
        for line in octets[:-4].decode("ascii").split("\r\n"):
            name, _, text = line.partition(":")
            folded = name.lower()
            if folded in headers or _NOT_HERE.fullmatch(folded):
                return None
            headers[folded] = text.strip(" \t")
        length = headers.get("content-length", "0")
        if (
            "host" not in headers
            or headers.get("connection", "keep-alive").lower() != "keep-alive"
            or not _LENGTH.fullmatch(length)
            or is_tunnel(headers.get("content-type", ""))
        ):
            return None
        return cls(headers, int(length), language(headers.get("accept-language")) == "zh")


class Door:
    """`find` is the route table's; `origin` says under which address a peer sees us, given
    whether over TLS and its Host header."""

    def __init__(
        self,
        service: Service,
        observer: Observer,
        gate: Gate,
        *,
        find: Callable[[str], tuple[Mapping[str, Endpoint[Any, Any]], str]],
        origin: Callable[[bool, str], str],
        proxies: Proxies,
        header_bytes_max: int = REQUEST_OCTETS_MAX,
    ) -> None:
        self.gate = gate
        self.refused = 0
        self.quotas = service.quotas
        self._service = service
        self._observer = observer
        self._find = find
        self._origin = origin
        self._proxies = proxies
        self._octets_max = min(REQUEST_OCTETS_MAX, header_bytes_max)
        self._blocks: dict[bytes, Block | None] = {}
        self._forms: dict[tuple[object, ...], Form] = {}
        self._in_full = 0.0
        """From then on the next refusal is worked out, so that one in a while is logged."""
        self._plain: dict[bytes, tuple[Form, Tally]] = {}
        self._date = b""
        self._date_until = 0.0

    def closed(self, now: float) -> bool:
        """Whether there may be somebody to refuse at the monotonic time `now`."""
        gate = self.gate
        return gate.running >= gate.limit or now < self.quotas.until

    def plain_refusal(
        self, start: bytes, block: bytes, began: float, waited_s: float = 0.0
    ) -> bytes | None:
        """`refusal` by the gate, quickly, of a plain request to resolve, which is what most ask:
        with the same headers all are told the same. None where it has to be worked out. It is
        counted as having taken `waited_s`: all else is microseconds."""
        known = self._plain.get(block)
        if known is None or began >= self._in_full or not self.gate.full:
            return None
        if not start.startswith(_RESOLVE) or start[len(_RESOLVE) :][:1] in _NO_TAIL:
            return None
        (status, before, between, after), tally = known
        self.refused += 1
        self.gate.refused += 1
        if began >= self._date_until:
            self._date_until = began + 1.0 - time.time() % 1.0
            self._date = http_date().encode()
        request_id = new_request_id().encode()
        told = (status, self._date, before, request_id, between, request_id, after)
        tally.leave_out(waited_s)
        return b"".join(told)

    def refusal(
        self, data: bytes, transport: asyncio.BaseTransport, waited_s: float = 0.0
    ) -> tuple[bytes, Penalties] | None:
        """What to send instead of looking at `data`, and among whom the sender has to wait; None
        if it is for the ordinary path."""
        began = _monotonic()
        head, end, body = data.partition(b"\r\n\r\n")
        start, _, lines = head.partition(b" HTTP/1.1\r\n")
        asks = _START.fullmatch(start)
        if asks is None or len(head) > self._octets_max:
            return None
        block = self._block(lines + end)
        if block is None or block.body_octets != len(body):
            return None
        if "authorization" not in block.headers and not self.gate.full:
            return None  # nobody's quota
        method = asks[1].decode()
        if body and method in ("GET", "HEAD"):
            return None
        path, _, query = asks[2].decode().partition("?")
        try:
            methods, tail = self._find(path.partition("#")[0])
        except NotFound:
            return None
        endpoint = methods.get("GET" if method == "HEAD" else method)
        if endpoint is None or endpoint.operation in ALWAYS_SERVED:
            return None
        headers = block.headers
        given = headers.get("x-request-id", "")
        secure = transport.get_extra_info("sslcontext") is not None
        peer = str((transport.get_extra_info("peername") or ("",))[0])
        told = None if secure else headers.get(self._proxies.header)
        asked = Asked(
            method=method,
            path=path,
            query=query.partition("#")[0],
            headers=headers,
            body=body,
            peer=peer if told is None else self._proxies.asker(peer, (told,)),
            request_id=given if REQUEST_ID.fullmatch(given.encode()) else new_request_id(),
            origin=self._origin(secure, headers["host"]),
            tail=tail,
            tls=secure,
        )
        refused = self._refused(endpoint, asked)
        if refused is None:
            return None
        self.refused += 1
        error, penalties = refused
        error.request_id = asked.request_id
        form = self._form_of(endpoint, asked, error, block.chinese)
        if form is None:
            reply = _octets(asked, endpoint.encode_error(asked, error))
        else:
            reply = _filled(form, asked.request_id)
        if form is not None and penalties is self.gate.penalties and data.startswith(_RESOLVE):
            while len(self._plain) >= BLOCKS_MAX:
                del self._plain[next(iter(self._plain))]
            tally = self._observer.tally(endpoint.front, endpoint.operation, error.code)
            self._plain[lines + end] = form, tally
            self._in_full = began + CROWDED_LINE_S
        self._observer.answered(
            endpoint.front,
            endpoint.operation,
            error.code,
            _monotonic() - began + waited_s,
            request_id=asked.request_id,
            peer=asked.peer,
        )
        return reply, penalties

    def _refused(
        self, endpoint: Endpoint[Any, Any], asked: Asked
    ) -> tuple[BiaojieError, Penalties] | None:
        if self.gate.full:
            return self.gate.refuse(), self.gate.penalties
        if endpoint.keyless or endpoint.authenticate is not None:
            return None
        tenant = self._service.tenant_of(asked.key)
        wait_s = self.quotas.let_in(tenant) if tenant else 0.0
        if not wait_s:
            return None
        return self.quotas.refusal(wait_s), self.quotas.penalties

    def _block(self, octets: bytes) -> Block | None:
        try:
            return self._blocks[octets]
        except KeyError:
            pass
        block = Block.read(octets)
        while len(self._blocks) >= BLOCKS_MAX:
            del self._blocks[next(iter(self._blocks))]
        self._blocks[octets] = block
        return block

    # What is told -----------------------------------------------------------------------

    def _form_of(
        self, endpoint: Endpoint[Any, Any], asked: Asked, error: BiaojieError, chinese: bool
    ) -> Form | None:
        """But for time and id it is the same for all who are told the same in the same language;
        None where it is not."""
        if endpoint.error_encoder is not None or "x-request-id" in asked.headers:
            return None
        told = (error.code, *error.fields.values(), chinese, asked.method)
        form = self._forms.get(told)
        if form is None:
            if len(self._forms) >= FORMS_MAX:
                self._forms.clear()
            form = self._forms[told] = self._form(endpoint, asked, error)
        return form

    @staticmethod
    def _form(endpoint: Endpoint[Any, Any], asked: Asked, error: BiaojieError) -> Form:
        request_id, error.request_id = error.request_id, _ID_PLACE
        reply = endpoint.encode_error(asked, error)
        error.request_id = request_id
        whole = _octets(asked, reply, _ID_PLACE)
        before, between, *rest = whole.split(_ID_PLACE.encode())
        at = before.index(b"\r\nDate: ") + len(b"\r\nDate: ")
        until = before.index(b"\r\n", at)
        return before[:at], before[until:], between, rest[0] if rest else b""


def _filled(form: Form, request_id: str) -> bytes:
    status, before, between, after = form
    id_ = request_id.encode()
    return b"".join(
        (status, http_date().encode(), before, id_, between, id_ if after else b"", after)
    )


def _octets(asked: Asked, reply: Reply, request_id: str = "") -> bytes:
    """As aiohttp writes it."""
    for_all = asked.method in ("GET", "HEAD")
    response = response_of(reply, request_id or asked.request_id, for_all=for_all)
    response.headers["Content-Length"] = str(len(reply.body))
    lines = [f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}"]
    lines += [f"{name}: {text}" for name, text in response.headers.items()]
    head = "\r\n".join(lines).encode() + b"\r\n\r\n"
    return head if asked.method == "HEAD" else head + reply.body
