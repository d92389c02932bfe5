"""Who is refused at the door is told what the ordinary path would have told him."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from biaojie.account import Role
from biaojie.wire.handle import MEDIA_TYPE
from registry.accounts import new_key
from resolver.front.http import connection
from resolver.front.http.handler import Handler
from resolver.overload import PENALTY_S, Gate, Penalties
from tests.lane_world import API, PAGE, PREFIX, REST, LaneWorld, Pipe, request, turns

RATE = 20
JSON = "Accept: application/json"
ZH = "Accept-Language: zh-CN,en;q=0.3"
BATCH = b'{"rows":[]}'


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaneWorld]:
    folder = tmp_path_factory.mktemp("door") / "data"
    made = LaneWorld(folder, requests_max=16, tenant_rate_max=RATE)
    yield made
    made.close()


@contextmanager
def full(world: LaneWorld) -> Iterator[None]:
    """Nobody waits from before: between two tests no time passes for those who do."""
    gate = world.front.gate
    gate.penalties = Penalties()
    before, gate.running = gate.running, gate.limit
    try:
        yield
    finally:
        gate.running = before


def refusals(world: LaneWorld) -> int:
    """How many were refused by the door, of all that were."""
    return world.front.door.refused


SHUT_OUT = [
    request(API + "nobody"),
    request(API + "nobody", ZH),
    request(API + "nobody", method="HEAD"),
    request(API + "nobody?index=1#x", "X-Request-Id: mine-1"),
    request(API + "nobody", "X-Request-Id: not ours"),
    request(API + "nobody", "Authorization: Bearer nothing"),
    request(API + "nobody", "Cookie: a=b", "User-Agent: curl/8"),
    request(REST + "nobody", JSON),
    request(REST + "nobody?pretty", ZH),
    request(REST + "no%20body?callback=f"),
    request(PAGE + "nobody"),
    request(PAGE + "nobody", ZH, "Accept: text/html"),
    request(PAGE + "nobody", JSON),
    request(PAGE + "nobody", "-Host", "Host: bad host"),
    request(API + "new", "Content-Length: 2", method="PUT", body=b"{}"),
    request(
        "/api/v1/identifiers", "Content-Type: application/json", "Content-Length: 2", method="POST"
    )
    + b"{}",
    request("/api/v1/identifiers?prefix=88.118.8"),
    request("/"),
    request("/openapi.json"),
    request("/static/none.css"),
]

GOES_ON = [
    request("/healthz"),
    request("/readyz", method="HEAD"),
    request("/api/nowhere"),
    request(API + "x", method="OPTIONS"),
    request(API + "x", method="PATCH", version="HTTP/1.0"),
    request("/", method="POST"),
    request(API + "x", "Content-Length: 3", method="PUT", body=b"{}"),
    request(API + "x", "Transfer-Encoding: chunked", method="PUT", body=b"0\r\n\r\n"),
    request("/", f"Content-Type: {MEDIA_TYPE}", "Content-Length: 2", method="POST", body=b"{}"),
    request(API + "x", "Connection: close"),
    request(API + "x", "-Host"),
    request(API + "x", "Cookie: a", "Cookie: b"),
    request(API + "x") + request(API + "y"),
    request(API + "x")[:-3],
    b"GET\r\n\r\n",
]


@pytest.mark.parametrize("asked", SHUT_OUT, ids=lambda asked: asked.partition(b"\r\n\r\n")[0])
def test_while_the_gate_is_full(world: LaneWorld, asked: bytes) -> None:
    before = refusals(world)
    with full(world):
        for _ in range(3):  # once worked out, it is told from memory
            assert world.run(world.both([asked])) == 0
    assert refusals(world) == before + 3


@pytest.mark.parametrize("asked", GOES_ON, ids=lambda asked: asked.partition(b"\r\n\r\n")[0])
def test_what_the_door_does_not_judge(world: LaneWorld, asked: bytes) -> None:
    before = refusals(world)
    with full(world):
        assert world.run(world.both([asked])) == 0
    assert refusals(world) == before


def test_it_says_when_to_come_again_and_is_counted(world: LaneWorld) -> None:
    tally = world.node.observer.tally("http", "resolve", "over-capacity")
    before = tally.count
    with full(world):
        told, closed = world.run(world.say(world.server, [request(API + "nobody", ZH)]))
    assert told.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nRetry-After: 1\r\n" in told
    assert b'"code":"over-capacity"' in told
    assert not closed
    assert tally.count == before + 1


def test_a_hit_of_the_lane_is_never_refused(world: LaneWorld) -> None:
    ask = request(API + "SN1")
    world.check([ask])
    with full(world):
        told, _ = world.run(world.say(world.server, [ask] * 3))
    assert told.count(b"HTTP/1.1 200 OK\r\n") == 3


def test_the_refused_are_read_from_less_often_and_then_again(world: LaneWorld) -> None:
    ask = request(API + "nobody")

    async def work() -> tuple[int, int, int]:
        pipe = Pipe(world.server)
        with full(world):
            pipe.feed(ask, ask)
            await turns()
            at_once = pipe.out.count(b" 503 ")
            await asyncio.sleep(5 * PENALTY_S)
            later = pipe.out.count(b" 503 ")
        pipe.feed(ask)
        await asyncio.sleep(5 * PENALTY_S)
        await turns()
        pipe.close()
        await turns(5)
        return at_once, later, pipe.out.count(b" 404 ")

    assert world.run(work()) == (1, 2, 1)


def test_what_waits_is_answered_in_its_turn(world: LaneWorld) -> None:
    hit, miss = request(API + "SN1"), request(API + "nobody")
    world.check([hit])

    async def work() -> bytes:
        pipe = Pipe(world.server)
        with full(world):
            pipe.feed(miss)
            pipe.feed(hit)  # it needs no place
            pipe.feed(miss)  # it came too soon
            assert [pipe.out.count(b" 503 "), pipe.out.count(b" 200 ")] == [1, 1]
            pipe.feed(hit, request("/healthz"))
            await turns()
            assert [pipe.out.count(b" 503 "), pipe.out.count(b" 200 ")] == [1, 1]
            await asyncio.sleep(5 * PENALTY_S)
            await turns()
        pipe.close()
        await turns(5)
        return pipe.out

    told = [part[:3] for part in world.run(work()).split(b"HTTP/1.1 ")[1:]]
    assert told == [b"503", b"200", b"503", b"200", b"200"]


def test_the_healthy_are_told_so_however_many_are_refused(world: LaneWorld) -> None:
    async def work() -> bytes:
        with full(world):
            world.front.gate.penalties.charge(1e9)
            pipe, other = Pipe(world.server), Pipe(world.server)
            pipe.feed(request("/healthz"))
            other.feed(request(API + "nobody"))
            await turns()
            assert other.out == b""
            out = pipe.out
            for each in (pipe, other):
                each.close()
            await asyncio.sleep(3 * PENALTY_S)  # who is gone is forgotten
            assert other.out == b""
        return out

    assert world.run(work()).startswith(b"HTTP/1.1 200 ")


def test_room_lets_in_who_waits(world: LaneWorld) -> None:
    async def work() -> bytes:
        gate = world.front.gate
        with full(world):
            gate.penalties.charge(1e9)
            pipe = Pipe(world.server)
            pipe.feed(request(API + "nobody"))
            await turns()
            assert pipe.out == b""
            gate.running -= gate.limit // 2
            gate.come_back()
            gate.leave()
            await turns()
            out = pipe.out
            pipe.close()
            await turns(5)
            gate.running += gate.limit // 2
        return out

    assert world.run(work()).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(("names", "places"), [(2, 1), (1_000, 2)])
def test_to_ask_for_many_takes_more_places(
    world: LaneWorld, monkeypatch: pytest.MonkeyPatch, names: int, places: int
) -> None:
    """Of 16 an eighth at the most."""
    taken: list[int] = []
    enter = Gate.enter

    def entered(gate: Gate, places: int = 1) -> bool:
        taken.append(places)
        return enter(gate, places)

    monkeypatch.setattr(Gate, "enter", entered)
    listed = ",".join(f'"{PREFIX}/name{n}"' for n in range(names))
    body = f'{{"identifiers":[{listed}]}}'.encode()
    head = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    asked = request("/api/v1/identifiers:resolve", *head, method="POST", body=body)
    told, _ = world.run(world.say(world.server, [asked]))
    assert b" 200 " in told
    assert taken == [places]
    assert world.front.gate.running == 0


def test_places_are_given_back_however_it_ends(world: LaneWorld) -> None:
    gate = world.front.gate
    assert gate.running == 0

    async def work() -> None:
        for asked in (request(API + "nobody"), request(API + "SN1"), request("/static/x")):
            for wait in (0, 1, 2, 5):
                pipe = Pipe(world.server)
                pipe.feed(asked)
                await turns(wait)
                pipe.close()
        await turns()

    world.run(work())
    assert gate.running == 0


def test_those_who_were_many_are_shed_a_few_at_a_time(
    world: LaneWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sweep takes as long as a few requests, however many have become idle."""
    monkeypatch.setattr(connection, "SHED_MAX", 3)
    retired = []
    retire = Handler.retire
    monkeypatch.setattr(
        Handler, "retire", lambda handler: (retired.append(handler), retire(handler))
    )

    async def work() -> list[int]:
        pipes = [Pipe(world.server) for _ in range(8)]
        for pipe in pipes:
            pipe.feed(request(PAGE + "nobody", JSON))
        await turns()
        told = []
        for pipe in pipes:
            assert pipe.out.count(b" 404 ") == 1
            pipe.connection.used -= 60.0  # less than what makes it be closed
        world.server.sweep()
        told.append(len(retired))
        async with asyncio.timeout(10):
            while len(retired) < len(pipes):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        for pipe in pipes:
            pipe.feed(request(PAGE + "nobody", JSON))
            await turns()
            assert pipe.out.count(b" 404 ") == 2
            pipe.close()
        await turns(5)
        return told

    assert world.run(work()) == [3]


