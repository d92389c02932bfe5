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

from ..patterns import sought
from ..statistics import Octets
from . import postgresql, reader, statistics
from .direct import Beginning, LogRow, Put, Row, Rows, direct
from .postgresql import HEAD, PREFIX, RECEIPT
from .schema import UnfitDatabase
from .store import SqlStore
from .tables import IN_BLOCK

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
_RANGED, _RANGE = -4, -5
# All layers of a prefix lie in one shard, and so do some prefixes: what is asked of one shard goes
# there as it is and sees one state. `ANY` tells which shard that is.
_OF_SHARD = f"""
SELECT w.n, coalesce(r.status, {IN_BLOCK}), coalesce(r.version, b.count),
       coalesce(r.sequence, b.sequence), r.template AS text, coalesce(r.blob, b.blob),
       NULL::text[] AS more
FROM unnest($1::int[], $2::int[], $3::bytea[]) AS w (n, prefix_id, suffix)
LEFT JOIN LATERAL (
    SELECT status, version, sequence, template, blob FROM records
    WHERE prefix_id = w.prefix_id AND prefix_id = ANY($4::int[]) AND suffix = w.suffix OFFSET 0
) AS r ON true
LEFT JOIN LATERAL (
    SELECT last_suffix, count, sequence, blob FROM blocks
    WHERE r.status IS NULL AND prefix_id = w.prefix_id AND prefix_id = ANY($4::int[])
    AND first_suffix <= w.suffix
    ORDER BY first_suffix DESC LIMIT 1
) AS b ON true
WHERE r.status IS NOT NULL OR b.last_suffix >= w.suffix
UNION ALL
SELECT {_RANGED}, NULL, w.prefix_id, NULL, NULL, NULL, NULL
FROM unnest($4::int[]) AS w (prefix_id)
JOIN LATERAL (
    SELECT 1 FROM ranges
    WHERE prefix_id = w.prefix_id AND prefix_id = ANY($4::int[]) LIMIT 1
) AS r ON true
"""  # noqa: S608  (numbers)
# Asked only for names under prefixes that are known to have ranges.
_RANGES_TOO = f"""
UNION ALL
SELECT {_RANGE}, r.status, r.version, r.sequence, r.template, r.blob,
       ARRAY[w.n::text, convert_from(w.run, 'UTF8'), r.written::text]
FROM unnest($5::int[], $6::int[], $7::bytea[], $8::bytea[]) AS w (n, prefix_id, shape, run)
JOIN LATERAL (
    SELECT * FROM ranges
    WHERE prefix_id = w.prefix_id AND prefix_id = ANY($4::int[])
    AND shape = w.shape AND first <= w.run
    ORDER BY first DESC LIMIT 1
) AS r ON r.last >= w.run
"""  # noqa: S608  (a number)
_IN_BLOCKS = f"""
SELECT w.n, {IN_BLOCK}, b.count, b.sequence, NULL, b.blob, NULL
FROM unnest($1::int[], $2::int[], $3::bytea[]) AS w (n, prefix_id, suffix)
JOIN LATERAL (
    SELECT last_suffix, count, sequence, blob FROM blocks
    WHERE prefix_id = w.prefix_id AND prefix_id = ANY($4::int[]) AND first_suffix <= w.suffix
    ORDER BY first_suffix DESC LIMIT 1
) AS b ON b.last_suffix >= w.suffix
"""  # noqa: S608  (a number)
_IN_RANGES = """
SELECT w.n, convert_from(w.run, 'UTF8'), r.status, r.version, r.sequence, r.written, r.template,
       r.blob
FROM unnest($1::int[], $2::int[], $3::bytea[], $4::bytea[]) AS w (n, prefix_id, shape, run)
JOIN LATERAL (
    SELECT * FROM ranges
    WHERE prefix_id = w.prefix_id AND prefix_id = ANY($5::int[])
    AND shape = w.shape AND first <= w.run
    ORDER BY first DESC LIMIT 1
) AS r ON r.last >= w.run
"""
_SHARDS = """
SELECT id, get_shard_id_for_distribution_column('records', id) FROM unnest($1::int[]) AS w (id)
"""
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


