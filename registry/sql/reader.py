"""Reading: rows into values. The functions work on any connection, inside a transaction or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import sqlalchemy
from sqlalchemy import Select, bindparam, func, select, tuple_, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from biaojie.account import ApiKey, Prefix, Role
from biaojie.change import Entry
from biaojie.errors import TamperedLog
from biaojie.identifier import Key
from biaojie.record import Record

from ..changelog import unpack_changes
from ..store import INDEXING_MAX, LOOK_UP_MAX, Found, ReceiptKey, StoredReceipt
from .blob import decode_blob
from .direct import Row, Rows, direct
from .tables import (
    PREFIX_STATUS_OF,
    STATUS_OF,
    api_keys,
    chain_head,
    changelog,
    prefixes,
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


_make_found: Callable[[type[Found], tuple[Prefix, Record]], Found] = tuple.__new__


def found_in(rows: Rows, keys: Sequence[Key]) -> list[Found]:
    """One Found per key, in order, made of what the database gave."""
    homed = {row[0]: _prefix(row[1:]) for row in rows.prefixes}
    without = {name: _without_row(homed.get(name)) for name in {key.prefix for key in keys}}
    found = [without[key.prefix] for key in keys]
    for n, status, version, sequence, template, blob, _ in rows.records:
        key = keys[n]
        record = decode_blob(blob, key, STATUS_OF[status], version, sequence, template)
        found[n] = _make_found(Found, (homed[key.prefix], record))
    return found


async def look_up(connection: AsyncConnection, keys: Sequence[Key]) -> list[Found]:
    if not keys:
        return []
    assert len(keys) <= LOOK_UP_MAX
    return found_in(await direct(connection).look_up(keys), keys)


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


def _api_key(row: sqlalchemy.Row[Any]) -> ApiKey:
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


async def head(connection: AsyncConnection) -> tuple[int, bytes]:
    sequence, hash_ = (await connection.execute(_HEAD)).one()
    return sequence, hash_


def receipts_in(
    rows: Sequence[Row], keys: Sequence[ReceiptKey], now: int
) -> dict[ReceiptKey, StoredReceipt]:
    """The wanted ones that have not expired.

    They were asked for by `key` alone, with which the primary key begins and which is as good
    as unique: little else comes along.
    """
    wanted = set(keys)
    return {
        at: StoredReceipt(fingerprint, reply, expires)
        for key, actor, fingerprint, reply, expires in rows
        if (at := ReceiptKey(actor, key)) in wanted and expires >= now
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
