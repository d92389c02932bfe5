"""`bench plan`: what goals take in disk, memory and workers, worked out from measured runs.

Every figure says where it comes from: goal (given), measured (in a run that is named), or
extrapolated (worked out, with the figures it was worked out from). What was not measured is
said to be unknown; nothing is assumed in its place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from .words import BenchFault, say

DAY_S: Final = 86_400
REPLICAS_LEAST: Final = 1
Source = Literal["goal", "measured", "extrapolated", "unknown"]


@dataclass(frozen=True, slots=True)
class Goals:
    """`growth` is a share a year, of names and of resolutions; `cached_share` of all names are
    to fit the cache of each worker; `utilisation` is how much of what was measured may be used
    at the peak; `workers_measured` is how many the measured node ran with."""

    registered: float = 500e6
    resolutions_a_day: float = 1e6
    peak_factor: float = 10.0
    growth: float = 0.3
    years: float = 3.0
    cached_share: float = 0.01
    replicas: int = 2
    utilisation: float = 0.5
    workers_measured: int = 1

    def check(self) -> None:
        good = (
            self.registered >= 1
            and self.resolutions_a_day >= 0
            and self.peak_factor >= 1
            and self.growth > -1
            and self.years >= 0
            and 0 <= self.cached_share <= 1
            and self.replicas >= REPLICAS_LEAST
            and 0 < self.utilisation <= 1
            and self.workers_measured >= 1
        )
        if not good:
            raise BenchFault(
                "A goal is out of range: the peak factor is 1 or more, shares are from 0 to 1.",
                "目标超出范围：峰值系数不小于 1，比例在 0 至 1 之间。",
            )


@dataclass(frozen=True, slots=True)
class Figure:
    """`amount` is None where it is unknown. `en`, `zh`: where it comes from."""

    name: str
    amount: float | None
    unit: str
    source: Source
    en: str
    zh: str


def plan(
    goals: Goals,
    resolve: Mapping[str, Any] | None = None,
    register: Mapping[str, Any] | None = None,
) -> list[Figure]:
    """The figures, in the order in which they are worked out. `resolve` and `register` are
    results of those commands."""
    goals.check()
    grown = (1 + goals.growth) ** goals.years
    names = goals.registered * grown
    mean = goals.resolutions_a_day * grown / DAY_S
    peak = mean * goals.peak_factor
    after = f"({1 + goals.growth:g})^{goals.years:g}"
    figures = [
        Figure(
            "names",
            names,
            "",
            "goal",
            f"{goals.registered:,.0f} × {after}",
            f"{goals.registered:,.0f} × {after}",
        ),
        Figure(
            "mean_rate",
            mean,
            "/s",
            "goal",
            f"{goals.resolutions_a_day:,.0f} a day × {after} / {DAY_S}",
            f"每日 {goals.resolutions_a_day:,.0f} × {after} / {DAY_S}",
        ),
        Figure(
            "peak_rate",
            peak,
            "/s",
            "goal",
            f"mean × {goals.peak_factor:g}",
            f"均值 × {goals.peak_factor:g}",
        ),
    ]
    figures += _speed(goals, peak, resolve)
    figures += _memory(goals, names, resolve, _amount(figures, "workers"))
    figures += _disk(goals, names, register)
    figures += _loading(goals, register)
    return figures


def _amount(figures: list[Figure], name: str) -> float | None:
    return next((figure.amount for figure in figures if figure.name == name), None)


def _unknown(name: str, unit: str, en: str, zh: str) -> Figure:
    return Figure(name, None, unit, "unknown", en, zh)


def _speed(goals: Goals, peak: float, run: Mapping[str, Any] | None) -> list[Figure]:
    if run is None:
        ask = (
            "bench resolve --peak --json FILE, then --run FILE",
            "bench resolve --peak --json 文件",
        )
        return [_unknown("rate", "/s", *ask), _unknown("workers", "", *ask)]
    when, url = run["started"], run["target"]["url"]
    limited = run.get("peak")
    rate = limited["rate"] if limited else run["rate"]
    if not run["valid"] or run["counts"]["wrong"] or not rate:
        why = ("the run of " + when + " is not valid", f"{when} 的压测结果无效")
        return [_unknown("rate", "/s", *why), _unknown("workers", "", *why)]
    each = rate / goals.workers_measured
    held = (
        f"highest rate with p99 within {limited['limit_p99_ms']:g} ms"
        if limited
        else "the rate it was asked at, which may not be its limit"
    )
    held_zh = (
        f"p99 不超过 {limited['limit_p99_ms']:g} 毫秒的最高速率"
        if limited
        else "压测速率，未必是其上限"
    )
    workers = max(1, math.ceil(peak / (each * goals.utilisation)))
    figures = [
        Figure(
            "rate",
            rate,
            "/s",
            "measured",
            f"{held}; {url}, {goals.workers_measured} worker(s), {when}",
            f"{held_zh}；{url}，{goals.workers_measured} 个工作进程，{when}",
        ),
        Figure(
            "workers",
            workers,
            "",
            "extrapolated",
            f"peak rate / (measured rate per worker × {goals.utilisation:.0%}), rounded up; that"
            " workers add up is assumed, not measured",
            f"峰值速率 ÷（单进程实测速率 × {goals.utilisation:.0%}），向上取整；"
            "按进程线性扩展属假设，未经实测",
        ),
        Figure(
            "headroom",
            each * workers / peak if peak else math.inf,
            "×",
            "extrapolated",
            "measured rate per worker × workers / peak rate, of one replica",
            "单进程实测速率 × 进程数 ÷ 峰值速率（单副本）",
        ),
        Figure(
            "bandwidth",
            peak * run["answer_octets"] * 8 / 1e6,
            "Mbit/s",
            "extrapolated",
            f"peak rate × {run['answer_octets']:,.0f} octets an answer (measured), without headers",
            f"峰值速率 × 每应答 {run['answer_octets']:,.0f} 字节（实测），不含协议头",
        ),
    ]
    node = run.get("node")
    asked = run["shape"]["duration_s"] + run["shape"]["warmup_s"]
    if node and node["cpu_s"]:
        figures.append(
            Figure(
                "rate_per_cpu_second",
                run["rate"] * asked / node["cpu_s"],
                "/s",
                "measured",
                f"answers / the node's own processor seconds, {when}",
                f"应答数 ÷ 节点自身 CPU 秒，{when}",
            )
        )
    return figures


def _memory(
    goals: Goals, names: float, run: Mapping[str, Any] | None, workers: float | None
) -> list[Figure]:
    node = (run or {}).get("node") or {}
    gauges = node.get("gauges", {})
    entries = gauges.get("biaojie_cache_entries", 0)
    octets = gauges.get("biaojie_cache_bytes", 0)
    if not entries or workers is None:
        why = (
            "the run must reach the node's metrics: --node URL",
            "压测需能读取节点指标：--node 地址",
        )
        return [_unknown("memory", "GiB", *why)]
    each = octets / entries
    cached = names * goals.cached_share
    base = max(0.0, node["resident_bytes"] - octets)
    memory = workers * (base + cached * each)
    when = (run or {})["started"]
    return [
        Figure(
            "entry_bytes",
            each,
            "B",
            "measured",
            f"the node's own account of {entries:,.0f} cached entries, {when}",
            f"节点统计的 {entries:,.0f} 个缓存项，{when}",
        ),
        Figure(
            "memory",
            memory / 2**30,
            "GiB",
            "extrapolated",
            f"workers × ({base / 2**20:,.0f} MiB without cache, measured +"
            f" {goals.cached_share:.2%} of the names × entry), of one replica, without the"
            " database's own",
            f"进程数 ×（无缓存 {base / 2**20:,.0f} MiB，实测 + {goals.cached_share:.2%} 标识 × "
            "缓存项大小），单副本，不含数据库",
        ),
    ]


def _disk(goals: Goals, names: float, run: Mapping[str, Any] | None) -> list[Figure]:
    disk = (run or {}).get("disk")
    if not run or not disk:
        return [
            _unknown(
                "disk",
                "GB",
                "bench register --data-dir FOLDER --json FILE, then --register FILE",
                "bench register --data-dir 目录 --json 文件，再 --register 文件",
            )
        ]
    each = disk["bytes_per_identifier"]
    written = sum(way["acknowledged"] for way in run["ways"].values())
    times = goals.registered / written if written else 0
    return [
        Figure(
            "bytes_per_name",
            each,
            "B",
            "measured",
            f"growth of the registry's files over {written:,} names of"
            f" {run['names']['value_octets']} octets, {run['started']}",
            f"写入 {written:,} 个标识（每个 {run['names']['value_octets']} 字节）时"
            f"注册库文件的增长，{run['started']}",
        ),
        Figure(
            "disk",
            names * each * goals.replicas / 1e9,
            "GB",
            "extrapolated",
            f"names × bytes per name × {goals.replicas} replicas; {times:,.0f} times the number"
            " measured, larger indexes and backups not counted",
            f"标识数 × 每标识字节 × {goals.replicas} 副本；为实测数量的 {times:,.0f} 倍，"
            "未计更大的索引与备份",
        ),
    ]


def _loading(goals: Goals, run: Mapping[str, Any] | None) -> list[Figure]:
    ways = (run or {}).get("ways", {})
    rated = {name: way["rate"] for name, way in ways.items() if way["acknowledged"]}
    if not run or not rated:
        return [
            _unknown(
                "loading", "h", "bench register, then --register", "bench register 后 --register"
            )
        ]
    name = max(rated, key=lambda way: float(rated[way]))
    return [
        Figure(
            "registration_rate",
            rated[name],
            "/s",
            "measured",
            f"way {name}, {run['started']}",
            f"方式 {name}，{run['started']}",
        ),
        Figure(
            "loading",
            goals.registered / rated[name] / 3600,
            "h",
            "extrapolated",
            f"{goals.registered:,.0f} names at that rate, as if it stayed the same while the"
            " registry grows",
            f"按该速率写入 {goals.registered:,.0f} 个标识，假设速率不随注册库增大而变化",
        ),
    ]


# Telling --------------------------------------------------------------------------------

_NAMED: Final = {
    "names": ("names at the end", "期末标识数"),
    "mean_rate": ("mean rate", "平均速率"),
    "peak_rate": ("peak rate", "峰值速率"),
    "rate": ("measured rate", "实测速率"),
    "workers": ("workers, each replica", "每副本工作进程"),
    "headroom": ("headroom at the peak", "峰值余量"),
    "bandwidth": ("answers, bandwidth", "应答带宽"),
    "rate_per_cpu_second": ("rate per CPU second", "每 CPU 秒应答"),
    "entry_bytes": ("a cached entry", "每缓存项"),
    "memory": ("memory, each replica", "每副本内存"),
    "bytes_per_name": ("a name on disk", "每标识磁盘占用"),
    "disk": ("disk, all replicas", "全部副本磁盘"),
    "registration_rate": ("registration rate", "注册速率"),
    "loading": ("loading all names", "全部写入用时"),
}
_SOURCES: Final = {
    "goal": ("goal", "目标"),
    "measured": ("MEASURED", "实测"),
    "extrapolated": ("extrapolated", "外推"),
    "unknown": ("UNKNOWN", "未知"),
}


def tell(figures: list[Figure]) -> str:
    lines = []
    for figure in figures:
        amount = "?" if figure.amount is None else _short(figure.amount)
        name = say(*_NAMED[figure.name])
        source = say(*_SOURCES[figure.source])
        lines.append(f"{name}: {amount} {figure.unit}".rstrip() + f"   [{source}]")
        lines.append(f"    {say(figure.en, figure.zh)}")
    return "\n".join(lines)


def _short(amount: float) -> str:
    if math.isinf(amount):
        return "∞"
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:,.3g}"


def to_document(goals: Goals, figures: list[Figure]) -> dict[str, Any]:
    return {
        "kind": "plan",
        "format": 1,
        "goals": asdict(goals),
        "figures": [
            {**asdict(figure), "amount": None if figure.amount == math.inf else figure.amount}
            for figure in figures
        ],
    }


def read_result(file: Path | None, kind: str) -> dict[str, Any] | None:
    """A result as `bench resolve` or `bench register` wrote it."""
    if file is None:
        return None
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        good = result["kind"] == kind and result["format"] == 1
    except (OSError, ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise BenchFault(
            f"{file} is no result of `bench {kind}`.", f"{file} 不是 `bench {kind}` 的结果文件。"
        )
    assert isinstance(result, dict)
    return result
