"""A node with two HTTP fronts over one service, one with an express lane and one without, and
connections to them that a test feeds octet by octet."""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from biaojie.identifier import Identifier
from biaojie.record import Permissions, Status, Value
from registry.admission import SYSTEM
from registry.memory import MemoryStore
from registry.operations import Create, HomePrefix, Operation
from resolver.front.http.connection import Connection, ConnectionServer
from resolver.front.http.lane import HttpLane
from resolver.front.http.server import HttpFront
from resolver.node import Node
from resolver.settings import Settings

PREFIX = "88.118.8"
SUSPENDED = "88.118.9"
API = f"/api/v1/identifiers/{PREFIX}/"
REST = f"/api/handles/{PREFIX}/"
PAGE = f"/{PREFIX}/"
TURNS = 40
T = TypeVar("T")
MOVING = re.compile(
    rb"(?<=\r\nDate: )[^\r]*|(?<=X-Request-Id: )[0-9a-f]{16}(?=\r)"
    rb'|(?<="request_id":")[0-9a-f]{16}|(?<=max-age=)[0-9]+|(?<=Biaojie-Age: )[0-9]+'
    rb'|(?<=class="code">)[0-9a-f]{16}(?=<)|(?<=sessionId=")[^"]*|(?<=nonce=")[^"]*'
    rb"|(?<=Biaojie-Source: )(?:store|cache)"
)


def settled(octets: bytes) -> bytes:
    """A reply without what differs from one request to the next."""
    return MOVING.sub(b"*", octets)


def value(data: str, index: int = 1, **more: Any) -> Value:
    return Value(index, more.pop("type", "URL"), data.encode(), **more)


def create(suffix: str, *values: Value, prefix: str = PREFIX, **more: Any) -> Create:
    return Create(Identifier(prefix, suffix), values, **more)


RECORDS = (
    create("SN1", value("https://example.cn/1"), value("turbine", 2, type="NAME")),
    create("empty"),
    create("with/slash", value("https://example.cn/2")),
    create("涡轮", value("https://example.cn/3")),
    create("quoted\"'<&>", value("https://example.cn/4")),
    create("per%cent", value("https://example.cn/5")),
    create("frozen", value("https://example.cn/6"), status=Status.FROZEN),
    create("draft", value("https://example.cn/7"), status=Status.DRAFT),
    create(
        "partly",
        value("https://example.cn/8"),
        value("s", 9, type="NOTE", permissions=Permissions.parse("1100")),
    ),
    create("secret", value("s", 9, type="NOTE", permissions=Permissions.parse("1100"))),
    create("at-once", value("https://example.cn/9", ttl=0)),
    create("soon", value("https://example.cn/10", ttl=1)),
    create("alias", value(f"{PREFIX}/SN1", type="HS_ALIAS")),
    create("circle", value(f"{PREFIX}/circle", type="HS_ALIAS")),
    create("nowhere", value(f"{PREFIX}/unknown", type="HS_ALIAS")),
    create("long", *(value("x" * 30_000, n, type="TEXT") for n in range(1, 4))),
    create("x", value("https://example.cn/11"), prefix=SUSPENDED),
)


class Pipe(asyncio.Transport):
    """A transport without a network: what is written is in `out`. `stuck`: nobody reads it."""

    def __init__(self, server: ConnectionServer) -> None:
        super().__init__()
        self.out = b""
        self.stuck = False
        self.closed = False
        self._reading = True
        self._held: list[bytes] = []
        self._protocol = server()
        self._protocol.connection_made(self)

    @property
    def connection(self) -> Connection:
        return self._protocol

    def feed(self, *chunks: bytes) -> None:
        self._held += chunks
        while self._held and self._reading and not self.closed:
            self._protocol.data_received(self._held.pop(0))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 50_000) if name == "peername" else default

    def write(self, data: Any) -> None:
        if self.closed:
            return
        before = len(self.out)
        self.out += bytes(data)
        if self.stuck and before <= 65_536 < len(self.out):
            self._protocol.pause_writing()

    def writelines(self, pieces: Iterable[Any]) -> None:
        self.write(b"".join(pieces))

    def unstick(self) -> None:
        self.stuck = False
        self._protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return len(self.out) if self.stuck else 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        asyncio.get_running_loop().call_soon(self.feed)  # never from within the parser

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close


