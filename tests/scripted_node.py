"""A node in miniature, on a real loopback socket, that misbehaves when told to.

It keeps records in a dictionary and honours idempotency keys as a node does. `faults` holds
what shall happen to the coming requests, one each; `seen` is every request that arrived.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from biaojie.change import Action, Receipt
from biaojie.errors import (
    BatchRejected,
    BiaojieError,
    IdempotencyMismatch,
    IdentifierNotFound,
    IdentifierTaken,
    VersionMismatch,
)
from biaojie.identifier import Identifier
from biaojie.record import Record, Status
from biaojie.wire import document

Json = dict[str, Any]
Answer = Callable[[], Awaitable[web.StreamResponse]]
Fault = Callable[[web.Request, Answer], Awaitable[web.StreamResponse]]
ENTRY = {
    "time_ms": 1, "actor": "a", "action": "create", "prefix": "99.1", "count": 0,
    "root": "00" * 32, "previous": "00" * 32, "hash": "00" * 32, "changes": [],
}  # fmt: skip


@dataclass
class Seen:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any

    @property
    def key(self) -> str | None:
        return self.headers.get("Idempotency-Key")


@dataclass
class ScriptedNode:
    url: str = ""
    faults: deque[Fault] = field(default_factory=deque)
    seen: list[Seen] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)
    replies: dict[str, tuple[bytes, int, Json]] = field(default_factory=dict)
    registered: list[str] = field(default_factory=list)
    head: int = 0
    page_rows: int = 3
    answers_max: int = 1000
    connections: int = 0
    running: int = 0
    running_most: int = 0
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    # Serving ----------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        path, _, _ = request.raw_path.partition("?")
        query = {name: request.query.getall(name) for name in request.query}
        body = json.loads(raw) if raw else None
        self.seen.append(Seen(request.method, path, query, dict(request.headers), body))

        async with self.news:
            self.news.notify_all()

        async def answer() -> web.StreamResponse:
            return await self._answer(request.method, path, query, request.headers, raw, body)

        self.running += 1
        self.running_most = max(self.running_most, self.running)
        try:
            if self.faults:
                return await self.faults.popleft()(request, answer)
            return await answer()
        finally:
            self.running -= 1

    async def _answer(
        self, method: str, path: str, query: Any, headers: Any, raw: bytes, body: Any
    ) -> web.StreamResponse:
        key = headers.get("Idempotency-Key")
        print_ = hashlib.sha256(f"{method} {path} {sorted(query.items())}".encode() + raw).digest()
        try:
            if key in self.replies:
                kept, status, reply = self.replies[key]
                if kept != print_:
                    raise IdempotencyMismatch
                return web.json_response(
                    reply, status=status, headers={"Idempotency-Replayed": "true"}
                )
            status, reply, extra = await self._do(method, path, query, headers, body)
        except BiaojieError as error:
            error.request_id = "req-1"
            return web.json_response(
                document.encode_error(error),
                status=document.HTTP_STATUS[error.code],
                content_type="application/problem+json",
            )
        if key is not None:
            self.replies[key] = (print_, status, reply)
        return web.json_response(reply, status=status, headers=extra)

    async def _do(
        self, method: str, path: str, query: Any, headers: Any, body: Any
    ) -> tuple[int, Json, dict[str, str]]:
        root = "/api/v1/identifiers"
        if path == root and method == "GET":
            at = int(query.get("after", ["0"])[0])
            page = list(self.records.values())[at : at + self.page_rows]
            following = str(at + self.page_rows) if len(page) == self.page_rows else None
            return 200, {"items": [document.encode_record(r) for r in page], "next": following}, {}
        if path == root:
            if "prefix" in body:
                name = f"{body['prefix']}/{body.get('suffix_start', '')}01MINTED"
                body = {**body, "identifier": name}
            return 201, document.encode_receipt(self._register(body, Action.CREATE)), {}
        if path == root + ":resolve":
            items = [self._item(name) for name in body["identifiers"]]
            for item in items[self.answers_max :]:
                item |= {"record": None, "code": "too-large"}
            return 200, {"items": items}, {}
        if path == root + ":batch":
            return 200, self._batch(body), {}
        if path == "/api/v1/changes":
            return 200, await self._changes(query), {}
        if path.startswith("/api/v1/prefixes"):
            prefix = {
                "prefix": "99.1", "tenant": "acme", "status": "active",
                "created": "2030-01-01T00:00:00Z", "version": 1, "sequence": 1, **(body or {}),
            }  # fmt: skip
            whole = {"items": [prefix], "next": None}
            return 200, whole if method == "GET" and path.endswith("prefixes") else prefix, {}
        if path.startswith("/api/v1/keys"):
            key = {
                "id": "k1", "tenant": "acme", "role": "reader", "label": "",
                "created": "2030-01-01T00:00:00Z", "revoked": None, **(body or {}),
            }  # fmt: skip
            if method == "GET":
                return 200, {"items": [key], "next": None}, {}
            return 201, {**key, "key": "bj_12345678_secret"} if method == "POST" else key, {}
        name = str(Identifier.parse("https://node" + path.removeprefix(root)))
        if method == "GET":
            record = self._find(name)
            about = {"ETag": f'"{record.version}.1"', "Biaojie-Source": "cache", "Biaojie-Age": "7"}
            return 200, document.encode_record(record), about
        action = {"PUT": Action.PUT, "PATCH": Action.MODIFY, "DELETE": Action.RETIRE}[method]
        wanted = headers.get("If-Match")
        if wanted is not None and wanted != f'"{self._find(name).version}"':
            raise VersionMismatch
        if method != "PUT":
            self._find(name)
        given = {"values": (body or {}).get("set", []), **(body or {}), "identifier": name}
        return 200, document.encode_receipt(self._register(given, action)), {}

    # What a node does -------------------------------------------------------------------

    def _find(self, name: str) -> Record:
        if name not in self.records:
            raise IdentifierNotFound
        return self.records[name]

    def _register(self, body: Json, action: Action) -> Receipt:
        identifier = Identifier.parse(body["identifier"])
        name = str(identifier)
        if action is Action.CREATE and name in self.records:
            raise IdentifierTaken
        version = self.records[name].version + 1 if name in self.records else 1
        status = Status.RETIRED if action is Action.RETIRE else Status.ACTIVE
        values = document.decode_values(body.get("values", []))
        self.records[name] = Record(identifier, values, status, version=version)
        self.registered.append(name)
        self.head += 1
        return Receipt(name, action, status.value, version, self.head)

    def _item(self, name: str) -> Json:
        if name in self.records:
            return {
                "identifier": name,
                "record": document.encode_record(self.records[name]),
                "code": "",
            }
        missing = IdentifierNotFound()
        return {
            "identifier": name,
            "record": None,
            "code": missing.code,
            "detail": missing.detail.en,
            "detail_zh": missing.detail.zh,
        }

    def _batch(self, body: Json) -> Json:
        rows: list[Json] = []
        names = [row["identifier"] for row in body["rows"]]
        taken = [
            n
            for n, row in enumerate(body["rows"], 1)
            if "action" not in row and row["identifier"] in self.records
        ]
        bad = [
            {"row": n, "ok": False, "identifier": names[n - 1], "code": "identifier-taken"}
            for n in taken
        ]
        if body["mode"] == "all" and bad:
            raise BatchRejected(rows=bad)
        for number, row in enumerate(body["rows"], 1):
            if number in taken:
                rows.append(bad.pop(0))
            else:
                done = self._register(row, Action(row.get("action", "create")))
                rows.append({"row": number, "ok": True, **document.encode_receipt(done)})
        return {
            "mode": body["mode"],
            "dry_run": body.get("dry_run", False),
            "sequence": self.head,
            "rows": rows,
        }

    async def _changes(self, query: Any) -> Json:
        after, limit = int(query["after"][0]), int(query["limit"][0])
        wait_s = float(query["wait"][0])
        if wait_s and self.head <= after:
            async with self.news:
                try:
                    await asyncio.wait_for(
                        self.news.wait_for(lambda: self.head > after), min(wait_s, 5)
                    )
                except TimeoutError:
                    return {"items": [], "next": after}
        items = [{**ENTRY, "sequence": n} for n in range(after + 1, self.head + 1)][:limit]
        return {"items": items, "next": after + len(items)}

    async def arrived(self, requests: int) -> None:
        """Returns when so many have arrived in all."""
        async with self.news:
            await asyncio.wait_for(self.news.wait_for(lambda: len(self.seen) >= requests), 5)

    async def append(self, entries: int = 1) -> None:
        async with self.news:
            self.head += entries
            self.news.notify_all()

    def add(self, name: str) -> None:
        self.records[name] = Record(Identifier.parse(name), ())


@asynccontextmanager
async def serving(node: ScriptedNode, port: int = 0) -> AsyncIterator[ScriptedNode]:
    """Listens on loopback until the block ends; then hangs up on everyone."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return await node.handle(request)  # type: ignore[arg-type]

    server = web.Server(handle, keepalive_timeout=75)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, reuse_address=True)
    await site.start()
    host, bound = runner.addresses[0][:2]
    node.url = f"http://{host}:{bound}"
    try:
        yield node
    finally:
        for connection in list(server.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


# Faults ---------------------------------------------------------------------------------


async def reset(request: web.Request, answer: Answer) -> web.StreamResponse:
    """The connection breaks before anything has been done."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def cut_after_commit(request: web.Request, answer: Answer) -> web.StreamResponse:
    """The write is done; its reply is lost."""
    await answer()
    return await reset(request, answer)


async def cut_in_reply(request: web.Request, answer: Answer) -> web.StreamResponse:
    """The write is done; half of its reply arrives."""
    reply = await answer()
    assert isinstance(reply, web.Response)
    assert isinstance(reply.body, bytes)
    half = web.StreamResponse(status=reply.status, headers={"Content-Type": "application/json"})
    half.content_length = len(reply.body)
    await half.prepare(request)
    await half.write(reply.body[: len(reply.body) // 2])
    return await reset(request, answer)


def saying(
    status: int, body: bytes | Json, content_type: str = "application/json", **headers: str
) -> Fault:
    """A reply made up by the test; `Retry_After="1"` becomes a header."""

    async def fault(request: web.Request, answer: Answer) -> web.StreamResponse:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return web.Response(status=status, body=raw, content_type=content_type, headers=named)

    return fault


def problem(error: BiaojieError, **headers: str) -> Fault:
    status = document.HTTP_STATUS[error.code]
    return saying(status, document.encode_error(error), "application/problem+json", **headers)


def held(until: asyncio.Event) -> Fault:
    """Answers rightly, once `until` is set."""

    async def fault(request: web.Request, answer: Answer) -> web.StreamResponse:
        reply = await answer()
        await until.wait()
        return reply

    return fault
