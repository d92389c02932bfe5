"""What is asked for together over HTTP is counted, limited and ended like what goes the ordinary
way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from biaojie.errors import OverCapacity, PrefixSuspended
from registry.memory import MemoryStore
from resolver import service
from resolver.front.http import gathering
from resolver.front.http.replies import octets_of
from resolver.overload import Gate
from tests.contract.gathered import (
    ONE,
    OTHER,
    PROXY,
    ZH,
    at_once,
    cold,
    gathering_world,
    held,
    look_up,
    never,
    say,
)
from tests.lane_world import (
    API,
    REST,
    LaneWorld,
    Pipe,
    request,
    settled,
    turns,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaneWorld]:
    made = gathering_world(tmp_path_factory.mktemp("gathering") / "data")
    yield made
    made.close()


# Over the registry --------------------------------------------------------------------------


def test_those_of_one_turn_are_asked_for_together(
    world: LaneWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        cold(world)
        pipes = [Pipe(world.server) for _ in range(60)]
        for n, pipe in enumerate(pipes):
            pipe.feed(request((API, REST)[n % 2] + ("SN1", "frozen", "unknown")[n % 3]))
        assert world.front.gate.running == 60
        await turns()
        assert world.front.gate.running == 0
        for n, pipe in enumerate(pipes):
            status = (b" 200 ", b" 200 ", b" 404 ")[n % 3]
            assert pipe.out.count(b"HTTP/1.1" + status) == 1
            name = (b"SN1", b"frozen", b"unknown")[n % 3]
            assert n % 3 == 2 or name in pipe.out.partition(b"\r\n\r\n")[2]
            assert pipe.connection._handler is None
            pipe.close()
        await turns()

    with look_up(monkeypatch, at_once) as counts:
        world.run(work())
    assert sum(counts) == 3
    assert len(counts) <= 2


def test_more_than_one_look_up_takes(world: LaneWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> int:
        cold(world)
        pipes = [Pipe(world.server) for _ in range(100)]
        for n, pipe in enumerate(pipes):
            pipe.feed(request(API + f"nobody{n}"))
        await turns()
        for pipe in pipes:
            assert pipe.out.count(b" 404 ") == 1
            pipe.close()
        await turns()
        return len(pipes)

    monkeypatch.setattr(service, "GATHERED_MAX", 16)
    assert world.run(work()) == 100


def test_it_is_counted_and_logged_alike(world: LaneWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[object, ...]] = []

    def answered(
        front: str, operation: str, outcome: str, seconds: float, *, peer: str, **rest: Any
    ) -> None:
        said.append((front, operation, outcome, peer, rest.get("fault") is None))

    asked = [
        request(start + name, *headers)
        for start in (API, REST)
        for name in ("unknown", "gone", "?", "SN1?index=x", "SN1")
        for headers in ((), (PROXY,), (ZH, "X-Request-Id: mine"))
    ]

    async def work(server: Any) -> tuple[list[tuple[object, ...]], list[int]]:
        said.clear()
        tallies = [
            world.node.observer.tally("http", operation) for operation in ("resolve", "handle-get")
        ]
        before = [tally.count for tally in tallies]
        for one in asked:
            cold(world)
            await world.say(server, [one])
        found = [one for one in said if one[2] != "ok"]
        ok = [
            sum(one[1] == name for one in said) - sum(one[1] == name for one in found)
            for name in ("resolve", "handle-get")
        ]
        return found, [t.count - b + n for t, b, n in zip(tallies, before, ok, strict=True)]

    monkeypatch.setattr(world.node.observer, "answered", answered)
    expected = world.run(work(world.plain))
    assert world.run(work(world.server)) == expected
    assert len(expected[0]) == 24
    assert expected[1] == [3, 3]
    assert {one[3] for one in expected[0]} == {"127.0.0.1", "198.51.100.4"}


def test_request_ids_are_the_askers_or_new(world: LaneWorld) -> None:
    async def work() -> tuple[list[bytes], list[bytes]]:
        cold(world)
        pipes = [Pipe(world.server) for _ in range(20)]
        for n, pipe in enumerate(pipes):
            pipe.feed(request(API + "unknown", *([f"X-Request-Id: id-{n}"] if n % 2 else [])))
        await turns()
        ids, inside = [], []
        for pipe in pipes:
            ids.append(pipe.out.partition(b"X-Request-Id: ")[2].partition(b"\r")[0])
            inside.append(pipe.out.partition(b'"request_id":"')[2].partition(b'"')[0])
            pipe.close()
        await turns()
        return ids, inside

    ids, inside = world.run(work())
    assert ids == inside
    assert len(set(ids)) == 20
    assert [id_ for id_ in ids if id_.startswith(b"id-")] == [b"id-%d" % n for n in range(1, 20, 2)]


def test_without_the_registry(world: LaneWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known names are answered stale, others not: as ever."""
    targets = [
        request(start + name, *headers)
        for start in (API, REST)
        for name in ("SN1", "nobody")
        for headers in ((), (ZH,), ("If-None-Match: *",))
    ]
    world.check([ONE])
    back = world.node.health.answered
    monkeypatch.setattr(world.node.health, "answered", lambda: None)
    world.node.health.failed("test")
    try:
        for asked in targets:

            async def work(asked: bytes = asked) -> bytes:
                expected = await world.say(world.plain, [asked, asked])
                *found, by_aiohttp = await say(world, [asked, asked])
                assert tuple(found) == expected
                assert not by_aiohttp
                return expected[0]

            told = world.run(work())
            known = b"nobody" not in asked
            assert (b"Biaojie-Source: stale" in told, b" 503 " in told) == (known, not known)
    finally:
        back()


