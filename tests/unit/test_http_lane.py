"""What holds for connections also holds in the express lane: time, memory, counting, the end."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from biaojie.identifier import Identifier
from biaojie.record import Record
from resolver.core import Cached
from resolver.front.http.endpoint import Reply
from resolver.front.http.lane import PROFILES_MAX, STYLES_MAX, HttpLane, Noted
from resolver.front.http.replies import response_of
from resolver.health import Health
from resolver.observe import Observer
from tests.lane_world import API, PAGE, PREFIX, REST, LaneWorld, Pipe, request, turns

WHOLE = request(API + "SN1")
POST = request(API + "SN1", "Content-Length: 10", method="POST", body=b"0123456789")


@pytest.fixture
def world(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[LaneWorld]:
    marker = request.node.get_closest_marker("parametrize")
    given = request.getfixturevalue("given") if marker and "given" in marker.args[0] else {}
    made = LaneWorld(tmp_path_factory.mktemp("lane") / "data", **given)
    if made.lane.enabled:
        assert made.check([WHOLE]) == 1
    yield made
    made.close()


async def fast(world: LaneWorld, pipe: Pipe, whole: bytes = WHOLE) -> bytes:
    """Ask on an open connection; the lane must answer, with nothing to wait for."""
    hits, said = world.lane.hits, len(pipe.out)
    pipe.feed(whole)
    assert world.lane.hits == hits + 1
    return pipe.out[said:]


def counted(world: LaneWorld) -> dict[str, float]:
    page = world.node.observer.page().decode()
    return {
        name: float(number)
        for name, number in re.findall(r"^(biaojie_[^ ]*) ([0-9.e+]+)$", page, re.MULTILINE)
    }


# The reply ------------------------------------------------------------------------------


def test_date_and_request_id_are_those_of_now(world: LaneWorld) -> None:
    async def work() -> None:
        pipe = Pipe(world.server)
        ids = set()
        for _ in range(10_000):
            reply = await fast(world, pipe)
            ids.add(reply.partition(b"X-Request-Id: ")[2][:16])
            pipe.out = b""
        assert len(ids) == 10_000
        assert all(re.fullmatch(rb"[0-9a-f]{16}", id_) for id_ in ids)
        for _ in range(2):
            reply = await fast(world, pipe)
            date = reply.partition(b"\r\nDate: ")[2].partition(b"\r\n")[0].decode()
            now = time.time()
            assert now - 2 < parsedate_to_datetime(date).timestamp() <= now
            await asyncio.sleep(1.05)
        pipe.close()
        await turns()

    world.run(work())


def test_the_ages_go_on(world: LaneWorld) -> None:
    entry = world.node.cache.cached.entries[Identifier(PREFIX, "SN1").key()]
    ready = world.lane._entries[b"p" + WHOLE.partition(b" HTTP/")[0]]

    async def work(passed: float) -> bytes:
        for of in (entry, ready):
            of.fetched -= passed
        entry.expires -= passed
        pipe = Pipe(world.server)
        reply = await fast(world, pipe)
        pipe.close()
        await turns()
        return reply

    for passed, age in ((0, 0), (1, 1), (2_000, 2_001), (1_500, 3_501)):
        reply = world.run(work(passed))
        assert b"\r\nBiaojie-Age: %d\r\n" % age in reply
        assert b"\r\nCache-Control: public, max-age=%d\r\n" % (86_400 - age) in reply


def test_the_lane_is_bounded_in_what_it_remembers() -> None:
    observer, now = Observer(), time.monotonic()
    lane = HttpLane(Health(), 300_000, observer)

    def learn(number: int, ttl_s: int) -> None:
        entry = Cached(Record(Identifier(PREFIX, "x"), ()), now, now + ttl_s, 1, ttl_s, True)
        headers = {"Cache-Control": f"public, max-age={ttl_s}", "Biaojie-Age": "0", "ETag": '"1"'}
        response = response_of(Reply(200, b"{}" * 300, headers=headers), "0" * 16)
        response.headers["Content-Length"] = "600"
        lane.learn(b"GET /%d" % number, "GET", response, entry, ("http", "resolve"))

    for number in range(3_000):
        learn(number, 10 + number)
        lane.profile(b"Host: %d\r\n\r\n" % number)
    assert 100 < len(lane) < 300_000 // 600
    assert lane.bytes <= 300_000
    assert len(lane._styles) <= STYLES_MAX
    assert len(lane.profiles) == PROFILES_MAX
    assert lane.reply(b"GET /2999", now) is not None
    assert lane.reply(b"GET /0", now) is None


def test_what_a_codec_reads_is_noted() -> None:
    headers = Noted({"accept": "x", "cookie": "y"})
    assert headers.get("accept") == "x"
    assert headers.get("authorization") is None
    assert "if-none-match" not in headers
    assert headers.decided_by_profile()
    assert headers.get("origin") is None
    assert not headers.decided_by_profile()
    assert dict(Noted({"accept": "x"})) == {"accept": "x"}
    every = Noted({"accept": "x"})
    assert list(every) == ["accept"]
    assert not every.decided_by_profile()


# Counting -------------------------------------------------------------------------------


def test_counts_are_exact(world: LaneWorld) -> None:
    targets = [WHOLE, request(REST + "SN1"), request(PAGE + "SN1", "Accept: application/json")]
    for whole in targets:
        world.check([whole])

    async def work() -> None:
        pipe = Pipe(world.server)
        for number in range(1_000):
            await fast(world, pipe, targets[number % 2])
            pipe.out = b""
        await fast(world, pipe, targets[2])
        pipe.close()
        await turns()

    before = counted(world)
    world.run(work())
    after = counted(world)

    def more(name: str) -> float:
        return after[name] - before[name]

    for operation, count in (("resolve", 500), ("handle-get", 500), ("page", 1)):
        labels = f'{{front="http",operation="{operation}",outcome="ok"}}'
        assert more("biaojie_requests_total" + labels) == count
        assert more("biaojie_request_seconds_count" + labels) == count
        assert 0 < more("biaojie_request_seconds_sum" + labels) < 5
        labels = labels.replace(",operation", ',le="+Inf",operation')
        assert more("biaojie_request_seconds_bucket" + labels) == count
    assert more("biaojie_cache_hit_total") == 1_001
    assert more("biaojie_cache_miss_total") == 0
    assert after["biaojie_http_lane_entries"] == len(world.lane) == 3
    assert after["biaojie_http_lane_bytes"] == world.lane.bytes > 1_000


@pytest.mark.parametrize("given", [{"lane_bytes_max": 0}])
def test_without_memory_there_is_no_lane(world: LaneWorld, given: dict[str, int]) -> None:
    assert world.check([WHOLE]) == 0
    assert len(world.lane) == 0
    assert counted(world)["biaojie_http_lane_bytes"] == 0


def test_a_client_that_asks_on_at_once_is_answered_by_the_lane(world: LaneWorld) -> None:
    """Its next request may be there before aiohttp's task waits for it."""

    class Eager(Pipe):
        left = 20

        def write(self, data: Any) -> None:
            super().write(data)
            if self.left:
                self.left -= 1
                asyncio.get_running_loop().call_soon(self.feed, WHOLE)

    async def work() -> None:
        hits = world.lane.hits
        pipe = Eager(world.server)
        pipe.feed(request("/healthz"))
        await turns(100)
        assert world.lane.hits == hits + 20
        assert pipe.out.count(b"HTTP/1.1 200 OK\r\n") == 21
        pipe.close()
        await turns()

    world.run(work())


