"""A reply as the web server has it: one set of headers for all, in one order."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aiohttp import web

from .endpoint import Reply
from .lane import http_date

_OURS: Final = {
    "Server": "biaojie",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_FOR_ALL: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "ETag, Biaojie-Source, Biaojie-Age, Retry-After, X-Request-Id",
}
_LINES: Final = "".join(f"{name}: {text}\r\n" for name, text in (_OURS | _FOR_ALL).items())
_STATUS: Final = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n" for each in HTTPStatus}


def response_of(reply: Reply, request_id: str, *, for_all: bool = False) -> web.Response:
    """What moves on with time stands first and what differs between names last: between them is
    what the express lane keeps once for many. `for_all`: scripts of any page may read it."""
    response = web.Response(status=reply.status, body=reply.body or None)
    headers = response.headers
    headers["Date"] = http_date()
    headers["X-Request-Id"] = request_id
    headers.update(reply.headers)
    if reply.body:
        headers["Content-Type"] = reply.content_type
    headers.update(_OURS)
    if for_all:
        headers.update(_FOR_ALL)
    if "ETag" in reply.headers:
        headers["ETag"] = headers.pop("ETag")
    if reply.headers.get("Connection") == "close":
        response.force_close()
    return response


def sent(reply: Reply, request_id: str) -> web.Response:
    """The same `for_all` as it is once aiohttp has sent it, the connection being kept."""
    response = response_of(reply, request_id, for_all=True)
    if reply.body:
        response.headers["Content-Length"] = str(len(reply.body))
    return response


def octets_of(reply: Reply, request_id: str) -> bytes:
    """`sent` in other words: what aiohttp writes then."""
    lines = [_STATUS[reply.status], f"Date: {http_date()}\r\nX-Request-Id: {request_id}\r\n"]
    tag = ""
    for name, text in reply.headers.items():
        line = f"{name}: {text}\r\n"
        if name == "ETag":
            tag = line
        else:
            lines.append(line)
    if not reply.body:
        return "".join((*lines, _LINES, tag, "\r\n")).encode()
    lines += f"Content-Type: {reply.content_type}\r\n", _LINES, tag
    lines.append(f"Content-Length: {len(reply.body)}\r\n\r\n")
    return "".join(lines).encode() + reply.body
