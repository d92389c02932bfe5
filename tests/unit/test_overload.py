"""The gate under simulated loads, and the quotas."""

from __future__ import annotations

import asyncio
import heapq
import math
import random
import time
from typing import Any

import pytest

from biaojie.errors import OverCapacity
from resolver.overload import (
    LIMIT_MIN,
    PENALTY_S,
    READ_AGAIN_PER_S,
    REFUSAL_S,
    REFUSING_SHARE,
    SHUT_S,
    TARGET_S,
    Gate,
    Penalties,
    Place,
    Quotas,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def load(gate: Gate, clock: Clock, *, rate: float, each_s: float, seconds: float) -> list[float]:
    """Requests come `rate` a second at a server that does one at a time, `each_s` each; how long
    the accepted took."""
    lasted: list[float] = []
    done: list[tuple[float, float]] = []
    free_at = clock.now
    until = clock.now + seconds
    chance = random.Random(1)
    while clock.now < until:
        clock.now += chance.expovariate(rate)
        while done and done[0][0] <= clock.now:
            at, came = heapq.heappop(done)
            now, clock.now = clock.now, at
            gate.leave(at - came)
            clock.now = now
            lasted.append(at - came)
        if gate.enter():
            free_at = max(free_at, clock.now) + each_s
            heapq.heappush(done, (free_at, clock.now))
    for _ in done:
        gate.leave(None)
    return lasted


def test_below_capacity_nobody_is_refused() -> None:
    clock = Clock()
    gate = Gate(512, clock)
    load(gate, clock, rate=3_000, each_s=0.000_2, seconds=5)
    assert (gate.refused, gate.limit, gate.running) == (0, 512, 0)


@pytest.mark.parametrize("each_s", [0.000_2, 0.002])
def test_at_five_times_capacity_the_work_goes_on_and_in_time(each_s: float) -> None:
    clock = Clock()
    gate = Gate(512, clock)
    lasted = load(gate, clock, rate=5 / each_s, each_s=each_s, seconds=10)
    assert len(lasted) * each_s >= 0.95 * 10, "goodput"
    last = sorted(lasted[len(lasted) // 2 :])
    assert last[len(last) * 99 // 100] < 2 * max(TARGET_S, LIMIT_MIN * each_s)
    assert gate.refused > 0


@pytest.mark.parametrize("each_s", [0.000_02, 0.000_1, 0.000_2])
def test_the_limit_follows_the_rate(each_s: float) -> None:
    """As many are let in as are answered in time, however fast that is."""
    clock = Clock()
    gate = Gate(4_096, clock)
    load(gate, clock, rate=5 / each_s, each_s=each_s, seconds=3)
    assert 0.5 * TARGET_S / each_s < gate.limit < 2 * TARGET_S / each_s


async def test_who_asks_for_much_takes_several_places() -> None:
    gate = Gate(64)
    assert [gate.places_for(octets) for octets in (0, 255, 256, 1_000, 10**6)] == [1, 1, 2, 4, 8]
    large, small = Place(gate), Place(gate)
    large.enter(10**6)
    small.enter()
    assert gate.running == 9
    gate.running += 55
    waiting = [Held() for _ in range(20)]
    for held in waiting:
        gate.penalties.add(held, time.monotonic())
    with pytest.raises(OverCapacity):
        Place(gate).enter()
    large.leave()
    large.leave()  # it has left
    await asyncio.sleep(0)
    assert gate.running == 56
    small.leave()
    await asyncio.sleep(0)
    assert gate.running == 55
    assert sum(held.read for held in waiting) == 1, "room for those is kept, an eighth of all"
    gate.limit = 8
    assert gate.places_for(10**6) == 1


def test_who_steps_out_is_not_counted_as_done() -> None:
    clock = Clock()
    gates = Gate(512, clock), Gate(512, clock)
    for _ in range(2_000):
        for gate in gates:
            gate.enter()
        clock.now += 0.001
        for gate in gates:
            for _ in range(10 if gate is gates[1] else 0):
                gate.step_out()
                gate.come_back()
            gate.leave(0.1)
    assert gates[0].limit == gates[1].limit < 512


def test_afterwards_it_opens_again() -> None:
    clock = Clock()
    gate = Gate(512, clock)
    load(gate, clock, rate=25_000, each_s=0.000_2, seconds=5)
    narrow = gate.limit
    load(gate, clock, rate=2_000, each_s=0.000_2, seconds=5)
    assert narrow < 400
    assert gate.limit == 512


def test_one_slow_name_closes_nothing() -> None:
    clock = Clock()
    gate = Gate(64, clock)
    for number in range(1_000):
        assert gate.enter()
        clock.now += 0.01
        gate.leave(0.5 if number % 3 else 0.001)
    assert gate.limit == 64


def test_however_slow_some_are_let_in() -> None:
    clock = Clock()
    gate = Gate(512, clock)
    load(gate, clock, rate=100, each_s=0.5, seconds=60)
    assert gate.limit >= LIMIT_MIN


def test_work_that_may_take_long_says_nothing() -> None:
    clock = Clock()
    gate = Gate(64, clock)
    for _ in range(100):
        assert gate.enter()
        clock.now += 1
        gate.leave()
    assert gate.limit == 64


def test_a_narrow_gate_opens_while_only_writes_come() -> None:
    clock = Clock()
    gate = Gate(512, clock)
    load(gate, clock, rate=25_000, each_s=0.000_2, seconds=5)
    assert gate.limit < 512
    for _ in range(1_000):
        assert gate.enter()
        clock.now += 0.05
        gate.leave()
    assert gate.limit == 512


def test_each_tenant_has_its_own_quota() -> None:
    clock = Clock()
    quotas = Quotas(10, clock)
    assert [quotas.take("acme") > 0 for _ in range(12)] == [False] * 10 + [True] * 2
    assert quotas.take("acme") == pytest.approx(0.1)
    assert quotas.take("other") == 0
    clock.now += 0.1
    assert quotas.take("acme") == 0
    assert quotas.take("acme") > 0
    clock.now += 60
    assert sum(quotas.take("acme") == 0 for _ in range(50)) == 10, "a second's worth at most"
    assert quotas.refused == 3 + 1 + 40


def test_without_a_rate_there_is_no_quota() -> None:
    quotas = Quotas(0)
    assert all(quotas.take("acme") == 0 for _ in range(1_000))
    assert len(quotas) == 0


class Held:
    def __init__(self) -> None:
        self.read = 0

    def read_again(self, now: float) -> None:
        self.read += 1


async def test_the_refused_are_read_from_again_when_their_time_has_come() -> None:
    penalties = Penalties(0.1)
    first, second = Held(), Held()
    penalties.add(first, time.monotonic())
    penalties.add(second, time.monotonic())
    await asyncio.sleep(0)
    assert (first.read, second.read, len(penalties)) == (0, 0, 2)
    await asyncio.sleep(0.5)
    assert (first.read, second.read, len(penalties)) == (1, 1, 0)


@pytest.mark.parametrize(
    ("share", "per_s"), [(0.0, READ_AGAIN_PER_S), (1.0, int(REFUSING_SHARE / REFUSAL_S))]
)
async def test_however_many_they_are_refusing_costs_a_share_of_the_time(
    share: float, per_s: int
) -> None:
    """`share` of the time is what the machine lets us have of the processor."""
    penalties = Penalties(0.001, cpu_s=lambda: share * time.monotonic())
    held = [Held() for _ in range(per_s)]
    began = time.monotonic()
    for each in held:
        penalties.add(each, time.monotonic())
    await asyncio.sleep(0.25)
    passed = time.monotonic() - began
    read = sum(each.read for each in held)
    assert 0 < read <= (passed + 2 * PENALTY_S) * per_s
    assert [each.read for each in held] == [1] * read + [0] * (len(held) - read), "in order"


async def test_beyond_the_share_nobody_more_is_refused_at_once() -> None:
    spent = [0.0]
    penalties = Penalties(cpu_s=lambda: spent[0], refusal_s=0.001)
    now = time.monotonic()
    at_once = sum(penalties.allow(now) for _ in range(10_000))
    assert 0 < at_once <= PENALTY_S * READ_AGAIN_PER_S + 1
    assert penalties.exhausted(now)
    spent[0] += 1.0  # of which a share is for refusing, but not for all who may come at once
    now += 1.0
    assert not penalties.exhausted(now)
    most = PENALTY_S * max(READ_AGAIN_PER_S, REFUSING_SHARE / 0.001)
    assert sum(penalties.allow(now) for _ in range(10_000)) == pytest.approx(most, abs=1)
    assert not any(penalties.allow(now) for _ in range(10)), "until more has been earned"


async def test_who_waits_is_refused_before_who_comes() -> None:
    penalties = Penalties(0.01)
    held = Held()
    penalties.add(held, time.monotonic())
    assert penalties.allow(time.monotonic()), "while his time has not come"
    time.sleep(0.02)  # noqa: ASYNC251 - so that nothing is done meanwhile
    assert not penalties.allow(time.monotonic())
    await asyncio.sleep(0.1)
    assert held.read == 1
    assert penalties.allow(time.monotonic())


async def test_one_that_cannot_be_read_from_keeps_nobody_waiting() -> None:
    class Broken(Held):
        def read_again(self, now: float) -> None:
            super().read_again(now)
            raise RuntimeError("a fault")

    said: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    penalties = Penalties(0.01)
    broken, after = Broken(), Held()
    penalties.add(broken, time.monotonic())
    penalties.add(after, time.monotonic())
    await asyncio.sleep(0.2)
    assert (broken.read, after.read, len(penalties), len(said)) == (1, 1, 0, 1)


async def test_room_is_for_who_came_last() -> None:
    gate = Gate(1)
    assert gate.enter()
    first, last = Held(), Held()
    gate.penalties.add(first, time.monotonic())
    gate.penalties.add(last, time.monotonic())
    gate.leave()
    assert (first.read, last.read) == (0, 0), "not by who leaves: that might go on without end"
    await asyncio.sleep(0)
    assert (first.read, last.read) == (0, 1)
    await asyncio.sleep(2 * PENALTY_S)
    assert (first.read, last.read) == (1, 1)


async def test_room_at_the_gate_shortens_it() -> None:
    gate = Gate(1)
    assert gate.enter()
    assert not gate.enter()
    held = Held()
    gate.penalties.add(held, time.monotonic())
    gate.leave()
    await asyncio.sleep(0)
    assert held.read == 1
    await asyncio.sleep(2 * PENALTY_S)
    assert held.read == 1


def test_what_costs_more_is_owed() -> None:
    clock = Clock()
    quotas = Quotas(10, clock)
    assert quotas.take("acme") == 0
    quotas.owe("acme", 20)
    assert quotas.let_in("acme") == pytest.approx(1.2)
    assert quotas.until == pytest.approx(clock.now + 1.2)
    assert quotas.left("acme") == 0
    clock.now += 1.2
    assert quotas.let_in("acme") == 0
    assert quotas.take("acme") == 0, "paid at the door"
    assert quotas.take("acme") > 0
    assert quotas.take("other") == 0


def test_who_comes_in_a_crowd_is_let_in_only_as_far_as_the_quota_goes() -> None:
    clock = Clock()
    quotas = Quotas(10, clock)
    assert sum(quotas.let_in("acme") == 0 for _ in range(500)) == 10
    assert quotas.take("other") == 0
    assert sum(quotas.take("acme") == 0 for _ in range(50)) == 10, "those, and nobody else"
    clock.now += 0.1
    assert quotas.let_in("acme") == 0
    assert quotas.let_in("acme") > 0
    assert quotas.until >= clock.now + SHUT_S


def test_what_was_paid_at_the_door_and_not_used_does_not_pile_up() -> None:
    clock = Clock()
    quotas = Quotas(10, clock)
    for _ in range(1_000):
        clock.now += 0.1
        assert quotas.let_in("acme") == 0
    assert sum(quotas.take("acme") == 0 for _ in range(1_000)) <= 20


def test_a_registry_that_is_slow_or_down_narrows_nothing() -> None:
    clock = Clock()
    for look_up_s, took_s in ((0.08, 0.1), (math.inf, 5.0)):
        gate = Gate(64, clock, look_up_s=lambda look_up_s=look_up_s: look_up_s)
        for _ in range(1_000):
            assert gate.enter()
            clock.now += 0.02
            gate.leave(took_s)
        assert gate.limit == 64


def test_one_pause_of_the_machine_narrows_nothing() -> None:
    clock = Clock()
    gate = Gate(64, clock)
    for round_ in range(50):
        for _ in range(20):
            assert gate.enter()
            clock.now += 0.01
            gate.leave(0.5 if round_ % 2 else 0.001)
    assert gate.limit == 64
