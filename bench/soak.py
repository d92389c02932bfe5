"""`python -m bench.soak` (`make soak`): hours in small. A node with workers at 70 % of its peak for
half an hour, with writes, rolling restarts and a cache that is much too small; every answer is
checked, memory and descriptors are watched, and the end is a verdict.

The load is an open loop in segments one after the other, so that each has a p99 of
its own. Exit code: 0 passed, 1 failed, 2 could not be carried out.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer

from biaojie.errors import BiaojieError

from . import results
from .names import OwnNames
from .node import Node
from .peers import questions
from .peers.table import head, number
from .processes import ROOT, describe, descriptors, family, resident_octets
from .programs import PIPELINED, Asked, Sample, drive
from .resolve import Wanted, resolve_run
from .words import BenchFault

PREFIX: Final = "88.118.8"
SHARE: Final = 0.7
"""Of the peak, which is what HTTP and the native protocol are answered together, beside the
generator, when the drivers ask as fast as that."""
PEAK_S: Final = 5.0
CHECKED_PER_S: Final = 300.0
"""Asked by the generator, which knows of every write how old an answer may be."""
WORKERS: Final = 2
WRITES_PER_S: Final = 20.0
NAMES: Final = 20_000
CACHE_OCTETS: Final = 2**20
"""Room for a tenth of the names or less."""
MIX: Final = "hit=85,unknown=10,auth=5"
SEGMENT_MAX_S: Final = 60.0
SEGMENT_MIN_S: Final = 5.0
SEGMENTS: Final = 15
"""At least so many, if they are not to be shorter than the least."""
RESTART_EVERY: Final = 3
"""Segments from one rolling restart to the next."""
SAMPLE_S: Final = 1.0
MEMORY_GROWTH_MAX: Final = 0.10
MEMORY_FREE_OCTETS: Final = 16 * 2**20
DESCRIPTORS_FREE: Final = 16
P99_DRIFT_MAX: Final = 1.5
P99_FREE_MS: Final = 10.0
LOST_SHARE_MAX: Final = 0.001


@dataclass(frozen=True, slots=True)
class Seen:
    """The node's processes at one moment, `at` seconds from the start."""

    at: float
    processes: int
    resident: int
    descriptors: int


@dataclass(frozen=True, slots=True)
class Segment:
    """What one segment of the load came to, all fronts together; p99 is of HTTP. `stalled`:
    share of the time in which the machine did not let the drivers run."""

    right: int
    wrong: int
    failed: int
    refused: int
    written: int
    p99_ms: float
    restart: bool
    stalled: float


def slope_per_hour(seen: Sequence[Seen]) -> float:
    """Octets of resident memory an hour, by least squares."""
    if len(seen) < 2:
        return 0.0
    middle_x = sum(one.at for one in seen) / len(seen)
    middle_y = sum(one.resident for one in seen) / len(seen)
    across = sum((one.at - middle_x) ** 2 for one in seen)
    along = sum((one.at - middle_x) * (one.resident - middle_y) for one in seen)
    return along / across * 3600 if across else 0.0


