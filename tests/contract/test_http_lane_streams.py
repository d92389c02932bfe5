"""The express lane on streams: requests in pieces, rows and pairs, and those hidden in another."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lane_world import API, PAGE, REST, LaneWorld, request

JSON = "Accept: application/json"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaneWorld]:
    made = LaneWorld(tmp_path_factory.mktemp("lane") / "data")
    yield made
    made.close()


# More than one request, less than one -----------------------------------------------------------


def test_split_at_every_octet(world: LaneWorld) -> None:
    whole = request(API + "SN1", JSON)
    world.check([whole])
    for at in range(1, len(whole)):
        assert world.run(world.both([whole[:at], whole[at:]])) == 0
        # After the split request was answered the next one is in the lane again, unless the
        # split was within the empty line, where nobody can be sure.
        assert world.run(world.both([whole[:at], whole[at:]], shed=True)) == 0
        parts = [whole[:at], whole[at:], whole, whole]
        assert world.run(world.both(parts)) == (2 if at <= len(whole) - 4 else 1)


def test_pipelined_requests_are_answered_in_order(world: LaneWorld) -> None:
    one, other = request(API + "SN1"), request(REST + "SN1")
    health = request("/healthz")
    world.check([one]), world.check([other])
    for row in ([one, other], [one, health, other], [other] * 50, [health, one], [one, health]):
        assert world.run(world.both([b"".join(row)])) == 0
        assert world.run(world.both([b"".join(row), one])) == 1
        world.run(world.both(row, at_once=True))
        world.run(world.both([*row, one, b"".join(row), other, one], at_once=True))
    half = len(one) // 2
    for chunks in (
        [one + other[:half], other[half:], one],
        [one[:half], one[half:] + other, other],
    ):
        assert world.run(world.both(chunks)) == 1


def test_the_lane_goes_on_after_writes_on_the_same_connection(world: LaneWorld) -> None:
    one = request(API + "SN1")
    world.check([one])
    refused = request(API + "SN1", "Content-Length: 2", method="PUT", body=b"{}")
    head, body = refused[:-2], refused[-2:]
    for parts in ([refused], [head, body], [head, body[:1], body[1:]]):
        assert world.run(world.both([*parts, one, one, one])) == 2
    for _ in range(2):  # more bodies than aiohttp keeps requests
        assert world.run(world.both([head, body] * 40 + [one] * 3)) == 2


@pytest.mark.parametrize("many", [29, 30, 31, 32, 33, 40, 70])
def test_what_the_parser_has_put_aside_is_answered_first(world: LaneWorld, many: int) -> None:
    """aiohttp counts a body that comes late as a request that still waits; then its parser may
    keep to itself the end of what was sent at once. Nothing may overtake that."""
    rows = [request(start + "SN1", JSON) for start in (API, REST, PAGE)]
    replies = [world.run(world.say(world.plain, [row]))[0] for row in rows]
    for row in rows:
        world.check([row])
    refused = request(API + "SN1", "Content-Length: 2", method="PUT", body=b"{}")
    writes = [refused[:-2], refused[-2:]]
    written = world.run(world.say(world.plain, writes))[0]
    asked = [number % 3 for number in range(many)]
    for more in ([0], [1, 2, 1]):
        sent = [*writes, b"".join(rows[n] for n in asked), *(rows[n] for n in more)]
        said, _ = world.run(world.say(world.server, sent))
        assert len(said) >= len(written + replies[0]) * 2
        assert (written + b"".join(replies[n] for n in [*asked, *more])).startswith(said)


# Smuggling --------------------------------------------------------------------------------------

INNER = request(API + "SN1")
POST = f"POST {API}SN1 HTTP/1.1\r\nHost: node.test\r\n"
SMUGGLED = [
    # A head within a body that is still to come, or comes in pieces.
    [POST.encode() + b"Content-Length: %d\r\n\r\n" % (2 * len(INNER)), INNER, INNER, INNER],
    [POST.encode() + b"Content-Length: %d\r\n\r\n" % len(INNER), INNER[:10], INNER[10:], INNER],
    [POST.encode() + b"Content-Length: 4\r\n\r\n", b"\r\n\r\n", INNER, INNER],
    [POST.encode() + b"Content-Length: 8\r\n\r\n", b"\r\n\r\n", INNER, INNER],
    [POST.encode() + b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n" % len(INNER), INNER, INNER],
    [POST.encode() + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", INNER, INNER],
    [POST.encode() + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"\r\n", INNER, INNER],
    [POST.encode() + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", INNER, INNER],
    [POST.encode() + b"Transfer-Encoding: chunked\r\n\r\n4\r\n\r\n\r\n", INNER, INNER],
    # Two lengths, or a length and chunks.
    [POST.encode() + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n", INNER, INNER],
    [POST.encode() + b"Content-Length: 5\r\nContent-Length: 0\r\n\r\n", INNER, INNER],
    [POST.encode() + b"Transfer-Encoding: xchunked\r\n\r\n", INNER, INNER],
    [POST.encode() + b"Transfer-Encoding : chunked\r\n\r\n", INNER, INNER],
    # Lengths beyond what numbers hold: no body for one reader, all the rest for another.
    *(
        [request(target, f"Content-Length: {length}", method=method), INNER, INNER]
        for target in (API + "SN1", "/healthz")
        for method in ("GET", "HEAD", "POST", "OPTIONS")
        for length in (2**64 - 1, 2**64, 2**63, "+4", "0x4", "4,4", "")
    ),
    # A body that a GET has, and what comes after it.
    [request(API + "SN1", "Content-Length: 5", body=b"GET /"), INNER, INNER],
    [request(API + "SN1", f"Content-Length: {len(INNER)}"), INNER, INNER],
    [request("/healthz", f"Content-Length: {len(INNER)}"), INNER, INNER],
    # Half a head, then what would be a whole one.
    [b"GET /healthz HTTP/1.1\r\nX: ", INNER, INNER],
    [b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: y\r\n", INNER, INNER],
    [b"GET /healthz", INNER, INNER],
    [b"G", INNER, INNER],
    [b"\r\n", INNER, INNER],
    [b"\r", INNER, INNER],
    [b"\n", INNER, INNER],
    # Other protocols on the same connection.
    [request("/healthz", "Upgrade: websocket", "Connection: Upgrade"), INNER, INNER],
    [request("/healthz", "Upgrade: h2c", "Connection: Upgrade"), INNER, INNER],
    [request("node.test:443", method="CONNECT"), INNER, INNER],
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", INNER, INNER],
]


@pytest.mark.parametrize("chunks", SMUGGLED, ids=lambda chunks: repr(chunks[0][:100]))
def test_nothing_is_smuggled(world: LaneWorld, chunks: list[bytes]) -> None:
    world.check([INNER])
    world.run(world.both(chunks))
    world.run(world.both(chunks, shed=True))
    world.run(world.both(chunks, at_once=True))
    world.run(world.both([b"".join(chunks)]))
    world.run(world.both([INNER, *chunks]))


# Pieces in any order ---------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *(INNER, INNER, request(REST + "SN1"), request(PAGE + "SN1", JSON), request("/healthz")),
        request(API + "SN1", "Content-Length: 4", method="PUT", body=b"{ }\n"),
        request(
            API + "SN1", "Transfer-Encoding: chunked", method="PUT", body=b"2\r\n{}\r\n0\r\n\r\n"
        ),
        request(API + "SN1", "Content-Length: 60", method="POST"),
        request(API + "SN1", "Connection: close"),
        request("/healthz", "Upgrade: websocket", "Connection: Upgrade"),
        request(API + "SN1", f"Content-Length: {2**64 - 1}"),
        INNER[:20],
        INNER[20:],
        b"\r\n",
        b"\r\n\r\n",
        b"x",
    ]
)


@settings(max_examples=250)
@given(
    st.lists(PIECES, min_size=1, max_size=8),
    st.lists(st.integers(0, 600), max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_any_stream_cut_anywhere(
    world: LaneWorld, pieces: list[bytes], cuts: list[int], at_once: bool, shed: bool
) -> None:
    stream = b"".join(pieces)
    at = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for chunks in (pieces, [stream[a:b] for a, b in pairwise(at)]):
        world.run(world.both(chunks, at_once=at_once, shed=shed))
