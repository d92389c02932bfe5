"""Numbers for operators, counted from the change log: by day, prefix and action.

What is counted is what the entries up to `Statistics.sequence` say, no more and no less, so the
numbers agree with the log at any time. Resolutions are not in the log: nodes add theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import date, timedelta
from typing import Any, NamedTuple, Protocol

from biaojie.account import Prefix
from biaojie.change import Action, Change
from biaojie.errors import TemporarilyUnavailable
from biaojie.identifier import fold_prefix

from .changelog import ZERO, unpack_changes
from .patterns import parse_stored
from .ranges import cut_out

ALL_DAYS = 0
ALL_PREFIXES = ""
RESOLVED = "resolve"
DAYS_MAX = 366
PREFIXES_MAX = 1_000
"""Most prefixes that one `read_statistics` takes, and that `list_statistics` gives."""
ENTRIES_MAX = 64
"""Entries counted at once; one may hold thousands of changes."""
_DAY_MS = 86_400_000

_OF_RECORDS = frozenset({Action.CREATE, Action.PUT, Action.MODIFY, Action.RETIRE, Action.PURGE})
OF_MANY = (Action.BULK, Action.REGISTER_RANGE, Action.CUT_RANGE)
"""Changes of which one stands for many identifiers."""


class Cell(NamedTuple):
    """What a number is of. `day` counts from 1970-01-01 UTC; `prefix` is folded."""

    day: int
    prefix: str
    action: str


class Logged(NamedTuple):
    """What is read of an entry. `changes`, as stored, only where not all have action and prefix
    in common, or where they are OF_MANY."""

    sequence: int
    time_ms: int
    action: str
    prefix: str
    number: int
    changes: bytes | None


@dataclass(frozen=True, slots=True)
class Totals:
    """`identifiers` are there, tombstones included. `changed` counts changes, not identifiers.
    `resolved` is known of all prefixes together only."""

    registered: int = 0
    changed: int = 0
    retired: int = 0
    purged: int = 0
    resolved: int = 0

    @property
    def identifiers(self) -> int:
        return self.registered - self.purged

    @property
    def four(self) -> tuple[int, int, int, int]:
        return self.registered, self.changed, self.retired, self.purged


class Octets(NamedTuple):
    """On the database's disks, indexes included: in all, and by table where the database knows
    that without reading them. Its write-ahead log and copies are not in it."""

    total: int = 0
    tables: Mapping[str, int] = {}


class StatisticsStore(Protocol):
    async def list_prefixes(
        self, after: str | None, limit: int, tenant: str | None = None
    ) -> list[Prefix]:
        """See registry.store."""
        ...

    async def fold_statistics(self) -> bool:
        """Count up to ENTRIES_MAX entries that are not counted yet; whether there may be more.

        Many may do so at once: each entry is counted once.
        """
        ...

    async def add_resolutions(self, day: int, count: int) -> None: ...

    async def read_statistics(self, prefixes: Sequence[str], days: Sequence[int]) -> Statistics:
        """The numbers of these folded prefixes (at most 1,000; ALL_PREFIXES is one) on these days
        (at most 367; ALL_DAYS is one)."""
        ...

    async def octets(self) -> Octets:
        """From the database's own catalogue: no table is read for it."""
        ...


class Statistics(NamedTuple):
    """Numbers, and the entry of the change log up to which they are counted."""

    sequence: int
    counts: Mapping[Cell, int]

    def totals(self, day: int, prefixes: Iterable[str]) -> Totals:
        """Of some prefixes together."""
        names = list(prefixes)

        def total(*actions: str) -> int:
            return sum(self.counts.get(Cell(day, n, a), 0) for n in names for a in actions)

        return Totals(
            total(Action.CREATE),
            total(Action.PUT, Action.MODIFY),
            total(Action.RETIRE),
            total(Action.PURGE),
            total(RESOLVED),
        )