@pytest.mark.parametrize("start", [API, REST])
def test_time_runs_out(world: LaneWorld, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    async def told(server: Any) -> bytes:
        cold(world)
        pipe = Pipe(server)
        pipe.feed(request(start + "late"))
        async with asyncio.timeout(5):
            while not pipe.out:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (pipe.connection._handler is None) is (server is world.server)
        pipe.close()
        async with asyncio.timeout(5):  # whose time ends first is chance on a busy machine
            while world.node.local._tasks:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        world.node.health.answered()
        return settled(pipe.out)

    with look_up(monkeypatch, never):
        expected = world.run(told(world.plain))
        assert b" 50" in expected[:14]
        assert world.run(told(world.server)) == expected
    assert world.front.gate.running == 0


def test_an_error_for_all_is_one_for_each(
    world: LaneWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = world.node.service
    for error in (OverCapacity(), PrefixSuspended(), ZeroDivisionError()):

        async def fails(*_: Any, error: Exception = error) -> Any:
            raise error

        async def work() -> None:
            expected = [await world.say(world.plain, [one]) for one in (ONE, OTHER)]
            for one, each in zip((ONE, OTHER), expected, strict=True):
                cold(world)
                *found, by_aiohttp = await say(world, [one])
                assert tuple(found) == each
                assert not by_aiohttp

        with monkeypatch.context() as patched:
            cold(world)
            patched.setattr(service, "resolve_public", fails)
            patched.setattr(service, "resolve", fails)
            world.run(work())


def test_a_mistake_of_ours_is_nobody_elses(
    world: LaneWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(reply: Any, request_id: str) -> bytes:
        if request_id == "bad":
            raise ZeroDivisionError
        return octets_of(reply, request_id)

    async def work() -> None:
        said: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, what: said.append(what))
        cold(world)
        pipes = [Pipe(world.server) for _ in range(3)]
        for n, pipe in enumerate(pipes):
            pipe.feed(request(API + "SN1", *(["X-Request-Id: bad"] if n == 1 else [])))
        await turns()
        asyncio.get_running_loop().set_exception_handler(None)
        assert [pipe.out.count(b" 200 OK\r\n") for pipe in pipes] == [1, 0, 1]
        assert [pipe.closed for pipe in pipes] == [False, True, False]
        assert [type(what["exception"]) for what in said] == [ZeroDivisionError]
        assert world.front.gate.running == 0
        for pipe in pipes:
            pipe.close()
        await turns()

    with monkeypatch.context() as patched:
        patched.setattr(gathering, "octets_of", mistaken)
        world.run(work())


# While it is on its way -----------------------------------------------------------------------


def test_who_hangs_up_gives_back_the_place(
    world: LaneWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        ok = world.node.observer.tally("http", "resolve")
        before = ok.count
        async with held(world, monkeypatch) as event:
            gone, stays, early = (Pipe(world.server) for _ in range(3))
            early.feed(ONE)
            early.close()
            for pipe in (gone, stays):
                pipe.feed(ONE)
            await turns()
            assert world.front.gate.running == 2
            gone.close()
            await turns()
            assert world.front.gate.running == 1
            assert gone.connection not in world.server.open
            event.set()
            await turns()
            assert (early.out, gone.out) == (b"", b"")
            assert stays.out.count(b" 200 OK\r\n") == 1
            assert world.front.gate.running == 0
            assert ok.count == before + 1
            stays.close()

    world.run(work())


def test_a_slow_name_holds_up_nobody_else(
    world: LaneWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for again, together with others: they do not wait for what it waits for."""
    plain = MemoryStore.look_up
    go = asyncio.Event()

    async def looked_up(store: MemoryStore, keys: Any) -> Any:
        if any(key.suffix == b"SN1" for key in keys):
            await go.wait()
        return await plain(store, keys)

    async def work() -> None:
        cold(world)
        slow, again, other = (Pipe(world.server) for _ in range(3))
        slow.feed(ONE)
        await turns()
        again.feed(ONE)
        other.feed(OTHER)
        await turns()
        assert (slow.out, again.out) == (b"", b"")
        assert other.out.startswith(b"HTTP/1.1 404 ")
        go.set()
        await turns()
        for pipe in (slow, again):
            assert pipe.out.startswith(b"HTTP/1.1 200 ")
        for pipe in (slow, again, other):
            pipe.close()

    with monkeypatch.context() as patched:
        patched.setattr(MemoryStore, "look_up", looked_up)
        world.run(work())


def test_what_comes_meanwhile_waits(world: LaneWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    hit = request(API + "empty")
    world.check([hit])

    async def work() -> None:
        async with held(world, monkeypatch) as event:
            pipe = Pipe(world.server)
            cold(world)
            await world.say(world.plain, [])
            pipe.feed(ONE, OTHER[:20], OTHER[20:], request("/healthz"), ONE)
            await turns()
            assert pipe.out == b""
            assert not pipe._reading
            assert len(pipe._held) == 3  # no more is taken than came first
            event.set()
            await turns(200)
            told = [part[:3] for part in pipe.out.split(b"HTTP/1.1 ")[1:]]
            assert told == [b"200", b"404", b"200", b"200"]
            assert pipe._reading
            pipe.close()

    world.run(work())


def test_it_is_not_idle(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for the sweep nor for aiohttp, whose timers are shorter here than the wait."""
    world = LaneWorld(tmp_path_factory.mktemp("gathering") / "data", keepalive_timeout_s=0.3)

    async def work() -> None:
        async with held(world, monkeypatch) as event:
            mixed, plain = Pipe(world.server), Pipe(world.server)
            mixed.feed(request("/healthz"))
            await turns()
            mixed.out = b""
            for pipe in (mixed, plain):
                pipe.feed(ONE)
            assert mixed.connection._handler is not None
            await asyncio.sleep(1.0)
            assert not mixed.connection.shed()
            event.set()
            await turns()
            for pipe in (mixed, plain):
                assert pipe.out.count(b" 200 OK\r\n") == 1
                assert not pipe.closed
            await asyncio.sleep(1.0)
            assert mixed.closed
            assert plain.closed

    try:
        world.run(work())
    finally:
        world.close()


def test_a_full_gate_refuses_and_then_lets_in(
    world: LaneWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        gate: Gate = world.front.gate
        async with held(world, monkeypatch) as event:
            pipes = [Pipe(world.server) for _ in range(gate.limit)]
            for pipe in pipes:
                pipe.feed(ONE)
            assert gate.full
            late, other = Pipe(world.server), Pipe(world.plain)
            for pipe in (late, other):
                pipe.feed(ONE)
            await turns()
            assert settled(late.out) == settled(other.out)
            assert late.out.startswith(b"HTTP/1.1 503 ")
            event.set()
            await turns()
            assert gate.running == 0
            late.feed(ONE)
            await asyncio.sleep(0.1)
            assert late.out.count(b" 200 OK\r\n") == 1
            for pipe in (*pipes, late, other):
                pipe.close()

    world.run(work())


# The end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lingers", [False, True])
def test_at_the_end_of_the_node_it_is_answered_and_was_the_last(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, lingers: bool
) -> None:
    world = LaneWorld(tmp_path_factory.mktemp("gathering") / "data")

    async def work() -> None:
        async with held(world, monkeypatch) as event:
            waits, queued, idle = (Pipe(world.server) for _ in range(3))
            waits.feed(ONE)
            queued.feed(ONE, OTHER)
            await turns()
            stopping = asyncio.create_task(world.front.stop(0.2 if lingers else 0.0))
            await turns()
            assert not stopping.done()
            assert idle.closed is not lingers
            assert world.front.gate.running >= 1
            event.set()
            await stopping
            for pipe in (waits, queued):
                assert pipe.out.startswith(b"HTTP/1.1 200 OK\r\n")
                assert pipe.closed
            if lingers:
                assert b"\r\nConnection: close\r\n" in waits.out
            await turns()
            assert world.front.gate.running == 0
            assert not world.server.open
            assert not world.front._gathering._tasks  # type: ignore[union-attr]

    try:
        world.run(work())
    finally:
        world.close()
