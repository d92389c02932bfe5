"""One connection of the native protocol: requests out, each answer to whoever waits for it.

Requests that are asked in one turn of the event loop leave in one write. An id is taken again
only after its answer has come: an answer whose caller has given up is passed over when it
comes, and until then counts as a request that the node still works on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from .errors import BiaojieError, MalformedAnswer
from .wire.native import (
    CONNECTION,
    HEAD,
    ID_MAX,
    Frame,
    Framing,
    Kind,
    decode_error,
    encode_frame,
    encode_request,
)
from .wire.native.requests import Cancel

WRITE_OCTETS: Final = 65_536
"""What is gathered for one write; with more, the write is made at once."""
FORGOTTEN_S: Final = 30.0
"""An answer that is so long overdue does not come any more."""
CLOSE_S: Final = 1.0
"""How long a peer has to take what was sent before we hung up."""
PARTS_HELD: Final = 2
"""Parts of a stream that wait for their reader; then the node has to."""
_ANSWER: Final = int(Kind.ANSWER)


@dataclass(frozen=True, slots=True)
class Refused:
    """The node answered with an error; the body of its frame."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """There is no answer and will be none. `error` is what the node said to all callers, or what
    is wrong with what it sent. `reused`: the connection had been good before."""

    en: str
    zh: str
    error: BiaojieError | None = None
    reused: bool = False


@dataclass(frozen=True, slots=True)
class Strange:
    """The answer is of a kind that does not belong to the request."""

    kind: int


@dataclass(frozen=True, slots=True)
class Parted:
    """An answer in parts: the bodies of the parts, and that of the end."""

    parts: list[bytes]
    end: bytes


class Expired:
    """The deadline passed first."""


class Overflow:
    """The answer has more octets than may be."""


EXPIRED: Final = Expired()
OVERFLOW: Final = Overflow()
Reply = bytes | Parted | Refused | Lost | Strange | Expired | Overflow
Waiting = tuple["asyncio.Future[Reply]", float, float]
"""Who waits, until when, and since when."""


class Gathering:
    """An answer in parts that somebody wants as a whole, of at most `octets_max`."""

    __slots__ = ("_octets_left", "_parts", "_stopped", "waiting")

    def __init__(self, waiting: Waiting, octets_max: int) -> None:
        self.waiting = waiting
        self._octets_left = octets_max
        self._parts: list[bytes] = []
        self._stopped = False

    def part(self, body: bytes) -> bool:
        """False, once: nobody wants any more of it."""
        self._octets_left -= len(body)
        if self._octets_left < 0:
            self.finish(OVERFLOW)
        if not self.waiting[0].done():
            self._parts.append(body)
            return True
        self._parts.clear()
        stopped, self._stopped = self._stopped, True
        return stopped

    def end(self, body: bytes) -> None:
        self.finish(Parted(self._parts, body))

    def finish(self, reply: Reply) -> None:
        if not self.waiting[0].done():
            self.waiting[0].set_result(reply)


class Stream:
    """An answer in parts that is read as it comes, on a connection of its own.

    While `PARTS_HELD` parts wait for their reader, the connection is not read.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._parts: deque[bytes] = deque()
        self._last: Reply | None = None
        self._news = asyncio.Event()

    def part(self, body: bytes) -> bool:
        self._parts.append(body)
        self._news.set()
        if len(self._parts) >= PARTS_HELD:
            self.connection.hold(True)
        return True

    def end(self, body: bytes) -> None:
        self.finish(Parted([], body))

    def finish(self, reply: Reply) -> None:
        if self._last is None:
            self._last = reply
        self._news.set()

    async def next(self, timeout_s: float) -> Reply | None:
        """The next part, or what the stream ended with; None: nothing came in that time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return None
        if self._parts:
            body = self._parts.popleft()
            if not self._parts and self._last is None:
                self._news.clear()
            if len(self._parts) < PARTS_HELD:
                self.connection.hold(False)
            return body
        return self._last


class Connection(asyncio.Protocol):
    """`ready`: it may be asked. `heard`: when it last said something whole. `waiting` are the
    requests on their way, those included whose callers have given up. `freed` is called when
    there is room again, `gone` at the end."""

    def __init__(
        self,
        *,
        octets_max: int,
        freed: Callable[[], None],
        gone: Callable[[Connection], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._framing = Framing(octets_max)
        self._freed = freed
        self._gone = gone
        self._transport: asyncio.Transport | None = None
        self._next_id = 1
        self._unsent: list[bytes] = []
        self._unsent_octets = 0
        self._flushing = self._holding = self._answered = False
        self._greeting: asyncio.Future[Reply] | None = None
        self._lost: Lost | None = None
        self._ended = self._loop.create_future()
        self.waiting: dict[int, Waiting] = {}
        self.parted: dict[int, Gathering | Stream] = {}
        self.ready = False
        self.room = self.busy = 1
        """Requests that may be on their way at a time, as agreed when it was opened; and from how
        many on others are opened."""
        self.heard = self.used = self._loop.time()

    # Coming and going -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    async def greet(self, hello: bytes) -> Reply:
        """Send the hello; what the node says to it. The caller sets the time and `ready`."""
        self._greeting = self._loop.create_future()
        if self._lost is not None:
            return self._lost
        self._send(hello)
        return await self._greeting

    def connection_lost(self, exc: BaseException | None) -> None:
        self._fail(_lost_of(exc))
        self._transport = None
        if not self._ended.done():
            self._ended.set_result(None)
        self._gone(self)

    def _fail(self, lost: Lost) -> None:
        """Everybody who waits learns of it; the first reason holds."""
        self.ready = False
        if self._lost is not None:
            return
        self._lost = Lost(lost.en, lost.zh, lost.error, self._answered)
        self._unsent.clear()
        waiting, self.waiting = self.waiting, {}
        parted, self.parted = self.parted, {}
        for future, _, _ in waiting.values():
            if not future.done():
                future.set_result(self._lost)
        for sink in parted.values():
            sink.finish(self._lost)
        if self._greeting is not None and not self._greeting.done():
            self._greeting.set_result(self._lost)

    def close(self, lost: Lost | None = None) -> None:
        """Send what is to be sent and hang up. Whoever waits is told `lost`."""
        self._flush()
        self._fail(lost or Lost("the connection was closed", "连接已关闭"))
        if self._transport is not None:
            self._transport.close()
            if self._transport.get_write_buffer_size():  # which a dead peer never takes
                self._loop.call_later(CLOSE_S, self._transport.abort)

    async def closed(self, timeout_s: float) -> None:
        """Wait for the end of a connection that was closed; after that time, cut it."""
        await asyncio.wait([self._ended], timeout=timeout_s)
        if self._transport is not None:
            self._transport.abort()

    # Asking -----------------------------------------------------------------------------

    @property
    def load(self) -> int:
        return len(self.waiting) + len(self.parted)

    @property
    def alive(self) -> bool:
        """Whether somebody still wants an answer."""
        return any(not future.done() for future, _, _ in self.waiting.values()) or any(
            isinstance(sink, Stream) or not sink.waiting[0].done() for sink in self.parted.values()
        )

    def ask(self, kind: int, body: bytes, deadline: float, now: float) -> asyncio.Future[Reply]:
        """Send a request on a ready connection. The reply is the body of the answer, or says
        why there is none; the deadline is looked at by `sweep` alone."""
        id_ = self._take_id()
        future: asyncio.Future[Reply] = self._loop.create_future()
        self.waiting[id_] = (future, deadline, now)
        self.used = now
        self._send(HEAD.pack(len(body) + 5, id_, kind) + body)
        return future

    def gather(
        self, kind: int, body: bytes, deadline: float, now: float, octets_max: int
    ) -> asyncio.Future[Reply]:
        """As `ask`, where the answer comes in parts: the reply is a Parted."""
        future: asyncio.Future[Reply] = self._loop.create_future()
        sink = Gathering((future, deadline, now), octets_max)
        self._begin(kind, body, sink, now)
        return future

    def stream(self, kind: int, body: bytes) -> Stream:
        stream = Stream(self)
        if self._lost is None:
            self._begin(kind, body, stream, self._loop.time())
        else:
            stream.finish(self._lost)
        return stream

    def _begin(self, kind: int, body: bytes, sink: Gathering | Stream, now: float) -> None:
        id_ = self._take_id()
        self.parted[id_] = sink
        self.used = now
        self._send(HEAD.pack(len(body) + 5, id_, kind) + body)

    def _take_id(self) -> int:
        id_ = self._next_id
        while id_ in self.waiting or id_ in self.parted:
            id_ = id_ % ID_MAX + 1
        self._next_id = id_ % ID_MAX + 1
        return id_

    def _send(self, frame: bytes) -> None:
        self._unsent.append(frame)
        self._unsent_octets += len(frame)
        if self._unsent_octets > WRITE_OCTETS:
            self._flush()
        elif not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._unsent and self._transport is not None:
            data = self._unsent[0] if len(self._unsent) == 1 else b"".join(self._unsent)
            self._transport.write(data)
        self._unsent.clear()
        self._unsent_octets = 0

    def pause_writing(self) -> None:
        self.ready = False

    def resume_writing(self) -> None:
        if self._lost is None:
            self.ready = True
            self._freed()

    # Answers ----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._lost is not None:
            return
        now = self._loop.time()
        waiting = self.waiting
        for frame in self._framing.feed(data):
            id_, kind, body = frame
            self.heard = now
            if kind == _ANSWER and id_ in waiting:
                future = waiting.pop(id_)[0]
                if not future.done():
                    future.set_result(body)
            else:
                self._take(frame)
        self._answered = self._greeting is None
        if self._framing.fault is None:
            self._freed()
            return
        en, zh = self._framing.fault.detail
        strange = MalformedAnswer(
            f"What came is not the native protocol: {en}", f"收到的内容不是原生协议：{zh}"
        )
        self._fail(Lost(*strange.detail, strange))
        if self._transport is not None:
            self._transport.abort()

    def _take(self, frame: Frame) -> None:
        """What is not the plain answer to a plain request."""
        id_, kind, body = frame
        if id_ == CONNECTION:
            self._of_the_connection(kind, body)
            return
        sink = self.parted.get(id_)
        if sink is not None:
            if kind == Kind.PART:
                if not sink.part(body):
                    self._send(encode_frame(CONNECTION, *encode_request(Cancel(id_))))
                return
            del self.parted[id_]
            if kind == Kind.END:
                sink.end(body)
            else:
                sink.finish(Refused(body) if kind == Kind.ERROR else Strange(kind))
        elif id_ in self.waiting:
            future = self.waiting.pop(id_)[0]
            if not future.done():
                future.set_result(Refused(body) if kind == Kind.ERROR else Strange(kind))

    def _of_the_connection(self, kind: int, body: bytes) -> None:
        greeting, self._greeting = self._greeting, None
        if greeting is not None:
            if not greeting.done():
                greeting.set_result(body if kind == _ANSWER else Refused(body))
        elif kind == Kind.ERROR:  # the node's last words
            error = decode_error(body)
            self._fail(Lost(*error.detail, error))

    def hold(self, holding: bool) -> None:
        """Stop reading, or go on."""
        if holding == self._holding or self._transport is None or self._transport.is_closing():
            return
        self._holding = holding
        if holding:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    # Time -------------------------------------------------------------------------------

    def sweep(self, now: float) -> tuple[float, bool]:
        """End what is due. When to look again, and whether the node still answers here."""
        again = float("inf")
        good = True
        gathering = (sink.waiting for sink in self.parted.values() if isinstance(sink, Gathering))
        for future, deadline, since in (*self.waiting.values(), *gathering):
            if deadline <= now:  # also where its caller has given up before
                if not future.done():
                    future.set_result(EXPIRED)
                good = good and self.heard > since
            if not future.done():
                again = min(again, deadline)
            elif now < deadline + FORGOTTEN_S:
                again = min(again, deadline + FORGOTTEN_S)
            else:
                good = False
        return again, good


def _lost_of(exc: BaseException | None) -> Lost:
    if exc is None:
        return Lost("the node closed the connection", "节点关闭了连接")
    told = str(exc) or type(exc).__name__
    return Lost(told, told)
