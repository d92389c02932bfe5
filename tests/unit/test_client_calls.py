"""The async client's methods against a real server: what goes out, what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from biaojie import Client, Identifier, Permissions, Row, Status, Value
from biaojie.account import PrefixStatus, Role
from biaojie.change import Action
from biaojie.errors import (
    IdentifierNotFound,
    IdentifierTaken,
    InvalidIdentifier,
    InvalidRecord,
    InvalidRequest,
    VersionMismatch,
)
from tests.scripted_node import ScriptedNode, serving

URL_VALUE = Value(1, "URL", b"https://acme.example/1")


@pytest.fixture
async def node() -> AsyncIterator[ScriptedNode]:
    async with serving(ScriptedNode()) as node:
        yield node


@pytest.fixture
async def client(node: ScriptedNode) -> AsyncIterator[Client]:
    async with Client(node.url, "bj_12345678_secret") as client:
        yield client


@pytest.mark.parametrize(
    "pasted",
    [
        "99.1/标 识/é?#%",
        Identifier("99.1", "标 识/é?#%"),
        "hdl:99.1/%E6%A0%87%20%E8%AF%86/%C3%A9%3F%23%25",
        "https://id.example/99.1/%E6%A0%87%20%E8%AF%86/%C3%A9%3F%23%25?noredirect",
        "99.1%2F%E6%A0%87%20%E8%AF%86%2F%C3%A9%3F%23%25",
    ],
)
async def test_resolves_every_pasted_form(
    node: ScriptedNode, client: Client, pasted: str | Identifier
) -> None:
    node.add("99.1/标 识/é?#%")
    found = await client.resolve(pasted)
    assert found.record.identifier == Identifier("99.1", "标 识/é?#%")
    assert (found.source, found.age_s, found.etag) == ("cache", 7, '"1.1"')
    path = Identifier("99.1", "标 识/é?#%").url_path()
    assert node.seen[0].path == f"/api/v1/identifiers/{path}"
    assert node.seen[0].headers["Authorization"] == "Bearer bj_12345678_secret"
    assert "Idempotency-Key" not in node.seen[0].headers


async def test_age_counts_proxies_too(node: ScriptedNode, client: Client) -> None:
    node.add("99.1/a")
    record = (await client.resolve("99.1/a")).record
    from biaojie.wire.document import encode_record
    from tests.scripted_node import saying

    node.faults.append(saying(200, encode_record(record), Age="5", Biaojie_Age="30"))
    assert (await client.resolve("99.1/a")).age_s == 35


async def test_query(node: ScriptedNode, client: Client) -> None:
    node.add("99.1/a")
    await client.resolve("99.1/a", index=[3, 1], types=("URL", "邮 件&"), authoritative=True)
    await client.resolve("99.1/a", index=3, types="URL")
    assert node.seen[0].query == {"index": ["3", "1"], "type": ["URL", "邮 件&"], "auth": ["1"]}
    assert node.seen[1].query == {"index": ["3"], "type": ["URL"]}


async def test_errors_are_the_nodes(client: Client) -> None:
    with pytest.raises(IdentifierNotFound) as caught:
        await client.resolve("99.1/nobody")
    assert caught.value.request_id == "req-1"
    assert caught.value.detail.zh == IdentifierNotFound().detail.zh


async def test_a_bad_identifier_is_not_sent(node: ScriptedNode, client: Client) -> None:
    for call in (client.resolve, client.retire, client.purge, client.modify):
        with pytest.raises(InvalidIdentifier):
            await call("99.1/")
    assert node.seen == []


@pytest.mark.parametrize(
    ("values", "sent"),
    [
        ({"URL": "https://a", "EMAIL": "b@c"}, [(1, "URL", "https://a"), (2, "EMAIL", "b@c")]),
        ({"BLOB": b"\xff\x00"}, [(1, "BLOB", {"format": "base64", "value": "/wA="})]),
        (
            [Value(5, "A", b"x"), {"index": 2, "type": "B", "data": "y"}],
            [(2, "B", "y"), (5, "A", "x")],
        ),
        ([], []),
    ],
)
async def test_forms_of_values(
    node: ScriptedNode, client: Client, values: Any, sent: list[Any]
) -> None:
    receipt = await client.register("99.1/a", values)
    assert (receipt.action, receipt.identifier, receipt.version) == (Action.CREATE, "99.1/a", 1)
    body = node.seen[0].body
    assert [(v["index"], v["type"], v["data"]) for v in body["values"]] == sent


async def test_secrets_keep_their_permissions(node: ScriptedNode, client: Client) -> None:
    secrets: dict[str, str | bytes] = {"HS_SECKEY": b"\xff", "hs_seckey": "x"}
    await client.register("99.1/a", secrets)
    assert {v["permissions"] for v in node.seen[0].body["values"]} == {"1100"}
    value = Value(1, "PIN", b"1", permissions=Permissions.parse("1000"))
    await client.register("99.1/b", [value])
    assert node.seen[1].body["values"][0]["permissions"] == "1000"


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"URL": 5}, "values[URL]"),
        ({"index": 1, "type": "URL", "data": "x"}, "values[index]"),
        ([{"index": 1, "type": "PIN", "data": "x", "permision": "1100"}], "values[0].permision"),
        ([{"index": "1", "type": "URL", "data": "x"}], "values[0].index"),
        ([URL_VALUE, URL_VALUE], "values"),
        (["x"], "values[0]"),
        ({"T": "\ud800"}, "values[T].data"),
    ],
)
async def test_bad_values_are_not_sent(
    node: ScriptedNode, client: Client, values: Any, path: str
) -> None:
    with pytest.raises(InvalidRecord) as caught:
        await client.register("99.1/a", values)
    assert caught.value.fields["path"] == path
    assert node.seen == []


async def test_register_overwrite_and_version(node: ScriptedNode, client: Client) -> None:
    await client.register("99.1/a", [URL_VALUE], status="draft", template="99.1/T")
    assert node.seen[0].body["status"] == "draft"
    assert node.seen[0].body["template"] == "99.1/T"
    with pytest.raises(IdentifierTaken):
        await client.register("99.1/a", [URL_VALUE])
    assert (await client.register("99.1/a", [URL_VALUE], overwrite=True)).version == 2
    assert (await client.register("99.1/a", [], overwrite=True, if_version=2)).version == 3
    with pytest.raises(VersionMismatch):
        await client.register("99.1/a", [], overwrite=True, if_version=2)
    assert node.seen[-1].method == "PUT"
    assert node.seen[-1].headers["If-Match"] == '"2"'
    with pytest.raises(InvalidRequest):
        await client.register("99.1/a", [], if_version=2)
    with pytest.raises(InvalidRequest, match="none of draft, active, frozen, retired"):
        await client.register("99.1/b", [], status="actve")


async def test_mint(node: ScriptedNode, client: Client) -> None:
    receipt = await client.mint("99.1", {"URL": "x"}, "SN-")
    assert receipt.identifier == "99.1/SN-01MINTED"
    assert node.seen[0].body["prefix"] == "99.1"


async def test_modify_retire_purge(node: ScriptedNode, client: Client) -> None:
    node.add("99.1/a")
    await client.modify("99.1/a", [URL_VALUE], 7, status=Status.FROZEN, if_version=1)
    await client.modify("99.1/a", remove=(3, 4))
    await client.retire("99.1/a", if_version=3)
    await client.purge("99.1/a")
    first, second, third, fourth = node.seen
    assert first.method == "PATCH"
    assert first.body["set"][0]["type"] == "URL"
    assert (first.body["remove"], first.body["status"]) == ([7], "frozen")
    assert second.body == {"remove": [3, 4]}
    assert (third.method, third.query, third.body) == ("DELETE", {}, None)
    assert third.headers["If-Match"] == '"3"'
    assert (fourth.method, fourth.query) == ("DELETE", {"purge": ["true"]})
    keys = [seen.key for seen in node.seen]
    assert None not in keys
    assert len(set(keys)) == 4


async def test_modify_does_not_make_up_indexes(node: ScriptedNode, client: Client) -> None:
    node.add("99.1/a")
    with pytest.raises(InvalidRecord, match="index"):
        await client.modify("99.1/a", {"URL": "x"})
    assert node.seen == []


async def test_prefixes(node: ScriptedNode, client: Client) -> None:
    assert [prefix.name async for prefix in client.prefixes.list()] == ["99.1"]
    assert (await client.prefixes.get("99.1")).tenant == "acme"
    assert (await client.prefixes.home("99.1", "other")).tenant == "other"
    changed = await client.prefixes.change("99.1", status="suspended")
    assert changed.status is PrefixStatus.SUSPENDED
    assert node.seen[-1].body == {"status": "suspended"}
    assert node.seen[-1].key
    with pytest.raises(InvalidIdentifier):
        await client.prefixes.get("99.1/../keys")
    with pytest.raises(InvalidRequest):
        await client.prefixes.change("99.1", status="asleep")


async def test_keys(node: ScriptedNode, client: Client) -> None:
    issued = await client.keys.issue("registrar", "acme", "line 3")
    assert (issued.key.role, issued.secret) == (Role.REGISTRAR, "bj_12345678_secret")
    assert "secret" not in repr(issued)
    assert node.seen[-1].key is None
    assert [key.id async for key in client.keys.list()] == ["k1"]
    assert (await client.keys.revoke("k/1")).id == "k1"
    assert node.seen[-1].path == "/api/v1/keys/k%2F1"
    assert node.seen[-1].key


async def test_given_key_makes_one_write_of_two_calls(node: ScriptedNode, client: Client) -> None:
    first = await client.register("99.1/a", [URL_VALUE], idempotency_key="order-1")
    again = await client.register("99.1/a", [URL_VALUE], idempotency_key="order-1")
    assert first == again
    assert node.registered == ["99.1/a"]
    for key in ("", "x" * 256, "a\nb", "é"):
        with pytest.raises(InvalidRequest):
            await client.register("99.1/a", [], idempotency_key=key)


async def test_a_batch(node: ScriptedNode, client: Client) -> None:
    node.add("99.1/2")
    rows = [Row(f"99.1/{n}", {"A": "b"}) for n in (1, 2)]
    for _ in range(2):
        results = await client.register_batch(rows, idempotency_key="b1")
        assert [(r.row, r.ok, r.code) for r in results] == [
            (1, True, ""),
            (2, False, "identifier-taken"),
        ]
    assert node.registered == ["99.1/1"]
    with pytest.raises(InvalidRequest):
        await client.register_batch(Row("99.1/x") for _ in range(10**9))


async def test_text_that_cannot_be_sent(node: ScriptedNode, client: Client) -> None:
    with pytest.raises(InvalidRequest):
        await client.resolve("99.1/a", types="\ud800")
    with pytest.raises(InvalidRequest):
        await client.keys.revoke("\ud800")
    with pytest.raises(InvalidRequest):
        await client.prefixes.home("99.1", "\ud800")
    assert node.seen == []


@pytest.mark.parametrize(
    "url",
    [
        "gopher://node", "ftp://node", "127.0.0.1:8080", "", "http://",
        "http://user:pw@node", "http://node?x=1", "http://node#x", "http://[::1", "http://a:99999",
    ],
)  # fmt: skip
def test_addresses_that_no_transport_speaks(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Client(url)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "a b", "a\r\nX: 1", "ключ"])
def test_keys_that_would_break_the_header(key: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Client("http://node", key)
    assert key == "" or key not in str(caught.value)


def test_options_are_checked() -> None:
    for options in ({"timeout_s": 0}, {"retries": -1}, {"connections_max": 0}):
        with pytest.raises(InvalidRequest):
            Client("http://node", **options)  # type: ignore[arg-type]


async def test_address_with_a_path(node: ScriptedNode) -> None:
    async with Client(node.url + "/idn/") as client:
        with pytest.raises(IdentifierNotFound):
            await client.resolve("99.1/a")
        assert client.url == node.url + "/idn"
    assert node.seen[0].path == "/idn/api/v1/identifiers/99.1/a"


async def test_closed_means_closed(node: ScriptedNode) -> None:
    client = Client(node.url)
    with pytest.raises(IdentifierNotFound):
        await client.resolve("99.1/a")
    await client.close()
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client.resolve("99.1/a")


async def test_a_client_belongs_to_one_loop(node: ScriptedNode, client: Client) -> None:
    with pytest.raises(IdentifierNotFound):
        await client.resolve("99.1/a")

    def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="event loop"):
            asyncio.run(client.resolve("99.1/a"))

    await asyncio.to_thread(elsewhere)
