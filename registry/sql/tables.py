"""The tables, the same on SQLite and PostgreSQL, and what the numbers in them mean.

A change here needs a migration; a test compares the two. Text that is ordered or compared has
the collation "C" on PostgreSQL, so that order is octet order everywhere.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
)

from biaojie.account import PrefixStatus
from biaojie.record import Status

STATUS_NUMBER = {Status.DRAFT: 0, Status.ACTIVE: 1, Status.FROZEN: 2, Status.RETIRED: 3}
STATUS_OF = {number: status for status, number in STATUS_NUMBER.items()}
PREFIX_STATUS_NUMBER = {
    PrefixStatus.ACTIVE: 1,
    PrefixStatus.SUSPENDED: 2,
    PrefixStatus.DELEGATED: 3,
    PrefixStatus.REFERRED: 4,
    PrefixStatus.UNHOMED: 5,
}
PREFIX_STATUS_OF = {number: status for status, number in PREFIX_STATUS_NUMBER.items()}
PURGED = 9
"""Status of a row that is a marker: there is no record of this name, whatever lies beneath."""
IN_BLOCK = -1
"""In place of a status, where a look-up gives a block that the name may be in."""
assert len(STATUS_OF) == len(Status)
assert not {PURGED, IN_BLOCK} & STATUS_OF.keys()
assert len(PREFIX_STATUS_OF) == len(PrefixStatus)

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    }
)


def _exact() -> Text:
    return Text().with_variant(Text(collation="C"), "postgresql")


def _big() -> BigInteger:
    # Only INTEGER PRIMARY KEY is SQLite's own row number; its integers have 64 bits anyway.
    return BigInteger().with_variant(Integer, "sqlite")


prefixes = Table(
    "prefixes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", _exact(), nullable=False),
    Column("spelling", Text, nullable=False),
    Column("tenant", _exact(), nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("created", _big(), nullable=False),
    Column("version", Integer, nullable=False),
    Column("sequence", _big(), nullable=False),
    Column("searchable", Text),
    Column("indexed_to", LargeBinary),
    Index("prefixes_name_key", "name", unique=True),
)
"""`searchable`: types, one a line; NULL for none. `indexed_to`: the suffix up to which their
rows in `value_index` are complete; NULL when they all are."""
Index(
    "prefixes_indexing_idx",
    prefixes.c.name,
    postgresql_where=prefixes.c.indexed_to.is_not(None),
    sqlite_where=prefixes.c.indexed_to.is_not(None),
)

records = Table(
    "records",
    metadata,
    Column("prefix_id", Integer, primary_key=True, autoincrement=False),
    Column("suffix", LargeBinary, primary_key=True),
    Column("status", SmallInteger, nullable=False),
    Column("version", Integer, nullable=False),
    Column("sequence", _big(), nullable=False),
    Column("template", Text),
    Column("blob", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

blocks = Table(
    "blocks",
    metadata,
    Column("prefix_id", Integer, primary_key=True, autoincrement=False),
    Column("first_suffix", LargeBinary, primary_key=True),
    Column("last_suffix", LargeBinary, nullable=False),
    Column("count", Integer, nullable=False),
    Column("sequence", _big(), nullable=False),
    Column("blob", LargeBinary, nullable=False),
    Index(None, "sequence"),
)
"""See registry.blocks. With row numbers on SQLite, unlike the other tables: a tree that keeps
these rows in its inner pages has seven branches to a page, the one of the key alone hundreds."""

ranges = Table(
    "ranges",
    metadata,
    Column("prefix_id", Integer, primary_key=True, autoincrement=False),
    Column("shape", LargeBinary, primary_key=True),
    Column("first", LargeBinary, primary_key=True),
    Column("last", LargeBinary, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("version", Integer, nullable=False),
    Column("sequence", _big(), nullable=False),
    Column("written", _big(), nullable=False),
    Column("template", Text),
    Column("blob", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""See registry.ranges. `first` and `last` are runs; the pattern is the suffix in the blob."""

