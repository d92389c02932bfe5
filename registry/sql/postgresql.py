"""PostgreSQL (14 or newer): session settings, the hot statements, and hanging up at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from typing import Any

import asyncpg
from sqlalchemy import URL, Table
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from biaojie.identifier import Key

from ..patterns import sought
from .direct import Beginning, LogRow, Put, Row, Rows
from .tables import IN_BLOCK, blocks, changelog, upsert

_LOCK = f"SELECT pg_advisory_xact_lock({0x6269616F6A6965})"
"""What a writer says first: from here on it is the only one. The number spells "biaojie"."""

# All that is asked comes as one result, so that it takes one round trip; `n` tells what a row is,
# and what has no column of its own is in `more`. Without LATERAL and OFFSET 0, PostgreSQL may
# seek by half of the primary key and filter by the other half, which on a table that has grown
# since its statistics were taken reads the whole prefix for each key.
PREFIX, HEAD, RECEIPT, _RANGE = -1, -2, -3, -4
_LAYERS = """
LEFT JOIN LATERAL (
    SELECT status, version, sequence, template, blob FROM records
    WHERE prefix_id = {id} AND suffix = w.suffix OFFSET 0
) AS r ON true
LEFT JOIN LATERAL (
    SELECT last_suffix, count, sequence, blob FROM blocks
    WHERE r.status IS NULL AND prefix_id = {id} AND first_suffix <= w.suffix
    ORDER BY first_suffix DESC LIMIT 1
) AS b ON true
WHERE r.status IS NOT NULL OR b.last_suffix >= w.suffix
"""
_EACH = """
FROM unnest($1::text[], $2::bytea[]) WITH ORDINALITY AS w (prefix, suffix, n)
JOIN LATERAL (SELECT id FROM prefixes WHERE name = w.prefix OFFSET 0) AS p ON true
""" + _LAYERS.format(id="p.id")  # noqa: S608  (constants)
# Names asked for together are most often of one prefix, which then is sought and sent only once.
_OF_ONE = "(SELECT id FROM prefixes WHERE name = $1::text)"
_ALIKE = f"FROM unnest($2::bytea[]) WITH ORDINALITY AS w (suffix, n){_LAYERS.format(id=_OF_ONE)}"


def _look_up(source: str) -> str:
    return f"""
SELECT w.n - 1 AS n, coalesce(r.status, {IN_BLOCK}), coalesce(r.version, b.count),
       coalesce(r.sequence, b.sequence), r.template AS text, coalesce(r.blob, b.blob),
       NULL::text[] AS more
{source}
UNION ALL
SELECT {PREFIX}, p.status, p.version, p.sequence, p.spelling, NULL,
       ARRAY[w.name, p.tenant, p.id::text, p.created::text, p.searchable,
             CASE WHEN p.indexed_to IS NOT NULL THEN 'indexing' END,
             CASE WHEN EXISTS (SELECT 1 FROM ranges WHERE prefix_id = p.id) THEN 'ranged' END]
FROM unnest($3::text[]) AS w (name)
JOIN LATERAL (SELECT * FROM prefixes WHERE name = w.name OFFSET 0) AS p ON true
"""  # noqa: S608  (constants)


_LOAD_TOO = f"""
UNION ALL
SELECT {HEAD}, NULL, NULL, sequence, NULL, hash, NULL FROM chain_head WHERE id = 1
UNION ALL
SELECT {RECEIPT}, NULL, NULL, expires, key, reply, ARRAY[actor, encode(fingerprint, 'hex')]
FROM receipts WHERE key = ANY($4::text[])
"""  # noqa: S608
_LOOK_UP = {False: _look_up(_EACH), True: _look_up(_ALIKE)}
_LOAD = {alike: statement + _LOAD_TOO for alike, statement in _LOOK_UP.items()}
# Asked only for names under prefixes that are known to have ranges.
_RANGES_TOO = f"""
UNION ALL
SELECT {_RANGE}, r.status, r.version, r.sequence, r.template, r.blob,
       ARRAY[w.n::text, convert_from(w.run, 'UTF8'), r.written::text]
FROM unnest(${{0}}::int[], ${{1}}::text[], ${{2}}::bytea[], ${{3}}::bytea[])
    AS w (n, prefix, shape, run)
