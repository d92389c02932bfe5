"""Rows over blocks are one dictionary, whatever is done in whatever order (`make layers`: more)."""

from __future__ import annotations

import os

import pytest

from registry.memory import MemoryStore
from registry.registrar import Registrar
from registry.sql import open_store
from registry.store import Store
from tests.citus import prepared
from tests.layers_model import NOW, Model

STEPS = int(os.environ.get("LAYERS_STEPS", "120"))
SEED = int(os.environ.get("LAYERS_SEED", "1"))


async def run(store: Store, seed: int, *, searchable: bool) -> None:
    registrar = Registrar(store, clock=lambda: float(NOW))
    registrar.start()
    try:
        model = Model(store, registrar, seed)
        await model.begin(searchable=searchable)
        for step in range(STEPS):
            await model.step()
            if step % 60 == 59:
                await model.check_all(searchable=searchable)
        await model.check_all(searchable=searchable, last=True)
        assert min(model.counts[what] for what in ("Create", "Purge", "bulk", "folded")) > 0
        print({**model.counts, "sequence": model.sequence})
    finally:
        await registrar.stop()
        await store.close()


@pytest.mark.parametrize("searchable", [False, True])
async def test_memory(searchable: bool) -> None:
    await run(MemoryStore(), SEED, searchable=searchable)


@pytest.mark.parametrize("searchable", [False, True])
async def test_sqlite(sqlite_url: str, searchable: bool) -> None:
    await run(await open_store(sqlite_url), SEED + 1, searchable=searchable)


@pytest.mark.parametrize("searchable", [False, True])
async def test_postgresql(postgres_url: str, searchable: bool) -> None:
    await run(await open_store(postgres_url), SEED + 2, searchable=searchable)


async def test_citus() -> None:
    store = await open_store(prepared(), read_timeout_s=10, write_timeout_s=15)
    await run(store, SEED + 9, searchable=True)
