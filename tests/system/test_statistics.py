"""Statistics of a node: over the API and on its machine, and after it was stopped and started."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.described import IDS, Described, metrics
from tests.system.wire import until

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

STATS = "/api/v1/stats"
OPERATIONS = {"resolve", "resolve-many", "page", "handle-get", "resolution"}


def told(node: RunningNode, *arguments: str) -> str:
    """What the command says; the node need not run."""
    return subprocess.run(
        node.command("stats", "--data-dir", str(node.data_dir), *arguments),
        env=node.settings(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def stats(node: RunningNode, *arguments: str) -> Any:
    return json.loads(told(node, "--json", *arguments))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_numbers_agree_with_what_was_asked_also_after_a_restart(
    make_node: Callable[..., RunningNode], workers: str
) -> None:
    before = datetime.now(UTC).date().isoformat()
    node = make_node(workers=workers)
    node.home("88.118.8", "acme")
    node.home("88.118.9", "globex")
    admin = Described(node.port, node.key)
    for n in range(7):
        assert admin.ask("PUT", f"{IDS}/88.118.8/S{n}", {"values": []}).status == 201
    assert admin.ask("PUT", f"{IDS}/88.118.8/S0", {"values": []}).status == 200
    assert admin.ask("DELETE", f"{IDS}/88.118.8/S1").status == 200
    assert admin.ask("PUT", f"{IDS}/88.118.9/S0", {"values": []}).status == 201
    for _ in range(30):  # most of them answered by the express lane
        assert node.ask("GET", f"{IDS}/88.118.8/S0").status == 200
    assert node.ask("GET", f"{IDS}/88.118.8/S1").status == 410
    assert node.ask("GET", f"{IDS}/88.118.8/none").status == 404
    assert until(lambda: stats(node)["total"]["registered"] == 8)

    def seen(key: str, query: str = "?days=1") -> Any:
        return Described(node.port, key).ask("GET", STATS + query).json

    whole = seen(node.key)
    sequence = json.loads(node.ask("GET", "/api/v1/changes?limit=1000", key=node.key).body)["next"]
    assert whole["sequence"] == sequence
    own = seen(node.issue("reader", "globex"))
    numbers = ("identifiers", "registered", "changed", "retired", "purged")
    assert [whole["total"][name] for name in numbers] == [8, 8, 1, 1, 0]
    assert [own["total"][name] for name in (*numbers, "resolved")] == [1, 1, 0, 0, 0, None]
    assert [item["prefix"] for item in own["prefixes"]] == ["88.118.9"]
    assert (own["bytes"], whole["bytes"]["tables"]) == (None, {})
    first = seen(node.key, "?limit=1")
    assert (first["prefixes"][0]["prefix"], len(first["days"])) == ("88.118.8", 30)
    second = seen(node.key, f"?limit=1&after={first['next']}")
    assert second["prefixes"][0]["prefix"] == "88.118.9"
    assert seen(node.key, "?prefix=88.118.9&days=366")["total"]["identifiers"] == 1
    for query in ("?days=0", "?days=367", "?after=AA==", "?prefix=a%20b", "?limit=0", "?x=1"):
        assert Described(node.port, node.key).ask("GET", STATS + query).status == 400, query

    counted = sum(
        int(count)
        for (name, labels), count in metrics(Described(node.port, node.key)).items()
        if name == "biaojie_requests_total"
        and dict(labels)["operation"] in OPERATIONS
        and dict(labels)["outcome"] == "ok"
    )
    assert counted == 30
    assert node.stop() == 0
    after = stats(node)
    assert after["total"]["resolved"] == 30
    assert sum(day["resolved"] for day in after["days"]) == 30
    today = datetime.now(UTC).date().isoformat()
    assert {day["day"] for day in after["days"] if day["resolved"]} <= {before, today}
    node.start()
    for _ in range(5):
        assert node.ask("GET", f"{IDS}/88.118.8/S0").status == 200
    assert node.stop() == 0
    assert stats(node)["total"]["resolved"] == 35
    assert stats(node, "88.118.8")["total"]["identifiers"] == 7
    octets = (node.data_dir / "registry.db").stat().st_size
    assert stats(node)["bytes"]["total"] == octets >= whole["bytes"]["total"] > 0
    shown = told(node)
    assert "8 identifiers 标识" in shown
    assert f"{octets:,} bytes on disk 磁盘字节" in shown


def test_numbers_by_template_layer_and_state(make_node: Callable[..., RunningNode]) -> None:
    node = make_node()
    node.home("88.118.8", "acme")
    node.home("88.118.9", "globex")
    admin = Described(node.port, node.key)
    template = "88.118.8/T1"
    for n in range(10):
        body = {"values": [], "template": template if n < 8 else None}
        assert admin.ask("PUT", f"{IDS}/88.118.8/S{n}", body).status == 201
    frozen = {"values": [], "status": "frozen"}
    assert admin.ask("PUT", f"{IDS}/88.118.9/S0", frozen).status == 201
    run = {"prefix": "88.118.8", "pattern": "R{000..199}", "values": []}
    assert admin.ask("POST", "/api/v1/ranges", run).status == 201
    assert admin.ask("DELETE", f"{IDS}/88.118.8/S1").status == 200
    assert admin.ask("DELETE", f"{IDS}/88.118.8/R007").status == 200
    assert until(lambda: stats(node)["total"]["registered"] == 211)
    seen = admin.ask("GET", STATS).json
    assert seen["total"]["layers"] == {"rows": 12, "blocks": 0, "ranges": 199}
    assert seen["total"]["states"] == {"draft": 0, "active": 208, "frozen": 1, "retired": 2}
    templates = [
        {"template": None, "identifiers": 203},
        {"template": template, "identifiers": 8},
    ]
    assert (seen["templates"], seen["other_templates"]) == (templates, 0)
    few = admin.ask("GET", f"{STATS}?templates=1").json
    assert (few["templates"], few["other_templates"]) == (templates[:1], 8)
    own = Described(node.port, node.issue("reader", "globex")).ask("GET", STATS).json
    assert own["total"]["states"]["frozen"] == own["total"]["identifiers"] == 1
    assert own["templates"] == [{"template": None, "identifiers": 1}]
    one = admin.ask("GET", f"{STATS}?prefix=88.118.9").json
    assert one["prefixes"][0]["layers"] == {"rows": 1, "blocks": 0, "ranges": 0}
    for query in ("?templates=-1", "?templates=101"):
        assert admin.ask("GET", STATS + query).status == 400, query
    compact = node.command("compact", "--days", "0", "--data-dir", str(node.data_dir))
    subprocess.run(compact, env=node.settings(), timeout=60, check=True, capture_output=True)
    after = stats(node)  # beside the node
    assert after["total"]["layers"]["blocks"] > 0
    assert sum(after["total"]["layers"].values()) == 211
    assert after["total"]["states"] == seen["total"]["states"]
    assert stats(node, "--recount", "--templates", "1")["total"] == after["total"]
    shown = told(node)
    assert template in shown
    assert "retired 已注销" in shown
