"""What the tests of backup, restore and move begin with and compare."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from registry.admission import SYSTEM
from registry.sql.snapshot import shapes, snapshot
from tests.audited import Registry, built
from tests.core_parts import create, registering, token, value

Contents = dict[str, list[tuple[Any, ...]]]


async def contents(url: str) -> Contents:
    """Every row of every table."""
    found: Contents = {shape.table: [] for shape in shapes()}
    async with snapshot(url) as read:
        async for run in read.runs(shapes()):
            found[shapes()[run.table].table] += [tuple(row) for row in run.rows]
    return found


@asynccontextmanager
async def history(url: str) -> AsyncIterator[Registry]:
    """A registry with something in every table that life fills."""
    async with built(url) as made:
        async with registering(made.store) as registrar:
            strange = create("RECEIPT", values=(value(), value("\0ñ", 2)))
            await registrar.submit(SYSTEM, [strange], idempotency=token())
        yield made
