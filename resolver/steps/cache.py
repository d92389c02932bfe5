"""The cache as a step: fresh answers, short-lived absences, one flight per name, serve-stale.

An entry dies by its TTL and at once when its identifier changes (`forget`). When the registry
cannot be asked, an entry that is dead only by age is still answered, marked stale, for
`stale_s` (RFC 8767); an absence never is: a name we do not hold is "temporarily unavailable"
then, never "not found".
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from sys import getsizeof

from biaojie.change import Action, Change, Entry
from biaojie.errors import (
    BiaojieError,
    DeadlineExceeded,
    Elsewhere,
    Internal,
    OverCapacity,
    TemporarilyUnavailable,
)
from biaojie.identifier import Key, fold_prefix
from biaojie.record import Record
from registry.changelog import subject_key
from registry.handle_rights import ancestors
from registry.patterns import Pattern
from registry.ranges import Span, cut_out, span, span_of

from ..core import Answer, Cached, Onward, Outcome, Source
from ..health import Health
from .s3fifo import S3Fifo

_RECORD_BYTES = 550  # objects around an empty record, measured with tracemalloc
_VALUE_BYTES = 135
_OCTETS_BYTES = getsizeof(b"")
_REFERENCE_BYTES = 60
_FAILURES = (TemporarilyUnavailable, DeadlineExceeded, OverCapacity, Internal)
_LATER = Answer(None, None, Source.STORE, 0, 0)
MOMENT_S = 0.125
"""Records count as read at one moment for so long, the earliest of them: it is one object for all,
which reading it mostly finds in the processor's cache."""
SPANS_MAX = 1_024
_MEMBERS_SCANNED = 16
"""Entries can be looked at in the time that dropping one by its name takes."""
_KEPT_ELSEWHERE = (Action.COMPACT, Action.DISSOLVE, Action.FOLD)
"""Changes of where records are kept, and not of what they are."""
STALE_TTL_S = 30  # RFC 8767 §4: how long others may keep a stale answer


def size_of(key: Key, record: Record) -> int:
    """Bytes of memory that a cached record takes, to within a tenth or so."""
    # Octets have no form but one, so their length says it, in half the time.
    size = _RECORD_BYTES + _OCTETS_BYTES + len(key.suffix) + getsizeof(record.identifier.suffix)
    for value in record.values:
        size += _VALUE_BYTES + _OCTETS_BYTES + len(value.data) + getsizeof(value.type)
        if value.references:
            size += sum(_REFERENCE_BYTES + getsizeof(r.identifier) for r in value.references)
    return size


@dataclass(slots=True)
class _Absent:
    absence: type[BiaojieError]
    fetched: float


@dataclass(eq=False, slots=True)
class _Flight:
    """Names on their way together. Whoever asks for one of them joins, unless it changed after
    the flight began: it is no longer in `_flights` then, and its answer is not kept."""

    task: asyncio.Task[None] | None = None
    outcomes: dict[Key, Outcome] = field(default_factory=dict)
    told: set[Key] = field(default_factory=set)
    """Whose error has been given to somebody."""

    def error(self, key: Key, error: BiaojieError) -> BiaojieError:
        """To the first who asks the error itself, one of his own to each of the others."""
        if key in self.told:
            return error.again()
        self.told.add(key)
        return error


