"""Reading: rows into values. The functions work on any connection, inside a transaction or not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Row, Select, bindparam, func, select, tuple_, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from biaojie.account import ApiKey, Prefix, Role
from biaojie.change import Entry
from biaojie.errors import TamperedLog
from biaojie.identifier import Key
from biaojie.record import Record

from ..changelog import unpack_changes
from ..store import INDEXING_MAX, LOOK_UP_MAX, Found, ReceiptKey, StoredReceipt
from .blob import decode_blob
from .tables import (
    PREFIX_STATUS_OF,
    STATUS_OF,
    api_keys,
    chain_head,
    changelog,
    prefixes,
    receipts,
    records,
    value_index,
)

SCAN_ROWS = 10_000

_PREFIX = (
    prefixes.c.id,
    prefixes.c.spelling,
    prefixes.c.tenant,
    prefixes.c.status,
    prefixes.c.created,
    prefixes.c.version,
    prefixes.c.sequence,
    prefixes.c.searchable,
    prefixes.c.indexed_to.is_not(None),
)
_ENTRY = (
    changelog.c.sequence,
    changelog.c.time_ms,
    changelog.c.actor,
    changelog.c.action,
    changelog.c.prefix,
    changelog.c.count,
    changelog.c.root,
    changelog.c.previous,
    changelog.c.hash,
    changelog.c.changes,
)

# By hand, because it is the hot path and differs by database: the keys come as two arrays on
# PostgreSQL, as rows of VALUES on SQLite; `n` numbers them from 0. Without LATERAL and OFFSET 0,
# PostgreSQL may seek by half of the primary key and filter by the other half, which on a table
# that has grown since its statistics were taken reads the whole prefix for each key.
_ANSWER = """
SELECT w.n, p.id, p.spelling, p.tenant, p.status, p.created, p.version, p.sequence,
       p.searchable, p.indexed_to IS NOT NULL,
       r.status, r.version, r.sequence, r.template, r.blob
"""
_LOOK_UP_POSTGRESQL = (
    _ANSWER  # noqa: S608  (constants)
    + """
FROM (
    SELECT u.n - 1, u.prefix, u.suffix
    FROM unnest($1::text[], $2::bytea[]) WITH ORDINALITY AS u (prefix, suffix, n)
) AS w (n, prefix, suffix)
LEFT JOIN LATERAL (SELECT * FROM prefixes WHERE name = w.prefix OFFSET 0) AS p ON true
LEFT JOIN LATERAL (
    SELECT * FROM records WHERE prefix_id = p.id AND suffix = w.suffix OFFSET 0
) AS r ON true
"""
)
_LOOK_UP_SQLITE = (
    "WITH w (n, prefix, suffix) AS (VALUES {rows})"
    + _ANSWER
    + """