_Named = tuple[int, int, bytes]
"""Number of a name, number of its prefix, suffix."""


def _ways(named: Sequence[_Named]) -> list[tuple[int, int, bytes, bytes]]:
    """Number, prefix, shape and run of each way in which a range may have one of the names."""
    return [(n, id_, *way) for n, id_, suffix in named for way in sought(suffix)]


class Connection(postgresql.Connection):
    """See registry.sql.direct.Direct."""

    plans = "auto"
    """A plan for any parameter does not tell which shard it is for; Citus makes its own."""
    _entry = 0
    """The one that the open transaction has appended."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._with_ranges: set[int] = set()
        """Numbers of prefixes that were seen to have ranges."""

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
        """And what the layers have for them."""
        ids = {row[0]: row[1] for row in rows.prefixes}
        named = [
            (n, ids[key.prefix], key.suffix) for n, key in enumerate(keys) if key.prefix in ids
        ]
        records: list[Row] = []
        ranges: list[Row] = []
        for ids_, some in await self._by_shard(named):
            for row in await self._layers(ids_, some):
                if row[0] >= 0:
                    records.append(row)
                elif row[0] == _RANGE:
                    ranges.append(postgresql.as_range(row))
        return Rows(rows.prefixes, records, ranges)

    async def _layers(self, ids: Sequence[int], named: Sequence[_Named]) -> list[Row]:
        """What one shard has for names. Asks again where a prefix is the first time seen to have
        ranges: one statement sees one state, and must have them all."""
        while True:
            ranged = self._with_ranges & set(ids)
            columns = zip(*named, strict=True)
            if ranged:
                ways = _ways([name for name in named if name[1] in ranged])
                asked = (*columns, ids, *(zip(*ways, strict=True) if ways else ((),) * 4))
                rows: list[Row] = await self.fetch(_OF_SHARD + _RANGES_TOO, *asked)
            else:
                rows = await self.fetch(_OF_SHARD, *columns, ids)
            having = {row[2] for row in rows if row[0] == _RANGED}
            if having <= ranged:
                return rows
            self._with_ranges |= having

    async def _by_shard(self, named: Sequence[_Named]) -> list[tuple[list[int], Sequence[_Named]]]:
        """Names by the shard that has their prefixes, and the numbers of these."""
        ids = list({id_ for _, id_, _ in named})
        if len(ids) < 2:
            return [(ids, named)] if ids else []
        shard_of = {row[0]: row[1] for row in await self.fetch(_SHARDS, ids)}
        by_shard: dict[int, tuple[list[int], list[_Named]]] = {}
        for id_, shard in shard_of.items():
            by_shard.setdefault(shard, ([], []))[0].append(id_)
        for name in named:
            by_shard[shard_of[name[1]]][1].append(name)
        return list(by_shard.values())

    async def in_blocks(self, prefix_ids: Sequence[int], suffixes: Sequence[bytes]) -> list[Row]:
        named = list(zip(range(len(suffixes)), prefix_ids, suffixes, strict=True))
        rows: list[Row] = []
        for ids, some in await self._by_shard(named):
            rows += await self.fetch(_IN_BLOCKS, *zip(*some, strict=True), ids)
        return rows

    async def in_ranges(self, prefix_ids: Sequence[int], suffixes: Sequence[bytes]) -> list[Row]:
        named = list(zip(range(len(suffixes)), prefix_ids, suffixes, strict=True))
        rows: list[Row] = []
        for ids, some in await self._by_shard(named):
            if ways := _ways(some):
                rows += await self.fetch(_IN_RANGES, *zip(*ways, strict=True), ids)
        return [(n, run.encode(), *row) for n, run, *row in rows]

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

    async def octets(self) -> Octets:
        return await self._pools.read(lambda c: statistics.octets(c, distributed=True))

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
