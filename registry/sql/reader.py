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

from ..blocks import Block
from ..changelog import unpack_changes
from ..layers import Page, merged, page_of
from ..members import Members
from ..store import (
    BLOCKS_MAX,
    INDEXING_MAX,
    LOOK_UP_MAX,
    Found,
    FoundInBlock,
    FoundInRange,
    ReceiptKey,
    StoredReceipt,
)
from ..store import Row as StoreRow
from .blob import decode_blob
from .direct import Direct, Home, Row, Rows, direct
from .ranges import member_page, members_in, newest_range_sequence, range_shapes
from .tables import (
    IN_BLOCK,
    PREFIX_STATUS_OF,
    PURGED,
    STATUS_OF,
    api_keys,
    blocks,
    chain_head,
    changelog,
    prefixes,
    records,
    value_index,
)

SCAN_ROWS = 10_000
_MEMBERS_USUAL = 32

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


def _row(prefix: str, row: Sequence[Any]) -> StoreRow:
    """From suffix, status, version, sequence, template, blob."""
    suffix, status, version, sequence, template, blob = row
    if status == PURGED:
        return StoreRow(suffix, None, sequence)
    key = Key(prefix, suffix)
    record = decode_blob(blob, key, STATUS_OF[status], version, sequence, template)
    return StoreRow(suffix, record, sequence)