FROM w
LEFT JOIN prefixes AS p INDEXED BY prefixes_name_key ON p.name = w.prefix
LEFT JOIN records AS r ON r.prefix_id = p.id AND r.suffix = w.suffix
"""
)


@cache
def _look_up_sqlite(size: int) -> str:
    return _LOOK_UP_SQLITE.format(rows=",".join(f"({n},?,?)" for n in range(size)))


def look_up_statement(dialect: str, keys: Sequence[Key]) -> tuple[str, tuple[Any, ...]]:
    """The statement that finds `keys` (1 to 4,096) and its parameters."""
    if dialect == "postgresql":
        return _LOOK_UP_POSTGRESQL, ([k.prefix for k in keys], [k.suffix for k in keys])
    # Sizes are powers of two, so that few statements serve every number of keys.
    size = 1 << (len(keys) - 1).bit_length()
    parameters: list[str | bytes | None] = [part for key in keys for part in key]
    parameters += [None, None] * (size - len(keys))
    return _look_up_sqlite(size), tuple(parameters)


def _prefix(row: Sequence[Any]) -> Prefix:
    """From the columns of `_PREFIX`."""
    _, spelling, tenant, status, created, version, sequence, searchable, indexing = row
    return Prefix(
        spelling,
        tenant,
        PREFIX_STATUS_OF[status],
        created,
        version,
        sequence,
        tuple(searchable.split("\n")) if searchable else (),
        bool(indexing),
    )


def _record(key: Key, row: Sequence[Any]) -> Record:
    """From status, version, sequence, template, blob."""
    status, version, sequence, template, blob = row
    return decode_blob(blob, key, STATUS_OF[status], version, sequence, template)


def _without_row(prefix: Prefix | None) -> Found:
    """The answer for a name that has no row: the one place where another layer can know it."""
    return Found(prefix, None)


async def look_up(connection: AsyncConnection, keys: Sequence[Key]) -> list[Found]:
    if not keys:
        return []
    assert len(keys) <= LOOK_UP_MAX
    statement, parameters = look_up_statement(connection.dialect.name, keys)
    result = await connection.exec_driver_sql(statement, parameters)
    rows: Sequence[Sequence[Any]] = result.all()
    seen: dict[int, Prefix] = {}
    found = [_without_row(None)] * len(keys)
    for row in rows:
        n, prefix_id = row[0], row[1]
        if prefix_id is None:
            continue
        prefix = seen.get(prefix_id)
        if prefix is None:
            prefix = seen[prefix_id] = _prefix(row[1:10])
        found[n] = (
            _without_row(prefix) if row[10] is None else Found(prefix, _record(keys[n], row[10:]))
        )
    return found


_PREFIX_ID = select(prefixes.c.id).where(prefixes.c.name == bindparam("prefix"))
_LIST_RECORDS = (
    select(
        records.c.suffix,
        records.c.status,
        records.c.version,
        records.c.sequence,
        records.c.template,
        records.c.blob,
    )
    .where(
        records.c.prefix_id == _PREFIX_ID.scalar_subquery(),
        records.c.suffix > bindparam("after"),
    )
    .order_by(records.c.suffix)
    .limit(bindparam("limit"))
)


async def list_records(
    connection: AsyncConnection, prefix: str, after: bytes | None, limit: int
) -> list[Record]:
    page = {"prefix": prefix, "after": after or b"", "limit": limit}
    rows = (await connection.execute(_LIST_RECORDS, page)).all()
    return [_record(Key(prefix, row[0]), row[1:]) for row in rows]


_NAMED = prefixes.c.name.in_(bindparam("names", expanding=True))
_PREFIX_IDS = select(prefixes.c.name, prefixes.c.id).where(_NAMED)
_FIND_PREFIXES = select(prefixes.c.name, *_PREFIX).where(_NAMED)


async def prefix_ids(connection: AsyncConnection, names: Sequence[str]) -> dict[str, int]:
    rows = (await connection.execute(_PREFIX_IDS, {"names": names})).all()
    return {row[0]: row[1] for row in rows}


async def find_prefixes(connection: AsyncConnection, names: Sequence[str]) -> dict[str, Prefix]:
    rows = (await connection.execute(_FIND_PREFIXES, {"names": names})).all()
    return {row[0]: _prefix(row[1:]) for row in rows}


async def list_prefixes(
    connection: AsyncConnection, after: str | None, limit: int, tenant: str | None
) -> list[Prefix]:
    statement = (
        select(*_PREFIX)
        .where(prefixes.c.name > (after or ""))
        .order_by(prefixes.c.name)
        .limit(limit)
    )
    if tenant is not None:
        statement = statement.where(prefixes.c.tenant == tenant)
    return [_prefix(row) for row in (await connection.execute(statement)).all()]


_v = value_index.c
_INDEXED_TO = select(prefixes.c.indexed_to).where(prefixes.c.name == bindparam("prefix"))
# By hand, because SQLite must be told: after an ANALYZE of a young registry it reads them all.
_INDEXING = """
SELECT id, spelling, tenant, status, created, version, sequence, searchable, 1
FROM prefixes {hint} WHERE indexed_to IS NOT NULL ORDER BY name LIMIT {limit}
"""
_HINT = {"sqlite": "INDEXED BY prefixes_indexing_idx"}


@cache
def _matches(private: bool, of_one: bool) -> Select[Any]:
    """Each kind of row is one seek and a walk along the primary key, at most `limit` rows."""

    def rows(public: int) -> Select[Any]:
        place = (
            (_v.prefix == bindparam("prefix"), _v.suffix > bindparam("suffix"))
            if of_one
            else (tuple_(_v.prefix, _v.suffix) > tuple_(bindparam("prefix"), bindparam("suffix")),)
        )
        found = select(_v.prefix, _v.suffix).where(
            _v.digest == bindparam("digest"), _v.public == public, *place
        )
        return found.order_by(_v.prefix, _v.suffix).limit(bindparam("limit"))

    if not private:
        return rows(1)
    pages = [rows(public).subquery(f"page_{public}") for public in (0, 1)]
    both = union_all(*(select(page) for page in pages)).subquery()
    return select(both).order_by(both.c.prefix, both.c.suffix).limit(bindparam("limit"))


async def find_matches(
    connection: AsyncConnection,
    digest: bytes,
    *,
    private: bool,
    prefix: str | None,
    after: Key,
    limit: int,
) -> list[Key]:
    if prefix is not None:
        after = max(after, Key(prefix, b""))
        if after.prefix != prefix:
            return []
    place = {"prefix": after.prefix, "suffix": after.suffix}
    statement = _matches(private, prefix is not None)
    rows = await connection.execute(statement, {"digest": digest, "limit": limit, **place})
    return [Key(*row) for row in rows.all()]


async def list_indexing(connection: AsyncConnection) -> list[Prefix]:
    hint = _HINT.get(connection.dialect.name, "")
    rows = await connection.exec_driver_sql(_INDEXING.format(hint=hint, limit=INDEXING_MAX))
    return [_prefix(row) for row in rows.all()]


async def indexed_to(connection: AsyncConnection, prefix: str) -> bytes | None:
    to: bytes | None = await connection.scalar(_INDEXED_TO, {"prefix": prefix})
    return to


def _api_key(row: Row[Any]) -> ApiKey:
    role = Role(row.role)
    return ApiKey(row.id, row.tenant, role, row.label, row.created, row.revoked, row.digest)


async def find_key(connection: AsyncConnection, digest: bytes) -> ApiKey | None:
    statement = select(api_keys).where(api_keys.c.digest == digest)
    row = (await connection.execute(statement)).one_or_none()
    return None if row is None else _api_key(row)


async def find_keys_by_id(connection: AsyncConnection, ids: Sequence[str]) -> dict[str, ApiKey]:
    statement = select(api_keys).where(api_keys.c.id.in_(ids))
    return {row.id: _api_key(row) for row in (await connection.execute(statement)).all()}


async def list_keys(connection: AsyncConnection, after: str | None, limit: int) -> list[ApiKey]:
    statement = (
        select(api_keys).where(api_keys.c.id > (after or "")).order_by(api_keys.c.id).limit(limit)
    )
    return [_api_key(row) for row in (await connection.execute(statement)).all()]


def _entry(row: Sequence[Any]) -> Entry:
    """From the columns of `_ENTRY`, which are the fields of Entry in order."""
    *fields, packed = row
    try:
        changes = unpack_changes(packed)
    except ValueError as error:
        raise TamperedLog(
            f"Entry {fields[0]} of the change log cannot be read; it was edited.",
            f"变更日志第 {fields[0]} 条无法读取，已被改动。",
            sequence=fields[0],
        ) from error
    return Entry(*[*fields, changes])


async def list_changes(connection: AsyncConnection, after: int, limit: int) -> list[Entry]:
    at = changelog.c.sequence
    statement = select(*_ENTRY).where(at > after).order_by(at).limit(limit)
    return [_entry(row) for row in (await connection.execute(statement)).all()]


_HEAD = select(chain_head.c.sequence, chain_head.c.hash)
# The primary key begins with `key`, and a key is as good as unique: what little else comes
# along, of other actors or expired, is dropped afterwards.
_FIND_RECEIPTS = select(receipts).where(receipts.c.key.in_(bindparam("keys", expanding=True)))


async def head(connection: AsyncConnection) -> tuple[int, bytes]:
    sequence, hash_ = (await connection.execute(_HEAD)).one()
    return sequence, hash_


async def find_receipts(
    connection: AsyncConnection, keys: Sequence[ReceiptKey], now: int
) -> dict[ReceiptKey, StoredReceipt]:
    if not keys:
        return {}
    wanted = set(keys)
    rows = await connection.execute(_FIND_RECEIPTS, {"keys": sorted({at.key for at in wanted})})
    return {
        at: StoredReceipt(row.fingerprint, row.reply, row.expires)
        for row in rows.all()
        if (at := ReceiptKey(row.actor, row.key)) in wanted and row.expires >= now
    }


async def newest_prefix_sequence(connection: AsyncConnection) -> int:
    statement = select(func.coalesce(func.max(prefixes.c.sequence), 0))
    return int((await connection.execute(statement)).scalar_one())


async def scan_sequences(
    connection: AsyncConnection, after: tuple[int, bytes]
) -> tuple[int, tuple[int, bytes] | None]:
    """The greatest sequence in the next run of records, and the last key unless it was the end."""
    r = records.c
    statement = (
        select(r.prefix_id, r.suffix, r.sequence)
        .where(tuple_(r.prefix_id, r.suffix) > tuple_(*after))
        .order_by(r.prefix_id, r.suffix)
        .limit(SCAN_ROWS)
    )
    rows = (await connection.execute(statement)).all()
    greatest = max((row[2] for row in rows), default=0)
    return greatest, (rows[-1][0], rows[-1][1]) if len(rows) == SCAN_ROWS else None
