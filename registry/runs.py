"""Runs: neighbouring records that are alike in all but names and data, as columns. Pure.

What reads a whole registry takes blocks and ranges as they are kept: an object for each record
would cost more than everything else. `overlaid` makes one list of several layers, whole stretches
of columns where nothing lies over them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import NamedTuple

from biaojie.identifier import Identifier
from biaojie.making import maker
from biaojie.record import Record, Status, Value, make_record

from .patterns import filled
from .ranges import HeldRange, RangeKey

Plain = tuple[
    bytes,
    str,
    int,
    int,
    str | None,
    int,
    int,
    Sequence[tuple[int, str, bytes]],
    Record | None,
]
"""A record as columns, which are many times quicker to make than a Record: folded suffix, status,
version, sequence, template, created, modified (epoch seconds), values (index, type, data), and
None. They say everything if the identifier is spelled as it is folded and each value has the usual
ttl, permissions and timestamp and no references; else the last column is the record."""


def plain_of(suffix: bytes, record: Record) -> Plain:
    """A record kept under this folded suffix, whatever it holds."""
    return (
        suffix,
        record.status.value,
        record.version,
        record.sequence,
        record.template,
        record.created,
        record.modified,
        [(value.index, value.type, value.data) for value in record.values],
        record,
    )


class Head(NamedTuple):
    """What the records of a run share. `prefix` as it is spelled; epoch seconds."""

    prefix: str
    status: Status
    template: str | None
    version: int
    sequence: int
    created: int
    modified: int


class Group(NamedTuple):
    """Those of a run that have the same values: these, without data, and the data of each."""

    values: tuple[Value, ...]
    columns: list[list[bytes]]

    def rows(self, count: int) -> Iterable[tuple[bytes, ...]]:
        return zip(*self.columns, strict=True) if self.columns else repeat((), count)


_identifier = maker(Identifier)  # it was checked when it was registered


@dataclass(frozen=True, slots=True)
class Run:
    """`suffixes` as they are folded, in order, and as they are `spelled`. With several groups
    `kinds` has the number of that of each record; a group's columns are as long as it has some."""

    head: Head
    suffixes: list[bytes]
    spelled: list[bytes]
    groups: list[Group]
    kinds: bytes | None = None

    def __len__(self) -> int:
        return len(self.suffixes)

    def cut(self, first: int, end: int) -> Run:
        """Those from the number `first` to `end` - 1."""
        if first == 0 and end == len(self.suffixes):
            return self
        groups = []
        for kind, (values, columns) in enumerate(self.groups):
            low, high = first, end
            if self.kinds is not None:
                low = self.kinds.count(kind, 0, first)
                high = low + self.kinds.count(kind, first, end)
            groups.append(Group(values, [column[low:high] for column in columns]))
        kinds = None if self.kinds is None else self.kinds[first:end]
        return Run(self.head, self.suffixes[first:end], self.spelled[first:end], groups, kinds)

    def placed(self, of_groups: Sequence[Sequence[bytes]]) -> Sequence[bytes]:
        """What there is of each group's records, in the order of all."""
        if self.kinds is None:
            return of_groups[0]
        each = [iter(items) for items in of_groups]
        return [next(each[kind]) for kind in self.kinds]

    def names(self, kind: int) -> list[bytes]:
        """Of one group, as they are spelled."""
        if self.kinds is None:
            return self.spelled
        return [name for name, own in zip(self.spelled, self.kinds, strict=True) if own == kind]

    def records(self) -> Iterator[Record]:
        prefix, status, template, *rest = self.head
        each = [iter(group.rows(len(self))) for group in self.groups]
        for name, kind in zip(self.spelled, self.kinds or bytes(len(self)), strict=True):
            data = next(each[kind])
            values = [
                replace(value, data=item)
                for value, item in zip(self.groups[kind].values, data, strict=True)
            ]
            version, sequence, created, modified = rest
            yield make_record(
                _identifier(prefix, name.decode()),
                tuple(values),
                status,
                template,
                version,
                created,
                modified,
                sequence,
            )


# Ranges ---------------------------------------------------------------------------------

_HOLDER = re.compile(rb"\{(suffix|number|identifier|prefix)\}")


