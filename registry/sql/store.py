"""The store on SQLite or PostgreSQL: a method is one bounded read or one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from biaojie.account import ApiKey, Prefix
from biaojie.change import Entry
from biaojie.identifier import Key
from biaojie.record import Record

from ..blocks import Block
from ..census import Shift, added
from ..ranges import HeldRange, RangeKey
from ..statistics import (
    DAYS_MAX,
    ENTRIES_MAX,
    PREFIXES_MAX,
    Census,
    Octets,
    Statistics,
    Templates,
    count,
    resolutions,
)
from ..store import Ask, Found, Listed, Row
from . import listing, reader, statistics, tables
from .direct import Home
from .engine import Reach
from .faults import translated
from .ranges import list_ranges
from .schema import UnfitDatabase
from .writer import SqlTransaction

T = TypeVar("T")


class SqlStore:
    """See registry.store.Store. Made by `open_store`."""

    def __init__(self, pools: Reach) -> None:
        self._pools = pools

    @property
    def reach(self) -> Reach:
        """For other stores on the same connections."""
        return self._pools

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[SqlTransaction]:
        """Raises TemporarilyUnavailable with `outcome="unknown"` when the commit may have held."""
        async with self._pools.write() as connection:
            transaction = SqlTransaction(connection)
            yield transaction
            await transaction.flush()

    async def look_up(self, keys: Sequence[Key]) -> list[Found]:
        return await self._pools.read(lambda c: reader.look_up(c, keys))

    async def _of(self, prefix: str, work: Callable[[AsyncConnection, Home], Awaitable[T]]) -> T:
        """Run read-only `work` with where the prefix is."""

        async def read(connection: AsyncConnection) -> T:
            return await work(connection, await reader.home_of(connection, prefix))

        return await self._pools.read(read)

    async def list_records(self, prefix: str, after: bytes | None, limit: int) -> list[Record]:
        return await self._of(prefix, lambda c, h: reader.list_records(c, h, after, limit))

    async def list_pieces(self, prefix: str, after: bytes | None, ask: Ask) -> Listed:
        return await self._of(prefix, lambda c, h: listing.list_pieces(c, h, after, ask))

    async def list_ranges(self, prefix: str, after: RangeKey | None, limit: int) -> list[HeldRange]:
        return await self._of(prefix, lambda c, h: list_ranges(c, h, after, limit))

    async def list_rows(self, prefix: str, after: bytes | None, limit: int) -> list[Row]:
        return await self._of(prefix, lambda c, h: reader.list_rows(c, h, after, limit))

    async def find_in_blocks(self, keys: Sequence[Key]) -> list[Record | None]:
        return await self._pools.read(lambda c: reader.find_in_blocks(c, keys))

    async def list_blocks(self, prefix: str, after: bytes | None, limit: int) -> list[Block]:
        return await self._of(prefix, lambda c, h: reader.list_blocks(c, h, after, limit))

    async def find_prefixes(self, names: Sequence[str]) -> dict[str, Prefix]:
        return await self._pools.read(lambda c: reader.find_prefixes(c, names))

    async def list_prefixes(
        self, after: str | None, limit: int, tenant: str | None = None
    ) -> list[Prefix]:
        return await self._pools.read(lambda c: reader.list_prefixes(c, after, limit, tenant))

    async def find_key(self, digest: bytes) -> ApiKey | None:
        return await self._pools.read(lambda c: reader.find_key(c, digest))

    async def find_keys_by_id(self, ids: Sequence[str]) -> dict[str, ApiKey]:
        return await self._pools.read(lambda c: reader.find_keys_by_id(c, ids))

    async def list_keys(self, after: str | None, limit: int) -> list[ApiKey]:
        return await self._pools.read(lambda c: reader.list_keys(c, after, limit))

    async def list_changes(self, after: int, limit: int) -> list[Entry]:
        return await self._pools.read(lambda c: reader.list_changes(c, after, limit))

    async def head(self) -> tuple[int, bytes]:
        return await self._pools.read(reader.head)

    async def find_matches(
        self, digest: bytes, *, private: bool, prefix: str | None, after: Key, limit: int
    ) -> list[Key]:
        return await self._pools.read(
            lambda c: reader.find_matches(
                c, digest, private=private, prefix=prefix, after=after, limit=limit
            )
        )

    async def list_indexing(self) -> list[Prefix]:
        return await self._pools.read(reader.list_indexing)

    async def newest_record_sequence(self) -> int:
        """Reads every record, in short runs: its time grows with the registry."""
        newest = await self._pools.read(reader.newest_prefix_sequence)
        at: tuple[int, bytes] | None = (0, b"")
        while at is not None:
            greatest, at = await self._pools.read(partial(reader.scan_sequences, after=at))
            newest = max(newest, greatest)
        return newest

    async def fold_statistics(self) -> bool:
        before, entries = await self._pools.read(statistics.uncounted)
        if not entries:
            return False
        last = entries[-1].sequence
        counts = count(entry for entry in entries if entry.sequence > before.sequence)
        shift = None
        if before.census is not None:
            shift = added(e.shift for e in entries if e.sequence > before.census)
        census = None if shift is None or before.census is None else max(last, before.census)
        after = statistics.Heads(max(last, before.sequence), census)
        async with self._pools.write() as connection:
            with translated():
                if await statistics.move(connection, before, after):
                    await statistics.add(connection, counts)
                    await statistics.add_census(connection, shift or Counter())
        return len(entries) == ENTRIES_MAX

    async def add_resolutions(self, day: int, count: int) -> None:
        async with self._pools.write() as connection:
            with translated():
                await statistics.add(connection, resolutions(day, count))

    async def read_statistics(self, prefixes: Sequence[str], days: Sequence[int]) -> Statistics:
        assert len(prefixes) <= PREFIXES_MAX
        assert len(days) <= DAYS_MAX + 1
        return await self._pools.read(lambda c: statistics.read(c, prefixes, days))

    async def replace_census(self, counted: Shift, sequence: int) -> None:
        """By what there was after this entry of the log."""
        async with self._pools.write() as connection:
            with translated():
                await statistics.replace_census(connection, counted, sequence)

    async def read_census(self, prefixes: Sequence[str]) -> Census:
        assert len(prefixes) <= PREFIXES_MAX
        return await self._pools.read(lambda c: statistics.read_census(c, prefixes))

    async def read_templates(self, prefix: str, tenant: str | None, limit: int) -> Templates:
        return await self._pools.read(lambda c: statistics.read_templates(c, prefix, tenant, limit))

    async def octets(self) -> Octets:
        return await self._pools.read(statistics.octets)

    async def settle_rules(self, case_sensitive: bool) -> None:
        wanted = "yes" if case_sensitive else "no"
        async with self._pools.write() as connection:
            rule = select(tables.rules.c.value).where(tables.rules.c.name == "case-sensitive")
            with translated():
                settled = await connection.scalar(rule)
                if settled is None:
                    values = {"name": "case-sensitive", "value": wanted}
                    await connection.execute(insert(tables.rules).values(values))
        if settled not in (None, wanted):
            raise UnfitDatabase(
                f"This registry was begun with suffix_case_sensitive {settled}; it cannot change.",
                f"该注册库创建时 suffix_case_sensitive 为 {settled}，不能更改。",
            )

    def connections(self) -> dict[str, int]:
        return self._pools.connections()

    async def close(self) -> None:
        await self._pools.close()
