"""A reply as the web server has it: one set of headers for all, in one order."""

from __future__ import annotations

from aiohttp import web

from .endpoint import Reply
from .lane import http_date


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
    headers["Server"] = "biaojie"
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "no-referrer"
    if for_all:
        headers["Access-Control-Allow-Origin"] = "*"
        headers["Access-Control-Expose-Headers"] = (
            "ETag, Biaojie-Source, Biaojie-Age, Retry-After, X-Request-Id"
        )
    if "ETag" in reply.headers:
        headers["ETag"] = headers.pop("ETag")
    if reply.headers.get("Connection") == "close":
        response.force_close()
    return response