async def turns(count: int = TURNS) -> None:
    """Let everything happen that needs no time."""
    for _ in range(count):
        await asyncio.sleep(0)


class LaneWorld:
    """`server` has the lane, `plain` has not. Everything runs on a loop of its own: `run`."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self._runner = asyncio.Runner()
        given: dict[str, Any] = {"handle_enabled": False, "native_enabled": False, "port": 0}
        self.node = Node(Settings(data_dir=folder, **given, **settings), MemoryStore())
        self.front = self.node.front
        self._plain = copy.copy(self.front)
        self._plain._lane = None
        self.run(self._start())

    @property
    def lane(self) -> HttpLane:
        return self.node.http_lane

    async def _start(self) -> None:
        await self.node.start()
        await self._plain.start("127.0.0.1", 0)
        self.server, self.plain = _server(self.front), _server(self._plain)
        for prefix in (PREFIX, SUSPENDED):
            await self.commit(HomePrefix(prefix, "acme"))
        await self.commit(*RECORDS)

    async def commit(self, *operations: Operation) -> None:
        for result in (await self.node.registrar.submit(SYSTEM, list(operations))).results:
            if isinstance(result, Exception):
                raise result

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def close(self) -> None:
        async def stop() -> None:
            await self._plain.stop()
            await self.node.stop()

        self.run(stop())
        self._runner.close()

    # Talking ----------------------------------------------------------------------------

    async def say(
        self,
        server: ConnectionServer,
        chunks: Sequence[bytes],
        *,
        at_once: bool = False,
        shed: bool = False,
    ) -> tuple[bytes, bool]:
        """What is answered on one connection, and whether it was closed. Each chunk is sent when
        all that follows from the ones before has happened, unless `at_once`. `shed`: as if the
        connection were idle before each chunk."""
        pipe = Pipe(server)
        for piece in [chunks] if at_once else [[chunk] for chunk in chunks]:
            if shed:
                pipe.connection.shed()
            pipe.feed(*piece)
            said = -1
            while len(pipe.out) != said:
                said = len(pipe.out)
                await turns()
        answer = settled(pipe.out), pipe.closed
        pipe.close()
        await turns(5)
        return answer

    async def both(
        self, chunks: Sequence[bytes], *, at_once: bool = False, shed: bool = False
    ) -> int:
        """Say it to both fronts and compare; returns how much of it the lane answered."""
        expected = await self.say(self.plain, chunks, at_once=at_once)
        before = self.lane.hits
        found = await self.say(self.server, chunks, at_once=at_once, shed=shed)
        assert found == expected
        return self.lane.hits - before

    def check(self, chunks: Sequence[bytes]) -> int:
        """The same while the lane learns, from connection to connection and within one."""

        async def work() -> int:
            for _ in range(2):
                await self.both(chunks)
            hits = await self.both(chunks)
            await self.both([*chunks] * 3)
            return hits

        return self.run(work())


def _server(front: HttpFront) -> ConnectionServer:
    assert front._server is not None
    return front._server


def request(
    target: str, *headers: str, method: str = "GET", version: str = "HTTP/1.1", body: bytes = b""
) -> bytes:
    """Header lines as they are; Host comes first unless one of them is `-Host`."""
    lines = [line for line in ("Host: node.test", *headers) if "-Host" not in (line, *headers)]
    if "-Host" in headers:
        lines = [line for line in headers if line != "-Host"]
    head = "\r\n".join([f"{method} {target} {version}", *lines, "", ""])
    return head.encode("utf-8", "surrogateescape") + body


Check = Callable[[Sequence[bytes]], int]
