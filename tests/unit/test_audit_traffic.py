"""`verify` while the registry is in use: nothing honest looks forged, nothing forged honest."""

from __future__ import annotations

import asyncio
import random

import pytest
from sqlalchemy import delete, insert, update

from registry import audit as audit_module
from registry.audit import audit
from registry.sql.tables import records
from tests.audited import OTHER, Registry, Traffic, at, built, traffic
from tests.core_parts import GatedStore, create, home, registering, write


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that much happens between two pages."""
    monkeypatch.setattr(audit_module, "PAGE", 5)
    monkeypatch.setattr(audit_module, "ENTRIES_PAGE", 3)


@pytest.mark.usefixtures("small_pages")
async def test_a_registry_in_full_use_is_clean(database_url: str) -> None:
    async with built(database_url) as registry, registering(registry.store) as registrar:
        during = 0
        async with traffic(registrar, 4), asyncio.timeout(20):
            while during < 60:
                before = (await registry.store.head())[0]
                assert (await registry.audit(witness=registry.witness)).faults == []
                during += (await registry.store.head())[0] - before
        assert (await registry.audit(witness=registry.witness)).faults == []


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("seed", range(12))
async def test_full_use_where_every_read_is_followed_by_writes(seed: int) -> None:
    """A writer commits between any two reads of the audit."""
    store = GatedStore()
    chance = random.Random(seed)
    async with registering(store.inner) as registrar:
        await home(registrar)
        await home(registrar, OTHER, "beta")
        await write(registrar, *(create(f"T{n}") for n in range(0, 60, 2)))
        passing = store._pass

        async def meddle(name: str) -> None:
            await passing(name)
            # The log must end some time, or the audit would walk it for ever.
            if name != "list_changes" or chance.random() < 0.2:
                await Traffic(registrar, chance.randrange(10**9)).run(chance.randrange(3))

        store._pass = meddle  # type: ignore[method-assign]
        for _ in range(3):
            assert (await audit(store)).faults == []
        assert (await store.inner.head())[0] > 100


@pytest.mark.usefixtures("small_pages")
async def test_traffic_does_not_hide_tampering(database_url: str) -> None:
    async def delete_one(r: Registry) -> None:
        await r.run(delete(records).where(at("S6")))

    async def set_back(r: Registry) -> None:
        await r.run(delete(records).where(at("S1")), insert(records).values(r.old["S1"]))

    async def rename(r: Registry) -> None:
        await r.run(update(records).where(at("S6")).values(suffix=b"S60"))

    async with built(database_url) as registry:
        for tamper in (delete_one, set_back, rename):
            async with registry.restored(), registering(registry.store) as registrar:
                await tamper(registry)
                async with traffic(registrar, 2) as busy, asyncio.timeout(20):
                    while sum(each.done for each in busy) < 20:
                        assert (await registry.audit()).faults, tamper.__name__
