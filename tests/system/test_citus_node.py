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
