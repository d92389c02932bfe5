"""Starts the workers of a node and keeps them running; serves nothing itself.

It holds the sockets (worker_sockets.py), so a worker can go and come while what is sent to it
waits. Every worker is a fresh process with a pipe to here. It begins when it is told to, which for
the first start is when the first worker, who prepares what all need, is ready; it tells when it
is ready itself and from then on that its loop still turns; and it stops when the pipe ends: no
worker outlives its supervisor. One thread, one loop; whatever is waited for has an end.

SIGTERM and SIGINT drain all, a second one ends all at once; SIGHUP replaces one worker after the
other by one with the settings and the program of now.
"""

from __future__ import annotations

import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Final, Protocol

import structlog

from .worker import BEATS, BEGIN, READY, Start

START_S: Final = 90.0
"""How long a worker may take to get ready."""
SILENT_S: Final = 15.0
"""A worker that was ready and says nothing for so long hangs, and is replaced."""
END_S: Final = 5.0
"""How long one that has given up may take to end."""
LIVED_S: Final = 60.0
"""A worker that served this long before it crashed is started again at once, as is any after its
first crash; else its slot waits, twice as long each time:"""
DELAY_FIRST_S: Final = 0.5
DELAY_MAX_S: Final = 15.0
KILLED_S: Final = 10.0
"""How long the system may take to end one that was killed."""
NOBODY: Final = 3
"""Exit code: no worker could start."""
HURRIED: Final = 130
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
log = structlog.get_logger("biaojie.supervisor")


class Pipe(Protocol):
    """The supervisor's end of the pipe to a worker."""

    def fileno(self) -> int: ...
    def recv(self, octets: int, /) -> bytes: ...
    def send(self, data: bytes, /) -> int: ...
    def close(self) -> None: ...


class Process(Protocol):
    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def send_signal(self, number: int, /) -> None: ...
    def wait(self, timeout: float | None = None) -> int: ...


@dataclass(slots=True, eq=False)
class Worker:
    slot: int
    process: Process
    pipe: Pipe
    since: float
    """When it was started, or later told to begin."""
    heard: float
    begun: bool = False
    """It was told to begin."""
    ready: bool = False
    mute: bool = False
    """Its end of the pipe is gone."""
    stop_until: float | None = None
    """It was told to stop and will be killed then."""


@dataclass(slots=True)
class Slot:
    """`next` is what is to replace `worker`. `crashes` in a row decide when to start again."""

    number: int
    worker: Worker | None = None
    next: Worker | None = None
    crashes: int = 0
    start_at: float | None = None


