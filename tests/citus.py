"""A Citus cluster that somebody else runs, for the tests that are told where."""

from __future__ import annotations

import os
from typing import Any

import asyncpg
import pytest

from registry.sql import migrate
from registry.sql.tables import metadata
from tests.postgres import run_apart

CITUS_URL = os.environ.get("BIAOJIE_TEST_CITUS_URL", "")
"""postgresql+asyncpg://… of an empty database on its coordinator. What is in it is lost."""
SHARDS = 4
"""Of each table; as many as a cluster has by default would only make the tests slow."""


def execute(url: str, *statements: str) -> list[Any]:
    """Run statements, each in autocommit; the rows of the last one."""

    async def run() -> list[Any]:
        connection = await asyncpg.connect(url.replace("+asyncpg", ""), timeout=10)
        try:
            rows: list[Any] = []
            for statement in statements:
                rows = await connection.fetch(statement, timeout=60)
            return rows
        finally:
            await connection.close()

    rows: list[Any] = run_apart(run())
    return rows


def prepared() -> str:
    """A new distributed registry at CITUS_URL; skips the test if there is none."""
    if not CITUS_URL:
        pytest.skip("BIAOJIE_TEST_CITUS_URL names no Citus cluster")
    wipe(CITUS_URL)
    [(name,)] = execute(CITUS_URL, "SELECT current_database()")
    execute(CITUS_URL, f'ALTER DATABASE "{name}" SET citus.shard_count = {SHARDS}')
    run_apart(migrate(CITUS_URL, citus=True))
    return CITUS_URL


def wipe(url: str) -> None:
    """No tables."""
    tables = ["alembic_version", *metadata.tables]
    execute(url, *(f'DROP TABLE IF EXISTS "{name}" CASCADE' for name in tables))


def emptied(url: str) -> None:
    """The tables as a migration leaves them."""
    kept = ("chain_head", "statistics_head")
    rows = [f'DELETE FROM "{name}"' for name in metadata.tables if name not in kept]
    heads = [f'UPDATE "{name}" SET sequence = 0' for name in kept if name in metadata.tables]
    heads.append("UPDATE statistics_head SET census = 0")
    hash_ = "UPDATE chain_head SET hash = decode(repeat('00', 32), 'hex')"
    execute(url, *rows, *heads, hash_)
