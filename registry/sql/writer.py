"""Writing: one transaction, holding the registry's only write lock from its first statement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from biaojie.account import ApiKey, Prefix
from biaojie.change import Entry
from biaojie.identifier import Key, fold_prefix
from biaojie.record import Record

from ..changelog import pack_changes
from ..store import Found, ReceiptKey, StoredReceipt
from . import reader
from .blob import encode_blob
from .faults import translated
from .tables import (
    PREFIX_STATUS_NUMBER,
    STATUS_NUMBER,
    api_keys,
    chain_head,
    changelog,
    prefixes,
    receipts,
    records,
    upsert,
)

_upsert = cache(upsert)
# By hand, because it is the hot path and differs by database: one array per column on
# PostgreSQL, one row after the other on SQLite.
_REPLACE = """
ON CONFLICT (prefix_id, suffix) DO UPDATE SET status = excluded.status,
    version = excluded.version, sequence = excluded.sequence, template = excluded.template,
    blob = excluded.blob
"""
_PUT_POSTGRESQL = (
    "INSERT INTO records (prefix_id, suffix, status, version, sequence, template, blob)"  # noqa: S608
    " SELECT * FROM unnest($1::int[], $2::bytea[], $3::smallint[], $4::int[], $5::bigint[],"
    " $6::text[], $7::bytea[])" + _REPLACE
)
_PUT_SQLITE = (
    "INSERT INTO records (prefix_id, suffix, status, version, sequence, template, blob)"  # noqa: S608
    " VALUES (?, ?, ?, ?, ?, ?, ?)" + _REPLACE
)
_PURGE = delete(records).where(
    records.c.prefix_id == bindparam("at_prefix"), records.c.suffix == bindparam("at_suffix")
)
_FORGET = delete(receipts).where(
    receipts.c.key == bindparam("at_key"), receipts.c.actor == bindparam("at_actor")
)
_REVOKE = (
    update(api_keys).where(api_keys.c.id == bindparam("at")).values(revoked=bindparam("since"))
)


class SqlTransaction:
    """See registry.store.Transaction. Not for use by two tasks at once."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._dialect = connection.dialect.name
        self._prefix_ids: dict[str, int] = {}

    async def look_up(self, keys: Sequence[Key]) -> list[Found]:
        with translated():
            return await reader.look_up(self._connection, keys)

    async def find_prefixes(self, names: Sequence[str]) -> dict[str, Prefix]:
        with translated():
            return await reader.find_prefixes(self._connection, names)

    async def find_keys_by_id(self, ids: Sequence[str]) -> dict[str, ApiKey]:
        with translated():
            return await reader.find_keys_by_id(self._connection, ids)

    async def find_receipts(
        self, keys: Sequence[ReceiptKey], now: int
    ) -> dict[ReceiptKey, StoredReceipt]:
        with translated():
            return await reader.find_receipts(self._connection, keys, now)

    async def head(self) -> tuple[int, bytes]:
        with translated():
            return await reader.head(self._connection)

    async def _execute(self, statement: Any, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            with translated():
                await self._connection.execute(statement, rows)

    async def _ids(self, names: Iterable[str]) -> dict[str, int]:
        missing = set(names) - self._prefix_ids.keys()
        if missing:
            with translated():
                self._prefix_ids |= await reader.prefix_ids(self._connection, list(missing))
        return self._prefix_ids

    async def put_prefixes(self, prefixes_: Iterable[Prefix]) -> None:
        rows = [
            {
                "name": fold_prefix(p.name),
                "spelling": p.name,
                "tenant": p.tenant,
                "status": PREFIX_STATUS_NUMBER[p.status],
                "created": p.created,
                "version": p.version,
                "sequence": p.sequence,
            }
            for p in prefixes_
        ]
        await self._execute(_upsert(prefixes, self._dialect, "name"), rows)

    async def put_records(self, records_: Mapping[Key, Record]) -> None:
        ids = await self._ids(key.prefix for key in records_)
        for key in records_:
            assert key.prefix in ids, f"prefix {key.prefix} is not homed"
        if not records_:
            return
        rows = [
            (
                ids[key.prefix],
                key.suffix,
                STATUS_NUMBER[record.status],
                record.version,
                record.sequence,
                record.template,
                encode_blob(record, key),
            )
            for key, record in records_.items()
        ]
        with translated():
            if self._dialect == "postgresql":
                columns = tuple(map(list, zip(*rows, strict=True)))
                await self._connection.exec_driver_sql(_PUT_POSTGRESQL, columns)
            else:
                await self._connection.exec_driver_sql(_PUT_SQLITE, rows)

    async def purge_records(self, keys: Iterable[Key]) -> None:
        gone = list(keys)
        ids = await self._ids(key.prefix for key in gone)
        await self._execute(
            _PURGE,
            [
                {"at_prefix": ids[key.prefix], "at_suffix": key.suffix}
                for key in gone
                if key.prefix in ids
            ],
        )

    async def put_keys(self, keys: Mapping[bytes, ApiKey]) -> None:
        rows = [
            {
                "id": key.id,
                "digest": digest,
                "tenant": key.tenant,
                "role": key.role.value,
                "label": key.label,
                "created": key.created,
                "revoked": key.revoked,
            }
            for digest, key in keys.items()
        ]
        await self._execute(insert(api_keys), rows)

    async def revoke_keys(self, revoked: Mapping[str, int]) -> None:
        rows = [{"at": id_, "since": since} for id_, since in revoked.items()]
        await self._execute(_REVOKE, rows)

    async def put_receipts(self, receipts_: Mapping[ReceiptKey, StoredReceipt]) -> None:
        rows = [
            {
                "actor": at.actor,
                "key": at.key,
                "fingerprint": kept.fingerprint,
                "reply": kept.reply,
                "expires": kept.expires,
            }
            for at, kept in receipts_.items()
        ]
        await self._execute(_upsert(receipts, self._dialect, "key", "actor"), rows)

    async def forget_receipts(self, now: int, limit: int) -> None:
        r = receipts.c
        expired = select(r.actor, r.key).where(r.expires < now).order_by(r.expires).limit(limit)
        with translated():
            rows = (await self._connection.execute(expired)).all()
        await self._execute(_FORGET, [{"at_actor": row.actor, "at_key": row.key} for row in rows])

    async def append(self, entry: Entry) -> None:
        with translated():
            moved = await self._connection.execute(
                update(chain_head)
                .where(chain_head.c.sequence == entry.sequence - 1)
                .values(sequence=entry.sequence, hash=entry.hash)
            )
            assert moved.rowcount == 1, f"entry {entry.sequence} does not follow the head"
            await self._connection.execute(
                insert(changelog).values(
                    sequence=entry.sequence,
                    time_ms=entry.time_ms,
                    actor=entry.actor,
                    action=entry.action,
                    prefix=entry.prefix,
                    count=entry.count,
                    root=entry.root,
                    previous=entry.previous,
                    hash=entry.hash,
                    changes=pack_changes(entry.changes),
                )
            )
