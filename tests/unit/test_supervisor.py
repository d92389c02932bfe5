"""The supervisor's decisions, by a clock and processes of the tests' own."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from resolver.supervisor import (
    DELAY_FIRST_S,
    DELAY_MAX_S,
    END_S,
    HURRIED,
    LIVED_S,
    NOBODY,
    SILENT_S,
    START_S,
    Supervisor,
)
from resolver.worker import ALIVE, BEATS, BEGIN, READY, Start

STOP_S = 20.0


@dataclass
class Worker:
    """A process and the pipe to it."""

    slot: int
    start: Start
    pid: int
    said: list[bytes] = field(default_factory=list)
    signals: list[int] = field(default_factory=list)
    code: int | None = None
    closed: bool = False
    begun: bool = False

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, number: int) -> None:
        self.signals.append(number)
        if number == signal.SIGKILL:
            self.code = -9

    def wait(self, timeout: float | None = None) -> int:
        assert self.code is not None, "waited for a process that lives"
        return self.code

    def recv(self, octets: int) -> bytes:
        return self.said.pop(0) if self.said else b""

    def send(self, data: bytes) -> int:
        assert data == BEGIN
        assert not self.begun, "told twice"
        self.begun = True
        return len(data)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.closed = True


class House:
    """A supervisor of `slots` workers, and all it ever started."""

    def __init__(self, slots: int = 2) -> None:
        self.now = 1_000.0
        self.started: list[Worker] = []
        self.fault: str | None = None
        self.announced = 0
        self.supervisor = Supervisor(
            slots,
            self._launch,
            lambda: self.fault,
            on_ready=self._announce,
            stop_s=STOP_S,
            clock=lambda: self.now,
        )
        self.supervisor.start()

    def _launch(self, slot: int, start: Start) -> tuple[Worker, Worker]:
        worker = Worker(slot, start, 100 + len(self.started))
        self.started.append(worker)
        return worker, worker

    def _announce(self) -> None:
        self.announced += 1

    def step(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.supervisor.step()

    def ready(self, worker: Worker) -> None:
        assert worker.begun, "ready before it was told to begin"
        self.says(worker, READY)

    def says(self, worker: Worker, word: bytes) -> None:
        worker.said.append(word)
        self.mute(worker)

    def mute(self, worker: Worker) -> None:
        """There is something to hear from it; where it says nothing, it is the end of the pipe."""
        (known,) = [w for w in self.supervisor._workers() if w.process is worker]
        self.supervisor.heard(known)
        self.step()

    def pass_time(self, seconds: float, alive: Iterable[Worker] = ()) -> None:
        """As it does while the supervisor runs: `alive` say so meanwhile."""
        end = self.now + seconds
        while self.now < end:
            self.step(min(SILENT_S / BEATS, end - self.now))
            for worker in alive:
                self.says(worker, ALIVE)

    def crash(self, worker: Worker, code: int = 1) -> None:
        worker.code = code
        self.step()

    def signal(self, number: int) -> None:
        self.supervisor._signals.append(number)
        self.step()

    def serving(self) -> list[Worker]:
        """The first workers, all ready."""
        self.ready(self.started[0])
        for worker in self.started[1:]:
            self.ready(worker)
        return list(self.started)


def test_all_start_and_the_others_begin_when_the_first_is_ready() -> None:
    house = House(3)
    house.step(5)
    assert [(w.slot, w.start) for w in house.started] == [(0, "first"), (1, "join"), (2, "join")]
    assert [w.begun for w in house.started] == [True, False, False]
    house.ready(house.started[0])
    assert [w.begun for w in house.started] == [True, True, True]
    assert house.announced == 0
    house.ready(house.started[1])
    house.ready(house.started[2])
    assert house.announced == 1
    assert house.supervisor.code is None


@pytest.mark.parametrize("code", [3, 1, -9])
def test_if_the_first_cannot_start_there_is_nobody(code: int) -> None:
    house = House()
    first, other = house.started
    house.crash(first, code)
    assert house.supervisor.code == NOBODY
    assert other.signals == [signal.SIGTERM]
    assert not house.supervisor.done
    house.crash(other, -15)
    assert house.supervisor.done
    assert len(house.started) == 2


def test_one_that_waits_to_begin_may_take_as_long_as_the_first() -> None:
    house = House()
    first, other = house.started
    house.step(START_S - 1)
    house.ready(first)
    house.step(START_S - 1)
    assert other.signals == []
    house.step(1)
    assert other.signals == [signal.SIGKILL]


def test_one_that_crashes_before_it_may_begin_is_started_again() -> None:
    house = House()
    first, other = house.started
    house.crash(other)
    again = house.started[-1]
    assert (again.slot, again.begun) == (1, False)
    house.ready(first)
    assert again.begun
    house.ready(again)
    assert house.announced == 1


def test_a_worker_that_hangs_is_killed_and_replaced() -> None:
    house = House()
    first, second = house.serving()
    house.pass_time(SILENT_S - 0.1, alive=[first])
    assert second.signals == []
    house.step(0.1)
    assert second.signals == [signal.SIGKILL]
    assert first.signals == []
    again = house.started[-1]
    assert (again.slot, again.begun) == (1, True)
    house.ready(again)
    assert house.supervisor.restarts == 1


def test_workers_that_live_are_left_alone() -> None:
    house = House()
    workers = house.serving()
    house.pass_time(20 * SILENT_S, alive=workers)
    assert all(worker.signals == [] for worker in house.started)


def test_what_the_supervisor_slept_through_is_nobodys_silence() -> None:
    """A machine that was stopped, or all of its processes."""
    house = House()
    workers = house.serving()
    house.step(10 * SILENT_S)
    assert all(worker.signals == [] for worker in workers)
    house.pass_time(SILENT_S, alive=workers[:1])
    assert [worker.signals for worker in workers] == [[], [signal.SIGKILL]]


def test_one_that_is_to_stop_need_not_say_that_it_lives() -> None:
    house = House()
    workers = house.serving()
    house.signal(signal.SIGTERM)
    house.pass_time(STOP_S - 0.1)
    assert all(worker.signals == [signal.SIGTERM] for worker in workers)


def test_a_first_worker_that_hangs_is_ended() -> None:
    house = House()
    house.step(START_S - 1)
    assert house.started[0].signals == []
    house.step(1)
    assert house.started[0].signals == [signal.SIGKILL]
    assert house.supervisor.code == NOBODY


def test_one_that_has_given_up_is_not_waited_for_long() -> None:
    house = House()
    first, second = house.serving()
    house.crash(second)
    again = house.started[-1]
    house.mute(again)
    house.step(END_S - 0.1)
    assert again.signals == []
    house.step(0.1)
    assert again.signals == [signal.SIGKILL]
    assert first.signals == []


def test_a_crash_is_mended_at_once_then_ever_later() -> None:
    house = House()
    first, second = house.serving()
    delays = []
    crashed = second
    for _ in range(9):
        count = len(house.started)
        house.crash(crashed)
        waited = 0.0
        while len(house.started) == count:
            house.step(0.25)
            house.says(first, ALIVE)
            waited += 0.25
        delays.append(waited)
        crashed = house.started[-1]
        assert crashed.slot == 1
    expected = [0.0, *(min(DELAY_FIRST_S * 2**n, DELAY_MAX_S) for n in range(8))]
    assert delays == expected
    assert delays[-1] == DELAY_MAX_S
    assert first.signals == []
    assert first.code is None
    assert house.supervisor.code is None


def test_a_worker_that_lived_starts_again_at_once() -> None:
    house = House()
    _, second = house.serving()
    house.crash(second)
    house.ready(house.started[-1])
    house.now += LIVED_S
    count = len(house.started)
    house.crash(house.started[-1])
    assert len(house.started) == count + 1


def test_even_when_all_crash_it_goes_on_trying() -> None:
    house = House()
    for worker in house.serving():
        house.crash(worker)
    for _ in range(5):
        for worker in house.started[-2:]:
            house.crash(worker)
        house.step(DELAY_MAX_S)
    assert house.supervisor.code is None
    house.ready(house.started[-1])


def test_one_after_the_other_is_replaced() -> None:
    house = House()
    old = house.serving()
    house.signal(signal.SIGHUP)
    for slot in (0, 1):
        new = house.started[-1]
        assert (new.slot, new.start) == (slot, "succeed")
        assert old[slot].signals == []
        house.ready(new)
        assert old[slot].signals == [signal.SIGTERM]
        count = len(house.started)
        house.step(1)
        assert len(house.started) == count, "the next only when the old one is gone"
        house.crash(old[slot], 0)
    assert len(house.started) == 4
    assert house.supervisor.restarts == 0
    assert all(worker.signals == [] for worker in house.started[2:])


def test_an_old_worker_that_does_not_stop_is_killed() -> None:
    house = House()
    old = house.serving()
    house.signal(signal.SIGHUP)
    house.ready(house.started[-1])
    house.step(STOP_S)
    assert old[0].signals == [signal.SIGTERM, signal.SIGKILL]
    assert house.started[-1].slot == 1


def test_a_fault_in_the_settings_changes_nothing() -> None:
    house = House()
    house.serving()
    house.fault = "port: must be a number"
    house.signal(signal.SIGHUP)
    house.step(1)
    assert len(house.started) == 2
    house.fault = None
    house.signal(signal.SIGHUP)
    assert len(house.started) == 3


def test_a_new_worker_that_fails_leaves_the_old_ones() -> None:
    house = House()
    old = house.serving()
    house.signal(signal.SIGHUP)
    house.crash(house.started[-1], 2)
    house.step(100)
    assert len(house.started) == 3
    assert all(worker.signals == [] for worker in old)
    assert house.supervisor.restarts == 0


def test_an_old_worker_that_crashes_is_followed_by_the_new_one() -> None:
    house = House()
    old = house.serving()
    house.signal(signal.SIGHUP)
    new = house.started[-1]
    house.crash(old[0])
    assert [w.slot for w in house.started] == [0, 1, 0, 1]
    house.ready(new)
    house.ready(house.started[-1])
    assert old[1].signals == [signal.SIGTERM]


def test_a_second_wish_to_replace_comes_after_the_first() -> None:
    house = House(1)
    house.serving()
    house.signal(signal.SIGHUP)
    house.signal(signal.SIGHUP)
    assert len(house.started) == 2
    house.ready(house.started[1])
    house.crash(house.started[0], 0)
    house.step()
    assert len(house.started) == 3
    house.ready(house.started[2])
    house.crash(house.started[1], 0)
    house.step()
    assert len(house.started) == 3


def test_a_wish_to_replace_waits_for_the_first_start() -> None:
    house = House()
    house.signal(signal.SIGHUP)
    assert len(house.started) == 2
    house.serving()
    assert [w.slot for w in house.started] == [0, 1, 0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_waits_for_all(number: int) -> None:
    house = House()
    workers = house.serving()
    house.signal(number)
    assert [worker.signals for worker in workers] == [[signal.SIGTERM]] * 2
    house.crash(workers[0], 0)
    assert not house.supervisor.done
    house.crash(workers[1], 0)
    assert house.supervisor.done
    assert house.supervisor.code == 0
    assert len(house.started) == 2


def test_stopping_has_an_end() -> None:
    house = House()
    workers = house.serving()
    house.signal(signal.SIGTERM)
    house.step(STOP_S)
    assert all(worker.signals[-1] == signal.SIGKILL for worker in workers)
    assert house.supervisor.done


def test_a_second_signal_ends_all_at_once_also_while_replacing() -> None:
    house = House()
    workers = house.serving()
    house.signal(signal.SIGHUP)
    house.signal(signal.SIGTERM)
    house.signal(signal.SIGINT)
    assert all(worker.signals[-1] == signal.SIGKILL for worker in house.started)
    assert len(house.started) == len(workers) + 1
    assert house.supervisor.done
    assert house.supervisor.code == HURRIED


def test_pipes_of_the_dead_are_closed() -> None:
    house = House()
    _, second = house.serving()
    house.crash(second)
    assert second.closed


# What the system does not give --------------------------------------------------------------


def without_processes(slot: int, start: Start) -> tuple[Worker, Worker]:
    raise BlockingIOError(11, "Resource temporarily unavailable")


def test_a_crashed_worker_that_cannot_be_started_is_tried_again() -> None:
    house = House(2)
    first, second = house.serving()
    launch, house.supervisor.launch = house.supervisor.launch, without_processes
    house.crash(second)
    house.pass_time(3 * DELAY_FIRST_S, [first])
    assert (first.signals, house.supervisor.code) == ([], None)
    house.supervisor.launch = launch
    house.pass_time(DELAY_MAX_S, [first])
    assert len(house.started) == 3
    house.ready(house.started[2])


def test_workers_stay_where_none_can_replace_them() -> None:
    house = House(2)
    workers = house.serving()
    launch, house.supervisor.launch = house.supervisor.launch, without_processes
    house.signal(signal.SIGHUP)
    house.pass_time(10, workers)
    assert [worker.signals for worker in workers] == [[], []]
    house.supervisor.launch = launch
    house.signal(signal.SIGHUP)
    assert len(house.started) == 3, "when it is told to again"


def test_without_a_first_worker_there_is_no_node() -> None:
    supervisor = Supervisor(2, without_processes, lambda: None)
    supervisor.start()
    assert (supervisor.code, supervisor.done) == (NOBODY, True)


def test_who_was_told_to_stop_is_not_told_again() -> None:
    """A worker that hears it twice would end at once."""
    house = House(2)
    old, other = house.serving()
    house.signal(signal.SIGHUP)
    house.ready(house.started[2])
    assert old.signals == [signal.SIGTERM]
    house.signal(signal.SIGTERM)
    assert old.signals == other.signals == house.started[2].signals == [signal.SIGTERM]


def test_one_that_does_not_die_at_once_takes_nobody_with_it() -> None:
    house = House(2)
    stuck, other = house.serving()
    stuck.send_signal = stuck.signals.append  # type: ignore[method-assign]
    house.pass_time(2 * SILENT_S, [other])
    assert stuck.signals == [signal.SIGKILL] * len(stuck.signals) != []
    assert len(stuck.signals) < 5
    assert (other.signals, house.supervisor.code) == ([], None)
    house.crash(stuck, -9)
    assert len(house.started) == 3


def test_who_waits_to_be_started_keeps_nobody_awake_at_the_end() -> None:
    house = House(2)
    _, second = house.serving()
    house.crash(second)
    house.crash(house.started[2])
    house.signal(signal.SIGTERM)
    house.now += DELAY_FIRST_S
    assert house.supervisor._patience() > 0
