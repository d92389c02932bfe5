"""What misses the express lane and is asked for together says what the ordinary path says, octet
by octet."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.gathered import (
    ELSEWHERE,
    JSON,
    MANY,
    ONE,
    OTHER,
    PROXY,
    ZH,
    gathering_world,
    same,
)
from tests.lane_world import (
    API,
    PAGE,
    PREFIX,
    REST,
    SUSPENDED,
    LaneWorld,
    request,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaneWorld]:
    made = gathering_world(tmp_path_factory.mktemp("gathering") / "data")
    yield made
    made.close()


# Octets -----------------------------------------------------------------------------------

NAMES = [
    *("SN1", "sn1", "%53N1", "SN1#part", "empty", "with/slash", "with%2Fslash", "frozen"),
    *("%E6%B6%A1%E8%BD%AE", "quoted%22%27%3C%26%3E", "per%25cent", "draft", "secret", "partly"),
    *(
        "at-once",
        "soon",
        "alias",
        "unknown",
        "",
        "%FF",
        "%",
        "a%00b",
        "un'kn<ow>n\"\\|^`{}",
    ),
    *("//", "/./../x", "a" * 1_100, "%F0%9F%8C%80" * 3, "a+b", "a;b=c&d@e:f,g", "a[1]"),
]
QUERIES = [
    *("?", "?index=1", "?index=0", "?index=7&index=2", "?type=URL", "?type=", "?type=url&index=1"),
    *("?unknown=1", "?pretty", "?callback=f", "?callback=1", "?publiconly", "?publiconly=1"),
    *("?index=1#x", "?%FF", "?a=%FF", "?" + "&".join(f"index={n}" for n in range(1, 80))),
]
HEADERS: list[tuple[str, ...]] = [
    (),
    (JSON,),
    (ZH,),
    (JSON, ZH, 'If-None-Match: "no"'),
    ("If-None-Match: *",),
    ("X-Request-Id: mine-1", "User-Agent: curl/8", "Cookie: a=b", "Cookie: c=d"),
    (PROXY, "Origin: https://example.cn"),
    ("-Host", "Host:"),
    ("-Host", 'Host: bad host " here', "Connection: Keep-Alive "),
]


@pytest.mark.parametrize("start", [API, REST])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_answered_without_aiohttp(world: LaneWorld, start: str, name: str) -> None:
    targets = [(query, headers) for query in QUERIES for headers in ((), (ZH,))]
    for query, headers in [*targets, *product(["", "?index=1"], HEADERS)]:
        assert not same(world, [request(start + name + query, *headers)])


@pytest.mark.parametrize("start", ["/api/v1/identifiers/", "/api/handles/"])
@pytest.mark.parametrize(
    "name",
    [
        *(f"{SUSPENDED}/x", f"{ELSEWHERE}/SN1", f"{PREFIX}/gone", "99.1/x", PREFIX),
        *("0.NA/88.118.8", "%2F", "x/", "/x", "0.NA", "88.118.8%2F"),
    ],
)
def test_why_there_is_no_answer(world: LaneWorld, start: str, name: str) -> None:
    for headers in HEADERS:
        assert not same(world, [request(start + name, *headers)])


@pytest.mark.parametrize(
    "asked",
    [
        request(API + "SN1?auth"),
        request(API + "SN1?auth=true&index=1"),
        request(REST + "SN1?auth"),
        request(REST + "SN1?publiconly=false"),
        request(API + "many"),  # who reads slowly has to be waited for
        request(REST + "long"),
        request(API + "SN1", method="HEAD"),
        request(API + "SN1?type=" + "x" * 4_096),
        request(API + "SN1", "Connection: close"),
        request(PAGE + "SN1", JSON),
        request(PAGE + "unknown"),
    ],
    ids=lambda asked: asked[:60].decode(),
)
def test_what_is_left_to_aiohttp(world: LaneWorld, asked: bytes) -> None:
    assert same(world, [asked])
    assert same(world, [asked, asked])
    same(world, [request(API + "SN1"), asked, request(REST + "SN1")], at_once=True)
    assert world.front.gate.running == 0


@pytest.mark.parametrize("at_once", [False, True])
def test_what_follows_is_answered_in_its_turn(world: LaneWorld, at_once: bool) -> None:
    health, page = request("/healthz"), request(PAGE + "SN1", JSON)
    last = request(API + "SN1", "Connection: close")
    refused = request(API + "SN1", "Content-Length: 2", method="PUT", body=b"{}")
    for chunks in (
        [ONE, OTHER] * 5,
        [ONE, health, OTHER, health],
        [ONE, page, OTHER, MANY, ONE],
        [ONE, refused[:-2], refused[-2:], OTHER],
        [ONE, ONE + OTHER, OTHER[:30], OTHER[30:], ONE],
        [OTHER, last, ONE],
        [ONE, b"x\r\n\r\n", OTHER],
        [OTHER, b"\r\n", ONE],
        [ONE + OTHER],
        [ONE * 40, OTHER],
    ):
        same(world, chunks, at_once=at_once)
        same(world, chunks, at_once=at_once, shed=True)
    assert world.front.gate.running == 0


def test_split_anywhere(world: LaneWorld) -> None:
    for at in range(1, len(ONE), 7):
        same(world, [ONE[:at], ONE[at:], OTHER])
        same(world, [OTHER, ONE[:at], ONE[at:], OTHER], at_once=True)


TARGETS = st.builds(
    "{}{}{}".format,
    st.sampled_from(["/api/v1/identifiers/", "/api/handles/", API, REST]),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=12),
    st.sampled_from(["", "", "?", "#", "/SN1", "/SN1?"]),
)


@settings(max_examples=300)
@given(TARGETS, st.sampled_from(HEADERS))
def test_any_target(world: LaneWorld, target: str, headers: tuple[str, ...]) -> None:
    same(world, [request(target, *headers), ONE])


PIECES = st.sampled_from([ONE, OTHER, MANY, request("/healthz"), ONE[:20], ONE[20:], ONE + OTHER])


@settings(max_examples=200)
@given(st.lists(PIECES, min_size=1, max_size=8), st.booleans(), st.booleans())
def test_any_stream(world: LaneWorld, pieces: list[bytes], at_once: bool, shed: bool) -> None:
    same(world, pieces, at_once=at_once, shed=shed)
    assert world.front.gate.running == 0
