"""How an import is going: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from registry.imports import ImportProgress, ImportReport

from .wording import safe, say

if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN_EVERY_S = 5.0


class Bar:
    """Writes to standard error, so that standard output holds the result alone."""

    def __init__(self, name: str) -> None:
        self._name = safe(name)
        self._bar: Progress | None = None
        self._shown_at = time.monotonic()

    def __enter__(self) -> Bar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[told]}", markup=False),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(self._name, total=None, told="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, progress: ImportProgress) -> None:
        told = say(
            f"{progress.rows:,} rows, {progress.failed:,} bad",
            f"{progress.rows:,} 行，{progress.failed:,} 行有误",
        )
        if progress.checking:
            told = say("checking: ", "检查：") + told
        self.tell(told, progress.bytes_done, progress.bytes_total)

    def tell(self, told: str, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, told=told)
            return
        now = time.monotonic()
        if now - self._shown_at >= PLAIN_EVERY_S:
            self._shown_at = now
            share = 100 * done // max(total, 1)
            print(f"{self._name}: {share} %, {told}", file=sys.stderr, flush=True)


def summary(name: str, report: ImportReport) -> str:
    """What came of it, the first faults, and where all of them are."""
    if report.dry_run:
        done = say(f"{report.good:,} would be registered", f"可注册 {report.good:,} 行")
    else:
        done = say(f"{report.written:,} registered", f"已注册 {report.written:,} 行")
    lines = [
        say(
            f"{safe(name)}: {report.rows:,} rows, {done}, {report.failed:,} bad",
            f"{safe(name)}：共 {report.rows:,} 行，{done}，{report.failed:,} 行有误",
        )
    ]
    if report.failed and not report.dry_run and not report.written and report.good:
        lines.append(
            say(
                "  nothing was written, because some rows are bad",
                "  存在错误行，因此未写入任何内容",
            )
        )
    lines += [f"  {count:,} × {code}" for code, count in sorted(report.codes.items())]
    for fault in report.faults:
        where = say(f"line {fault.line}", f"第 {fault.line} 行")
        column = f", {safe(fault.column)}" if fault.column else ""
        lines.append(f"  {where}{column}: {safe(say(fault.en, fault.zh))}")
    if report.error_file is not None:
        more = sum(report.codes.values()) > len(report.faults)
        if more:
            lines.append("  …")
        lines.append(
            say(
                f"  All bad rows are in {report.error_file}: mend them there and import that file.",
                f"  全部错误行见 {report.error_file}：改正后导入该文件即可。",
            )
        )
    return "\n".join(lines)
