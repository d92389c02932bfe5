"""Blocks: runs of neighbouring records of one prefix, kept as one compressed row. Pure.

What a block holds is its content, msgpack of what all members share, once, and a column for
each thing that differs; the blob that is stored is the content in one Zstandard frame. The
content is permanent, its SHA-256 goes into the change log, and it says everything but the
sequence, which only the commit knows: a member has that of the block, less its own age.
Blocks of one prefix never overlap, and are never changed: they are taken out and others put in.
"""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat
from operator import lt
from typing import Any, NamedTuple

import msgpack
import zstandard

from biaojie.identifier import Identifier, fold_prefix
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

MEMBERS_MAX = 48
"""Members of a block: more are smaller together, fewer are sooner read. Measured: see
docs/storage.md."""
OCTETS_MAX = 6_144
"""Octets of data in a block of more than one member: with them a row stays within a page."""
CONTENT_MAX = 2**24
"""Octets of a content. One record has at most a sixteenth of that."""
CHUNK_MAX = 65_536
"""Names in a chunk, which one commit registers."""
LEVEL = 1

_FORMAT = 1
_TTL, _TTL_ABSOLUTE, _TIMESTAMP, _PERMISSIONS, _REFERENCES = 1, 2, 3, 4, 5
_STATUS_NUMBER = {Status.DRAFT: 0, Status.ACTIVE: 1, Status.FROZEN: 2, Status.RETIRED: 3}
_STATUS_OF = {number: status for status, number in _STATUS_NUMBER.items()}
assert len(_STATUS_OF) == len(Status)


class Block(NamedTuple):
    """A row of the table. `first` and `last` are the folded suffixes of its ends, `size` counts its
    members, `sequence` is the entry that wrote it (no member's is greater), `blob` the content,
    compressed."""

    first: bytes
    last: bytes
    size: int
    sequence: int
    blob: bytes


class Sealed(NamedTuple):
    """A block that no commit has written yet; `digest` is the SHA-256 of its content."""

    first: bytes
    last: bytes
    size: int
    blob: bytes
    digest: bytes

    def at(self, sequence: int) -> Block:
        return Block(self.first, self.last, self.size, sequence, self.blob)


@dataclass(frozen=True, slots=True)
class Chunk:
    """New records of one prefix, as columns: an object for each would cost more than the rest.

    `suffixes` as spelled, well-formed and in the order of their folded octets, none twice; at
    most CHUNK_MAX. `shapes` are the values without their data, by index, checked like any
    others; with one shape `columns` has the data of each of its values, a sequence as long as
    `suffixes`. With several, `kinds` says which of the shapes each name has, and `columns` goes
    through the values of the first shape, then those of the second …, each with the data of the
    names of that shape alone, in order.
    """

    prefix: str
    suffixes: Sequence[str]
    shapes: Sequence[Sequence[Value]]
    columns: Sequence[Sequence[bytes]]
    kinds: Sequence[int] | None = None
    status: Status = Status.ACTIVE
    template: str | None = None


@dataclass(frozen=True, slots=True)
class Bulk:
    """A chunk cut into blocks, for `Registrar.load`. `prefix` is folded; `slashes` says whether
    any suffix has one; `status` and `template` are those of all."""

    prefix: str
    count: int
    slashes: bool
    sealed: tuple[Sealed, ...]
    status: Status = Status.ACTIVE
    template: str | None = None


# Encoding -------------------------------------------------------------------------------


def _common(low: bytes, high: bytes) -> int:
    """Octets that all between these two, in order, begin with."""
    length = min(len(low), len(high))
    if low[:length] == high[:length]:
        return length
    return next(at for at in range(length) if low[at] != high[at])


def _column(items: Sequence[bytes], low: bytes, high: bytes) -> list[Any]:
    """What all begin with, the length of the rest (of each, where they differ), the rests."""
    common = _common(low, high)
    lengths = list(map(len, items))
    alike = lengths.count(lengths[0]) == len(lengths)
    rests = b"".join([item[common:] for item in items] if common else items)
    return [
        low[:common],
        lengths[0] - common if alike else [length - common for length in lengths],
        rests,
    ]


