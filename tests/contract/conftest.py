"""`store` runs a test on each kind of store; `peer` opens the same data once more. `registry` has
a history, in either database; `bare_url` is of either with nothing in it, not even tables.

BIAOJIE_TEST_CITUS_URL names an empty database on the coordinator of a Citus cluster, where the
extension and the workers are; the suite runs there too then, and what is in it is lost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from registry.memory import MemoryStore
from registry.sql import SqlStore, migrate, open_store
from registry.store import Store
from tests.audited import Registry
from tests.citus import CITUS_URL, emptied, prepared
from tests.contract.transferred import history
from tests.postgres import Postgres, run_apart

PARTITIONS = 7
URLS = {
    "sqlite": "sqlite_url",
    "postgresql": "postgres_url",
    "partitions": "partitioned_url",
    "citus": "citus_url",
}
STORES = ["memory", *(kind for kind in URLS if kind != "citus" or CITUS_URL)]


@pytest.fixture(scope="session")
def _partitioned_template(postgres: Postgres) -> str:
    name = postgres.create_database()
    run_apart(migrate(postgres.url(name), partitions=PARTITIONS))
    return name


@pytest.fixture
def partitioned_url(postgres: Postgres, _partitioned_template: str) -> Iterator[str]:
    """URL of an empty, migrated database whose tables that grow have hash partitions."""
    name = postgres.create_database(_partitioned_template)
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture(scope="session")
def _distributed() -> str:
    return prepared()


@pytest.fixture
def citus_url(_distributed: str) -> str:
    """URL of an empty, migrated, distributed registry."""
    emptied(_distributed)
    return _distributed


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest) -> str | None:
    if request.param == "memory":
        return None
    url: str = request.getfixturevalue(URLS[request.param])
    return url


async def open_patiently(url: str) -> SqlStore:
    if url == CITUS_URL:  # three more servers here, whose sessions first learn who has what
        return await open_store(url, read_timeout_s=10, write_timeout_s=15)
    return await open_store(url)


@pytest.fixture
async def store(store_url: str | None) -> AsyncIterator[Store]:
    opened = MemoryStore() if store_url is None else await open_patiently(store_url)
    yield opened
    await opened.close()


@pytest.fixture
async def peer(store_url: str | None, store: Store) -> AsyncIterator[Store]:
    """Another store object on the same data, as a second process has it."""
    if store_url is None:
        yield store
    else:
        opened = await open_patiently(store_url)
        yield opened
        await opened.close()


@pytest.fixture
async def registry(database_url: str) -> AsyncIterator[Registry]:
    async with history(database_url) as made:
        yield made


@pytest.fixture(params=["sqlite", "postgresql"])
def bare_url(request: pytest.FixtureRequest, tmp_path: Path, postgres: Postgres) -> Iterator[str]:
    """URL of a database nobody has made tables in; of SQLite not even the file."""
    if request.param == "sqlite":
        (tmp_path / "bare").mkdir()
        yield f"sqlite:///{tmp_path / 'bare' / 'registry.db'}"
        return
    name = postgres.create_database()
    yield postgres.url(name)
    postgres.drop_database(name)
