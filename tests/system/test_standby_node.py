"""Two nodes that read on a real streaming standby: what is written is never missed for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.postgres import Postgres, Standby
from tests.system.wire import Wire, until
from tests.system.workers import Make, series

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

FRESH_S = 1.0


@pytest.fixture(scope="module")
def nodes(
    make_node: Make, primary: Postgres, standby: Standby
) -> Iterator[tuple[RunningNode, RunningNode]]:
    urls = {"database_url": primary.url(), "replica_url": standby.url()}
    writing, reading = make_node(**urls), make_node(**urls)
    writing.home("88.118.8")
    for node in (writing, reading):
        until(lambda node=node: metric(node, "biaojie_standbys_ready") == 1)
    yield writing, reading
    assert writing.stop() == 0
    assert reading.stop() == 0


def metric(node: RunningNode, name: str) -> float:
    with Wire(node.port) as wire:
        return series(wire, name)[name, ()]


def put(node: RunningNode, name: str, data: str) -> None:
    body = {"values": [{"index": 1, "type": "URL", "data": data}]}
    reply = node.ask("PUT", f"/api/v1/identifiers/88.118.8/{name}", body)
    assert reply.status in (200, 201), reply.body


def data(node: RunningNode, name: str) -> str:
    reply = node.ask("GET", f"/api/v1/identifiers/88.118.8/{name}", key=None)
    return str(reply.json["values"][0]["data"]) if reply.status == 200 else str(reply.status)


def written_and_read(nodes: tuple[RunningNode, RunningNode], names: list[str]) -> None:
    writing, reading = nodes
    for name in names:
        assert data(reading, name) == data(writing, name) == "404"
        for turn in "ab":
            put(writing, name, turn)
            assert data(writing, name) == turn
            acknowledged = time.monotonic()
            until(lambda name=name, turn=turn: data(reading, name) == turn, timeout_s=10)
            # The asking takes time of its own; what is promised is held for sure by the end.
            assert time.monotonic() - acknowledged < FRESH_S + 1.0


def test_what_is_written_is_read(nodes: tuple[RunningNode, RunningNode]) -> None:
    before = metric(nodes[1], "biaojie_reads_from_standby_total")
    written_and_read(nodes, [f"A{n}" for n in range(8)])
    until(lambda: metric(nodes[1], "biaojie_standbys_ready") == 1)
    assert data(nodes[1], "NONE") == "404"
    assert metric(nodes[1], "biaojie_reads_from_standby_total") > before


def test_a_standby_that_is_behind_hides_nothing(
    nodes: tuple[RunningNode, RunningNode], standby: Standby
) -> None:
    standby.pause()
    try:
        written_and_read(nodes, ["B1", "B2"])
        assert metric(nodes[1], "biaojie_standbys_ready") == 0
    finally:
        standby.resume()
    until(lambda: metric(nodes[1], "biaojie_standbys_ready") == 1)


def test_a_standby_that_is_dead_is_not_missed(
    nodes: tuple[RunningNode, RunningNode], standby: Standby
) -> None:
    standby.kill()
    try:
        written_and_read(nodes, ["C1", "C2"])
        for node in nodes:
            assert node.ask("GET", "/readyz", key=None).status == 200
    finally:
        standby.start()
    until(lambda: metric(nodes[1], "biaojie_standbys_ready") == 1)
    assert data(nodes[1], "C2") == "b"
