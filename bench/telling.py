"""How a run is told on the terminal: a line that changes while it goes, a summary at its end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from .words import BenchFault, say

PLAIN_EVERY_S: Final = 5.0


class Live:
    """Writes to standard error. On a terminal `show` renews one line; elsewhere it writes one
    now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = False
        self._at = 0.0

    def __enter__(self) -> Live:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clear()

    def show(self, line: str) -> None:
        if self._terminal:
            print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
            self._shown = True
        elif time.monotonic() - self._at >= PLAIN_EVERY_S:
            self._at = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    def note(self, line: str) -> None:
        self._clear()
        print(line, file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._shown:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
            self._shown = False


def write_json(file: Path | None, result: Mapping[str, Any]) -> None:
    if file is None:
        return
    try:
        file.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise BenchFault(
            f"{file} cannot be written: {error}", f"无法写入 {file}：{error}"
        ) from None


def resolve_summary(result: Mapping[str, Any]) -> str:
    counts, latency, room = result["counts"], result["latency"], result["headroom"]
    lines = []
    if "peak" in result:
        peak = result["peak"]
        limit = {
            "node": say("the node's limit", "节点上限"),
            "generator": say(
                "the generator's limit, not the node's", "压测程序的上限，并非节点上限"
            ),
            "bound": say("the highest rate tried", "已达尝试上限"),
        }[peak["limited_by"]]
        if not peak["rate"]:
            limit += say("; no rate was held for the whole duration", "；没有速率能全程达标")
        lines.append(
            say(
                f"peak {peak['rate']:,.0f}/s with p99 within {peak['limit_p99_ms']:g} ms"
                f" and no errors ({limit})",
                f"峰值 {peak['rate']:,.0f}/秒，p99 不超过 {peak['limit_p99_ms']:g} 毫秒且无失败"
                f"（{limit}）",
            )
        )
    lines.append(
        say(
            f"{counts['right']:,} right answers of {counts['scheduled']:,} questions,"
            f" {result['rate']:,.0f}/s (offered {result['rate_offered']:,.0f}/s)",
            f"{counts['scheduled']:,} 次请求，{counts['right']:,} 次应答正确，"
            f"{result['rate']:,.0f}/秒（发起 {result['rate_offered']:,.0f}/秒）",
        )
    )
    lines.append(
        say("latency  ", "延迟  ")
        + "   ".join(
            f"{name} {latency[key]:.2f}"
            for name, key in (
                ("p50", "p50_ms"),
                ("p90", "p90_ms"),
                ("p99", "p99_ms"),
                ("p99.9", "p99.9_ms"),
                ("max", "max_ms"),
            )
        )
        + say(" ms", " 毫秒")
    )
    lines.append(
        say(
            f"refused {counts['refused']:,}   failed {counts['failed']:,}"
            f"   wrong {counts['wrong']:,}",
            f"拒绝 {counts['refused']:,}   失败 {counts['failed']:,}"
            f"   错误应答 {counts['wrong']:,}",
        )
    )
    for code, count in sorted(result["failures"].items()):
        lines.append(f"  {count:,} × {code}")
    if result.get("writes"):
        lines.append(_writes(result["writes"]))
    lines.append(
        say(
            f"generator: {room['engine']}, {len(room['busy'])} process(es), at most"
            f" {max(room['busy'], default=0):.0%} busy, late by {room['lateness']['p99_ms']:.2f} ms"
            " at p99",
            f"压测程序：{room['engine']}，{len(room['busy'])} 个进程，最高占用"
            f" {max(room['busy'], default=0):.0%}，自身 p99 延迟"
            f" {room['lateness']['p99_ms']:.2f} 毫秒",
        )
    )
    if result.get("misses_repeat"):
        lines.append(
            say(
                "the reserve for misses was used up and begun again: some may have been hits",
                "未命中标识已用完并循环使用：其中一部分可能命中缓存",
            )
        )
    for why in result["lagged"]:
        lines.append(say(f"NOT VALID: {why['en']}", f"结果无效：{why['zh']}"))
    for fault in result["wrong"]:
        lines.append(say(f"WRONG: {fault}", f"应答错误：{fault}"))
    return "\n".join(lines)


def _writes(writes: Mapping[str, Any]) -> str:
    latency = writes["latency"]
    return say(
        f"writes: {writes['acknowledged']:,} acknowledged, {writes['rate']:,.0f}/s,"
        f" p50 {latency['p50_ms']:.2f} ms, p99 {latency['p99_ms']:.2f} ms,"
        f" failed {writes['failed']:,}",
        f"写入：确认 {writes['acknowledged']:,} 次，{writes['rate']:,.0f}/秒，"
        f"p50 {latency['p50_ms']:.2f} 毫秒，p99 {latency['p99_ms']:.2f} 毫秒，"
        f"失败 {writes['failed']:,}",
    )


def register_summary(result: Mapping[str, Any]) -> str:
    named = {
        "single": say("one by one", "逐个"),
        "batch": say("in batches", "批量"),
        "file": say("from a file", "文件"),
    }
    lines = []
    for name, way in result["ways"].items():
        latency = way["latency"]
        line = say(
            f"{named[name]}: {way['acknowledged']:,} of {way['asked']:,} acknowledged,"
            f" {way['rate']:,.0f}/s",
            f"{named[name]}：{way['asked']:,} 个中确认 {way['acknowledged']:,} 个，"
            f"{way['rate']:,.0f}/秒",
        )
        if latency["count"]:
            unit = say("ms a request", "毫秒/请求")
            line += f"   p50 {latency['p50_ms']:.2f}   p99 {latency['p99_ms']:.2f} {unit}"
        lines.append(line)
        lines += [f"  {count:,} × {code}" for code, count in sorted(way["failures"].items())]
        lines.append(
            say(
                f"  read back: lost {way['lost']:,}, doubled {way['doubled']:,},"
                f" different {way['differing']:,}",
                f"  读回核对：丢失 {way['lost']:,}，重复 {way['doubled']:,}，"
                f"不一致 {way['differing']:,}",
            )
        )
        lines += [say(f"  WRONG: {fault}", f"  错误：{fault}") for fault in way["wrong"]]
    log = result["log"]
    lines.append(
        say("the change log was not read: this key may not", "未核对变更日志：密钥无此权限")
        if log is None
        else say(
            f"the change log holds {log['names']:,} of these names in {log['entries']:,} entries",
            f"变更日志共 {log['entries']:,} 条，含其中 {log['names']:,} 个标识",
        )
    )
    if result["disk"]:
        lines.append(
            say(
                f"the registry grew by {result['disk']['bytes_per_identifier']:,.0f} bytes a name",
                f"注册库每标识增长 {result['disk']['bytes_per_identifier']:,.0f} 字节",
            )
        )
    return "\n".join(lines)
