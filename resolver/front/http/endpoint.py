"""An endpoint is one operation of the HTTP front: its place in the route table and its codec.

Nothing here knows the web framework: a request arrives as `Asked`, a reply leaves as `Reply`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

import orjson
from pydantic import BaseModel

from biaojie.errors import (
    BiaojieError,
    InvalidIdentifier,
    InvalidRequest,
    OverCapacity,
    TemporarilyUnavailable,
    TooLarge,
    TooManyRequests,
    UnsupportedMediaType,
)
from biaojie.identifier import Identifier
from biaojie.limits import IDEMPOTENCY_KEY_CHARS_MAX
from biaojie.record import Record
from biaojie.wire import document
from registry.admission import Caller
from registry.operations import Condition
from registry.registrar import Idempotency

from ...core import Cached
from ...query import Query
from ...service import Service
from .faults import validated
from .models import NoQuery
from .negotiation import language

JSON = "application/json"
PROBLEM = "application/problem+json"
M = TypeVar("M", bound=BaseModel)
Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Asked:
    """One HTTP request. `path` and `query` as sent (still encoded); header names lower case.

    `tail` is what the route's `{…}` stands for, still percent-encoded. `certificate` is the one
    (DER) whose key the client proved to have in the TLS handshake. `parts` is the body of an
    upload, which is read by whoever takes it; `body` is empty then.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    peer: str
    request_id: str
    origin: str
    tail: str = ""
    tls: bool = False
    certificate: bytes = b""
    parts: AsyncIterator[bytes] | None = None

    @property
    def chinese(self) -> bool:
        return language(self.headers.get("accept-language")) == "zh"

    @property
    def key(self) -> str | None:
        """The API key sent, if any; anything but a bearer token counts as a wrong key."""
        header = self.headers.get("authorization")
        if header is None:
            return None
        scheme, _, token = header.partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""

    def tail_text(self) -> str:
        """The tail, percent-decoded once; raises InvalidIdentifier if it is not UTF-8."""
        try:
            return unquote_to_bytes(self.tail).decode()
        except UnicodeError:
            raise InvalidIdentifier(
                "The percent-encoding of the path is not UTF-8.",
                "路径的百分号编码不是 UTF-8。",
                position=0,
                rule="percent-encoding",
            ) from None

    def identifier(self) -> Identifier:
        return Identifier.parse(self.tail_text())

    def query_as(self, model: type[M]) -> M:
        try:
            pairs = parse_qsl(
                self.query, keep_blank_values=True, errors="strict", max_num_fields=200
            )
        except ValueError:
            raise InvalidRequest(
                "The query string is not UTF-8 or has too many fields.",
                "查询串不是 UTF-8 或字段过多。",
                errors=[],
            ) from None
        given: dict[str, Any] = {}
        for name, text in pairs:
            shape = model.model_fields.get(name)
            if shape is not None and str(shape.annotation).startswith("list"):
                given.setdefault(name, []).append(text)
            elif name in given:
                raise InvalidRequest(
                    f"{name} is given twice.",
                    f"{name} 重复。",
                    errors=[{"path": f"query.{name}", "message": "given twice"}],
                )
            else:
                # As on Handle proxies, ?auth may stand without a value.
                given[name] = True if name == "auth" and not text else text
        return validated(model, given, "query")

    def body_as(self, model: type[M]) -> M:
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != JSON:
            raise UnsupportedMediaType(
                f"The content type is {kind[:80] or 'missing'}; this takes {JSON}.",
                f"内容类型为 {kind[:80] or '空'}；此处应为 {JSON}。",
            )
        coding = self.headers.get("content-encoding", "identity").strip().lower()
        if coding != "identity":
            raise UnsupportedMediaType(
                f"The content encoding is {coding[:40]}; this takes the body as it is.",
                f"内容编码为 {coding[:40]}；此处只接受未经压缩的正文。",
            )
        try:
            given = orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(
                f"The body is not JSON: {error.msg} (line {error.lineno}, column {error.colno}).",
                f"正文不是合法 JSON（第 {error.lineno} 行，第 {error.colno} 列）。",
                errors=[],
            ) from None
        return validated(model, given, "body")

    def idempotency(self) -> Idempotency | None:
        key = self.headers.get("idempotency-key")
        if key is None:
            return None
        if not 1 <= len(key) <= IDEMPOTENCY_KEY_CHARS_MAX or not (
            key.isascii() and key.isprintable()
        ):
            raise InvalidRequest(
                f"Idempotency-Key: 1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable ASCII characters.",
                f"Idempotency-Key：应为 1 至 {IDEMPOTENCY_KEY_CHARS_MAX} 个可打印 ASCII 字符。",
                errors=[],
            )
        seal = hashlib.sha256()
        for part in (
            self.method,
            self.path,
            self.query,
            self.headers.get("if-match", ""),
            self.headers.get("if-none-match", ""),
        ):
            seal.update(part.encode(errors="surrogateescape") + b"\n")
        seal.update(self.body)
        return Idempotency(key, seal.digest())

    def condition(self) -> Condition | None:
        """If-Match and If-None-Match of a write (RFC 9110 §13.1)."""
        if self.headers.get("if-none-match", "").strip() == "*":
            return Condition(absent=True)
        header = self.headers.get("if-match")
        if header is None:
            return None
        if header.strip() == "*":
            return Condition()
        match = _ETAG.fullmatch(header.strip())
        if match is None:
            raise InvalidRequest(
                'If-Match takes one ETag of this record, such as "3.17", or *.',
                'If-Match 应为该记录的一个 ETag（例如 "3.17"）或 *。',
                errors=[],
            )
        sequence = match.group(2)
        return Condition(version=int(match.group(1)), sequence=int(sequence) if sequence else None)


