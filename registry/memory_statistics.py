"""The numbers of a store in memory; see registry.statistics.StatisticsStore."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from biaojie.account import Prefix
from biaojie.change import Entry

from .census import Kind, Shift, added
from .changelog import pack_changes
from .statistics import (
    ENTRIES_MAX,
    Cell,
    Census,
    Logged,
    Octets,
    Statistics,
    Templates,
    count,
    resolutions,
)


class Kept(Protocol):
    """What is counted: entries with their packed shifts, and whose prefixes are whose."""

    @property
    def log(self) -> Sequence[Entry]: ...

    @property
    def shifts(self) -> Sequence[bytes | None]: ...

    @property
    def prefixes(self) -> Mapping[str, Prefix]: ...


class MemoryStatistics:
    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._counted = 0
        self._statistics: Counter[Cell] = Counter()
        self._census: Shift | None = Counter()

    async def fold_statistics(self) -> bool:
        entries = self._kept.log[self._counted :][:ENTRIES_MAX]
        shifts = self._kept.shifts[self._counted :][:ENTRIES_MAX]
        self._counted += len(entries)
        for entry, packed in zip(entries, shifts, strict=True):
            changes = pack_changes(entry.changes)
            logged = Logged(entry.sequence, entry.time_ms, "", "", entry.count, changes, packed)
            self._statistics.update(count([logged]))
        shift = added(shifts)
        if shift is None or self._census is None:
            self._census = None
        else:
            self._census.update(shift)
        return len(entries) == ENTRIES_MAX

    async def add_resolutions(self, day: int, count: int) -> None:
        self._statistics.update(resolutions(day, count))

    async def read_statistics(self, prefixes: Sequence[str], days: Sequence[int]) -> Statistics:
        wanted = {(day, prefix) for day in days for prefix in prefixes}
        cells = {cell: n for cell, n in self._statistics.items() if cell[:2] in wanted}
        return Statistics(self._counted, cells)

    async def read_census(self, prefixes: Sequence[str]) -> Census:
        if self._census is None:
            return Census(self._counted, None)
        counts: Counter[Kind] = Counter()
        for kind, number in self._census.items():
            if kind.prefix in prefixes:
                counts[kind._replace(template="")] += number
        return Census(self._counted, {kind: number for kind, number in counts.items() if number})

    async def read_templates(self, prefix: str, tenant: str | None, limit: int) -> Templates:
        if self._census is None:
            return Templates(self._counted, None)
        of = {prefix}
        if tenant is not None:
            of = {name for name, p in self._kept.prefixes.items() if p.tenant == tenant}
        counts: Counter[str] = Counter()
        for kind, number in self._census.items():
            counts[kind.template] += number if kind.prefix in of else 0
        most = sorted((+counts).items(), key=lambda each: (-each[1], each[0]))
        return Templates(self._counted, most[:limit])

    async def octets(self) -> Octets:
        return Octets()
