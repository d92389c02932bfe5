"""Writing: one transaction, holding the registry's only write lock from its first statement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Table, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from biaojie.account import ApiKey, Prefix
from biaojie.change import Entry
from biaojie.identifier import Key, fold_prefix
from biaojie.record import Record

from ..changelog import pack_changes
from ..matching import Match
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
    value_index,
)

_upsert = cache(upsert)
_PURGE = delete(records).where(
    records.c.prefix_id == bindparam("at_prefix"), records.c.suffix == bindparam("at_suffix")
)
_FORGET = delete(receipts).where(
    receipts.c.key == bindparam("at_key"), receipts.c.actor == bindparam("at_actor")
)
_REVOKE = (
    update(api_keys).where(api_keys.c.id == bindparam("at")).values(revoked=bindparam("since"))
)
_ROW = tuple(column.name for column in value_index.columns)
_REMOVE_ROW = delete(value_index).where(
    *(value_index.c[name] == bindparam(f"at_{name}") for name in _ROW)
)
_SET_INDEXED = (
    update(prefixes).where(prefixes.c.name == bindparam("at")).values(indexed_to=bindparam("to"))
)
_EXPIRED = (
    select(receipts.c.key.label("at_key"), receipts.c.actor.label("at_actor"))
    .where(receipts.c.expires < bindparam("now"))
    .order_by(receipts.c.expires)
    .limit(bindparam("limit"))
)
_MOVE_HEAD = (
    update(chain_head)
    .where(chain_head.c.sequence == bindparam("before"))
    .values(sequence=bindparam("at"), hash=bindparam("to"))
)
_APPEND = insert(changelog)


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

    async def _put(self, table: Table, key: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
        """Upsert rows, whose fields are in the order of the table's columns."""
        if not rows:
            return
        statement = _upsert(table, self._dialect, *key)
        by_column = self._dialect == "postgresql"
        parameters = tuple(map(list, zip(*rows, strict=True))) if by_column else rows
        with translated():
            await self._connection.exec_driver_sql(statement, parameters)

    async def _ids(self, names: Iterable[str]) -> dict[str, int]:
        missing = set(names) - self._prefix_ids.keys()
        if missing:
            with translated():
                self._prefix_ids |= await reader.prefix_ids(self._connection, list(missing))
        return self._prefix_ids

    async def list_records(self, prefix: str, after: bytes | None, limit: int) -> list[Record]:
        with translated():
            return await reader.list_records(self._connection, prefix, after, limit)

    async def put_prefixes(self, prefixes_: Iterable[Prefix]) -> None:
        by_name = {fold_prefix(prefix.name): prefix for prefix in prefixes_}
        rows = [
            (
                name,
                p.name,
                p.tenant,
                PREFIX_STATUS_NUMBER[p.status],
                p.created,
                p.version,
                p.sequence,
                "\n".join(p.searchable) or None,
                b"" if p.indexing else None,
            )
            for name, p in by_name.items()
        ]
        await self._put(prefixes, ("name",), rows)

    async def put_records(self, records_: Mapping[Key, Record]) -> None:
        ids = await self._ids(key.prefix for key in records_)
        for key in records_:
            assert key.prefix in ids, f"prefix {key.prefix} is not homed"
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
        await self._put(records, ("prefix_id", "suffix"), rows)

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

    async def change_rows(self, added: Iterable[Match], removed: Iterable[Match]) -> None:
        names = [f"at_{name}" for name in _ROW]
        gone = [dict(zip(names, _row(match), strict=True)) for match in removed]
        await self._execute(_REMOVE_ROW, gone)
        await self._put(value_index, _ROW, [_row(match) for match in added])

    async def indexed_to(self, prefix: str) -> bytes | None:
        with translated():
            return await reader.indexed_to(self._connection, prefix)

    async def set_indexed_to(self, prefix: str, suffix: bytes | None) -> None:
        await self._execute(_SET_INDEXED, [{"at": prefix, "to": suffix}])

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
            (at.key, at.actor, kept.fingerprint, kept.reply, kept.expires)
            for at, kept in receipts_.items()
        ]
        await self._put(receipts, ("key", "actor"), rows)

    async def forget_receipts(self, now: int, limit: int) -> None:
        with translated():
            expired = await self._connection.execute(_EXPIRED, {"now": now, "limit": limit})
            rows = expired.mappings().all()
        await self._execute(_FORGET, [dict(row) for row in rows])

    async def append(self, entry: Entry) -> None:
        move = {"before": entry.sequence - 1, "at": entry.sequence, "to": entry.hash}
        row = {
            "sequence": entry.sequence,
            "time_ms": entry.time_ms,
            "actor": entry.actor,
            "action": entry.action,
            "prefix": entry.prefix,
            "count": entry.count,
            "root": entry.root,
            "previous": entry.previous,
            "hash": entry.hash,
            "changes": pack_changes(entry.changes),
        }
        with translated():
            moved = await self._connection.execute(_MOVE_HEAD, move)
            assert moved.rowcount == 1, f"entry {entry.sequence} does not follow the head"
            await self._connection.execute(_APPEND, row)


def _row(match: Match) -> tuple[bytes, int, str, bytes]:
    return match.digest, int(match.public), match.key.prefix, match.key.suffix
