"""Compaction as a job: prefix after prefix, in short commits, so that writers wait for one step
at the most. It may be stopped and begun again at any time; nothing that is looked up changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from biaojie.identifier import fold_prefix

from .admission import Caller
from .registrar import Registrar
from .store import ReadStore

PREFIXES_PAGE = 200
REST_S = 0.01
"""Between two steps, for others to write."""


@dataclass(slots=True)
class CompactionReport:
    """`rows` were folded into blocks, `markers` of purges dropped; `blocks` were rewritten, `made`
    are those there are instead and those that are new."""

    prefixes: int = 0
    rows: int = 0
    markers: int = 0
    blocks: int = 0
    made: int = 0


async def last_entry_before(store: ReadStore, time_ms: int) -> int:
    """The sequence of the newest entry that is older than `time_ms` (epoch milliseconds); 0 if
    there is none. Reads as many entries as their number has binary digits."""
    low, high = 0, (await store.head())[0]
    while low < high:
        middle = (low + high + 1) // 2
        [entry] = await store.list_changes(middle - 1, 1)
        low, high = (middle, high) if entry.time_ms < time_ms else (low, middle - 1)
    return low


async def compact(
    store: ReadStore,
    registrar: Registrar,
    caller: Caller,
    *,
    before: int,
    prefixes: Sequence[str] = (),
    progress: Callable[[str, CompactionReport], None] = lambda prefix, report: None,
) -> CompactionReport:
    """Fold what entries < `before` wrote, of these prefixes or of all. Raises what the registrar
    does; what was done until then stays done."""
    report = CompactionReport()
    names = [fold_prefix(name) for name in prefixes]
    after: str | None = None
    while True:
        if not prefixes:
            page = await store.list_prefixes(after, PREFIXES_PAGE)
            names = [fold_prefix(prefix.name) for prefix in page]
        for name in names:
            at: bytes | None = None
            while True:
                step = await registrar.compact(caller, name, before=before, after=at)
                report.rows += step.rows
                report.markers += step.markers
                report.blocks += step.blocks
                report.made += step.made
                progress(name, report)
                at = step.after
                if at is None:
                    break
                await asyncio.sleep(REST_S)
            report.prefixes += 1
        if prefixes or not names:
            return report
        after = names[-1]