JOIN LATERAL (SELECT id FROM prefixes WHERE name = w.prefix OFFSET 0) AS p ON true
JOIN LATERAL (
    SELECT * FROM ranges WHERE prefix_id = p.id AND shape = w.shape AND first <= w.run
    ORDER BY first DESC LIMIT 1
) AS r ON r.last >= w.run
"""  # noqa: S608  (a number)
IN_RANGES = """
SELECT w.n, convert_from(w.run, 'UTF8'), r.status, r.version, r.sequence, r.written, r.template,
       r.blob
FROM unnest($1::int[], $2::int[], $3::bytea[], $4::bytea[]) AS w (n, prefix_id, shape, run)
JOIN LATERAL (
    SELECT * FROM ranges WHERE prefix_id = w.prefix_id AND shape = w.shape AND first <= w.run
    ORDER BY first DESC LIMIT 1
) AS r ON r.last >= w.run
"""
RANGED = "SELECT 1 FROM ranges WHERE prefix_id = $1 LIMIT 1"
_LOOK_UP_RANGED = {a: s + _RANGES_TOO.format(4, 5, 6, 7) for a, s in _LOOK_UP.items()}
_LOAD_RANGED = {a: s + _RANGES_TOO.format(5, 6, 7, 8) for a, s in _LOAD.items()}
Question = tuple[str, tuple[Any, ...]]
"""A statement and its parameters."""


IN_BLOCKS = f"""
SELECT w.n - 1, {IN_BLOCK}, b.count, b.sequence, NULL, b.blob, NULL
FROM unnest($1::int[], $2::bytea[]) WITH ORDINALITY AS w (prefix_id, suffix, n)
JOIN LATERAL (
    SELECT last_suffix, count, sequence, blob FROM blocks
    WHERE prefix_id = w.prefix_id AND first_suffix <= w.suffix
    ORDER BY first_suffix DESC LIMIT 1
) AS b ON b.last_suffix >= w.suffix
"""  # noqa: S608  (a number)
TOUCHED = """
SELECT w.n - 1
FROM unnest($2::bytea[], $3::bytea[]) WITH ORDINALITY AS w (first, last, n)
LEFT JOIN LATERAL (
    SELECT true AS there FROM records
    WHERE prefix_id = $1 AND suffix BETWEEN w.first AND w.last LIMIT 1
) AS r ON true
LEFT JOIN LATERAL (
    SELECT last_suffix FROM blocks WHERE prefix_id = $1 AND first_suffix <= w.last
    ORDER BY first_suffix DESC LIMIT 1
) AS b ON true
WHERE r.there OR b.last_suffix >= w.first
ORDER BY w.n
"""
FORGET = """
DELETE FROM receipts USING (
    SELECT key, actor FROM receipts WHERE expires < $1 ORDER BY expires LIMIT $2
) AS old WHERE receipts.key = old.key AND receipts.actor = old.actor
"""


def _sought(keys: Sequence[Key]) -> tuple[bool, tuple[Any, ...]]:
    """Whether they are all of one prefix, and the parameters."""
    prefixes = [key[0] for key in keys]
    names = list(set(prefixes))
    alike = len(names) == 1
    return alike, (names[0] if alike else prefixes, [key[1] for key in keys], names)


def _candidates(keys: Sequence[Key], ranged: Collection[str]) -> tuple[Any, ...]:
    """Number, prefix, shape and run of each way in which a range may have one of the names."""
    ways = [
        (n, key.prefix, *way)
        for n, key in enumerate(keys)
        if key.prefix in ranged
        for way in sought(key.suffix)
    ]
    return tuple(zip(*ways, strict=True)) if ways else ((), (), (), ())


def look_up_question(keys: Sequence[Key], ranged: Collection[str] = ()) -> Question:
    """Prefixes and records by key, and ranges under the prefixes that have some."""
    alike, parameters = _sought(keys)
    if ranged:
        return _LOOK_UP_RANGED[alike], (*parameters, *_candidates(keys, ranged))
    return _LOOK_UP[alike], parameters


def load_question(
    keys: Sequence[Key], receipts: Sequence[str], ranged: Collection[str] = ()
) -> Question:
    """The same, receipts by Idempotency-Key, and the head of the log."""
    alike, parameters = _sought(keys)
    if ranged:
        return _LOAD_RANGED[alike], (*parameters, receipts, *_candidates(keys, ranged))
    return _LOAD[alike], (*parameters, receipts)


def as_rows(rows: Sequence[Row]) -> Rows:
    return _rows(rows)[0]


def _rows(rows: Sequence[Row]) -> tuple[Rows, set[str]]:
    """And the names of prefixes that have ranges."""
    prefixes = []
    ranged = set()
    for _, status, version, sequence, spelling, _, more in [r for r in rows if r[0] == PREFIX]:
        name, tenant, id_, created, *search, has_ranges = more
        prefixes.append(
            (name, int(id_), spelling, tenant, status, int(created), version, sequence, *search)
        )
        if has_ranges:
            ranged.add(name)
    ranges = [as_range(row) for row in rows if row[0] == _RANGE] if ranged else ()
    return Rows(prefixes, [row for row in rows if row[0] >= 0], ranges), ranged


def as_range(row: Row) -> Row:
    """As `Rows` has it."""
    _, status, version, sequence, template, blob, (n, run, written) = row
    return int(n), run.encode(), status, version, sequence, int(written), template, blob


def as_receipt(row: Row) -> Row:
    _, _, _, expires, key, reply, (actor, fingerprint) = row
    return key, actor, bytes.fromhex(fingerprint), reply, expires


_MOVE_HEAD = """
UPDATE chain_head SET sequence = $2, hash = $3 WHERE id = 1 AND sequence = $1 RETURNING 1
"""
_COLUMNS = ", ".join(f"${n}" for n in range(1, len(changelog.c) + 1))
_APPEND = f"INSERT INTO changelog VALUES ({_COLUMNS})"  # noqa: S608


def _renumbered(statement: str, first: int) -> tuple[str, int]:
    """With its parameters counted from `first`, and the number that comes after them."""
    taken = len(set(re.findall(r"\$\d+", statement)))
    return re.sub(r"\$(\d+)", lambda at: f"${int(at[1]) + first - 1}", statement), first + taken


_Shape = tuple[Table, tuple[str, ...], frozenset[str]]


def _shaped(put: Put) -> tuple[_Shape, list[Any]]:
    """How its statement is shaped, and the parameters: a value or an array for each column."""
    columns = list(zip(*put.rows, strict=True))
    names = [c.name for c in put.table.columns if c is not put.table.autoincrement_column]
    single = len(put.rows) == 1
    alike = single or all(
        column.count(column[0]) == len(column)
        for name, column in zip(names, columns, strict=True)
        if name in put.alike
    )
    one = frozenset(names) if single else put.alike if alike else frozenset()
    values = [
        column[0] if name in one else column for name, column in zip(names, columns, strict=True)
    ]
    return (put.table, put.key, one), values


@cache
def _write_statement(puts: tuple[_Shape, ...], log: bool) -> str:
    """Everything as one statement, whose parts touch different tables; gives the heads moved."""
    parts = [upsert(table, "postgresql", *key, alike=alike) for table, key, alike in puts]
    parts += [_APPEND, _MOVE_HEAD] if log else []
    named: list[str] = []
    free = 1
    for n, part in enumerate(parts):
        numbered, free = _renumbered(part, free)
        named.append(f"part_{n} AS ({numbered})")
    moved = f"(SELECT count(*) FROM part_{len(parts) - 1})" if log else "0"  # noqa: S608
    return f"WITH {', '.join(named)} SELECT {moved}"


class Connection(asyncpg.Connection):  # type: ignore[misc]
    """See registry.sql.direct.Direct."""

    plans = "force_generic_plan"
    """They are the same whatever is asked for; making one takes longer than a look-up."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._ranged: set[str] = set()
        """Prefixes that were seen to have ranges."""

    async def close(self, *, timeout: float | None = None) -> None:
        """Hang up. Waiting for a frozen server to say goodbye would outlast every deadline."""
        self.terminate()

    async def begin(self) -> None:
        # Apart from the first read: that sees what was committed before the lock was given.
        await self.execute(f"BEGIN; {_LOCK}")

    async def commit(self) -> None:
        await self.execute("COMMIT")

    async def rollback(self) -> None:
        await self.execute("ROLLBACK")

    async def look_up(self, keys: Sequence[Key]) -> Rows:
        return (await self._ask(keys, partial(look_up_question, keys)))[0]

    async def load(self, keys: Sequence[Key], receipts: Sequence[str]) -> Beginning:
        found, rows = await self._ask(keys, partial(load_question, keys, receipts))
        [head] = [(row[3], row[5]) for row in rows if row[0] == HEAD]
        return Beginning(head, found, [as_receipt(row) for row in rows if row[0] == RECEIPT])

    async def _ask(
        self, keys: Sequence[Key], question: Callable[[Collection[str]], Question]
    ) -> tuple[Rows, Sequence[Row]]:
        """What was found, and all rows. Asks again where a prefix is the first time seen to have
        ranges: one statement sees one state, and must have them all."""
        ranged = self._ranged and {key.prefix for key in keys} & self._ranged
        statement, parameters = question(ranged)
        rows = await self.fetch(statement, *parameters)
        found, having = _rows(rows)
        if having <= ranged:
            return found, rows
        self._ranged |= having
        return await self._ask(keys, question)

    async def in_ranges(self, prefix_ids: Sequence[int], suffixes: Sequence[bytes]) -> list[Row]:
        ways = [
            (n, id_, *way)
            for n, (id_, suffix) in enumerate(zip(prefix_ids, suffixes, strict=True))
            for way in sought(suffix)
        ]
        if not ways:
            return []
        found = await self.fetch(IN_RANGES, *zip(*ways, strict=True))
        return [(n, run.encode(), *row) for n, run, *row in found]

    async def in_blocks(self, prefix_ids: Sequence[int], suffixes: Sequence[bytes]) -> list[Row]:
        rows: list[Row] = await self.fetch(IN_BLOCKS, prefix_ids, suffixes)
        return rows

    async def touched(self, prefix_id: int, spans: Sequence[tuple[bytes, bytes]]) -> list[int]:
        async def ask(spans: Sequence[tuple[bytes, bytes]]) -> list[int]:
            firsts, lasts = zip(*spans, strict=True)
            return [row[0] for row in await self.fetch(TOUCHED, prefix_id, firsts, lasts)]

        if await self.fetchval(RANGED, prefix_id):
            return list(range(len(spans)))  # shapes are no intervals of names
        if not spans or not await ask([(spans[0][0], spans[-1][1])]):
            return []  # as nearly always
        return await ask(spans)

    async def add_blocks(self, rows: Sequence[Row]) -> None:
        await self.copy_records_to_table(
            "blocks", records=rows, columns=[column.name for column in blocks.c]
        )

    async def forget_receipts(self, now: int, limit: int) -> None:
        await self.execute(FORGET, now, limit)

    async def write(self, puts: Sequence[Put], log: LogRow | None) -> None:
        shaped = [_shaped(put) for put in puts]
        statement = _write_statement(tuple(shape for shape, _ in shaped), log is not None)
        parameters = [value for _, values in shaped for value in values]
        if log is not None:
            at, hash_ = log.row[0], log.row[8]
            parameters += [*log.row, log.before, at, hash_]
        moved = await self.fetchval(statement, *parameters)
        assert log is None or moved == 1, f"entry {log.row[0]} does not follow the head"


