"""Batches, lists and the change log as a user meets them; each reply is held against its schema."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.described import (
    IDS,
    URL,
    Described,
    batch,
    data,
    end_of_log,
    pages,
    path,
    value,
)
from tests.system.wire import Wire, request

if TYPE_CHECKING:
    pass


# Many at once -------------------------------------------------------------------------------


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
    assert [item.get("source") for item in items[:3]] == ["store", "store", None]
    again = api.ask("POST", IDS + ":resolve", asked, key=None).json["items"]
    assert (again[0]["source"], again[0]["age_s"]) == ("cache", 0)
    mine = api.ask("POST", IDS + ":resolve", asked).json["items"]
    assert [v["index"] for v in mine[0]["record"]["values"]] == [1, 2]
    assert mine[5]["record"]["status"] == "draft"
    too_many = api.ask("POST", IDS + ":resolve", {"identifiers": ["a"] * 1001}, key=None)
    assert too_many.code == "invalid-request"


# Lists ---------------------------------------------------------------------------------------


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
    waits = []
    after = start
    for _ in range(4):
        target = f"/api/v1/changes?after={after}&wait=20"
        with Wire(api.port, timeout_s=5) as waiting, Wire(api.port, timeout_s=5) as second:
            waiting.send(request("GET", target, headers))
            second.send(request("GET", target, headers))
            assert waiting.silent(0.1)
            assert second.silent(0)
            written = api.ask("PUT", path("news"), {"values": []})
            began = time.monotonic()
            page = waiting.answer()
            waits.append(time.monotonic() - began)
            assert [item["sequence"] for item in page.json["items"]] == [written.json["sequence"]]
            assert second.answer().json == page.json
        after = written.json["sequence"]
    assert min(waits) < 0.1, waits  # sooner than one who looks now and then
    began = time.monotonic()
    page = api.ask("GET", f"/api/v1/changes?after={after}&wait=0.6")
    assert page.json == {"items": [], "next": after}
    assert 0.55 < time.monotonic() - began < 2
    began = time.monotonic()
    assert api.ask("GET", f"/api/v1/changes?after={start}&wait=20").json["items"]
    assert time.monotonic() - began < 2
    for bad in ("wait=31", "wait=-1", "wait=nan", "wait=inf", "after=-1", f"after={2**63}"):
        assert api.ask("GET", f"/api/v1/changes?{bad}").code == "invalid-request"
