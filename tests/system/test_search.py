"""Reverse lookup at a real node: our way, the search servlet's way, library and command line."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import pytest

from biaojie import Client, SyncClient
from biaojie.errors import InvalidRequest, PrefixNotHere, TemporarilyUnavailable
from tests.system.described import Described
from tests.system.test_commands import Shell
from tests.system.wire import Answer, Wire

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.conftest import RunningNode

SEARCH = "/api/v1/identifiers:search"
SHARED = "https://acme.example/a?b=c&d=e+f#g 标识"
VALUES = [{"index": 1, "type": "URL", "data": SHARED}]


@pytest.fixture(scope="module", params=["node", "postgres_node"])
def searched(request: pytest.FixtureRequest) -> RunningNode:
    """A node on either database, with two searchable prefixes of two tenants."""
    node: RunningNode = request.getfixturevalue(request.param)
    for prefix, tenant in (("88.118.70", "acme"), ("88.118.71", "globex")):
        body = {"prefix": prefix, "tenant": tenant, "searchable": ["url", "Checksum"]}
        reply = node.ask("POST", "/api/v1/prefixes", body)
        assert reply.status == 201, reply.body
        assert (reply.json["searchable"], reply.json["indexing"]) == (["CHECKSUM", "URL"], False)
        for n in range(5):
            values = [*VALUES, {"index": 2, "type": "CHECKSUM", "data": f"sum+{n % 2}/="}]
            put(node, f"{prefix}/S{n}", values)
        hidden = [{**VALUES[0], "permissions": "1100"}]
        put(node, f"{prefix}/PRIVATE", hidden)
        put(node, f"{prefix}/DRAFT", VALUES, status="draft")
        put(node, f"{prefix}/GONE", VALUES)
        assert node.ask("DELETE", f"/api/v1/identifiers/{prefix}/GONE").status == 200
    return node


def put(node: RunningNode, name: str, values: Any, **more: Any) -> None:
    path = "/api/v1/identifiers/" + quote(name)
    reply = node.ask("PUT", path, {"values": values, **more})
    assert reply.status in (200, 201), reply.body


def wait_until_indexed(node: RunningNode, prefix: str) -> None:
    deadline = time.monotonic() + 20
    while node.ask("GET", f"/api/v1/prefixes/{prefix}").json["indexing"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def search(client: Described, *values: str, key: str | None = "", **query: Any) -> Answer:
    pairs = [("value", value) for value in values] + list(query.items())
    return client.ask("GET", f"{SEARCH}?{urlencode(pairs)}", key=key)


def suffixes(answer: Answer, prefix: str = "88.118.70") -> list[str]:
    assert answer.status == 200, answer.body
    return [name.partition("/")[2] for name in answer.json["items"] if name.startswith(prefix)]


PUBLIC = ["S0", "S1", "S2", "S3", "S4"]
EVERY = ["DRAFT", "PRIVATE", *PUBLIC]


def test_callers_find_what_they_may_read(searched: RunningNode) -> None:
    api = Described(searched.port, searched.key)
    reader, stranger = searched.issue("reader", "acme"), searched.issue("registrar", "globex")
    wanted = f"URL={SHARED}"
    for key, private in ((None, False), (reader, True), (stranger, False), ("", True)):
        within = search(api, wanted, key=key, prefix="88.118.70")
        assert suffixes(within) == (EVERY if private else PUBLIC), key
        everywhere = search(api, wanted, key=key)
        assert suffixes(everywhere) == (EVERY if key == "" else PUBLIC), key
        assert suffixes(everywhere, "88.118.71") == (EVERY if key == "" else PUBLIC)
        assert within.headers["cache-control"] == "no-store"


def test_all_values_must_match_whole_and_letter_by_letter(searched: RunningNode) -> None:
    api = Described(searched.port)
    here = {"prefix": "88.118.70", "key": None}
    assert suffixes(search(api, f"uRl={SHARED}", "checksum=sum+1/=", **here)) == ["S1", "S3"]
    assert suffixes(search(api, f"URL={SHARED}", "URL=other", **here)) == []
    for other in (SHARED[:-1], SHARED + " ", SHARED.upper(), "*", ""):
        assert suffixes(search(api, f"URL={other}", **here)) == []
    assert suffixes(search(api, "NOTE=x", key=None)) == []


def test_pages(searched: RunningNode) -> None:
    api = Described(searched.port, searched.key)
    names: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = search(api, f"URL={SHARED}", limit=3, **after).json
        names += page["items"]
        assert len(page["items"]) == 3 or page["next"] is None
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert names == [f"88.118.{n}/{suffix}" for n in (70, 71) for suffix in EVERY]


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("", 400, "invalid-request"),
        ("value=URL", 400, "invalid-request"),
        ("value==x", 400, "invalid-request"),
        ("value=" + "T" * 129 + "=x", 400, "invalid-request"),
        ("value=a%00b=x", 400, "invalid-request"),
        ("&".join(f"value=A{n}=x" for n in range(9)), 400, "invalid-request"),
        ("value=URL=x&limit=0", 400, "invalid-request"),
        ("value=URL=x&limit=1001", 400, "invalid-request"),
        ("value=URL=x&after=%21", 400, "invalid-request"),
        ("value=URL=x&after=bm9zbGFzaA==", 400, "invalid-request"),
        ("value=URL=x&type=URL", 400, "invalid-request"),
        ("value=URL=x&prefix=88..1", 400, "invalid-identifier"),
        ("value=URL=x&prefix=88.118.799", 404, "prefix-not-here"),
        ("value=NOTE=x&prefix=88.118.70", 400, "invalid-request"),
    ],
)
def test_questions_that_are_none(searched: RunningNode, query: str, status: int, code: str) -> None:
    answer = Described(searched.port).ask("GET", f"{SEARCH}?{query}")
    assert (answer.status, answer.code) == (status, code), answer.body


def test_cursors_of_any_octets_do_no_harm(searched: RunningNode) -> None:
    api = Described(searched.port)
    for octets in (b"/", b"88.118.70/\xff\x00", b"~/a", b"88.118.70/'; --"):
        after = base64.urlsafe_b64encode(octets).decode()
        assert search(api, f"URL={SHARED}", after=after).status == 200


def test_prefixes_that_are_shut_are_not_searched(searched: RunningNode) -> None:
    api = Described(searched.port, searched.key)
    body = {"prefix": "88.118.72", "tenant": "acme", "searchable": ["URL"]}
    assert api.ask("POST", "/api/v1/prefixes", body).status == 201
    put(searched, "88.118.72/A", [{"index": 1, "type": "URL", "data": "only here"}])
    wanted = "URL=only here"
    assert search(api, wanted, key=None).json["items"] == ["88.118.72/A"]
    at = "/api/v1/prefixes/88.118.72"
    codes = {
        "suspended": "prefix-suspended",
        "delegated": "elsewhere",
        "unhomed": "prefix-not-here",
    }
    for status, code in codes.items():
        assert api.ask("PATCH", at, {"status": status}).status == 200
        assert search(api, wanted, key=None).json == {"items": [], "next": None}
        assert search(api, wanted, prefix="88.118.72", key=None).code == code
        shown = ["88.118.72/A"] if status == "suspended" else []
        assert search(api, wanted).json["items"] == shown
    api.ask("PATCH", at, {"status": "active"})
    assert search(api, wanted, key=None).json["items"] == ["88.118.72/A"]


def test_declared_later_what_is_there_is_found(searched: RunningNode) -> None:
    api = Described(searched.port, searched.key)
    assert (
        api.ask("POST", "/api/v1/prefixes", {"prefix": "88.118.73", "tenant": "a"}).json[
            "searchable"
        ]
        == []
    )
    rows = [
        {"identifier": f"88.118.73/{n:04}", "values": [{"index": 1, "type": "MAIL", "data": "x@y"}]}
        for n in range(700)
    ]
    api.ask("POST", "/api/v1/identifiers:batch", {"mode": "all", "rows": rows})
    at = "/api/v1/prefixes/88.118.73"
    assert search(api, "MAIL=x@y", prefix="88.118.73").code == "invalid-request"
    changed = api.ask("PATCH", at, {"searchable": ["mail"]}, Idempotency_Key="declare-mail")
    assert changed.json["searchable"] == ["MAIL"]
    early = search(api, "MAIL=x@y", limit=1000)  # all of it, or nothing yet
    assert early.status == 503 or len(early.json["items"]) == 700
    wait_until_indexed(searched, "88.118.73")
    assert len(search(api, "MAIL=x@y", limit=1000, key=None).json["items"]) == 700
    assert api.ask("PATCH", at, {"searchable": []}).json["searchable"] == []
    replay = api.ask("PATCH", at, {"searchable": ["mail"]}, Idempotency_Key="declare-mail")
    assert replay.json["searchable"] == ["MAIL"]
    assert replay.headers["idempotency-replayed"] == "true"
    assert search(api, "MAIL=x@y", key=None).json["items"] == []
    wait_until_indexed(searched, "88.118.73")
    for types in (["HS_SECKEY"], [""], ["x"] * 17):
        answer = api.ask("PATCH", at, {"searchable": types})
        assert (answer.status, answer.code) == (400, "invalid-request")


def test_indexing_goes_on_after_a_crash(make_node: Callable[..., RunningNode]) -> None:
    node = make_node()
    node.home("88.118.8")
    for batch in range(3):
        rows = [{"identifier": f"88.118.8/{batch}-{n}", "values": VALUES} for n in range(2_000)]
        body = {"mode": "all", "rows": rows}
        assert node.ask("POST", "/api/v1/identifiers:batch", body).status == 200
    node.ask("PATCH", "/api/v1/prefixes/88.118.8", {"searchable": ["URL"]})
    node.kill()
    node.start()
    wait_until_indexed(node, "88.118.8")
    api = Described(node.port)
    count = 0
    after: dict[str, str] = {}
    while True:
        page = search(api, f"URL={SHARED}", limit=1000, **after).json
        count += len(page["items"])
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert count == 6_000


# As the search servlet ------------------------------------------------------------------


def handles(node: RunningNode, query: str, *, headers: dict[str, str] | None = None) -> Answer:
    with Wire(node.port) as wire:
        return wire.ask("GET", f"/hrls/handles{query}", headers or {})


def test_the_search_servlet_answers_as_its_clients_ask(searched: RunningNode) -> None:
    found = ["88.118.70/S1", "88.118.70/S3", "88.118.71/S1", "88.118.71/S3"]
    # A plus is a plus: these clients write values as they are.
    for path in ("?", "/?", "/?&", "?limit=100&"):
        answer = handles(searched, path + "CHECKSUM=sum+1/=")
        assert (answer.status, answer.json) == (200, found)
        assert answer.headers["content-type"] == "application/json"
    assert handles(searched, "/88.118.70?checksum=sum+1/=").json == found[:2]
    both = f"?URL={quote(SHARED)}&CHECKSUM=sum%2B1%2F%3D"
    assert handles(searched, both).json == found
    assert handles(searched, "?URL=nothing+like+it").json == []
    assert handles(searched, "?CHECKSUM=sum+1/=&limit=3&page=0").json == found[:3]
    assert handles(searched, "?CHECKSUM=sum+1/=&limit=3&page=1").json == found[3:]
    assert handles(searched, "?CHECKSUM=sum+1/=&limit=3&page=2").json == []


def test_the_search_servlet_knows_its_callers(searched: RunningNode) -> None:
    query = f"/88.118.70?URL={quote(SHARED)}"
    public = handles(searched, query).json
    assert public == [f"88.118.70/{suffix}" for suffix in PUBLIC]
    key = {"Authorization": f"Bearer {searched.issue('reader', 'acme')}"}
    assert handles(searched, query, headers=key).json == [f"88.118.70/{s}" for s in EVERY]
    wrong = handles(searched, query, headers={"Authorization": "Bearer nonsense"})
    assert (wrong.status, wrong.code) == (401, "unauthenticated")


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        ("?", 400),
        ("?limit=5", 400),
        ("?URL=*", 400),
        ("?URL=https://acme*", 400),
        ("?URL=x&limit=0", 400),
        ("?URL=x&limit=10001", 400),
        ("?URL=x&limit=x", 400),
        ("?URL=x&limit=1000&page=10", 400),
        ("?URL=x&page=-1", 400),
        ("?URL=x&retrieverecords=true", 400),
        ("?URL=%ff", 400),
        ("?" + "&".join(f"A{n}=x" for n in range(65)), 400),
        ("/88.118.799?URL=x", 404),
        ("/88.118.70?NOTE=x", 400),
    ],
)
def test_what_the_search_servlet_does_not_do_it_says(
    searched: RunningNode, query: str, status: int
) -> None:
    answer = handles(searched, query)
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    if "*" in query:
        assert "wildcard" in answer.json["detail"]


# Library and command line ---------------------------------------------------------------


async def test_the_library_searches(searched: RunningNode) -> None:
    async with Client(searched.url, searched.key) as client:
        found = [str(i) async for i in client.search(URL=SHARED, prefix="88.118.70", page_rows=2)]
        assert found == [f"88.118.70/{suffix}" for suffix in EVERY]
        both = [i async for i in client.search({"URL": SHARED, "CHECKSUM": "sum+1/="})]
        assert [i.prefix for i in both] == ["88.118.70"] * 2 + ["88.118.71"] * 2
        assert [i async for i in client.search([("URL", "none")])] == []
        with pytest.raises(PrefixNotHere):
            await anext(client.search(URL="x", prefix="88.118.799"))
        for values in (
            {},
            {"": "x"},
            {"A=B": "x"},
            {"A": "\udcff"},
            dict.fromkeys("abcdefghi", ""),
        ):
            with pytest.raises(InvalidRequest):
                client.search(values)
        homed = await client.prefixes.home("88.118.74", "acme", searchable="url")
        assert homed.searchable == ("URL",)
        changed = await client.prefixes.change("88.118.74", searchable=["a", "B"])
        assert (changed.searchable, changed.tenant) == (("A", "B"), "acme")
        assert (await client.prefixes.change("88.118.74", searchable=())).searchable == ()
        with pytest.raises(InvalidRequest):
            await client.prefixes.home("88.118.75", "acme", searchable=["hs_seckey"])


def test_the_sync_library_searches(searched: RunningNode) -> None:
    with SyncClient(searched.url) as client:
        found = list(client.search(URL=SHARED, prefix="88.118.71", page_rows=2))
        assert [identifier.suffix for identifier in found] == PUBLIC
        with pytest.raises((InvalidRequest, TemporarilyUnavailable)):
            list(client.search(NOTE="x", prefix="88.118.71"))


def test_the_command_line_searches(
    searched: RunningNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shell = Shell(searched, tmp_path)
    asked = ("search", f"URL={SHARED}", "--prefix", "88.118.70")
    lines = shell(*asked, BIAOJIE_KEY="").split()
    assert lines == [f"88.118.70/{suffix}" for suffix in PUBLIC]
    wanted = (f"URL={SHARED}", "CHECKSUM=sum+0/=", "--prefix", "88.118.70")
    assert shell("search", *wanted, "--json", "--limit", "1") == '"88.118.70/S0"\n'
    assert shell("search", "URL=none", code=1) == ""
    shell("search", "URL", code=2)
    shell("search", "NOTE=x", "--prefix", "88.118.70", code=2)
    home = ("prefix", "home", "88.118.76", "--tenant", "acme", "--json")
    assert '"searchable": ["NOTE", "URL"]' in shell(
        *home, "--searchable", "URL", "--searchable", "note"
    )
    changed = shell("prefix", "set", "88.118.76", "--searchable", "MAIL", "--json")
    assert '"searchable": ["MAIL"]' in changed
    assert '"searchable": []' in shell("prefix", "set", "88.118.76", "--not-searchable", "--json")
    moved = shell("prefix", "set", "88.118.76", "--tenant", "globex", "--json")
    assert '"tenant": "globex", ' in moved
    shell("prefix", "set", "88.118.76", code=2)
    shell("prefix", "set", "88.118.76", "--searchable", "A", "--not-searchable", code=2)
