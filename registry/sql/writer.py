"""Writing: one transaction, holding the registry's only write lock from its first statement.

What is put waits here until something is read or the transaction ends, and then goes to the
database as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Table, bindparam, delete, insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from biaojie.account import ApiKey, Prefix
from biaojie.change import Entry
from biaojie.identifier import Key, fold_prefix
from biaojie.record import Record

from ..blocks import Block
from ..census import Shift, pack_shift
from ..changelog import pack_changes
from ..matching import Match
from ..ranges import HeldRange, RangeKey
from ..store import LOOK_UP_MAX, Found, Loaded, ReceiptKey, Row, StoredReceipt
from . import reader
from .blob import encode_blob
from .direct import Home, LogRow, Put, Rows, direct
from .faults import translated
from .ranges import find_ranges, list_row_names, members_in, range_rows, range_shapes
from .tables import (
    PREFIX_STATUS_NUMBER,
    PURGED,
    STATUS_NUMBER,
    api_keys,
    blocks,
    prefixes,
    ranges,
    receipts,
    records,
    value_index,
)

# A group that one commit writes is most often all of new records under one prefix.
_RECORDS_ALIKE = frozenset({"prefix_id", "status", "version", "sequence", "template"})
_RECEIPTS_ALIKE = frozenset({"actor", "expires"})
_PURGE = delete(records).where(
    records.c.prefix_id == bindparam("at_prefix"), records.c.suffix == bindparam("at_suffix")
)
_REMOVE_BLOCK = delete(blocks).where(
    blocks.c.prefix_id == bindparam("at_prefix"), blocks.c.first_suffix == bindparam("at_suffix")
)
_REMOVE_RANGE = delete(ranges).where(
    ranges.c.prefix_id == bindparam("at_prefix"),
    ranges.c.shape == bindparam("at_shape"),
    ranges.c.first == bindparam("at_first"),
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


class SqlTransaction:
    """See registry.store.Transaction. Not for use by two tasks at once."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._driver = direct(connection)
        self._prefix_ids: dict[str, int] = {}
        self._puts: dict[Table, Put] = {}
        self._log: LogRow | None = None

    async def flush(self) -> None:
        """Send what was put."""
        if not self._puts and self._log is None:
            return
        puts, log = list(self._puts.values()), self._log
        self._puts, self._log = {}, None
        with translated():
            await self._driver.write(puts, log)

    async def _reading(self) -> AsyncConnection:
        await self.flush()
        return self._connection

    async def load(self, keys: Sequence[Key], receipts: Sequence[ReceiptKey], now: int) -> Loaded:
        assert len(keys) <= LOOK_UP_MAX
        await self.flush()
        with translated():
            begun = await self._driver.load(keys, sorted({at.key for at in receipts}))
        return Loaded(
            begun.head,
            self._found(begun.rows, keys),
            reader.receipts_in(begun.receipts, receipts, now),
        )

    def _found(self, rows: Rows, keys: Sequence[Key]) -> list[Found]:
        self._prefix_ids |= {row[0]: row[1] for row in rows.prefixes}
        return reader.found_in(rows, keys)

    async def look_up(self, keys: Sequence[Key]) -> list[Found]:
        assert len(keys) <= LOOK_UP_MAX
        await self.flush()
        with translated():
            return self._found(await self._driver.look_up(keys), keys)

    async def find_prefixes(self, names: Sequence[str]) -> dict[str, Prefix]:
        connection = await self._reading()
        with translated():
            return await reader.find_prefixes(connection, names)

    async def find_keys_by_id(self, ids: Sequence[str]) -> dict[str, ApiKey]:
        connection = await self._reading()
        with translated():
            return await reader.find_keys_by_id(connection, ids)

    async def find_receipts(
        self, keys: Sequence[ReceiptKey], now: int
    ) -> dict[ReceiptKey, StoredReceipt]:
        return (await self.load([], keys, now)).receipts

    async def head(self) -> tuple[int, bytes]:
        return (await self.load([], [], 0)).head

    async def _execute(self, statement: Any, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            connection = await self._reading()
            with translated():
                await connection.execute(statement, rows)

    async def _put(
        self,
        table: Table,
        key: tuple[str, ...],
        rows: list[tuple[Any, ...]],
        alike: frozenset[str] = frozenset(),
    ) -> None:
        """Upsert rows, whose fields are in the order of the table's columns."""
        if table in self._puts:  # a row may come again, which one statement cannot replace twice
            await self.flush()
        if rows:
            self._puts[table] = Put(table, key, rows, alike)

    async def _ids(self, names: Iterable[str]) -> dict[str, int]:
        missing = set(names) - self._prefix_ids.keys()
        if missing:
            connection = await self._reading()
            with translated():
                self._prefix_ids |= await reader.prefix_ids(connection, list(missing))
        return self._prefix_ids

    async def _home(self, prefix: str) -> Home:
        return Home(prefix, (await self._ids([prefix])).get(prefix, 0))

    async def list_records(self, prefix: str, after: bytes | None, limit: int) -> list[Record]:
        connection, home = await self._reading(), await self._home(prefix)
        with translated():
            return await reader.list_records(connection, home, after, limit, ranged=False)

    async def find_ranges(self, first: RangeKey, last: bytes, limit: int) -> list[HeldRange]:
        connection, home = await self._reading(), await self._home(first.prefix)
        with translated():
            return await find_ranges(connection, home, first, last, limit)

    async def range_shapes(self, prefix: str) -> list[bytes]:
        connection, home = await self._reading(), await self._home(prefix)
        with translated():
            return await range_shapes(connection, home)

    async def list_row_names(
        self, prefix: str, first: bytes, last: bytes, octets: int, limit: int
    ) -> list[tuple[bytes, bool]]:
        connection, home = await self._reading(), await self._home(prefix)
        with translated():
            return await list_row_names(connection, home, first, last, octets, limit)

    async def members_of_ranges(self, keys: Sequence[Key]) -> set[Key]:
        assert len(keys) <= LOOK_UP_MAX
        ids = await self._ids(key.prefix for key in keys)
        await self.flush()
        with translated():
            rows = await self._driver.in_ranges(
                [ids[key.prefix] for key in keys], [key.suffix for key in keys]
            )
        return {keys[n] for n in members_in(rows, keys)}

    async def change_ranges(
        self, gone: Iterable[RangeKey], put: Mapping[RangeKey, HeldRange]
    ) -> None:
        gone = list(gone)
        ids = await self._ids(key.prefix for key in (*gone, *put))
        for key in put:
            assert key.prefix in ids, f"prefix {key.prefix} is not homed"
        await self._execute(
            _REMOVE_RANGE,
            [
                {"at_prefix": ids[key.prefix], "at_shape": key.shape, "at_first": key.first}
                for key in gone
            ],
        )
        await self._put(ranges, ("prefix_id", "shape", "first"), range_rows(put, ids))

    async def list_rows(self, prefix: str, after: bytes | None, limit: int) -> list[Row]:
        connection, home = await self._reading(), await self._home(prefix)
        with translated():
            return await reader.list_rows(connection, home, after, limit)

    async def touched(self, prefix: str, spans: Sequence[tuple[bytes, bytes]]) -> list[int]:
        await self.flush()
        prefix_id = (await self._ids([prefix]))[prefix]
        with translated():
            return await self._driver.touched(prefix_id, spans)

    async def look_up_marked(self, keys: Sequence[Key]) -> tuple[list[Found], set[Key]]:
        assert len(keys) <= LOOK_UP_MAX
        if not keys:
            return [], set()
        await self.flush()
        with translated():
            rows = await self._driver.look_up(keys)
        marked = {keys[row[0]] for row in rows.records if row[1] == PURGED}
        return self._found(rows, keys), marked

    async def find_in_blocks(self, keys: Sequence[Key]) -> list[Record | None]:
        connection = await self._reading()
        with translated():
            return await reader.find_in_blocks(connection, keys)

    async def blocks_in(self, prefix: str, first: bytes, last: bytes) -> list[Block]:
        connection, home = await self._reading(), await self._home(prefix)
        with translated():
            return await reader.blocks_in(connection, home, first, last)

    async def put_blocks(self, prefix: str, blocks_: Sequence[Block]) -> None:
        await self.flush()
        prefix_id = (await self._ids([prefix]))[prefix]
        with translated():
            await self._driver.add_blocks([(prefix_id, *block) for block in blocks_])

    async def _remove(self, statement: Any, prefix: str, suffixes: Iterable[bytes]) -> None:
        prefix_id = (await self._ids([prefix]))[prefix]
        gone = [{"at_prefix": prefix_id, "at_suffix": suffix} for suffix in suffixes]
        await self._execute(statement, gone)

    async def remove_blocks(self, prefix: str, firsts: Iterable[bytes]) -> None:
        await self._remove(_REMOVE_BLOCK, prefix, firsts)

    async def remove_rows(self, prefix: str, suffixes: Iterable[bytes]) -> None:
        await self._remove(_PURGE, prefix, suffixes)

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
        await self._put(records, ("prefix_id", "suffix"), rows, _RECORDS_ALIKE)

    async def purge_records(self, keys: Iterable[Key], sequence: int) -> None:
        keys = list(keys)
        ids = await self._ids(key.prefix for key in keys)
        gone = [key for key in keys if key.prefix in ids]
        hidden = set(await self._beneath(gone, ids))
        bare = [key for n, key in enumerate(gone) if n not in hidden]
        await self._execute(
            _PURGE,
            [{"at_prefix": ids[key.prefix], "at_suffix": key.suffix} for key in bare],
        )
        markers = [
            (ids[gone[n].prefix], gone[n].suffix, PURGED, 0, sequence, None, b"")
            for n in sorted(hidden)
        ]
        await self._put(records, ("prefix_id", "suffix"), markers, _RECORDS_ALIKE)

    async def _beneath(self, keys: Sequence[Key], ids: Mapping[str, int]) -> list[int]:
        """Numbers of the keys that a lower layer has a record of."""
        if not keys:
            return []
        await self.flush()
        with translated():
            of = [ids[key.prefix] for key in keys]
            found = await reader.beneath(self._driver, keys, of)
        members = await self.members_of_ranges(keys)
        return [n for n, record in enumerate(found) if record is not None or keys[n] in members]

    async def change_rows(self, added: Iterable[Match], removed: Iterable[Match]) -> None:
        names = [f"at_{name}" for name in _ROW]
        gone = [dict(zip(names, _row(match), strict=True)) for match in removed]
        await self._execute(_REMOVE_ROW, gone)
        await self._put(value_index, _ROW, [_row(match) for match in added])

    async def indexed_to(self, prefix: str) -> bytes | None:
        connection = await self._reading()
        with translated():
            return await reader.indexed_to(connection, prefix)

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
        await self._put(receipts, ("key", "actor"), rows, _RECEIPTS_ALIKE)

    async def forget_receipts(self, now: int, limit: int) -> None:
        await self.flush()
        with translated():
            await self._driver.forget_receipts(now, limit)

    async def append(self, entry: Entry, shift: Shift | None = None) -> None:
        if self._log is not None:
            await self.flush()
        row = (
            entry.sequence,
            entry.time_ms,
            entry.actor,
            entry.action,
            entry.prefix,
            entry.count,
            entry.root,
            entry.previous,
            entry.hash,
            pack_changes(entry.changes),
            None if shift is None else pack_shift(shift),
        )
        self._log = LogRow(entry.sequence - 1, row)


def _row(match: Match) -> tuple[bytes, int, str, bytes]:
    return match.digest, int(match.public), match.key.prefix, match.key.suffix