# Connections ----------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"keepalive_timeout_s": 0.4}])
def test_idle_connections_are_closed_and_used_ones_are_not(
    world: LaneWorld, given: dict[str, float]
) -> None:
    async def work() -> None:
        silent, once, used, mixed, stuck = (Pipe(world.server) for _ in range(5))
        await fast(world, once)
        mixed.feed(request("/healthz"))  # aiohttp has a timer of its own there
        stuck.stuck = True
        await fast(world, stuck)
        await turns()
        for _ in range(12):
            await fast(world, used)
            await fast(world, mixed)
            await asyncio.sleep(0.1)
        assert [p.closed for p in (silent, once, used, mixed, stuck)] == [1, 1, 0, 0, 1]
        await asyncio.sleep(0.8)
        assert used.closed
        assert mixed.closed
        assert not world.server.open

    world.run(work())


@pytest.mark.parametrize("given", [{"keepalive_timeout_s": 1.6}])
def test_an_idle_connection_does_without_aiohttp(world: LaneWorld, given: dict[str, float]) -> None:
    async def work() -> None:
        unknown = request(PAGE + "unknown", "Accept: application/json")  # which aiohttp answers
        idle, waiting, half = (Pipe(world.server) for _ in range(3))
        for _ in range(2):
            for pipe in (idle, waiting, half):
                pipe.feed(unknown)
                await turns()
            assert idle.connection._handler is not None
            assert len(world.server.connections) == 3
            waiting.feed(POST[:-5])
            half.feed(unknown[:20])
            await asyncio.sleep(1)
            assert idle.connection._handler is None
            assert waiting.connection._handler is not None
            assert half.connection._handler is not None
            assert len(world.server.connections) == 2
            waiting.feed(POST[-5:], unknown)
            half.feed(unknown[20:], unknown)
            await fast(world, idle)
        await turns()
        assert [pipe.closed for pipe in (idle, waiting, half)] == [False] * 3
        assert idle.out.count(b"HTTP/1.1 404 ") == 2
        assert waiting.out.count(b"HTTP/1.1 404 ") == 4
        assert half.out.count(b"HTTP/1.1 404 ") == 6
        await asyncio.sleep(2.5)
        assert [pipe.closed for pipe in (idle, waiting, half)] == [True] * 3
        assert not world.server.open
        assert not world.server.connections

    world.run(work())


