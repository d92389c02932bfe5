"""Names asked for together, and requests answered by a call: each one's fate is its own."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog

from biaojie.errors import (
    BiaojieError,
    IdentifierNotFound,
    IdentifierTaken,
    Internal,
    OverCapacity,
    TemporarilyUnavailable,
)
from biaojie.identifier import Key
from registry.memory import MemoryStore
from registry.registrar import Outcome
from registry.store import Found
from resolver.core import Answer, Source
from resolver.exchange import Later, Waiting, serve_many
from resolver.health import Health
from resolver.observe import Observer
from resolver.steps.local import LocalStep
from tests.cache_world import World as CacheWorld
from tests.cache_world import turns
from tests.core_parts import (
    ACME,
    PREFIX,
    GatedStore,
    Parts,
    create,
    home,
    key,
    nothing_left_behind,
    registering,
    write,
)


def outcome_of(outcome: Any) -> Any:
    """The class of an error, else where the answer came from."""
    return type(outcome) if isinstance(outcome, BiaojieError) else outcome.source


# The cache ------------------------------------------------------------------------------


async def test_a_batch_is_one_question_for_what_is_missing() -> None:
    cache = CacheWorld()
    await cache.ask("A")
    answers = await cache.ask_many("A", "B", "C", "B")
    assert [outcome_of(a) for a in answers] == [Source.CACHE, *[Source.STORE] * 3]
    assert cache.together == [1, 2]
    assert answers[1] is answers[3]
    assert cache.cache.counts == {"hit": 1, "stale": 0, "absent-hit": 0, "miss": 3, "joined": 1}


async def test_batches_that_overlap_share_what_is_on_its_way() -> None:
    cache = CacheWorld()
    gate = cache.gate = asyncio.Event()
    first = asyncio.create_task(cache.ask_many("A", "B"))
    await turns()
    second = asyncio.create_task(cache.ask_many("B", "C"))
    alone = cache.later("A")
    await turns()
    assert cache.asked == [key("A"), key("B"), key("C")]
    gate.set()
    (a, b), (also_b, _), also_a = await first, await second, await alone
    assert b is also_b
    assert a is also_a
    assert not cache.cache._flights


async def test_what_changes_while_a_batch_is_on_its_way_is_not_kept_and_not_joined() -> None:
    cache = CacheWorld()
    gate = cache.gate = asyncio.Event()
    first = asyncio.create_task(cache.ask_many("SN1", "SN2"))
    await turns()
    cache.commit(f"{PREFIX}/SN1")
    late = cache.later("SN1")
    await turns()
    assert cache.asked == [key("SN1"), key("SN2"), key("SN1")]
    gate.set()
    old, _ = await first
    new = await late
    assert isinstance(old, Answer)
    assert (old.found().version, new.found().version) == (1, 2)
    assert (await cache.ask("SN1")).found().version == 2
    assert (await cache.ask("SN2")).source is Source.CACHE


async def test_errors_and_answers_of_one_batch() -> None:
    cache = CacheWorld()
    cache.ttl_s = 10
    await cache.ask_many("STALE", "GOOD")
    cache.now += 11
    cache.errors = {key("STALE"): Internal("damaged"), key("BAD"): Internal("damaged")}
    answers = await cache.ask_many("STALE", "GOOD", "BAD")
    assert [outcome_of(a) for a in answers] == [Source.STALE, Source.STORE, Internal]
    cache.errors = {}
    assert outcome_of((await cache.ask_many("BAD"))[0]) is Source.STORE


async def test_an_error_is_nobody_elses() -> None:
    cache = CacheWorld()
    cache.errors = {key("BAD"): Internal("damaged")}
    gate = cache.gate = asyncio.Event()
    tasks = [asyncio.create_task(cache.ask_many("BAD", "BAD")) for _ in range(3)]
    await turns()
    gate.set()
    errors = [e for task in tasks for e in await task]
    assert len({id(e) for e in errors}) == 6
    assert {str(e) for e in errors} == {str(Internal("damaged"))}
    # What fails as a whole fails for each by itself, too.
    cache.gate, cache.errors, cache.error = None, {}, TemporarilyUnavailable("gone")
    gone = await cache.ask_many("X", "Y")
    assert [outcome_of(e) for e in gone] == [TemporarilyUnavailable] * 2
    assert gone[0] is not gone[1]


async def test_absences_of_a_batch_are_remembered() -> None:
    cache = CacheWorld()
    cache.absence = IdentifierNotFound
    await cache.ask_many("A", "B")
    answers = await cache.ask_many("A", "B")
    assert [outcome_of(a) for a in answers] == [Source.CACHE] * 2
    assert cache.cache.counts["absent-hit"] == 2


async def test_a_batch_that_is_given_up_still_serves_those_who_joined() -> None:
    cache = CacheWorld()
    gate = cache.gate = asyncio.Event()
    async with nothing_left_behind():
        first = asyncio.create_task(cache.ask_many("A", "B"))
        await turns()
        joined = cache.later("B")
        await turns()
        first.cancel()
        await asyncio.wait([first])
        gate.set()
        assert (await joined).source is Source.STORE
    assert (await cache.ask("A")).source is Source.CACHE
    assert cache.together == [2]


# The local registry ---------------------------------------------------------------------


class Damaged(MemoryStore):
    async def look_up(self, keys: Sequence[Key]) -> list[Found]:
        if key("S3") in keys:
            raise ValueError("not msgpack")
        return await super().look_up(keys)


async def filled(store: Any) -> Any:
    async with registering(store) as registrar:
        await home(registrar)
        await write(registrar, *(create(f"S{n}", str(n)) for n in range(10)))
    return store


def texts(found: Sequence[Found | BiaojieError]) -> list[Any]:
    return [
        type(f) if isinstance(f, BiaojieError) else f.record and f.record.values[0].text
        for f in found
    ]


async def test_a_damaged_record_harms_no_other_of_its_batch() -> None:
    store = Damaged()
    async with registering(store) as registrar:
        await home(registrar)
        await write(registrar, *(create(f"S{n}", str(n)) for n in range(10) if n != 3))
    local = LocalStep(store, Health())
    found = await local.fetch_many([key(f"S{n}") for n in (1, 2, 3, 4, 3)] + [key("NONE")])
    assert texts(found) == ["1", "2", Internal, "4", Internal, None]
    assert found[2] is not found[4]


async def test_a_batch_takes_the_room_there_is() -> None:
    store = await filled(GatedStore())
    local = LocalStep(store, Health(), lanes=1, pending_max=3)
    store.close_gate("look_up")
    first = asyncio.create_task(local.fetch(key("S0")))
    await store.reached("look_up")
    batch = asyncio.create_task(local.fetch_many([key(f"S{n}") for n in range(1, 6)]))
    await asyncio.sleep(0)
    assert texts(await local.fetch_many([key("S9")])) == [OverCapacity]
    store.open_gate("look_up")
    assert texts(await batch) == ["1", "2", "3", OverCapacity, OverCapacity]
    await first
    assert local._waiting == 0


async def test_a_batch_is_refused_at_once_while_the_registry_is_down() -> None:
    store = await filled(GatedStore())
    health = Health()
    local = LocalStep(store, health)
    health.failed("test")
    store.calls.clear()
    assert texts(await local.fetch_many([key("S1"), key("S2")])) == [TemporarilyUnavailable] * 2
    assert not store.calls
    assert await LocalStep(store, Health()).fetch_many([]) == []


async def test_a_batch_nobody_waits_for_is_not_looked_up() -> None:
    store = await filled(GatedStore())
    local = LocalStep(store, Health(), lanes=1)
    store.close_gate("look_up")
    first = asyncio.create_task(local.fetch(key("S0")))
    await store.reached("look_up")
    batch = asyncio.create_task(local.fetch_many([key("S1"), key("S2")]))
    await asyncio.sleep(0)
    batch.cancel()
    await asyncio.wait([batch])
    store.calls.clear()
    store.open_gate("look_up")
    await first
    await asyncio.gather(*local._tasks)
    assert not store.calls["look_up"]
    assert local._waiting == 0


# The waist ------------------------------------------------------------------------------


@dataclass
class Asked:
    text: str
    request_id: str = "r1"
    peer: str = "192.0.2.7"


@dataclass
class Codec:
    front: str = "test"
    operation: str = "ask"
    refused: list[BiaojieError] = field(default_factory=list)

    def decode(self, data: Asked) -> str:
        if data.text == "undecodable":
            raise ValueError("a secret")
        return data.text

    def encode(self, data: Asked, answer: str) -> str:
        if answer == "unencodable":
            raise ValueError("a secret")
        return f"{data.text}: {answer}"

    def encode_error(self, data: Asked, error: BiaojieError) -> str:
        self.refused.append(error)
        return f"{error.code} {error.request_id}"


def counted(observer: Observer) -> dict[str, int]:
    return {outcome: t.count for (_, _, outcome), t in observer._tallies.items() if t.count}


async def together(service: Any, *texts: str, slow_s: float = 100, deadline_s: float = 5) -> Any:
    observer = Observer(slow_s=slow_s)
    batch = [Asked(text, f"r{n}") for n, text in enumerate(texts)]
    with structlog.testing.capture_logs() as lines:
        replies = await serve_many(
            Codec(), service, batch, deadline_s=deadline_s, observer=observer
        )
    return replies, counted(observer), lines


async def test_each_of_a_batch_gets_its_own_reply_and_is_counted() -> None:
    async def service(questions: Sequence[str]) -> list[str | BiaojieError]:
        assert questions == ["a", "none", "unencodable"]
        return ["1", IdentifierNotFound("no"), "unencodable"]

    replies, counts, lines = await together(service, "a", "undecodable", "none", "unencodable")
    assert replies == ["a: 1", "internal r1", "identifier-not-found r2", "internal r3"]
    assert counts == {"ok": 1, "internal": 2, "identifier-not-found": 1}
    assert [line["request_id"] for line in lines] == ["r1", "r2", "r3"]


@pytest.mark.parametrize("slow_s", [0, 100])
async def test_what_the_service_does_not_answer_is_left_to_others(slow_s: float) -> None:
    async def service(questions: Sequence[str]) -> list[str | BiaojieError | None]:
        return [None, "1", None, IdentifierNotFound("no")]

    replies, counts, lines = await together(service, "a", "b", "c", "d", slow_s=slow_s)
    assert replies == [None, "b: 1", None, "identifier-not-found r3"]
    assert counts == {"ok": 1, "identifier-not-found": 1}
    assert [line["request_id"] for line in lines] == (["r3"] if slow_s else ["r1", "r3"])


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (TemporarilyUnavailable("gone"), "temporarily-unavailable"),
        (RuntimeError("a secret"), "internal"),
        (None, "deadline-exceeded"),
    ],
)
async def test_what_fails_as_a_whole_is_told_to_each(failure: Any, code: str) -> None:
    async def service(questions: Sequence[str]) -> list[str]:
        if failure is None:
            await asyncio.sleep(10)
        raise failure

    replies, counts, _ = await together(service, "a", "b", deadline_s=0.02)
    assert replies == [f"{code} r0", f"{code} r1"]
    assert counts == {code: 2}


async def test_slow_ones_are_logged_each() -> None:
    async def service(questions: Sequence[str]) -> list[str | BiaojieError]:
        return ["1", IdentifierNotFound("no")]

    _, counts, lines = await together(service, "a", "b", slow_s=0)
    assert counts == {"ok": 1, "identifier-not-found": 1}
    assert [(line["event"], line["request_id"]) for line in lines] == [
        ("request slow", "r0"),
        ("request refused", "r1"),
    ]


async def test_refusals_leave_nothing_to_the_collector() -> None:
    """In a flood of unknown names it would come often, and hold everybody up."""
    errors = [IdentifierNotFound("no") for _ in range(20)]
    alive = [weakref.ref(error) for error in errors]

    async def service(questions: Sequence[str]) -> list[str | BiaojieError]:
        return [errors.pop() for _ in questions]

    gc.disable()
    try:
        _, counts, _ = await together(service, *map(str, range(20)))
        assert counts == {"identifier-not-found": 20}
        work, told, *_ = later("a")
        failure = IdentifierNotFound("no")
        alive.append(weakref.ref(failure))
        work.tell(failure)
        del failure, work
        assert told == ["identifier-not-found r1"]
        await asyncio.sleep(0)
        assert [ref() for ref in alive] == [None] * 21
    finally:
        gc.enable()


class Work:
    """Begun by `Later`, answered by the test."""

    def __init__(self) -> None:
        self.wanted = True
        self.tell: Callable[[Any], None] = lambda answer: None

    def begin(self, question: str, tell: Callable[[Any], None]) -> Work:
        if question == "full":
            raise OverCapacity()
        self.tell = tell
        if question == "at once":
            tell("1")
        return self


def later(text: str, deadline_s: float = 5.0) -> tuple[Work, list[Any], Waiting | None, Observer]:
    sent: list[Any] = []
    work, observer = Work(), Observer()
    waiting = Later(deadline_s, observer).serve(Codec(), work.begin, Asked(text), sent.append)
    return work, sent, waiting, observer


async def test_an_answer_by_a_call_is_sent_once() -> None:
    work, sent, waiting, observer = later("a")
    assert waiting is not None
    assert sent == []
    work.tell("1")
    work.tell("2")
    waiting.cancel()
    assert sent == ["a: 1"]
    assert counted(observer) == {"ok": 1}


@pytest.mark.parametrize(
    ("text", "reply"),
    [("undecodable", "internal r1"), ("full", "over-capacity r1"), ("at once", "at once: 1")],
)
async def test_what_can_be_said_at_once_is(text: str, reply: str) -> None:
    _, sent, waiting, observer = later(text)
    assert waiting is None
    assert sent == [reply]
    assert sum(counted(observer).values()) == 1


@pytest.mark.parametrize(
    ("answer", "reply"),
    [(IdentifierTaken("x"), "identifier-taken r1"), ("unencodable", "internal r1")],
)
async def test_errors_by_a_call(answer: Any, reply: str) -> None:
    work, sent, _, observer = later("a")
    work.tell(answer)
    assert sent == [reply]
    assert counted(observer) == {reply.split(maxsplit=1)[0]: 1}


async def test_no_answer_by_a_call_is_waited_for_beyond_the_deadline() -> None:
    observer = Observer()
    waist = Later(0.05, observer)
    works = [Work() for _ in range(3)]
    sent: list[Any] = []
    for number, work in enumerate(works):
        waist.serve(Codec(), work.begin, Asked("a", f"r{number}"), sent.append)
    works[1].tell("1")
    async with asyncio.timeout(5):
        while len(sent) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert sent == ["a: 1", "deadline-exceeded r0", "deadline-exceeded r2"]
    assert [work.wanted for work in works] == [False, True, False]
    works[0].tell("too late")
    assert len(sent) == 3
    assert not waist._waiting
    assert waist._timer is None


async def test_who_is_gone_wants_no_answer_and_frees_his_place() -> None:
    work, sent, waiting, observer = later("a")
    assert waiting is not None
    waiting.cancel()
    waiting.cancel()
    work.tell("1")
    assert sent == [None]
    assert not work.wanted
    assert counted(observer) == {}


# The registrar --------------------------------------------------------------------------


async def test_what_is_handed_in_is_answered_by_a_call_after_the_commit() -> None:
    async with registering(GatedStore()) as registrar:
        await home(registrar)
        told: list[Any] = []

        def broken(outcome: Any) -> None:
            raise RuntimeError("a caller's mistake")

        registrar.hand_in(ACME, [create("A")], broken)
        registrar.hand_in(ACME, [create("A")], told.append)
        registrar.hand_in(ACME, [create("B")], told.append)
        assert told == []
        await write(registrar, create("C"))  # in the same commit, answered after them
        assert [type(outcome) for outcome in told] == [IdentifierTaken, Outcome]
        assert told[1].single().identifier == f"{PREFIX}/B"


async def test_what_is_not_wanted_any_more_before_its_commit_is_not_done() -> None:
    store = GatedStore()
    async with registering(store) as registrar:
        await home(registrar)
        store.close_gate("transaction")
        first = asyncio.create_task(write(registrar, create("A")))
        await store.reached("transaction")
        told: list[Any] = []
        submission = registrar.hand_in(ACME, [create("B")], told.append)
        submission.wanted = False
        store.open_gate("transaction")
        await first
        await write(registrar, create("C"))
        assert told == []
        found = await store.look_up([key("A"), key("B"), key("C")])
        assert [f.record is not None for f in found] == [True, False, True]


async def test_parts_stop_with_everything_answered() -> None:
    async with nothing_left_behind(), Parts(GatedStore()) as parts:
        await home(parts.registrar)
        told: list[Any] = []
        parts.registrar.hand_in(ACME, [create("A")], told.append)
        await parts.registrar.stop()
        await turns()
        assert [type(outcome) for outcome in told] == [Outcome]
