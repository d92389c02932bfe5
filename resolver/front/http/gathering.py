"""Plain requests to resolve for which the express lane has no reply: asked for together, answered
from the connection.

What comes soon one after another, of any connection, passes the waist as one (`serve_many`), so
that a task, a deadline and a look-up for many cost each of them little. Rules: only what the lane
takes for plain comes here, while nothing else is under way on its connection; what is sent is what
the ordinary path sends, octet by octet; what is not for everybody's eyes alike, or too long to be
written in one go, is handed to aiohttp, before or after it was asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from biaojie.errors import BiaojieError, InvalidIdentifier, InvalidRequest, NotFound
from biaojie.making import maker

from ...exchange import new_request_id, serve_at_hand, serve_many
from ...gathered import Soon
from ...observe import Observer
from ...overload import Gate
from ...query import Query, Resolution
from ...service import Service
from .endpoint import Asked, Endpoint, Reply
from .forwarded import Proxies
from .lane import HttpLane, Noted
from .replies import octets_of, sent

if TYPE_CHECKING:
    from .connection import Connection

BLOCKS_MAX: Final = 512
"""Header blocks that are remembered as read."""
SHORT_OCTETS_MAX: Final = 16_384
SHORT_VALUES_MAX: Final = 64
"""Records with more may make a reply that a slow reader has to be waited for."""

_make_asked = maker(Asked)


class Awaited:
    """One request, and what aiohttp would be handed of it. `asks` is its question, or what is
    wrong with it; `came` when it came (monotonic). `connection` is None as soon as the reply is
    nobody's any more or somebody else's to give."""

    __slots__ = (
        "asked",
        "asks",
        "batch",
        "came",
        "connection",
        "data",
        "key",
        "peer",
        "request_id",
        "start",
    )

    def __init__(
        self,
        connection: Connection,
        batch: Batch,
        asked: Asked,
        asks: Query | BiaojieError,
        request: tuple[bytes, bytes, bytes, float],
    ) -> None:
        """`request`: all of it, the lane's key, its start, when it came."""
        self.connection: Connection | None = connection
        self.batch = batch
        self.asked = asked
        self.asks = asks
        self.peer = asked.peer
        self.request_id = asked.request_id
        self.data, self.key, self.start, self.came = request


class Batch:
    """The codec of one endpoint for requests of the public, and those that wait to be asked."""

    def __init__(
        self,
        endpoint: Endpoint[Any, Any],
        ask: Callable[[Batch], None],
        tasks: Sized,
    ) -> None:
        """`ask` is called with it `soon`; `tasks`: what is being asked, of any of them."""
        assert endpoint.public_query is not None
        self.front = endpoint.front
        self.operation = endpoint.operation
        self.waiting: list[Awaited] = []
        self.soon = Soon(partial(ask, self), tasks)
        self.ask_of: Callable[[Any], Query | None] = endpoint.public_query
        self.read = endpoint.decode
        self._encode = endpoint.encoder
        self.encode_refusal = endpoint.encode_error

    def decode(self, data: Awaited) -> Awaited:
        if isinstance(data.asks, BiaojieError):
            raise data.asks
        return data

    def encode(self, data: Awaited, answer: Resolution) -> Reply:
        return self._encode(data.asked, answer)

    def encode_error(self, data: Awaited, error: BiaojieError) -> Reply:
        return self.encode_refusal(data.asked, error)


