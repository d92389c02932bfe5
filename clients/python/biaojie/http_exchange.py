"""One HTTP exchange: connections, deadline, safe retries, and what a reply amounts to.

Safe to repeat are reads, and writes because they carry an Idempotency-Key; only those are
retried, and never past the deadline of the call. Redirects are not followed (the key would
go with them), compression is not asked for (a reply's size is what it says it is).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

from . import __version__
from .accept import api_key_of
from .errors import (
    BiaojieError,
    DeadlineExceeded,
    InvalidRequest,
    MalformedAnswer,
    TooLarge,
    Unreachable,
)
from .transport import Options
from .wire.document import Json
from .wire.problem import decode_error

log = logging.getLogger("biaojie.client")
USER_AGENT = f"biaojie-client/{__version__}"
_JSON_TYPES = frozenset(("application/json", "application/problem+json"))


@dataclass(frozen=True, slots=True)
class Call:
    """`source` gives the body in pieces, from the start for each attempt."""

    method: str
    path: str
    timeout_s: float
    query: Sequence[tuple[str, str]] = ()
    body: Json | None = None
    headers: Mapping[str, str] | None = None
    again: bool = True
    source: Callable[[], AsyncIterator[bytes]] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    document: Any
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Fault:
    error: BiaojieError
    again: bool
    retry_after_s: float | None = None


class HttpExchange:
    """Calls to one address, `http://…` or `https://…`, which may have a path in front."""

    def __init__(self, url: str, options: Options) -> None:
        self._base = _base(url)
        self._options = options
        self._headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": USER_AGENT,
        }
        if options.key is not None:
            self._headers["Authorization"] = f"Bearer {api_key_of(options.key)}"
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def address(self) -> str:
        return self._base

    async def close(self) -> None:
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # The exchange -----------------------------------------------------------------------

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise RuntimeError("The client is closed. 客户端已关闭。")
        if self._session is None:
            options = self._options
            self._loop = asyncio.get_running_loop()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=options.connections_max,
                    keepalive_timeout=options.idle_s,
                    ssl=options.tls if options.tls is not None else True,
                ),
                timeout=aiohttp.ClientTimeout(sock_connect=options.connect_timeout_s),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        elif self._loop is not asyncio.get_running_loop():
            raise RuntimeError(
                "A Client belongs to the event loop that first used it. "
                "Client 只能在首次使用它的事件循环中使用。"
            )
        return self._session

    async def send(self, call: Call) -> Reply:
        session = self._open()
        url = URL(self._base + call.path + _query(call.query), encoded=True)
        headers = {**self._headers, **(call.headers or {})}
        body = None
        if call.body is not None:
            body = _encode(call.body)
            headers["Content-Type"] = "application/json"
        loop = asyncio.get_running_loop()
        deadline = loop.time() + call.timeout_s
        failures = 0
        while True:
            sent = body if call.source is None else call.source()
            got = await self._attempt(session, call, url, headers, sent, deadline)
            if isinstance(got, Reply):
                return got
            failures += 1
            backoff = self._options.backoff
            delay_s = backoff.delay_s(failures, got.retry_after_s)
            late = loop.time() + delay_s >= deadline
            if not (got.again and call.again) or failures > backoff.retries or late:
                raise got.error
            log.debug(
                "%s %s: %s, attempt %d follows in %.2f s",
                call.method,
                call.path,
                got.error.code,
                failures + 1,
                delay_s,
            )
            await asyncio.sleep(delay_s)

    async def _attempt(
        self,
        session: aiohttp.ClientSession,
        call: Call,
        url: URL,
        headers: Mapping[str, str],
        body: bytes | AsyncIterator[bytes] | None,
        deadline: float,
    ) -> Reply | _Fault:
        """One request. Faults are returned, not raised from where they were caught: aiohttp's
        exceptions hold the request's headers, and the key must not travel in a traceback."""
        try:
            async with (
                asyncio.timeout_at(deadline),
                session.request(
                    call.method, url, headers=headers, data=body, allow_redirects=False
                ) as response,
            ):
                raw = await self._read(response)
                return _judge(response, raw, self._options.reply_octets_max)
        except aiohttp.ServerTimeoutError:
            return _Fault(self._unreachable("no connection in time", "连接超时"), again=True)
        except TimeoutError:
            error = DeadlineExceeded(
                f"{self._base} did not answer within {call.timeout_s:g} s.",
                f"{self._base} 未在 {call.timeout_s:g} 秒内答复。",
            )
            return _Fault(error, again=False)
        except aiohttp.ClientSSLError as fault:
            return _Fault(self._unreachable(f"TLS: {fault}", f"TLS：{fault}"), again=False)
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as fault:
            told = str(fault) or type(fault).__name__
            return _Fault(self._unreachable(told, told), again=True)
        except aiohttp.ClientError as fault:
            kind = type(fault).__name__
            strange = MalformedAnswer(
                f"{self._base} does not speak HTTP as it should ({kind}).",
                f"{self._base} 返回的 HTTP 不正确（{kind}）。",
            )
            return _Fault(strange, again=False)

    async def stream(self, call: Call) -> AsyncGenerator[bytes, None]:
        """The octets of a reply of any size and type, as they come; not tried again."""
        session = self._open()
        url = URL(self._base + call.path + _query(call.query), encoded=True)
        fault: BiaojieError
        try:
            async with (
                asyncio.timeout(call.timeout_s),
                session.request(
                    call.method,
                    url,
                    headers={**self._headers, "Accept": "*/*"},
                    allow_redirects=False,
                ) as response,
            ):
                if response.status == 200:
                    async for piece in response.content.iter_any():
                        yield piece
                    return
                raw = await self._read(response)
                judged = _judge(response, raw, self._options.reply_octets_max)
                fault = judged.error if isinstance(judged, _Fault) else MalformedAnswer()
        except TimeoutError:
            fault = DeadlineExceeded(
                f"{self._base} did not send all within {call.timeout_s:g} s.",
                f"{self._base} 未在 {call.timeout_s:g} 秒内发送完毕。",
            )
        except (aiohttp.ClientError, OSError) as error:
            told = str(error) or type(error).__name__
            fault = self._unreachable(told, told)
        raise fault

    def _unreachable(self, en: str, zh: str) -> Unreachable:
        return Unreachable(f"{self._base}: {en}.", f"{self._base}：{zh}。")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes | None:
        """The body, or None if it is larger than may be."""
        most = self._options.reply_octets_max
        parts = bytearray()
        if (response.content_length or 0) <= most:
            async for part in response.content.iter_any():
                parts += part
                if len(parts) > most:
                    break
            else:
                return bytes(parts)
        response.close()
        return None


