"""Whatever strangers send gets its documented code, never a 500, and leaves nothing behind."""

from __future__ import annotations

import gzip
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.described import IDS, URL, Described, path, verdict
from tests.system.wire import Answer, Wire
from tests.system.wire import request as on_the_wire

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

INVALID = (400, "invalid-request")
RECORD = (400, "invalid-record")
IDENTIFIER = (400, "invalid-identifier")
LARGE = (413, "too-large")
MEDIA = (415, "unsupported-media-type")


@pytest.fixture
def api(unharmed: Described) -> Described:
    return unharmed


# Bodies -----------------------------------------------------------------------------------

WRITES = [
    ("PUT", path("bad")),
    ("PATCH", path("bad")),
    ("POST", IDS),
    ("POST", IDS + ":batch"),
    ("POST", IDS + ":resolve"),
    ("POST", "/api/v1/prefixes"),
    ("PATCH", "/api/v1/prefixes/88.118.8"),
    ("POST", "/api/v1/keys"),
]
BODIES = {
    "empty": b"",
    "no JSON": b"values",
    "half": b'{"values":',
    "two documents": b"{}{}",
    "trailing comma": b'{"values":[],}',
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "a text": b'"values"',
    "not a number": b'{"values":NaN}',
    "infinity": b'{"values":1e999}',
    "a number without end": b"9" * 10_000,
    "lone surrogate, escaped": b'{"values":"\\ud800"}',
    "lone surrogate as a name": b'{"\\udfff":1}',
    "lone surrogate, raw": b'{"values":"\xed\xa0\x80"}',
    "Latin-1": '{"é":1}'.encode("latin-1"),
    "UTF-16": "{}".encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "NUL": b'{"values":"\x00"}',
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep and whole": b'{"values":' + b"[" * 900 + b"]" * 900 + b"}",
    "unknown field": b'{"surprise":1}',
    "a field of 1 MB": b'{"' + b"a" * 2**20 + b'":1}',
    "100,000 unknown fields": json.dumps(dict.fromkeys(map(str, range(100_000)))).encode(),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
def test_bodies_that_are_not_what_they_should_be(api: Described, body: bytes) -> None:
    for method, target in WRITES:
        answer = api.ask(method, target, body, Content_Type="application/json")
        assert verdict(answer) == INVALID, (method, target, answer.body[:300])
        assert len(answer.body) < 20_000


AWKWARD = [
    ("GET", "/api/v1/keys?after=AA==", None, 400),
    ("GET", "/api/v1/keys?after=" + "QUFB" * 370, None, 200),
    ("GET", "/api/v1/prefixes?after=AA==", None, 400),
    ("GET", IDS + "?prefix=88.118.8&after=AP8=", None, 200),
    ("GET", "/api/v1/changes?after=9223372036854775807", None, 200),
    ("DELETE", "/api/v1/keys/%00", None, 404),
    ("DELETE", "/api/v1/keys/%F4%8F%BF%BF", None, 404),
    ("DELETE", "/api/v1/keys/" + "k" * 10_000, None, 404),
    ("DELETE", "/api/v1/keys/%ff", None, 404),
    ("PUT", path("awkward"), {"values": [URL | {"data": "\u0000", "index": 2**31 - 1}]}, 201),
    ("PUT", path("awkward"), {"values": [URL | {"index": 7.0, "ttl": 60.0}]}, 200),
    ("PUT", path("awkward"), {"values": [URL | {"type": "标" * 128, "ttl": 2**31 - 1}]}, 200),
    ("PUT", path("\U0001f3ed" * 240), {"values": [], "template": "1/x"}, 201),
    ("GET", path("\U0001f3ed" * 240), None, 200),
    ("GET", path("'; DROP TABLE records; --"), None, 404),
    ("POST", "/api/v1/prefixes", {"prefix": "21.1", "tenant": "'\\ \U0001f3ed"}, 201),
    ("GET", "/api/v1/prefixes/21.1", None, 200),
    ("POST", "/api/v1/keys", {"role": "reader", "tenant": "'", "label": "\U0001f3ed"}, 201),
]


