"""How the tables that grow are laid out on PostgreSQL: whole, in hash partitions, or distributed.

On demand and while they are empty, never by a revision: another layout takes a new database and
`biaojie move`. Tables that a later revision adds follow those that are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from .schema import UnfitDatabase
from .tables import metadata

_KEY = "prefix_id"
_LEADING = "records"
"""The table whose layout is that of all."""
_DISTRIBUTED_BY = {"value_index": "digest"}
"""Besides those with a `prefix_id`: a search asks for one digest under all prefixes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """`partitions`: hash partitions of each table, 0 for none. `distributed`: over the workers
    of Citus. Not both."""

    partitions: int = 0
    distributed: bool = False


def layout_of(connection: Connection) -> Layout:
    """How the registry is laid out; whole where there is none yet."""
    if connection.dialect.name != "postgresql" or not _exists(connection, _LEADING):
        return Layout()
    return Layout(_partitions(connection, _LEADING), _is_distributed(connection, _LEADING))


def lay_out(connection: Connection, layout: Layout) -> None:
    """Lay out each table that is not yet. Raises UnfitDatabase where that cannot be."""
    if layout == Layout():
        return
    if connection.dialect.name != "postgresql":
        raise _unfit("only PostgreSQL can lay tables out", "只有 PostgreSQL 支持分区或分布")
    if layout.partitions and layout.distributed:
        raise _unfit(
            "partitions and Citus exclude each other: its shards are the partitions",
            "分区与 Citus 不能同时使用：其分片即分区",
        )
    if layout.distributed and not _exists(connection, "pg_catalog.pg_dist_partition"):
        raise _unfit(
            "it has no Citus: CREATE EXTENSION citus, and add the workers",
            "数据库没有 Citus：请先 CREATE EXTENSION citus 并添加工作节点",
        )
    before = layout_of(connection)
    if before not in (Layout(), layout):
        raise _unfit(
            f"it is laid out another way already: {_shown(before)}",
            f"数据库已是另一种布局（{_shown(before)}）",
        )
    for table, by in _growing(connection):
        if layout.distributed and not _is_distributed(connection, table):
            _check_empty(connection, table)
            _distribute(connection, table, by)
        elif layout.partitions and by == _KEY and not _partitions(connection, table):
            _check_empty(connection, table)
            _partition(connection, table, layout.partitions)
    if layout.distributed and before != layout:
        _settle_workers(connection)


def _unfit(en: str, zh: str) -> UnfitDatabase:
    return UnfitDatabase(f"The tables were not laid out: {en}.", f"未更改表布局：{zh}。")


def _shown(layout: Layout) -> str:
    return "Citus" if layout.distributed else f"{layout.partitions} partitions"


def _growing(connection: Connection) -> Iterator[tuple[str, str]]:
    """Tables that grow with the identifiers, and the column they are split by; the leading one
    first, whose shards those of the others lie beside."""
    for table in sorted(metadata.sorted_tables, key=lambda table: table.name != _LEADING):
        by = _KEY if _KEY in table.primary_key.columns else _DISTRIBUTED_BY.get(table.name)
        if by is not None and _exists(connection, table.name):
            yield table.name, by


def _exists(connection: Connection, name: str) -> bool:
    return _one(connection, "SELECT to_regclass(:name) IS NOT NULL", name=name) is True


def _one(connection: Connection, statement: str, **parameters: object) -> Any:
    return connection.scalar(sa.text(statement), parameters)


def _partitions(connection: Connection, table: str) -> int:
    counted = (
        "SELECT count(*) FROM pg_partition_tree(to_regclass(:name)) WHERE isleaf AND level > 0"
    )
    return int(_one(connection, counted, name=table))


def _is_distributed(connection: Connection, table: str) -> bool:
    if not _exists(connection, "pg_catalog.pg_dist_partition"):
        return False
    known = "SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = to_regclass(:name))"
    return _one(connection, known, name=table) is True


def _check_empty(connection: Connection, table: str) -> None:
    if _one(connection, f'SELECT EXISTS (SELECT FROM "{table}")'):  # noqa: S608
        raise _unfit(
            f"{table} is not empty. Lay out a new database, then `biaojie move` this one there",
            f"表 {table} 非空；请对新数据库进行布局，再用 `biaojie move` 迁入",
        )


def _distribute(connection: Connection, table: str, by: str) -> None:
    together = "none" if table == _LEADING or by != _KEY else _LEADING
    _one(
        connection,
        "SELECT create_distributed_table(CAST(:name AS regclass), :by, colocate_with => :together)",
        name=table,
        by=by,
        together=together,
    )


def _settle_workers(connection: Connection) -> None:
    """Have the workers plan as our sessions do: see `postgresql.make_engine`."""
    name = connection.dialect.identifier_preparer.quote(
        _one(connection, "SELECT current_database()")
    )
    for setting in ("enable_seqscan", "enable_bitmapscan", "jit"):
        # Citus takes this to the workers, whose sessions know nothing of ours.
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET {setting} = off")


def _partition(connection: Connection, table: str, count: int) -> None:
    """Put a partitioned table with the same columns, keys and indexes in its place."""
    old = {"name": table}
    keys = connection.execute(
        sa.text(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE conrelid = to_regclass(:name) AND contype IN ('p', 'u')"
        ),
        old,
    ).all()
    indexes = connection.execute(
        sa.text(
            "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = to_regclass(:name)"
            " AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)"
        ),
        old,
    ).all()
    # Partitions do not take these from their table, which has no rows and may not have them.
    options = _one(
        connection,
        "SELECT array_to_string(reloptions, ', ') FROM pg_class WHERE oid = to_regclass(:name)",
        name=table,
    )
    kept = f" WITH ({options})" if options else ""
    made = [
        f'CREATE TABLE "{table}_new" (LIKE "{table}" INCLUDING ALL EXCLUDING INDEXES)'
        f" PARTITION BY HASH ({_KEY})",
        f'DROP TABLE "{table}"',
        f'ALTER TABLE "{table}_new" RENAME TO "{table}"',
        *(f'ALTER TABLE "{table}" ADD CONSTRAINT "{name}" {text}' for name, text in keys),
        *(text for (text,) in indexes),
        *(
            f'CREATE TABLE "{table}_{n}" PARTITION OF "{table}"'
            f" FOR VALUES WITH (MODULUS {count}, REMAINDER {n}){kept}"
            for n in range(count)
        ),
    ]
    for statement in made:
        connection.exec_driver_sql(statement)
