"""The tables of statistics: the change log is read apart from the commits that write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Select, bindparam, case, delete, func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from biaojie.record import Status

from ..census import Kind, Layer, Shift
from ..statistics import (
    ENTRIES_MAX,
    OF_MANY,
    Cell,
    Census,
    Logged,
    Octets,
    Statistics,
    Templates,
    may_leave_ranges,
)
from .tables import census, changelog, metadata, prefixes, statistics, statistics_head

_c, _s, _h, _n = changelog.c, statistics.c, statistics_head.c, census.c
_MIXED = or_(_c.action.in_(["", *OF_MANY]), _c.prefix == "")
_ENTRIES = (
    select(
        _c.sequence,
        _c.time_ms,
        _c.action,
        _c.prefix,
        _c.count,
        case((_MIXED, _c.changes)),
        _c.shift,
    )
    .where(_c.sequence > bindparam("after"))
    .order_by(_c.sequence)
    .limit(ENTRIES_MAX)
)
_CHANGES = select(_c.sequence, _c.changes).where(
    _c.sequence.in_(bindparam("sequences", expanding=True))
)
_COUNTED = select(_h.sequence, _h.census).where(_h.id == 1)
_MOVE = (
    update(statistics_head)
    .where(
        _h.id == 1,
        _h.sequence == bindparam("before"),
        _h.census.is_not_distinct_from(bindparam("census_before", type_=_h.census.type)),
    )
    .values(sequence=bindparam("to"), census=bindparam("census_to"))
)
_ADD = text(
    "INSERT INTO statistics (day, prefix, action, count) VALUES (:day, :prefix, :action, :count)"
    " ON CONFLICT (day, prefix, action) DO UPDATE SET count = statistics.count + excluded.count"
)
_READ = select(_s.day, _s.prefix, _s.action, _s.count).where(
    _s.day.in_(bindparam("days", expanding=True)),
    _s.prefix.in_(bindparam("prefixes", expanding=True)),
)


_ADD_CENSUS = text(
    "INSERT INTO census (prefix, template, layer, state, count)"
    " VALUES (:prefix, :template, :layer, :state, :count)"
    " ON CONFLICT (prefix, template, layer, state)"
    " DO UPDATE SET count = census.count + excluded.count"
)
_READ_CENSUS = (
    select(_n.prefix, _n.layer, _n.state, func.sum(_n.count))
    .where(_n.prefix.in_(bindparam("prefixes", expanding=True)))
    .group_by(_n.prefix, _n.layer, _n.state)
)
_SUM = func.sum(_n.count)
_TEMPLATES = (
    select(_n.template, _SUM)
    .group_by(_n.template)
    .having(_SUM > 0)
    .order_by(_SUM.desc(), _n.template)
    .limit(bindparam("limit"))
)
_OF_PREFIX = _TEMPLATES.where(_n.prefix == bindparam("prefix"))
_OF_TENANT = _TEMPLATES.join_from(census, prefixes, prefixes.c.name == _n.prefix).where(
    prefixes.c.tenant == bindparam("tenant")
)


class Heads(NamedTuple):
    """The newest entries that are counted; `census` is None if that of old ones is not known."""

    sequence: int
    census: int | None


async def heads(connection: AsyncConnection) -> Heads:
    return Heads(*(await connection.execute(_COUNTED)).one())


async def uncounted(connection: AsyncConnection) -> tuple[Heads, list[Logged]]:
    """Up to which entry all are counted, and the entries that come next."""
    counted = await heads(connection)
    after = counted.sequence
    if counted.census is not None:
        after = min(after, counted.census)
    rows = (await connection.execute(_ENTRIES, {"after": after})).all()
    entries = [Logged(*row) for row in rows]
    # Their number counts these changes too, which say nothing that is counted.
    leaving = [entry.sequence for entry in entries if may_leave_ranges(entry)]
    if leaving:
        found = (await connection.execute(_CHANGES, {"sequences": leaving})).all()
        changes = {row.sequence: row.changes for row in found}
        entries = [e._replace(changes=changes.get(e.sequence, e.changes)) for e in entries]
    return counted, entries


async def move(connection: AsyncConnection, before: Heads, to: Heads) -> bool:
    """Whether nobody else has counted meanwhile."""
    moved = {
        "before": before.sequence,
        "census_before": before.census,
        "to": to.sequence,
        "census_to": to.census,
    }
    return (await connection.execute(_MOVE, moved)).rowcount == 1


async def add(connection: AsyncConnection, counts: Mapping[Cell, int]) -> None:
    rows = [{**cell._asdict(), "count": number} for cell, number in sorted(counts.items())]
    if rows:
        await connection.execute(_ADD, rows)


async def add_census(connection: AsyncConnection, shift: Shift) -> None:
    rows = [{**kind._asdict(), "count": number} for kind, number in sorted(shift.items()) if number]
    if rows:
        await connection.execute(_ADD_CENSUS, rows)


async def replace_census(connection: AsyncConnection, counted: Shift, sequence: int) -> None:
    """By what there was after this entry."""
    await connection.execute(delete(census))
    await add_census(connection, counted)
    await connection.execute(update(statistics_head).where(_h.id == 1).values(census=sequence))


async def _agreeing(
    connection: AsyncConnection, statement: Select[Any], parameters: Mapping[str, Any]
) -> tuple[Heads, list[tuple[Any, ...]]]:
    """Numbers, and up to where they are counted: none was added in between."""
    while True:
        counted = await heads(connection)
        rows = (await connection.execute(statement, parameters)).all()
        if counted == await heads(connection):
            return counted, [tuple(row) for row in rows]


async def read(
    connection: AsyncConnection, prefixes: Sequence[str], days: Sequence[int]
) -> Statistics:
    wanted = {"prefixes": prefixes, "days": days}
    counted, rows = await _agreeing(connection, _READ, wanted)
    return Statistics(
        counted.sequence,
        {Cell(day, prefix, action): number for day, prefix, action, number in rows},
    )


async def read_census(connection: AsyncConnection, prefixes: Sequence[str]) -> Census:
    counted, rows = await _agreeing(connection, _READ_CENSUS, {"prefixes": prefixes})
    if counted.census != counted.sequence:
        return Census(counted.sequence, None)
    counts = {
        Kind(prefix, "", Layer(layer), Status(state)): int(number)
        for prefix, layer, state, number in rows
        if number
    }
    return Census(counted.sequence, counts)


async def read_templates(
    connection: AsyncConnection, prefix: str, tenant: str | None, limit: int
) -> Templates:
    statement, of = (_OF_PREFIX, {"prefix": prefix})
    if tenant is not None:
        statement, of = (_OF_TENANT, {"tenant": tenant})
    counted, rows = await _agreeing(connection, statement, {**of, "limit": limit})
    if counted.census != counted.sequence:
        return Templates(counted.sequence, None)
    return Templates(counted.sequence, [(template, int(number)) for template, number in rows])


# By table would be a walk through all pages on SQLite.
_FILE = text("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()")
# A table in partitions is empty itself.
_OF_PARTS = "(SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree(c.oid))"
_TABLES = f"""
SELECT c.relname, coalesce({_OF_PARTS}, pg_total_relation_size(c.oid))
FROM pg_class AS c WHERE c.oid = ANY(CAST(:names AS text[])::regclass[])
"""  # noqa: S608  (constants)
_SHARDED = """
SELECT table_name::text, citus_total_relation_size(table_name) FROM citus_tables
WHERE table_name = ANY(CAST(:names AS text[])::regclass[])
"""


async def octets(connection: AsyncConnection, *, distributed: bool = False) -> Octets:
    if connection.dialect.name == "sqlite":
        return Octets(int((await connection.execute(_FILE)).scalar_one()))
    names = {"names": list(metadata.tables)}
    tables = {row[0]: int(row[1]) for row in (await connection.execute(text(_TABLES), names)).all()}
    if distributed:
        sharded = (await connection.execute(text(_SHARDED), names)).all()
        tables |= {row[0]: int(row[1]) for row in sharded}
    tables = dict(sorted(tables.items()))
    return Octets(sum(tables.values()), tables)
