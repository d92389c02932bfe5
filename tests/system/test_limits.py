"""Limits on what strangers may hold open: who is over them hears so at once, the others go on."""

from __future__ import annotations

import json
import resource
import select
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

from tests.system.described import IDS, URL, Described, batch, end_of_log, metrics, path
from tests.system.wire import Answer, Wire, request, until

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

Make = Callable[..., "RunningNode"]
BODY = b'{"values":[]}'
HELD, RUNNING = "biaojie_http_connections", "biaojie_http_requests_running"


def headers(node: RunningNode) -> dict[str, str]:
    return {"Authorization": f"Bearer {node.key}", "Content-Type": "application/json"}


def memory(node: RunningNode) -> int:
    assert node.process is not None
    return int(psutil.Process(node.process.pid).memory_info().rss)


@contextmanager
def writes_stopped(node: RunningNode) -> Iterator[None]:
    """Another process holds the registry's write lock."""
    connection = sqlite3.connect(node.data_dir / "registry.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def wires(node: RunningNode, count: int) -> list[Wire]:
    return [Wire(node.port) for _ in range(count)]


def close(opened: list[Wire]) -> None:
    for wire in opened:
        wire.socket.close()


def open_connections(node: RunningNode) -> float:
    return metrics(Described(node.port), HELD)[(HELD, ())]


def check_over_capacity(answer: Answer) -> None:
    assert (answer.status, answer.code) == (503, "over-capacity")
    assert int(answer.headers["retry-after"]) >= 1


# Requests and connections ---------------------------------------------------------------------


def test_requests_beyond_the_limit_are_refused_early(make_node: Make) -> None:
    node = make_node(requests_max=4, deadline_s=10, watchers_max=3)
    node.home("88.118.8")
    api = Described(node.port, node.key)
    writers = wires(node, 4)
    with writes_stopped(node):
        for number, wire in enumerate(writers):
            wire.send(request("PUT", path(f"held-{number}"), headers(node), BODY))
        until(lambda: metrics(api, RUNNING)[(RUNNING, ())] >= 4)
        for method, target in (("GET", path("x")), ("PUT", path("y")), ("GET", "/")):
            began = time.monotonic()
            with Wire(node.port) as wire:
                check_over_capacity(wire.ask(method, target, headers(node), BODY))
            assert time.monotonic() - began < 1  # of the 10 s that the others may take
        with Wire(node.port) as wire:
            for target in ("/healthz", "/readyz", "/metrics"):
                assert wire.ask("GET", target).status == 200
    assert [wire.answer().status for wire in writers] == [201] * 4
    close(writers)
    assert api.ask("GET", path("held-0")).status == 200

    # Who waits for news takes nobody's place, and has a limit of its own.
    after = end_of_log(api)
    target = f"/api/v1/changes?after={after}&wait=20"
    watchers = wires(node, 3)
    for wire in watchers:
        wire.send(request("GET", target, headers(node)))
    assert watchers[-1].silent(0.2)
    for _ in range(10):
        assert api.ask("GET", path("held-0")).status == 200
    check_over_capacity(api.ask("GET", target))
    api.ask("PUT", path("news"), {"values": []})
    assert [len(wire.answer().json["items"]) for wire in watchers] == [1] * 3
    close(watchers)


def test_connections_beyond_the_limit_are_told_so(make_node: Make) -> None:
    node = make_node(connections_max=20)
    held = wires(node, 20)
    assert all(wire.ask("GET", "/healthz").status == 200 for wire in held)
    for early in (True, False):  # whether or not the client speaks first
        for _ in range(10):
            with Wire(node.port, timeout_s=5) as wire:
                if early:
                    wire.send(request("PUT", path("x"), headers(node), BODY))
                answer = wire.answer()
                check_over_capacity(answer)
                assert answer.headers["connection"] == "close"
                assert answer.json["request_id"] == answer.headers["x-request-id"]
                assert wire.ended()
    assert all(wire.ask("GET", "/healthz").status == 200 for wire in held)
    # Many who do not read what they are told do not take the place of others either.
    close(flood := wires(node, 200))
    assert len(flood) == 200
    assert held[0].ask("GET", "/healthz").status == 200
    close(held)
    until(lambda: accepted(node))


def accepted(node: RunningNode) -> bool:
    with Wire(node.port) as wire:
        return wire.ask("GET", "/healthz").status == 200


def test_out_of_file_handles_and_back(make_node: Make) -> None:
    node = make_node()
    node.home("88.118.8")
    api = Described(node.port, node.key)
    assert api.ask("PUT", path("before"), {"values": [URL]}).status == 201
    assert node.process is not None
    used = psutil.Process(node.process.pid).num_fds()
    limits = resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE)
    kept = Wire(node.port)
    kept.ask("GET", path("before"))
    resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, (used + 20, limits[1]))
    crowd = wires(node, 100)
    for wire in crowd:
        wire.send(request("GET", "/healthz"))
    # Who is connected goes on, writes included; nothing acknowledged is lost.
    assert kept.ask("GET", path("before")).status == 200
    answer = kept.ask("PUT", path("during"), headers(node), BODY)
    assert answer.status in (201, 503)
    close(crowd)
    resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, limits)
    until(lambda: accepted(node))
    kept.socket.close()
    assert api.ask("GET", path("before")).status == 200
    assert api.ask("PUT", path("after"), {"values": []}).status == 201
    if answer.status == 201:
        assert api.ask("GET", path("during")).status == 200
    assert "Traceback" not in node.log