def _shape(values: Sequence[Value], modified: int | None) -> list[list[Any]]:
    """Values without data. Times are told against `modified`; None: they all are that."""
    shape = []
    for value in values:
        extras: dict[int, Any] = {}
        if value.ttl != TTL_DEFAULT_S:
            extras[_TTL] = value.ttl
        if value.ttl_absolute:
            extras[_TTL_ABSOLUTE] = True
        if modified is not None and value.timestamp != modified:
            extras[_TIMESTAMP] = value.timestamp - modified
        if value.permissions != PERMISSIONS_DEFAULT:
            extras[_PERMISSIONS] = value.permissions.value
        if value.references:
            extras[_REFERENCES] = [[r.identifier, r.index] for r in value.references]
        shape.append([value.index, value.type, *([extras] if extras else [])])
    return shape


def _one_or_all(items: list[Any]) -> Any:
    return items[0] if items.count(items[0]) == len(items) else items


class _Press:
    """Contents into blobs. Not for two threads at once."""

    def __init__(self) -> None:
        self._compress = zstandard.ZstdCompressor(level=LEVEL).compress

    def seal(self, first: bytes, last: bytes, count: int, content: bytes) -> Sealed:
        digest = hashlib.sha256(content).digest()
        return Sealed(first, last, count, self._compress(content), digest)