def thirds(figures: Sequence[float]) -> tuple[float, float]:
    """The medians of the first and of the last third."""
    size = max(1, len(figures) // 3)
    return median(figures[:size]), median(figures[-size:])


def judge(seen: Sequence[Seen], segments: Sequence[Segment]) -> dict[str, Any]:
    """What must hold and whether it does. While workers are replaced there are more processes;
    those moments do not count for memory and descriptors."""
    usual = median(one.processes for one in seen)
    calm = [one for one in seen if one.processes == usual]
    memory = thirds([one.resident for one in calm])
    open_files = thirds([one.descriptors for one in calm])
    p99 = thirds([segment.p99_ms for segment in segments])
    answered = sum(segment.right for segment in segments)
    wrong = sum(segment.wrong for segment in segments)
    lost = sum(segment.failed + segment.refused for segment in segments)
    checks = {
        "no wrong answer": wrong == 0,
        "answers": answered > 0 and lost <= LOST_SHARE_MAX * (answered + lost),
        "memory": memory[1] <= memory[0] * (1 + MEMORY_GROWTH_MAX) + MEMORY_FREE_OCTETS,
        "descriptors": open_files[1] <= open_files[0] + DESCRIPTORS_FREE,
        "p99": p99[1] <= max(P99_FREE_MS, p99[0] * P99_DRIFT_MAX),
    }
    return {
        "answered": answered,
        "wrong": wrong,
        "lost": lost,
        "written": sum(segment.written for segment in segments),
        "restarts": sum(segment.restart for segment in segments),
        "stalled": median(segment.stalled for segment in segments),
        "memory_octets": memory,
        "memory_octets_per_hour": slope_per_hour(calm),
        "descriptors": open_files,
        "p99_ms": p99,
        "checks": checks,
        "passed": all(checks.values()),
    }


def table(judged: dict[str, Any], seconds: float, rate: float) -> str:
    mib = [octets / 2**20 for octets in judged["memory_octets"]]
    rows = [
        ("answers, all checked", f"{judged['answered']:,}"),
        ("wrong", f"{judged['wrong']:,}"),
        ("refused or lost", f"{judged['lost']:,}"),
        ("writes, read back", f"{judged['written']:,}"),
        ("rolling restarts", str(judged["restarts"])),
        ("of the time, drivers kept from running by the machine", f"{judged['stalled']:.1%}"),
        (
            "resident memory, first and last third",
            f"{mib[0]:.1f} and {mib[1]:.1f} MiB"
            f" ({judged['memory_octets_per_hour'] / 2**20:+.1f} MiB an hour)",
        ),
        ("descriptors, first and last third", "{:.0f} and {:.0f}".format(*judged["descriptors"])),
        ("p99 over HTTP, first and last third", "{:.2f} and {:.2f} ms".format(*judged["p99_ms"])),
        *(
            (f"check: {name}", "ok" if ok else "**failed**")
            for name, ok in judged["checks"].items()
        ),
    ]
    lines = [
        f"{seconds:,.0f} s at {number(rate)} questions a second, {WORKERS} workers, a cache of"
        f" {CACHE_OCTETS // 2**20} MiB for {NAMES:,} names: "
        + ("**passed**" if judged["passed"] else "**failed**"),
        "",
        "| | |",
        "|---|---|",
        *(f"| {what} | {value} |" for what, value in rows),
    ]
    return "\n".join(lines)


class Soak:
    """The bulk of the load is a driver's in C, over names that nobody writes; beside it the
    generator asks and writes names of its own, and sees to it that no answer is older than it
    may be."""

    def __init__(self, node: Node, folder: Path, seconds: float) -> None:
        self._node = node
        self._seconds = seconds
        self._began = time.monotonic()
        self._cores = frozenset(os.sched_getaffinity(0))
        self.seen: list[Seen] = []
        self.segments: list[Segment] = []
        self.rate = 0.0
        names, writer = OwnNames(PREFIX, NAMES), questions.Writer(folder)
        node.fill(names)
        data = writer.data(names)
        http = writer.of(questions.http(names), NAMES, data)
        native = writer.of(questions.native(names), NAMES, data, questions.native_hello())
        self._http = Asked("http", node.ports["port"], http.requests, data)
        self._native = Asked(
            "native", node.ports["native_port"], native.requests, data, native.hello, PIPELINED
        )

    async def run(self) -> None:
        # The first makes the names and loads what is loaded at first use.
        await self._segment((1.0, 1.0), SEGMENT_MIN_S, prepared=False, restart=False)
        peaks = await self._segment((0.0, 0.0), PEAK_S, prepared=True, restart=False)
        rates = SHARE * peaks[0], SHARE * peaks[1]
        self.rate = sum(rates) + CHECKED_PER_S
        peak = " and ".join(number(each) for each in peaks)
        say(f"peak {peak}/s; soaking {self._seconds:g} s at {number(self.rate)}/s")
        self.segments.clear()
        self._began = time.monotonic()
        watching = asyncio.create_task(self._watch())
        length = min(SEGMENT_MAX_S, max(SEGMENT_MIN_S, self._seconds / SEGMENTS))
        try:
            while time.monotonic() < self._began + self._seconds:
                restart = len(self.segments) % RESTART_EVERY == RESTART_EVERY - 1
                await self._segment(rates, length, prepared=True, restart=restart)
                self._tell(restart)
                if self.segments[-1].wrong or watching.done():
                    break
        finally:
            watching.cancel()
            for ended in await asyncio.gather(watching, return_exceptions=True):
                if isinstance(ended, BenchFault):
                    raise ended

    def _tell(self, restart: bool) -> None:
        last = self.segments[-1]
        say(
            f"{time.monotonic() - self._began:6.0f} s  p99 {last.p99_ms:7.2f} ms "
            f" {last.right:,} right, {last.wrong} wrong, {last.failed} failed,"
            f" {last.refused} refused, {self.seen[-1].resident / 2**20:.0f} MiB,"
            f" {self.seen[-1].descriptors} descriptors{', restarted' * restart}"
        )

    async def _segment(
        self, rates: tuple[float, float], length_s: float, *, prepared: bool, restart: bool
    ) -> tuple[float, float]:
        """`rates` over HTTP and natively; 0: as fast as it is answered. How fast it was."""
        checked = Wanted(
            url=self._node.url,
            node=self._node.url,
            key=self._node.key,
            prefix=f"{PREFIX}.1",
            names=2_000,
            mix=MIX,
            rate=CHECKED_PER_S,
            connections=16,
            duration_s=length_s,
            warmup_s=0.5,
            writes=WRITES_PER_S,
            prepared=prepared,
        )

        def bulk(asked: Asked, rate: float) -> Sample:
            return drive(
                asked,
                seconds=length_s,
                warm_s=0.5,
                rate=rate,
                reconnect=True,
                cores=self._cores,
            )

        work = (
            resolve_run(checked),
            asyncio.to_thread(bulk, self._http, rates[0]),
            asyncio.to_thread(bulk, self._native, rates[1]),
            *((self._restart(length_s / 3),) if restart else ()),
        )
        result, http, native, *_ = await asyncio.gather(*work)
        counts = result["counts"]
        for fault in result["wrong"][:5]:
            say(f"WRONG: {fault}")
        writes = result["writes"]
        self.segments.append(
            Segment(
                right=counts["right"] + http.replies + native.replies,
                # A wrong answer to the driver has ended the run already.
                wrong=counts["wrong"],
                failed=counts["failed"] + sum(s.lost + s.cut for s in (http, native)),
                refused=counts["refused"] + http.errors + native.errors,
                written=writes["acknowledged"],
                p99_ms=http.p99_us / 1000,
                restart=restart,
                stalled=(http.stalled_s + native.stalled_s) / length_s / 2,
            )
        )
        return http.rate, native.rate

    async def _restart(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        self._node.process.signal(signal.SIGHUP)

    async def _watch(self) -> None:
        while self._node.process.poll() is None:
            pids = await asyncio.to_thread(family, self._node.pid)
            at = time.monotonic() - self._began
            self.seen.append(Seen(at, len(pids), resident_octets(pids), descriptors(pids)))
            await asyncio.sleep(SAMPLE_S)
        raise BenchFault("The node has ended.", "节点已退出。")


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _carry_out(folder: Path, seconds: float) -> tuple[Soak, dict[str, Any]]:
    node = Node(
        folder / "node",
        arguments=("--workers", str(WORKERS)),
        settings={"cache_bytes_max": CACHE_OCTETS},
    )
    try:
        soak = Soak(node, folder, seconds)
        asyncio.run(soak.run())
    finally:
        node.close()
    return soak, judge(soak.seen, soak.segments)


def main(
    seconds: Annotated[float, typer.Option(min=30, max=86_400)] = 1_800.0,
    json_file: Annotated[Path, typer.Option("--json")] = ROOT / "bench" / "results" / "soak.json",
    write: Annotated[bool, typer.Option(help="Write into bench/RESULTS.md, too.")] = True,
) -> None:
    """Half an hour of load, writes, restarts and cache pressure. 长时间稳定性测试。"""
    try:
        with tempfile.TemporaryDirectory(prefix="biaojie-soak-") as folder:
            soak, judged = _carry_out(Path(folder), seconds)
    except (BenchFault, BiaojieError) as fault:
        say(str(fault))
        raise typer.Exit(2) from None
    document = {
        "machine": describe(),
        "seconds": seconds,
        "rate": soak.rate,
        **judged,
        "segments": [asdict(one) for one in soak.segments],
        "seen": [asdict(one) for one in soak.seen],
    }
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps(document, indent=1) + "\n")
    text = f"{head(document['machine'])}\n\n{table(judged, seconds, soak.rate)}"
    print(text)
    if write:
        results.write("soak", text)
    raise typer.Exit(0 if judged["passed"] else 1)


if __name__ == "__main__":
    typer.run(main)
