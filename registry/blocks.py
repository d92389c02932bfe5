"""Blocks: runs of neighbouring records of one prefix, kept as one compressed row. Pure. This is
how they are made; `registry.members` reads them.

What a block holds is its content, msgpack of what all members share, once, and a column for
each thing that differs; the blob that is stored is the content in one Zstandard frame. The
content is permanent, its SHA-256 goes into the change log, and it says everything but the
sequence, which only the commit knows: a member has that of the block, less its own age.
Blocks of one prefix never overlap, and are never changed: they are taken out and others put in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import lt
from typing import Any, NamedTuple

import msgpack
import zstandard

from biaojie.identifier import fold_prefix
from biaojie.limits import TTL_DEFAULT_S
from biaojie.record import (
    PERMISSIONS_DEFAULT,
    Status,
    Value,
)

from .members import (
    FORMAT,
    PERMISSIONS,
    REFERENCES,
    STATUS_NUMBER,
    TIMESTAMP,
    TTL,
    TTL_ABSOLUTE,
    Member,
)

MEMBERS_MAX = 48
"""Members of a block: more are smaller together, fewer are sooner read. Measured: see
docs/storage.md."""
OCTETS_MAX = 6_144
"""Octets of data in a block of more than one member: with them a row stays within a page."""
CHUNK_MAX = 65_536
"""Names in a chunk, which one commit registers."""
LEVEL = 1


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
            extras[TTL] = value.ttl
        if value.ttl_absolute:
            extras[TTL_ABSOLUTE] = True
        if modified is not None and value.timestamp != modified:
            extras[TIMESTAMP] = value.timestamp - modified
        if value.permissions != PERMISSIONS_DEFAULT:
            extras[PERMISSIONS] = value.permissions.value
        if value.references:
            extras[REFERENCES] = [[r.identifier, r.index] for r in value.references]
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
        STATUS_NUMBER[chunk.status],
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
            [FORMAT, chunk.prefix, _column(names, first, last), spelling, *shared, kinds, data]
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
            FORMAT,
            _one_or_all([record.identifier.prefix for record in records]),
            _column(names, names[0], names[-1]),
            spelling,
            _one_or_all([STATUS_NUMBER[record.status] for record in records]),
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
