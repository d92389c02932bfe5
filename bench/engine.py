"""The generator itself: asks by the schedule, whatever the node does, and books what comes back.

Open loop. A question counts from the time it was scheduled, also while it waits for a free place
on a connection; one that is not answered within its time is booked as lost, at the time it had
waited by then. How late the generator itself was is booked apart, as its lateness.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from .asking import Ask
from .checking import Checker
from .fronts import ABSENT, LOST, RECORD, REFUSED, Answer
from .histogram import Histogram
from .schedule import KINDS
from .timer import Timer

SWEEP_S: Final = 0.02
RETRY_S: Final = 0.05
RETRY_MAX_S: Final = 1.0
WRONG_KEPT: Final = 20
_AUTH: Final = KINDS.index("auth")


@dataclass(frozen=True, slots=True)
class Times:
    """Of one run, `time.monotonic()`: questions due before `measured` are for warming up."""

    start: float
    measured: float
    end: float
    timeout_s: float


@dataclass(slots=True)
class Book:
    """What happened, of the measured part. `sources`: kind and where the node had it from, as
    far as it says. `seconds`: right, refused, failed, wrong and the
    longest latency in microseconds, for each second of it and those it took to drain."""

    right: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    wrong: int = 0
    first_wrong: list[str] = field(default_factory=list)
    scheduled: int = 0
    reconnects: int = 0
    octets: int = 0
    latencies: dict[str, Histogram] = field(
        default_factory=lambda: {kind: Histogram() for kind in KINDS}
    )
    refusals: Histogram = field(default_factory=Histogram)
    lateness: Histogram = field(default_factory=Histogram)
    seconds: list[list[int]] = field(default_factory=list)

    def to_document(self) -> dict[str, Any]:
        return {
            "right": dict(self.right),
            "failed": dict(self.failed),
            "sources": dict(self.sources),
            "refused": self.refused,
            "wrong": self.wrong,
            "first_wrong": self.first_wrong,
            "scheduled": self.scheduled,
            "reconnects": self.reconnects,
            "octets": self.octets,
            "latencies": {
                kind: histogram.encode()
                for kind, histogram in self.latencies.items()
                if histogram.count
            },
            "refusals": self.refusals.encode(),
            "lateness": self.lateness.encode(),
            "seconds": self.seconds,
        }


Connect = Callable[["Engine"], Awaitable[Any]]
"""Opens one link, which reports itself to the engine when it takes questions."""


class Engine:
    """One process's part of a run, for one event loop."""

    def __init__(
        self,
        arrivals: Iterator[tuple[float, int, int]],
        name_of: Callable[[int, int], str],
        checker: Checker,
        connect: Connect,
        links: int,
    ) -> None:
        self.book = Book()
        self._arrivals = arrivals
        self._name_of = name_of
        self._checker = checker
        self._connect = connect
        self._links = links
        self._open: set[Any] = set()
        self._places: deque[Any] = deque()
        self._waiting: deque[Ask] = deque()
        self._pending: deque[Ask] = deque()
        self._all_open = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._next: tuple[float, int, int] | None = None
        self._times = Times(0, 0, 0, 1)
        self._closing = False
        self._failures = 0
        self._fault = ""
        self._cpu = [0.0, 0.0]
        self._loop = asyncio.get_running_loop()
        self._timer = Timer(self._loop, self._ring)
        self._over = asyncio.Event()

    # The run ----------------------------------------------------------------------------

    async def open(self, timeout_s: float) -> None:
        """Open all links; raises TimeoutError, its text saying why."""
        for _ in range(self._links):
            self._open_one(0.0)
        try:
            await asyncio.wait_for(self._all_open.wait(), timeout_s)
        except TimeoutError:
            raise TimeoutError(self._fault or "no connection in time") from None

    async def run(self, times: Times) -> float:
        """Carry the schedule out; returns the share of a core that it kept busy."""
        self._times = times
        self._advance()
        self._ring()
        sweep = self._loop.create_task(self._sweep())
        try:
            await asyncio.sleep(max(0.0, times.measured - time.monotonic()))
            self._cpu = [time.process_time(), time.monotonic()]
            await asyncio.sleep(max(0.0, times.end - time.monotonic()))
            busy = (time.process_time() - self._cpu[0]) / (time.monotonic() - self._cpu[1])
            await asyncio.wait_for(self._over.wait(), times.timeout_s + 5)
        finally:
            self._closing = True
            sweep.cancel()
            self._timer.close()
            for task in self._tasks:
                task.cancel()
            for link in list(self._open):
                link.close()
        return busy

    def _advance(self) -> None:
        offset, kind, number = next(self._arrivals)
        due = self._times.start + offset
        self._next = (due, kind, number) if due < self._times.end else None

    def _ring(self) -> None:
        """Ask what is due, and have the timer ring when the next is."""
        measured = self._times.measured
        while self._next is not None:
            due, kind, number = self._next
            now = time.monotonic()
            if due > now:
                self._timer.at(due)
                return
            if due >= measured:
                self.book.scheduled += 1
                self.book.lateness.add_us(int((now - due) * 1e6))
            ask = Ask(kind, number, due, kind == _AUTH)
            self._pending.append(ask)
            self._waiting.append(ask)
            self._place()
            self._advance()

    def _place(self) -> None:
        """Send what waits, as far as there are free places."""
        places, waiting = self._places, self._waiting
        while waiting and places:
            link = places.popleft()
            if link not in self._open:
                continue
            ask = waiting.popleft()
            if ask.done:
                places.append(link)
                continue
            ask.sent = time.monotonic()
            link.send(ask, self._name_of(ask.kind, ask.number))

    async def _sweep(self) -> None:
        """Give up what has waited too long; end when all is done."""
        timeout_s = self._times.timeout_s
        pending = self._pending
        while True:
            now = time.monotonic()
            while pending and (pending[0].done or pending[0].due + timeout_s <= now):
                ask = pending.popleft()
                if not ask.done:
                    self._give_up(ask, now)
            if self._next is None and not pending:
                self._over.set()
                return
            await asyncio.sleep(SWEEP_S)

    def _give_up(self, ask: Ask, now: float) -> None:
        ask.done = True
        link = ask.link
        if link is not None and link in self._open:
            link.give_up(ask)
            if link in self._open:
                self._places.append(link)
                self._place()
        if ask.due >= self._times.measured:
            waited = int((now - ask.due) * 1e6)
            self.book.failed[LOST] += 1
            self.book.latencies[KINDS[ask.kind]].add_us(waited)
            second = self._second(now)
            second[2] += 1
            second[4] = max(second[4], waited)

    # What links report ------------------------------------------------------------------

    def answered(self, ask: Ask, answer: Answer) -> None:
        now = time.monotonic()
        if ask.done:
            return
        ask.done = True
        self._places.append(ask.link)
        if self._waiting:
            self._place()
        code = answer.code
        fault = None
        if code in (RECORD, ABSENT):
            fault = self._checker.fault(ask.kind, ask.number, ask.sent, answer)
        if fault is not None:
            # Also while warming up: wrong is wrong.
            self.book.wrong += 1
            if len(self.book.first_wrong) < WRONG_KEPT:
                self.book.first_wrong.append(fault)
        if ask.due < self._times.measured:
            return
        took = int((now - ask.due) * 1e6)
        second = self._second(now)
        second[4] = max(second[4], took)
        kind = KINDS[ask.kind]
        book = self.book
        if fault is not None:
            second[3] += 1
        elif code in (RECORD, ABSENT):
            second[0] += 1
            book.right[kind] += 1
            book.octets += len(answer.body)
            book.latencies[kind].add_us(took)
            if answer.source:
                book.sources[f"{kind} {answer.source}"] += 1
        elif code in REFUSED:
            second[1] += 1
            book.refused += 1
            book.refusals.add_us(int((now - ask.sent) * 1e6))
        else:
            second[2] += 1
            book.failed[code] += 1

    def failed(self, ask: Ask, code: str) -> None:
        """The link that carried it has ended."""
        if ask.done:
            return
        ask.done = True
        if ask.due < self._times.measured:
            return
        self.book.failed[code] += 1
        self._second(time.monotonic())[2] += 1

    def opened(self, link: Any) -> None:
        self._open.add(link)
        self._failures = 0
        # In turn, so that all links carry questions before one carries two.
        self._places.extend([link] * link.room)
        if len(self._open) == self._links and not self._all_open.is_set():
            self._places = deque(
                link for _ in range(link.room) for link in sorted(self._open, key=id)
            )
            self._all_open.set()
        self._place()

    def closed(self, link: Any) -> None:
        self._open.discard(link)
        if self._closing:
            return
        self.book.reconnects += 1
        self._again()

    # Links ------------------------------------------------------------------------------

    def _again(self) -> None:
        self._failures += 1
        self._open_one(min(RETRY_MAX_S, RETRY_S * 2 ** min(self._failures - 1, 6)))

    def _open_one(self, delay_s: float) -> None:
        task = self._loop.create_task(self._connect_after(delay_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect_after(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        try:
            await asyncio.wait_for(self._connect(self), 5.0)
        except OSError as error:  # TimeoutError is one
            self._fault = str(error) or "no connection in time"
            if not self._closing:
                self._again()

    def _second(self, now: float) -> list[int]:
        seconds = self.book.seconds
        at = max(0, int(now - self._times.measured))
        while len(seconds) <= at:
            seconds.append([0, 0, 0, 0, 0])
        return seconds[at]