def _pieces(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """From where to where each block goes, given the octets of data of each member."""
    at = 0
    while at < len(lengths):
        end = min(at + MEMBERS_MAX, len(lengths))
        octets = sum(lengths[at:end])
        while octets > OCTETS_MAX and end > at + 1:
            end -= 1
            octets -= lengths[end]
        yield at, end
        at = end


def cut(chunk: Chunk, now: int, *, case_sensitive: bool = False) -> Bulk:
    """The blocks of a chunk, as registered at `now` (epoch seconds).

    Pure and without waiting: it may be done in another thread or process than the commit.
    Raises ValueError where the chunk is not as it must be; its names and values themselves are
    taken as checked.
    """
    total = len(chunk.suffixes)
    if chunk.status is Status.RETIRED:
        raise ValueError("the names of a chunk cannot be retired when they are registered")
    if not 0 < total <= CHUNK_MAX:
        raise ValueError(f"a chunk has 1 to {CHUNK_MAX} names, not {total}")
    # One step of the interpreter for all names; no name has a control character in it.
    joined = "\n".join(chunk.suffixes).encode()
    folded_joined = joined if case_sensitive else joined.upper()
    folded = folded_joined.split(b"\n")
    spelled = None if folded_joined == joined else joined.split(b"\n")
    if len(folded) != total or not all(map(lt, folded, folded[1:])):
        raise ValueError("the names of a chunk must be in order, and none twice")
    places = _places(chunk, total)
    press = _Press()
    pack = msgpack.Packer().pack
    shared = [
        _STATUS_NUMBER[chunk.status],
        chunk.template,
        1,
        0,
        now,
        0,
        [_shape(shape, None) for shape in chunk.shapes],
    ]
    sealed = []
    for at, end in _pieces(_lengths(chunk, total)):
        names = folded[at:end]
        first, last = names[0], names[-1]
        spelling = None
        if spelled is not None and (own := spelled[at:end]) != names:
            spelling = _column(own, min(own), max(own))
        data = []
        for column, place in zip(chunk.columns, places, strict=True):
            items = column[at:end] if place is None else column[place[at] : place[end]]
            data.append(_column(items, min(items), max(items)) if items else None)
        kinds = None if chunk.kinds is None else bytes(chunk.kinds[at:end])
        content = pack(
            [_FORMAT, chunk.prefix, _column(names, first, last), spelling, *shared, kinds, data]
        )
        sealed.append(press.seal(first, last, end - at, content))
    slashes = b"/" in joined
    prefix = fold_prefix(chunk.prefix)
    return Bulk(prefix, total, slashes, tuple(sealed), chunk.status, chunk.template)


def _places(chunk: Chunk, total: int) -> list[list[int] | None]:
    """For each column, how many of its items come before each name; None: one for each name."""
    of_shape: list[list[int] | None] = [None]
    if chunk.kinds is not None:
        of_shape = []
        for kind in range(len(chunk.shapes)):
            counts = [0]
            for each in chunk.kinds:
                counts.append(counts[-1] + (each == kind))
            of_shape.append(counts)
    elif len(chunk.shapes) != 1:
        raise ValueError("a chunk of several shapes needs kinds")
    places = [of_shape[n] for n, shape in enumerate(chunk.shapes) for _ in shape]
    wanted = [total if counts is None else counts[-1] for counts in places]
    if [len(column) for column in chunk.columns] != wanted or (
        chunk.kinds is not None and (len(chunk.kinds) != total or len(chunk.shapes) > MEMBERS_MAX)
    ):
        raise ValueError("the columns of a chunk are not as long as its names")
    return places


def _lengths(chunk: Chunk, total: int) -> Sequence[int]:
    """Octets of data of each member."""
    if chunk.kinds is None:
        each = [list(map(len, column)) for column in chunk.columns]
        if not each:
            return [0] * total
        return each[0] if len(each) == 1 else list(map(sum, zip(*each, strict=True)))
    columns = iter(chunk.columns)
    by_kind = [[map(len, next(columns)) for _ in shape] for shape in chunk.shapes]
    return [sum(next(lengths) for lengths in by_kind[kind]) for kind in chunk.kinds]


class Member(NamedTuple):
    """A record of a block, and the folded suffix it is kept under."""

    suffix: bytes
    record: Record


def seal(members: Sequence[Member], sequence: int) -> list[Sealed]:
    """Blocks of any records of one prefix, given in order. `sequence` is that of the commit,
    which none may exceed."""
    press = _Press()
    lengths = [sum(len(value.data) for value in member.record.values) for member in members]
    return [
        press.seal(
            members[at].suffix,
            members[end - 1].suffix,
            end - at,
            _content(members[at:end], sequence),
        )
        for at, end in _pieces(lengths)
    ]


def _content(members: Sequence[Member], sequence: int) -> bytes:
    records = [record for _, record in members]
    names = [suffix for suffix, _ in members]
    spelled = [record.identifier.suffix.encode() for record in records]
    spelling = None if spelled == names else _column(spelled, min(spelled), max(spelled))
    shapes: dict[bytes, int] = {}
    plain: list[list[list[Any]]] = []
    columns: list[list[list[bytes]]] = []
    kinds = []
    for record in records:
        shape = _shape(record.values, record.modified)
        kind = shapes.setdefault(msgpack.packb(shape), len(shapes))
        if kind == len(plain):
            plain.append(shape)
            columns.append([[] for _ in shape])
        kinds.append(kind)
        for column, value in zip(columns[kind], record.values, strict=True):
            column.append(value.data)
    packed: bytes = msgpack.packb(
        [
            _FORMAT,
            _one_or_all([record.identifier.prefix for record in records]),
            _column(names, names[0], names[-1]),
            spelling,
            _one_or_all([_STATUS_NUMBER[record.status] for record in records]),
            _one_or_all([record.template for record in records]),
            _one_or_all([record.version for record in records]),
            _one_or_all([sequence - record.sequence for record in records]),
            _one_or_all([record.created for record in records]),
            _one_or_all([record.modified - record.created for record in records]),
            plain,
            None if len(plain) == 1 else bytes(kinds),
            [_column(items, min(items), max(items)) for shape in columns for items in shape],
        ]
    )
    return packed


# Decoding -------------------------------------------------------------------------------

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
        if parts[0] != _FORMAT:
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
        return Counter({(text, _STATUS_OF[number]): n for (text, number), n in pairs.items()})

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
            _STATUS_OF[own(status)],
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
                own, _STATUS_OF[status], template, version, self.sequence - age, begun, modified
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
            text, sequence = _STATUS_OF[status].value, self.sequence - age
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
    permissions = extras.get(_PERMISSIONS)
    return make_value(
        index,
        type_,
        data,
        extras.get(_TTL, TTL_DEFAULT_S),
        extras.get(_TTL_ABSOLUTE, False),
        modified + extras.get(_TIMESTAMP, 0),
        PERMISSIONS_DEFAULT if permissions is None else Permissions(permissions),
        tuple(Reference(text, number) for text, number in extras.get(_REFERENCES, ())),
    )