@pytest.mark.parametrize("store", ["node", "postgres_node"])
def test_awkward_but_allowed(request: pytest.FixtureRequest, store: str) -> None:
    """What one database takes and the other does not must not show."""
    node: RunningNode = request.getfixturevalue(store)
    client = Described(node.port, node.key)
    for method, target, body, expected in AWKWARD:
        answer = client.ask(method, target, body)
        assert answer.status == expected, (method, target, answer.body)
    assert client.ask("GET", path("awkward")).json["values"][0]["type"] == "标" * 128


def test_faults_are_named_where_they_are(api: Described) -> None:
    body = {"values": [URL, {"index": "1", "type": "", "permissions": "12", "ttl": True}], "x": 1}
    errors = api.ask("PUT", path("bad"), body).json["errors"]
    paths = {fault["path"] for fault in errors}
    assert {
        "body.values.1.index",
        "body.values.1.type",
        "body.values.1.data",
        "body.values.1.permissions",
        "body.x",
    } <= paths
    assert all(fault["message"] and fault["message_zh"] for fault in errors)
    faults = api.ask("POST", IDS + ":resolve", {"identifiers": [7] * 1000}, key=None).json["errors"]
    assert len(faults) == 50


@pytest.fixture(scope="module")
def present(node: RunningNode) -> str:
    """The address of a record that is there."""
    assert node.ask("PUT", path("present"), {"values": []}).status == 201
    return path("present")


VALUES: list[tuple[Any, tuple[int, str]]] = [
    ({"index": 0}, INVALID),
    ({"index": -1}, INVALID),
    ({"index": 2**31}, INVALID),
    ({"index": 10**30}, INVALID),
    ({"index": 1.5}, INVALID),
    ({"index": True}, INVALID),
    ({"index": "1"}, INVALID),
    ({"index": None}, INVALID),
    ({"type": ""}, INVALID),
    ({"type": "x" * 129}, INVALID),
    ({"type": 5}, INVALID),
    ({"type": "a\u0000b"}, RECORD),
    ({"type": "a\u202eb"}, RECORD),
    ({"data": None}, INVALID),
    ({"data": 5}, INVALID),
    ({"data": ["x"]}, INVALID),
    ({"data": {}}, INVALID),
    ({"data": {"format": "admin", "value": "x"}}, INVALID),
    ({"data": {"format": "base64", "value": "!!"}}, RECORD),
    ({"data": {"format": "hex", "value": "0"}}, RECORD),
    ({"data": "x" * 65_537}, INVALID),
    ({"data": "标" * 30_000}, RECORD),
    ({"data": {"format": "hex", "value": "00" * 65_537}}, INVALID),
    ({"ttl": -1}, INVALID),
    ({"ttl": 2**31}, INVALID),
    ({"ttl": 1.5}, INVALID),
    ({"ttl": "soon"}, RECORD),
    ({"ttl": "9999-99-99"}, RECORD),
    ({"ttl": "2200-01-01T00:00:00Z"}, RECORD),
    ({"permissions": "11"}, INVALID),
    ({"permissions": "2222"}, INVALID),
    ({"permissions": "1110\n"}, RECORD),
    ({"permissions": 1110}, INVALID),
    ({"timestamp": "yesterday"}, RECORD),
    ({"references": [{"identifier": "x", "index": 1}]}, RECORD),
    ({"references": [{"identifier": "1/x", "index": -1}]}, INVALID),
    ({"references": [{}]}, INVALID),
    ({"references": [{"identifier": "1/x"}] * 65}, INVALID),
    ({"references": {}}, INVALID),
    ({"type": "HS_SECKEY", "permissions": "1110"}, RECORD),
    ({"surprise": 1}, INVALID),
]


@pytest.mark.parametrize(("fault", "expected"), VALUES)
def test_values_that_are_not_well_formed(
    present: str, api: Described, fault: dict[str, Any], expected: tuple[int, str]
) -> None:
    body = {"values": [URL | fault]}
    assert verdict(api.ask("PUT", path("bad"), body)) == expected
    assert verdict(api.ask("PATCH", present, {"set": [URL | fault]})) == expected
    created = {"identifier": "88.118.8/bad", **body}
    assert verdict(api.ask("POST", IDS, created)) == expected
    refused = api.ask("POST", IDS + ":batch", {"mode": "all", "rows": [created]})
    assert verdict(refused) == (422, "batch-rejected")
    assert [row["code"] for row in refused.json["rows"]] == [expected[1]]


