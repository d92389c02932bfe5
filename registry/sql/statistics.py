"""The table of statistics: the change log is read apart from the commits that write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import bindparam, case, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ..statistics import ENTRIES_MAX, OF_MANY, Cell, Logged, Octets, Statistics
from .tables import changelog, metadata, statistics, statistics_head

_c, _s = changelog.c, statistics.c
_MIXED = or_(_c.action.in_(["", *OF_MANY]), _c.prefix == "")
_ENTRIES = (
    select(_c.sequence, _c.time_ms, _c.action, _c.prefix, _c.count, case((_MIXED, _c.changes)))
    .where(_c.sequence > bindparam("after"))
    .order_by(_c.sequence)
    .limit(ENTRIES_MAX)
)
_COUNTED = select(statistics_head.c.sequence).where(statistics_head.c.id == 1)
_MOVE = (
    update(statistics_head)
    .where(statistics_head.c.id == 1, statistics_head.c.sequence == bindparam("before"))
    .values(sequence=bindparam("to"))
)
_ADD = text(
    "INSERT INTO statistics (day, prefix, action, count) VALUES (:day, :prefix, :action, :count)"
    " ON CONFLICT (day, prefix, action) DO UPDATE SET count = statistics.count + excluded.count"
)
_READ = select(_s.day, _s.prefix, _s.action, _s.count).where(
    _s.day.in_(bindparam("days", expanding=True)),
    _s.prefix.in_(bindparam("prefixes", expanding=True)),
)


async def uncounted(connection: AsyncConnection) -> tuple[int, list[Logged]]:
    """Up to which entry all are counted, and the entries that come next."""
    counted = int((await connection.execute(_COUNTED)).scalar_one())
    rows = (await connection.execute(_ENTRIES, {"after": counted})).all()
    return counted, [Logged(*row) for row in rows]


async def move(connection: AsyncConnection, before: int, to: int) -> bool:
    """Whether nobody else has counted meanwhile."""
    return (await connection.execute(_MOVE, {"before": before, "to": to})).rowcount == 1


async def add(connection: AsyncConnection, counts: Mapping[Cell, int]) -> None:
    rows = [{**cell._asdict(), "count": number} for cell, number in sorted(counts.items())]
    if rows:
        await connection.execute(_ADD, rows)


async def read(
    connection: AsyncConnection, prefixes: Sequence[str], days: Sequence[int]
) -> Statistics:
    # Before the numbers: what is added in between would not agree with it.
    while True:
        counted = int((await connection.execute(_COUNTED)).scalar_one())
        rows = (await connection.execute(_READ, {"prefixes": prefixes, "days": days})).all()
        if counted == int((await connection.execute(_COUNTED)).scalar_one()):
            return Statistics(counted, {Cell(row[0], row[1], row[2]): row[3] for row in rows})


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