# Slow clients ---------------------------------------------------------------------------------


def test_slow_connections_do_not_disturb_the_others(make_node: Make) -> None:
    node = make_node()
    node.home("88.118.8")
    api = Described(node.port, node.key)
    api.ask("PUT", path("normal"), {"values": [URL]})
    before = memory(node)
    slow = wires(node, 300)
    for number, wire in enumerate(slow):
        whole = request("PUT", path("slow"), headers(node) | {"Content-Length": "100000"})
        wire.send(whole if number % 3 else whole[:-20])
    waits = []
    with Wire(node.port) as user:
        for round_ in range(150):
            if round_ % 3 == 0:
                for wire in slow:
                    wire.send(b"x")
            began = time.monotonic()
            if round_ % 10:
                assert user.ask("GET", path("normal")).status == 200
            else:
                assert user.ask("PUT", path("normal"), headers(node), BODY).status == 200
            waits.append(time.monotonic() - began)
    waits.sort()
    assert waits[-5] < 0.5, waits[-5:]
    assert memory(node) - before < 30 * 2**20
    close(slow)
    until(lambda: open_connections(node) <= 2)


def test_readers_who_do_not_read_are_cut(make_node: Make) -> None:
    node = make_node(reply_timeout_s=1, keepalive_timeout_s=60)
    node.home("88.118.8")
    api = Described(node.port, node.key)
    heavy = [URL | {"index": n, "data": "x" * 60_000} for n in range(1, 5)]
    rows = [{"identifier": f"88.118.8/h{n}", "values": heavy} for n in range(16)]
    assert batch(api, "all", rows).status == 200
    target = IDS + "?prefix=88.118.8"
    deaf = [Wire(node.port, receive_bytes=4096) for _ in range(10)]
    for wire in deaf:
        wire.send(request("GET", target, headers(node)))
    # These take one reply after the other and never read: no single one is large.
    small = [Wire(node.port, receive_bytes=4096) for _ in range(10)]
    for wire in small:
        wire.send(request("GET", path("h0"), headers(node)) * 30)
    # Nor do these, and for them the node itself has nothing left to send.
    done = [Wire(node.port, receive_bytes=4096) for _ in range(10)]
    for wire in done:
        wire.send(request("GET", path("h0") + "?index=1", headers(node)))
    before = memory(node)
    until(lambda: open_connections(node) <= 1, timeout_s=15)
    close(deaf + small + done)
    assert memory(node) - before < 150 * 2**20
    with Wire(node.port, timeout_s=20) as wire:
        assert len(wire.ask("GET", target, headers(node)).json["items"]) == 16


