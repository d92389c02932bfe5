"""No statement reads a table from end to end, whatever the statistics say."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection

from biaojie.account import Prefix
from biaojie.identifier import Key
from registry.matching import Criterion, Match
from registry.sql import SqlStore, listing, open_store, postgresql, ranges, reader, sqlite
from registry.sql.direct import Home
from tests.contract.sample import PREFIX, home, put, record

DIGEST = Criterion("URL", b"the same for all").digest


async def matches(connection: AsyncConnection, *, private: bool, prefix: str | None) -> list[Key]:
    after = Key(PREFIX, b"SN00100")
    return await reader.find_matches(
        connection, DIGEST, private=private, prefix=prefix, after=after, limit=100
    )


HOME = Home(PREFIX, 1)
KEYS = [Key(PREFIX, b"SN00001"), Key(PREFIX, b"NONE"), Key("no.such", b"SN00001")]
READS: dict[str, Callable[[AsyncConnection], Awaitable[Any]]] = {
    "list_rows": lambda c: reader.list_rows(c, HOME, b"SN00100", 100),
    "list_blocks": lambda c: reader.list_blocks(c, HOME, b"SN00100", 100),
    "range_shapes": lambda c: ranges.range_shapes(c, HOME),
    "list_ranges": lambda c: ranges.list_ranges(c, HOME, None, 100),
    "list_row_names": lambda c: ranges.list_row_names(c, HOME, b"SN001", b"SN002", 7, 100),
    "block_at": lambda c: reader.block_at(c, HOME, b"SN00100"),
    "scan_sequences": lambda c: reader.scan_sequences(c, (1, b"SN00100")),
    "find_prefixes": lambda c: reader.find_prefixes(c, [PREFIX]),
    "home_of": lambda c: reader.home_of(c, PREFIX),
    "prefix_ids": lambda c: reader.prefix_ids(c, [PREFIX]),
    "list_prefixes": lambda c: reader.list_prefixes(c, "1", 10, None),
    "find_key": lambda c: reader.find_key(c, b"d" * 32),
    "find_keys_by_id": lambda c: reader.find_keys_by_id(c, ["a", "b"]),
    "list_keys": lambda c: reader.list_keys(c, "a", 10),
    "list_changes": lambda c: reader.list_changes(c, 3, 10),
    "find_matches": lambda c: matches(c, private=False, prefix=None),
    "find_matches of one": lambda c: matches(c, private=False, prefix=PREFIX),
    "find_matches private": lambda c: matches(c, private=True, prefix=None),
    "find_matches private of one": lambda c: matches(c, private=True, prefix=PREFIX),
    "list_indexing": reader.list_indexing,
    "indexed_to": lambda c: reader.indexed_to(c, PREFIX),
}


HOT: dict[str, dict[str, tuple[str, tuple[Any, ...]]]] = {
    "postgresql": {
        "look_up": postgresql.look_up_question(KEYS),
        "look_up 1": postgresql.look_up_question(KEYS[:1]),
        "look_up 256": postgresql.look_up_question(KEYS * 85),
        "look_up alike": postgresql.look_up_question(KEYS[:2] * 120),
        "look_up ranged": postgresql.look_up_question(KEYS * 20, {PREFIX}),
        "look_up alike ranged": postgresql.look_up_question(KEYS[:1] * 20, {PREFIX}),
        "load ranged": postgresql.load_question(KEYS * 20, ["a"], {PREFIX}),
        "in_ranges": (postgresql.IN_RANGES, ([0], [1], [b"SN\0"], [b"1"])),
        "ranged": (postgresql.RANGED, (1,)),
        "load": postgresql.load_question(KEYS * 20, ["a", "b"]),
        "load alike": postgresql.load_question(KEYS[:2] * 20, ["a", "b"]),
        "in_blocks": (postgresql.IN_BLOCKS, ([1, 1], [b"SN00001", b"NONE"])),
        "touched": (postgresql.TOUCHED, (1, [b"A", b"C"], [b"B", b"D"])),
        "forget_receipts": (postgresql.FORGET, (5, 100)),
        "pieces: rows": (listing.POSTGRESQL[0], (1, b"SN00100", 100)),
        "pieces: blocks": (listing.POSTGRESQL[1], (1, b"SN00100", b"SN00200", 65)),
        "pieces: ranges": (listing.POSTGRESQL[2], (1,)),
    },
    "sqlite": {
        "look_up prefixes": (sqlite.prefix_statement(4), ("a", PREFIX, "b", None)),
        "look_up": (sqlite.record_statement(4), (1, b"SN00001") * 4),
        "look_up 1": (sqlite.record_statement(1), (1, b"SN00001")),
        "look_up 256": (sqlite.record_statement(256), (1, b"SN00001") * 256),
        "in blocks": (sqlite.block_statement(4), (1, 1, b"SN00001") * 4),
        "in ranges": (sqlite.range_statement(4), (1, 1, b"SN\0", b"1") * 4),
        "ranged": (sqlite.RANGED, (1,)),
        "touched": (sqlite.TOUCHED, (1, b"A", b"B")),
        "forget_receipts": (sqlite.FORGET, (5, 100)),
        "pieces: rows": (listing.SQLITE[0], (1, b"SN00100", 100)),
        "pieces: blocks": (listing.SQLITE[1], (1, b"SN00100", b"SN00200", 65)),
        "pieces: ranges": (listing.SQLITE[2], (1,)),
        "find_receipts": (sqlite.receipt_statement(4), ("a", "b", "c", None)),
    },
}
"""The statements that go past SQLAlchemy, as the drivers get them."""
SEEKS = {name: 2 if "private" in name else 1 for name in READS if "find_matches" in name}


async def explained(
    connection: AsyncConnection, explain: str, statement: str, parameters: Any
) -> str:
    rows = (await connection.exec_driver_sql(f"{explain} {statement}", parameters)).all()
    return "\n".join(str(row[-1]) for row in rows)


async def plans_of(
    connection: AsyncConnection, explain: str, names: Iterable[str]
) -> dict[str, str]:
    """The plan of each read's one statement, taken on the connection that runs it."""
    ran: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        ran.append((statement, parameters))

    found = {}
    for name in names:
        ran.clear()
        event.listen(connection.sync_connection, "before_cursor_execute", note)
        await READS[name](connection)
        event.remove(connection.sync_connection, "before_cursor_execute", note)
        [(statement, parameters)] = ran
        found[name] = await explained(connection, explain, statement, parameters)
    return found


