"""Ranges in the database: rows into values, and finding them by shape and run.

A walk along the ranges of one shape is one along the primary key; of the names of a prefix,
one for each of its shapes, of which there are few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from biaojie.identifier import Key
from biaojie.record import Record

from ..layers import Page
from ..patterns import parse_stored, run_after
from ..ranges import HeldRange, RangeKey, first_members, member_of
from .blob import decode_blob, encode_blob
from .direct import Home, Row
from .tables import STATUS_NUMBER, STATUS_OF, ranges, records

RANGES_PAGE = 16
"""Ranges of one shape that are read at a time to list their members."""

_r = ranges.c
_HELD = (_r.status, _r.version, _r.sequence, _r.written, _r.template, _r.blob)
_OF_PREFIX = select(_r.shape, _r.first, _r.last, *_HELD).where(_r.prefix_id == bindparam("id"))
_OF_SHAPE = _OF_PREFIX.where(_r.shape == bindparam("shape")).order_by(_r.first)
_FROM = _OF_SHAPE.where(_r.first > bindparam("run")).limit(bindparam("limit"))
_AROUND = (
    _OF_PREFIX.where(_r.shape == bindparam("shape"), _r.first <= bindparam("run"))
    .order_by(_r.first.desc())
    .limit(1)
)
_LIST = (
    _OF_PREFIX.where(_r.shape > bindparam("shape"))
    .order_by(_r.shape, _r.first)
    .limit(bindparam("limit"))
)
# One seek for each shape: DISTINCT would read every range.
_SHAPES = text("""
WITH RECURSIVE known (shape) AS (
    SELECT (SELECT shape FROM ranges WHERE prefix_id = :id ORDER BY shape LIMIT 1)
    UNION ALL
    SELECT (
        SELECT shape FROM ranges WHERE prefix_id = :id AND shape > known.shape
        ORDER BY shape LIMIT 1
    ) FROM known WHERE shape IS NOT NULL
)
SELECT shape FROM known WHERE shape IS NOT NULL
""")
_NEWEST = select(func.coalesce(func.max(_r.written), 0))
_NAMES = (
    select(records.c.suffix, records.c.status)
    .where(
        records.c.prefix_id == bindparam("id"),
        records.c.suffix >= bindparam("first"),
        records.c.suffix <= bindparam("last"),
        func.length(records.c.suffix) == bindparam("octets"),
    )
    .order_by(records.c.suffix)
    .limit(bindparam("limit"))
)


def held_in(prefix: str, row: Sequence[Any]) -> HeldRange:
    """From status, version, sequence, written, template, blob."""
    status, version, sequence, written, template, blob = row
    rule = decode_blob(blob, Key(prefix, b""), STATUS_OF[status], version, sequence, template)
    return HeldRange(rule, parse_stored(rule.identifier.suffix), written)


def _checked(prefix: str, row: Sequence[Any]) -> HeldRange:
    """From shape, first, last and what `held_in` takes. Raises ValueError on a damaged row."""
    shape, first, last, *rest = row
    held = held_in(prefix, rest)
    kept = (shape.upper(), (first, last))  # whether suffixes fold is not known here
    if kept != (held.pattern.shape(), held.pattern.runs):
        raise ValueError(f"the range {held.name} is not found by its members")
    return held


def range_rows(put: Mapping[RangeKey, HeldRange], ids: Mapping[str, int]) -> list[tuple[Any, ...]]:
    """The columns of the table in order."""
    return [
        (
            ids[key.prefix],
            key.shape,
            key.first,
            held.pattern.runs[1],
            STATUS_NUMBER[held.rule.status],
            held.rule.version,
            held.rule.sequence,
            held.written,
            held.rule.template,
            encode_blob(held.rule, Key(key.prefix, b"")),
        )
        for key, held in put.items()
    ]


def members_in(rows: Sequence[Row], keys: Sequence[Key]) -> dict[int, Record]:
    """Records by number of the key, of what a look-up gave; see `Rows`."""
    found: dict[int, Record] = {}
    known: dict[tuple[str, bytes], HeldRange] = {}  # most names asked for are of few ranges
    for n, run, *row in rows:
        prefix = keys[n].prefix
        held = known.get((prefix, row[-1]))
        if held is None or held.rule.version != row[1] or held.rule.sequence != row[2]:
            held = known[prefix, row[-1]] = held_in(prefix, row)
        record = member_of(held, run)
        if record is not None:
            found[n] = record
    return found


async def range_shapes(connection: AsyncConnection, home: Home) -> list[bytes]:
    """In order; at most SHAPES_MAX."""
    rows = (await connection.execute(_SHAPES, {"id": home.id})).all()
    return [row[0] for row in rows]


async def _from(
    connection: AsyncConnection, home: Home, first: RangeKey, limit: int
) -> list[tuple[RangeKey, HeldRange]]:
    """Ranges of the prefix and shape of `first` that have a run >= its, in order."""
    place = {"id": home.id, "shape": first.shape, "run": first.first}
    rows = (await connection.execute(_AROUND, place)).all()
    rows = [*rows, *(await connection.execute(_FROM, {**place, "limit": limit})).all()]
    found = [
        (RangeKey(first.prefix, shape, run), held_in(first.prefix, row))
        for shape, run, _, *row in rows
    ]
    return [each for each in found if each[1].pattern.runs[1] >= first.first][:limit]


async def find_ranges(
    connection: AsyncConnection, home: Home, first: RangeKey, last: bytes, limit: int
) -> list[HeldRange]:
    found = await _from(connection, home, first, limit)
    return [held for key, held in found if key.first <= last]


async def list_ranges(
    connection: AsyncConnection, home: Home, after: RangeKey | None, limit: int
) -> list[HeldRange]:
    found: list[HeldRange] = []
    shape = b""
    if after is not None:
        shape = after.shape
        place = {"id": home.id, "shape": shape, "run": after.first, "limit": limit}
        rows = (await connection.execute(_FROM, place)).all()
        found = [_checked(home.prefix, row) for row in rows]
    if len(found) < limit:
        place = {"id": home.id, "shape": shape, "limit": limit - len(found)}
        rows = (await connection.execute(_LIST, place)).all()
        found += [_checked(home.prefix, row) for row in rows]
    return found


async def member_page(
    connection: AsyncConnection, home: Home, shapes: Sequence[bytes], after: bytes, limit: int
) -> Page:
    """The first members > `after`, at most `limit`."""
    near, end = await near_ranges(connection, home, shapes, after)
    return Page(*first_members(near, after, limit, end))


async def near_ranges(
    connection: AsyncConnection, home: Home, shapes: Sequence[bytes], after: bytes
) -> tuple[list[tuple[RangeKey, HeldRange]], bytes | None]:
    """The first ranges with members > `after`, and the name up to which they are all there are;
    None: all."""
    near: list[tuple[RangeKey, HeldRange]] = []
    end: bytes | None = None
    for shape in shapes:
        run = run_after(shape, after)
        if run is None:
            continue
        some = await _from(connection, home, RangeKey(home.prefix, shape, run), RANGES_PAGE)
        near += some
        if len(some) == RANGES_PAGE:
            last = shape.replace(bytes(len(run)), some[-1][1].pattern.runs[1], 1)
            end = last if end is None else min(end, last)
    return near, end


async def list_row_names(
    connection: AsyncConnection, home: Home, first: bytes, last: bytes, octets: int, limit: int
) -> list[tuple[bytes, bool]]:
    place = {"id": home.id, "first": first, "last": last, "octets": octets, "limit": limit}
    rows = (await connection.execute(_NAMES, place)).all()
    return [(suffix, status not in STATUS_OF) for suffix, status in rows]


async def newest_range_sequence(connection: AsyncConnection) -> int:
    return int((await connection.execute(_NEWEST)).scalar_one())
