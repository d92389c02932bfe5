"""PostgreSQL with Citus beside it: the tables that grow lie on workers, the others here.

A name is asked for where its prefix lies, so prefixes come first and records after them, in two
questions. Writers take turns as on one server, on the coordinator alone, which all nodes use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from biaojie.change import Entry
from biaojie.identifier import Key

from . import postgresql, reader
from .direct import Beginning, LogRow, Put, Row, Rows, direct
from .postgresql import HEAD, PREFIX, RECEIPT
from .schema import UnfitDatabase
from .store import SqlStore

_PREFIXES = f"""
SELECT {PREFIX} AS n, p.status, p.version, p.sequence, p.spelling AS text, NULL::bytea AS blob,
       ARRAY[w.name, p.tenant, p.id::text, p.created::text, p.searchable,
             CASE WHEN p.indexed_to IS NOT NULL THEN 'indexing' END, NULL] AS more
FROM unnest($1::text[]) AS w (name)
JOIN LATERAL (SELECT * FROM prefixes WHERE name = w.name OFFSET 0) AS p ON true
"""  # noqa: S608  (a number)
_BEGINNING = f"""{_PREFIXES}
UNION ALL
SELECT {HEAD}, NULL, NULL, sequence, NULL, hash, NULL FROM chain_head WHERE id = 1
UNION ALL
SELECT {RECEIPT}, NULL, NULL, expires, key, reply, ARRAY[actor, encode(fingerprint, 'hex')]
FROM receipts WHERE key = ANY($2::text[])
"""  # noqa: S608
_COLUMNS = "w.n - 1 AS n, r.status, r.version, r.sequence, r.template, r.blob, NULL AS more"
# Of one prefix: goes to its shard as it is, which is the quickest of all ways.
_OF_ONE = f"""
SELECT {_COLUMNS}
FROM unnest($2::bytea[]) WITH ORDINALITY AS w (suffix, n)
JOIN LATERAL (
    SELECT status, version, sequence, template, blob FROM records
    WHERE prefix_id = $1::int AND suffix = w.suffix OFFSET 0
) AS r ON true
"""  # noqa: S608
# Of several: goes to the shards of `$3` all at once.
_OF_MANY = f"""
SELECT {_COLUMNS}
FROM unnest($1::int[], $2::bytea[]) WITH ORDINALITY AS w (prefix_id, suffix, n)
JOIN records AS r ON r.prefix_id = w.prefix_id AND r.suffix = w.suffix
WHERE r.prefix_id = ANY($3::int[])
"""  # noqa: S608
# The coordinator shows a commit before the workers have all heard of it. Until they have, its
# writer holds a lock that stands for its entry: who has waited for that may tell others of the
# entry, and they find what it wrote.
_LOCKS = 0x626961
_HEAD = f"""
SELECT sequence, hash
FROM chain_head, LATERAL (
    SELECT pg_advisory_xact_lock_shared({_LOCKS}, (sequence % 2147483647)::int) OFFSET 0
) AS waited
WHERE id = 1
"""  # noqa: S608
_WAIT = f"SELECT pg_advisory_xact_lock_shared({_LOCKS}, ($1::bigint % 2147483647)::int)"


class Connection(postgresql.Connection):
    """See registry.sql.direct.Direct."""

    _entry = 0
    """The one that the open transaction has appended."""

    async def begin(self) -> None:
        self._entry = 0
        await super().begin()

    async def commit(self) -> None:
        if self._entry:
            number = self._entry % 2147483647
            await self.execute(f"SELECT pg_advisory_xact_lock({_LOCKS}, {number}); COMMIT")
        else:
            await super().commit()

    async def look_up(self, keys: Sequence[Key]) -> Rows:
        prefixes = await self.fetch(_PREFIXES, list({key.prefix for key in keys}))
        return await self._with_records(postgresql.as_rows(prefixes), keys)

    async def load(self, keys: Sequence[Key], receipts: Sequence[str]) -> Beginning:
        rows = await self.fetch(_BEGINNING, list({key.prefix for key in keys}), receipts)
        [head] = [(row[3], row[5]) for row in rows if row[0] == HEAD]
        kept = [postgresql.as_receipt(row) for row in rows if row[0] == RECEIPT]
        return Beginning(head, await self._with_records(postgresql.as_rows(rows), keys), kept)

    async def _with_records(self, rows: Rows, keys: Sequence[Key]) -> Rows:
        ids = {row[0]: row[1] for row in rows.prefixes}
        numbers = [n for n, key in enumerate(keys) if key.prefix in ids]
        suffixes = [keys[n].suffix for n in numbers]
        records: Sequence[Row] = ()
        if len(ids) == 1:
            [id_] = ids.values()
            records = await self.fetch(_OF_ONE, id_, suffixes)
        elif ids:
            of = [ids[keys[n].prefix] for n in numbers]
            records = await self.fetch(_OF_MANY, of, suffixes, list(ids.values()))
        return Rows(rows.prefixes, [(numbers[row[0]], *tuple(row)[1:]) for row in records])

    async def write(self, puts: Sequence[Put], log: LogRow | None) -> None:
        # One statement cannot write on several servers; the transaction holds them together.
        for put in puts:
            await super().write([put], None)
        if log is not None:
            await super().write([], log)
            self._entry = log.row[0]


class CitusStore(SqlStore):
    """See registry.store.Store. Made by `open_store` where the registry is distributed."""

    async def head(self) -> tuple[int, bytes]:
        async def read(connection: AsyncConnection) -> tuple[int, bytes]:
            driver: Any = direct(connection)
            sequence, hash_ = await driver.fetchrow(_HEAD)
            return sequence, hash_

        return await self._pools.read(read)

    async def list_changes(self, after: int, limit: int) -> list[Entry]:
        async def read(connection: AsyncConnection) -> list[Entry]:
            entries = await reader.list_changes(connection, after, limit)
            if entries:  # those before the last are settled, or it could not have begun
                driver: Any = direct(connection)
                await driver.fetchval(_WAIT, entries[-1].sequence)
            return entries

        return await self._pools.read(read)


async def check_workers(connection: AsyncConnection, *, allow_unsafe_durability: bool) -> None:
    """Raise UnfitDatabase if a worker could lose an acknowledged commit, with the power or because
    it has no room to prepare it."""
    wanted = "current_setting('max_prepared_transactions')::int > 0"
    if not allow_unsafe_durability:
        wanted += (
            " AND 'off' NOT IN (current_setting('fsync'), current_setting('synchronous_commit'))"
        )
    asked = text("SELECT nodename, nodeport, result FROM run_command_on_workers(:asked)")
    for host, port, result in await connection.execute(asked, {"asked": f"SELECT {wanted}"}):
        if result != "t":
            raise UnfitDatabase(
                f"The worker {host}:{port} runs with max_prepared_transactions=0, fsync=off or"
                f" synchronous_commit=off, or does not answer ({result}).",
                f"工作节点 {host}:{port} 设置了 max_prepared_transactions=0、fsync=off 或"
                f" synchronous_commit=off，或没有响应（{result}）。",
            )