@dataclass(slots=True)
class Supervisor:
    """`launch(slot, start)` starts a process. `reload` says why nothing can be replaced now, or
    None. `on_ready` is called once, when all serve."""

    slots_number: int
    launch: Callable[[int, Start], tuple[Process, Pipe]]
    reload: Callable[[], str | None]
    on_ready: Callable[[], None] = lambda: None
    stop_s: float = 30.0
    silent_s: float = SILENT_S
    clock: Callable[[], float] = time.monotonic
    slots: list[Slot] = field(init=False)
    restarts: int = 0
    code: int | None = None
    """Set when there is nothing left to do but to wait for the last worker."""

    _leaving: list[Worker] = field(default_factory=list)
    _to_replace: list[int] = field(default_factory=list)
    _again: bool = False
    _begun: bool = False
    _ready: bool = False
    _signals: list[int] = field(default_factory=list)
    _awake: float = field(init=False)

    def __post_init__(self) -> None:
        self._awake = self.clock()
        self.slots = [Slot(number) for number in range(self.slots_number)]

    # The loop ---------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until told to stop; returns the exit code."""
        wake, waker = socket.socketpair()
        for end in (wake, waker):
            end.setblocking(False)
        before = {number: signal.signal(number, self._signalled) for number in _SIGNALS}
        wakeup = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        try:
            self.start()
            while not self.done:
                self._wait(wake)
                self.step()
            assert self.code is not None
            return self.code
        finally:
            self._kill_all()
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            wake.close()
            waker.close()

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    def _wait(self, wake: Pipe) -> None:
        """Until a signal, a word from a worker, or a time that was set."""
        with selectors.DefaultSelector() as selector:
            selector.register(wake.fileno(), selectors.EVENT_READ, None)
            for worker in self._workers():
                if not worker.mute:
                    selector.register(worker.pipe.fileno(), selectors.EVENT_READ, worker)
            if self._signals:
                return
            for key, _ in selector.select(self._patience()):
                if key.data is None:
                    wake.recv(4096)
                else:
                    self.heard(key.data)

    def _patience(self) -> float:
        now = self.clock()
        times = []
        if self.code is None:
            times = [slot.start_at for slot in self.slots if slot.start_at is not None]
        times += [worker.stop_until for worker in self._workers() if worker.stop_until is not None]
        times.append(now + self.silent_s / BEATS)
        return min(max(0.0, at - now) for at in times)

    # What happens -----------------------------------------------------------------------

    def start(self) -> None:
        """All at once; the others wait for the first where they have loaded the program."""
        for slot in self.slots:
            self._start(slot)

    def heard(self, worker: Worker) -> None:
        """A worker said that it is ready, or lives; or its end of the pipe is gone, and it with
        it soon."""
        try:
            said = worker.pipe.recv(64)
        except OSError:
            said = b""
        worker.heard = self.clock()
        if READY in said and not worker.ready:
            worker.ready = True
            log.info("worker ready", worker=worker.slot, pid=worker.process.pid)
        elif not said:  # it will not get ready any more, and is about to end
            worker.mute = True
            worker.since = min(worker.since, self.clock() - START_S + END_S)

    def step(self) -> None:
        """Act on what signals, processes and the clock say."""
        while self._signals:
            self._obey(self._signals.pop(0))
        self._bury()
        now = self.clock()
        if now - self._awake > 2 * self.silent_s / BEATS:
            # It was this process that did not run, and the workers perhaps neither.
            for worker in self._workers():
                worker.heard = now
        self._awake = now
        for worker in self._workers():
            fault = self._fault_of(worker, now)
            if fault is not None:
                log.error(fault, worker=worker.slot, pid=worker.process.pid)
            if fault is not None or (worker.stop_until is not None and now >= worker.stop_until):
                log.warning("worker killed", worker=worker.slot, pid=worker.process.pid)
                worker.process.send_signal(signal.SIGKILL)
                worker.stop_until = now + KILLED_S
        self._bury()
        if self.code is None:
            self._start_due(now)
            self._replace()
            self._report()

    def _fault_of(self, worker: Worker, now: float) -> str | None:
        """Why it must go at once, if it must."""
        if worker.stop_until is not None:
            return None
        if worker.ready:
            return "worker hangs" if now - worker.heard >= self.silent_s else None
        waits = not worker.begun and not worker.mute
        return None if waits or now - worker.since < START_S else "worker did not get ready"

    @property
    def done(self) -> bool:
        return self.code is not None and not self._workers()

    def _obey(self, number: int) -> None:
        if number == signal.SIGHUP:
            if self.code is None:
                self._begin_replacing()
        elif number in (signal.SIGTERM, signal.SIGINT):
            if self.code is None:
                log.info("stopping")
                self.code = 0
                for worker in self._workers():
                    self._stop(worker)
            else:
                log.warning("stopping at once")
                self.code = HURRIED
                self._kill_all()

    def _bury(self) -> None:
        """Take note of the workers that have ended."""
        for worker in self._workers():
            code = worker.process.poll()
            if code is None:
                continue
            worker.pipe.close()
            if worker in self._leaving:
                self._leaving.remove(worker)
                log.info("worker stopped", worker=worker.slot, pid=worker.process.pid, code=code)
                continue
            slot = self.slots[worker.slot]
            if worker is slot.next:
                slot.next = None
                self._replace_none(slot, code)
                continue
            slot.worker = None
            if self.code is not None:
                continue
            self._crashed(slot, worker, code)

    def _crashed(self, slot: Slot, worker: Worker, code: int) -> None:
        if not self._begun and slot.number == 0 and not worker.ready:
            self._nobody(code)
            return
        now = self.clock()
        if slot.next is not None:  # what was to replace it is on its way
            log.error("worker crashed", worker=slot.number, pid=worker.process.pid, code=code)
            slot.worker, slot.next = slot.next, None
            self._done_replacing()
            return
        if worker.ready and now - worker.since >= LIVED_S:
            slot.crashes = 0
        slot.crashes += 1
        delay = _delay_s(slot.crashes)
        slot.start_at = now + delay
        self.restarts += 1
        log.error(
            "worker crashed",
            worker=slot.number,
            pid=worker.process.pid,
            code=code,
            was_ready=worker.ready,
            again_in_s=delay,
        )

    # Starting, stopping, replacing --------------------------------------------------------

    def _start(self, slot: Slot) -> None:
        first = not self._begun and slot.number == 0
        slot.start_at = None
        slot.worker = self._launched(slot, Start.FIRST if first else Start.JOIN)
        if slot.worker is None:
            slot.crashes += 1
            slot.start_at = self.clock() + _delay_s(slot.crashes + 1)
            if first:
                self._nobody(None)
        elif first or self._begun:
            self._tell_to_begin(slot.worker)

    def _launched(self, slot: Slot, start: Start) -> Worker | None:
        """None where the system has no process for it, or the program is not there just now."""
        now = self.clock()
        try:
            process, pipe = self.launch(slot.number, start)
        except OSError as error:
            log.error("worker cannot be started", worker=slot.number, error=str(error))
            return None
        return Worker(slot.number, process, pipe, since=now, heard=now)

    def _nobody(self, code: int | None) -> None:
        log.error("no worker could start", code=code)
        self.code = NOBODY
        for worker in self._workers():
            self._stop(worker)

    def _tell_to_begin(self, worker: Worker) -> None:
        worker.begun, worker.since = True, self.clock()
        with suppress(OSError):  # it is gone, as we shall learn
            worker.pipe.send(BEGIN)

    def _start_due(self, now: float) -> None:
        for slot in self.slots:
            if slot.start_at is not None and now >= slot.start_at:
                self._start(slot)
        first = self.slots[0].worker
        if not self._begun and first is not None and first.ready:
            self._begun = True
            for worker in self._workers():
                if not worker.begun:
                    self._tell_to_begin(worker)

    def _report(self) -> None:
        if not self._ready and all(slot.worker and slot.worker.ready for slot in self.slots):
            self._ready = True
            log.info("all workers ready", workers=self.slots_number)
            self.on_ready()

    def _begin_replacing(self) -> None:
        if self._to_replace or not self._begun:
            self._again = True
            return
        fault = self.reload()
        if fault is not None:
            log.error("nothing was replaced", fault=fault)
            return
        log.info("replacing the workers")
        self._to_replace = [slot.number for slot in self.slots]

    def _replace(self) -> None:
        """One slot at a time: a new worker, and when it is ready the old one goes."""
        if self._leaving:
            return
        if not self._to_replace:
            if self._again and self._begun:
                self._again = False
                self._begin_replacing()
            if not self._to_replace:
                return
        slot = self.slots[self._to_replace[0]]
        if slot.next is None:
            if slot.worker is None:  # it has crashed, and starts anew anyway
                slot.start_at = None
                self._start(slot)
                self._done_replacing()
                return
            slot.next = self._launched(slot, Start.SUCCEED)
            if slot.next is None:
                self._replace_none(slot, None)
                return
            self._tell_to_begin(slot.next)
        elif slot.next.ready:
            old, slot.worker, slot.next = slot.worker, slot.next, None
            slot.start_at, slot.crashes = None, 0
            if old is not None:
                self._leaving.append(old)
                self._stop(old)
            self._done_replacing()

    def _replace_none(self, slot: Slot, code: int | None) -> None:
        self._to_replace.clear()
        log.error("worker cannot be replaced; the old ones stay", worker=slot.number, code=code)

    def _done_replacing(self) -> None:
        del self._to_replace[0]
        if not self._to_replace:
            log.info("all workers replaced")

    def _stop(self, worker: Worker) -> None:
        if worker.stop_until is not None:
            return  # it knows, and has so long and no longer
        worker.stop_until = self.clock() + self.stop_s
        worker.process.send_signal(signal.SIGTERM)

    def _workers(self) -> list[Worker]:
        present = [worker for slot in self.slots for worker in (slot.worker, slot.next) if worker]
        return present + self._leaving

    def _kill_all(self) -> None:
        for worker in self._workers():
            worker.process.send_signal(signal.SIGKILL)
        for worker in self._workers():
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(KILLED_S)


def _delay_s(crashes: int) -> float:
    """After so many in a row."""
    if crashes < 2:
        return 0.0
    return min(DELAY_FIRST_S * 2.0 ** min(crashes - 2, 10), DELAY_MAX_S)
