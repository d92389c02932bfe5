"""How a registry is laid out: in partitions, over Citus, kept when it is filled from another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncConnection
from typer.testing import CliRunner

from registry.__main__ import app
from registry.sql import SqlStore, UnfitDatabase, citus, migrate, open_store, postgresql
from registry.sql.transfer import move
from tests.citus import execute
from tests.contract.conftest import PARTITIONS
from tests.contract.sample import PREFIX, home, put, record
from tests.contract.test_sql_plans import HOT, explained, fill, plans, plans_of
from tests.postgres import Postgres

PARTS = "SELECT count(*) FROM pg_partition_tree('records') WHERE isleaf AND level > 0"


@pytest.fixture
def empty(postgres: Postgres) -> Iterator[tuple[str, str]]:
    """Name and URL of a database without tables."""
    name = postgres.create_database()
    yield name, postgres.url(name)
    postgres.drop_database(name)


def parts(postgres: Postgres, url: str) -> int:
    return int(postgres.execute(PARTS, database=database_of(url))[0][0])


def database_of(url: str) -> str:
    return make_url(url).database or ""


async def filled(url: str) -> SqlStore:
    store = await open_store(url)
    await home(store, PREFIX, "88.118.9", "88.118.10")
    for prefix in (PREFIX, "88.118.9", "88.118.10"):
        await put(store, *(record(f"SN{n}", prefix=prefix) for n in range(20)))
    return store


async def test_each_prefix_lies_in_one_partition(postgres: Postgres, partitioned_url: str) -> None:
    assert parts(postgres, partitioned_url) == PARTITIONS
    await (await filled(partitioned_url)).close()
    asked = "SELECT prefix_id, count(DISTINCT tableoid), count(*) FROM records GROUP BY 1"
    found = [tuple(row) for row in postgres.execute(asked, database=database_of(partitioned_url))]
    assert sorted(found) == [(1, 1, 20), (2, 1, 20), (3, 1, 20)]


async def test_plans_on_partitions(partitioned_url: str) -> None:
    store = await open_store(partitioned_url, pool_size=1, write_timeout_s=30, read_timeout_s=20)
    await home(store)
    await fill(store, 0, 500)
    async with store._pools.write() as connection:
        await connection.exec_driver_sql("ANALYZE")
    for name, plan in (await plans(store, "EXPLAIN")).items():
        assert "Seq Scan" not in plan, f"{name}: {plan}"
    for name in ("look_up", "look_up 256", "look_up alike", "load"):
        statement, parameters = HOT["postgresql"][name]
        explain = f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {statement}"
        rows = await store._pools.read(
            lambda c, explain=explain, given=parameters: c.exec_driver_sql(explain, given)
        )
        ran = "\n".join(row[0] for row in rows)
        sought = re.findall(r"Index Scan using \S+ on records_\d+ .*\(actual", ran)
        assert len(sought) == 1, ran  # the others are removed, or "never executed"
    await store.close()


async def test_the_schema_is_the_same_but_for_the_partitions(
    postgres: Postgres, partitioned_url: str, postgres_url: str
) -> None:
    asked = (
        "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,"
        " a.attcollation, a.attstorage, pg_get_expr(d.adbin, d.adrelid) FROM pg_class c"
        " JOIN pg_attribute a ON a.attrelid = c.oid LEFT JOIN pg_attrdef d"
        " ON d.adrelid = c.oid AND d.adnum = a.attnum"
        " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'i', 'I')"
        " AND NOT c.relispartition AND a.attnum > 0 ORDER BY 1, 2"
    )
    both = [
        [tuple(row) for row in postgres.execute(asked, database=database_of(url))]
        for url in (partitioned_url, postgres_url)
    ]
    assert both[0] == both[1]
    assert ("records_pkey", "prefix_id") in {row[:2] for row in both[0]}


async def test_partitions_keep_blocks_in_their_rows(
    postgres: Postgres, partitioned_url: str, postgres_url: str
) -> None:
    asked = (
        "SELECT DISTINCT array_to_string(reloptions, ',') FROM pg_class"
        " WHERE relkind = 'r' AND relname ~ '^blocks'"
    )
    for url in (partitioned_url, postgres_url):
        options = [tuple(row) for row in postgres.execute(asked, database=database_of(url))]
        assert options == [("toast_tuple_target=8160",)]


async def test_a_layout_stays(postgres: Postgres, partitioned_url: str, postgres_url: str) -> None:
    await (await filled(partitioned_url)).close()
    await migrate(partitioned_url)
    await migrate(partitioned_url, partitions=PARTITIONS)
    assert parts(postgres, partitioned_url) == PARTITIONS
    with pytest.raises(UnfitDatabase, match="another way already: 7 partitions"):
        await migrate(partitioned_url, partitions=3)
    await migrate(postgres_url)
    assert parts(postgres, postgres_url) == 0


def test_the_command_lays_out(postgres: Postgres, empty: tuple[str, str], tmp_path: Path) -> None:
    asked = ["migrate", "--database-url", empty[1], "--partitions", "3"]
    assert CliRunner().invoke(app, asked).exit_code == 0
    assert parts(postgres, empty[1]) == 3
    asked = ["migrate", "--data-dir", str(tmp_path), "--citus"]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code == 3
    assert "only PostgreSQL" in refused.output
    assert "只有 PostgreSQL" in refused.output


async def test_what_is_not_empty_is_left_alone(
    postgres: Postgres, postgres_url: str, sqlite_url: str
) -> None:
    await (await filled(postgres_url)).close()
    with pytest.raises(UnfitDatabase, match="records is not empty"):
        await migrate(postgres_url, partitions=4)
    assert parts(postgres, postgres_url) == 0
    with pytest.raises(UnfitDatabase, match="no Citus"):
        await migrate(postgres_url, citus=True)
    with pytest.raises(UnfitDatabase, match="exclude each other"):
        await migrate(postgres_url, citus=True, partitions=4)
    with pytest.raises(UnfitDatabase, match="only PostgreSQL"):
        await migrate(sqlite_url, partitions=4)


async def test_moving_fills_the_partitions(
    postgres: Postgres, postgres_url: str, empty: tuple[str, str]
) -> None:
    source = await filled(postgres_url)
    await migrate(empty[1], partitions=5)
    await move(postgres_url, empty[1])
    assert parts(postgres, empty[1]) == 5
    there = await open_store(empty[1])
    for prefix in (PREFIX, "88.118.9", "88.118.10"):
        assert await there.list_records(prefix, None, 99) == await source.list_records(
            prefix, None, 99
        )
    await source.close()
    await there.close()


async def test_moving_fills_the_shards(citus_url: str, postgres_url: str) -> None:
    source = await filled(postgres_url)
    await move(postgres_url, citus_url, overwrite=True)
    there = await open_store(citus_url)
    for prefix in (PREFIX, "88.118.9", "88.118.10"):
        assert await there.list_records(prefix, None, 99) == await source.list_records(
            prefix, None, 99
        )
    await source.close()
    await there.close()
    lie = "SELECT table_name::text, distribution_column FROM citus_tables ORDER BY 1"
    assert ("records", "prefix_id") in [tuple(row) for row in execute(citus_url, lie)]


async def test_citus_has_what_grows_on_its_workers(citus_url: str) -> None:
    lie = "SELECT table_name::text, distribution_column FROM citus_tables ORDER BY 1"
    found = {tuple(row) for row in execute(citus_url, lie)}
    layers = {(name, "prefix_id") for name in ("records", "blocks", "ranges")}
    assert {*layers, ("value_index", "digest")} <= found
    together = (
        "SELECT count(DISTINCT colocation_id) FROM citus_tables"
        " WHERE distribution_column = 'prefix_id'"
    )
    assert execute(citus_url, together)[0][0] == 1  # else no shard could answer for all layers
    options = (
        "SELECT DISTINCT result FROM run_command_on_shards('blocks',"
        " $$SELECT reloptions::text FROM pg_class WHERE oid = '%s'::regclass$$)"
    )
    assert [row[0] for row in execute(citus_url, options)] == ["{toast_tuple_target=8160}"]
    assert not {"prefixes", "changelog", "chain_head", "receipts"} & {name for name, _ in found}
    await migrate(citus_url)
    await migrate(citus_url, citus=True)
    with pytest.raises(UnfitDatabase, match="another way already: Citus"):
        await migrate(citus_url, partitions=3)


async def test_one_shard_answers_for_a_prefix(citus_url: str) -> None:
    store = await open_store(citus_url, read_timeout_s=10, write_timeout_s=15)
    await home(store, PREFIX)
    names = ["list_rows", "list_blocks", "block_at", "range_shapes", "list_ranges"]
    named, ways = ([0], [1], [b"SN1"]), ([0], [1], [b"SN\0"], [b"1"])
    hot = {
        "layers": (citus._OF_SHARD, (*named, [1])),
        "layers and ranges": (citus._OF_SHARD + citus._RANGES_TOO, (*named, [1], *ways)),
        "in_blocks": (citus._IN_BLOCKS, (*named, [1])),
        "in_ranges": (citus._IN_RANGES, (*ways, [1])),
        "touched": (postgresql.TOUCHED, (1, [b"A"], [b"B"])),
    }

    async def take(connection: AsyncConnection) -> dict[str, str]:
        found = await plans_of(connection, "EXPLAIN", [*names, "list_row_names"])
        for name, (statement, parameters) in hot.items():
            found[name] = await explained(connection, "EXPLAIN", statement, parameters)
        return found

    for name, plan in (await store._pools.read(take)).items():
        assert plan.count("Task Count: 1\n") == 1, f"{name}: {plan}"
        assert "Seq Scan" not in plan, f"{name}: {plan}"
    await store.close()