class Gathering:
    """`find` and `origin` are those of the door. `starts`: how requests begin that are for it."""

    def __init__(
        self,
        service: Service,
        endpoints: Iterable[Endpoint[Any, Any]],
        observer: Observer,
        gate: Gate,
        lane: HttpLane,
        *,
        find: Callable[[str], tuple[Mapping[str, Endpoint[Any, Any]], str]],
        origin: Callable[[bool, str], str],
        proxies: Proxies,
        deadline_s: float,
    ) -> None:
        gathered = [endpoint for endpoint in endpoints if endpoint.public_query is not None]
        self.starts = tuple(
            f"{each.method} {each.path.partition('{')[0]}".encode() for each in gathered
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._batches = {
            each.operation: Batch(each, self._ask_together, self._tasks) for each in gathered
        }
        self._service = service
        self._observer = observer
        self._gate = gate
        self._lane = lane
        self._find = find
        self._origin = origin
        self._proxies = proxies
        self._deadline_s = deadline_s
        self._heads: tuple[dict[bytes, _Head], dict[bytes, _Head]] = {}, {}

    # In ---------------------------------------------------------------------------------

    def ask(
        self,
        connection: Connection,
        data: bytes,
        key: bytes,
        start: bytes,
        block: bytes,
        now: float,
    ) -> bytes | Awaited | None:
        """The reply, where there is no need to wait; that it is on its way; or None if the request
        is for the ordinary path. It came at the monotonic time `now`."""
        if self._gate.full:
            return None
        path, _, query = start.decode()[4:].partition("?")
        try:
            methods, tail = self._find(path.partition("#")[0])
        except NotFound:
            return None
        endpoint = methods.get("GET")
        batch = None if endpoint is None else self._batches.get(endpoint.operation)
        if batch is None:
            return None
        asked = self._asked(connection.transport, path, query, block, tail)
        asks: Query | BiaojieError | None
        try:
            asks = batch.ask_of(batch.read(asked))
        except (InvalidIdentifier, InvalidRequest) as error:
            asks = error
        except Exception:
            return None  # where all else is refused and logged
        if asks is None:
            return None
        awaited = Awaited(connection, batch, asked, asks, (data, key, start, now))
        reply = serve_at_hand(
            batch,
            self._at_hand,
            awaited,
            observer=self._observer,
            request_id=awaited.request_id,
            peer=awaited.peer,
        )
        if reply is not None:
            return self._told(awaited, reply)
        self._gate.enter()
        if not batch.waiting:
            batch.soon.begin()
        batch.waiting.append(awaited)
        return awaited

    def _asked(
        self, transport: asyncio.BaseTransport, path: str, query: str, block: bytes, tail: str
    ) -> Asked:
        told = transport.get_extra_info
        secure = told("sslcontext") is not None
        head = self._heads[secure].get(block)
        if head is None:
            head = self._read(block, secure)
        peer = str((told("peername") or ("",))[0])
        return _make_asked(
            "GET",
            path,
            query.partition("#")[0],
            Noted(head.headers),
            b"",
            self._proxies.asker(peer, head.forwarded) if head.forwarded else peer,
            head.headers.get("x-request-id") or new_request_id(),
            head.origin,
            tail,
            secure,
            b"",
            None,
        )

    def _read(self, block: bytes, secure: bool) -> _Head:
        head = _Head(block, secure, self._proxies.header, self._origin)
        if "x-request-id" not in head.headers:  # else hardly ever the same again
            heads = self._heads[secure]
            while len(heads) >= BLOCKS_MAX:
                del heads[next(iter(heads))]
            heads[block] = head
        return head

    # Together ---------------------------------------------------------------------------

    def _at_hand(self, awaited: Awaited) -> Resolution | None:
        assert isinstance(awaited.asks, Query)
        found = self._service.at_hand(awaited.asks)
        return None if found is None or _long(found) else found

    def _ask_together(self, batch: Batch) -> None:
        waiting, batch.waiting = batch.waiting, []
        ours = [each for each in waiting if each.connection is not None]
        for part in self._service.parts(ours, _query):
            task = asyncio.get_running_loop().create_task(self._answer(batch, part))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _resolve(self, batch: Sequence[Awaited]) -> list[Resolution | BiaojieError | None]:
        queries = [awaited.asks for awaited in batch if isinstance(awaited.asks, Query)]
        found: list[Resolution | BiaojieError | None] = []
        for awaited, one in zip(batch, await self._service.resolve_public(queries), strict=True):
            ours = awaited.connection is not None
            found.append(one if ours and not (isinstance(one, Resolution) and _long(one)) else None)
        return found

    async def _answer(self, batch: Batch, asked: Sequence[Awaited]) -> None:
        replies: Sequence[Reply | None] = ()
        try:
            replies = await serve_many(
                batch,
                self._resolve,
                asked,
                deadline_s=self._deadline_s,
                observer=self._observer,
            )
        finally:
            now = monotonic()
            for n, awaited in enumerate(asked):
                connection = awaited.connection
                if connection is None:
                    continue
                if not replies:  # we are being stopped
                    connection.transport.abort()
                    continue
                try:
                    self._settle(connection, awaited, replies[n], now)
                except Exception as error:  # our mistake: the others are still to be answered
                    connection.transport.abort()
                    said = {"message": "a reply could not be sent", "exception": error}
                    asyncio.get_running_loop().call_exception_handler(said)

    def _settle(
        self, connection: Connection, awaited: Awaited, reply: Reply | None, now: float
    ) -> None:
        if reply is None:
            connection.fall_through()
            return
        told = self._told(awaited, reply)
        connection.settle()
        self._gate.leave(now - awaited.came if reply.status < 500 else None)
        connection.answer(told, now)

    def _told(self, awaited: Awaited, reply: Reply) -> bytes:
        """The octets of a reply that is sent now, and kept if it is such a one."""
        asked = awaited.asked
        if reply.entry is not None:
            assert isinstance(asked.headers, Noted)
            if asked.headers.decided_by_profile():
                tally = awaited.batch.front, awaited.batch.operation
                response = sent(reply, asked.request_id)
                self._lane.learn(awaited.key, "GET", response, reply.entry, tally)
        return octets_of(reply, asked.request_id)

    async def stop(self) -> None:
        """By now there is nobody to answer."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Head:
    """A plain header block as the ordinary path reads it."""

    __slots__ = ("forwarded", "headers", "origin")

    def __init__(
        self, block: bytes, secure: bool, forwarded: str, origin: Callable[[bool, str], str]
    ) -> None:
        self.headers: dict[str, str] = {}
        told: list[str] = []
        for line in block[:-4].decode("ascii").split("\r\n"):
            name, _, text = line.partition(":")
            folded, text = name.lower(), text.strip(" \t")
            self.headers[folded] = text
            if folded == forwarded:
                told.append(text)
        self.forwarded = () if secure else tuple(told)
        self.origin = origin(secure, self.headers["host"])


def _query(awaited: Awaited) -> Query:
    assert isinstance(awaited.asks, Query)  # what is wrong was said at once
    return awaited.asks


def _long(found: Resolution) -> bool:
    values = found.record.values
    return len(values) > SHORT_VALUES_MAX or sum(len(v.data) for v in values) > SHORT_OCTETS_MAX