class Stretch(NamedTuple):
    """Some neighbouring members of a range: their numbers, by which the names are in order."""

    held: HeldRange
    shape: bytes
    numbers: range

    def key(self, number: int) -> bytes:
        return filled(self.shape, self.held.pattern.run(number))

    def to(self, end: bytes) -> Stretch:
        """Those whose names are <= `end`."""
        return self._replace(numbers=self.numbers[: bisect_right(self.numbers, end, key=self.key)])

    def run(self) -> Run:
        rule, pattern = self.held.rule, self.held.pattern
        prefix = rule.identifier.prefix
        before, after = pattern.before.encode(), pattern.after.encode()
        padded = [b"%0*d" % (pattern.digits, number) for number in self.numbers]
        runs = padded
        if pattern.check:
            runs = [pattern.run(number).encode() for number in self.numbers]
        spelled = [before + run + after for run in runs]
        start, end = self.shape.split(bytes(len(runs[0])), 1)
        folded = [start + run + end for run in runs]
        start = prefix.encode() + b"/"
        texts = {
            b"suffix": spelled,
            b"number": padded,
            b"identifier": [start + name for name in spelled],
            b"prefix": [prefix.encode()] * len(runs),
        }
        columns = []
        for value in rule.values:
            text, *rest = _HOLDER.split(value.data.replace(b"%", b"%%"))
            form = text + b"".join(b"%b" + text for text in rest[1::2])
            if rest:
                some = zip(*[texts[holder] for holder in rest[::2]], strict=True)
                columns.append(list(map(form.__mod__, some)))
            else:
                columns.append([value.data] * len(runs))
        head = Head(
            prefix,
            rule.status,
            rule.template,
            rule.version,
            rule.sequence,
            rule.created,
            rule.modified,
        )
        values = tuple(replace(value, data=b"") for value in rule.values)
        return Run(head, folded, spelled, [Group(values, columns)])


def range_runs(
    ranges: Iterable[tuple[RangeKey, HeldRange]], after: bytes, limit: int, end: bytes | None
) -> tuple[list[Run], bytes | None]:
    """Members > `after` of ranges that are all there are up to `end` (None: all), as runs which
    may interleave, about `limit` of them, and the name up to which they are all there are."""
    coming: list[tuple[bytes, Stretch]] = []
    for key, held in ranges:
        pattern = held.pattern
        first = pattern.first_after(after, key.shape)
        if first is not None:
            stretch = Stretch(held, key.shape, range(first, pattern.last + 1, pattern.step))
            coming.append((stretch.key(first), stretch))
    taken: list[Stretch] = []
    for first_name, stretch in sorted(coming, key=lambda each: each[0]):
        if end is not None and first_name > end:
            break
        if len(stretch.numbers) > limit:
            stretch = stretch._replace(numbers=stretch.numbers[:limit])  # noqa: PLW2901
            last = stretch.key(stretch.numbers[-1])
            end = last if end is None else min(end, last)
        taken.append(stretch)
    if end is not None:
        taken = [part for each in taken if (part := each.to(end)).numbers]
    return [each.run() for each in taken], end


# Layers ---------------------------------------------------------------------------------


class Rows(NamedTuple):
    """Rows of the uppermost layer; one without an item says that there is no such record."""

    suffixes: Sequence[bytes]
    items: Sequence[Plain | None]


Piece = Run | list[Plain]
"""Neighbouring records."""


def overlaid(sources: Sequence[Run | Rows], after: bytes, end: bytes | None) -> list[Piece]:
    """The records > `after` and <= `end` (None: all) of all sources, in order. Of those that have
    the same name the last source wins."""
    begins: list[int] = []
    places: dict[bytes, int] = {}
    begin = 0
    for source in sources:
        begins.append(begin)
        count = len(source.suffixes)
        places.update(zip(source.suffixes, range(begin, begin + count), strict=True))
        begin += count + 1  # so that no place of one source comes next to one of another
    names = sorted(places)
    high = len(names) if end is None else bisect_right(names, end)
    order = [places[name] for name in names[bisect_right(names, after) : high]]
    pieces: list[Piece] = []
    at = 0
    while at < len(order):
        first = last = order[at]
        at += 1
        while at < len(order) and order[at] == last + 1:
            last += 1
            at += 1
        number = bisect_right(begins, first) - 1
        source, begin = sources[number], begins[number]
        if isinstance(source, Run):
            pieces.append(source.cut(first - begin, last + 1 - begin))
        else:
            some = source.items[first - begin : last + 1 - begin]
            pieces.append([item for item in some if item is not None])
    return pieces