_ETAG = re.compile(r'"?([0-9]{1,18})(?:\.([0-9]{1,18}))?(?:\.p)?"?', re.ASCII)


@dataclass(frozen=True, slots=True)
class Reply:
    """`entry`: what is in the cache decides this reply, with the method, target and headers as
    `Asked` has them, and nothing else does: not who or where the peer is, not the node's address,
    not the time, except for max-age and Biaojie-Age. The express lane may keep it while the
    entry is alive. `file` is sent in place of a body."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    entry: Cached | None = None
    file: Path | None = None


def json_reply(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, orjson.dumps(content), JSON, headers or {"Cache-Control": "no-store"})


def write_headers(replayed: bool) -> dict[str, str]:
    replay = {"Idempotency-Replayed": "true"} if replayed else {}
    return {"Cache-Control": "no-store"} | replay


def rate_limit(rate_max: int, left: int, reset_s: int) -> dict[str, str]:
    """What a tenant may ask (IETF draft-ietf-httpapi-ratelimit-headers): `left` of `rate_max` a
    second, more in `reset_s`."""
    return {
        "RateLimit-Policy": f'"tenant";q={rate_max};w=1',
        "RateLimit": f'"tenant";r={left};t={reset_s}',
    }


def error_headers(error: BiaojieError) -> dict[str, str]:
    headers = {"Cache-Control": "no-store"}
    if isinstance(error, TooManyRequests | OverCapacity | TemporarilyUnavailable):
        headers["Retry-After"] = str(error.fields.get("retry_after_s", 1))
    if "rate_max" in error.fields:
        headers |= rate_limit(error.fields["rate_max"], 0, error.fields["retry_after_s"])
    if document.HTTP_STATUS[error.code] == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="biaojie"'
    if document.HTTP_STATUS[error.code] in (408, 413) or isinstance(error, TooLarge):
        headers["Connection"] = "close"  # the rest of the body was not read
    return headers


def problem_reply(error: BiaojieError, *, chinese: bool) -> Reply:
    content = document.encode_error(error, chinese=chinese)
    try:
        body = orjson.dumps(content, default=str)
    except TypeError:  # a lone surrogate or a huge number in what the caller sent
        body = json.dumps(content, default=str).encode()
    return Reply(
        content["status"],
        body,
        PROBLEM,
        error_headers(error) | {"Content-Language": "zh" if chinese else "en"},
    )


def etag(record: Record, *, private: bool = False) -> str:
    return f'"{record.version}.{record.sequence}{".p" if private else ""}"'


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[Q, A]):
    """`path` has at most one `{…}`, at its end; if `whole_tail` it stands for any number of
    segments, else for one. `public`: answered for the public even while keys cannot be checked;
    `keyless`: the same for everybody, whatever key is sent. `authenticate`: where there are
    other ways to say who asks than a key.
    `public_query`: what to ask the registry for, together with what others ask, where a question of
    the public takes nothing but that; None where it takes more (see `gathering`).
    `body`, `reply`, `media` and `also` (what else a reply may be) are for the contract; `decode`
    does the validating. `upload`: the body is a file of one of these media types, and comes in
    `Asked.parts`.
    """

    method: str
    path: str
    operation: str
    tag: str
    summary: str
    decode: Callable[[Asked], Q]
    service: Callable[[Service, Caller, Q], Awaitable[A]]
    encoder: Callable[[Asked, A], Reply]
    query: type[BaseModel] = NoQuery
    body: type[BaseModel] | None = None
    reply: type[BaseModel] | None = None
    media: str = JSON
    also: tuple[str, ...] = ()
    success: tuple[int, ...] = (200,)
    errors: tuple[type[BiaojieError], ...] = ()
    headers: tuple[str, ...] = ()
    public: bool = False
    keyless: bool = False
    whole_tail: bool = False
    upload: tuple[str, ...] = ()
    error_encoder: Callable[[Asked, BiaojieError], Reply] | None = None
    authenticate: Callable[[Asked], Awaitable[Caller]] | None = None
    public_query: Callable[[Q], Query | None] | None = None
    front: str = "http"

    def encode(self, data: Asked, answer: A) -> Reply:
        return self.encoder(data, answer)

    def encode_error(self, data: Asked, error: BiaojieError) -> Reply:
        if self.error_encoder is not None:
            return self.error_encoder(data, error)
        return problem_reply(error, chinese=data.chinese)
