"""The log of a real node: JSON lines, one for each failed or slow request, and no secrets."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.described import URL, Described, path
from tests.system.wire import Wire, request, until

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

Make = Callable[..., "RunningNode"]
FIELDS = {"event", "level", "logger", "timestamp"}
REQUEST_FIELDS = {"front", "operation", "outcome", "ms", "request_id", "peer"}


def lines(node: RunningNode) -> list[dict[str, Any]]:
    return [json.loads(line) for line in node.log.splitlines()]


@pytest.fixture(scope="module")
def logged(make_node: Make) -> RunningNode:
    node = make_node(slow_request_s=0.3)
    node.home("88.118.8")
    return node


def of(node: RunningNode, request_id: str) -> list[dict[str, Any]]:
    return [line for line in lines(node) if line.get("request_id") == request_id]


def test_every_line_is_json_and_names_its_time_and_kind(logged: RunningNode) -> None:
    found = lines(logged)
    assert any(line["event"] == "serving" for line in found)
    for line in found:
        assert line.keys() >= FIELDS
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["timestamp"])


@pytest.mark.parametrize(
    ("method", "target", "body", "operation", "outcome"),
    [
        ("GET", path("nobody"), None, "resolve", "identifier-not-found"),
        ("PUT", path("x"), b"{", "put", "invalid-request"),
        ("GET", "/88.118.8/nobody", None, "page", "identifier-not-found"),
        ("GET", "/api/v1/nowhere", None, "none", "not-found"),
        ("BREW", path("x"), None, "none", "invalid-request"),
        ("POST", "/healthz", None, "none", "method-not-allowed"),
    ],
)
def test_one_line_for_a_failed_request(
    logged: RunningNode, method: str, target: str, body: bytes | None, operation: str, outcome: str
) -> None:
    client = Described(logged.port, logged.key)
    answer = client.ask(method, target, body, Content_Type="application/json")
    request_id = answer.headers["x-request-id"]
    until(lambda: of(logged, request_id))
    (line,) = of(logged, request_id)
    assert line.keys() == FIELDS | REQUEST_FIELDS
    assert (line["operation"], line["outcome"], line["level"]) == (operation, outcome, "info")
    assert line["peer"] == "127.0.0.0"
    assert line["front"] == "http"


def test_no_line_for_a_good_request_and_one_for_a_slow_one(logged: RunningNode) -> None:
    client = Described(logged.port, logged.key)
    good = client.ask("PUT", path("good"), {"values": [URL]})
    lock = sqlite3.connect(logged.data_dir / "registry.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    with Wire(logged.port) as wire:
        headers = {"Authorization": f"Bearer {logged.key}", "Content-Type": "application/json"}
        wire.send(request("PUT", path("slow"), headers, b'{"values":[]}'))
        assert wire.silent(0.5)
        lock.execute("ROLLBACK")
        slow = wire.answer()
    lock.close()
    assert slow.status == 201
    until(lambda: of(logged, slow.headers["x-request-id"]))
    (line,) = of(logged, slow.headers["x-request-id"])
    assert (line["event"], line["level"], line["outcome"]) == ("request slow", "warning", "ok")
    assert line["ms"] >= 300
    assert of(logged, good.headers["x-request-id"]) == []


def test_nothing_secret_is_ever_logged(make_node: Make) -> None:
    """Keys right and wrong, private values, bodies, queries, headers; also when things break."""
    node = make_node(log_level="debug")
    node.home("88.118.8")
    admin = Described(node.port, node.key)
    issued = admin.ask("POST", "/api/v1/keys", {"role": "registrar", "tenant": "acme"}).json
    secrets = [node.key, issued["key"], "SECRET-VALUE", "SECRET-BODY", "SECRET-QUERY"]
    secrets += ["SECRET-COOKIE", "SECRET-LABEL", "bj_wrongkey_" + "W" * 43, "SECRET-BASIC"]
    hidden = [URL | {"data": "SECRET-VALUE", "permissions": "1100"}]
    holder = Described(node.port, issued["key"])
    assert holder.ask("PUT", path("s"), {"values": hidden}).status == 201
    assert holder.ask("GET", path("s")).status == 200
    assert holder.ask("PUT", path("s"), {"values": hidden * 2}).status == 400
    assert holder.ask("PUT", path("s"), {"values": [hidden[0] | {"index": 0}]}).status == 400
    assert holder.ask("PUT", path("s"), b'{"SECRET-BODY"', Content_Type="x/y").status == 415
    assert holder.ask("PUT", path("s"), {"values": [], "SECRET-BODY": 1}).status == 400
    assert holder.ask("GET", path("s") + "?type=SECRET-QUERY&x=SECRET-QUERY").status == 400
    assert holder.ask("GET", path("no"), Cookie="SECRET-COOKIE", Referer="SECRET-QUERY").code
    body = {"role": "reader", "tenant": "acme", "label": "SECRET-LABEL"}
    assert admin.ask("POST", "/api/v1/keys", body).status == 201
    for number, header in enumerate(("Bearer bj_wrongkey_" + "W" * 43, "Basic SECRET-BASIC")):
        with Wire(node.port, source=f"127.9.0.{number + 1}") as wire:
            assert wire.ask("GET", "/api/v1/keys", {"Authorization": header}).status == 401
    admin.ask("DELETE", f"/api/v1/keys/{issued['id']}")
    with Wire(node.port, source="127.9.0.9") as wire:
        wrong = {"Authorization": f"Bearer {issued['key']}"}
        assert wire.ask("GET", "/api/v1/keys", wrong).status == 401
    with Wire(node.port) as wire:
        wire.send(b"GARBAGE " + node.key.encode() + b"\r\nAuthorization: " + node.key.encode())
        wire.send(b"\r\n\r\n")
        assert wire.answer().status == 400
    # And when things break that should not, and all that led there is logged.
    with sqlite3.connect(node.data_dir / "registry.db") as registry:
        for table in ("records", "api_keys"):
            registry.execute(
                f"CREATE TRIGGER no_{table} BEFORE INSERT ON {table}"
                " BEGIN SELECT RAISE(ABORT, 'not today'); END"
            )
    registry.close()
    assert admin.ask("PUT", path("s"), {"values": hidden}).status == 500
    assert admin.ask("POST", "/api/v1/keys", body).status == 500
    assert node.stop() == 0
    assert node.log.count("not today") >= 2
    for secret in secrets:
        assert secret not in node.log
        assert secret.rpartition("_")[2][:20] not in node.log
    assert not re.search(r"bj_[0-9a-z]{8}_", node.log)
    assert "Authorization" not in node.log


def test_addresses_are_whole_when_the_operator_says_so(make_node: Make) -> None:
    node = make_node(truncate_addresses=False)
    with Wire(node.port, source="127.5.6.7") as wire:
        answer = wire.ask("GET", path("x"))
    request_id = answer.headers["x-request-id"]
    until(lambda: of(node, request_id))
    assert of(node, request_id)[0]["peer"] == "127.5.6.7"