@pytest.mark.parametrize("given", [{"reply_timeout_s": 0.3}])
def test_who_does_not_read_is_held_in_bounds_and_cut(
    world: LaneWorld, given: dict[str, float]
) -> None:
    async def work() -> None:
        slow, resting = Pipe(world.server), Pipe(world.server)
        slow.stuck = resting.stuck = True
        for pipe in (slow, resting):
            for _ in range(2_000):
                pipe.feed(WHOLE)
                await asyncio.sleep(0)
                if len(pipe.out) > 65_536:
                    break
        hits, said = world.lane.hits, len(slow.out)
        for _ in range(1_000):
            slow.feed(WHOLE)
            await asyncio.sleep(0)
        assert world.lane.hits == hits
        assert len(slow.out) < said + 2_000
        resting.unstick()
        resting.feed(WHOLE)
        await turns()
        resting.out = b""
        assert await fast(world, resting)
        await asyncio.sleep(0.5)
        assert slow.closed
        assert not resting.closed
        resting.close()
        await turns()

    world.run(work())


@pytest.mark.parametrize("given", [{"connections_max": 8}])
def test_the_crowd_is_sent_away_by_lane_connections_too(
    world: LaneWorld, given: dict[str, int]
) -> None:
    async def work() -> None:
        held = [Pipe(world.server) for _ in range(8)]
        for pipe in held:
            await fast(world, pipe)
        late = Pipe(world.server)
        late.feed(WHOLE)
        await turns()
        assert late.out.startswith(b"HTTP/1.1 503 ")
        assert late.out.count(b"HTTP/1.1 ") == 1
        assert world.front.readings()["http_connections"] == 9
        for pipe in (*held, late):
            pipe.close()
        await turns()
        await fast(world, again := Pipe(world.server))
        again.close()
        await turns()

    world.run(work())


@pytest.mark.parametrize("given", [{"header_timeout_s": 0.3}])
def test_half_a_head_has_its_time(world: LaneWorld, given: dict[str, float]) -> None:
    async def work() -> None:
        pipe = Pipe(world.server)
        await fast(world, pipe)
        pipe.feed(WHOLE[:30])
        await asyncio.sleep(0.5)
        assert b"HTTP/1.1 408 " in pipe.out
        pipe.close()
        await turns()

    world.run(work())


def test_the_end_of_the_node_is_the_end_of_the_lane(world: LaneWorld) -> None:
    async def work() -> None:
        lane, mixed = Pipe(world.server), Pipe(world.server)
        await fast(world, lane)
        mixed.feed(request("/healthz"))
        await turns()
        await fast(world, mixed)
        world.server.draining = True  # each may still ask once
        world.server.drain()
        hits = world.lane.hits
        late = Pipe(world.server)
        for pipe in (lane, mixed, late):
            pipe.out = b""
            pipe.feed(WHOLE)
            await turns()
            assert pipe.out.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"\r\nConnection: close\r\n" in pipe.out
            assert pipe.closed
        assert world.lane.hits == hits
        unused = Pipe(world.server)
        await world.front.stop()
        await turns()
        assert unused.closed
        assert not world.server.open

    world.run(work())


def test_who_shows_a_certificate_is_somebody(
    world: LaneWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        monkeypatch.setattr(
            "resolver.front.http.connection.client_certificate", lambda transport: b"DER"
        )
        hits = world.lane.hits
        pipe = Pipe(world.server)
        pipe.feed(WHOLE)
        await turns()
        assert pipe.out.startswith(b"HTTP/1.1 200 OK\r\n")
        assert world.lane.hits == hits
        pipe.close()
        await turns()

    world.run(work())
