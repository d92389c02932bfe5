"""Reading blocks: the members of one that is stored. Pure. What it is made of: `registry.blocks`.

A blob is no more trusted than the disk it comes from: what is no block raises, and is bounded.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, repeat
from typing import Any, NamedTuple

import msgpack
import zstandard

from biaojie.identifier import Identifier
from biaojie.limits import TTL_DEFAULT_S
from biaojie.making import maker
from biaojie.record import (
    PERMISSIONS_DEFAULT,
    Permissions,
    Record,
    Reference,
    Status,
    Value,
    make_record,
    make_value,
)

from .runs import Group, Head, Plain, Run, plain_of

CONTENT_MAX = 2**24
"""Octets of a content. One record has at most a sixteenth of that."""
FORMAT = 1
TTL, TTL_ABSOLUTE, TIMESTAMP, PERMISSIONS, REFERENCES = 1, 2, 3, 4, 5
STATUS_NUMBER = {Status.DRAFT: 0, Status.ACTIVE: 1, Status.FROZEN: 2, Status.RETIRED: 3}
STATUS_OF = {number: status for status, number in STATUS_NUMBER.items()}
assert len(STATUS_OF) == len(Status)


class Member(NamedTuple):
    """A record of a block, and the folded suffix it is kept under."""

    suffix: bytes
    record: Record


_local = threading.local()
_identifier = maker(Identifier)  # as in registry.sql.blob: it was checked when it was registered


def content_of(blob: bytes) -> bytes:
    """Raises ValueError on what is no blob of a block."""
    try:
        decompress = _local.decompress  # may not be shared by threads
    except AttributeError:
        decompress = _local.decompress = zstandard.ZstdDecompressor().decompress
    try:
        if not 0 < zstandard.frame_content_size(blob) <= CONTENT_MAX:
            raise ValueError("not a block: too large")
        content: bytes = decompress(blob)
    except zstandard.ZstdError as error:
        raise ValueError(f"not a block: {error}") from error
    return content


def _at(column: list[Any], number: int) -> bytes:
    common, lengths, rests = column
    if isinstance(lengths, int):
        start = lengths * number
        rest: bytes = rests[start : start + lengths]
    else:
        start = sum(lengths[:number])
        rest = rests[start : start + lengths[number]]
    whole: bytes = common + rest
    return whole


def _all(column: list[Any], count: int) -> list[bytes]:
    common, lengths, rests = column
    if isinstance(lengths, int):
        if not lengths:
            return [common] * count
        ends: Sequence[int] = range(lengths, lengths * (count + 1), lengths)
    else:
        ends = list(accumulate(lengths))
    return [common + rests[at:end] for at, end in zip((0, *ends), ends, strict=False)]


class Members:
    """A decoded block. Raises ValueError, TypeError or IndexError on a damaged one."""

    __slots__ = ("_parts", "_suffixes", "count", "sequence")

    def __init__(self, blob: bytes, count: int, sequence: int) -> None:
        parts = msgpack.unpackb(content_of(blob), strict_map_key=False)
        if parts[0] != FORMAT:
            raise ValueError(f"not a block that this program knows: format {parts[0]}")
        self._parts = parts
        self._suffixes: list[bytes] | None = None
        self.count = count
        self.sequence = sequence

    @property
    def alike_in_age(self) -> bool:
        """Whether one entry wrote all of them, the one that wrote the block."""
        return bool(self._parts[7] == 0)

    def sorts(self) -> Counter[tuple[str | None, Status]]:
        """How many members have which template and status."""
        status, template = self._parts[4], self._parts[5]
        statuses = status if isinstance(status, list) else [status] * self.count
        templates = template if isinstance(template, list) else [template] * self.count
        pairs = Counter(zip(templates, statuses, strict=True))
        return Counter({(text, STATUS_OF[number]): n for (text, number), n in pairs.items()})

    def suffixes(self) -> list[bytes]:
        if self._suffixes is None:
            self._suffixes = _all(self._parts[2], self.count)
        return self._suffixes

    def find(self, suffix: bytes) -> Record | None:
        """The record kept under this folded suffix."""
        common, lengths, rests = self._parts[2]
        if not suffix.startswith(common):
            return None
        rest = suffix[len(common) :]
        if isinstance(lengths, int):
            if len(rest) != lengths:
                return None
            low, high = 0, self.count
            while low < high:
                middle = (low + high) // 2
                if rests[middle * lengths : (middle + 1) * lengths] < rest:
                    low = middle + 1
                else:
                    high = middle
            found = low < self.count and rests[low * lengths : (low + 1) * lengths] == rest
            return self.record(low) if found else None
        names = self.suffixes()
        low = bisect_left(names, suffix)
        return self.record(low) if names[low : low + 1] == [suffix] else None

    def record(self, number: int) -> Record:
        (
            _,
            prefix,
            names,
            spelling,
            status,
            template,
            version,
            age,
            created,
            since,
            shapes,
            kinds,
            columns,
        ) = self._parts

        def own(item: Any) -> Any:
            return item[number] if isinstance(item, list) else item

        first, place, kind = 0, number, 0
        if kinds is not None:
            kind = kinds[number]
            first = sum(len(shape) for shape in shapes[:kind])
            place = kinds.count(kind, 0, number)
        begun = own(created)
        modified = begun + own(since)
        values = tuple(
            [
                _value(about, _at(columns[first + n], place), modified)
                for n, about in enumerate(shapes[kind])
            ]
        )
        return make_record(
            _identifier(own(prefix), _at(names if spelling is None else spelling, number).decode()),
            values,
            STATUS_OF[own(status)],
            own(template),
            own(version),
            begun,
            modified,
            self.sequence - own(age),
        )

    def all(self) -> list[Member]:
        return [Member(name, self.record(n)) for n, name in enumerate(self.suffixes())]

    def columns(self, prefix: str) -> Run | list[Plain]:
        """All of them; `prefix` is folded. A run unless more differs than names and data, as it
        does after compaction."""
        _, own, _, spelling, *shared, shapes, kinds, columns = self._parts
        items = iter(columns)
        data = []
        for kind, shape in enumerate(shapes):
            count = self.count if kinds is None else kinds.count(kind)
            data.append([_all(next(items) or [b"", 0, b""], count) for _ in shape])
        names = self.suffixes()
        if not any(isinstance(each, list) for each in (own, *shared)):
            status, template, version, age, begun, since = shared
            modified = begun + since
            head = Head(
                own, STATUS_OF[status], template, version, self.sequence - age, begun, modified
            )
            bare = [tuple([_value(about, b"", modified) for about in shape]) for shape in shapes]
            spelled = names if spelling is None else _all(spelling, self.count)
            return Run(head, names, spelled, list(map(Group, bare, data)), kinds)
        extras = any(len(about) > 2 for shape in shapes for about in shape)
        if own != prefix or spelling is not None or extras:
            return [plain_of(suffix, record) for suffix, record in self.all()]
        listed: list[Plain] = []
        each = [zip(*some, strict=True) if some else repeat(()) for some in data]
        wide = [item if isinstance(item, list) else repeat(item) for item in shared]
        for name, kind, status, template, version, age, begun, since in zip(
            names, kinds or bytes(self.count), *wide, strict=False
        ):
            values = [
                (index, type_, item)
                for (index, type_), item in zip(shapes[kind], next(each[kind]), strict=True)
            ]
            text, sequence = STATUS_OF[status].value, self.sequence - age
            listed.append(
                (name, text, version, sequence, template, begun, begun + since, values, None)
            )
        return listed


def _value(about: list[Any], data: bytes, modified: int) -> Value:
    if len(about) == 2:
        index, type_ = about
        return make_value(
            index, type_, data, TTL_DEFAULT_S, False, modified, PERMISSIONS_DEFAULT, ()
        )
    index, type_, extras = about
    permissions = extras.get(PERMISSIONS)
    return make_value(
        index,
        type_,
        data,
        extras.get(TTL, TTL_DEFAULT_S),
        extras.get(TTL_ABSOLUTE, False),
        modified + extras.get(TIMESTAMP, 0),
        PERMISSIONS_DEFAULT if permissions is None else Permissions(permissions),
        tuple(Reference(text, number) for text, number in extras.get(REFERENCES, ())),
    )
