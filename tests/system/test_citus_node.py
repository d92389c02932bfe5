"""Two nodes over a real Citus cluster, where BIAOJIE_TEST_CITUS_URL names one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.citus import prepared
from tests.system.wire import until
from tests.system.workers import Make

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

PATH = "/api/v1/identifiers/88.118.8"
RANGES = "/api/v1/ranges"


@pytest.fixture(scope="module")
def nodes(make_node: Make) -> Iterator[tuple[RunningNode, RunningNode]]:
    url = prepared()
    first, second = (make_node(database_url=url) for _ in range(2))
    first.home("88.118.8")
    yield first, second
    assert first.stop() == 0
    assert second.stop() == 0


def data(node: RunningNode, name: str) -> str:
    reply = node.ask("GET", f"{PATH}/{name}", key=None)
    return str(reply.json["values"][0]["data"]) if reply.status == 200 else str(reply.status)


def test_what_one_writes_both_read(nodes: tuple[RunningNode, RunningNode]) -> None:
    first, second = nodes
    for name in ("A", "B", "C"):
        assert data(first, name) == data(second, name) == "404"
        for turn in "ab":
            body = {"values": [{"index": 1, "type": "URL", "data": turn}]}
            assert first.ask("PUT", f"{PATH}/{name}", body).status in (200, 201)
            assert data(first, name) == turn
            until(lambda name=name, turn=turn: data(second, name) == turn)
    listed = first.ask("GET", "/api/v1/identifiers?prefix=88.118.8")
    assert listed.status == 200, listed.body
    assert len(listed.json["items"]) == 3


def test_a_range_and_its_cut_hold_on_both(nodes: tuple[RunningNode, RunningNode]) -> None:
    first, second = nodes
    rule = {
        "prefix": "88.118.8",
        "pattern": "R{00..99}",
        "values": [{"index": 1, "type": "URL", "data": "{number}"}],
    }
    assert data(second, "R42") == "404"
    assert first.ask("POST", RANGES, rule).status == 201
    assert data(first, "R42") == "42"
    until(lambda: data(second, "R42") == "42")
    body = {"values": [{"index": 1, "type": "URL", "data": "own"}]}
    assert second.ask("PUT", f"{PATH}/R43", body, key=first.key).status == 200
    assert second.ask("DELETE", f"{RANGES}/88.118.8/R%7B10..19%7D", key=first.key).status == 200
    assert [data(second, name) for name in ("R09", "R10", "R43")] == ["09", "410", "own"]
    until(lambda: data(first, "R10") == "410" and data(first, "R43") == "own")
    listed = first.ask("GET", "/api/v1/identifiers?prefix=88.118.8&limit=1000")
    assert len([item for item in listed.json["items"] if "/R" in item["identifier"]]) == 100
