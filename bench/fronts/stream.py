"""A connection over TCP or a Unix socket: at most `room` questions on their way at a time."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Protocol, cast

from ..asking import Ask
from . import LOST, UNREADABLE, Answer, StreamWire

_UNREAD_MAX = 16 * 2**20


class Desk(Protocol):
    """Who asks, and is told the answers."""

    def answered(self, ask: Ask, answer: Answer) -> None: ...

    def failed(self, ask: Ask, code: str) -> None: ...

    def opened(self, link: StreamLink) -> None:
        """The link takes questions."""
        ...

    def closed(self, link: StreamLink) -> None:
        """Its questions have been reported as failed; it takes no more."""
        ...


class StreamLink(asyncio.Protocol):
    """One connection. Questions given up keep their place: where answers have no ids, a
    connection with one of those is closed, since what comes next would be taken for another's.
    """

    def __init__(self, wire: StreamWire, desk: Desk, room: int) -> None:
        self.wire = wire
        self.desk = desk
        self.room = room
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._line: deque[Ask] = deque()
        self._asks: dict[int, Ask] = {}
        self._id = 0
        self._greeted = False

    @property
    def outstanding(self) -> int:
        return len(self._line) if self.wire.ordered else len(self._asks)

    def send(self, ask: Ask, name: str) -> None:
        assert self._transport is not None
        ask.link = self
        if self.wire.ordered:
            self._line.append(ask)
            id_ = 0
        else:
            id_ = self._id = self._id % 0x7FFF_FFFF + 1
            self._asks[id_] = ask
            ask.id = id_
        self._transport.write(self.wire.question(id_, name, ask.authoritative))

    def give_up(self, ask: Ask) -> None:
        """The question has waited too long; its answer is not wanted any more."""
        if self.wire.ordered:
            self.close()
        else:
            self._asks.pop(ask.id, None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        greeting = self.wire.greeting()
        if greeting:
            self._transport.write(greeting)
        else:
            self._greeted = True
            self.desk.opened(self)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        try:
            answers = self.wire.answers(buffer)
            if len(buffer) > _UNREAD_MAX:
                raise ValueError("no end of an answer")
        except ValueError:
            self._end(UNREADABLE)
            return
        for answer in answers:
            if not self._greeted:
                self._greeted = True
                if answer.code:
                    self._end(answer.code)
                    return
                self.desk.opened(self)
                continue
            if answer.id is None:
                if not self._line:
                    self._end(UNREADABLE)
                    return
                self.desk.answered(self._line.popleft(), answer)
                continue
            ask = self._asks.pop(answer.id, None)
            if ask is not None:
                self.desk.answered(ask, answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(LOST)
        self.desk.closed(self)

    def _end(self, code: str) -> None:
        self._fail(code)
        self.close()

    def _fail(self, code: str) -> None:
        asks = [*self._line, *self._asks.values()]
        self._line.clear()
        self._asks.clear()
        for ask in asks:
            self.desk.failed(ask, code)
