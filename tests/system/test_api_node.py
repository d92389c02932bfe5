"""Languages, the description, odd but valid HTTP, and metrics that add up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import schemathesis

from tests.system.described import URL, Described, metrics, path, total
from tests.system.wire import Wire, request

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode


# Languages, ids, description -------------------------------------------------------------------


def test_languages_and_request_ids(api: Described) -> None:
    at = path("nobody-here")
    english = api.ask("GET", at, key=None, X_Request_Id="trace-1.A_b")
    assert english.headers["x-request-id"] == "trace-1.A_b"
    assert english.headers["content-language"] == "en"
    assert english.json["detail"] == english.json["detail_en"]
    chinese = api.ask("GET", at, key=None, Accept_Language="zh-CN,zh;q=0.9,en;q=0.1")
    assert chinese.headers["content-language"] == "zh"
    assert chinese.json["detail"] == chinese.json["detail_zh"] == "标识未注册。"
    assert chinese.json["title"] == "标识未注册"
    for bad in ("a b", "x" * 65, "<script>", "é"):
        assert api.ask("GET", at, key=None, X_Request_Id=bad).headers["x-request-id"] != bad
    fault = api.ask(
        "POST",
        "/api/v1/keys",
        {"role": "king", "tenant": 5, "more": 1},
        Accept_Language="zh",
    ).json
    assert [e["path"] for e in fault["errors"]] == ["body.role", "body.tenant", "body.more"]
    assert [e["message_zh"] for e in fault["errors"]] == [
        "应为 'admin', 'registrar' 或 'reader'",
        "应为文本",
        "没有这个字段",
    ]


def test_the_description_is_valid_openapi_and_covers_every_api_path(api: Described) -> None:
    assert api.document["openapi"] == "3.1.0"
    schema = schemathesis.openapi.from_dict(api.document)
    schema.validate()
    operations = [operation["operationId"] for _, _, operation in api.operations()]
    assert len(operations) == len(set(operations)) >= 20
    for _, where, operation in api.operations():
        assert "500" in operation["responses"], where
    with Wire(api.port) as wire:
        for target in ("/api", "/", "/healthz", "/readyz", "/metrics"):
            assert wire.ask("GET", target).status == 200
        assert wire.ask("GET", "/healthz").json == {"status": "ok"}
        assert wire.ask("GET", "/readyz").json == {"status": "ok"}


def test_the_absolute_form_that_proxies_send(api: Described) -> None:
    at = path("absolute")
    api.ask("PUT", at, {"values": [URL]})
    with Wire(api.port) as wire:
        assert wire.ask("GET", f"http://node.test{at}").json["identifier"] == "88.118.8/absolute"
        assert wire.ask("GET", "HTTPS://node.test").code == "not-found"


def test_a_client_that_waits_for_100_continue_is_told_to_go_on(api: Described) -> None:
    headers = {
        "Authorization": f"Bearer {api.key}",
        "Content-Type": "application/json",
        "Content-Length": "13",
        "Expect": "100-continue",
    }
    with Wire(api.port, timeout_s=5) as wire:
        for _ in range(2):
            wire.send(request("PUT", path("expect"), headers))
            assert wire.answer().status == 100
            wire.send(b'{"values":[]}')
            assert wire.answer().status in (200, 201)
        # Refused before its body is wanted: no 100, the reply at once.
        wire.send(request("POST", path("expect"), headers))
        assert wire.answer().status == 405


# Metrics ---------------------------------------------------------------------------------------


def test_metrics_add_up_with_the_requests_made(make_node: Callable[..., RunningNode]) -> None:
    """All that a node was ever asked, refusals and garbage included, is in its counters."""
    own = make_node()
    api = Described(own.port, own.key)
    own.home("88.118.8")
    at = path("counted")
    before = metrics(api)
    for _ in range(3):
        api.ask("PUT", at, {"values": [URL]})
    for _ in range(5):
        api.ask("GET", at, key=None)
    api.ask("GET", path("absent"), key=None)
    api.ask("GET", path("absent"), key=None)
    api.ask("PUT", at, b"{", Content_Type="application/json")
    api.ask("GET", "/api/v1/nowhere")
    api.ask("POST", "/healthz")
    api.ask("PUT", at, {"values": []}, key=None)
    with Wire(api.port) as wire:
        wire.send(b"GARBAGE\r\n\r\n")
        assert wire.answer().status == 400
    after = metrics(api)

    def grown(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    requests = "biaojie_requests_total"
    assert grown(requests, operation="put", outcome="ok") == 3
    assert grown(requests, operation="put", outcome="invalid-request") == 1
    assert grown(requests, operation="put", outcome="unauthenticated") == 1
    assert grown(requests, operation="resolve", outcome="ok") == 5
    assert grown(requests, operation="resolve", outcome="identifier-not-found") == 2
    assert grown(requests, operation="none", outcome="not-found") == 1
    assert grown(requests, operation="none", outcome="method-not-allowed") == 1
    assert grown(requests, operation="none", outcome="invalid-request") == 1
    assert grown(requests, operation="metrics") == 1
    assert grown(requests, front="http") == 16 == grown("biaojie_request_seconds_count")
    assert grown("biaojie_cache_hit_total") == 4
    assert grown("biaojie_cache_miss_total") == 2
    assert grown("biaojie_cache_absent_hit_total") == 1
    assert grown("biaojie_commit_operations_sum") == 3
    assert grown("biaojie_store_seconds_count", call="commit", outcome="ok") == 3
    assert grown("biaojie_store_seconds_count", call="look-up", outcome="ok") >= 2
    assert grown("biaojie_look_up_keys_sum") >= 2
    names = {name for name, _ in after}
    promised = {
        "biaojie_cache_entries",
        "biaojie_cache_bytes",
        "biaojie_cache_absent_entries",
        "biaojie_registry_down",
        "biaojie_log_sequence",
        "biaojie_store_connections_used",
        "biaojie_store_connections_open",
        "biaojie_http_connections",
        "biaojie_http_requests_running",
        "process_resident_memory_bytes",
        "process_open_fds",
    }
    assert promised <= names, promised - names
