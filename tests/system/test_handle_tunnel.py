"""Handle messages inside HTTP."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from biaojie.wire.handle import (
    MEDIA_TYPE,
    OpFlag,
    ResponseCode,
    decode_message,
    whole_frames,
)
from resolver.front.handle import HandleFront, HandleLimits
from resolver.front.http.handler import HttpLimits
from resolver.front.http.server import HttpFront
from resolver.observe import Observer
from resolver.overload import Quotas
from tests.system.handle_desk import Desk, ask
from tests.system.handle_peers import (
    LAST_S,
    on_uvloop,
    size_of,
)


@asynccontextmanager
async def tunnelling(desk: Desk, **limits: Any) -> AsyncIterator[int]:
    tunnel = HandleFront(desk, HandleLimits(**limits)).tunnel.answer
    service: Any = SimpleNamespace(quotas=Quotas(0))  # nothing else of it is asked
    front = HttpFront(service, (), Observer(), HttpLimits(), tunnel=tunnel)
    port = await front.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await front.stop()


async def post(
    port: int, body: bytes, path: str = "/88.118.8/X", headers: Sequence[str] = ()
) -> tuple[str, dict[str, str], bytes]:
    """As the Java client posts; the reply is read to its announced end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = [
        f"POST {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Accept: {MEDIA_TYPE}",
        "User-Agent: CNRI-HCL 2.0",
        *(headers or (f"Content-Type: {MEDIA_TYPE}",)),
        f"Content-Length: {len(body)}",
    ]
    writer.write("\r\n".join([*head, "", ""]).encode() + body)
    async with asyncio.timeout(LAST_S):
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        found = {name.lower(): text for name, _, text in (line.partition(": ") for line in lines)}
        content = await reader.readexactly(int(found["content-length"]))
    writer.close()
    return lines[0], found, content


@pytest.mark.parametrize("path", ["/88.118.8/X", "/0.NA/88.118.8", "/api/v1/identifiers", "/%2F"])
@on_uvloop
async def test_a_message_inside_http(path: str) -> None:
    desk = Desk()
    async with tunnelling(desk) as port:
        status, headers, body = await post(port, ask("size/5000", 5), path)
        assert status == "HTTP/1.1 200 OK"
        assert headers["content-type"] == MEDIA_TYPE
        assert "transfer-encoding" not in headers
        assert "content-encoding" not in headers
        assert size_of(decode_message(body)) == 5000
        peer = desk.peers[0]
        assert (peer.transport, peer.verified, peer.scope) == ("http", True, None)
        assert peer.address == "127.0.0.1"


@on_uvloop
async def test_a_stream_inside_http_is_frames_in_a_row() -> None:
    async with tunnelling(Desk()) as port:
        _, _, body = await post(port, ask("many/20", 5))
        frames = whole_frames(body)
        assert len(frames) == 20
        assert not decode_message(frames[-1]).has(OpFlag.CONTINUOUS)
        _, _, body = await post(port, ask("many/900", 5))  # more than is held for a reply
        assert decode_message(body).response_code == ResponseCode.ERROR


@on_uvloop
async def test_bad_messages_inside_http() -> None:
    async with tunnelling(Desk()) as port:
        frame = ask("size/1", 5)
        for wrong in (frame[:-1], frame + b"\x02", frame + frame):
            status, _, body = await post(port, wrong)
            assert status == "HTTP/1.1 200 OK"
            answer = decode_message(body)
            assert (answer.response_code, answer.request_id) == (ResponseCode.PROTOCOL_ERROR, 5)
        for nothing in (b"", b"x", b"{}" * 40):
            status, headers, body = await post(port, nothing)
            assert status.startswith("HTTP/1.1 400 ")
            assert headers["content-type"] == "application/problem+json"
            assert json.loads(body)["code"] == "invalid-request"
        long = frame[:16] + struct.pack("!I", 300_000) + bytes(300_000)
        assert decode_message((await post(port, long))[2]).request_id == 5
        status, _, _ = await post(port, frame, headers=("Content-Type: text/plain",))
        assert status.startswith("HTTP/1.1 404 ")


@on_uvloop
async def test_beyond_capacity_inside_http() -> None:
    desk = Desk()
    async with tunnelling(desk, handle_requests_max=1) as port:
        first = asyncio.create_task(post(port, ask("late/a", 1)))
        await desk.until_asked(1)
        _, _, body = await post(port, ask("size/1", 2))
        assert decode_message(body).response_code == ResponseCode.SERVER_BUSY
        desk.release("a")
        assert decode_message((await first)[2]).request_id == 1
