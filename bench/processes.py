"""Processes that are measured: each on a core of its own, watched through /proc, ended with us.

Linux only. Nothing here is left running: whoever starts a Process closes it, and should this
process be killed, its children get SIGTERM from the kernel.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from .facts import machine
from .words import BenchFault

ROOT: Final = Path(__file__).parents[1]
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_PR_SET_PDEATHSIG: Final = 1
_AWAKE_S: Final = 1.0
_STOP_S: Final = 15.0
_PORTS: Final = range(20_000, 30_000)
_PORTS_TRIED: Final = 100


@dataclass(frozen=True, slots=True)
class Cores:
    """Where the server runs and where what asks it runs. The same core, if there is but one."""

    server: frozenset[int]
    generator: frozenset[int]

    @classmethod
    def of_this_machine(cls) -> Self:
        allowed = sorted(os.sched_getaffinity(0))
        return cls(frozenset(allowed[-1:]), frozenset(allowed[:1]))

    @property
    def apart(self) -> bool:
        return not self.server & self.generator


@contextmanager
def on(cores: frozenset[int]) -> Iterator[None]:
    """Run this thread, and what it starts meanwhile, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Process:
    """A child process. `close()` ends it; its output goes to `log`, unless `reads`: then its
    standard output is for `first_line`."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        cores: frozenset[int] | None = None,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        reads: bool = False,
        directory: Path | None = None,
    ) -> None:
        self.command = [str(part) for part in command]
        self.log = log
        out: IO[bytes] | int = subprocess.DEVNULL if log is None else log.open("ab")
        with on(cores or frozenset(os.sched_getaffinity(0))):
            self._process = subprocess.Popen(
                self.command,
                env=None if environment is None else dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if reads else out,
                stderr=out,
                cwd=directory,
                preexec_fn=_end_with_parent,  # noqa: PLW1509  (no threads run here)
            )
        if not isinstance(out, int):
            out.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def first_line(self) -> Any:
        """What it says first, as JSON."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self.fault("said nothing")
        return json.loads(line)

    def fault(self, what: str) -> BenchFault:
        tail = self.log.read_text(errors="replace")[-2000:] if self.log else ""
        name = Path(self.command[0]).name
        return BenchFault(f"{name} {what}:\n{tail}", f"{name} 启动失败：\n{tail}")

    def wait(self, seconds: float) -> int:
        return self._process.wait(seconds)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(_STOP_S)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


# What /proc says ----------------------------------------------------------------------------


def _stat(pid: int) -> list[str]:
    """The fields after the name; the process state is the first. Empty: it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    parents = {
        int(entry): int(fields[1])
        for entry in os.listdir("/proc")
        if entry.isdigit() and (fields := _stat(int(entry)))
    }
    found = [pid]
    for member in found:  # grows as we go
        found += [child for child, parent in parents.items() if parent == member]
    return found


@contextmanager
def resting(cores: frozenset[int], but: Collection[int]) -> Iterator[None]:
    """Processes of ours on these cores stand still meanwhile, but for some: servers that nobody
    asks wake up now and then, which the one that is asked would have to wait for. Afterwards they
    have a moment to find out that time has passed."""
    others = [pid for pid in family(os.getpid())[1:] if pid not in but and _runs_on(pid, cores)]
    try:
        for pid in others:
            _tell(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in others:
            _tell(pid, signal.SIGCONT)
        if others:
            time.sleep(_AWAKE_S)


def _runs_on(pid: int, cores: frozenset[int]) -> bool:
    try:
        return os.sched_getaffinity(pid) == cores
    except ProcessLookupError:
        return False


def _tell(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def cpu_s(pids: Sequence[int]) -> float:
    """User and system time of processes, in seconds."""
    return sum(int(f[11]) + int(f[12]) for pid in pids if (f := _stat(pid))) / _TICKS


def reaped_s(pids: Sequence[int]) -> float:
    """User and system time of children of theirs that have ended, in seconds."""
    return sum(int(f[13]) + int(f[14]) for pid in pids if (f := _stat(pid))) / _TICKS


def resident_octets(pids: Sequence[int]) -> int:
    """Resident memory; what several of them share counts for each."""
    return sum(int(f[21]) for pid in pids if (f := _stat(pid))) * _PAGE


def descriptors(pids: Sequence[int]) -> int:
    """Open file descriptors of processes."""
    count = 0
    for pid in pids:
        try:
            count += len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue
    return count


def free_port() -> int:
    """Free for TCP and UDP, and none that the system gives to those who connect: it would be
    taken again before the server that is told of it comes to bind it. Raises BenchFault."""
    for port in random.sample(_PORTS, _PORTS_TRIED):
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port
    raise BenchFault("No port was found free.", "没有空闲端口。")


def wait_until(true: Callable[[], bool], seconds: float, process: Process | None = None) -> None:
    """Ask `true()` again and again; raises BenchFault when the time is up or `process` ended."""
    deadline = time.monotonic() + seconds
    while not true():
        if process is not None and process.poll() is not None:
            raise process.fault("ended")
        if time.monotonic() > deadline:
            if process is not None:
                raise process.fault("is not ready")
            raise BenchFault("It took too long.", "等待超时。")
        time.sleep(0.02)


# What a result says of where it was measured -------------------------------------------------


def describe() -> dict[str, Any]:
    """Machine, commit, time and command, for the head of a table."""
    return machine() | {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "command": _command(),
    }


def _command() -> str:
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        name = f"python -m {'.'.join(called.parent.relative_to(ROOT).parts)}"
    elif called.parent == ROOT / "bench":
        name = f"python -m bench.{called.stem}"
    else:
        name = called.name
    return " ".join([name, *sys.argv[1:]])


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--", "resolver", "registry", "clients")
    except OSError:
        return "unknown"
    return (commit or "unknown") + (" with local changes" if changed else "")
