"""A UDP socket to one server: at most `room` questions on their way at a time, nothing is asked
twice. What is lost on the way is an error of the run."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol, cast

from ..asking import Ask
from . import Answer, DatagramWire

_BUFFER_OCTETS = 4 * 2**20


class Desk(Protocol):
    def answered(self, ask: Ask, answer: Answer) -> None: ...

    def failed(self, ask: Ask, code: str) -> None: ...

    def opened(self, link: DatagramLink) -> None: ...

    def closed(self, link: DatagramLink) -> None: ...


class DatagramLink(asyncio.DatagramProtocol):
    def __init__(self, wire: DatagramWire, desk: Desk, room: int) -> None:
        self.wire = wire
        self.desk = desk
        self.room = room
        self._transport: asyncio.DatagramTransport | None = None
        self._asks: dict[int, Ask] = {}
        self._id = 0

    @property
    def outstanding(self) -> int:
        return len(self._asks)

    def send(self, ask: Ask, name: str) -> None:
        assert self._transport is not None
        ask.link = self
        ask.id = self._id = self._id % 0x7FFF_FFFF + 1
        self._asks[ask.id] = ask
        self._transport.sendto(self.wire.question(ask.id, name, ask.authoritative))

    def give_up(self, ask: Ask) -> None:
        self._asks.pop(ask.id, None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            # So that a burst is lost in the node, if anywhere, and not here.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_OCTETS)
        self.desk.opened(self)

    def datagram_received(self, data: bytes, _: object) -> None:
        answer = self.wire.answer(data)
        if answer is None or answer.id is None:
            return
        ask = self._asks.pop(answer.id, None)
        if ask is not None:
            self.desk.answered(ask, answer)

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there: the questions run out of time, as any that are lost."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.desk.closed(self)