def test_a_slow_reader_who_reads_gets_it_all(make_node: Make) -> None:
    node = make_node(reply_timeout_s=8)
    node.home("88.118.8")
    heavy = [URL | {"index": n, "data": "x" * 60_000} for n in range(1, 5)]
    Described(node.port, node.key).ask("PUT", path("big"), {"values": heavy})
    with Wire(node.port, receive_bytes=4096) as wire:
        wire.send(request("GET", path("big"), {"Connection": "close"}))
        received = b""
        while part := wire.socket.recv(8192):
            received += part
            time.sleep(0.02)
    assert len(json.loads(received.partition(b"\r\n\r\n")[2])["values"]) == 4


def test_bodies_may_not_fill_the_memory(make_node: Make) -> None:
    node = make_node(body_bytes_max=2**20)
    node.home("88.118.8")
    api = Described(node.port, node.key)
    before = memory(node)
    senders = wires(node, 50)
    started = request("PUT", path("big"), headers(node) | {"Content-Length": str(2**20)})
    for wire in senders:
        wire.send(started + b"x" * (2**20 - 1))
    refused = select.select([wire.socket for wire in senders], [], [], 5)[0]
    until(lambda: len(select.select([w.socket for w in senders], [], [], 0)[0]) >= 15)
    assert refused
    for wire in senders:
        if select.select([wire.socket], [], [], 0)[0]:
            check_over_capacity(wire.answer())
    assert memory(node) - before < 80 * 2**20
    # Small ones still pass.
    assert api.ask("PUT", path("small"), {"values": [URL]}).status == 201
    close(senders)
    until(lambda: open_connections(node) <= 1)
    large = {"values": [URL | {"index": n, "data": "x" * 50_000} for n in range(1, 5)]}
    assert api.ask("PUT", path("large"), large).status == 201


# Pipelining -----------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(node: RunningNode, api: Described) -> None:
    sent = b""
    for number in range(60):
        named = headers(node) | {"X-Request-Id": f"pipe-{number}"}
        if number % 4 == 0:
            sent += request("PUT", path(f"pipe-{number}"), named, BODY)
        elif number % 4 == 1:
            sent += request("HEAD", path(f"pipe-{number - 1}"), named)
        elif number % 4 == 2:
            sent += request("GET", path(f"pipe-{number - 2}"), named)
        else:
            sent += request("GET", path("nobody"), {"X-Request-Id": f"pipe-{number}"})
    with Wire(node.port) as wire:
        wire.send(sent)
        for number in range(60):
            answer = wire.answer("HEAD" if number % 4 == 1 else "GET")
            assert answer.headers["x-request-id"] == f"pipe-{number}"
            assert answer.status == (201, 200, 200, 404)[number % 4]


def test_a_flood_behind_a_waiting_request_is_not_kept(node: RunningNode, api: Described) -> None:
    before = memory(node)
    after = end_of_log(api)
    flood = request("GET", "/healthz") * 1000
    with Wire(node.port) as wire:
        wire.send(request("GET", f"/api/v1/changes?after={after}&wait=25", headers(node)))
        wire.socket.setblocking(False)
        sent = 0
        while select.select([], [wire.socket], [], 0.5)[1] and sent < 300 * 2**20:
            sent += wire.socket.send(flood)
        assert sent < 300 * 2**20
        assert memory(node) - before < 60 * 2**20
        wire.socket.settimeout(10)
        api.ask("PUT", path("flood-over"), {"values": []})
        assert wire.answer().json["items"]
        assert wire.answer().json == {"status": "ok"}