value_index = Table(
    "value_index",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("public", SmallInteger, primary_key=True, autoincrement=False),
    Column("prefix", _exact(), primary_key=True),
    Column("suffix", LargeBinary, primary_key=True),
    sqlite_with_rowid=False,
)
"""See registry.matching.Match. In this order, one seek finds a value under all prefixes."""

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", _exact(), primary_key=True),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("tenant", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("created", _big(), nullable=False),
    Column("revoked", _big(), nullable=False),
)

receipts = Table(
    "receipts",
    metadata,
    Column("key", _exact(), primary_key=True),
    Column("actor", _exact(), primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("reply", LargeBinary, nullable=False),
    Column("expires", _big(), nullable=False),
    Index(None, "expires"),
    sqlite_with_rowid=False,
)

changelog = Table(
    "changelog",
    metadata,
    Column("sequence", _big(), primary_key=True, autoincrement=False),
    Column("time_ms", _big(), nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("prefix", Text, nullable=False),
    Column("count", Integer, nullable=False),
    Column("root", LargeBinary, nullable=False),
    Column("previous", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("changes", LargeBinary, nullable=False),
    Column("shift", LargeBinary),
)
"""`shift`: see registry.census; NULL where a program that knew nothing of it wrote the entry."""

chain_head = Table(
    "chain_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("sequence", _big(), nullable=False),
    Column("hash", LargeBinary, nullable=False),
)
"""One row, id 1, made by the first migration."""


statistics = Table(
    "statistics",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("prefix", _exact(), primary_key=True),
    Column("action", _exact(), primary_key=True),
    Column("count", _big(), nullable=False),
    sqlite_with_rowid=False,
)
"""See registry.statistics. `day` counts from 1970-01-01 UTC, 0 stands for all days; `prefix` is
folded, empty for all together."""

statistics_head = Table(
    "statistics_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("sequence", _big(), nullable=False),
    Column("census", _big()),
)
"""One row, id 1: the newest entries of the change log that `statistics` and `census` count; no
`census` where entries lack their shift, until everything is counted anew."""

census = Table(
    "census",
    metadata,
    Column("prefix", _exact(), primary_key=True),
    Column("template", _exact(), primary_key=True),
    Column("layer", _exact(), primary_key=True),
    Column("state", _exact(), primary_key=True),
    Column("count", _big(), nullable=False),
    sqlite_with_rowid=False,
)
"""See registry.census; `prefix` is empty for all together."""


rules = Table(
    "rules",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
"""What was decided at first use and holds for ever, because the stored keys depend on it."""

_ARRAY = {
    SmallInteger: "smallint[]",
    Integer: "int[]",
    BigInteger: "bigint[]",
    Text: "text[]",
    LargeBinary: "bytea[]",
}


def upsert(
    table: Table, dialect: str, *key: str, rows: int = 1, alike: Collection[str] = ()
) -> str:
    """INSERT … ON CONFLICT (key) DO UPDATE of every column but a number made by the database.

    Takes the columns in the table's order. On PostgreSQL one array for each, which is faster
    there than row after row, save for those that are `alike` in all rows; on SQLite the fields
    of `rows` rows, one row after the other.
    """
    columns = [column for column in table.columns if column is not table.autoincrement_column]
    names = [column.name for column in columns]
    if dialect == "postgresql":
        typed = [f"${n}::{_ARRAY[type(c.type)]}" for n, c in enumerate(columns, 1)]
        fields = [
            as_array.removesuffix("[]") if name in alike else name
            for name, as_array in zip(names, typed, strict=True)
        ]
        own = [name for name in names if name not in alike]
        arrays = [as_array for name, as_array in zip(names, typed, strict=True) if name in own]
        source = f"SELECT {', '.join(fields)}"
        if own:
            source += f" FROM unnest({', '.join(arrays)}) AS row ({', '.join(own)})"
    else:
        source = "VALUES " + ", ".join([f"({', '.join('?' * len(columns))})"] * rows)
    replaced = [f"{name} = excluded.{name}" for name in names if name not in key]
    return (
        f"INSERT INTO {table.name} ({', '.join(names)}) {source}"
        f" ON CONFLICT ({', '.join(key)}) DO "
        + (f"UPDATE SET {', '.join(replaced)}" if replaced else "NOTHING")
    )