# Quotas ---------------------------------------------------------------------------------------


def key_of(world: LaneWorld, tenant: str, role: Role = Role.REGISTRAR) -> str:
    key, operation = new_key(tenant, role, "test")
    world.run(world.commit(operation))
    return f"Authorization: Bearer {key}"


def used_up(world: LaneWorld, key: str) -> list[bytes]:
    """Ask until refused; what was told."""

    async def work() -> list[bytes]:
        told = []
        for _ in range(RATE * 3):
            told.append((await world.say(world.plain, [request(API + "SN1", key)]))[0])
            if b" 429 " in told[-1]:
                break
        return told

    return world.run(work())


@pytest.fixture
def still(world: LaneWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes for the quotas; they are later than the others, so that nobody is let in."""
    now = time.monotonic() + 1_000
    monkeypatch.setattr(world.node.service.quotas, "_clock", lambda: now)


@pytest.mark.usefixtures("still")
def test_a_tenant_beyond_its_rate_is_told_so_at_the_door(world: LaneWorld) -> None:
    key = key_of(world, "loud")
    told = used_up(world, key)
    assert b" 429 " in told[-1]
    assert b"\r\nRetry-After: 1\r\n" in told[-1]
    assert b'\r\nRateLimit-Policy: "tenant";q=20;w=1\r\n' in told[-1]
    assert b'\r\nRateLimit: "tenant";r=0;t=1\r\n' in told[-1]
    assert b'\r\nRateLimit: "tenant";r=' in told[0]
    assert all(b" 200 " in answer for answer in told[:-1])
    before = refusals(world)
    world.node.service.quotas.owe("loud", 1_000)
    asks = [
        request(API + "SN1", key),
        request(API + "SN1", key, ZH, method="HEAD"),
        request(
            "/api/v1/identifiers:batch",
            key,
            f"Content-Length: {len(BATCH)}",
            method="POST",
            body=BATCH,
        ),
        request(PAGE + "SN1", key, JSON),
    ]
    for asked in asks:
        assert world.run(world.both([asked])) == 0
    assert refusals(world) == before + len(asks)


def test_others_are_let_in_meanwhile(world: LaneWorld) -> None:
    world.node.service.quotas.owe("loud", 10_000)
    used_up(world, key_of(world, "loud"))
    for key in (key_of(world, "quiet"), key_of(world, "loud", Role.ADMIN)):
        told, _ = world.run(world.say(world.server, [request(API + "SN1", key)]))
        assert b" 200 " in told
    told, _ = world.run(world.say(world.server, [request(API + "partly")]))
    assert b" 200 " in told, "the public has no quota"


@pytest.mark.usefixtures("still")
def test_rows_are_owed(world: LaneWorld) -> None:
    key = key_of(world, "rows")
    names = ",".join(f'"{PREFIX}/row{n}"' for n in range(300))
    body = f'{{"identifiers":[{names}]}}'.encode()
    asked = request(
        "/api/v1/identifiers:resolve",
        key,
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        method="POST",
        body=body,
    )
    told, _ = world.run(world.say(world.server, [asked]))
    assert b" 200 " in told
    assert f'RateLimit: "tenant";r={RATE - 4};'.encode() in told
