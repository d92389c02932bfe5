"""Every operation of the HTTP API as a user meets it; each reply is held against its schema."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.system.described import IDS, URL, Described, data, path, value
from tests.system.wire import Wire, request

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode


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
    secret = {"index": 1, "type": "HS_SECKEY", "data": "k"}
    assert api.ask("PUT", at, {"values": [secret, value(2, "b")]}).status == 201
    assert data(api.ask("GET", at, key=None)) == {2: "b"}
    # Secrets are for checking: no view has them, not the owner's either.
    assert data(api.ask("GET", at)) == {2: "b"}
    shown = api.ask("PUT", at, {"values": [secret | {"permissions": "1110"}]})
    assert (shown.status, shown.code) == (400, "invalid-record")


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
        "PUT", IDS + "/88.118.9/same-key", {"values": []}, key=other, Idempotency_Key="shared"
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
