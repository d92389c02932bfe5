"""Numbers for operators, counted from the change log: by day, prefix and action, and what there
is by prefix, template, layer and state.

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
from biaojie.record import Status

from .census import ALL_PREFIXES, Kind, Layer, unpack_shift
from .changelog import ZERO, unpack_changes
from .patterns import parse_stored
from .ranges import cut_out

ALL_DAYS = 0
RESOLVED = "resolve"
DAYS_MAX = 366
TEMPLATES = 20
TEMPLATES_MAX = 100
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
    in common, where they are OF_MANY, or where members leave ranges. `shift`, as stored: see
    registry.census."""

    sequence: int
    time_ms: int
    action: str
    prefix: str
    number: int
    changes: bytes | None
    shift: bytes | None = None


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

    async def read_census(self, prefixes: Sequence[str]) -> Census:
        """Of these folded prefixes (at most 1,000; ALL_PREFIXES is one), all templates together."""
        ...

    async def read_templates(self, prefix: str, tenant: str | None, limit: int) -> Templates:
        """The templates that most identifiers of the folded prefix have (ALL_PREFIXES is one), or
        those of a tenant's prefixes."""
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


class Census(NamedTuple):
    """`sequence` as in `Statistics`; `counts` is None if what there was before the log told of
    it has not been counted yet."""

    sequence: int
    counts: Mapping[Kind, int] | None


class Templates(NamedTuple):
    """The same. Empty stands for no template."""

    sequence: int
    counts: Sequence[tuple[str, int]] | None


@dataclass(frozen=True, slots=True)
class Population:
    """Identifiers there are, by the layer that keeps them and by state."""

    layers: Mapping[Layer, int]
    states: Mapping[Status, int]

    @property
    def total(self) -> int:
        return sum(self.layers.values())


def population(counts: Mapping[Kind, int], prefixes: Iterable[str]) -> Population:
    """Of some prefixes together."""
    names = set(prefixes)
    layers = dict.fromkeys(Layer, 0)
    states = dict.fromkeys(Status, 0)
    for kind, number in counts.items():
        if kind.prefix in names:
            layers[kind.layer] += number
            states[kind.state] += number
    return Population(layers, states)


def may_leave_ranges(entry: Logged) -> bool:
    """Whether there may be changes that only say that a member leaves its range, and `changes`
    are not there to tell."""
    if entry.changes is not None or entry.number < 2:
        return False
    if entry.shift is None:
        return True
    return any(k.layer is Layer.RANGES and n < 0 for k, n in unpack_shift(entry.shift).items())