RECORDS: list[tuple[str, str, Any, tuple[int, str]]] = [
    ("PUT", path("bad"), {"values": [URL, URL]}, RECORD),
    ("PUT", path("bad"), {"values": [URL] * 513}, INVALID),
    (
        "PUT",
        path("bad"),
        {"values": [URL | {"index": n, "data": "x" * 65_000} for n in range(1, 6)]},
        RECORD,
    ),
    ("PUT", path("bad"), {}, INVALID),
    ("PUT", path("bad"), {"values": [], "status": "retired"}, INVALID),
    ("PUT", path("bad"), {"values": [], "status": "ACTIVE"}, INVALID),
    ("PUT", path("bad"), {"values": [], "template": "no slash"}, IDENTIFIER),
    ("PUT", path("bad"), {"values": [], "template": ""}, INVALID),
    ("PATCH", path("bad"), {"remove": [0]}, INVALID),
    ("PATCH", path("bad"), {"remove": ["1"]}, INVALID),
    ("POST", IDS, {"identifier": "88.118.8/" + "x" * 250, "values": []}, IDENTIFIER),
    ("POST", IDS, {"identifier": "x" * 3061, "values": []}, INVALID),
    ("POST", IDS, {"prefix": "88.118.8", "suffix_start": "x" * 129, "values": []}, INVALID),
    ("POST", IDS, {"prefix": "88.118.8", "suffix_start": "a\n", "values": []}, IDENTIFIER),
    ("POST", IDS, {"prefix": "88.118.8/x", "values": []}, IDENTIFIER),
    ("POST", IDS + ":batch", {"mode": "some", "rows": [{}]}, INVALID),
    ("POST", IDS + ":batch", {"mode": "all", "rows": [{}], "dry_run": "yes"}, INVALID),
    ("POST", IDS + ":batch", {"mode": "all", "rows": [{"identifier": "1/x"}] * 2001}, LARGE),
    ("POST", "/api/v1/prefixes", {"prefix": "a b", "tenant": "acme"}, IDENTIFIER),
    ("POST", "/api/v1/prefixes", {"prefix": "88.1.1", "tenant": "acme"}, IDENTIFIER),
    ("POST", "/api/v1/prefixes", {"prefix": "20.1", "tenant": ""}, INVALID),
    ("POST", "/api/v1/prefixes", {"prefix": "20.1", "tenant": "a\u0000"}, INVALID),
    ("POST", "/api/v1/prefixes", {"prefix": "20.1", "tenant": "x" * 65}, INVALID),
    ("PATCH", "/api/v1/prefixes/88.118.8", {"status": "gone"}, INVALID),
    ("POST", "/api/v1/keys", {"role": "root", "tenant": "acme"}, INVALID),
    ("POST", "/api/v1/keys", {"role": "reader", "tenant": "acme", "label": "\u001b"}, INVALID),
    ("POST", "/api/v1/keys", {"role": "reader", "tenant": "acme", "label": "x" * 129}, INVALID),
]


@pytest.mark.parametrize(("method", "target", "body", "expected"), RECORDS)
def test_requests_that_are_not_well_formed(
    api: Described, method: str, target: str, body: Any, expected: tuple[int, str]
) -> None:
    assert verdict(api.ask(method, target, body)) == expected


def test_content_types_and_encodings(api: Described) -> None:
    body = b'{"values":[]}'
    for kind in ("", "text/plain", "application/xml", "application/jsonp", "é", "a" * 10_000):
        assert verdict(api.ask("PUT", path("bad"), body, Content_Type=kind)) == MEDIA
    bomb = gzip.compress(b"\0" * 200_000_000, 1)
    for coding, sent in (
        ("gzip", gzip.compress(body)),
        ("gzip", bomb),
        ("gzip", b"not gzip"),
        ("gzip, gzip", gzip.compress(gzip.compress(body))),
        ("deflate", b"x"),
        ("br", b"x"),
        ("zstd", b"x"),
        ("chunked-ish", body),
    ):
        began = time.monotonic()
        answer = api.ask(
            "PUT", path("bad"), sent, Content_Type="application/json", Content_Encoding=coding
        )
        assert verdict(answer) == MEDIA, coding
        assert time.monotonic() - began < 2


