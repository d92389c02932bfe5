"""One run: generator processes are started, told when to begin, listened to and added up.

The result is a plain document, as it is written to a file; `docs/bench.md` says what is in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from biaojie.client import Client

from .checking import Acknowledged
from .driver import as_worker, command
from .histogram import Histogram, merged
from .names import Names, OwnNames, to_document
from .prepare import restore
from .schedule import KINDS, Load, misses_repeat, plan, popular
from .target import Target
from .words import BenchFault

LINE_OCTETS_MAX: Final = 64 * 2**20
READY_TIMEOUT_S: Final = 60.0
START_AFTER_S: Final = 0.2
END_TIMEOUT_S: Final = 10.0
BUSY_MAX: Final = 0.9
"""A process busier than this may have been the limit itself."""
LATENESS_FLOOR_MS: Final = 2.0
LATENESS_SHARE: Final = 0.25
"""The generator's p99 lateness may be this share of the p99 it measured, or the floor."""


@dataclass(frozen=True, slots=True)
class Writing:
    """Writes mixed in: `rate` a second, through the client library at `url`."""

    rate: float
    url: str
    key: str


@dataclass(frozen=True, slots=True)
class Shape:
    """How a run is carried out. `pipeline` is what one connection may have outstanding;
    `patience_s`, for the driver in C, how long a question waits for a free one, 0: its time."""

    duration_s: float = 10.0
    warmup_s: float = 1.0
    timeout_s: float = 2.0
    patience_s: float = 0.0
    connections: int = 64
    pipeline: int = 1
    processes: int = 1
    engine: str = "python"


Progress = Callable[[str], None]
Job = tuple[Sequence[str], Mapping[str, Any] | None]
"""How to call a process, and what to tell it in its first line."""


def names_document(names: Names, list_file: Path | None) -> dict[str, Any]:
    return to_document(names) if list_file is None else {"list": str(list_file.resolve())}


def written_names(names: Names, load: Load, rate: float) -> list[int]:
    """Names that are written during a run: so many that each rests over two seconds between
    writes, so that its freshness can be told."""
    return popular(names.count - load.cold, max(16, int(rate * 3))) if rate else []


