"""A native front over the parts of a node, and a peer that sends it whatever a test likes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop

from biaojie.account import Role
from biaojie.errors import BiaojieError
from biaojie.wire.native import (
    Frame,
    Framing,
    Hello,
    Kind,
    Request,
    Welcome,
    decode_error,
    decode_welcome,
    encode_frame,
    encode_request,
)
from registry.memory import MemoryStore
from resolver.front.native import NativeFront, NativeLimits
from resolver.lane import Lane
from resolver.observe import Observer
from tests.core_parts import Parts, create, home, issue, secret, value, write

ANSWER_S = 10.0


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """Imported by tests of the front: they run on the loop that a node runs on."""
    policy: asyncio.AbstractEventLoopPolicy = uvloop.EventLoopPolicy()
    return policy


class HungUp(Exception):
    """The node closed the connection; `frames` came before."""

    def __init__(self, frames: list[Frame]) -> None:
        super().__init__(frames)
        self.frames = frames


class Peer:
    """One connection, by raw octets or by requests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self._framing = Framing()
        self._frames: list[Frame] = []
        self._id = 0

    def send(self, *octets: bytes) -> None:
        self.writer.write(b"".join(octets))

    def next_id(self) -> int:
        self._id += 1
        return self._id

    async def frame(self, timeout_s: float = ANSWER_S) -> Frame:
        """The next frame; raises HungUp."""
        async with asyncio.timeout(timeout_s):
            while not self._frames:
                try:
                    data = await self._reader.read(65_536)
                except ConnectionError:
                    data = b""
                if not data:
                    raise HungUp([])
                self._frames += self._framing.feed(data)
                assert self._framing.fault is None
        return self._frames.pop(0)

    async def frames(self, count: int) -> list[Frame]:
        return [await self.frame() for _ in range(count)]

    async def rest(self, timeout_s: float = ANSWER_S) -> list[Frame]:
        """All frames until the node hangs up."""
        frames: list[Frame] = []
        with contextlib.suppress(HungUp):
            while True:
                frames.append(await self.frame(timeout_s))
        return frames

    async def ask(self, request: Request) -> Frame:
        """The one answer to a request, when no other is running."""
        id_ = self.next_id()
        kind, body = encode_request(request)
        self.send(encode_frame(id_, kind, body))
        frame = await self.frame()
        assert frame.id == id_
        return frame

    async def answer(self, request: Request) -> bytes:
        """The body of the answer; raises the error."""
        frame = await self.ask(request)
        if frame.kind == Kind.ERROR:
            raise decode_error(frame.body)
        assert frame.kind == Kind.ANSWER
        return frame.body

    async def hello(self, key: str | None = None) -> Welcome:
        self.send(hello(key))
        frame = await self.frame()
        if frame.kind == Kind.ERROR:
            raise decode_error(frame.body)
        return decode_welcome(frame.body)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


def hello(key: str | None = None) -> bytes:
    return encode_frame(0, *encode_request(Hello(1, 1, key, "test")))


def request(id_: int, asked: Request) -> bytes:
    return encode_frame(id_, *encode_request(asked))


def error(frame: Frame) -> BiaojieError:
    assert frame.kind == Kind.ERROR, frame
    return decode_error(frame.body)


@dataclass
class World:
    """`acme` and `beta` are keys of registrars, `reader` of a reader, `admin` of an admin.
    `ordinary_port` is that of a front without a lane over the same parts."""

    parts: Parts
    front: NativeFront
    port: int
    path: str
    ordinary_port: int = 0
    admin: str = ""
    acme: str = ""
    reader: str = ""
    beta: str = ""
    ids: dict[str, str] = field(default_factory=dict)

    @asynccontextmanager
    async def peer(
        self, key: str | None = None, *, greet: bool = True, ordinary: bool = False
    ) -> AsyncIterator[Peer]:
        port = self.ordinary_port if ordinary else self.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        peer = Peer(reader, writer)
        try:
            if greet:
                await peer.hello(key)
            yield peer
        finally:
            await peer.close()

    async def write(self, *operations: Any) -> Any:
        return await write(self.parts.registrar, *operations)


def listening(path: Path | None = None) -> socket.socket:
    made = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
    made.bind(str(path) if path else ("127.0.0.1", 0))
    made.listen(1024)
    made.setblocking(False)
    return made


@asynccontextmanager
async def world(
    path: Path | None = None,
    *,
    store: Any = None,
    lane_bytes: int = 2**24,
    cache: dict[str, Any] | None = None,
    service: dict[str, Any] | None = None,
    **limits: Any,
) -> AsyncIterator[World]:
    """Prefix 88.118.8 of acme with SN1 (all public) and SN2 (a private value), 88.118.9 of beta."""
    parts = Parts(store or MemoryStore(), cache=cache, service=service)
    observer = Observer()
    lane: Lane[Any] = Lane(parts.health, lane_bytes)
    front = NativeFront(parts.service, observer, NativeLimits(**limits), lane)
    ordinary = NativeFront(parts.service, observer, NativeLimits(**limits), Lane(parts.health, 0))
    async with parts:
        sockets = [listening(), *([listening(path)] if path else [])]
        made = World(parts, front, sockets[0].getsockname()[1], str(path or ""))
        made.ordinary_port = await ordinary.start([listening()])
        await home(parts.registrar)
        await home(parts.registrar, "88.118.9", "beta")
        for name, tenant, role in (
            ("admin", "", Role.ADMIN),
            ("acme", "acme", Role.REGISTRAR),
            ("reader", "acme", Role.READER),
            ("beta", "beta", Role.REGISTRAR),
        ):
            key, made.ids[name] = await issue(parts.registrar, tenant, role)
            setattr(made, name, key)
        await write(
            parts.registrar, create("SN1"), create("SN2", values=(value("public"), secret()))
        )
        await front.start(sockets)
        try:
            yield made
        finally:
            parts.tail.release()
            async with asyncio.timeout(15):
                await asyncio.gather(front.stop(2.0), ordinary.stop(2.0))