def day_of(time_ms: int) -> int:
    return max(1, time_ms // _DAY_MS)  # 0 stands for all days


def count(entries: Iterable[Logged]) -> Counter[Cell]:
    """What these entries add, to their day and to all days, to their prefix and to all."""
    counts: Counter[Cell] = Counter()
    for entry in entries:
        if entry.changes is None:
            some = Counter({(entry.action, entry.prefix): entry.number})
        else:
            some = _counted(unpack_changes(entry.changes), entry.shift)
        for (action, spelled), number in some.items():
            if action not in _OF_RECORDS:
                continue
            for day in (day_of(entry.time_ms), ALL_DAYS):
                for prefix in (fold_prefix(spelled), ALL_PREFIXES):
                    counts[Cell(day, prefix, action)] += number
    return counts


def _counted(changes: Sequence[Change], packed: bytes | None) -> Counter[tuple[str, str]]:
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
    if cut and packed is not None:  # members that are records of their own stay what they are
        [prefix] = cut
        shift = unpack_shift(packed)
        counts[Action.PURGE, prefix] -= sum(shift.values())
        counts[Action.RETIRE, prefix] += sum(number for number in shift.values() if number > 0)
        return Counter({sort: number for sort, number in counts.items() if number})
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
    `limit` choose the prefixes that are listed one by one, by folded name; at most so many
    `templates` are."""

    prefix: Prefix | None = None
    tenant: str | None = None
    after: str | None = None
    limit: int = PREFIXES_MAX
    templates: int = TEMPLATES


@dataclass(frozen=True, slots=True)
class Report:
    """What the log says up to entry `sequence`: in all, by day (the oldest first, each listed),
    and by prefix. `whole`: of all prefixes, so that resolutions and octets are known.

    `population`, that of each of `prefixes`, and `templates`, those that most identifiers have,
    are None until what there was before the log told of it has been counted."""

    sequence: int
    whole: bool
    total: Totals
    days: tuple[tuple[int, Totals], ...]
    prefixes: tuple[tuple[Prefix, Totals], ...]
    octets: Octets | None = None
    population: Population | None = None
    populations: tuple[Population, ...] | None = None
    templates: tuple[tuple[str, int], ...] | None = None

    @property
    def identifiers(self) -> int:
        return self.total.identifiers if self.population is None else self.population.total

    @property
    def others(self) -> int | None:
        """Identifiers of templates that are not listed."""
        if self.population is None or self.templates is None:
            return None
        return self.population.total - sum(number for _, number in self.templates)


async def report(store: StatisticsStore, scope: Scope, today: int, days: int) -> Report:
    """The numbers of the last `days` days (1 to 366), `today` included, and of all time."""
    assert 1 <= days <= DAYS_MAX
    assert 0 <= scope.templates <= TEMPLATES_MAX
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
    there: Counter[Kind] = Counter()
    known = True

    async def add_census(names: Sequence[str]) -> Mapping[Kind, int]:
        nonlocal known
        found = await store.read_census(names)
        sequences.add(found.sequence)
        known = known and found.counts is not None
        return found.counts or {}

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
        there.update(await add_census([ALL_PREFIXES]))
    else:
        async for names in _chunks(store, scope):
            found = await add(names, days)
            sums = {day: _plus(total, found.totals(day, names)) for day, total in sums.items()}
            there.update(await add_census(names))
    by_prefix: list[tuple[Prefix, Totals]] = []
    populations: list[Population] = []
    for first in range(0, len(listed), _READ_PREFIXES):
        some = listed[first : first + _READ_PREFIXES]
        names = [fold_prefix(prefix.name) for prefix in some]
        found = await add(names, [ALL_DAYS])
        counts = await add_census(names)
        populations += [population(counts, [name]) for name in names]
        by_prefix += [(p, found.totals(ALL_DAYS, [fold_prefix(p.name)])) for p in some]
    one = "" if scope.prefix is None else fold_prefix(scope.prefix.name)
    templates = await store.read_templates(one, scope.tenant, scope.templates)
    sequences.add(templates.sequence)
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
        *(_there(there, populations, templates) if known else ()),
    )


def _there(
    counts: Mapping[Kind, int], each: Sequence[Population], templates: Templates
) -> tuple[Population, tuple[Population, ...], tuple[tuple[str, int], ...]] | tuple[()]:
    if templates.counts is None:
        return ()
    whole = population(counts, {kind.prefix for kind in counts})
    return whole, tuple(each), tuple(templates.counts)


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

    def there(totals: Totals, counted: Population | None) -> dict[str, Any]:
        return {
            "identifiers": totals.identifiers if counted is None else counted.total,
            "layers": counted and {layer.value: n for layer, n in counted.layers.items()},
            "states": counted and {state.value: n for state, n in counted.states.items()},
        }

    populations = made.populations or [None] * len(made.prefixes)
    return {
        "sequence": made.sequence,
        "total": each(
            made.total, **there(made.total, made.population), resolved=resolved(made.total)
        ),
        "days": [
            each(totals, day=date_of(day), resolved=resolved(totals)) for day, totals in made.days
        ],
        "prefixes": [
            each(totals, prefix=p.name, tenant=p.tenant, **there(totals, counted))
            for (p, totals), counted in zip(made.prefixes, populations, strict=True)
        ],
        "templates": None
        if made.templates is None
        else [{"template": name or None, "identifiers": n} for name, n in made.templates],
        "other_templates": made.others,
        "bytes": made.octets and {"total": made.octets.total, "tables": {**made.octets.tables}},
    }
