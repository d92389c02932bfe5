"""The thin waist: whatever happens, one reply, one count, no secrets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from biaojie.errors import (
    ERRORS,
    BiaojieError,
    DeadlineExceeded,
    IdentifierNotFound,
    IdentifierTaken,
    Internal,
)
from resolver import observe
from resolver.exchange import new_request_id, serve, serve_many
from resolver.observe import LINES_MAX, Observer


class Codec:
    """Text in, text out; fails where it is told to."""

    front = "test"
    operation = "ask"

    def __init__(self, fail: str = "", error: BaseException | None = None) -> None:
        self.fail = fail
        self.error = error
        self.refused: list[BiaojieError] = []

    def _maybe(self, where: str) -> None:
        if self.fail == where and self.error is not None:
            raise self.error

    def decode(self, data: str) -> str:
        self._maybe("decode")
        return data.upper()

    def encode(self, data: str, answer: str) -> str:
        self._maybe("encode")
        return f"{data}: {answer}"

    def encode_error(self, data: str, error: BiaojieError) -> str:
        self.refused.append(error)
        return f"{error.code} {error.request_id}"


class World:
    def __init__(self) -> None:
        self.observer = Observer(slow_s=100)

    async def serve(
        self,
        codec: Codec,
        service: Callable[[str], Awaitable[str]] | None = None,
        deadline_s: float = 5.0,
    ) -> str:
        async def echo(question: str) -> str:
            codec._maybe("service")
            return question

        return await serve(
            codec,
            service or echo,
            "hello",
            deadline_s=deadline_s,
            observer=self.observer,
            request_id="r1",
            peer="192.0.2.77",
        )

    def counted(self) -> dict[tuple[str, str, str], float]:
        """Requests by (front, operation, outcome)."""
        return {
            (s.labels["front"], s.labels["operation"], s.labels["outcome"]): s.value
            for family in self.observer.registry.collect()
            for s in family.samples
            if s.name == "biaojie_requests_total"
        }


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as events:
        yield events


async def test_a_good_request(world: World, logged: list[Any]) -> None:
    assert await world.serve(Codec()) == "hello: HELLO"
    assert world.counted() == {("test", "ask", "ok"): 1}
    assert logged == []


@pytest.mark.parametrize("where", ["decode", "service", "encode"])
@pytest.mark.parametrize("code", ERRORS)
async def test_every_error_becomes_its_code(
    world: World, logged: list[Any], where: str, code: str
) -> None:
    codec = Codec(where, ERRORS[code]("It happened.", "发生了。", some="field"))
    assert await world.serve(codec) == f"{code} r1"
    assert codec.refused[0] is codec.error
    assert world.counted() == {("test", "ask", code): 1}
    [event] = logged
    assert event["request_id"] == "r1"
    assert event["outcome"] == code


@pytest.mark.parametrize("where", ["decode", "service", "encode"])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("password=hunter2"),
        KeyError("hunter2"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "hunter2"),
        RecursionError(),
        MemoryError(),
        AssertionError("hunter2"),
        ExceptionGroup("hunter2", [ValueError("hunter2")]),
        OSError(24, "hunter2"),
    ],
    ids=lambda e: type(e).__name__,
)
async def test_what_we_did_not_foresee_shows_nothing(
    world: World, logged: list[Any], where: str, error: Exception
) -> None:
    codec = Codec(where, error)
    assert await world.serve(codec) == "internal r1"
    [refusal] = codec.refused
    assert type(refusal) is Internal
    assert "hunter2" not in str(refusal)
    assert refusal.fields == {}
    assert world.counted() == {("test", "ask", "internal"): 1}
    [event] = logged
    assert (event["log_level"], event["request_id"]) == ("error", "r1")
    assert event["exc_info"] is error, "the operator sees all of it"


async def test_the_deadline_ends_a_request_and_cancels_its_work(world: World) -> None:
    ended = asyncio.Event()

    async def hang(question: str) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return question

    codec = Codec()
    started = time.monotonic()
    assert await world.serve(codec, hang, 0.05) == "deadline-exceeded r1"
    assert time.monotonic() - started < 2
    assert ended.is_set()
    assert isinstance(codec.refused[0], DeadlineExceeded)
    assert world.counted() == {("test", "ask", "deadline-exceeded"): 1}


async def test_a_timeout_inside_is_a_deadline_too(world: World) -> None:
    async def give_up(question: str) -> str:
        raise TimeoutError

    assert await world.serve(Codec(), give_up) == "deadline-exceeded r1"


async def test_a_caller_that_hangs_up_gets_no_reply(world: World) -> None:
    """The front cancels; that is not an error of ours."""

    async def hang(question: str) -> str:
        await asyncio.Event().wait()
        return question

    codec = Codec()
    task = asyncio.create_task(world.serve(codec, hang))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert codec.refused == []


async def test_errors_shared_by_many_requests_get_each_its_own_request_id(world: World) -> None:
    """As when a flight fails for all who joined it."""
    shared = IdentifierNotFound()

    async def fail(question: str) -> str:
        raise shared

    async def ask(number: int) -> str:
        return await serve(
            Codec(),
            fail,
            "x",
            deadline_s=5,
            observer=world.observer,
            request_id=f"r{number}",
            peer="",
        )

    replies = await asyncio.gather(*(ask(n) for n in range(50)))
    assert replies == [f"identifier-not-found r{n}" for n in range(50)]


async def test_metrics_have_as_many_labels_as_there_are_codes(world: World) -> None:
    """Nothing a caller sends becomes a label."""
    for number, code in enumerate([*ERRORS] * 3):
        await world.serve(Codec("service", ERRORS[code](f"text {number}", request_id="mine")))
    for number in range(30):
        error = type(f"Odd{number}", (Exception,), {})(f"text {number}")
        await world.serve(Codec("service", error))
        await world.serve(Codec("encode"))
    counted = world.counted()
    assert {outcome for _, _, outcome in counted} == {"ok", *ERRORS}
    assert {(front, operation) for front, operation, _ in counted} == {("test", "ask")}
    assert sum(counted.values()) == 3 * len(ERRORS) + 60


async def test_slow_requests_are_logged_with_a_shortened_address(logged: list[Any]) -> None:
    world = World()
    world.observer.slow_s = 0
    await world.serve(Codec())
    [event] = logged
    assert (event["outcome"], event["peer"]) == ("ok", "192.0.2.0")
    assert event["ms"] >= 0


async def test_a_flood_of_refusals_is_none_of_lines(
    logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(monotonic=lambda: 100.0)
    monkeypatch.setattr(observe, "time", clock)
    world = World()
    for _ in range(3 * LINES_MAX):
        await world.serve(Codec("service", IdentifierNotFound()))
    assert len(logged) == LINES_MAX
    await world.serve(Codec("service", IdentifierTaken()))  # others get theirs
    await world.serve(Codec("service", RuntimeError("a fault")))
    assert [line["event"] for line in logged[-2:]] == ["request refused", "request failed"]
    clock.monotonic = lambda: 101.1
    await world.serve(Codec("service", IdentifierNotFound()))
    await world.serve(Codec("service", IdentifierNotFound()))
    assert [line.get("left_out") for line in logged[-2:]] == [2 * LINES_MAX, None]
    assert world.counted()[("test", "ask", "identifier-not-found")] == 3 * LINES_MAX + 2


def test_request_ids_differ() -> None:
    made = {new_request_id() for _ in range(10_000)}
    assert len(made) == 10_000
    assert all(len(id_) == 16 for id_ in made)


async def test_slow_ones_that_came_together_are_each_counted(logged: list[Any]) -> None:
    """Whatever clients call them: over HTTP an id is what the client says."""
    observer = Observer(slow_s=0)

    async def service(questions: Sequence[str]) -> list[str | BiaojieError]:
        return ["good", IdentifierNotFound()]

    batch = [SimpleNamespace(request_id="same", peer="") for _ in range(2)]
    await serve_many(Together(), service, batch, deadline_s=5, observer=observer)
    tallies = {outcome: tally.count for (_, _, outcome), tally in observer._tallies.items()}
    assert tallies == {"ok": 1, "identifier-not-found": 1}
    assert [event["outcome"] for event in logged] == ["ok", "identifier-not-found"]


class Together:
    front = "test"
    operation = "ask"

    def decode(self, data: SimpleNamespace) -> str:
        return "question"

    def encode(self, data: SimpleNamespace, answer: str) -> str:
        return answer

    def encode_error(self, data: SimpleNamespace, error: BiaojieError) -> str:
        return error.code
