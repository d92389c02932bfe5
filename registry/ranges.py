"""Ranges: runs of identifiers registered by one rule. Pure: keeping, members, cutting, listing.

One row of the registry, one entry of its log; what a member's record is, the rule and the name
say together. Of one shape under one prefix no two ranges overlap.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgpack

from biaojie.change import Action, Change
from biaojie.identifier import Identifier, Key, fold_prefix
from biaojie.making import maker
from biaojie.range import Range
from biaojie.record import Record, Status, make_record, make_value

from .changelog import ZERO, record_digest
from .patterns import Pattern, filled, parse_stored

SHAPES_MAX = 64
"""Shapes of the ranges under one prefix: a list of its names walks them side by side."""
CUT_RANGES_MAX = 256
"""Ranges that one cut may touch."""


class Span(NamedTuple):
    """All folded suffixes of a folded prefix from `first` to `last`."""

    prefix: str
    first: bytes
    last: bytes

    def has(self, key: Key) -> bool:
        return self.prefix == key.prefix and self.first <= key.suffix <= self.last


def span_of(name: str, *, case_sensitive: bool = False) -> Span:
    """Where the members are of a range that the log names."""
    prefix, _, text = name.partition("/")
    return span(fold_prefix(prefix), parse_stored(text), case_sensitive=case_sensitive)


def span(prefix: str, pattern: Pattern, *, case_sensitive: bool = False) -> Span:
    """Where the members are under a folded prefix."""
    first, last = (
        pattern.key(number, case_sensitive=case_sensitive)
        for number in (pattern.first, pattern.last)
    )
    return Span(prefix, first, last)


def cut_out(changes: Sequence[Change]) -> Iterator[tuple[str, Pattern]]:
    """Folded prefix and members that the cuts among these changes made to be what they were not:
    those of ranges that are gone, but for the parts that were kept."""
    kept: dict[tuple[str, bytes, int], list[Pattern]] = {}
    gone: list[tuple[tuple[str, bytes, int], Pattern]] = []
    for change in changes:
        if change.action is not Action.CUT_RANGE:
            continue
        prefix, _, text = change.subject.partition("/")
        pattern = parse_stored(text)
        # A part that is kept has the version that the whole had.
        alike = (fold_prefix(prefix), pattern.shape(), change.version)
        if change.digest == ZERO:
            gone.append((alike, pattern))
        else:
            kept.setdefault(alike, []).append(pattern)
    for alike, pattern in gone:
        left: Pattern | None = pattern
        for part in sorted(kept.get(alike, ()), key=lambda each: each.first):
            if left is None or part.last < left.first or left.last < part.first:
                continue
            below, _, left = left.cut(part.first, part.last)
            if below is not None:
                yield alike[0], below
        if left is not None:
            yield alike[0], left


# What a registry holds ------------------------------------------------------------------

_make_identifier = maker(Identifier)
_HOLDERS = (b"{suffix}", b"{number}", b"{identifier}", b"{prefix}")


class RangeKey(NamedTuple):
    """What a range is kept by. Of one shape under one prefix no two overlap."""

    prefix: str
    shape: bytes
    first: bytes


@dataclass(frozen=True, slots=True)
class HeldRange:
    """A range as it is kept.

    `rule` is what each member is but for its name: a record whose suffix is the pattern and
    whose values may hold placeholders; its `sequence` is that of the members. `written` is the
    entry of the change log that this very row was made by, which a cut may have done later.
    """

    rule: Record
    pattern: Pattern
    written: int

    @property
    def name(self) -> str:
        """`prefix/pattern`, as the change log has it."""
        return f"{self.rule.identifier.prefix}/{self.pattern}"

    def key(self, *, case_sensitive: bool = False) -> RangeKey:
        prefix = fold_prefix(self.rule.identifier.prefix)
        return RangeKey(
            prefix, self.pattern.shape(case_sensitive=case_sensitive), self.pattern.runs[0]
        )

    def identifier(self, number: int) -> Identifier:
        found: Identifier = _make_identifier(
            self.rule.identifier.prefix, self.pattern.spelled(number)
        )
        return found

    def member(self, number: int) -> Record:
        """The record of a member."""
        rule = self.rule
        identifier = self.identifier(number)
        texts: tuple[bytes, ...] | None = None
        values = []
        for value in rule.values:
            data = value.data
            if b"{" in data:
                if texts is None:
                    texts = (
                        identifier.suffix.encode(),
                        str(number).zfill(self.pattern.digits).encode(),
                        str(identifier).encode(),
                        identifier.prefix.encode(),
                    )
                data = _filled(data, texts)
            values.append(
                make_value(
                    value.index,
                    value.type,
                    data,
                    value.ttl,
                    value.ttl_absolute,
                    value.timestamp,
                    value.permissions,
                    value.references,
                )
            )
        return make_record(
            identifier,
            tuple(values),
            rule.status,
            rule.template,
            rule.version,
            rule.created,
            rule.modified,
            rule.sequence,
        )

    def members_after(self, suffix: bytes | None, shape: bytes) -> Iterator[tuple[bytes, Record]]:
        """Folded suffixes > `suffix` and their records, in order; each is made when asked for."""
        number = self.pattern.first_after(suffix, shape)
        while number is not None and number <= self.pattern.last:
            yield filled(shape, self.pattern.run(number)), self.member(number)
            number += self.pattern.step

    def having(self, pattern: Pattern, written: int) -> HeldRange:
        """A part of it: members are what they were."""
        return hold_range(self.rule, pattern, written)

    def retired(self, pattern: Pattern, now: int, sequence: int) -> HeldRange:
        """A part of it as tombstones."""
        rule = replace(
            self.rule,
            values=(),
            status=Status.RETIRED,
            version=self.rule.version + 1,
            modified=now,
            sequence=sequence,
        )
        return hold_range(rule, pattern, sequence)


_HOLDER = re.compile(b"|".join(re.escape(holder) for holder in _HOLDERS))


def _filled(data: bytes, texts: tuple[bytes, ...]) -> bytes:
    return _HOLDER.sub(lambda at: texts[_HOLDERS.index(at[0])], data)


def view_of(held: HeldRange) -> Range:
    """What callers with rights are shown of it."""
    rule, pattern = held.rule.readable(), held.pattern
    return Range(
        prefix=rule.identifier.prefix,
        pattern=str(pattern),
        first=str(held.identifier(pattern.first)),
        last=str(held.identifier(pattern.last)),
        count=pattern.count,
        values=rule.values,
        status=rule.status,
        template=rule.template,
        version=rule.version,
        created=rule.created,
        modified=rule.modified,
        sequence=rule.sequence,
    )


def range_digest(held: HeldRange) -> bytes:
    """What the change log keeps of a range; the entry that registered its members only where
    that is not the one it is kept by."""
    before = 0 if held.rule.sequence == held.written else held.rule.sequence
    return hashlib.sha256(msgpack.packb([record_digest(held.rule), before])).digest()


def hold_range(rule: Record, pattern: Pattern, written: int) -> HeldRange:
    """`rule` under the name that `pattern` gives it."""
    name = _make_identifier(rule.identifier.prefix, str(pattern))
    return HeldRange(replace(rule, identifier=name), pattern, written)


def member_of(found: HeldRange, run: bytes) -> Record | None:
    """The record of the member with this run, if it has one."""
    number = found.pattern.number_of(run)
    return None if number is None else found.member(number)


def first_members(
    ranges: Iterable[tuple[RangeKey, HeldRange]],
    after: bytes | None,
    limit: int,
    end: bytes | None = None,
) -> tuple[list[tuple[bytes, Record | None]], bytes | None]:
    """The first members > `after` of ranges that are all there are up to `end` (None: all), by
    folded suffix and in order, and up to where they are all there are (None: to the last)."""
    walks = [held.members_after(after, key.shape) for key, held in ranges]
    items: list[tuple[bytes, Record | None]] = []
    for each in heapq.merge(*walks, key=lambda item: item[0]):
        if end is not None and each[0] > end:
            break
        if len(items) == limit:
            return items, items[-1][0]
        items.append(each)
    return items, end
