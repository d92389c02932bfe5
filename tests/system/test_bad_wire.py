"""Bytes that are not HTTP, addresses that are none, and clients that stop half-way."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.system.described import (
    IDS,
    URL,
    Described,
    check_problem,
    end_of_log,
    metrics,
    path,
    total,
    verdict,
)
from tests.system.wire import Wire, request, until

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode


@pytest.fixture
def api(unharmed: Described) -> Described:
    return unharmed


INVALID = (400, "invalid-request")
IDENTIFIER = (400, "invalid-identifier")


# Heads ------------------------------------------------------------------------------------

GARBAGE = {
    "TLS": bytes.fromhex("16030100c8010000c40303") + b"\x00" * 190,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9": b"GET / HTTP/9.9\r\n\r\n",
    "no method": b" / HTTP/1.1\r\nHost: x\r\n\r\n",
    "strange method": b"G\x00T / HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL bytes": b"\x00" * 4096,
    "high bytes": bytes(range(128, 256)) * 16 + b"\r\n\r\n",
    "raw bytes in the path": b"GET /88.118.8/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "control in the path": b"GET /a\x01b HTTP/1.1\r\nHost: x\r\n\r\n",
    "CR in a header": b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n",
    "nameless header": b"GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "long target": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "long header": b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 100_000 + b"\r\n\r\n",
    "long name": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A" * 100_000 + b": b\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 5_000 + b"\r\n",
    "headers without end": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 500_000,
}


@pytest.mark.parametrize("sent", GARBAGE.values(), ids=list(GARBAGE))
def test_garbage_on_the_wire(api: Described, sent: bytes) -> None:
    with Wire(api.port, timeout_s=5) as wire:
        try:
            wire.send(sent)
        except ConnectionError:
            return  # refused before all of it was taken
        assert verdict(wire.answer()) == INVALID
        assert wire.ended()


TARGETS = [
    ("/88.118.8/%c0%af", IDENTIFIER),
    ("/88.118.8/%ff", IDENTIFIER),
    ("/88.118.8/%ed%a0%80", IDENTIFIER),
    ("/88.118.8/a%00b", IDENTIFIER),
    ("/88.118.8/a%0d%0aSet-Cookie:%20x=1", IDENTIFIER),
    ("/88.118.8/%E2%80%AE", IDENTIFIER),
    ("/88.118.8/%20x", IDENTIFIER),
    ("/88.118.8/" + "x" * 300, IDENTIFIER),
    ("/88.118.8/" + "%E6%A0%87" * 1_000, IDENTIFIER),
    ("/88.118.8/", IDENTIFIER),
    ("/88.118.8", IDENTIFIER),
    ("//", IDENTIFIER),
    ("/../../etc/passwd", IDENTIFIER),
    ("/..%2f..%2fetc%2fpasswd", IDENTIFIER),
    ("/88.118.8/../../../etc/passwd", (404, "identifier-not-found")),
    ("/88.118.8/%", (404, "identifier-not-found")),
    ("/88.118.8/%zz", (404, "identifier-not-found")),
    ("/88.118.8/%2500", (404, "identifier-not-found")),
    ("/88.118.8/x?index=0", INVALID),
    ("/88.118.8/x?index=x", INVALID),
    ("/88.118.8/x?index=" + "9" * 5_000, INVALID),
    ("/88.118.8/x?index=1", (404, "identifier-not-found")),
    ("/88.118.8/x?" + "index=1&" * 300, INVALID),
    ("/88.118.8/x?" + "index=1&" * 100, INVALID),
    ("/88.118.8/x?type=", INVALID),
    ("/88.118.8/x?type=%ff", INVALID),
    ("/88.118.8/x?auth=maybe", INVALID),
    ("/88.118.8/x?auth=1&auth=1", INVALID),
    ("/88.118.8/x?surprise=1", INVALID),
    ("/88.118.8/x?%00=%00", INVALID),
]


@pytest.mark.parametrize(("tail", "expected"), TARGETS)
def test_addresses(api: Described, tail: str, expected: tuple[int, str]) -> None:
    answer = api.ask("GET", IDS + tail, key=None)
    assert verdict(answer) == expected
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "target",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static/..%2f..%2fserver.py",
        "/static//etc/passwd",
        "/static/%00",
        "/api/v1/",
        "/api/v1/identifiers/",
        "/api/v1/keys/",
        "/api/v1/../../etc/passwd",
        "/api/88.118.8/x",
        "*",
        "",
        "//evil.example/88.118.8/x",
    ],
)
def test_addresses_where_nothing_is(api: Described, target: str) -> None:
    with Wire(api.port) as wire:
        answer = wire.ask("GET", target or "/nothing", {"Accept": "application/json"})
    assert answer.status in (400, 404), answer.body
    check_problem(answer)


def test_methods(api: Described) -> None:
    for method, expected in (
        ("TRACE", 405),
        ("CONNECT", 405),
        ("PROPFIND", 405),
        ("POST", 405),
        ("BREW", (400, 405)),
        ("get", (400, 405)),
    ):
        with Wire(api.port) as wire:
            answer = wire.ask(method, path("bad"))
        assert answer.status in (expected if isinstance(expected, tuple) else (expected,)), method
        check_problem(answer)


def test_headers_that_are_not_well_formed(api: Described) -> None:
    body = {"values": []}
    for headers in (
        {"Idempotency_Key": ""},
        {"Idempotency_Key": "x" * 256},
        {"Idempotency_Key": "é"},
        {"If_Match": "everything"},
        {"If_Match": '"' + "9" * 40 + '"'},
    ):
        assert verdict(api.ask("PUT", path("bad"), body, **headers)) == INVALID, headers
    # Taken as absent: they only ask for something.
    for headers in (
        {"Accept_Language": "zh;q=x," * 1_000},
        {"Accept": "\t;;;,/;q=,"},
        {"If_None_Match": "W/" * 5_000},
        {"X_Request_Id": "\t"},
    ):
        assert api.ask("GET", path("bad"), key=None, **headers).status == 404


def test_a_host_header_is_never_repeated_unchecked(node: RunningNode) -> None:
    client = Described(node.port, node.key)
    client.ask("PUT", path("hosted"), {"values": [URL]})
    for host in ('"><script>', "a b", "x" * 300, "evil.example/path", "[::1", "a\tb"):
        sent = request("GET", "/88.118.8/hosted", {"Host": host, "Accept": "text/html"})
        with Wire(node.port) as wire:
            wire.send(sent)
            answer = wire.answer()
        assert answer.status in (200, 400)
        assert host not in answer.body.decode()


# Connections --------------------------------------------------------------------------------


def test_half_a_request_is_no_request(api: Described) -> None:
    whole = request(
        "PUT",
        path("bad"),
        {"Authorization": f"Bearer {api.key}", "Content-Type": "application/json"},
        b'{"values":[]}',
    )
    for cut in (1, 20, len(whole) // 2, len(whole) - 14, len(whole) - 1):
        with Wire(api.port, timeout_s=5) as wire:
            wire.send(whole[:cut])
            wire.socket.shutdown(socket.SHUT_WR)
            assert wire.ended()
        with Wire(api.port, timeout_s=5) as wire:
            wire.send(whole[:cut])


def test_a_client_that_leaves_leaves_nothing_half_done(node: RunningNode) -> None:
    """Reset right after the request: it is done wholly or not at all."""
    api = Described(node.port, node.key)
    before = end_of_log(api)
    for number in range(20):
        sent = request(
            "PUT",
            path(f"left-{number}"),
            {"Authorization": f"Bearer {api.key}", "Content-Type": "application/json"},
            json.dumps({"values": [URL, URL | {"index": 2}]}).encode(),
        )
        with Wire(api.port) as wire:
            wire.send(sent)
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def settled() -> bool:
        answers = [api.ask("GET", path(f"left-{number}")) for number in range(20)]
        assert all(len(a.json["values"]) == 2 for a in answers if a.status == 200)
        return end_of_log(api) - before == sum(a.status == 200 for a in answers)

    until(settled)
    assert total(metrics(api), "biaojie_requests_total", outcome="internal") == 0


def test_replays_are_done_once(node: RunningNode) -> None:
    api = Described(node.port, node.key)
    before = end_of_log(api)
    answers = {
        api.ask("POST", IDS, {"prefix": "88.118.8", "values": []}, Idempotency_Key="again").body
        for _ in range(50)
    }
    assert len(answers) == 1
    assert end_of_log(api) == before + 1


@pytest.fixture(scope="module")
def hasty(make_node: Callable[..., RunningNode]) -> RunningNode:
    """A node with little patience."""
    node = make_node(header_timeout_s=0.4, body_timeout_s=0.5, keepalive_timeout_s=1)
    node.home("88.118.8")
    return node


def test_slow_bodies(hasty: RunningNode) -> None:
    api = Described(hasty.port, hasty.key)
    before = end_of_log(api)
    headers = {
        "Authorization": f"Bearer {hasty.key}",
        "Content-Type": "application/json",
        "Content-Length": "13",
    }
    with Wire(hasty.port, timeout_s=5) as wire:
        began = time.monotonic()
        wire.send(request("PUT", path("slow"), headers) + b'{"values"')
        answer = wire.answer()
        assert 0.4 < time.monotonic() - began < 1.5
        assert verdict(answer) == (408, "request-timeout")
        assert answer.headers["connection"] == "close"
        assert wire.ended()
    with Wire(hasty.port, timeout_s=5) as wire:
        # A byte now and then does not buy more time.
        wire.send(request("PUT", path("slow"), headers))
        for byte in b'{"values":[':
            time.sleep(0.1)
            try:
                wire.send(bytes([byte]))
            except ConnectionError:
                break
        assert verdict(wire.answer()) == (408, "request-timeout")
    assert end_of_log(api) == before


def test_slow_heads(hasty: RunningNode) -> None:
    for pause_s in (0.0, 0.1):
        with Wire(hasty.port, timeout_s=5) as wire:
            began = time.monotonic()
            for byte in b"GET /healthz HT" if pause_s else b"":
                try:
                    wire.send(bytes([byte]))
                except ConnectionError:
                    break
                time.sleep(pause_s)
            if not pause_s:
                wire.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
            answer = wire.answer()
            assert verdict(answer) == (408, "request-timeout")
            assert wire.ended()
            assert time.monotonic() - began < 3
    with Wire(hasty.port, timeout_s=5) as wire:
        assert wire.ask("GET", "/healthz").status == 200
        wire.send(b"GET /")
        assert wire.answer().status == 408


def test_who_says_nothing_is_hung_up_on(hasty: RunningNode) -> None:
    began = time.monotonic()
    with Wire(hasty.port, timeout_s=5) as mute, Wire(hasty.port, timeout_s=5) as idle:
        assert idle.ask("GET", "/healthz").status == 200
        assert mute.ended()
        assert idle.ended()
    assert 0.8 < time.monotonic() - began < 4
    api = Described(hasty.port)
    until(lambda: metrics(api)[("biaojie_http_connections", ())] <= 2)