def day_of(time_ms: int) -> int:
    return max(1, time_ms // _DAY_MS)  # 0 stands for all days


def count(entries: Iterable[Logged]) -> Counter[Cell]:
    """What these entries add, to their day and to all days, to their prefix and to all."""
    counts: Counter[Cell] = Counter()
    for entry in entries:
        if entry.changes is None:
            some = Counter({(entry.action, entry.prefix): entry.number})
        else:
            some = _counted(unpack_changes(entry.changes))
        for (action, spelled), number in some.items():
            if action not in _OF_RECORDS:
                continue
            for day in (day_of(entry.time_ms), ALL_DAYS):
                for prefix in (fold_prefix(spelled), ALL_PREFIXES):
                    counts[Cell(day, prefix, action)] += number
    return counts


def _counted(changes: Sequence[Change]) -> Counter[tuple[str, str]]:
    """By action and spelled prefix. A run and a range stand for all identifiers they have."""
    counts: Counter[tuple[str, str]] = Counter()
    # What compaction alone takes out and puts in are the same identifiers.
    loading = any(change.action is Action.BULK for change in changes)
    cut: Counter[str] = Counter()
    for change in changes:
        prefix, _, rest = change.subject.partition("/")
        match change.action:
            case Action.BULK:
                counts[Action.CREATE, prefix] += change.count
            case Action.DISSOLVE if loading:
                counts[Action.CREATE, prefix] -= change.count
            case Action.FOLD if loading and change.count:
                counts[Action.CREATE, prefix] += 1
            case Action.REGISTER_RANGE:
                counts[Action.CREATE, prefix] += parse_stored(rest).count
            case Action.CUT_RANGE:
                number = parse_stored(rest).count
                cut[prefix] += number if change.digest == ZERO else -number
            case _:
                counts[change.action, prefix] += 1
    for prefix, gone in cut.items():
        if gone:
            counts[Action.PURGE, prefix] += gone
        else:  # what was cut out is there as a range that is retired
            parts = [p.count for name, p in cut_out(changes) if name == fold_prefix(prefix)]
            counts[Action.RETIRE, prefix] += sum(parts)
    return counts


def resolutions(day: int, number: int) -> Counter[Cell]:
    return Counter({Cell(at, ALL_PREFIXES, RESOLVED): number for at in (day, ALL_DAYS)})


class Scope(NamedTuple):
    """Whose numbers: of one prefix, else of all prefixes of a tenant, else of all. `after` and
    `limit` choose the prefixes that are listed one by one, by folded name."""

    prefix: Prefix | None = None
    tenant: str | None = None
    after: str | None = None
    limit: int = PREFIXES_MAX


@dataclass(frozen=True, slots=True)
class Report:
    """What the log says up to entry `sequence`: in all, by day (the oldest first, each listed),
    and by prefix. `whole`: of all prefixes, so that resolutions and octets are known."""

    sequence: int
    whole: bool
    total: Totals
    days: tuple[tuple[int, Totals], ...]
    prefixes: tuple[tuple[Prefix, Totals], ...]
    octets: Octets | None = None


async def report(store: StatisticsStore, scope: Scope, today: int, days: int) -> Report:
    """The numbers of the last `days` days (1 to 366), `today` included, and of all time."""
    assert 1 <= days <= DAYS_MAX
    at = [ALL_DAYS, *range(today - days + 1, today + 1)]
    for _ in range(_TRIES):
        made = await _report(store, scope, at)
        if made is not None:
            return made
    raise TemporarilyUnavailable(
        "The numbers are being counted; ask again.", "统计正在更新，请稍后重试。"
    )


_TRIES = 5
_READ_PREFIXES = 100


async def _report(store: StatisticsStore, scope: Scope, days: Sequence[int]) -> Report | None:
    """None if some numbers were read before others were counted, and do not agree with them."""
    sequences: set[int] = set()
    sums: dict[int, Totals] = dict.fromkeys(days, Totals())

    async def add(names: Sequence[str], days: Sequence[int]) -> Statistics:
        found = await store.read_statistics(names, days)
        sequences.add(found.sequence)
        return found

    if scope.prefix is not None:
        listed = [scope.prefix]
    else:
        listed = await store.list_prefixes(scope.after, scope.limit, scope.tenant)
    if scope.prefix is None and scope.tenant is None:
        found = await add([ALL_PREFIXES], days)
        sums = {day: found.totals(day, [ALL_PREFIXES]) for day in days}
    else:
        async for names in _chunks(store, scope):
            found = await add(names, days)
            sums = {day: _plus(total, found.totals(day, names)) for day, total in sums.items()}
    by_prefix: list[tuple[Prefix, Totals]] = []
    for first in range(0, len(listed), _READ_PREFIXES):
        some = listed[first : first + _READ_PREFIXES]
        found = await add([fold_prefix(prefix.name) for prefix in some], [ALL_DAYS])
        by_prefix += [(p, found.totals(ALL_DAYS, [fold_prefix(p.name)])) for p in some]
    if len(sequences) > 1:
        return None
    total, *daily = sums.items()
    whole = scope.prefix is None and scope.tenant is None
    return Report(
        max(sequences, default=0),
        whole,
        total[1],
        tuple(daily),
        tuple(by_prefix),
        await store.octets() if whole else None,
    )


async def _chunks(store: StatisticsStore, scope: Scope) -> AsyncIterator[list[str]]:
    """All prefixes of the scope, some at a time."""
    if scope.prefix is not None:
        yield [fold_prefix(scope.prefix.name)]
        return
    after: str | None = None
    while listed := await store.list_prefixes(after, _READ_PREFIXES, scope.tenant):
        names = [fold_prefix(prefix.name) for prefix in listed]
        yield names
        after = names[-1]


def _plus(one: Totals, other: Totals) -> Totals:
    return Totals(*(a + b for a, b in zip(astuple(one), astuple(other), strict=True)))


def date_of(day: int) -> str:
    """As ISO 8601."""
    return (date(1970, 1, 1) + timedelta(days=day)).isoformat()


_FOUR = ("registered", "changed", "retired", "purged")


def as_document(made: Report) -> dict[str, Any]:
    """As JSON has it."""

    def each(totals: Totals, **more: Any) -> dict[str, Any]:
        counts = dict(zip(_FOUR, totals.four, strict=True))
        return {**more, **counts}

    def resolved(totals: Totals) -> int | None:
        return totals.resolved if made.whole else None

    return {
        "sequence": made.sequence,
        "total": each(
            made.total, identifiers=made.total.identifiers, resolved=resolved(made.total)
        ),
        "days": [
            each(totals, day=date_of(day), resolved=resolved(totals)) for day, totals in made.days
        ],
        "prefixes": [
            each(totals, prefix=p.name, tenant=p.tenant, identifiers=totals.identifiers)
            for p, totals in made.prefixes
        ],
        "bytes": made.octets and {"total": made.octets.total, "tables": {**made.octets.tables}},
    }
