"""Servers that answer questions of the bench over HTTP and Handle UDP, as wrongly as a test wants.

They know the names by rule, as the bench does, and run in the test's own event loop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from bench.names import VALUE_INDEX, VALUE_TYPE, OwnNames
from biaojie.record import Value
from biaojie.wire.handle import (
    Failure,
    ResolveResponse,
    ResponseCode,
    answer_to,
    decode_message,
    encode_message,
)

Data = Callable[[str, bytes], bytes | None]
"""From the name and the right data to the data that is told; None: not found."""


def honest(name: str, data: bytes) -> bytes | None:
    return data


@dataclass
class Script:
    """`silent`: of so many questions every last one gets no answer; 0: all do. `pause_s`: once,
    `pause_after_s` from the first question, everything stands still so long. `rate_max`: beyond so
    many a second, a tenth of a second's at once, HTTP answers 503; 0: any number."""

    names: OwnNames
    data: Data = honest
    silent: int = 0
    status: int = 0
    pause_after_s: float = 0.0
    pause_s: float = 0.0
    rate_max: float = 0.0
    asked: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)
    _begun: float = 0.0
    _full: float = 0.0

    def told(self, name: str) -> bytes | None:
        number = self.names.number_of(name)
        if number is None:
            return None
        return self.data(name, self.names.data(number, 0))

    def refuses(self) -> bool:
        """Whether one more is too many now."""
        if not self.rate_max:
            return False
        now = asyncio.get_running_loop().time()
        if self._full - now > 0.1:
            return True
        self._full = max(self._full, now) + 1 / self.rate_max
        return False

    async def wait(self) -> bool:
        """Count a question; whether it is to be answered."""
        loop = asyncio.get_running_loop()
        self.asked += 1
        if self._begun == 0.0:
            self._begun = loop.time()
            self.open.set()
            if self.pause_s:
                loop.call_later(self.pause_after_s, self.open.clear)
                loop.call_later(self.pause_after_s + self.pause_s, self.open.set)
        await self.open.wait()
        return not (self.silent and self.asked % self.silent == 0)


def _reply(status: str, body: dict[str, Any]) -> bytes:
    octets = json.dumps(body, separators=(",", ":")).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(octets)}\r\n\r\n".encode() + octets


def http_reply(script: Script, name: str) -> bytes:
    if script.refuses():
        return _reply("503 Not Now", {"code": "over-capacity"})
    if script.status:
        code = "over-capacity" if script.status == 503 else "internal"
        return _reply(f"{script.status} Not Now", {"code": code})
    data = script.told(name)
    if data is None:
        return _reply("404 Not Found", {"code": "identifier-not-found"})
    value = {"index": VALUE_INDEX, "type": VALUE_TYPE, "data": data.decode(), "ttl": 60}
    return _reply(
        "200 OK",
        {
            "identifier": name,
            "status": "active",
            "template": None,
            "version": 1,
            "sequence": 1,
            "created": "2026-01-01T00:00:00Z",
            "modified": "2026-01-01T00:00:00Z",
            "values": [value],
        },
    )


@asynccontextmanager
async def http_server(script: Script) -> AsyncIterator[str]:
    """The server's URL."""
    tasks = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        tasks.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                name = head.split(" ")[1].removeprefix("/api/v1/identifiers/").partition("?")[0]
                if not await script.wait():
                    await reader.read()  # what came next would answer this question
                    return
                writer.write(http_reply(script, name))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _HandleServer(asyncio.DatagramProtocol):
    def __init__(self, script: Script) -> None:
        self._script = script
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(data, address))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, packet: bytes, address: Any) -> None:
        if not await self._script.wait():
            return
        request = decode_message(packet)
        name = request.body.handle
        data = self._script.told(name)
        if data is None:
            answer = answer_to(request, Failure("no"), ResponseCode.HANDLE_NOT_FOUND)
        else:
            values = (Value(VALUE_INDEX, VALUE_TYPE, data),)
            answer = answer_to(request, ResolveResponse(name, values))
        self._transport.sendto(encode_message(answer), address)


@asynccontextmanager
async def handle_udp_server(script: Script) -> AsyncIterator[str]:
    """The server's URL."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: _HandleServer(script), local_addr=("127.0.0.1", 0)
    )
    try:
        yield f"hdl+udp://127.0.0.1:{transport.get_extra_info('sockname')[1]}"
    finally:
        transport.close()
