"""Bodies and replies that are too large to be held: uploads piece by piece, files sent."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.web_protocol import RequestPayloadError

from biaojie.errors import InvalidRequest, RequestTimeout

from .endpoint import Reply
from .replies import response_of

PIECE_BYTES: Final = 262_144


async def parts_of(request: web.BaseRequest, idle_s: float) -> AsyncIterator[bytes]:
    """The body as it comes; each piece has `idle_s` to arrive. Raises RequestTimeout, and
    InvalidRequest where it breaks off."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    while True:
        try:
            async with asyncio.timeout(idle_s):
                part = await request.content.readany()
        except (TimeoutError, RequestPayloadError, BadHttpMessage) as error:
            raise unread(error, idle_s) from None
        if not part:
            return
        yield part


def unread(error: BaseException, seconds: float) -> BaseException:
    """Why a body could not be read, in our words; `seconds` is what it had."""
    match error:
        case TimeoutError():
            return RequestTimeout(
                f"The body did not arrive within {seconds:g} s.",
                f"正文未在 {seconds:g} 秒内到达。",
            )
        case RequestPayloadError() | BadHttpMessage():
            return InvalidRequest(
                "The body is not encoded as the headers say.",
                "正文编码与头部不符。",
                errors=[],
            )
    return error


async def send_file(
    request: web.BaseRequest, reply: Reply, request_id: str, piece_s: float
) -> web.StreamResponse:
    """Send `reply.file`; the reader has `piece_s` to take each piece."""
    assert reply.file is not None
    plain = response_of(reply, request_id)
    response = web.StreamResponse(status=plain.status, headers=plain.headers)
    response.headers["Content-Type"] = reply.content_type
    try:
        with await asyncio.to_thread(reply.file.open, "rb") as file:
            left = os.fstat(file.fileno()).st_size  # it may grow meanwhile
            response.content_length = left
            async with asyncio.timeout(piece_s):
                await response.prepare(request)
            left = 0 if request.method == "HEAD" else left
            while left > 0:
                piece = await asyncio.to_thread(file.read, min(left, PIECE_BYTES))
                if not piece:
                    raise OSError("the file is shorter than it was")
                left -= len(piece)
                async with asyncio.timeout(piece_s):
                    await response.write(piece)
            await response.write_eof()
    except (TimeoutError, OSError):  # too slow to take it, or gone; or the file is
        if request.transport is not None:
            request.transport.abort()
    return response
