"""`store` runs a test on each kind of store; `peer` opens the same data once more."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from registry.memory import MemoryStore
from registry.sql import open_store
from registry.store import Store


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> str | None:
    if request.param == "memory":
        return None
    url: str = request.getfixturevalue(
        {"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]
    )
    return url


@pytest.fixture
async def store(store_url: str | None) -> AsyncIterator[Store]:
    opened = MemoryStore() if store_url is None else await open_store(store_url)
    yield opened
    await opened.close()


@pytest.fixture
async def peer(store_url: str | None, store: Store) -> AsyncIterator[Store]:
    """Another store object on the same data, as a second process has it."""
    if store_url is None:
        yield store
    else:
        opened = await open_store(store_url)
        yield opened
        await opened.close()
