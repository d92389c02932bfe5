"""Ranges at a real node: one call, and every member answers on every front."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from biaojie import Client, SyncClient
from biaojie.errors import (
    BiaojieError,
    IdentifierNotFound,
    IdentifierRetired,
    IdentifierTaken,
    InvalidRecord,
    InvalidRequest,
    NotFound,
    RangeTaken,
)
from biaojie.record import Record
from tests.system.described import Described
from tests.system.test_commands import Shell

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.conftest import RunningNode

RANGES = "/api/v1/ranges"
PREFIX = "88.118.80"


@pytest.fixture(scope="module", params=["node", "postgres_node"])
def ranged(request: pytest.FixtureRequest) -> RunningNode:
    """A node on either database, with a range of 100 million."""
    node: RunningNode = request.getfixturevalue(request.param)
    node.home(PREFIX)
    fronts = addresses(node)
    for url in fronts:  # they remember that it is not there
        with SyncClient(url) as client, pytest.raises(IdentifierNotFound):
            client.resolve(f"{PREFIX}/SN00000042")
    with SyncClient(node.url, node.key) as client:
        receipt = client.ranges.register(
            PREFIX, "SN{00000000..99999999}", {"URL": "https://acme.example/p/{suffix}?n={number}"}
        )
    assert receipt.identifier == PREFIX + "/SN{00000000..99999999}"
    assert (receipt.action, receipt.status, receipt.version) == ("register-range", "active", 1)
    return node


def addresses(node: RunningNode) -> list[str]:
    return [node.url, node.native_url, f"hdl://127.0.0.1:{node.handle_port}"]


def test_members_resolve_at_once_on_every_front(ranged: RunningNode) -> None:
    for url in addresses(ranged):
        with SyncClient(url) as client:
            for number in ("00000042", "00000000", "99999999", "31415926"):
                found = client.resolve(f"{PREFIX}/sn{number}").record
                text = f"https://acme.example/p/SN{number}?n={number}"
                assert [value.text for value in found.values] == [text], url
            with pytest.raises(IdentifierNotFound):
                client.resolve(f"{PREFIX}/SN000000420")


def test_a_member_is_changed_on_any_front(ranged: RunningNode) -> None:
    with (
        SyncClient(ranged.url, ranged.key) as client,
        SyncClient(ranged.native_url, ranged.key) as native,
        SyncClient(addresses(ranged)[2]) as handle,
    ):
        with pytest.raises(IdentifierTaken):
            client.register(f"{PREFIX}/SN00000100", {})
        with pytest.raises(IdentifierTaken):
            native.register(f"{PREFIX}/SN00000100", {})
        native.register(f"{PREFIX}/SN00000100", {"URL": "https://own.example/"}, overwrite=True)
        client.modify(f"{PREFIX}/SN00000101", status="frozen")
        native.retire(f"{PREFIX}/SN00000102")
        client.purge(f"{PREFIX}/SN00000103")
        for face in (client, native):
            own = face.resolve(f"{PREFIX}/SN00000100").record
            assert (own.version, own.values[0].text) == (2, "https://own.example/")
            assert face.resolve(f"{PREFIX}/SN00000101").record.status == "frozen"
            with pytest.raises(IdentifierRetired):
                face.resolve(f"{PREFIX}/SN00000102")
            with pytest.raises(IdentifierNotFound):
                face.resolve(f"{PREFIX}/SN00000103")
        assert handle.resolve(f"{PREFIX}/SN00000100").record.values[0].text == (
            "https://own.example/"
        )
        for gone in ("SN00000102", "SN00000103"):
            with pytest.raises(IdentifierNotFound):
                handle.resolve(f"{PREFIX}/{gone}")


async def test_pages_of_a_hundred_million(ranged: RunningNode) -> None:
    """From any place: the cost of a page does not grow with where it begins."""
    for url in (ranged.url, ranged.native_url):
        async with Client(url, ranged.key) as client:
            seen: list[Record] = []
            async for record in client.records(PREFIX, page_rows=100):
                seen.append(record)
                if len(seen) == 250:
                    break
        suffixes = [record.identifier.suffix for record in seen]
        assert suffixes == sorted(suffixes)
        assert suffixes[:3] == ["SN00000000", "SN00000001", "SN00000002"]


def test_cut_and_listed(ranged: RunningNode) -> None:
    with SyncClient(ranged.url, ranged.key) as client:
        client.ranges.register(PREFIX, "C{000..999}", {"URL": "https://c.example/{number}"})
        assert client.resolve(f"{PREFIX}/C150").record.version == 1
        whole = client.ranges.get(PREFIX, "C{000..999}")
        assert (whole.first, whole.last, whole.count) == (f"{PREFIX}/C000", f"{PREFIX}/C999", 1000)
        receipt = client.ranges.cut(PREFIX, "C{100..199}")
        assert (receipt.action, receipt.status) == ("cut-range", "retired")
        with pytest.raises(IdentifierRetired):
            client.resolve(f"{PREFIX}/C150")
        assert client.ranges.cut(PREFIX, "C{150..159}", purge=True).status == "purged"
        with pytest.raises(IdentifierNotFound):
            client.resolve(f"{PREFIX}/C150")
        with pytest.raises(NotFound):
            client.ranges.get(PREFIX, "C{000..999}")
        listed = [each for each in client.ranges.list(PREFIX) if each.pattern.startswith("C")]
        assert [(each.pattern, each.status, each.count) for each in listed] == [
            ("C{000..099}", "active", 100),
            ("C{100..149}", "retired", 50),
            ("C{160..199}", "retired", 40),
            ("C{200..999}", "active", 800),
        ]
        assert listed[0].values[0].text == "https://c.example/{number}"
        client.ranges.register(PREFIX, "C{150..159}", {})


def test_what_is_in_the_way_is_named(ranged: RunningNode) -> None:
    with SyncClient(ranged.url, ranged.key) as client:
        with pytest.raises(RangeTaken) as caught:
            client.ranges.register(PREFIX, "SN{99990000..99999999}")
        assert caught.value.fields["place"] == f"{PREFIX}/SN99990000"
        assert caught.value.fields["range"] == PREFIX + "/SN{00000000..99999999}"
        client.register(f"{PREFIX}/T77", {})
        with pytest.raises(RangeTaken) as caught:
            client.ranges.register(PREFIX, "T{00..99}")
        assert caught.value.fields["place"] == f"{PREFIX}/T77"
        for bad, position in (("T", 1), ("T{1..10}", 5), ("T{0..9}{0..9}", 7)):
            with pytest.raises(InvalidRecord) as refused:
                client.ranges.register(PREFIX, bad)
            assert refused.value.fields["position"] == position
    with SyncClient(ranged.native_url, ranged.key) as native, pytest.raises(InvalidRequest):
        native.ranges.register(PREFIX, "T{00..99}")


def test_over_http(ranged: RunningNode, api: Described) -> None:
    """As documented, with idempotency."""
    client = Described(ranged.port, ranged.key)
    body = {"prefix": PREFIX, "pattern": "h{0..9}1", "values": [], "status": "draft"}
    first = client.ask("POST", RANGES, body, Idempotency_Key="range-1")
    again = client.ask("POST", RANGES, body, Idempotency_Key="range-1")
    assert (first.status, again.status) == (201, 201)
    assert first.json == again.json
    assert again.headers["idempotency-replayed"] == "true"
    assert first.json["identifier"] == PREFIX + "/h{01..91..10}"
    at = f"{RANGES}/{PREFIX}/{quote('H{01..91..10}')}"
    assert client.ask("GET", at).status == 404, "as it was spelled"
    at = f"{RANGES}/{PREFIX}/{quote('h{01..91..10}')}"
    shown = client.ask("GET", at).json
    assert (shown["count"], shown["status"]) == (10, "draft")
    for cursor in ("", "e30=", quote("x")):
        asked = client.ask("GET", f"{RANGES}?prefix={PREFIX}&after={cursor}")
        assert asked.status in (200, 400)
    page = client.ask("GET", f"{RANGES}?prefix={PREFIX}&limit=1").json
    more = client.ask("GET", f"{RANGES}?prefix={PREFIX}&limit=1&after={page['next']}").json
    assert page["items"][0]["pattern"] != more["items"][0]["pattern"]
    bad = client.ask("POST", RANGES, {**body, "pattern": "h{9..0}"}, Accept_Language="zh")
    assert (bad.status, bad.code) == (400, "invalid-record")
    assert "止编号小于起编号" in bad.json["detail"]
    for tail in ("x", f"{PREFIX}/", f"{PREFIX}/SN{{0..9", "%FF/SN{0..9}", "/a{0..9}"):
        assert client.ask("DELETE", f"{RANGES}/{quote(tail, safe='/%')}").status == 400, tail


def test_commands(ranged: RunningNode, tmp_path: Path) -> None:
    shell = Shell(ranged, tmp_path)
    name = PREFIX + "/cmd{000..999}"
    done = shell("range", "register", name, "URL=https://a.example/{suffix}")
    assert f"{name} registered: active" in done
    assert f"{name}\tactive\t1000\t" in shell("range", "list", PREFIX)
    assert "https://a.example/cmd500" in shell("resolve", f"{PREFIX}/CMD500")
    assert "cut: retired" in shell("range", "cut", PREFIX + "/cmd{500..599}")
    shell("resolve", f"{PREFIX}/CMD500", code=1)
    assert f"{PREFIX}/cmd{{600..999}}\tactive\t400\t" in shell("range", "list", PREFIX)
    shell("range", "register", PREFIX + "/cmd{900..999}", code=1)
    assert f"{PREFIX}/cmd900" in shell.errors
    shell("range", "register", PREFIX + "/cmd900", code=2)


def test_another_worker_or_node_hears_within_a_second(ranged: RunningNode) -> None:
    """The absences that this front remembers go, though the node was told by another."""
    with SyncClient(ranged.url, ranged.key) as client, SyncClient(ranged.native_url) as native:
        for at in range(20):
            name = f"{PREFIX}/W{at:02}5"
            with pytest.raises(BiaojieError):
                native.resolve(name)
            client.ranges.register(PREFIX, f"W{at:02}{{0..9}}")
            until = time.monotonic() + 1
            while True:
                try:
                    native.resolve(name)
                    break
                except IdentifierNotFound:
                    assert time.monotonic() < until
