"""Clients of the Handle transports, and the transports in the test's own process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import wraps
from typing import Any, ParamSpec

import uvloop

from biaojie.wire.handle import (
    Message,
    Reassembly,
    ResolveResponse,
    ResponseCode,
    StreamFraming,
    decode_message,
)
from resolver.front.handle import HandleFront, HandleLimits
from tests.system.handle_desk import Desk

P = ParamSpec("P")
LAST_S = 10.0


def on_uvloop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on the event loop that nodes run on."""

    @wraps(test)
    def run(*arguments: P.args, **named: P.kwargs) -> None:
        uvloop.run(test(*arguments, **named))

    return run


class Served:
    def __init__(self, front: HandleFront, desk: Desk, port: int) -> None:
        self.front = front
        self.desk = desk
        self.port = port

    def count(self, name: str) -> float:
        return {**self.front.counts(), **self.front.readings()}[f"handle_{name}"]


@asynccontextmanager
async def serving(host: str = "127.0.0.1", **limits: Any) -> AsyncIterator[Served]:
    desk = Desk()
    front = HandleFront(desk, HandleLimits(**limits))
    port = await front.start(host, 0)
    try:
        yield Served(front, desk, port)
    finally:
        await front.stop(0.2)


class Line:
    """A TCP connection of a client. Every wait is bounded."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._framing = StreamFraming()
        self._frames: list[bytes] = []

    @classmethod
    async def open(cls, port: int, host: str = "127.0.0.1", **options: Any) -> Line:
        return cls(*await asyncio.open_connection(host, port, **options))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, timeout_s: float = LAST_S) -> Message:
        """The next message; ConnectionError at the end."""
        async with asyncio.timeout(timeout_s):
            while not self._frames:
                data = await self.reader.read(65536)
                if not data:
                    raise ConnectionError("closed")
                self._frames += self._framing.feed(data)
        return decode_message(self._frames.pop(0))

    async def ended(self, timeout_s: float = LAST_S) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                while await self.reader.read(65536):
                    pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self.writer.close()


class Datagrams:
    """A client's UDP socket."""

    def __init__(self, port: int, source: str = "127.0.0.1", host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind((source, 0))
        self.socket.connect((host, port))

    def send(self, *packets: bytes) -> None:
        for packet in packets:
            self.socket.send(packet)

    async def packet(self, timeout_s: float = LAST_S) -> bytes:
        async with asyncio.timeout(timeout_s):
            return await asyncio.get_running_loop().sock_recv(self.socket, 65536)

    async def answer(self, timeout_s: float = LAST_S) -> Message:
        reassembly = Reassembly()
        while True:
            frame = reassembly.take("node", await self.packet(timeout_s), 0.0)
            if frame is not None:
                return decode_message(frame)

    def waiting(self) -> list[bytes]:
        packets = []
        with suppress(BlockingIOError):
            while True:
                packets.append(self.socket.recv(65536))
        return packets

    def __enter__(self) -> Datagrams:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


async def until(holds: Any, timeout_s: float = LAST_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


def size_of(message: Message) -> int:
    assert message.response_code == ResponseCode.SUCCESS
    assert isinstance(message.body, ResolveResponse)
    return len(message.body.values[0].data)