def make_engine(
    url: URL,
    *,
    writes: bool,
    connect_s: float,
    statement_s: float,
    connection_class: type[Connection] = Connection,
) -> AsyncEngine:
    """`connect_s` bounds the making of a connection, `statement_s` each statement."""
    settings = {
        "application_name": "biaojie",
        # Should this process freeze or vanish, the server frees what it holds.
        "statement_timeout": f"{statement_s * 1000:.0f}",
        "idle_in_transaction_session_timeout": f"{statement_s * 1000:.0f}",
        "client_connection_check_interval": "1000",
        "default_transaction_read_only": "off" if writes else "on",
        # Every statement is a look-up by key or a walk along one; statistics, which lag behind
        # a bulk load, must not talk the planner into anything else.
        "enable_seqscan": "off",
        "enable_bitmapscan": "off",
        "jit": "off",
        "plan_cache_mode": connection_class.plans,
    }
    return create_async_engine(
        url,
        isolation_level="AUTOCOMMIT",  # transactions are ours: see Connection.begin
        skip_autocommit_rollback=True,
        hide_parameters=True,  # private values and digests stay out of logs
        poolclass=NullPool,
        connect_args={
            "timeout": connect_s,
            "connection_class": connection_class,
            "server_settings": settings,
        },
    )
