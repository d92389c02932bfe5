"""`verify` on real databases: every tampering is found, an honest registry is clean."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import delete, insert, update

from biaojie.account import Role
from biaojie.identifier import Identifier
from biaojie.record import Record
from registry import audit as audit_module
from registry.accounts import new_key
from registry.audit import audit
from registry.changelog import key_digest, record_digest
from registry.memory import MemoryStore
from registry.operations import Purge
from registry.sql.blob import encode_blob
from registry.sql.tables import api_keys, prefixes, records
from registry.staging import Rules
from tests.audited import OTHER, Registry, Tamper, at, built, faults_after, row
from tests.core_parts import (
    PREFIX,
    create,
    home,
    identifier,
    issue,
    registering,
    value,
    write,
)


@pytest.fixture
async def registry(database_url: str) -> AsyncIterator[Registry]:
    async with built(database_url) as registry:
        yield registry


async def test_an_honest_registry_is_clean(registry: Registry) -> None:
    found = await registry.audit(witness=registry.witness)
    assert found.faults == []
    assert (found.entries, found.records) == (16, 12)
    assert found.changes == 28
    assert (await registry.audit(log_only=True, witness=registry.witness)).faults == []
    # As it is from a witness that saw less, and from none.
    earlier = (await registry.store.list_changes(4, 1))[0]
    assert (await registry.audit(witness=(earlier.sequence, earlier.hash))).faults == []


# Records --------------------------------------------------------------------------------


async def edit_value(r: Registry) -> None:
    [found] = await r.store.look_up([identifier("S6").key()])
    forged = replace(found.record, values=(value("forged", timestamp=found.record.modified),))
    await r.run(update(records).where(at("S6")).values(blob=row(forged)["blob"]))


async def edit_time(r: Registry) -> None:
    [found] = await r.store.look_up([identifier("S6").key()])
    forged = replace(found.record, created=found.record.created - 1)
    await r.run(update(records).where(at("S6")).values(blob=row(forged)["blob"]))


def set_column(suffix: str, **values: Any) -> Tamper:
    async def tamper(r: Registry) -> None:
        await r.run(update(records).where(at(suffix)).values(**values))

    return tamper


async def delete_one(r: Registry) -> None:
    await r.run(delete(records).where(at("S6")))


async def delete_a_tombstone(r: Registry) -> None:
    await r.run(delete(records).where(at("S3")))


async def insert_one(r: Registry) -> None:
    await r.run(insert(records).values(row(Record(Identifier(PREFIX, "NEW"), (value(),)))))


async def insert_after_the_end(r: Registry) -> None:
    await r.run(insert(records).values(row(Record(Identifier(PREFIX, "NEW"), ()), 10**6)))


def set_back(suffix: str) -> Tamper:
    async def tamper(r: Registry) -> None:
        await r.run(delete(records).where(at(suffix)), insert(records).values(r.old[suffix]))

    return tamper


async def set_back_within_one_entry(r: Registry) -> None:
    [found] = await r.store.look_up([identifier("TWICE").key()])
    now = found.record.modified
    first = replace(found.record, version=1, values=(value("one", timestamp=now),))
    changes = (await r.store.list_changes(found.record.sequence - 1, 1))[0].changes
    assert changes[0].digest == record_digest(first), "the first state as it was"
    await r.run(
        delete(records).where(at("TWICE")),
        insert(records).values(row(first, found.record.sequence)),
    )


async def rename(r: Registry) -> None:
    await r.run(update(records).where(at("S6")).values(suffix=b"S60"))


async def rename_one_that_keeps_its_spelling(r: Registry) -> None:
    await r.run(update(records).where(at("LOW/ñ")).values(suffix=b"LOW"))


async def swap(r: Registry) -> None:
    six, eight = (await r.rows(records, at("S6")))[0], (await r.rows(records, at("S8")))[0]
    await r.run(
        delete(records).where(at("S6") | at("S8")),
        insert(records).values([six | {"suffix": b"S8"}, eight | {"suffix": b"S6"}]),
    )


async def double_over_another(r: Registry) -> None:
    """One record twice, the second time where another was: as many as before."""
    [found] = await r.store.look_up([identifier("S6").key()])
    double = row(found.record, found.record.sequence)
    double["suffix"] = b"S8"
    double["blob"] = encode_blob(found.record, Identifier(PREFIX, "S8").key())
    await r.run(delete(records).where(at("S8")), insert(records).values(double))


async def move_to_another_prefix(r: Registry) -> None:
    await r.run(update(records).where(at("S6")).values(prefix_id=2))


async def move_and_keep_its_name(r: Registry) -> None:
    [found] = await r.store.look_up([identifier("S6").key()])
    blob = encode_blob(found.record, Identifier(OTHER, "S6").key())
    await r.run(update(records).where(at("S6")).values(prefix_id=2, blob=blob))


RECORD_TAMPERS = {
    "edit a value": (edit_value, "S6"),
    "edit the time": (edit_time, "S6"),
    "empty the blob": (set_column("S6", blob=b""), "S5"),
    "scramble the blob": (set_column("S6", blob=b"\xc1\xff"), "S5"),
    "scramble the first": (set_column("LOW/ñ", blob=b"\x93"), PREFIX),
    "activate a frozen one": (set_column("S7", status=1), "S7"),
    "retire by hand": (set_column("S6", status=3), "S6"),
    "a status there is not": (set_column("S6", status=77), "S5"),
    "a mark of a purge": (set_column("S6", status=9), "the log says 10 records, there are 9"),
    "raise the version": (set_column("S6", version=2), "S6"),
    "another template": (set_column("S6", template="88.118.8/t"), "S6"),
    "an earlier entry": (set_column("S6", sequence=2), "S6"),
    "a later entry": (set_column("S6", sequence=9), "S6"),
    "an entry that is not": (set_column("S6", sequence=99), "99"),
    "delete": (delete_one, PREFIX),
    "delete a tombstone": (delete_a_tombstone, PREFIX),
    "insert": (insert_one, "NEW"),
    "insert after the end": (insert_after_the_end, "1000000"),
    "set back a put": (set_back("S1"), PREFIX),
    "set back a modify": (set_back("S2"), PREFIX),
    "set back a retire": (set_back("S3"), PREFIX),
    "bring back what was purged": (set_back("S4"), "S4"),
    "bring back what was before a purge": (set_back("S5"), "S5"),
    "set back within one entry": (set_back_within_one_entry, "TWICE"),
    "rename": (rename, "S60"),
    "rename but for the spelling": (rename_one_that_keeps_its_spelling, "low/ñ"),
    "swap": (swap, "S6"),
    "double": (double_over_another, "S6"),
    "move to another prefix": (move_to_another_prefix, "S6"),
    "move and keep the name": (move_and_keep_its_name, "S6"),
}


async def test_tampered_records(registry: Registry) -> None:
    for name, (tamper, named) in RECORD_TAMPERS.items():
        faults = await faults_after(tamper, registry)
        assert any(named in fault for fault in faults), (name, faults)
    assert (await registry.audit(witness=registry.witness)).faults == []


# Prefixes and keys ----------------------------------------------------------------------


def set_prefix(**values: Any) -> Tamper:
    async def tamper(r: Registry) -> None:
        await r.run(update(prefixes).where(prefixes.c.name == OTHER).values(**values))

    return tamper


async def delete_prefix(r: Registry) -> None:
    await r.run(delete(prefixes).where(prefixes.c.name == OTHER))


async def insert_prefix(r: Registry) -> None:
    fields = {"name": "88.118.7", "spelling": "88.118.7", "tenant": "evil", "status": 1}
    await r.run(insert(prefixes).values(**fields, created=0, version=1, sequence=1))


PREFIX_TAMPERS = {
    "tenant": set_prefix(tenant="beta"),
    "status": set_prefix(status=2),
    "no status": set_prefix(status=7),
    "spelling": set_prefix(spelling="88.118.09"),
    "name": set_prefix(name="88.118.90"),
    "created": set_prefix(created=5),
    "version": set_prefix(version=1),
    "sequence": set_prefix(sequence=1),
    "sequence after the end": set_prefix(sequence=10**6),
    "delete": delete_prefix,
    "insert": insert_prefix,
}


async def test_tampered_prefixes(registry: Registry) -> None:
    for name, tamper in PREFIX_TAMPERS.items():
        faults = await faults_after(tamper, registry)
        assert any("prefix" in fault or "carries entry" in fault for fault in faults), name


def set_key(number: int, **values: Any) -> Tamper:
    async def tamper(r: Registry) -> None:
        await r.run(update(api_keys).where(api_keys.c.id == r.keys[number]).values(**values))

    return tamper


async def delete_key(r: Registry) -> None:
    await r.run(delete(api_keys).where(api_keys.c.id == r.keys[1]))


async def insert_key(r: Registry) -> None:
    _, operation = new_key("", Role.ADMIN)
    fields = {"id": operation.id, "digest": operation.digest, "tenant": "", "role": "admin"}
    await r.run(insert(api_keys).values(**fields, label="", created=1, revoked=0))


async def swap_secrets(r: Registry) -> None:
    """Two keys change places: the reader's secret now opens the admin's door."""
    by_id = {k["id"]: k["digest"] for k in await r.rows(api_keys)}
    one, two = r.keys[0], r.keys[2]
    await r.run(
        update(api_keys).where(api_keys.c.id == one).values(digest=b"for a moment"),
        update(api_keys).where(api_keys.c.id == two).values(digest=by_id[one]),
        update(api_keys).where(api_keys.c.id == one).values(digest=by_id[two]),
    )


KEY_TAMPERS = {
    "raise the role": set_key(1, role="admin"),
    "no role": set_key(1, role="god"),
    "tenant": set_key(1, tenant="beta"),
    "label": set_key(1, label="harmless"),
    "created": set_key(1, created=5),
    "revoke": set_key(1, revoked=5),
    "bring back a revoked one": set_key(2, revoked=0),
    "another secret": set_key(1, digest=b"e" * 32),
    "swap secrets": swap_secrets,
    "id": set_key(1, id="zzzzzzzz"),
    "delete": delete_key,
    "insert": insert_key,
}


async def test_tampered_keys(registry: Registry) -> None:
    for name, tamper in KEY_TAMPERS.items():
        faults = await faults_after(tamper, registry)
        assert any("key" in fault for fault in faults), name


# How it reports -------------------------------------------------------------------------


async def test_faults_are_counted_all_and_kept_up_to_a_bound(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "FAULTS_KEPT_MAX", 5)
    await registry.run(update(records).values(version=77))
    found = await registry.audit()
    assert len(found.faults) == 5
    assert found.fault_count > 12


async def test_progress_is_told(registry: Registry) -> None:
    told: list[tuple[str, int]] = []
    await registry.audit(progress=lambda what, count: told.append((what, count)))
    assert ("entries", 16) in told


async def test_case_counts_where_the_registry_says_so() -> None:
    store = MemoryStore()
    async with registering(store, rules=Rules(case_sensitive=True)) as registrar:
        await home(registrar)
        await write(registrar, create("a"), create("A"), create("b"))
        await write(registrar, Purge(identifier("a")))
    assert (await audit(store, case_sensitive=True)).faults == []


async def test_a_key_hides_nothing_of_its_state() -> None:
    store = MemoryStore()
    async with registering(store) as registrar:
        await issue(registrar)
    [key] = await store.list_keys(None, 10)
    states = {
        key_digest(changed)
        for changed in (
            key,
            replace(key, role=Role.ADMIN),
            replace(key, tenant="beta"),
            replace(key, label="x"),
            replace(key, created=1),
            replace(key, revoked=1),
            replace(key, digest=bytes(32)),
            replace(key, id="zzzzzzzz"),
        )
    }
    assert len(states) == 8
