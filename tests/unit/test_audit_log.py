"""`verify` and the log: edited, cut, reordered, mended; and what only the witness knows."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, update

from biaojie.change import Action, Change, Entry
from biaojie.identifier import Identifier
from biaojie.record import Record
from registry.audit import audit
from registry.changelog import ZERO, next_entry, pack_changes, record_digest, unpack_changes
from registry.memory import MemoryStore
from registry.sql.tables import chain_head, changelog, records
from tests.audited import Registry, Tamper, built, faults_after, row
from tests.core_parts import PREFIX, create, home, opened, put, registering, value, write


@pytest.fixture
async def registry(database_url: str) -> AsyncIterator[Registry]:
    async with built(database_url) as registry:
        yield registry


# The log --------------------------------------------------------------------------------


def set_entry(sequence: int, **values: Any) -> Tamper:
    async def tamper(r: Registry) -> None:
        await r.run(update(changelog).where(changelog.c.sequence == sequence).values(**values))

    return tamper


def set_head(**values: Any) -> Tamper:
    async def tamper(r: Registry) -> None:
        await r.run(update(chain_head).values(**values))

    return tamper


async def edit_a_change(r: Registry) -> None:
    [found] = await r.rows(changelog, changelog.c.sequence == 6)
    changes = list(unpack_changes(found["changes"]))
    changes[0] = replace(changes[0], actor="innocent")
    await set_entry(6, changes=pack_changes(changes))(r)


async def mend(r: Registry, entries: list[Entry]) -> None:
    """Write a log of these entries, each hashed and chained as it should be."""
    head = (0, ZERO)
    rows = []
    for entry in entries:
        made = next_entry(head, entry.time_ms, entry.changes)
        fields = ("time_ms", "actor", "action", "prefix", "count", "root", "previous", "hash")
        rows.append(
            {"sequence": made.sequence, "changes": pack_changes(made.changes)}
            | {name: getattr(made, name) for name in fields}
        )
        head = (made.sequence, made.hash)
    await r.run(
        delete(changelog),
        insert(changelog).values(rows),
        update(chain_head).values(sequence=head[0], hash=head[1]),
    )


async def whole(r: Registry) -> list[Entry]:
    entries: list[Entry] = await r.store.list_changes(0, 1_000)
    return entries


async def edit_and_mend(r: Registry) -> None:
    entries = await whole(r)
    changes = [replace(c, actor="innocent") for c in entries[5].changes]
    entries[5] = replace(entries[5], changes=tuple(changes))
    await mend(r, entries)


async def edit_a_digest_and_mend(r: Registry) -> None:
    entries = await whole(r)
    first, *rest = entries[5].changes
    entries[5] = replace(entries[5], changes=(replace(first, digest=bytes(32)), *rest))
    await mend(r, entries)


async def delete_and_mend(r: Registry) -> None:
    entries = await whole(r)
    del entries[8]
    await mend(r, entries)


async def swap_and_mend(r: Registry) -> None:
    entries = await whole(r)
    entries[8], entries[9] = entries[9], entries[8]
    await mend(r, entries)


async def append_and_mend(r: Registry) -> None:
    entries = await whole(r)
    change = Change(Action.CREATE, f"{PREFIX}/GHOST", 1, "innocent", bytes(32))
    await mend(r, [*entries, replace(entries[-1], changes=(change,))])


async def set_the_head_back(r: Registry) -> None:
    entry = (await whole(r))[-2]
    await set_head(sequence=entry.sequence, hash=entry.hash)(r)


async def delete_the_last(r: Registry) -> None:
    await r.run(delete(changelog).where(changelog.c.sequence == 16))


async def truncate_and_mend_the_head(r: Registry) -> None:
    await mend(r, (await whole(r))[:12])


async def delete_an_entry(r: Registry) -> None:
    await r.run(delete(changelog).where(changelog.c.sequence == 7))


async def delete_the_first(r: Registry) -> None:
    await r.run(delete(changelog).where(changelog.c.sequence == 1))


async def empty_the_log(r: Registry) -> None:
    await r.run(delete(changelog), update(chain_head).values(sequence=0, hash=ZERO))


async def swap_entries(r: Registry) -> None:
    rows = {row["sequence"]: row for row in await r.rows(changelog)}
    await r.run(
        delete(changelog).where(changelog.c.sequence.in_([7, 8])),
        insert(changelog).values([rows[7] | {"sequence": 8}, rows[8] | {"sequence": 7}]),
    )


async def double_an_entry(r: Registry) -> None:
    rows = await r.rows(changelog)
    await r.run(insert(changelog).values(rows[-1] | {"sequence": 17}))


LOG_TAMPERS = {
    "time": set_entry(5, time_ms=1),
    "actor": set_entry(5, actor="innocent"),
    "action": set_entry(5, action="put"),
    "prefix": set_entry(6, prefix="88.118.7"),
    "count": set_entry(6, count=1),
    "root": set_entry(6, root=bytes(32)),
    "previous": set_entry(6, previous=bytes(32)),
    "hash": set_entry(6, hash=bytes(32)),
    "hash of the last": set_entry(16, hash=bytes(32)),
    "unreadable changes": set_entry(6, changes=b"\xc1"),
    "edit a change": edit_a_change,
    "edit and mend": edit_and_mend,
    "edit a digest and mend": edit_a_digest_and_mend,
    "delete and mend": delete_and_mend,
    "swap and mend": swap_and_mend,
    "append and mend": append_and_mend,
    "delete the last": delete_the_last,
    "truncate and mend the head": truncate_and_mend_the_head,
    "delete": delete_an_entry,
    "delete the first": delete_the_first,
    "empty": empty_the_log,
    "swap": swap_entries,
    "double": double_an_entry,
    "head's sequence": set_head(sequence=15),
    "head's sequence beyond": set_head(sequence=99),
    "head's hash": set_head(hash=bytes(32)),
    "head set back": set_the_head_back,
}


async def test_tampered_log(registry: Registry) -> None:
    for name, tamper in LOG_TAMPERS.items():
        assert await faults_after(tamper, registry), name
        # The log by itself tells, except where only the records know that an entry is false.
        alone = await faults_after(tamper, registry, log_only=True)
        assert bool(alone) is (name != "append and mend"), name


# These a log and its registry would agree about; only the witness knows better.


async def test_a_consistent_forgery_is_known_to_the_witness_alone(registry: Registry) -> None:
    await append_and_mend(registry)
    entries = await whole(registry)
    honest = Record(Identifier(PREFIX, "GHOST"), (value("it was always here", timestamp=7),))
    digest = record_digest(honest)
    forged = replace(
        entries[-1], changes=(replace(entries[-1].changes[0], digest=digest),), time_ms=7_000
    )
    # The forger moves it to the past, where it looks old, and mends everything after it.
    await mend(registry, [*entries[:5], *entries[5:-1], forged])
    await registry.run(insert(records).values(row(honest, 17)))
    assert (await registry.audit()).faults == []
    assert (await registry.audit(witness=registry.witness)).faults == [], "so far only appended"
    await mend(registry, [replace(e, time_ms=e.time_ms - 1) for e in entries[:-1]] + [forged])
    assert (await registry.audit()).faults == []
    [fault] = (await registry.audit(witness=registry.witness)).faults
    assert "witness" in fault


async def test_another_registry_in_its_place_is_known_to_the_witness(
    registry: Registry, tmp_path: Path
) -> None:
    other = Registry("", MemoryStore())
    async with registering(other.store) as registrar:
        await home(registrar)
        for n in range(20):
            await write(registrar, create(f"S{n}"))
    assert (await audit(other.store)).faults == []
    [fault] = (await audit(other.store, witness=registry.witness)).faults
    assert "entry 16: is not the one the witness saw" in fault


def copy(url: str, path: Path) -> None:
    with closing(sqlite3.connect(url.partition(":///")[2])) as connection:
        connection.execute(f"VACUUM INTO '{path}'")


async def test_a_registry_set_back_to_an_earlier_state_is_known_to_the_witness(
    tmp_path: Path, sqlite_url: str
) -> None:
    """A backup put back: the log and the records agree, but there was more."""
    async with opened(sqlite_url) as store, registering(store) as registrar:
        await home(registrar)
        await write(registrar, create())
        copy(sqlite_url, tmp_path / "backup.db")
        await write(registrar, put())
        seen = await store.head()
    async with opened(f"sqlite+aiosqlite:///{tmp_path}/backup.db") as store:
        assert (await audit(store)).faults == []
        [fault] = (await audit(store, witness=seen)).faults
        assert "truncated" in fault


KEYS = {
    "records": ("prefix_id", "suffix"),
    "prefixes": ("id",),
    "api_keys": ("id",),
    "changelog": ("sequence",),
    "chain_head": ("id",),
}


def edit_a_cell(path: str, chance: random.Random) -> str:
    """Change one cell a little; returns what was done, nothing if the database would not."""
    with closing(sqlite3.connect(path)) as connection:
        table = chance.choice([*KEYS, "records", "changelog"])
        cursor = connection.execute(f"SELECT * FROM {table}")
        columns = [column[0] for column in cursor.description]
        cells = chance.choice(cursor.fetchall())
        number = chance.randrange(len(columns))
        if columns[number] in ("indexed_to", "shift") or (table, number) == ("chain_head", 0):
            return ""  # how far a job has come, what is counted of it, a number that says nothing
        old = cells[number]
        new: Any = (old or "") + "x" if isinstance(old, str | None) else old
        if isinstance(old, int):
            new = old + chance.choice([1, -1, 2**40])
        elif isinstance(old, bytes):
            spot = chance.randrange(len(old))
            new = old[:spot] + bytes([old[spot] ^ (1 << chance.randrange(8))]) + old[spot + 1 :]
        where = " AND ".join(f"{name} IS ?" for name in KEYS[table])
        keys = [cells[columns.index(name)] for name in KEYS[table]]
        statement = f"UPDATE {table} SET {columns[number]} = ? WHERE {where}"
        try:
            connection.execute(statement, (new, *keys))
            connection.commit()
        except sqlite3.IntegrityError:
            return ""
        return f"{statement}: {old!r} → {new!r}"


async def test_any_cell_of_any_table(sqlite_url: str) -> None:
    """80 random edits of one cell, each found."""
    chance = random.Random(12)
    async with built(sqlite_url) as registry:
        found = 0
        while found < 80:
            async with registry.restored():
                done = edit_a_cell(sqlite_url.partition(":///")[2], chance)
                result = await registry.audit(witness=registry.witness)
                assert bool(result.faults) is bool(done), done
                found += bool(done)
        assert (await registry.audit(witness=registry.witness)).faults == []
