"""`bench resolve`: what the caller wants, carried out."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, cast

import biaojie
from biaojie.client import Client

from .driver import usable
from .facts import NodeReading, machine, read_node
from .names import ListedNames, Names, OwnNames
from .peak import Goal, search
from .prepare import prepare
from .run import Shape, Writing, run
from .schedule import Load, parse_mix
from .target import parse_target
from .words import BenchFault, say

FORMAT: Final = 1
"""Of the result; grows when a field changes its meaning."""
STEP_WARMUP_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options of the command, under their names."""

    url: str
    rate: float = 1_000.0
    peak_p99_ms: float | None = None
    peak_step_s: float = 2.0
    duration_s: float = 10.0
    warmup_s: float = 1.0
    timeout_s: float = 2.0
    patience_s: float = 0.0
    connections: int = 64
    pipeline: int = 1
    keys: str = "zipf:0.99"
    mix: str = "hit=100"
    arrivals: str = "poisson"
    seed: int = 1
    writes: float = 0.0
    processes: int = 1
    driver: str = "auto"
    prefix: str = ""
    names: int = 10_000
    cold: int = 0
    value_octets: int = 125
    list_file: Path | None = None
    prepared: bool = False
    node: str = ""
    key: str = ""
    own: bool = False


Tell = Callable[[str], None]


def quiet(line: str) -> None:
    """For callers who want the result alone."""


async def resolve_run(wanted: Wanted, live: Tell = quiet, note: Tell = quiet) -> dict[str, Any]:
    """Prepare, run and add up; `live` hears how it goes, `note` what is worth keeping.

    Raises BenchFault, and BiaojieError where the node refuses the preparations.
    """
    target = parse_target(wanted.url, own=wanted.own)
    node = wanted.node or (wanted.url if target.front == "http" else "")
    if node:
        parse_target(node, own=wanted.own)
    if wanted.arrivals not in ("poisson", "even"):
        raise BenchFault("arrivals is poisson or even.", "arrivals 应为 poisson 或 even。")
    names = _names(wanted)
    load = Load(
        rate=wanted.rate,
        mix=parse_mix(wanted.mix),
        keys=wanted.keys,
        arrivals=cast(Literal["poisson", "even"], wanted.arrivals),
        seed=wanted.seed,
        cold=wanted.cold,
    )
    prepared = None
    if isinstance(names, OwnNames) and not wanted.prepared:
        prepared = await _prepare(names, node, wanted.key, live)
    writing = _writing(wanted, node)
    shape = Shape(
        duration_s=wanted.duration_s,
        warmup_s=wanted.warmup_s,
        timeout_s=wanted.timeout_s,
        patience_s=wanted.patience_s,
        connections=wanted.connections,
        pipeline=wanted.pipeline,
        processes=wanted.processes,
        engine=_engine(wanted),
    )

    async def once(rate: float, whole: bool) -> dict[str, Any]:
        how = shape
        if not whole:
            how = replace(shape, duration_s=wanted.peak_step_s, warmup_s=STEP_WARMUP_S)
        before = await asyncio.to_thread(read_node, node)
        result = await run(
            target,
            names,
            replace(load, rate=rate),
            how,
            list_file=wanted.list_file,
            writing=writing,
            progress=live,
        )
        after = await asyncio.to_thread(read_node, node)
        return {**result, "node": _node(before, after, result)}

    started = datetime.now(UTC)
    facts = machine()
    if wanted.peak_p99_ms is None:
        result = await once(wanted.rate, True)
    else:
        result = await search(once, Goal(wanted.peak_p99_ms, wanted.rate), note)
    return {
        "kind": "resolve",
        "format": FORMAT,
        "started": started.isoformat(timespec="seconds"),
        "bench": {"version": biaojie.__version__, "python": platform.python_version()},
        "machine": facts,
        "target": {"url": wanted.url, "front": target.front},
        "names": _told(names, wanted),
        "load": {
            "rate": wanted.rate,
            "keys": wanted.keys,
            "mix": wanted.mix,
            "arrivals": wanted.arrivals,
            "seed": wanted.seed,
            "cold": wanted.cold,
            "writes": wanted.writes,
        },
        "shape": {
            "duration_s": shape.duration_s,
            "warmup_s": shape.warmup_s,
            "timeout_s": shape.timeout_s,
            "connections": shape.connections,
            "pipeline": shape.pipeline,
            "processes": shape.processes,
        },
        "prepared": prepared,
        **result,
    }


