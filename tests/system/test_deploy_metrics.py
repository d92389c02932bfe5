"""Every metric, label and outcome that the dashboard and the alert rules name is one that a node
shows or may show: a node of two workers is asked."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from biaojie.errors import ERRORS
from tests.system.wire import Wire, until
from tests.system.workers import Make, Series, series, several

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

DEPLOY = Path(__file__).parents[2] / "deploy"
WORDS = frozenset(("and", "or", "unless", "offset", "bool", "inf", "nan"))
SET_BY_PROMETHEUS = {"job", "instance", "le"}
_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
_MATCHERS = re.compile(r"\{([^{}]*)\}")
_GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")


def rules() -> Iterator[str]:
    (document,) = yaml.safe_load_all((DEPLOY / "prometheus/biaojie.rules.yml").read_text())
    for group in document["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def dashboard() -> Iterator[str]:
    document = json.loads((DEPLOY / "grafana/biaojie.json").read_text())
    for panel in document["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in document["templating"]["list"]:
        if variable["type"] == "query":
            yield re.sub(r"label_values\((.*),.*\)", r"\1", variable["query"]["query"])


def metrics_of(expression: str) -> set[str]:
    """The names of series in a PromQL expression."""
    bare = _GROUPING.sub(" ", _MATCHERS.sub(" ", _TEXT.sub('""', expression)))
    bare = re.sub(r"\[[^\]]*\]|\boffset\s+\S+", " ", bare)
    return {
        name
        for name in re.findall(r"\b[A-Za-z_:][A-Za-z0-9_:]*\b(?!\s*\()", bare)
        if name not in WORDS
    }


def matchers_of(expression: str) -> Iterator[tuple[str, str, str]]:
    """(series, label, alternative) for each label that a series is chosen by."""
    for name, inside in re.findall(r"([A-Za-z_:][A-Za-z0-9_:]*)\{([^{}]*)\}", expression):
        for label, text in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', inside):
            for alternative in text.split("|"):
                yield name, label, alternative


def test_how_expressions_are_read() -> None:
    expression = (
        'histogram_quantile(0.9, sum by (le, front) (rate(a_bucket{front="b",x=~"c|d"}[5m])))'
        " / on (job) group_left () max(e offset 1m) > 1e3 and f:g == inf"
    )
    assert metrics_of(expression) == {"a_bucket", "e", "f:g"}
    assert list(matchers_of(expression)) == [
        ("a_bucket", "front", "b"),
        ("a_bucket", "x", "c"),
        ("a_bucket", "x", "d"),
    ]


@pytest.fixture(scope="module")
def shown(make_node: Make) -> Series:
    node: RunningNode = several(make_node, 2)
    node.home("88.118.8")
    node.ask("PUT", "/api/v1/identifiers/88.118.8/X", {"values": []})
    node.ask("GET", "/api/v1/identifiers/88.118.8/X", key=None)
    with Wire(node.port) as wire:
        return until(lambda: (seen := series(wire)) and _both(seen) and seen)


def _both(seen: Series) -> bool:
    return {dict(labels)["worker"] for name, labels in seen if name == "biaojie_cache_bytes"} == {
        "0",
        "1",
    }


@pytest.mark.parametrize("source", [rules, dashboard])
def test_what_is_named_is_shown(source: type[Iterator[str]], shown: Series) -> None:
    expressions = list(source())
    assert len(expressions) > 10
    labels: dict[str, set[str]] = defaultdict(set)
    for name, pairs in shown:
        labels[name] |= dict(pairs).keys()
    named = set().union(*map(metrics_of, expressions))
    assert "biaojie_requests_total" in named
    assert named <= labels.keys() | {"up"}, named - labels.keys()
    for expression in expressions:
        for name, label, value in matchers_of(expression):
            assert label in labels[name] | SET_BY_PROMETHEUS, (name, label)
            if label == "outcome":
                allowed = {"ok", "failed"} if "store" in name else {"ok", *ERRORS}
                assert value in allowed, value


def test_what_operators_look_at_first_is_in_the_dashboard() -> None:
    named = set().union(*map(metrics_of, dashboard()))
    assert named >= {
        "biaojie_requests_total",
        "biaojie_request_seconds_bucket",
        "biaojie_cache_hit_total",
        "biaojie_native_lane_hits_total",
        "biaojie_log_sequence",
        "biaojie_commit_operations_bucket",
        "biaojie_store_seconds_bucket",
        "biaojie_worker_up",
        "biaojie_http_connections",
        "process_resident_memory_bytes",
    }


def test_panels_lie_side_by_side() -> None:
    panels = json.loads((DEPLOY / "grafana/biaojie.json").read_text())["panels"]
    places: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        own = {
            (at["x"] + right, at["y"] + down) for right in range(at["w"]) for down in range(at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not own & places, panel["title"]
        places |= own
    assert len({panel["id"] for panel in panels}) == len(panels)
