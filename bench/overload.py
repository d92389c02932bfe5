"""`python -m bench.overload` (`make overload`): what a node does when too much is asked of it.

Three parts, each in rounds whose medians count. `capacity`: over each front five times the peak, in
an open loop, of requests that take the ordinary path (every cache bypassed): what is still done,
how long the accepted take and the refused wait, and how soon it is over. `tenant`: one tenant at
fifty times its quota beside others. `names`: unknown names as fast as they can be asked beside
others. Others are asked for the same without and with the loud one, one right after the other.

Exit code: 0 passed, 1 failed, 2 could not be carried out.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer

from biaojie import Client
from biaojie.account import Role
from biaojie.errors import BiaojieError

from . import results
from .fronts.http import HttpWire
from .fronts.wires import make_wire
from .names import OwnNames
from .node import Node
from .peers.questions import HOST, Writer, native_hello
from .peers.table import head, number
from .prepare import TENANT
from .processes import ROOT, Cores, cpu_s, describe, on, resident_octets
from .programs import SINGLE, Asked, Sample, Shape, drive
from .resolve import Wanted, resolve_run
from .target import parse_target
from .words import BenchFault

PREFIX: Final = "88.118.8"
NAMES: Final = 5_000
PARTS: Final = ("capacity", "tenant", "names")
FRONTS: Final[dict[str, tuple[str, str, int]]] = {
    "http": ("http", "port", 2_500),
    "native": ("biaojie", "native_port", 1_000),
    "hdl-tcp": ("hdl", "handle_port", 1_000),
}
"""Scheme, port, and connections in overload: more than are held at a time, or the driver's own
queue is measured."""
TIMES: Final = 5.0
PEAK_S: Final = 2.0
REFERENCE_SHARE: Final = 0.9
WARM_S: Final = 1.0
LOAD_S: Final = 5.0
TIMEOUT_S: Final = 8.0
"""Nobody hangs up in a run: what that costs is another question."""
LOUD_NICE: Final = 10
PATIENCE_S: Final = 0.02
"""A question that finds no connection free for so long is not asked: its client has as many as
there are, and each waits for an answer or is not read from."""
AFTER_SHARE: Final = 0.5
GOODPUT_MIN: Final = 0.8
P99_MAX: Final = 2.0
REFUSED_P99_MS: Final = 50.0
NORMAL_S: Final = 5.0
CALM_MS: Final = 50.0
"""A second is as usual in which nobody is refused and nobody waits longer."""
FAST_MS: Final = 10.0
"""Twice as long as less than this is not long: it is what a node promises at 70% of its peak."""
QUOTA: Final = 200
QUOTA_TIMES: Final = 50
OTHERS_SHARE: Final = 0.3
"""Of the peak: what the others ask."""
LOSS_MAX: Final = 0.05
FLOOD_RATE: Final = 100_000.0
GROWTH_MAX: Final = 64 * 2**20
_PROBE_S: Final = 0.02


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Site:
    """A node under test, its names, and where the generator runs."""

    node: Node
    names: OwnNames
    folder: Path
    cores: Cores

    def url(self, front: str) -> str:
        scheme, port, _ = FRONTS[front]
        return f"{scheme}://{HOST}:{self.node.ports[port]}"

    def ask(
        self, front: str, rate: float, mix: str, connections: int, *, pipeline: int = 1
    ) -> dict[str, Any]:
        """An open loop by the driver in C, every answer checked."""
        wanted = Wanted(
            url=self.url(front),
            node=self.node.url,
            prefix=PREFIX,
            names=self.names.count,
            keys="uniform",
            mix=mix,
            rate=rate,
            connections=connections,
            pipeline=pipeline,
            duration_s=LOAD_S,
            warmup_s=WARM_S,
            timeout_s=TIMEOUT_S,
            patience_s=PATIENCE_S,
            prepared=True,
            driver="c",
        )
        with on(self.cores.generator):
            result = asyncio.run(resolve_run(wanted))
        if result["counts"]["wrong"]:
            raise BenchFault(f"Wrong: {result['wrong'][0]}", f"错误应答：{result['wrong'][0]}")
        return result

    def peak(self, front: str) -> Sample:
        """Asked as fast as it answers, every cache bypassed."""
        wire = make_wire(parse_target(self.url(front)))
        writer = Writer(self.folder)
        hello = native_hello() if front == "native" else b""
        asked = writer.of(
            lambda n: wire.question(1, self.names.name(n), True), self.names.count, hello=hello
        )
        frame = {"hdl-tcp": "handle"}.get(front, front)
        port = self.node.ports[FRONTS[front][1]]
        return drive(
            Asked(frame, port, asked.requests, None, asked.hello, SINGLE),
            seconds=PEAK_S,
            warm_s=0.5,
            pids=[self.node.pid],
            cores=self.cores.generator,
        )


# Capacity -----------------------------------------------------------------------------------


class Probe:
    """Asks over HTTP now and then, as one more who is refused: whether it says when to come
    again."""

    def __init__(self, site: Site) -> None:
        self._port = site.node.ports["port"]
        self._target = f"/api/v1/identifiers/{site.names.name(0)}?auth=1"
        self._stop = threading.Event()
        self.refused = self.without = 0

    def _run(self) -> None:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=5)
        while not self._stop.wait(_PROBE_S):
            connection.request("GET", self._target)
            reply = connection.getresponse()
            reply.read()
            if reply.status == 503:
                self.refused += 1
                self.without += not reply.headers.get("Retry-After")
        connection.close()

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


def normal_after(seconds: Sequence[Sequence[int]]) -> float:
    """After how many whole seconds all were as usual: right, refused, failed, wrong, longest."""
    last = 0
    for n, (_, refused, failed, _, longest_us) in enumerate(seconds, 1):
        if refused or failed or longest_us > 1000 * CALM_MS:
            last = n
    return float(last)


def capacity_round(site: Site, front: str) -> dict[str, float]:
    most = site.peak(front)
    peak = most.rate
    connections = FRONTS[front][2]
    reference = site.ask(front, REFERENCE_SHARE * peak, "auth=100", 64)
    probe = Probe(site)
    spent = cpu_s([site.node.pid])
    with probe.running() if front == "http" else nullcontext():
        over = site.ask(front, TIMES * peak, "auth=100", connections)
    spent = cpu_s([site.node.pid]) - spent
    after = site.ask(front, AFTER_SHARE * peak, "auth=100", 64)
    counts, seconds = over["counts"], LOAD_S
    return {
        "peak": peak,
        "offered": counts["scheduled"] / seconds,
        "right": counts["right"] / seconds,
        "goodput": counts["right"] / seconds / peak,
        "cpu_goodput": counts["right"] * (seconds + WARM_S) / seconds / spent / most.cpu_rate,
        "cpu_share": spent / (seconds + WARM_S),
        "refused": counts["refused"] / seconds,
        "failed": (counts["failed"] - unplaced(over)) / seconds,
        "unplaced": unplaced(over) / seconds,
        "reference_p99_ms": reference["latency"]["p99_ms"],
        "accepted_p50_ms": over["latency"]["p50_ms"],
        "accepted_p99_ms": over["latency"]["p99_ms"],
        "refused_p50_ms": over["latency_refused"]["p50_ms"],
        "refused_p99_ms": over["latency_refused"]["p99_ms"],
        "normal_after_s": normal_after(after["seconds"]),
        "probed": probe.refused,
        "without_retry_after": probe.without,
    }


def unplaced(result: Mapping[str, Any]) -> int:
    """Questions that found no connection free."""
    return int(result["failures"].get("unplaced", 0))


def judge_capacity(found: Mapping[str, float]) -> dict[str, bool]:
    return {
        "goodput": max(found["goodput"], found["cpu_goodput"]) >= GOODPUT_MIN,
        "accepted": found["accepted_p99_ms"] <= P99_MAX * max(found["reference_p99_ms"], FAST_MS),
        "refused": found["refused_p99_ms"] <= REFUSED_P99_MS,
        "retry-after": found["without_retry_after"] == 0,
        "normal": found["normal_after_s"] <= NORMAL_S,
    }


# Beside others ------------------------------------------------------------------------------


async def reader_key(site: Site) -> str:
    async with Client(site.node.url, key=site.node.key) as client:
        issued = await client.keys.issue(Role.READER, TENANT, "loud")
    return issued.secret


def beside(
    site: Site, front: str, rate: float, mix: str, loud: Callable[[], None]
) -> dict[str, float]:
    """The others alone, then beside the loud one."""
    alone = site.ask(front, rate, mix, 64)
    before = resident_octets([site.node.pid])
    thread = threading.Thread(target=loud)
    thread.start()
    time.sleep(0.5)
    with_loud = site.ask(front, rate, mix, 64)
    thread.join()
    counts = alone["counts"], with_loud["counts"]
    return {
        "rate": rate,
        "alone": counts[0]["right"] / LOAD_S,
        "beside": counts[1]["right"] / LOAD_S,
        "loss": 1 - counts[1]["right"] / max(1, counts[0]["right"]),
        "refused": counts[1]["refused"] / LOAD_S,
        "failed": counts[1]["failed"] / LOAD_S,
        "alone_p99_ms": alone["latency"]["p99_ms"],
        "beside_p99_ms": with_loud["latency"]["p99_ms"],
        "growth_octets": resident_octets([site.node.pid]) - before,
    }


def tenant_round(site: Site, key: str) -> dict[str, float]:
    """`said` is what the loud one was answered, a second, refusals not counted."""
    rate = OTHERS_SHARE * site.peak("http").rate
    wire = HttpWire(HOST)
    header = f"\r\nAuthorization: Bearer {key}\r\n\r\n".encode()

    def question(n: int) -> bytes:
        return wire.question(0, site.names.name(n), False).replace(b"\r\n\r\n", header)

    asked = Writer(site.folder).of(question, site.names.count)
    loud = Asked("http", site.node.ports["port"], asked.requests, shape=Shape(400, 1))
    said: dict[str, float] = {}

    def ask() -> None:
        sample = drive(
            loud,
            seconds=LOAD_S + 1,
            warm_s=0.5,
            rate=QUOTA * QUOTA_TIMES,
            cores=site.cores.generator,
        )
        said.update(
            loud_right=sample.replies / sample.seconds, loud_refused=sample.errors / sample.seconds
        )

    return {**beside(site, "http", rate, "auth=100", ask), **said}


def names_round(site: Site, others: str) -> dict[str, float]:
    """Over the native protocol, pipelined, which is the fastest way to ask."""
    said: dict[str, float] = {}

    def ask() -> None:
        # On the generator's core the others come first: it is the node that is looked at.
        os.setpriority(os.PRIO_PROCESS, 0, LOUD_NICE)  # of this thread, and what it starts
        result = site.ask("native", FLOOD_RATE, "unknown=100", 64, pipeline=32)
        counts = result["counts"]
        said.update(
            flood_answered=counts["right"] / LOAD_S,
            flood_refused=counts["refused"] / LOAD_S,
            flood_unplaced=unplaced(result) / LOAD_S,
        )

    rate = OTHERS_SHARE * site.peak("http").rate
    return {**beside(site, "http", rate, others, ask), **said}


def judge_beside(found: Mapping[str, float]) -> dict[str, bool]:
    return {
        "throughput": found["loss"] <= LOSS_MAX,
        "p99": found["beside_p99_ms"] <= P99_MAX * max(found["alone_p99_ms"], FAST_MS),
        "memory": found["growth_octets"] <= GROWTH_MAX,
    }


# All of it ----------------------------------------------------------------------------------


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: median(one[name] for one in rounds) for name in rounds[0]}


def carry_out(folder: Path, parts: Sequence[str], fronts: Sequence[str], rounds: int) -> Any:
    cores = Cores.of_this_machine()
    names = OwnNames(PREFIX, NAMES)
    settings = {"tenant_rate_max": QUOTA, "handle_udp_rate_max": 0}
    node = Node(folder / "node", cores.server, settings=settings)
    try:
        node.fill(names)
        site = Site(node, names, folder, cores)
        work: dict[str, tuple[Callable[[], dict[str, float]], Any]] = {}
        if "capacity" in parts:
            for front in fronts:
                work[f"capacity {front}"] = partial(capacity_round, site, front), judge_capacity
        if "tenant" in parts:
            key = asyncio.run(reader_key(site))
            work["tenant"] = partial(tenant_round, site, key), judge_beside
        if "names" in parts:
            work["names, others ask for cached ones"] = (
                partial(names_round, site, "hit=100"),
                judge_beside,
            )
            work["names, others bypass the caches"] = (
                partial(names_round, site, "auth=100"),
                judge_beside,
            )
        found: dict[str, Any] = {}
        for name, (once, judge) in work.items():
            measured = []
            for _ in range(rounds):
                measured.append(once())
                say(f"{name}: {told(measured[-1])}")
            middle = medians(measured)
            found[name] = {"median": middle, "checks": judge(middle), "rounds": measured}
    finally:
        node.close()
    return found


def told(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {figure:,.3g}" for name, figure in figures.items())


def table(found: Mapping[str, Any]) -> str:
    lines = [
        f"{TIMES:g} x the peak, in an open loop, every cache bypassed; p99 of the accepted counts"
        " from when they were due, that of the refused from when they were sent.",
        "",
        "| front | peak | offered | done | of the peak, per processor second | accepted p99"
        f" (at {REFERENCE_SHARE:.0%} of the peak) | refused | refused p50, p99 | as usual after"
        " | of what is promised |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for name, part in found.items():
        kind, _, front = name.partition(" ")
        if kind != "capacity":
            continue
        m = part["median"]
        lines.append(
            f"| {front} | {number(m['peak'])}/s | {number(m['offered'])}/s | {number(m['right'])}/s"
            f" | {m['goodput']:.0%}, {m['cpu_goodput']:.0%} | {m['accepted_p99_ms']:.0f} ms"
            f" ({m['reference_p99_ms']:.0f} ms) | {number(m['refused'])}/s"
            f" | {m['refused_p50_ms']:.0f}, {m['refused_p99_ms']:.0f} ms"
            f" | {m['normal_after_s']:g} s | {_verdict(part)} |"
        )
    lines += [
        "",
        f"Promised: goodput, at least {GOODPUT_MIN:.0%} of the peak, on the wall or for each second"
        " of the processor; accepted, p99 at most"
        f" {P99_MAX:g} x that at {REFERENCE_SHARE:.0%} of the peak (or {FAST_MS:g} ms, if that is"
        f" less); refused, p99 at most {REFUSED_P99_MS:g} ms; retry-after, in every refusal;"
        f" normal, within {NORMAL_S:g} s. Goodput and refused together hold as long as all refusals"
        " take no more than a fifth of the processor; beyond that the node keeps to its work, and"
        " who is refused waits, as long as each client takes to be told in its turn.",
        "",
        f"Beside others, who ask over HTTP at {OTHERS_SHARE:.0%} of the peak. Tenant:"
        f" {QUOTA_TIMES} x its quota of {QUOTA} a second over HTTP, by its key. Names: unknown ones"
        f" over the native protocol, {FLOOD_RATE:,.0f} a second attempted.",
        "",
        "| the loud | answered | refused | others alone | beside it | lost | p99 alone | beside it"
        " | memory | |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for name, part in found.items():
        if name.startswith("capacity"):
            continue
        m = part["median"]
        answered = m.get("loud_right", m.get("flood_answered", 0.0))
        refused = m.get("loud_refused", m.get("flood_refused", 0.0))
        lines.append(
            f"| {name} | {number(answered)}/s | {number(refused)}/s | {number(m['alone'])}/s"
            f" | {number(m['beside'])}/s | {m['loss']:.1%} | {m['alone_p99_ms']:.1f} ms"
            f" | {m['beside_p99_ms']:.1f} ms | {m['growth_octets'] / 2**20:+.0f} MiB"
            f" | {_verdict(part)} |"
        )
    return "\n".join(lines)


def _verdict(part: Mapping[str, Any]) -> str:
    """Which parts hold, and which do not."""
    held = [name for name, good in part["checks"].items() if good]
    missed = [name for name, good in part["checks"].items() if not good]
    if not missed:
        return "all held"
    said = f"**not held: {', '.join(missed)}**"
    return f"{said}; held: {', '.join(held)}" if held else said


def main(
    rounds: Annotated[int, typer.Option(min=1, max=99)] = 3,
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}.")] = None,
    front: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(FRONTS)}.")] = None,
    json_file: Annotated[Path, typer.Option("--json")] = ROOT
    / "bench"
    / "results"
    / "overload.json",
    write: Annotated[bool, typer.Option(help="Write into bench/RESULTS.md, too.")] = True,
) -> None:
    """What a node does when too much is asked of it. 过载测试。"""
    try:
        with tempfile.TemporaryDirectory(prefix="biaojie-overload-") as folder:
            found = carry_out(Path(folder), only or PARTS, front or tuple(FRONTS), rounds)
    except (BenchFault, BiaojieError) as fault:
        say(str(fault))
        raise typer.Exit(2) from None
    machine = describe()
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps({"machine": machine, "parts": found}, indent=1) + "\n")
    text = f"{head(machine)}\n\n{table(found)}"
    print(text)
    if write:
        results.write("overload", text)
    good = all(all(part["checks"].values()) for part in found.values())
    raise typer.Exit(0 if good else 1)


if __name__ == "__main__":
    typer.run(main)