def _names(wanted: Wanted) -> Names:
    if bool(wanted.prefix) == bool(wanted.list_file):
        raise BenchFault(
            "Say which names to ask for: --prefix for the bench's own, or --list for a file that"
            " `biaojie export` wrote.",
            "请指定标识：--prefix 使用压测自有标识，或 --list 使用 `biaojie export` 导出的文件。",
        )
    if wanted.list_file is not None:
        return ListedNames(wanted.list_file)
    return OwnNames(wanted.prefix, wanted.names, wanted.value_octets)


async def _prepare(names: OwnNames, node: str, key: str, live: Tell) -> dict[str, int]:
    if not node:
        raise BenchFault(
            "Names are registered over HTTP: give the node's address with --node, or --prepared"
            " if they are there.",
            "标识通过 HTTP 注册：请用 --node 给出节点地址；若已注册，请加 --prepared。",
        )

    def told(done: int, of: int) -> None:
        live(say(f"registering: {done:,} of {of:,} names", f"注册标识：{done:,}/{of:,}"))

    async with Client(node, key or None, 30.0) as client:
        got = await prepare(client, names, told)
    return {"there": got.there, "written": got.written}


def _writing(wanted: Wanted, node: str) -> Writing | None:
    if not wanted.writes:
        return None
    if not node or not wanted.key:
        raise BenchFault(
            "Writes need the node's HTTP address (--node) and a key (--key or --key-file).",
            "写入需要节点的 HTTP 地址（--node）与密钥（--key 或 --key-file）。",
        )
    return Writing(wanted.writes, node, wanted.key)


def _engine(wanted: Wanted) -> str:
    if wanted.driver not in ("auto", "python", "c"):
        raise BenchFault("driver is auto, python or c.", "driver 应为 auto、python 或 c。")
    if wanted.driver == "c" and wanted.writes:
        raise BenchFault(
            "The C driver does not follow changes; writes need --driver python.",
            "C 驱动不跟踪变更；混合写入请用 --driver python。",
        )
    if wanted.driver == "c" and wanted.list_file:
        raise BenchFault(
            "The C driver knows the bench's own names only; a list needs --driver python.",
            "C 驱动只支持压测自有标识；列表请用 --driver python。",
        )
    if wanted.driver == "c" and not usable():
        raise BenchFault(
            "The C driver needs Linux and a C compiler (gcc).",
            "C 驱动需要 Linux 与 C 编译器（gcc）。",
        )
    if wanted.driver == "c":
        return "c"
    plain = not wanted.writes and not wanted.list_file and wanted.peak_p99_ms is not None
    return "c" if wanted.driver == "auto" and plain and usable() else "python"


def _told(names: Names, wanted: Wanted) -> dict[str, Any]:
    if isinstance(names, OwnNames):
        return {"prefix": names.prefix, "count": names.count, "value_octets": names.value_octets}
    return {"list": str(wanted.list_file), "count": names.count}


def _node(
    before: NodeReading | None, after: NodeReading | None, result: dict[str, Any]
) -> dict[str, Any] | None:
    """What the node says it spent from before the warm-up to after the last answer."""
    if before is None or after is None or before.start_time_s != after.start_time_s:
        return None
    cpu_s = after.cpu_s - before.cpu_s
    return {
        "cpu_s": round(cpu_s, 3),
        "resident_bytes": after.resident_bytes,
        "gauges": after.gauges,
    }
