"""Who waits over HTTP, for a look-up, a place or a quota: he is answered in the end, holds no more
than one request's worth of memory, and nothing of him stays behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from resolver.front.http.door import always_served
from resolver.overload import ASIDE_OCTETS, Penalties
from tests.contract.gathered import cold, held
from tests.lane_world import API, LaneWorld, Pipe, request, turns

HIT, MISS = request(API + "SN1"), request(API + "nobody")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaneWorld]:
    folder = tmp_path_factory.mktemp("waiting") / "data"
    made = LaneWorld(folder, requests_max=16, header_timeout_s=0.3)
    yield made
    made.close()


@contextmanager
def full(world: LaneWorld, *, spent: bool = False) -> Iterator[Penalties]:
    """`spent`: nobody more is refused at once."""
    gate = world.front.gate
    penalties = gate.penalties = Penalties(60.0)
    if spent:
        penalties.charge(1e9)
    before, gate.running = gate.running, gate.limit
    try:
        yield penalties
    finally:
        gate.running = before


def aside(world: LaneWorld, asked: bytes = MISS) -> Pipe:
    pipe = Pipe(world.server)
    pipe.feed(asked)
    assert pipe.connection._aside is not None
    return pipe


def test_what_comes_behind_a_miss_is_taken_no_faster_than_it_is_answered(
    world: LaneWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> tuple[int, int]:
        cold(world)
        full = wrong = 0
        async with held(world, monkeypatch) as event:
            pipe = Pipe(world.server)
            pipe.feed(MISS)
            await turns()
            pipe.feed(request("/healthz") * 200)
            await turns()
            event.set()
            for _ in range(400):
                await asyncio.sleep(0)
                handler = pipe.connection._handler
                if handler is not None and handler._buffer_paused:
                    full += 1
                    wrong += pipe._reading
        pipe.close()
        await turns()
        return full, wrong

    full, wrong = world.run(work())
    assert full > 0
    assert wrong == 0


def test_the_end_of_a_body_is_no_beginning_of_a_head(world: LaneWorld) -> None:
    """aiohttp answers before the body is there; what comes of it then must not be timed."""

    async def work(server: Any) -> tuple[int, int, bool]:
        pipe = Pipe(server)
        pipe.feed(request(API + "SN1", "Transfer-Encoding: chunked", method="POST"))
        await turns()
        for chunk in (b"5\r\nhello\r\n", b"0\r\n\r\n"):
            pipe.feed(chunk)
            await turns()
        for _ in range(6):
            pipe.feed(HIT)
            await turns()
            await asyncio.sleep(0.1)
        found = pipe.out.count(b" 200 OK\r\n"), pipe.out.count(b" 408 "), pipe.closed
        pipe.close()
        await turns()
        return found

    world.check([HIT])
    assert world.run(work(world.plain)) == (6, 0, False)
    assert world.run(work(world.server)) == (6, 0, False)


def test_who_hangs_up_waits_no_more(world: LaneWorld) -> None:
    async def work() -> None:
        with full(world, spent=True) as penalties:
            pipes = [aside(world) for _ in range(50)]
            alive = aside(world)
            assert len(penalties) == 51
            for pipe in pipes:
                pipe.close()
            await turns()
            assert len(penalties) == 1
            assert all(pipe.connection._aside is None for pipe in pipes)
            world.front.gate.running = 1
            world.front.gate.leave()
            await turns()
            assert b" 404 " in alive.out, "the place is for who is there"
            alive.close()
            await turns()

    world.run(work())


@pytest.mark.parametrize("target", ["/healthz", "/readyz", "/metrics"])
@pytest.mark.parametrize(
    ("method", "query", "version", "header"),
    [
        ("GET", "", "HTTP/1.1", "A: b"),
        ("GET", "", "HTTP/1.1", "Connection: close"),
        ("GET", "", "HTTP/1.0", "A: b"),
        ("GET", "?a=b", "HTTP/1.1", "A: b"),
        ("HEAD", "", "HTTP/1.1", "A: b"),
        ("HEAD", "?a", "HTTP/1.0", "A: b"),
    ],
)
def test_probes_never_wait(
    world: LaneWorld, target: str, method: str, query: str, version: str, header: str
) -> None:
    async def work() -> None:
        with full(world, spent=True) as penalties:
            pipe = Pipe(world.server)
            refused = world.front.gate.refused
            pipe.feed(request(target + query, header, method=method, version=version))
            await turns()
            assert b" 200 " in pipe.out[:20]
            assert (len(penalties), world.front.gate.refused) == (0, refused)
            pipe.close()
            await turns()

    world.run(work())


def test_what_is_no_probe() -> None:
    for start in (b"GET /healthzz", b"GET /healthz/x", b"POST /healthz", b" GET /healthz", b""):
        assert not always_served(start)


def test_waiting_is_no_idleness(world: LaneWorld) -> None:
    async def work() -> None:
        with full(world, spent=True):
            pipe = aside(world)
            pipe.connection.close_idle(time.monotonic() + 1_000)
            await turns()
            assert not pipe.closed
            pipe.connection.leave_lane()  # as at the end of the node
            await turns()
            assert b" 503 " in pipe.out[:20]
            pipe.close()
            await turns()

    world.run(work())


def test_large_requests_are_refused_no_faster_than_small_ones(world: LaneWorld) -> None:
    async def work() -> None:
        body = b"x" * (2 * ASIDE_OCTETS)
        asked = request(API + "new", f"Content-Length: {len(body)}", method="PUT", body=body)
        with full(world) as penalties:
            pipe = Pipe(world.server)
            pipe.feed(*[asked] * 50)
            await turns()
            assert pipe.out.count(b"HTTP/1.1 503 ") == 1
            assert (len(penalties), pipe._reading) == (1, False)
            pipe.close()
            await turns()
            assert len(penalties) == 0

    world.run(work())


def test_one_who_is_refused_is_counted_once(world: LaneWorld) -> None:
    """Also where the lane takes it for a plain request, and the door does not."""

    async def work() -> None:
        with full(world):
            before = world.front.gate.refused
            pipe = Pipe(world.server)
            pipe.feed(request(API + "nobody", "Cookie: a=b", "Cookie: c=d"))
            await turns()
            assert pipe.out.count(b"HTTP/1.1 503 ") == 1
            assert world.front.gate.refused == before + 1
            pipe.close()
            await turns()

    world.run(work())