async def run(
    target: Target,
    names: Names,
    load: Load,
    shape: Shape,
    *,
    list_file: Path | None = None,
    writing: Writing | None = None,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Carry one run out; raises BenchFault if it could not be."""
    if shape.processes > shape.connections:
        raise BenchFault("Each process needs a connection.", "每个进程至少需要一个连接。")
    written = written_names(names, load, writing.rate if writing else 0.0)
    shared: Path | None = None
    if writing and written:
        if not isinstance(names, OwnNames):
            raise BenchFault(
                "Writes need names of the bench's own; a list is only read.",
                "混合写入只能使用压测自有标识；已有列表只读。",
            )
        _, shared = Acknowledged.create(written)
    common = {
        "target": asdict(target),
        "names": names_document(names, list_file),
        "load": asdict(load),
        "duration_s": shape.duration_s,
        "warmup_s": shape.warmup_s,
        "timeout_s": shape.timeout_s,
        "pipeline": shape.pipeline,
        "parts": shape.processes,
        "acknowledged": str(shared) if shared else "",
        "written": written,
    }
    jobs: list[Job] = []
    with tempfile.TemporaryDirectory(prefix="biaojie-bench-") as folder:
        for part in range(shape.processes):
            connections = (shape.connections + part) // shape.processes
            if shape.engine == "c":
                jobs.append(
                    await asyncio.to_thread(
                        _driver_job, Path(folder), target, names, load, shape, part, connections
                    )
                )
            else:
                job = {**common, "part": part, "connections": connections}
                jobs.append(([sys.executable, "-m", "bench.worker"], job))
        if shared and writing:
            job = {**common, "part": 0, "writing": asdict(writing)}
            jobs.append(([sys.executable, "-m", "bench.writer"], job))
        try:
            done = await _carry_out(jobs, shape, progress)
        finally:
            if shared:
                shared.unlink(missing_ok=True)
    if writing and isinstance(names, OwnNames):
        async with Client(writing.url, writing.key, 30.0) as client:
            await restore(client, names, written)
    readers = [document for document in done if "book" in document]
    if shape.engine == "c":
        readers = [as_worker(document) for document in readers]
    writers = [document["writes"] for document in done if "writes" in document]
    return added_up(readers, writers, load, shape)


def _driver_job(
    folder: Path,
    target: Target,
    names: Names,
    load: Load,
    shape: Shape,
    part: int,
    connections: int,
) -> Job:
    length_s = shape.warmup_s + shape.duration_s
    schedule = plan(load, names, seconds=length_s, part=part, parts=shape.processes)
    own = folder / str(part)
    own.mkdir()
    times = {
        "warmup": shape.warmup_s,
        "duration": shape.duration_s,
        "timeout": shape.timeout_s,
        "patience": shape.patience_s,
    }
    line = command(
        own,
        target,
        names,
        schedule,
        connections=connections,
        pipeline=shape.pipeline,
        times=times,
    )
    return line, None


# Processes ------------------------------------------------------------------------------


@asynccontextmanager
async def _process(line: Sequence[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *line,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_OCTETS_MAX,
    )
    try:
        yield process
        await asyncio.wait_for(process.wait(), END_TIMEOUT_S)
    finally:
        if process.returncode is None:
            # Not process.kill(): that may reap the child before asyncio does.
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()


class _Generators:
    """The processes of one run, and what they last said."""

    def __init__(self, count: int) -> None:
        self.ready = 0
        self.all_ready = asyncio.Event()
        self.start = asyncio.Event()
        self.start_at = 0.0
        self.count = count
        self.last: dict[int, dict[str, Any]] = {}

    async def one(self, number: int, job: Job, limit_s: float) -> dict[str, Any]:
        line, config = job
        async with _process(line) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            if config is not None:
                process.stdin.write(json.dumps(config).encode() + b"\n")
                await process.stdin.drain()
            await self._line(process.stdout, READY_TIMEOUT_S)
            self.ready += 1
            if self.ready == self.count:
                self.all_ready.set()
            await self.start.wait()
            process.stdin.write(json.dumps({"start": self.start_at}).encode() + b"\n")
            await process.stdin.drain()
            deadline = time.monotonic() + limit_s
            while True:
                said = await self._line(process.stdout, deadline - time.monotonic())
                if "book" in said or "writes" in said:
                    return said
                self.last[number] = said

    async def _line(self, stream: asyncio.StreamReader, timeout_s: float) -> dict[str, Any]:
        try:
            line = await asyncio.wait_for(stream.readline(), max(timeout_s, 0.01))
        except TimeoutError:
            raise BenchFault("A generator process hangs.", "压测进程无响应。") from None
        if not line:
            raise BenchFault("A generator process has died.", "压测进程意外退出。")
        said: dict[str, Any] = json.loads(line)
        if "fault" in said:
            raise BenchFault(
                f"The target cannot be asked: {said['fault']}", f"无法访问目标：{said['fault']}"
            )
        return said


async def _carry_out(jobs: Sequence[Job], shape: Shape, progress: Progress) -> list[dict[str, Any]]:
    generators = _Generators(len(jobs))
    length_s = shape.warmup_s + shape.duration_s
    limit_s = length_s + shape.timeout_s + 30
    tasks = [
        asyncio.create_task(generators.one(number, job, limit_s)) for number, job in enumerate(jobs)
    ]
    ready = asyncio.create_task(generators.all_ready.wait())
    teller = None
    try:
        await asyncio.wait([ready, *tasks], return_when=asyncio.FIRST_COMPLETED)
        if generators.all_ready.is_set():
            generators.start_at = time.monotonic() + START_AFTER_S
            generators.start.set()
            teller = asyncio.create_task(_tell(generators, shape, progress))
        return await asyncio.gather(*tasks)
    finally:
        for task in (ready, teller, *tasks):
            if task is not None:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _tell(generators: _Generators, shape: Shape, progress: Progress) -> None:
    from .words import say

    before, before_at = 0, time.monotonic()
    while True:
        await asyncio.sleep(1.0)
        said = list(generators.last.values())
        right = sum(one.get("right", 0) for one in said)
        now = time.monotonic()
        rate = (right - before) / (now - before_at)
        before, before_at = right, now
        elapsed = max(0.0, now - generators.start_at - shape.warmup_s)
        worst = max((one.get("max_us", 0) for one in said), default=0) / 1e3
        bad = {
            name: sum(one.get(name, 0) for one in said) for name in ("refused", "failed", "wrong")
        }
        progress(
            say(
                f"{elapsed:4.0f} s of {shape.duration_s:g}   {rate:9,.0f}/s   longest {worst:8.2f}"
                f" ms   refused {bad['refused']:,}   failed {bad['failed']:,}"
                f"   wrong {bad['wrong']:,}",
                f"{elapsed:4.0f}/{shape.duration_s:g} 秒   {rate:9,.0f}/秒   最长 {worst:8.2f} 毫秒"
                f"   拒绝 {bad['refused']:,}   失败 {bad['failed']:,}   错误应答 {bad['wrong']:,}",
            )
        )


# The sum --------------------------------------------------------------------------------


def added_up(
    readers: Sequence[Mapping[str, Any]],
    writers: Sequence[Mapping[str, Any]],
    load: Load,
    shape: Shape,
) -> dict[str, Any]:
    """The result of a run from what its processes said."""
    books = [reader["book"] for reader in readers]
    right: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    for book in books:
        right.update(book["right"])
        failed.update(book["failed"])
        sources.update(book["sources"])
    kinds = {
        kind: merged(book["latencies"][kind] for book in books if kind in book["latencies"])
        for kind in KINDS
        if any(kind in book["latencies"] for book in books)
    }
    whole = Histogram()
    for histogram in kinds.values():
        whole.merge(histogram)
    refusals = merged(book["refusals"] for book in books)
    lateness = merged(book["lateness"] for book in books)
    busy = [round(reader["busy"], 3) for reader in readers]
    wrong = [fault for book in books for fault in book["first_wrong"]]
    wrong += [fault for writer in writers for fault in writer["first_wrong"]]
    answered = right.total()
    counts = {
        "scheduled": sum(book["scheduled"] for book in books),
        "right": answered,
        "refused": sum(book["refused"] for book in books),
        "failed": failed.total(),
        "wrong": sum(book["wrong"] for book in books) + sum(writer["wrong"] for writer in writers),
    }
    allowed = max(LATENESS_FLOOR_MS, LATENESS_SHARE * whole.percentile_ms(99))
    lagged = lags(busy, lateness.percentile_ms(99), allowed)
    result: dict[str, Any] = {
        "counts": counts,
        "failures": dict(failed),
        "sources": dict(sources),
        "wrong": wrong[:20],
        "rate_offered": round(counts["scheduled"] / shape.duration_s, 1),
        "rate": round(answered / shape.duration_s, 1),
        "answer_octets": round(sum(book["octets"] for book in books) / answered, 1)
        if answered
        else 0,
        "latency": whole.summary(),
        "latency_by_kind": {kind: histogram.summary() for kind, histogram in kinds.items()},
        "latency_refused": refusals.summary(),
        "curve": whole.curve(),
        "histogram": whole.encode(),
        "seconds": _seconds([book["seconds"] for book in books]),
        "reconnects": sum(book["reconnects"] for book in books),
        "headroom": {
            "engine": shape.engine,
            "busy": busy,
            "free": round(1 - max(busy, default=0.0), 3),
            "lateness": lateness.summary(),
            "lateness_allowed_ms": round(allowed, 3),
        },
        "misses_repeat": misses_repeat(load, shape.warmup_s + shape.duration_s),
        "lagged": lagged,
        "valid": not lagged,
    }
    if writers:
        result["writes"] = writers[0]
    return result


def lags(busy: Sequence[float], lateness_p99_ms: float, allowed_ms: float) -> list[dict[str, str]]:
    """Why the generator, and not the node, may be what was measured; empty if it was not."""
    why = []
    if max(busy, default=0.0) > BUSY_MAX:
        why.append(
            {
                "code": "busy",
                "en": f"A generator process was busy {max(busy):.0%} of the time, more than"
                f" {BUSY_MAX:.0%}: use more processes or the C driver.",
                "zh": f"压测进程占用达 {max(busy):.0%}，超过 {BUSY_MAX:.0%}："
                "请增加进程或改用 C 驱动。",
            }
        )
    if lateness_p99_ms > allowed_ms:
        why.append(
            {
                "code": "late",
                "en": f"The generator was {lateness_p99_ms:.2f} ms late at p99, more than"
                f" {allowed_ms:.2f} ms.",
                "zh": f"压测程序自身的 p99 延迟为 {lateness_p99_ms:.2f} 毫秒，超过"
                f" {allowed_ms:.2f} 毫秒。",
            }
        )
    return why


def _seconds(parts: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
    length = max((len(part) for part in parts), default=0)
    rows = [[0, 0, 0, 0, 0] for _ in range(length)]
    for part in parts:
        for row, add in zip(rows, part, strict=False):
            for column in range(4):
                row[column] += add[column]
            row[4] = max(row[4], add[4])
    return rows