async def plans(store: SqlStore, explain: str) -> dict[str, str]:
    async def take(connection: AsyncConnection) -> dict[str, str]:
        found = await plans_of(connection, explain, READS)
        for name, (statement, parameters) in HOT[connection.dialect.name].items():
            found[name] = await explained(connection, explain, statement, parameters)
        return found

    return await store._pools.read(take)


async def fill(store: SqlStore, first: int, last: int) -> None:
    for start in range(first, last, 2_000):
        numbers = range(start, min(start + 2_000, last))
        await put(store, *(record(f"SN{n:05}") for n in numbers))
        async with store.transaction() as transaction:
            keys = [Key(PREFIX, f"SN{n:05}".encode()) for n in numbers]
            await transaction.change_rows([Match(DIGEST, True, key) for key in keys], [])
            others = [Match(key.suffix.ljust(16), False, key) for key in keys]
            await transaction.change_rows(others, [])


def check_sqlite(found: dict[str, str]) -> None:
    for name, plan in found.items():
        assert not re.search(r"SCAN (?!w\b|known\b|page_|CONSTANT|\d+ CONSTANT|prefixes)", plan), (
            f"{name}: {plan}"
        )
    for name in ("look_up", "look_up 1", "look_up 256"):
        assert "SEARCH r USING PRIMARY KEY (prefix_id=? AND suffix=?)" in found[name]
    assert "PRIMARY KEY (prefix_id=? AND suffix>?)" in found["list_rows"]
    assert (
        "INDEX sqlite_autoindex_blocks_1 (prefix_id=? AND first_suffix>?)" in found["list_blocks"]
    )
    for name in ("block_at", "in blocks", "touched"):
        seek = r"sqlite_autoindex_blocks_1 \(prefix_id=\? AND first_suffix<\?\)"
        assert re.search(seek, found[name]), found[name]
    for name in ("list_rows", "list_blocks", "block_at", "in blocks", "touched"):
        assert "TEMP B-TREE" not in found[name], found[name]
    for name in ("range_shapes", "in ranges", "ranged"):
        assert "SEARCH ranges USING PRIMARY KEY (prefix_id=?" in found[name], found[name]
    assert "(prefix_id=? AND shape=? AND first=?)" in found["in ranges"]
    assert "(prefix_id=? AND shape=? AND first<?)" in found["in ranges"]
    assert "prefixes_name_key (name=?)" in found["look_up prefixes"]
    assert "PRIMARY KEY (key=?)" in found["find_receipts"]
    for name, seeks in SEEKS.items():
        where = r"suffix>\?" if "of one" in name else r"\(prefix,suffix\)>\(\?,\?\)"
        seek = rf"SEARCH value_index USING PRIMARY KEY \(digest=\? AND public=\? AND .*{where}"
        assert len(re.findall(seek, found[name])) == seeks, found[name]
        assert seeks == 2 or "TEMP B-TREE" not in found[name]
    assert "prefixes_indexing_idx" in found["list_indexing"]


