"""Migrations, and the databases a store refuses to open."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from biaojie.account import Prefix
from biaojie.errors import BiaojieError, TemporarilyUnavailable
from biaojie.identifier import Key
from registry.indexing import index_page
from registry.matching import Criterion
from registry.sql import UnfitDatabase, migrate, open_store
from registry.sql.engine import Limits, Pools, read_url
from registry.sql.schema import _config, check_durability, newest_schema
from registry.sql.tables import metadata
from tests.contract.sample import PREFIX, home, put, record
from tests.postgres import Postgres

KINDS = ["sqlite", "postgresql"]


@pytest.fixture(params=KINDS)
def empty_url(request: pytest.FixtureRequest, postgres: Postgres, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/new 100% & ü#.db"
        return
    name = postgres.create_database()
    yield postgres.url(name).replace("+asyncpg", "")
    postgres.drop_database(name)


def upgrade(connection: Connection, revision: str) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


async def run(url: str, *statements: str) -> list[Any]:
    """Run statements on a database apart from any store; the rows of the last one."""
    driver = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
    parsed = make_url(url)
    engine = create_async_engine(parsed.set(drivername=driver[parsed.get_backend_name()]))
    try:
        async with engine.begin() as connection:
            for statement in statements:
                result = await connection.execute(text(statement))
            return list(result.all()) if result.returns_rows else []
    finally:
        await engine.dispose()


async def test_the_migrated_schema_is_the_one_in_tables(database_url: str) -> None:
    def differences(connection: Connection) -> list[Any]:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        found: list[Any] = compare_metadata(context, metadata)
        return found

    engine = create_async_engine(database_url)
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
        await connection.execute(text("ALTER TABLE records ADD COLUMN more text"))
        assert len(await connection.run_sync(differences)) == 1  # the comparison can fail
    await engine.dispose()


async def test_an_unmigrated_database_is_refused_and_migrate_mends_it(empty_url: str) -> None:
    with pytest.raises(UnfitDatabase, match="biaojie migrate") as refused:
        await open_store(empty_url)
    assert "biaojie migrate" in refused.value.detail.zh
    assert isinstance(refused.value, BiaojieError)
    await migrate(empty_url)
    await migrate(empty_url)
    store = await open_store(empty_url)
    await home(store)
    await put(store, record())
    assert len(await store.list_records(PREFIX, None, 10)) == 1
    await store.close()


def test_the_newest_schema_is_told_without_alembic() -> None:
    assert newest_schema() == ScriptDirectory.from_config(_config()).get_current_head()
    code = "import sys, registry.sql; print('alembic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("revision", ["0000", "9999"])
async def test_another_schema_version_is_refused(database_url: str, revision: str) -> None:
    await run(database_url, f"UPDATE alembic_version SET version_num = '{revision}'")
    with pytest.raises(UnfitDatabase, match=f"{revision}.*{newest_schema()}.*biaojie migrate"):
        await open_store(database_url)


async def test_a_registry_of_the_first_schema_is_brought_up_to_date(empty_url: str) -> None:
    """What it held is there afterwards, and can be declared searchable."""
    first = "0001"
    if empty_url.startswith("sqlite"):
        sqlite3.connect(make_url(empty_url).database or "").close()
    pools = Pools(read_url(empty_url), Limits())
    async with pools.write() as connection:
        await connection.begin()
        await connection.run_sync(lambda sync: upgrade(sync, first))
    await pools.close()
    rows = "INSERT INTO prefixes (name, spelling, tenant, status, created, version, sequence)"
    await run(empty_url, f"{rows} VALUES ('{PREFIX}', '{PREFIX}', 'acme', 1, 7, 1, 0)")
    with pytest.raises(UnfitDatabase, match=first):
        await open_store(empty_url)
    await migrate(empty_url)
    store = await open_store(empty_url)
    prefix = Prefix(PREFIX, "acme", created=7)
    assert await store.find_prefixes([PREFIX]) == {PREFIX: prefix}
    assert await store.list_indexing() == []
    await put(store, record())
    async with store.transaction() as transaction:
        await transaction.put_prefixes([replace(prefix, searchable=("URL",), indexing=True)])
    assert not await index_page(store, prefix)
    digest = Criterion("URL", record().values[0].data).digest
    found = await store.find_matches(
        digest, private=False, prefix=None, after=Key("", b""), limit=9
    )
    assert found == [Key(PREFIX, b"SN1")]
    await store.close()


async def test_a_missing_file_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(UnfitDatabase, match="biaojie migrate"):
        await open_store(f"sqlite:///{tmp_path}/none.db")
    assert os.listdir(tmp_path) == []


async def test_a_file_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnfitDatabase, match="No such file"):
        await migrate(f"sqlite:///{tmp_path}/no/such/directory.db")


async def test_nobody_else_may_read_the_file(tmp_path: Path) -> None:
    await migrate(f"sqlite:///{tmp_path}/registry.db")
    store = await open_store(f"sqlite:///{tmp_path}/registry.db")
    await home(store)
    modes = {stat.S_IMODE(entry.stat().st_mode) for entry in os.scandir(tmp_path)}
    await store.close()
    assert modes == {0o600}


async def test_processes_that_migrate_at_once_take_turns(empty_url: str) -> None:
    program = (
        "import asyncio, sys; from registry.sql import migrate; asyncio.run(migrate(sys.argv[1]))"
    )
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", program, empty_url)
        for _ in range(3)
    ]
    assert [await process.wait() for process in processes] == [0, 0, 0]
    assert await run(empty_url, "SELECT count(*) FROM chain_head") == [(1,)]


async def test_a_migration_that_fails_leaves_nothing(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alembic import op

    monkeypatch.setattr(op, "bulk_insert", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await migrate(empty_url)
    with pytest.raises(UnfitDatabase, match="empty"):
        await open_store(empty_url)
    monkeypatch.undo()
    await migrate(empty_url)
    await (await open_store(empty_url)).close()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://localhost/x",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file.db?mode=memory",
        "postgresql://localhost/x?connect_timeout=5",
        "nonsense",
    ],
)
async def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="database"):
        await open_store(url)
    with pytest.raises(ValueError, match="database"):
        await migrate(url)


def test_sslmode_is_understood() -> None:
    url = read_url("postgresql://me:secret@db.example:5433/registry?sslmode=verify-full")
    assert url.get_driver_name() == "asyncpg"
    assert dict(url.query) == {"ssl": "verify-full"}
    assert (url.host, url.port, url.password) == ("db.example", 5433, "secret")


async def test_why_a_server_cannot_be_used_is_said_at_start(postgres: Postgres) -> None:
    with pytest.raises(TemporarilyUnavailable, match='"none" does not exist'):
        await open_store(postgres.url("none"))
    with pytest.raises(TemporarilyUnavailable, match=r"refused|Connect call failed"):
        await migrate("postgresql://127.0.0.1:1/registry")


async def test_how_suffixes_compare_is_settled_once(database_url: str) -> None:
    store = await open_store(database_url)
    await store.settle_rules(case_sensitive=True)
    await store.settle_rules(case_sensitive=True)
    with pytest.raises(UnfitDatabase, match="case_sensitive"):
        await store.settle_rules(case_sensitive=False)
    await store.close()


async def test_postgresql_without_fsync_is_refused_unless_allowed() -> None:
    server = Postgres("fsync=off")
    try:
        await migrate(server.url())
        with pytest.raises(UnfitDatabase, match="fsync=off") as refused:
            await open_store(server.url())
        assert "fsync=off" in refused.value.detail.zh
        await (await open_store(server.url(), allow_unsafe_durability=True)).close()
    finally:
        server.close()


async def test_asynchronous_commit_is_refused(postgres: Postgres, postgres_url: str) -> None:
    database = make_url(postgres_url).database
    postgres.execute(f"ALTER DATABASE {database} SET synchronous_commit = off")
    with pytest.raises(UnfitDatabase, match="synchronous_commit=off"):
        await open_store(postgres_url)
    await (await open_store(postgres_url, allow_unsafe_durability=True)).close()


async def test_sqlite_commits_are_synchronous_in_wal(sqlite_url: str) -> None:
    await run(sqlite_url, "PRAGMA journal_mode = DELETE")  # as a restored backup has it
    store = await open_store(sqlite_url)
    async with store._pools.write() as connection:
        modes = [
            (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "page_size")
        ]
    assert modes == ["wal", 2, 8192]
    await store.close()


async def test_sqlite_without_wal_is_refused(sqlite_url: str) -> None:
    engine = create_async_engine(sqlite_url)
    async with engine.connect() as connection:
        await connection.exec_driver_sql("PRAGMA journal_mode = DELETE")
        with pytest.raises(UnfitDatabase, match="WAL"):
            await check_durability(connection)
    await engine.dispose()


async def test_readers_cannot_write(database_url: str) -> None:
    store = await open_store(database_url)
    with pytest.raises(BiaojieError, match="read-only"):
        await store._pools.read(lambda c: c.exec_driver_sql("DELETE FROM chain_head"))
    await store.close()


async def test_a_file_that_is_no_database_is_unavailable(sqlite_url: str, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    other.write_bytes(b"not a database" * 1000)
    with pytest.raises(TemporarilyUnavailable):
        await open_store(f"sqlite:///{other}")


async def test_a_registry_can_be_moved_with_all_it_holds(sqlite_url: str, tmp_path: Path) -> None:
    """After close() the one file is the whole registry."""
    store = await open_store(sqlite_url)
    await home(store)
    await put(store, record())
    await store.close()
    moved = tmp_path / "moved.db"
    shutil.copy(make_url(sqlite_url).database or "", moved)
    assert sqlite3.connect(moved).execute("SELECT count(*) FROM records").fetchone() == (1,)
    again = await open_store(f"sqlite:///{moved}")
    assert await again.list_records(PREFIX, None, 10) == [record()]
    await again.close()
