"""Answers that are none: garbage, floods and other people's pages end in an error that says so."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from biaojie import Client, Row
from biaojie.errors import (
    BatchRejected,
    BiaojieError,
    MalformedAnswer,
    TemporarilyUnavailable,
    TooLarge,
    TooManyRequests,
    Unreachable,
)
from biaojie.retry import Backoff
from tests.scripted_node import Answer, Fault, ScriptedNode, saying, serving

QUICK = Backoff(base_s=0.001, cap_s=0.002)


@pytest.fixture
async def node() -> AsyncIterator[ScriptedNode]:
    async with serving(ScriptedNode()) as node:
        yield node


@pytest.fixture
async def client(node: ScriptedNode) -> AsyncIterator[Client]:
    async with Client(node.url, backoff=QUICK) as client:
        yield client


async def _compressed(request: web.Request, answer: Answer) -> web.StreamResponse:
    bomb = gzip.compress(b"[" + b"0," * 10_000_000 + b"0]")
    return web.Response(
        body=bomb, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"}
    )


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (saying(200, b"<html>", "text/html"), "text/html"),
        (saying(200, b"{}", "text/plain"), "text/plain"),
        (saying(200, b"{"), "not JSON"),
        (saying(200, b"\xff\xfe"), "not JSON"),
        (saying(200, b"[" * 100_000), "not JSON"),
        (saying(200, b'{"version": ' + b"9" * 5000 + b"}"), "not JSON"),
        (saying(302, b"", Location="https://evil.example/"), "redirect"),
        (saying(404, b"<html>", "text/html"), "404"),
        (saying(404, {"code": "made-up"}), "404"),
        (saying(500, b"[1]"), "500"),
        (_compressed, "compressed"),
    ],
)
async def test_answers_that_cannot_be_understood(
    node: ScriptedNode, client: Client, fault: Fault, told: str
) -> None:
    node.faults.append(fault)
    with pytest.raises(MalformedAnswer, match=told):
        await client.resolve("99.1/a")
    assert len(node.seen) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [(413, TooLarge), (429, TooManyRequests), (502, Unreachable), (503, TemporarilyUnavailable)],
)
async def test_what_a_proxy_says(
    node: ScriptedNode, client: Client, status: int, kind: type[BiaojieError]
) -> None:
    node.faults.extend([saying(status, b"<html>", "text/html")] * 9)
    with pytest.raises(kind):
        await client.resolve("99.1/a")
    assert len(node.seen) == (4 if kind.retryable else 1)


ODD: list[Any] = [
    None, [], {}, "x", 1, True, {"items": None}, {"items": [None]}, {"items": {}},
    {"items": [{}], "next": 5}, {"items": [], "next": "x" * 3}, {"rows": [{}]},
    {"identifier": 1, "values": [], "version": 1}, {"identifier": "99.1/a", "version": 1e999},
    {"prefix": "99.1", "created": "never"}, {"id": [], "key": {}},
]  # fmt: skip


async def _drain(stream: AsyncIterator[object]) -> None:
    async for item in stream:
        if isinstance(item, BiaojieError):
            raise item


CALLS: dict[str, Callable[[Client], Any]] = {
    "resolve": lambda c: c.resolve("99.1/a"),
    "register": lambda c: c.register("99.1/a", {}),
    "mint": lambda c: c.mint("99.1", {}),
    "modify": lambda c: c.modify("99.1/a"),
    "batch": lambda c: c.register_batch([Row("99.1/a")]),
    "records": lambda c: _drain(c.records("99.1")),
    "prefixes": lambda c: _drain(c.prefixes.list()),
    "prefix": lambda c: c.prefixes.get("99.1"),
    "keys": lambda c: _drain(c.keys.list()),
    "issue": lambda c: c.keys.issue("admin", ""),
    "resolve_many": lambda c: _drain(c.resolve_many(["99.1/a"])),
    "changes": lambda c: _drain(c.changes(follow=False)),
}


@pytest.mark.parametrize("call", CALLS)
async def test_odd_documents(node: ScriptedNode, client: Client, call: str) -> None:
    """Each ends in MalformedAnswer, or, where it has the shape of an empty page, well."""
    ended_well = 0
    for odd in ODD:
        node.faults.clear()
        node.faults.extend([saying(200, odd)] * 3)
        try:
            await CALLS[call](client)
            ended_well += 1
        except MalformedAnswer:
            pass
    assert ended_well == 0


@pytest.mark.parametrize("announced", [True, False])
async def test_an_answer_that_is_too_large(node: ScriptedNode, announced: bool) -> None:
    sent = 0

    async def flood(request: web.Request, answer: Answer) -> web.StreamResponse:
        nonlocal sent
        reply = web.StreamResponse(headers={"Content-Type": "application/json"})
        if announced:
            reply.content_length = 10**12
        await reply.prepare(request)
        while sent < 1 << 30:
            await reply.write(b" " * 65536)
            sent += 65536
        return reply

    node.faults.append(flood)
    async with Client(node.url, reply_octets_max=100_000) as client:
        with pytest.raises(MalformedAnswer, match="over 100000 octets"):
            await client.resolve("99.1/a")
    assert sent < 1 << 26


@pytest.mark.parametrize("rows", [5, None, [1, {}, {"row": "1"}, {"row": 2}]])
async def test_odd_rows_in_a_rejection(node: ScriptedNode, client: Client, rows: Any) -> None:
    odd = {"code": "batch-rejected", "rows": rows, "retry_after_s": "soon"}
    node.faults.append(saying(422, odd, "application/problem+json"))
    with pytest.raises(BatchRejected) as caught:
        await client.register_batch([Row("99.1/a")], "all")
    assert caught.value.fields["rows"] == ([{"row": 2}] if isinstance(rows, list) else [])