class _Beneath:
    """Answers for names that have no row of a record, from what a look-up gives instead."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, Members] = {}  # names asked for together are often neighbours

    def record(self, key: Key, row: Row) -> Record | None:
        _, status, count, sequence, _, blob, _ = row
        if status != IN_BLOCK:
            assert status == PURGED
            return None
        members = self._blocks.get(blob)
        if members is None:
            members = self._blocks[blob] = Members(blob, count, sequence)
        return members.find(key.suffix)


_make_found: Callable[[type[Found], tuple[Prefix, Record]], Found] = tuple.__new__


def found_in(rows: Rows, keys: Sequence[Key]) -> list[Found]:
    """One Found per key, in order, made of what the database gave."""
    homed = {row[0]: _prefix(row[1:]) for row in rows.prefixes}
    without = {name: Found(homed.get(name), None) for name in {key.prefix for key in keys}}
    found = [without[key.prefix] for key in keys]
    beneath: _Beneath | None = None
    for row in rows.records:
        n, number, version, sequence, template, blob, _ = row
        key = keys[n]
        status = STATUS_OF.get(number)
        kind: type[Found] = Found
        if status is not None:
            record = decode_blob(blob, key, status, version, sequence, template)
        else:
            if beneath is None:
                beneath = _Beneath()
            lower = beneath.record(key, row)
            if lower is None:
                continue
            record, kind = lower, FoundInBlock
        found[n] = _make_found(kind, (homed[key.prefix], record))
    if rows.ranges:
        hidden = {row[0] for row in rows.records if row[1] == PURGED}
        for n, member in members_in(rows.ranges, keys).items():
            if found[n].record is None and n not in hidden:
                found[n] = _make_found(FoundInRange, (homed[keys[n].prefix], member))
    return found


async def beneath(driver: Direct, keys: Sequence[Key], ids: Sequence[int]) -> list[Record | None]:
    """What blocks have for each key, given the numbers of its prefix."""
    suffixes = [key.suffix for key in keys]
    found: list[Record | None] = [None] * len(keys)
    blocks = _Beneath()
    for row in await driver.in_blocks(ids, suffixes):
        found[row[0]] = blocks.record(keys[row[0]], row) or found[row[0]]
    return found


async def find_in_blocks(connection: AsyncConnection, keys: Sequence[Key]) -> list[Record | None]:
    assert len(keys) <= LOOK_UP_MAX
    ids = await prefix_ids(connection, list({key.prefix for key in keys}))
    homed = [n for n, key in enumerate(keys) if key.prefix in ids]
    found: list[Record | None] = [None] * len(keys)
    if homed:
        some = [keys[n] for n in homed]
        lower = await beneath(direct(connection), some, [ids[key.prefix] for key in some])
        for n, record in zip(homed, lower, strict=True):
            found[n] = record
    return found


async def look_up(connection: AsyncConnection, keys: Sequence[Key]) -> list[Found]:
    if not keys:
        return []
    assert len(keys) <= LOOK_UP_MAX
    return found_in(await direct(connection).look_up(keys), keys)


_LIST_ROWS = (
    select(
        records.c.suffix,
        records.c.status,
        records.c.version,
        records.c.sequence,
        records.c.template,
        records.c.blob,
    )
    .where(
        records.c.prefix_id == bindparam("id"),
        records.c.suffix > bindparam("after"),
    )
    .order_by(records.c.suffix)
    .limit(bindparam("limit"))
)


_b = blocks.c
_OF_PREFIX = select(_b.first_suffix, _b.last_suffix, _b.count, _b.sequence, _b.blob).where(
    _b.prefix_id == bindparam("id")
)
_LIST_BLOCKS = (
    _OF_PREFIX.where(_b.first_suffix > bindparam("after"))
    .order_by(_b.first_suffix)
    .limit(bindparam("limit"))
)
_BLOCKS_IN = _LIST_BLOCKS.where(_b.first_suffix <= bindparam("last"))
_BLOCK_AT = (
    _OF_PREFIX.where(_b.first_suffix <= bindparam("after"))
    .order_by(_b.first_suffix.desc())
    .limit(1)
)


async def list_rows(
    connection: AsyncConnection, home: Home, after: bytes | None, limit: int
) -> list[StoreRow]:
    page = {"id": home.id, "after": after or b"", "limit": limit}
    rows = (await connection.execute(_LIST_ROWS, page)).all()
    return [_row(home.prefix, row) for row in rows]


async def list_blocks(
    connection: AsyncConnection, home: Home, after: bytes | None, limit: int
) -> list[Block]:
    assert limit <= BLOCKS_MAX
    page = {"id": home.id, "after": after or b"", "limit": limit}
    return [Block(*row) for row in (await connection.execute(_LIST_BLOCKS, page)).all()]


async def block_at(connection: AsyncConnection, home: Home, suffix: bytes) -> Block | None:
    """The last block that begins <= `suffix`."""
    place = {"id": home.id, "after": suffix}
    row = (await connection.execute(_BLOCK_AT, place)).one_or_none()
    return None if row is None else Block(*row)


async def blocks_in(
    connection: AsyncConnection, home: Home, first: bytes, last: bytes
) -> list[Block]:
    at = await block_at(connection, home, first)
    found = [at] if at is not None and at.last >= first else []
    place = {"id": home.id, "after": first, "last": last, "limit": BLOCKS_MAX - len(found)}
    return found + [Block(*row) for row in (await connection.execute(_BLOCKS_IN, place)).all()]


async def _block_page(connection: AsyncConnection, home: Home, after: bytes, limit: int) -> Page:
    """At least `limit` members of blocks > `after`, or all there are, or those of BLOCKS_MAX."""
    at = await block_at(connection, home, after)
    found = [at] if at is not None and at.last > after else []
    wanted = min(limit // _MEMBERS_USUAL + 1, BLOCKS_MAX)
    listed = await list_blocks(connection, home, after, wanted)
    return page_of([*found, *listed], after, more=len(listed) == wanted)


async def list_records(
    connection: AsyncConnection,
    home: Home,
    after: bytes | None,
    limit: int,
    *,
    ranged: bool = True,
) -> list[Record]:
    """`ranged`: with the members of ranges."""
    listed = await list_layers(connection, home, after, limit, ranged=ranged)
    return [record for _, record in listed]


async def list_layers(
    connection: AsyncConnection,
    home: Home,
    after: bytes | None,
    limit: int,
    *,
    ranged: bool = True,
) -> list[tuple[bytes, Record]]:
    """Folded suffixes and records of all layers."""
    shapes = await range_shapes(connection, home) if ranged else []
    listed: list[tuple[bytes, Record]] = []
    at = after or b""
    while len(listed) < limit:
        missing = limit - len(listed)
        # Rows first: compaction, which may come between, makes blocks of them, never the reverse.
        rows = await list_rows(connection, home, at, missing)
        end = rows[-1].suffix if len(rows) == missing else None
        upper = Page([(row.suffix, row.record) for row in rows], end)
        lower = await _block_page(connection, home, at, missing)
        pages = [upper, lower]
        if shapes:
            most = missing + len(upper.items) + len(lower.items)
            pages.append(await member_page(connection, home, shapes, at, most))
        records, on = merged(pages, missing)
        listed += records
        if on is None:
            break
        at = on
    return listed


_NAMED = prefixes.c.name.in_(bindparam("names", expanding=True))
_PREFIX_IDS = select(prefixes.c.name, prefixes.c.id).where(_NAMED)
_FIND_PREFIXES = select(prefixes.c.name, *_PREFIX).where(_NAMED)


async def prefix_ids(connection: AsyncConnection, names: Sequence[str]) -> dict[str, int]:
    rows = (await connection.execute(_PREFIX_IDS, {"names": names})).all()
    return {row[0]: row[1] for row in rows}


_HOME = select(prefixes.c.id).where(prefixes.c.name == bindparam("prefix"))


async def home_of(connection: AsyncConnection, prefix: str) -> Home:
    return Home(prefix, await connection.scalar(_HOME, {"prefix": prefix}) or 0)


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
    """Of prefixes, blocks and ranges."""
    newest = 0
    for column in (prefixes.c.sequence, blocks.c.sequence):
        statement = select(func.coalesce(func.max(column), 0))
        newest = max(newest, int((await connection.execute(statement)).scalar_one()))
    return max(newest, await newest_range_sequence(connection))


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