class CacheStep:
    """`absent_max` bounds remembered absences by count, `bytes_max` records by bytes."""

    def __init__(
        self,
        health: Health,
        *,
        bytes_max: int = 256 * 2**20,
        ttl_max_s: float = 3_600,
        absent_ttl_s: float = 5,
        absent_max: int = 100_000,
        stale_s: float = 3 * 86_400,
        case_sensitive: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._health = health
        self._ttl_max_s = ttl_max_s
        self._absent_ttl_s = absent_ttl_s
        self._absent_max = absent_max
        self._stale_s = stale_s
        self._case_sensitive = case_sensitive
        self._clock = clock
        self.cached: S3Fifo[Key, Cached] = S3Fifo(bytes_max, Cached.bury, Cached.count_hits)
        self.absent: OrderedDict[Key, _Absent] = OrderedDict()
        self._moment = -inf
        self._flights: dict[Key, _Flight] = {}
        self._spans: deque[tuple[float, Span]] = deque()
        """Spans in which names were registered together lately, and when we heard of it."""
        self.counts = {"hit": 0, "stale": 0, "absent-hit": 0, "miss": 0, "joined": 0}

    async def resolve(self, keys: Sequence[Key], onward: Onward) -> list[Outcome]:
        now = self._clock()
        outcomes: list[Outcome] = [_LATER] * len(keys)
        entries, absent, under_way = self.cached.entries, self.absent, self._flights
        ours, missing = _Flight(), []
        awaited: list[int] = []
        flights = {ours: awaited}  # which of `keys` each will bring
        joined = 0
        for n, key in enumerate(keys):
            if key in entries or key in absent:
                kept = self._kept(key, now)
                if kept is not None:
                    outcomes[n] = kept
                    continue
            flight = under_way.get(key)
            if flight is None:
                under_way[key] = ours
                missing.append(key)
                awaited.append(n)
            else:
                joined += 1
                flights.setdefault(flight, []).append(n)
        self.counts["miss"] += len(missing)
        self.counts["joined"] += joined
        if missing:
            ours.task = asyncio.ensure_future(self._fly(ours, missing, onward))
        else:
            del flights[ours]
        for flight, numbers in flights.items():
            assert flight.task is not None
            # Shielded: one caller running out of time must not end the flight for the others.
            await asyncio.shield(flight.task)
            for n in numbers:
                outcome = flight.outcomes[keys[n]]
                if isinstance(outcome, BiaojieError):
                    outcome = flight.error(keys[n], outcome)
                    if isinstance(outcome, _FAILURES):
                        outcomes[n] = self._instead(keys[n], outcome)
                        continue
                outcomes[n] = outcome
        return outcomes

    def _kept(self, key: Key, now: float) -> Answer | None:
        """What there is to say without asking anybody."""
        entry = self.cached.entries.get(key)
        if entry is not None:
            if self._health.down:
                if now < entry.fetched + self._stale_s:
                    return self._stale(entry, now)
            elif now < entry.expires:
                return self._hit(entry, now)
        elif not self._health.down:
            absent = self.absent.get(key)
            if (
                absent is not None
                and now < absent.fetched + self._absent_ttl_s
                and not self._registered_since(key, absent.fetched)
            ):
                self.counts["absent-hit"] += 1
                return Answer(None, absent.absence, Source.CACHE, int(now - absent.fetched), 0)
        return None

    def _instead(self, key: Key, error: BiaojieError) -> Outcome:
        """The stale answer, if there is one. Looked up again: the entry may have been changed
        or dropped while we waited."""
        entry = self.cached.entries.get(key)
        now = self._clock()
        if entry is None or now >= entry.fetched + self._stale_s:
            return error
        return self._stale(entry, now)

    def knows(self, key: Key) -> bool:
        """Whether there is anything about it here, be it fresh or not."""
        return key in self.cached.entries or key in self.absent

    def at_hand(self, key: Key) -> Answer | None:
        """A fresh answer, without waiting for anything; none of a name that lives elsewhere, for
        where that is has to be asked."""
        if self._health.down or not self.knows(key):
            return None
        answer = self._kept(key, self._clock())
        return None if answer is None or answer.absence is Elsewhere else answer

    def flight(self, key: Key) -> object | None:
        """What brings it, if it is being asked for, so that one more who asks costs nobody
        anything: the same object for all names that come together."""
        return self._flights.get(key)

    def _hit(self, entry: Cached, now: float) -> Answer:
        entry.hits += 1
        self.counts["hit"] += 1
        age = int(now - entry.fetched)
        left = max(entry.ttl_s - age, 0)
        return Answer(entry.record, None, Source.CACHE, age, left, entry.whole, entry)

    def _stale(self, entry: Cached, now: float) -> Answer:
        entry.hits += 1
        self.counts["stale"] += 1
        left = max(int(entry.expires - now), 0)
        age, ttl_s = int(now - entry.fetched), min(left, STALE_TTL_S)
        return Answer(entry.record, None, Source.STALE, age, ttl_s, entry.whole)

    async def _fly(self, flight: _Flight, keys: Sequence[Key], onward: Onward) -> None:
        current: list[Key] = []
        try:
            outcomes = await onward(keys)
        except BiaojieError as error:
            outcomes = [error.again() for _ in keys]
        finally:
            for key in keys:
                if self._flights.get(key) is flight:
                    del self._flights[key]
                    current.append(key)
        brought = flight.outcomes = dict(zip(keys, outcomes, strict=True))
        now = self._clock()
        for key in current:
            outcome = brought[key]
            if isinstance(outcome, Answer):
                self._keep(key, outcome, now)

    def _keep(self, key: Key, answer: Answer, now: float) -> None:
        if key in self.cached.entries:
            self._drop(key)
        record = answer.record
        if record is None:
            assert answer.absence is not None
            self.absent[key] = _Absent(answer.absence, now)
            self.absent.move_to_end(key)
            while len(self.absent) > self._absent_max:
                self.absent.popitem(last=False)
            return
        if key in self.absent:
            del self.absent[key]
        kept = min(answer.ttl_s, self._ttl_max_s)
        size = size_of(key, record)
        if not self._moment <= now < self._moment + MOMENT_S:
            self._moment = now - now % MOMENT_S
        fetched = self._moment
        entry = Cached(record, fetched, fetched + kept, size, answer.ttl_s, answer.whole)
        entry.alive = self.cached.put(key, entry)

    def _drop(self, key: Key) -> None:
        entry = self.cached.drop(key)
        if entry is not None:
            entry.bury()

    # Invalidation -----------------------------------------------------------------------

    def forget(self, entry: Entry) -> None:
        """Drop everything that a commit changed."""
        prefixes: set[str] = set()
        runs: dict[str, Span] = {}
        cut = False
        for change in entry.changes:
            if change.action is Action.BULK:
                self._widen(runs, change)
                continue
            if change.action in _KEPT_ELSEWHERE:
                continue
            if change.action in (Action.ISSUE_KEY, Action.REVOKE_KEY):
                continue
            if change.action in (Action.HOME_PREFIX, Action.CHANGE_PREFIX):
                prefixes.add(fold_prefix(change.subject))
                continue
            if change.action is Action.REGISTER_RANGE:
                self._register_span(span_of(change.subject, case_sensitive=self._case_sensitive))
                continue
            if change.action is Action.CUT_RANGE:
                cut = True
                continue
            self._forget_key(subject_key(change.subject, case_sensitive=self._case_sensitive))
        for run in runs.values():
            self._register_span(run)
        if cut:
            for prefix, pattern in cut_out(entry.changes):
                self._forget_members(prefix, pattern)
        if prefixes:
            self._forget_prefixes(prefixes)

    @staticmethod
    def _widen(runs: dict[str, Span], run: Change) -> None:
        """Take a run of new names into the one span kept for its prefix: to ask again for some
        that lie between is cheaper than to remember hundreds of spans."""
        prefix, _, text = run.subject.partition("/")
        first, last = text.encode(), run.last.encode()
        known = runs.get(prefix)
        if known is not None:
            first, last = min(first, known.first), max(last, known.last)
        runs[prefix] = Span(prefix, first, last)

    def _forget_key(self, key: Key) -> None:
        self._drop(key)
        self.absent.pop(key, None)
        self._flights.pop(key, None)

    def _register_span(self, span: Span) -> None:
        """Names of a span were registered: what is remembered as absent may be no more.

        They are not looked for: a span may have any number, and one that is asked for again is
        held against the spans of the last seconds."""
        now = self._clock()
        while self._spans and self._spans[0][0] + self._absent_ttl_s < now:
            self._spans.popleft()
        self._spans.append((now, span))
        if len(self._spans) > SPANS_MAX:
            self._spans.clear()
            self.absent.clear()
        for key in [key for key in self._flights if span.has(key)]:
            del self._flights[key]

    def _registered_since(self, key: Key, fetched: float) -> bool:
        return any(at >= fetched and span.has(key) for at, span in self._spans)

    def _forget_members(self, prefix: str, pattern: Pattern) -> None:
        kept = (self.cached, self.absent, self._flights)
        if pattern.count * _MEMBERS_SCANNED < sum(len(keys) for keys in kept):
            for index in range(pattern.count):
                number = pattern.number_at(index)
                suffix = pattern.key(number, case_sensitive=self._case_sensitive)
                self._forget_key(Key(prefix, suffix))
            return
        # Rare, as changes of prefixes are.
        members = span(prefix, pattern, case_sensitive=self._case_sensitive)
        for keys in kept:
            for key in [key for key in keys if members.has(key)]:
                self._forget_key(key)

    def _forget_prefixes(self, prefixes: set[str]) -> None:
        # Rare, and the caches are bounded: a scan is cheaper than an index kept on every write.
        # Names below a changed prefix may be answered for elsewhere, or not any more.
        for keys in (list(self.cached), list(self.absent), list(self._flights)):
            for key in keys:
                if not prefixes.isdisjoint([key.prefix, *ancestors(key.prefix)]):
                    self._forget_key(key)

    def clear(self) -> None:
        """Drop everything: used when changes may have been missed."""
        for key in list(self.cached):
            self._drop(key)
        self.absent.clear()
        self._flights.clear()
