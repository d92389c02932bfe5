"""`verify` on blocks: every tampering is found, and what bulk loads and compaction do is clean."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import delete, insert, update

from biaojie.record import Value
from registry.admission import SYSTEM
from registry.audit import audit
from registry.blocks import Chunk, cut, seal
from registry.members import Member, Members
from registry.operations import Purge
from registry.processes import processes
from registry.registrar import Registrar
from registry.sql.tables import blocks, records
from tests.audited import Registry, Tamper, at, built, faults_after
from tests.core_parts import PREFIX, create, identifier, modify, put, registering, value, write


async def load(registrar: Registrar, *numbers: int, data: bytes = b"x") -> None:
    names = [f"B{n:04}" for n in sorted(numbers)]
    chunk = Chunk(PREFIX, names, [[Value(1, "URL", b"")]], [[data] * len(names)])
    assert (await registrar.load(SYSTEM, cut(chunk, 1_700_000_000))).count == len(names)


async def fill(registry: Registry) -> None:
    async with registering(registry.store) as registrar:
        await load(registrar, *range(200))
        await load(registrar, *range(1_000, 1_100, 2))
        registry.old["block"] = (await registry.rows(blocks, first("B1000")))[0]
        await load(registrar, *range(1_001, 1_100, 2), data=b"y")  # written anew with the others
        await write(registrar, put("B0005", "changed"), modify("B0006", set=(value("z", 2),)))
        await write(registrar, Purge(identifier("B0007")), Purge(identifier("B0008")))
        await write(registrar, create("B0008", "again"))
        await write(registrar, *(create(f"C{n:04}", "a row") for n in range(60)))
        head, _ = await registry.store.head()
        await registrar.compact(SYSTEM, PREFIX, before=head + 1, after=b"B9")
        await write(registrar, put("C0003", "changed after all"))
    registry.witness = await registry.store.head()


@pytest.fixture
async def registry(database_url: str) -> AsyncIterator[Registry]:
    async with built(database_url) as registry:
        await fill(registry)
        yield registry


def first(suffix: str) -> Any:
    return blocks.c.first_suffix == suffix.encode()


async def test_an_honest_registry_is_clean(registry: Registry) -> None:
    found = await registry.audit(witness=registry.witness)
    assert found.faults == []
    assert found.busy == []
    assert found.records == 12 + 200 + 100 - 1 + 60


async def test_other_processes_find_the_same(registry: Registry) -> None:
    await edit(registry)
    told = await audit(registry.store, witness=registry.witness)
    with processes(2) as helpers:
        found = await audit(registry.store, witness=registry.witness, helpers=helpers)
    assert found.faults
    assert found == told


async def forge(r: Registry, suffix: str, **fields: Any) -> None:
    """Change a record within its block, and make everything fit that can be made to."""
    [old] = await r.rows(blocks, first(suffix))
    members = Members(old["blob"], old["count"], old["sequence"]).all()
    members[3] = Member(members[3].suffix, replace(members[3].record, **fields))
    [sealed] = seal(members, old["sequence"])
    await r.run(update(blocks).where(first(suffix)).values(blob=sealed.blob))


async def edit(r: Registry) -> None:
    await forge(r, "B0000", values=(Value(1, "URL", b"forged", timestamp=1_700_000_000),))


async def edit_one_that_was_a_row(r: Registry) -> None:
    await forge(r, "C0000", values=(Value(1, "URL", b"forged", timestamp=1_700_000_000),))


async def edit_age(r: Registry) -> None:
    await forge(r, "B0048", sequence=2)


def set_column(suffix: str, **values: Any) -> Tamper:
    async def tamper(r: Registry) -> None:
        await r.run(update(blocks).where(first(suffix)).values(**values))

    return tamper


async def delete_one(r: Registry) -> None:
    await r.run(delete(blocks).where(first("B0048")))


async def bring_back(r: Registry) -> None:
    await r.run(insert(blocks).values(r.old["block"] | {"prefix_id": 2}))


async def set_back(r: Registry) -> None:
    between = blocks.c.first_suffix.between(b"B1000", b"B1999")
    await r.run(delete(blocks).where(between), insert(blocks).values(r.old["block"]))


async def slip_in(r: Registry) -> None:
    [old] = await r.rows(blocks, first("B0000"))
    [sealed] = cut(Chunk(PREFIX, ["N1", "N2"], [[]], []), 1).sealed
    ends = {"first_suffix": b"N1", "last_suffix": b"N2", "count": 2, "blob": sealed.blob}
    await r.run(insert(blocks).values(old | ends))


def uncover(suffix: str) -> Tamper:
    """Take away the row that lies over a member."""

    async def tamper(r: Registry) -> None:
        await r.run(delete(records).where(at(suffix)))

    return tamper


async def hide(r: Registry) -> None:
    mark = {"suffix": b"B0009", "status": 9, "version": 0, "sequence": 20, "blob": b""}
    await r.run(insert(records).values(mark | {"prefix_id": 1, "template": None}))


TAMPERS: dict[str, tuple[Tamper, str]] = {
    "edit": (edit, "B0000"),
    "edit one that was a row": (edit_one_that_was_a_row, "C0000"),
    "edit the age": (edit_age, "B0048"),
    "not a blob": (set_column("B0000", blob=b"x"), "cannot be read"),
    "another count": (set_column("B0000", count=3), "B0000"),
    "another end": (set_column("B0000", last_suffix=b"B0001"), "cannot be read"),
    "reach over the next": (set_column("B0000", last_suffix=b"B0060"), "B0000"),
    "another beginning": (set_column("B0048", first_suffix=b"B0047x"), "cannot be read"),
    "another entry": (set_column("B0048", sequence=3), "B0048"),
    "an entry that is not": (set_column("B0048", sequence=9_999), "9999"),
    "delete": (delete_one, PREFIX),
    "bring back under another prefix": (bring_back, "B1000"),
    "set back": (set_back, PREFIX),
    "slip in": (slip_in, "N1"),
    "uncover what was changed": (uncover("B0005"), PREFIX),
    "uncover what was purged": (uncover("B0007"), "B0007"),
    "uncover what was registered again": (uncover("B0008"), "B0008"),
    "uncover what changed after a compaction": (uncover("C0003"), PREFIX),
    "hide": (hide, PREFIX),
}


async def test_tampered_blocks(registry: Registry) -> None:
    for name, (tamper, named) in TAMPERS.items():
        faults = await faults_after(tamper, registry)
        assert any(named in fault for fault in faults), (name, faults)
    assert (await registry.audit(witness=registry.witness)).faults == []


async def test_bulk_loads_and_compaction_meanwhile(registry: Registry) -> None:
    async def busy(registrar: Registrar) -> None:
        for n in range(40):
            await load(registrar, *range(2_000 + 7 * n, 2_000 + 7 * n + 7))
            await write(registrar, put(f"B0{n:03}", "x"))
            head, _ = await registry.store.head()
            await registrar.compact(SYSTEM, PREFIX, before=head + 1)
            await asyncio.sleep(0.02)

    async with registering(registry.store) as registrar:
        task = asyncio.create_task(busy(registrar))
        audits = 0
        while not task.done() or not audits:
            found = await registry.audit(witness=registry.witness)
            assert found.faults == []
            audits += 1
        await task
    found = await registry.audit(witness=registry.witness)
    assert (found.faults, found.busy) == ([], [])