# Sizes ------------------------------------------------------------------------------------


def test_ten_megabytes(api: Described) -> None:
    body = b'{"values":"' + b"x" * 10_000_000 + b'"}'
    for method, target in WRITES:
        began = time.monotonic()
        answer = api.ask(method, target, body, Content_Type="application/json")
        assert verdict(answer) == LARGE
        assert answer.json["bytes_max"] == 8 * 2**20
        assert time.monotonic() - began < 3


def chunked(target: str, key: str) -> bytes:
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        "Transfer-Encoding": "chunked",
    }
    return on_the_wire("PUT", target, headers)


def test_ten_megabytes_without_a_length(api: Described) -> None:
    part = b"10000\r\n" + b"[" * 65_536 + b"\r\n"
    with Wire(api.port) as wire:
        wire.send(chunked(path("bad"), str(api.key)) + part * 160)
        assert verdict(wire.answer()) == LARGE
        assert wire.ended()


def test_broken_chunks(api: Described) -> None:
    smuggled = on_the_wire("DELETE", path("bad"), {"Authorization": f"Bearer {api.key}"})
    for body in (
        b"zz\r\nab\r\n0\r\n\r\n",
        b"-1\r\nab\r\n0\r\n\r\n",
        b"ffffffffffffffffff\r\nab\r\n",
        b"2\r\nabcd\r\n0\r\n\r\n",
        b"2 \r\nab\r\n0\r\n\r\n",
    ):
        with Wire(api.port) as wire:
            wire.send(chunked(path("bad"), str(api.key)) + body + smuggled)
            assert verdict(wire.answer()) == INVALID
            assert wire.ended()


def test_the_length_in_ways_that_could_hide_a_second_request(api: Described) -> None:
    inner = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    lines = [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: " + b"9" * 400 + b"\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Content-Length : 5\r\n",
        b"X: a\r\n Content-Length: 5\r\n",
    ]
    for line in lines:
        with Wire(api.port, timeout_s=5) as wire:
            wire.send(
                b"POST /api/v1/keys HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n0\r\n\r\n" + inner
            )
            assert wire.answer().status in (400, 401), line
            assert wire.ended(), line


@pytest.mark.parametrize(
    "body",
    [
        b"{" + b",".join(b'"a%d":1' % n for n in range(600_000)) + b"}",
        b'{"values":[{' + b",".join(b'"a%d":1' % n for n in range(600_000)) + b"}]}",
        b'{"identifiers":[' + b",".join([b"7"] * 2_000_000) + b"]}",
        json.dumps({"identifiers": ["%25" * 1000] * 1000}).encode(),
        json.dumps({"identifiers": ["a" * 3000] * 1000}).encode(),
        b'{"mode":"all","rows":['
        + b",".join(
            b'{"identifier":"88.118.8/b","values":[' + b",".join([b"{}"] * 512) + b"]}"
            for _ in range(1_999)
        )
        + b"]}",
        b'{"mode":"all","rows":['
        + b",".join(
            b"{" + b",".join(b'"a%d":1' % n for n in range(400)) + b"}" for _ in range(1999)
        )
        + b"]}",
    ],
    ids=["fields", "fields within", "numbers", "percents", "long", "bare values", "field rows"],
)
def test_no_body_keeps_the_others_waiting(api: Described, body: bytes) -> None:
    """8 MB of the most expensive faults, in parallel, while somebody else asks."""
    assert len(body) < 8 * 2**20
    targets = [IDS + ":batch", IDS + ":resolve"]
    answers: list[Answer] = []

    def attack(target: str) -> None:
        answers.append(api.ask("POST", target, body, Content_Type="application/json"))

    threads = [threading.Thread(target=attack, args=(target,)) for target in targets]
    waits = []
    with Wire(api.port) as wire:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            began = time.monotonic()
            assert wire.ask("GET", "/healthz").status == 200
            waits.append(time.monotonic() - began)
            time.sleep(0.005)
    assert max(waits) < 1
    assert {answer.status for answer in answers} <= {200, 400, 422}
