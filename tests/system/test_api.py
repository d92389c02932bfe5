"""Every operation of the HTTP API as a user meets it; each reply is held against its schema."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import schemathesis
from prometheus_client.parser import text_string_to_metric_families

from tests.system.described import Described
from tests.system.wire import Answer, Wire, request, until

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

IDS = "/api/v1/identifiers"
URL = {"index": 1, "type": "URL", "data": "https://acme.example/1"}


def value(index: int, data: str, type_: str = "URL", **more: Any) -> dict[str, Any]:
    return {"index": index, "type": type_, "data": data, **more}


@pytest.fixture(scope="module")
def api(node: RunningNode) -> Described:
    return Described(node.port, node.key)


def path(name: str) -> str:
    return f"{IDS}/88.118.8/{quote(name)}"


def data(answer: Answer) -> dict[int, str]:
    return {v["index"]: v["data"] for v in answer.json["values"]}


# One record -----------------------------------------------------------------------------


def test_the_life_of_a_record(api: Described) -> None:
    at = path("life/1")
    assert api.ask("GET", at, key=None).code == "identifier-not-found"
    created = api.ask("PUT", at, {"values": [URL]})
    assert created.status == 201
    assert created.json["action"] == "create"
    assert created.headers["location"] == at
    assert created.headers["etag"] == f'"1.{created.json["sequence"]}"'
    found = api.ask("GET", at, key=None)
    assert (found.status, data(found)) == (200, {1: "https://acme.example/1"})
    replaced = api.ask("PUT", at, {"values": [value(2, "b"), value(3, "c")]})
    assert (replaced.status, replaced.json["version"]) == (200, 2)
    changed = api.ask("PATCH", at, {"set": [value(3, "C"), value(4, "d")], "remove": [2]})
    assert (changed.status, changed.json["action"]) == (200, "modify")
    assert data(api.ask("GET", at, key=None)) == {3: "C", 4: "d"}
    assert api.ask("PATCH", at, {"remove": [2]}).code == "value-not-found"
    assert api.ask("PATCH", at, {"status": "frozen"}).json["status"] == "frozen"
    assert api.ask("PATCH", at, {"set": [URL]}).code == "record-frozen"
    assert api.ask("GET", at, key=None).json["status"] == "frozen"
    assert api.ask("PATCH", at, {"status": "draft"}).status == 200
    assert api.ask("GET", at, key=None).status == 404
    assert api.ask("GET", at).json["status"] == "draft"
    retired = api.ask("DELETE", at)
    assert (retired.status, retired.json["status"]) == (200, "retired")
    for repeat in (
        api.ask("GET", at, key=None),
        api.ask("DELETE", at),
        api.ask("PUT", at, {"values": []}),
        api.ask("POST", IDS, {"identifier": "88.118.8/life/1", "values": []}),
    ):
        assert (repeat.status, repeat.code) == (410, "identifier-retired")
    purged = api.ask("DELETE", at + "?purge=true")
    assert (purged.json["action"], purged.json["status"]) == ("purge", "purged")
    assert "etag" not in purged.headers
    assert api.ask("GET", at).status == 404
    assert api.ask("PUT", at, {"values": []}).json["version"] == 1


def test_names_keep_their_first_spelling_and_match_in_any_case(api: Described) -> None:
    given = "Näme 标识/#?%"
    assert api.ask("PUT", path(given), {"values": [URL]}).status == 201
    found = api.ask("GET", f"{IDS}/88.118.8%2F{quote(given.replace('N', 'n'))}", key=None)
    assert found.json["identifier"] == "88.118.8/" + given
    pasted = f"https://node.test/88.118.8/{quote(given)}"
    assert api.ask("GET", f"{IDS}/{quote(pasted, safe='')}", key=None).status == 200
    taken = api.ask(
        "POST", IDS, {"identifier": "88.118.8/" + given.replace("N", "n"), "values": []}
    )
    assert (taken.status, taken.code) == (409, "identifier-taken")


def test_octets_times_and_references_come_back_as_sent(api: Described) -> None:
    at = path("octets")
    sent = [
        {"index": 1, "type": "RAW", "data": {"format": "base64", "value": "AP+A"}, "ttl": 60},
        {"index": 2, "type": "RAW", "data": {"format": "hex", "value": "00ff80"}},
        {
            "index": 3,
            "type": "TXT",
            "data": "标\u0000",
            "ttl": "2031-02-03T04:05:06Z",
            "references": [{"identifier": "88.118.8/other", "index": 7}],
        },
    ]
    assert api.ask("PUT", at, {"values": sent}).status == 201
    first, second, third = api.ask("GET", at, key=None).json["values"]
    assert first["data"] == second["data"] == {"format": "base64", "value": "AP+A"}
    assert third["data"] == "标\u0000"
    assert third["ttl"] == "2031-02-03T04:05:06Z"
    assert third["references"] == [{"identifier": "88.118.8/other", "index": 7}]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", third["timestamp"])


def test_a_secret_type_without_permissions_is_secret(api: Described) -> None:
    at = path("secret-type")
    sent = {"values": [{"index": 1, "type": "HS_SECKEY", "data": "k"}, value(2, "b")]}
    assert api.ask("PUT", at, sent).status == 201
    assert data(api.ask("GET", at, key=None)) == {2: "b"}
    assert api.ask("GET", at).json["values"][0]["permissions"] == "1100"


def test_minting(api: Described) -> None:
    minted = api.ask("POST", IDS, {"prefix": "88.118.8", "suffix_start": "M-", "values": [URL]})
    assert minted.status == 201
    name = minted.json["identifier"]
    assert re.fullmatch(r"88\.118\.8/M-[0-9A-HJKMNP-TV-Z]{26}", name)
    assert minted.headers["location"] == f"{IDS}/{name}"
    assert api.ask("GET", minted.headers["location"], key=None).json["identifier"] == name
    body = {"prefix": "88.118.8", "values": [URL]}
    first, again = (api.ask("POST", IDS, body, Idempotency_Key="mint-1") for _ in range(2))
    assert first.body == again.body
    assert api.ask("POST", IDS, {"values": []}).code == "invalid-request"
    both = {"identifier": "88.118.8/x", "prefix": "88.118.8", "values": []}
    assert api.ask("POST", IDS, both).code == "invalid-request"


# Conditions and caching -------------------------------------------------------------------


def test_etags_and_conditions(api: Described) -> None:
    at = path("etag")
    api.ask("PUT", at, {"values": [URL]})
    found = api.ask("GET", at, key=None)
    tag = found.headers["etag"]
    assert re.fullmatch(r'"1\.\d+"', tag)
    for given in (tag, f"W/{tag}", "*", f'"x", {tag}'):
        kept = api.ask("GET", at, key=None, If_None_Match=given)
        assert (kept.status, kept.body, kept.headers["etag"]) == (304, b"", tag)
    assert api.ask("GET", at, key=None, If_None_Match='"1.0"').status == 200
    private = api.ask("GET", at).headers["etag"]
    assert private == tag[:-1] + '.p"'
    assert api.ask("GET", at, If_None_Match=tag).status == 200
    assert api.ask("GET", at, If_None_Match=private).status == 304

    body = {"values": [URL]}
    for wrong in ('"2"', '"1.1"', "7"):
        stale = api.ask("PUT", at, body, If_Match=wrong)
        assert (stale.status, stale.code) == (412, "version-mismatch")
        assert stale.json["version"] == 1
    assert api.ask("PUT", at, body, If_None_Match="*").status == 412
    assert api.ask("PUT", at, body, If_Match=private).json["version"] == 2
    assert api.ask("PATCH", at, {}, If_Match='"2"').json["version"] == 3
    assert api.ask("DELETE", at, If_Match='"2"').status == 412
    assert api.ask("PUT", path("etag-2"), body, If_Match="*").status == 412
    assert api.ask("PUT", path("etag-2"), body, If_None_Match="*").status == 201
    assert api.ask("DELETE", at, If_Match="*").status == 200
    for bad in ("abc", '"1.2.3"', '"1", "2"', ""):
        assert api.ask("PATCH", at, {}, If_Match=bad).code == "invalid-request"


def test_cache_headers_and_sources(api: Described) -> None:
    at = path("cached")
    api.ask("PUT", at, {"values": [value(1, "a", ttl=77), value(2, "b", ttl=500)]})
    first = api.ask("GET", at, key=None)
    assert first.headers["biaojie-source"] == "store"
    assert first.headers["cache-control"] == "public, max-age=77"
    again = api.ask("GET", at, key=None)
    assert again.headers["biaojie-source"] == "cache"
    assert int(again.headers["cache-control"].removeprefix("public, max-age=")) in (76, 77)
    asked = api.ask("GET", at + "?auth=1", key=None)
    assert asked.headers["biaojie-source"] == "store"
    mine = api.ask("GET", at)
    assert mine.headers["cache-control"] == "private, max-age=77"
    assert mine.headers["biaojie-source"] == "store"
    assert "Authorization" in mine.headers["vary"]
    api.ask("PUT", at, {"values": [value(1, "new", ttl=0)]})
    after = api.ask("GET", at, key=None)
    assert data(after) == {1: "new"}
    assert after.headers["cache-control"] == "public, max-age=0"
    assert api.ask("GET", path("absent"), key=None).headers["cache-control"] == "no-store"
    assert api.ask("GET", f"{IDS}/10.1/x", key=None).code == "prefix-not-here"


def test_only_the_values_asked_for(api: Described) -> None:
    at = path("filtered")
    values = [
        value(1, "a"),
        value(2, "b", "EMAIL"),
        value(3, "c", "URL.IMAGE"),
        value(4, "d", "HS_PUBKEY", permissions="1100"),
    ]
    api.ask("PUT", at, {"values": values})

    def seen(query: str, key: str | None = None) -> list[int]:
        return list(data(api.ask("GET", at + query, key=key)))

    assert seen("") == [1, 2, 3]
    assert seen("", "") == [1, 2, 3, 4]
    assert seen("?index=2&index=3") == [2, 3]
    assert seen("?type=url") == [1]
    assert seen("?type=URL.") == [1, 3]
    assert seen("?type=EMAIL&index=1") == [1, 2]
    assert seen("?index=4") == []
    assert seen("?index=4", "") == [4]
    assert seen("?type=NONE") == []


def test_head_and_cors(api: Described) -> None:
    at = path("head")
    api.ask("PUT", at, {"values": [URL]})
    whole = api.ask("GET", at, key=None)
    head = api.ask("HEAD", at, key=None)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.body))
    assert head.headers["etag"] == whole.headers["etag"]
    assert whole.headers["access-control-allow-origin"] == "*"
    assert "ETag" in whole.headers["access-control-expose-headers"]
    assert api.ask("HEAD", path("nobody"), key=None).status == 404
    preflight = api.ask(
        "OPTIONS", at, Origin="https://app.example", Access_Control_Request_Method="GET"
    )
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-methods"] == "GET, HEAD"
    assert "If-None-Match" in preflight.headers["access-control-allow-headers"]
    assert preflight.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"
    batch = api.ask("OPTIONS", IDS + ":batch")
    assert (batch.status, batch.headers["allow"]) == (204, "OPTIONS, POST")
    assert "access-control-allow-methods" not in batch.headers
    wrong = api.ask("POST", at, {})
    assert (wrong.status, wrong.code) == (405, "method-not-allowed")
    assert wrong.headers["allow"] == preflight.headers["allow"]
    written = api.ask("PUT", at, {"values": []})
    assert "access-control-allow-origin" not in written.headers


# Idempotency ------------------------------------------------------------------------------


def test_the_same_key_gets_the_same_reply(api: Described) -> None:
    at, body = path("once"), {"values": [URL]}
    first = api.ask("PUT", at, body, Idempotency_Key="once-1")
    again = api.ask("PUT", at, body, Idempotency_Key="once-1")
    assert (first.status, first.body) == (again.status, again.body)
    assert (first.headers["etag"], 201) == (again.headers["etag"], again.status)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    for other in (
        api.ask("PUT", at, {"values": []}, Idempotency_Key="once-1"),
        api.ask("PUT", path("once-2"), body, Idempotency_Key="once-1"),
        api.ask("PUT", at, body, Idempotency_Key="once-1", If_Match="*"),
        api.ask("DELETE", at, Idempotency_Key="once-1"),
    ):
        assert (other.status, other.code) == (422, "idempotency-mismatch")
    assert api.ask("PUT", at, body, Idempotency_Key="o" * 256).code == "invalid-request"
    for method, target, sent, code in (
        ("DELETE", at, None, 200),
        ("POST", "/api/v1/prefixes", {"prefix": "88.118.40", "tenant": "acme"}, 201),
        ("PATCH", "/api/v1/prefixes/88.118.40", {"tenant": "other"}, 200),
        ("POST", IDS + ":batch", {"mode": "all", "rows": [{"identifier": "88.118.8/o3"}]}, 200),
    ):
        name = f"once-{method}-{target}"
        one, two = (api.ask(method, target, sent, Idempotency_Key=name) for _ in range(2))
        assert (one.status, one.body) == (code, two.body)
        assert two.headers["idempotency-replayed"] == "true", target
    issued = api.ask("POST", "/api/v1/keys", {"role": "reader", "tenant": "acme"})
    one, two = (
        api.ask("DELETE", f"/api/v1/keys/{issued.json['id']}", Idempotency_Key="revoke-1")
        for _ in range(2)
    )
    assert (one.status, one.body) == (200, two.body)
    assert two.headers["idempotency-replayed"] == "true"


def test_a_key_belongs_to_its_caller(api: Described, node: RunningNode) -> None:
    other = node.issue("registrar", "globex")
    api.ask("PUT", path("mine"), {"values": [URL]}, Idempotency_Key="shared")
    theirs = api.ask(
        "PUT", IDS + "/88.118.9/theirs", {"values": []}, key=other, Idempotency_Key="shared"
    )
    assert theirs.status == 201


def test_simultaneous_requests_with_one_key(api: Described) -> None:
    """200 at once: one is done, the others get its reply or are told that it is running."""
    at, sent = path("race"), b'{"values":[]}'
    headers = {
        "Authorization": f"Bearer {api.key}",
        "Content-Type": "application/json",
        "Idempotency-Key": "race-1",
    }
    wires = [Wire(api.port) for _ in range(200)]
    try:
        for wire in wires:
            wire.send(request("PUT", at, headers, sent))
        answers = [wire.answer() for wire in wires]
    finally:
        for wire in wires:
            wire.socket.close()
    kinds = {(a.status, a.headers.get("idempotency-replayed", "")) for a in answers}
    assert kinds <= {(201, ""), (201, "true"), (409, "")}
    assert sum(a.status == 201 and "idempotency-replayed" not in a.headers for a in answers) == 1
    assert len({a.body for a in answers if a.status == 201}) == 1
    assert {a.code for a in answers if a.status == 409} <= {"idempotency-running"}
    assert api.ask("GET", at).json["version"] == 1


def test_one_name_registered_by_many_at_once_has_one_winner(api: Described) -> None:
    headers = {"Authorization": f"Bearer {api.key}", "Content-Type": "application/json"}
    body = b'{"identifier":"88.118.8/contested","values":[]}'
    with ThreadPoolExecutor(24) as pool:
        wires = [Wire(api.port) for _ in range(24)]
        answers = list(pool.map(lambda wire: wire.ask("POST", IDS, headers, body), wires))
        for wire in wires:
            wire.socket.close()
    assert sorted(a.status for a in answers) == [201] + [409] * 23


# Many at once -------------------------------------------------------------------------------


def batch(api: Described, mode: str, rows: list[Any], **more: Any) -> Answer:
    return api.ask("POST", IDS + ":batch", {"mode": mode, "rows": rows, **more})


def test_batches(api: Described) -> None:
    api.ask("PUT", path("b0"), {"values": [URL]})
    good = [
        {"identifier": "88.118.8/b1", "values": [URL]},
        {"action": "put", "identifier": "88.118.8/b0", "values": [value(5, "five")]},
        {"identifier": "88.118.8/b2", "status": "draft"},
        {"action": "retire", "identifier": "88.118.8/b1"},
    ]
    dry = batch(api, "all", good, dry_run=True).json
    assert (dry["dry_run"], dry["sequence"], dry["written"], dry["failed"]) == (True, 0, 0, 0)
    assert all(row["ok"] for row in dry["rows"])
    assert api.ask("GET", path("b1")).status == 404
    done = batch(api, "all", good).json
    assert [row["action"] for row in done["rows"]] == ["create", "put", "create", "retire"]
    assert (done["written"], done["failed"], done["mode"]) == (4, 0, "all")
    assert done["sequence"] == done["rows"][0]["sequence"] > 0
    assert api.ask("GET", path("b1")).status == 410
    assert data(api.ask("GET", path("b0"), key=None)) == {5: "five"}

    bad = [
        {"identifier": "88.118.8/b3"},
        {"identifier": "88.118.8/b0"},
        {"identifier": "no slash"},
        {"identifier": "88.118.8/b4", "values": [URL, URL]},
        {"identifier": "88.118.8/b5", "values": [{"index": 0}]},
        {"identifier": "10.1/b6"},
        "not even an object",
        {"action": "retire", "identifier": "88.118.8/nobody"},
        {"action": "modify", "identifier": "88.118.8/b0"},
        {"identifier": "88.118.8/b7", "template": "not one"},
        {"identifier": "88.118.8/b3"},
    ]
    codes = [
        "",
        "identifier-taken",
        "invalid-identifier",
        "invalid-record",
        "invalid-request",
        "prefix-not-here",
        "invalid-request",
        "identifier-not-found",
        "invalid-request",
        "invalid-identifier",
        "identifier-taken",
    ]
    refused = batch(api, "all", bad)
    assert (refused.status, refused.code) == (422, "batch-rejected")
    named = {row["row"]: row["code"] for row in refused.json["rows"]}
    # The first of the two that want one name is not at fault.
    assert named == {number: code for number, code in enumerate(codes, 1) if code}
    assert api.ask("GET", path("b3")).status == 404
    taken = batch(api, "valid-rows", bad)
    assert taken.status == 200
    assert [row.get("code", "") for row in taken.json["rows"]] == codes
    assert [row["row"] for row in taken.json["rows"]] == list(range(1, 12))
    assert (taken.json["written"], taken.json["failed"]) == (1, 10)
    assert all(row["detail"] and row["detail_zh"] for row in taken.json["rows"][1:])
    assert api.ask("GET", path("b3")).status == 200


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"identifier": "88.118.8/b0", "values": []}, "identifier-taken"),
        ({"identifier": "88.118.8/b9", "template": "x"}, "invalid-identifier"),
        ({"identifier": "10.1/x"}, "prefix-not-here"),
        ({"action": "retire", "identifier": "88.118.8/nobody"}, "identifier-not-found"),
        ({}, "invalid-request"),
    ],
)
def test_a_batch_of_one_bad_row(api: Described, row: dict[str, Any], code: str) -> None:
    api.ask("PUT", path("b0"), {"values": [URL]})
    refused = batch(api, "all", [row])
    assert (refused.status, refused.code) == (422, "batch-rejected")
    assert [(r["row"], r["code"]) for r in refused.json["rows"]] == [(1, code)]
    kept = batch(api, "valid-rows", [row]).json
    assert (kept["written"], kept["sequence"], kept["rows"][0]["code"]) == (0, 0, code)


def test_a_full_batch_and_one_row_more(api: Described) -> None:
    rows = [{"identifier": f"88.118.8/full-{n}", "values": [URL]} for n in range(2000)]
    done = batch(api, "all", rows).json
    assert (done["written"], len(done["rows"])) == (2000, 2000)
    more = batch(api, "valid-rows", [*rows, {"identifier": "88.118.8/full-2000"}])
    assert (more.status, more.code, more.json["rows_max"]) == (413, "too-large", 2000)
    assert api.ask("GET", path("full-2000")).status == 404
    assert batch(api, "all", []).code == "invalid-request"


def test_resolving_many(api: Described) -> None:
    api.ask("PUT", path("many"), {"values": [URL, value(2, "b", permissions="1100")]})
    api.ask("PUT", path("many-draft"), {"values": [], "status": "draft"})
    texts = [
        "88.118.8/many",
        "hdl:88.118.8/MANY",
        "nonsense",
        "88.118.8/none",
        "10.1/x",
        "88.118.8/many-draft",
        "88.118.8/many",
    ]
    asked = {"identifiers": texts}
    items = api.ask("POST", IDS + ":resolve", asked, key=None).json["items"]
    assert [item["identifier"] for item in items] == texts
    codes = [item.get("code") for item in items]
    missing = "identifier-not-found"
    expected = [None, None, "invalid-identifier", missing, "prefix-not-here", missing, None]
    assert codes == expected
    assert [v["index"] for v in items[1]["record"]["values"]] == [1]
    mine = api.ask("POST", IDS + ":resolve", asked).json["items"]
    assert [v["index"] for v in mine[0]["record"]["values"]] == [1, 2]
    assert mine[5]["record"]["status"] == "draft"
    too_many = api.ask("POST", IDS + ":resolve", {"identifiers": ["a"] * 1001}, key=None)
    assert too_many.code == "invalid-request"


# Lists ---------------------------------------------------------------------------------------


def pages(api: Described, target: str, limit: int, key: str | None = "") -> list[Any]:
    """All items of a list, page by page."""
    items: list[Any] = []
    after = ""
    for _ in range(200):
        page = api.ask("GET", f"{target}limit={limit}{after}", key=key).json
        items += page["items"]
        assert len(page["items"]) <= limit
        if page["next"] is None:
            return items
        after = f"&after={quote(page['next'])}"
    raise AssertionError("the list has no end")


def test_pages_have_no_gaps_or_doubles_while_others_insert(api: Described) -> None:
    api.ask("POST", "/api/v1/prefixes", {"prefix": "88.118.41", "tenant": "acme"})
    names = [f"88.118.41/n{number:03}" for number in range(0, 120, 2)]
    assert batch(api, "all", [{"identifier": name} for name in names]).status == 200
    api.ask("DELETE", f"{IDS}/{names[3]}")
    stop = threading.Event()

    def insert() -> int:
        number = 1
        while not stop.is_set() and number < 120:
            api.ask("PUT", f"{IDS}/88.118.41/n{number:03}", {"values": []})
            number += 2
        return number

    with ThreadPoolExecutor(1) as pool:
        inserted = pool.submit(insert)
        try:
            items = pages(api, f"{IDS}?prefix=88.118.41&", 7)
        finally:
            stop.set()
        assert inserted.result(10) > 1
    seen = [item["identifier"] for item in items]
    assert all(a < b for a, b in pairwise(seen))
    assert set(names) <= set(seen)
    tombstone = items[seen.index(names[3])]
    assert (tombstone["status"], tombstone["values"]) == ("retired", [])
    assert api.ask("GET", f"{IDS}?prefix=88.118.41&after=!!").code == "invalid-request"
    assert api.ask("GET", f"{IDS}?prefix=88.118.41&limit=0").code == "invalid-request"
    assert api.ask("GET", f"{IDS}?prefix=88.118.41&limit=1001").code == "invalid-request"
    assert api.ask("GET", f"{IDS}?prefix=10.1").code == "prefix-not-here"
    assert api.ask("GET", IDS).code == "invalid-request"


def test_a_page_ends_early_when_it_is_heavy(api: Described) -> None:
    api.ask("POST", "/api/v1/prefixes", {"prefix": "88.118.42", "tenant": "acme"})
    heavy = [value(n, "x" * 60_000) for n in range(1, 5)]
    names = [f"88.118.42/h{n:03}" for n in range(90)]
    for part in (names[:30], names[30:60], names[60:]):
        rows = [{"identifier": name, "values": heavy} for name in part]
        assert batch(api, "all", rows).status == 200
    with Wire(api.port, timeout_s=20) as wire:
        first = wire.ask(
            "GET",
            f"{IDS}?prefix=88.118.42&limit=1000",
            {"Authorization": f"Bearer {api.key}"},
        )
    assert first.status == 200
    assert len(first.body) < 5 * 2**20
    assert first.json["next"]
    items = pages(api, f"{IDS}?prefix=88.118.42&", 1000)
    assert [item["identifier"] for item in items] == names


def test_lists_of_prefixes_and_keys(api: Described) -> None:
    for number in range(43, 48):
        body = {"prefix": f"88.118.{number}", "tenant": "lister"}
        assert api.ask("POST", "/api/v1/prefixes", body).status == 201
    everything = [item["prefix"] for item in pages(api, "/api/v1/prefixes?", 2)]
    assert everything == sorted(everything)
    assert {f"88.118.{number}" for number in range(43, 48)} <= set(everything)
    keys = [
        api.ask("POST", "/api/v1/keys", {"role": "reader", "tenant": "lister", "label": f"k{n}"})
        for n in range(5)
    ]
    listed = pages(api, "/api/v1/keys?", 2)
    ids = [item["id"] for item in listed]
    assert ids == sorted(set(ids))
    assert {key.json["id"] for key in keys} <= set(ids)
    assert "bj_" not in str(listed)
    own = pages(api, "/api/v1/prefixes?", 2, key=keys[0].json["key"])
    assert [item["prefix"] for item in own] == [f"88.118.{number}" for number in range(43, 48)]
    assert api.ask("GET", "/api/v1/keys?after=%ff").code == "invalid-request"
    assert api.ask("GET", "/api/v1/keys?after=_w==").code == "invalid-request"


def test_prefixes_and_keys(api: Described) -> None:
    body = {"prefix": "20.500.ABC", "tenant": "acme"}
    made = api.ask("POST", "/api/v1/prefixes", body)
    assert (made.status, made.json["status"], made.json["version"]) == (201, "active", 1)
    again = api.ask("POST", "/api/v1/prefixes", body | {"prefix": "20.500.abc"})
    assert (again.status, again.code) == (409, "prefix-taken")
    at = "/api/v1/prefixes/20.500.abc"
    assert api.ask("GET", at).json == made.json
    api.ask("PUT", f"{IDS}/20.500.abc/x", {"values": [URL]})
    assert api.ask("GET", f"{IDS}/20.500.abc/x", key=None).status == 200
    assert api.ask("PATCH", at, {"status": "suspended"}).json["status"] == "suspended"
    closed = api.ask("GET", f"{IDS}/20.500.abc/x", key=None)
    assert (closed.status, closed.code) == (403, "prefix-suspended")
    assert api.ask("PATCH", at, {"status": "active", "tenant": "globex"}).json["version"] == 3
    assert api.ask("GET", f"{IDS}/20.500.abc/x", key=None).status == 200
    assert api.ask("PATCH", "/api/v1/prefixes/10.1", {}).code == "prefix-not-here"
    assert api.ask("GET", "/api/v1/prefixes/a%20b").code == "invalid-identifier"

    issued = api.ask(
        "POST", "/api/v1/keys", {"role": "registrar", "tenant": "acme", "label": "线 3"}
    )
    secret = issued.json["key"]
    assert re.fullmatch(r"bj_[0-9a-z]{8}_[A-Za-z0-9_-]{43}", secret)
    assert issued.headers["cache-control"] == "no-store"
    assert api.ask("PUT", path("by-key"), {"values": []}, key=secret).status == 201
    revoked = api.ask("DELETE", f"/api/v1/keys/{issued.json['id']}")
    assert revoked.json["revoked"]
    assert api.ask("DELETE", f"/api/v1/keys/{issued.json['id']}").json == revoked.json
    assert api.ask("PUT", path("by-key"), {"values": []}, key=secret).status == 401
    assert api.ask("DELETE", "/api/v1/keys/nobody00").code == "not-found"
    assert api.ask("POST", "/api/v1/keys", {"role": "reader"}).status == 400


# Changes -------------------------------------------------------------------------------------


def end_of_log(api: Described) -> int:
    after = 0
    while True:
        page = api.ask("GET", f"/api/v1/changes?after={after}&limit=1000").json
        if not page["items"]:
            return after
        after = page["next"]


def test_changes_are_chained_and_complete(api: Described) -> None:
    start = end_of_log(api)
    for number in range(7):
        api.ask("PUT", path(f"logged-{number}"), {"values": [URL]})
    batch(api, "all", [{"identifier": f"88.118.8/logged-b{n}"} for n in range(3)])
    entries: list[Any] = []
    after = start
    while len(entries) < 8:
        page = api.ask("GET", f"/api/v1/changes?after={after}&limit=3").json
        entries += page["items"]
        after = page["next"]
        assert page["items"]
        assert after == entries[-1]["sequence"]
    assert [entry["sequence"] for entry in entries] == list(range(start + 1, start + 9))
    for one, two in pairwise(entries):
        assert two["previous"] == one["hash"]
    assert (entries[-1]["count"], len(entries[-1]["changes"])) == (3, 3)
    assert entries[0]["changes"][0]["subject"] == "88.118.8/logged-0"
    empty = api.ask("GET", f"/api/v1/changes?after={after}").json
    assert empty == {"items": [], "next": after}
    beyond = api.ask("GET", f"/api/v1/changes?after={2**63 - 1}").json
    assert beyond["items"] == []


def test_a_long_poll_wakes_at_once_and_ends_on_time(api: Described) -> None:
    start = end_of_log(api)
    headers = {"Authorization": f"Bearer {api.key}"}
    target = f"/api/v1/changes?after={start}&wait=20"
    with Wire(api.port, timeout_s=5) as waiting, Wire(api.port, timeout_s=5) as second:
        waiting.send(request("GET", target, headers))
        second.send(request("GET", target, headers))
        until(lambda: running(api) >= 0)
        time.sleep(0.3)  # let both come to rest: an answer that came now would be wrong
        written = api.ask("PUT", path("news"), {"values": []})
        began = time.monotonic()
        page = waiting.answer()
        took = time.monotonic() - began
        assert [item["sequence"] for item in page.json["items"]] == [written.json["sequence"]]
        assert took < 0.2, f"woke after {took:.3f} s"
        assert second.answer().json == page.json
    after = written.json["sequence"]
    began = time.monotonic()
    page = api.ask("GET", f"/api/v1/changes?after={after}&wait=0.6")
    assert page.json == {"items": [], "next": after}
    assert 0.55 < time.monotonic() - began < 1.2
    began = time.monotonic()
    assert api.ask("GET", f"/api/v1/changes?after={start}&wait=20").json["items"]
    assert time.monotonic() - began < 0.5
    for bad in ("wait=31", "wait=-1", "wait=nan", "wait=inf", "after=-1", f"after={2**63}"):
        assert api.ask("GET", f"/api/v1/changes?{bad}").code == "invalid-request"


def running(api: Described) -> float:
    return metrics(api)[("biaojie_http_requests_running", ())]


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
    assert len(operations) == len(set(operations)) == 20
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

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def metrics(api: Described) -> Series:
    with Wire(api.port) as wire:
        text = wire.ask("GET", "/metrics").body.decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(series: Series, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(v for (n, given), v in series.items() if n == name and wanted <= set(given))


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