# Addresses ------------------------------------------------------------------------------


def _base(url: str) -> str:
    """The address without its last slash; raises InvalidRequest unless it is a plain one."""
    try:
        parsed = URL(url)
        plain = parsed.host and not (
            parsed.user or parsed.password or parsed.query_string or parsed.fragment
        )
        origin = str(parsed.origin())
    except ValueError:
        plain = False
    if not plain:
        raise InvalidRequest(
            "A node's address is like https://host:port, without user, query or fragment.",
            "节点地址形如 https://host:port，不含用户名、查询或片段。",
        )
    return origin + parsed.raw_path.rstrip("/")


def _query(pairs: Sequence[tuple[str, str]]) -> str:
    try:
        return f"?{urlencode(pairs)}" if pairs else ""
    except UnicodeError:
        raise _unwritable("lone surrogate") from None


def segment(text: str) -> str:
    """One percent-encoded segment of a path."""
    try:
        return quote(text, safe="")
    except UnicodeError:
        raise _unwritable("lone surrogate") from None


# Bodies in and out ----------------------------------------------------------------------


def _unwritable(why: object) -> InvalidRequest:
    return InvalidRequest(f"The request cannot be written: {why}.", f"请求无法写出：{why}。")


def _encode(body: Json) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise _unwritable(error) from None


def _judge(response: aiohttp.ClientResponse, raw: bytes | None, most: int) -> Reply | _Fault:
    status = response.status
    got: Any = None
    fault = ""
    if 300 <= status < 400:
        fault = "it is a redirect, which is not followed"
    elif raw is None:
        fault = f"over {most} octets"
    elif response.content_type not in _JSON_TYPES:
        fault = f"the content type is {response.content_type}"
    elif response.headers.get("Content-Encoding", "identity") != "identity":
        fault = "it is compressed, which was not asked for"
    else:
        try:
            got = json.loads(raw)
        except (ValueError, RecursionError):
            fault = "it is not JSON"
    if 200 <= status < 300 and not fault:
        return Reply(got, response.headers)
    error: BiaojieError
    if status < 400:
        error = MalformedAnswer(f"HTTP {status}: {fault}.", f"HTTP {status}：{fault}。")
    else:
        error = decode_error(got, status)
        if status == 413 and isinstance(error, MalformedAnswer):  # a proxy's own limit
            error = TooLarge(*error.detail)
    error.request_id = error.request_id or response.headers.get("X-Request-Id", "")[:128]
    wait = response.headers.get("Retry-After", "")
    retry_after_s = float(wait) if wait.isascii() and wait.isdigit() and len(wait) < 10 else None
    if retry_after_s is not None:
        error.fields = {**error.fields, "retry_after_s": retry_after_s}
    return _Fault(error, error.retryable, retry_after_s)
