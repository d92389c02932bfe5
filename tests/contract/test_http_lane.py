"""The express lane says what the ordinary path says, octet by octet, whatever it is asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biaojie.account import PrefixStatus
from biaojie.identifier import Identifier
from registry.operations import ChangePrefix, Purge, Put, Retire
from tests.lane_world import API, PAGE, PREFIX, REST, SUSPENDED, LaneWorld, create, request, value

JSON = "Accept: application/json"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaneWorld]:
    made = LaneWorld(tmp_path_factory.mktemp("lane") / "data")
    yield made
    made.close()


def etag(world: LaneWorld, target: str = API + "SN1") -> str:
    answer, _ = world.run(world.say(world.plain, [request(target)]))
    return answer.decode().partition("ETag: ")[2].partition("\r\n")[0]


# What the lane answers ------------------------------------------------------------------------

IN_LANE = [
    *(request(start + "SN1", JSON) for start in (API, REST, PAGE)),
    *(request(start + "SN1", JSON, method="HEAD") for start in (API, REST, PAGE)),
    *(request(API + "SN1" + query) for query in ("?index=1", "?index=2&index=1", "?type=url")),
    *(request(API + "SN1" + query) for query in ("?", "?type=NAME&type=URL", "?index=7")),
    *(request(REST + "SN1" + query) for query in ("?pretty", "?callback=f", "?callback=1", "?x=y")),
    *(request(REST + "SN1" + query) for query in ("?index=9", "?publiconly", "?type=URL&index=2")),
    *(request(PAGE + "SN1" + query, JSON) for query in ("?noredirect", "?index=1", "?urlappend=x")),
    *(request(API + name) for name in ("sn1", "%53N1", "SN%31", "empty", "frozen", "SN1#part")),
    *(request(API + name) for name in ("with/slash", "with%2Fslash", "with%2fslash")),
    *(
        request(API + name)
        for name in ("%E6%B6%A1%E8%BD%AE", "quoted%22%27%3C%26%3E", "per%25cent")
    ),
    request(REST + "empty"),
    request(f"/api/v1/identifiers/{PREFIX}%2FSN1"),
    request(API + "soon"),
    request(PAGE + "SN1?ignore_aliases", JSON),
    request(PAGE + "alias?ignore_aliases", JSON),
    request(API + "alias"),
    request(REST + "alias"),
    request(API + "SN1", "Accept: */*", "Accept-Language: zh-CN"),
    request(API + "SN1", "Accept: text/html;q=0.9, application/json;q=0.1"),
    request(API + "SN1", "X-Request-Id: mine-1"),
    request(API + "SN1", "x-request-id: 0123456789abcdef0 ", JSON, method="HEAD"),
    request(REST + "SN1", "X-REQUEST-ID:" + "1" * 64),
    request(API + "SN1", "User-Agent: curl/8", "Connection: keep-alive"),
    request(API + "SN1", "Connection:Keep-Alive ", "Cookie: a=b", "Cookie: c=d"),
    request(API + "SN1", "X-Forwarded-For: 192.0.2.7", "traceparent: 00-ab-cd-01"),
    request(API + "SN1", "X-Custom: \t folded?no ", "Accept-Encoding: gzip, br"),
    request(API + "SN1", 'If-None-Match: "no"', "If-None-Match-Not: x"),
    request(API + "SN1", "Origin: https://example.cn", "Sec-Fetch-Mode: cors", "DNT: 1"),
    request(API + "SN1", "-Host", "hOST: [::1]:8080"),
    request(API + "SN1", "-Host", "Host:"),
    request(API + "SN1", "-Host", 'Host: bad host " here'),
]


@pytest.mark.parametrize(
    "whole", IN_LANE, ids=lambda whole: whole.partition(b"\r\n\r\n")[0].decode()
)
def test_in_the_lane(world: LaneWorld, whole: bytes) -> None:
    assert world.check([whole]) == 1


@pytest.mark.parametrize("start", [API, PAGE])
@pytest.mark.parametrize("tag", ["{}", "W/{}", '{}, "x"', "*", '"x"', '{} , W/"y"', ""])
def test_conditional(world: LaneWorld, start: str, tag: str) -> None:
    header = "If-None-Match: " + tag.format(etag(world))
    assert world.check([request(start + "SN1", JSON, header)]) == 1
    assert world.check([request(start + "SN1", JSON, header, method="HEAD")]) == 1
    assert world.check([request(start + "SN1", JSON)]) == 1


def test_not_modified_is_only_said_to_whom_it_concerns(world: LaneWorld) -> None:
    tag = etag(world)
    for _ in range(3):
        for header, status in ((f"If-None-Match: {tag}", b"304"), ('If-None-Match: "1.1"', b"200")):
            whole = request(API + "SN1", header)
            answer, _ = world.run(world.say(world.server, [whole]))
            assert answer.split(b" ")[1] == status
            assert world.run(world.both([whole])) in (0, 1)


# What it leaves to the ordinary path ------------------------------------------------------------

BEARER = "Authorization: Bearer bj_x"
OUTSIDE = [
    *(request(API + name) for name in ("unknown", "draft", "secret", "partly", "at-once", "")),
    *(request(REST + name) for name in ("unknown", "draft", "secret", "partly", "at-once", "")),
    request(API + "long"),
    request(f"/api/v1/identifiers/{PREFIX}"),
    request("/api/v1/identifiers/99.1/x"),
    request("/api/v1/identifiers/%FF/x"),
    request(API + "SN1?auth"),
    request(API + "SN1?auth=true&index=1"),
    request(API + "SN1?index=0"),
    request(API + "SN1?type="),
    request(API + "SN1?unknown=1"),
    request(REST + "SN1?auth"),
    request(REST + "SN1?index=x"),
    request(REST + "SN1?publiconly=false"),
    *(request(PAGE + name, JSON) for name in ("alias", "circle", "nowhere", "unknown")),
    request(PAGE + "alias?index=1", JSON),
    request(PAGE + "SN1?redirect", JSON),
    request(PAGE + "SN1?redirect"),
    request("/healthz"),
    request("/nothing"),
    *(
        request(API + "SN1", header)
        for header in (
            BEARER,
            "Authorization: ",
            "authorization: Basic eDp5",
            "X-Request-Id: not good!",
            "X-Request-Id: \udcff",
            "X-Request-Id:",
            "X-Request-Id: " + "1" * 65,
            "X-Request-Id: a\r\nX-Request-Id: b",
            "Connection: close",
            "Connection: Keep-Alive, close",
            "Connection: upgrade",
            "Proxy-Connection: close",
            "Connection: keep-alive\r\nConnection: keep-alive",
            "Upgrade: websocket",
            "Upgrade: h2c\r\nConnection: Upgrade",
            "Expect: 100-continue",
            "Content-Length: 0",
            "Content-Length: 18446744073709551615",
            "Content-Length: -1",
            "Content-Length: 0\r\nContent-Length: 0",
            "Content-Type: text/plain",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: identity",
            "Range: bytes=0-1",
            "If-Match: *",
            "If-Modified-Since: Sat, 21 Nov 2026 19:18:43 GMT",
            "Accept: application/json\r\nAccept: text/html",
            "Accept: application/json\r\naccept: text/html",
            'If-None-Match: "x"\r\nIf-None-Match: "y"',
            "If-None-Match: " + '"x",' * 50,
            "Host: second",
            "User-Agent: a\r\nUser-Agent: b",
            "Server: a\r\nserver: b",
            "Max-Forwards: 1\r\nMax-Forwards: 1",
            "X: a\r\n folded",
            "X: a\r\n\tfolded",
            "X : space",
            " X: space",
            "X",
            ": nameless",
            "X: nul\x00",
            "X: bell\x07",
            "X: delete\x7f",
            "X: caf\u00e9",
            "X: \udcff",
            "X: bare\nY: lf",
            "X: bare\rY: cr",
            "X\u00e9: y",
            "X(y): z",
            "Sec-WebSocket-Key1: x",
            "Sec-WebSocket-Key: x",
            "TE: trailers",
            "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        )
    ),
    request(API + "SN1", "-Host"),
    request(API + "SN1", *(f"X-{number}: y" for number in range(70))),
    request(API + "SN1", *(f"X-{number}: y" for number in range(200))),
    request(API + "SN1", "X: " + "y" * 4_100),
    request(API + "SN1", "X: " + "y" * 17_000),
    request(API + "SN1" + "?" * 5_000),
    request(API + "SN1" + "?" * 17_000),
    *(
        request(API + "SN1", version=version)
        for version in ("HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "")
    ),
    *(request(API + "SN1", version=version) for version in ("http/1.1", "HTTP/1.1 ", "ICY/1.1")),
    *(
        request(API + "SN1", method=method)
        for method in (
            "POST",
            "PUT",
            "DELETE",
            "OPTIONS",
            "PATCH",
            "TRACE",
            "CONNECT",
            "get",
            "PRI",
        )
    ),
    request(f"http://node.test{API}SN1"),
    request(f"HTTPS://node.test{API}SN1"),
    request("*", method="OPTIONS"),
    request(API[1:] + "SN1"),
    request(" " + API + "SN1"),
    request(API + "SN 1"),
    request(API + "SN\t1"),
    request(API + "涡轮"),
    b"\r\n" + request(API + "SN1"),
    b"\r\n\r\n" + request(API + "SN1"),
    request(API + "SN1").replace(b"\r\n", b"\n"),
    request(API + "SN1").replace(b"GET ", b"GET\t"),
    request(API + "SN1") + b"\r\n",
    request(API + "SN1", body=b"body"),
    request(API + "SN1", "Content-Length: 4", body=b"body"),
    request(API + "SN1", "Transfer-Encoding: chunked", body=b"4\r\nbody\r\n0\r\n\r\n"),
    f"GET {API}SN1\r\n\r\n".encode(),
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"",
]


@pytest.mark.parametrize("whole", OUTSIDE, ids=lambda whole: repr(whole[:90]))
def test_outside_the_lane(world: LaneWorld, whole: bytes) -> None:
    world.check([request(API + "SN1")])
    assert world.check([whole]) == 0


def test_prefix_and_suffix_in_any_spelling(world: LaneWorld) -> None:
    world.run(world.commit(create("Mixed", value("https://example.cn/m"), prefix=PREFIX)))
    for spelling in ("Mixed", "mixed", "MIXED", "M%69xed", "m%69XED"):
        assert world.check([request(API + spelling)]) == 1


@pytest.mark.parametrize("before", ["", "j", "p", "J", "P", 'P"x"\n', 'J"x"\n', "json\n", ' "x"\n'])
def test_nobody_writes_a_profile_into_a_request(world: LaneWorld, before: str) -> None:
    for headers in ([], [JSON], ['If-None-Match: "x"'], [JSON, 'If-None-Match: "x"']):
        assert world.check([request(API + "SN1", *headers)]) == 1
    hits = 0 if before else 1
    assert world.check([before.encode() + request(API + "SN1")]) == hits
    assert world.check([request(API + "SN1", method=before + "GET")]) == hits


# Other words than anybody would choose ------------------------------------------------------------

NAMES = st.sampled_from(
    [
        "Host",
        "Accept",
        "Accept-Language",
        "If-None-Match",
        "Connection",
        "Content-Length",
        "Transfer-Encoding",
        "Expect",
        "Cookie",
        "Authorization",
        "User-Agent",
        "X-Request-Id",
        "Range",
        "Upgrade",
        "X-Custom",
        "Server",
        "Content-Type",
        "TE",
        "Proxy-Connection",
        "accept",
        "HOST",
    ]
)
TEXTS = st.sampled_from(
    [
        "node.test",
        "application/json",
        "text/html",
        "*/*",
        "application/json;q=0.5, text/html;q=0.4",
        "keep-alive",
        "close",
        "0",
        "4",
        "chunked",
        '"1.1"',
        "*",
        "zh",
        "",
        " spaced\t",
        "gzip",
    ]
) | st.text(st.characters(max_codepoint=300), max_size=12)
LINES = st.builds("{}:{}{}".format, NAMES, st.sampled_from(["", " ", "\t "]), TEXTS)
TARGETS = st.sampled_from([API + "SN1", REST + "SN1", PAGE + "SN1", API + "unknown", "/healthz"])


@settings(max_examples=250)
@given(
    st.sampled_from(["GET"] * 6 + ["HEAD", "POST", "OPTIONS"]),
    TARGETS,
    st.lists(LINES, max_size=6),
    st.booleans(),
)
def test_any_headers(
    world: LaneWorld, method: str, target: str, lines: list[str], host: bool
) -> None:
    headers = lines if host else ["-Host", *lines]
    whole = request(target, *headers, method=method)
    for _ in range(3):
        world.run(world.both([whole, request(API + "SN1")]))


# What changes -------------------------------------------------------------------------------------


def test_a_change_is_seen_at_once(world: LaneWorld) -> None:
    name = Identifier(PREFIX, "changing")
    world.run(world.commit(create("changing", value("https://example.cn/a"))))
    targets = [request(start + "changing", JSON) for start in (API, REST, PAGE)]
    for operation in (
        Put(name, (value("https://example.cn/b"),)),
        Put(name, (value("https://example.cn/c", ttl=5),)),
        Put(name, ()),
        Retire(name),
        Purge(name),
        create("changing", value("https://example.cn/d")),
    ):
        assert all(world.check([whole]) in (0, 1) for whole in targets)
        world.run(world.commit(operation))
        for whole in targets:
            before = world.lane.hits
            assert world.run(world.both([whole])) == 0
            assert world.lane.hits == before
    assert [world.check([whole]) for whole in targets] == [1, 1, 1]


def test_a_suspended_prefix_is_silent_at_once(world: LaneWorld) -> None:
    whole = request(f"/api/v1/identifiers/{SUSPENDED}/x")
    assert world.check([whole]) == 1
    world.run(world.commit(ChangePrefix(SUSPENDED, status=PrefixStatus.SUSPENDED)))
    assert world.check([whole]) == 0
    world.run(world.commit(ChangePrefix(SUSPENDED, status=PrefixStatus.ACTIVE)))
    assert world.check([whole]) == 1


def test_stale_answers_are_not_for_the_lane(
    world: LaneWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = [request(start + "SN1", JSON) for start in (API, REST, PAGE)]
    for whole in targets:
        assert world.check([whole]) == 1
    health = world.node.health
    with monkeypatch.context() as patch:
        patch.setattr(health, "answered", lambda: None)  # whoever looks up finds it well
        health.failed("test")
        for whole in targets:
            answer, _ = world.run(world.say(world.server, [whole]))
            assert b"Biaojie-Source: stale\r\n" in answer
            assert world.run(world.both([whole])) == 0
    health.answered()
    assert [world.run(world.both([whole])) for whole in targets] == [1, 1, 1]


def test_it_is_bounded_by_its_ttl(world: LaneWorld) -> None:
    whole = request(API + "soon")
    assert world.check([whole]) == 1
    entry = world.node.cache.cached.entries[Identifier(PREFIX, "soon").key()]
    ready = world.lane._entries[b"p" + whole.partition(b" HTTP/")[0]]
    for ended in (entry, ready):
        ended.fetched -= 1
    entry.expires -= 1
    before = world.lane.hits
    world.run(world.say(world.server, [whole]))
    assert world.lane.hits == before
    assert world.check([whole]) == 1