def check_postgresql(found: dict[str, str]) -> None:
    for name, plan in found.items():
        assert "Seq Scan" not in plan, f"{name}: {plan}"
        assert "Bitmap" not in plan, f"{name}: {plan}"
    for name in ("look_up", "look_up 256", "load"):
        cond = r"Index Cond: \(\(prefix_id = prefixes.id\) AND \(suffix = w.suffix\)\)"
        assert re.search(cond, found[name]), found[name]
    for name in ("look_up 1", "look_up alike", "load alike"):
        cond = r"Index Cond: \(\(prefix_id = .+?\) AND \(suffix = w.suffix\)\)"
        assert re.search(cond, found[name]), found[name]
    for name in ("look_up", "look_up 256", "load", "look_up 1", "look_up alike", "load alike"):
        # Blocks are sought, and only for what has no row; rows are never read and then left out.
        assert "One-Time Filter: (records.status IS NULL)" in found[name], found[name]
        assert "Index Scan Backward using blocks_pkey" in found[name], found[name]
        cond = r"Index Cond: \(\(prefix_id = .+?\) AND \(first_suffix <= w.suffix\)\)"
        assert re.search(cond, found[name]), found[name]
        assert not re.search(r"_pkey on.*\n +Index Cond.*\n +Filter", found[name]), found[name]
    for name in ("in_blocks", "touched", "block_at"):
        assert "Index Scan Backward using blocks_pkey" in found[name], found[name]
    for name in ("look_up ranged", "look_up alike ranged", "load ranged", "in_ranges"):
        cond = r"\(prefix_id = .+?\) AND \(shape = w\w*\.shape\) AND \(first <= w\w*\.run\)"
        seek = rf"Index Scan Backward using ranges_pkey .*\n +Index Cond: \({cond}\)"
        assert re.search(seek, found[name]), found[name]
    for name in ("load", "load alike"):
        assert "Index Scan using receipts_pkey" in found[name]
    for name, seeks in SEEKS.items():
        scans = re.findall(
            r"Index Only Scan using value_index_pkey .*\n +Index Cond: (.*)", found[name]
        )
        assert len(scans) == seeks, found[name]
        for column in ("digest", "public", "prefix", "suffix"):
            assert all(column in scan for scan in scans), found[name]
        assert "Filter" not in found[name], found[name]
        assert seeks == 2 or "Sort" not in found[name], found[name]
    for name in (
        "list_rows",
        "list_blocks",
        "block_at",
        "scan_sequences",
        "list_changes",
        "list_prefixes",
    ):
        assert "Sort" not in found[name], found[name]


async def test_sqlite_plans(sqlite_url: str) -> None:
    store = await open_store(sqlite_url)
    check_sqlite(await plans(store, "EXPLAIN QUERY PLAN"))
    await home(store)
    await fill(store, 0, 1)
    async with store._pools.write() as connection:
        await connection.exec_driver_sql("ANALYZE")  # as an operator may
    await store.close()
    store = await open_store(sqlite_url)
    check_sqlite(await plans(store, "EXPLAIN QUERY PLAN"))
    await fill(store, 1, 6_000)
    check_sqlite(await plans(store, "EXPLAIN QUERY PLAN"))
    await store.close()


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
async def test_postgresql_plans(postgres_url: str, mode: str) -> None:
    store = await open_store(postgres_url, pool_size=1)
    await store._pools.read(lambda c: c.exec_driver_sql(f"SET plan_cache_mode = {mode}"))
    check_postgresql(await plans(store, "EXPLAIN"))
    await home(store)
    await fill(store, 0, 1)
    async with store._pools.write() as connection:
        await connection.exec_driver_sql("ANALYZE")
    check_postgresql(await plans(store, "EXPLAIN"))
    await fill(store, 1, 6_000)
    check_postgresql(await plans(store, "EXPLAIN"))
    async with store._pools.write() as connection:
        await connection.exec_driver_sql("ANALYZE")
    check_postgresql(await plans(store, "EXPLAIN"))
    await store.close()


async def test_the_whole_registry_is_scanned_in_runs(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "SCAN_ROWS", 7)
    store = await open_store(database_url)
    await home(store, PREFIX, "88.118.9")
    for prefix in (PREFIX, "88.118.9"):
        await put(store, *(record(f"S{n}", prefix=prefix, sequence=n) for n in range(14)))
    await put(store, record("S3", sequence=99))
    assert await store.newest_record_sequence() == 99
    async with store.transaction() as transaction:
        await transaction.put_prefixes([Prefix(PREFIX, "t", sequence=100)])
    assert await store.newest_record_sequence() == 100
    await store.close()
