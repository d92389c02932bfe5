"""A registry with a history, for tests that tamper with it, and traffic that goes on meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import delete, insert, select

from biaojie.account import PrefixStatus, Role
from biaojie.errors import BiaojieError
from biaojie.identifier import Identifier
from biaojie.record import Record, Status
from registry.accounts import new_key
from registry.audit import Audit, audit
from registry.operations import ChangePrefix, Purge, Retire, RevokeKey
from registry.registrar import Registrar
from registry.sql.blob import encode_blob
from registry.sql.tables import api_keys, blocks, chain_head, changelog, prefixes, records
from tests.core_parts import (
    PREFIX,
    create,
    home,
    identifier,
    issue,
    modify,
    opened,
    put,
    registering,
    value,
    write,
)

OTHER = "88.118.9"
TABLES = (prefixes, records, blocks, api_keys, changelog, chain_head)


class Registry:
    """A registry with a history, as its tables have it. `old` keeps rows from before."""

    def __init__(self, url: str, store: Any) -> None:
        self.url = url
        self.store = store
        self.old: dict[str, Any] = {}
        self.keys: list[str] = []
        self.witness: tuple[int, bytes] = (0, b"")

    async def build(self) -> None:
        async with registering(self.store) as registrar:
            await home(registrar)
            await home(registrar, OTHER, "beta")
            self.keys = [(await issue(registrar, role=role))[1] for role in Role]
            await write(registrar, *(create(f"S{n}", f"v{n}") for n in range(9)), create("low/ñ"))
            await write(registrar, create("S1", prefix=OTHER), create("S2", prefix=OTHER))
            await self.keep("S1", "S2", "S3", "S4")
            await write(registrar, put("S1", "v1 changed"), modify("S2", set=(value("x", 2),)))
            await write(registrar, Retire(identifier("S3")))
            await write(registrar, Purge(identifier("S4")))
            await self.keep("S5")
            await write(registrar, Purge(identifier("S5")))
            await write(registrar, create("S5", "v5 again"))
            # Created and changed within one entry.
            await write(registrar, create("TWICE", "one"), put("TWICE", "two"))
            await write(registrar, RevokeKey(self.keys[2]))
            await write(registrar, ChangePrefix(OTHER, "gamma"))
            await write(registrar, modify("S7", status=Status.FROZEN))
        self.witness = await self.store.head()

    async def keep(self, *suffixes: str) -> None:
        for suffix in suffixes:
            self.old[suffix] = (await self.rows(records, records.c.suffix == suffix.encode()))[0]

    async def rows(self, table: Any, *where: Any) -> list[dict[str, Any]]:
        async with self.store._pools.write() as connection:
            result = await connection.execute(select(table).where(*where))
            return [dict(row._mapping) for row in result]

    async def run(self, *statements: Any) -> None:
        async with self.store._pools.write() as connection:
            for statement in statements:
                await connection.execute(statement)

    async def audit(self, **options: Any) -> Audit:
        return await audit(self.store, **options)

    @asynccontextmanager
    async def restored(self) -> AsyncIterator[None]:
        """Afterwards every table is as it was before."""
        saved = [(table, await self.rows(table)) for table in TABLES]
        yield
        await self.run(*(delete(table) for table in TABLES))
        await self.run(*(insert(table).values(rows) for table, rows in saved if rows))


@asynccontextmanager
async def built(url: str) -> AsyncIterator[Registry]:
    async with opened(url) as store:
        registry = Registry(url, store)
        await registry.build()
        yield registry


def at(suffix: str, prefix_id: int = 1) -> Any:
    return (records.c.prefix_id == prefix_id) & (records.c.suffix == suffix.encode())


def row(record: Record, sequence: int = 6, prefix_id: int = 1) -> dict[str, Any]:
    key = record.identifier.key()
    return {
        "prefix_id": prefix_id,
        "suffix": key.suffix,
        "status": 1,
        "version": record.version,
        "sequence": sequence,
        "template": None,
        "blob": encode_blob(record, key),
    }


Tamper = Callable[[Registry], Awaitable[None]]


async def faults_after(tamper: Tamper, r: Registry, **options: Any) -> list[str]:
    """What verify finds after tampering, which is then undone."""
    async with r.restored():
        await tamper(r)
        result = await r.audit(witness=r.witness, **options)
    assert result.fault_count == len(result.faults)
    return result.faults


@asynccontextmanager
async def traffic(registrar: Registrar, writers: int) -> AsyncIterator[list[Traffic]]:
    """As many writers at work, until the block ends."""
    busy = [Traffic(registrar, seed) for seed in range(writers)]
    tasks = [asyncio.create_task(each.run()) for each in busy]
    try:
        yield busy
    finally:
        for each in busy:
            each.stopping = True
        await asyncio.gather(*tasks)


class Traffic:
    """Writers of every kind, until they are told to stop."""

    def __init__(self, registrar: Registrar, seed: int) -> None:
        self.registrar = registrar
        self.chance = random.Random(seed)
        self.done = 0
        self.stopping = False

    async def run(self, commits: int = 10**9) -> None:
        keys: list[str] = []
        while not self.stopping and self.done < commits:
            prefix = self.chance.choice([PREFIX, OTHER])
            suffix = f"T{self.chance.randrange(60)}"
            name = Identifier(prefix, suffix)
            operation: Any = self.chance.choice(
                [
                    create(suffix, prefix=prefix),
                    create(suffix, prefix=prefix),
                    put(suffix, str(self.done), prefix=prefix),
                    modify(suffix, prefix=prefix, set=(value(str(self.done), 3),)),
                    Retire(name),
                    Purge(name),
                    Purge(name),
                    ChangePrefix(prefix, status=self.chance.choice([*PrefixStatus])),
                    new_key("acme", Role.READER)[1],
                    RevokeKey(self.chance.choice(keys)) if keys else create(suffix),
                ]
            )
            try:
                await write(self.registrar, operation)
            except BiaojieError:
                await asyncio.sleep(0)
                continue
            if hasattr(operation, "digest"):
                keys.append(operation.id)
            self.done += 1
