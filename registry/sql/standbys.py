"""Reads on streaming standbys of the registry's database, none of them older than is known here.

What a standby says counts only if it had replayed the change log up to the position that this
process knew of when it asked. One that is behind, dead, or of another registry is left out: the
primary is asked at once, and a task asks the standby until it may be read again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from biaojie.change import Entry
from biaojie.errors import BiaojieError
from biaojie.identifier import Key

from ..changelog import ZERO
from ..standbys import NOWHERE
from ..store import LOOK_UP_MAX, Found
from . import reader
from .citus import CitusStore
from .direct import direct
from .engine import Limits, Pools, Reach, read_url
from .faults import Errors, drivers
from .schema import UnfitDatabase
from .store import SqlStore
from .tables import changelog

T = TypeVar("T")
Placed = Callable[[AsyncConnection], Awaitable[tuple[int, T]]]
"""A read that tells how far the log was when it was done, or sooner."""

_SHARE = 3
"""A read may take this part of its time on a standby: the rest is for the primary."""
_SOONEST_S, _LATEST_S = 0.02, 1.0
"""Between two looks at a standby that is left out."""
log = logging.getLogger("biaojie.standbys")


class _Standby:
    def __init__(self, url: str, limits: Limits) -> None:
        parsed = read_url(url)
        self.name = parsed.render_as_string(hide_password=True)
        self.pools = Pools(parsed, limits)
        self.ready = False
        self.task: asyncio.Task[None] | None = None


class Standbys:
    """The readers of standbys, by turns. Made where a loop runs; `close()` it.

    The primary stays its owner's.
    """

    def __init__(self, primary: Reach, urls: Sequence[str], limits: Limits) -> None:
        self.position: Callable[[], int] = lambda: NOWHERE
        self._primary = primary
        share = Limits(
            min(limits.connect_s, limits.read_s / _SHARE),
            limits.read_s / _SHARE,
            limits.write_s,
            limits.readers,
        )
        self._all = [_Standby(url, share) for url in urls]
        self._turn = 0
        self.counts = {"standby": 0, "primary": 0}
        for standby in self._all:
            self._leave_out(standby)

    @property
    def ready(self) -> int:
        """How many are read from."""
        return sum(standby.ready for standby in self._all)

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        return await self.read_placed(work, partial(_after_head, work))

    async def read_placed(
        self, work: Callable[[AsyncConnection], Awaitable[T]], placed: Placed[T]
    ) -> T:
        """Run `placed` on a standby, or else `work` on the primary, which answer alike."""
        standby = self._next()
        if standby is not None:
            position = self.position()
            try:
                reached, result = await standby.pools.read(placed)
            except _failures() as error:
                log.warning("standby %s is left out: %r", standby.name, error)
                self._leave_out(standby)
            else:
                if reached >= position:
                    self.counts["standby"] += 1
                    return result
                self._leave_out(standby)
        self.counts["primary"] += 1
        return await self._primary.read(work)

    def _next(self) -> _Standby | None:
        for _ in self._all:
            self._turn = (self._turn + 1) % len(self._all)
            if self._all[self._turn].ready:
                return self._all[self._turn]
        return None

    def _leave_out(self, standby: _Standby) -> None:
        standby.ready = False
        if standby.task is None or standby.task.done():
            standby.task = asyncio.create_task(self._bring_back(standby), name="standby")

    def recheck(self) -> None:
        """Read from none before it was found again to follow the same log."""
        for standby in self._all:
            self._leave_out(standby)

    async def _bring_back(self, standby: _Standby) -> None:
        pause_s = _SOONEST_S
        while not standby.ready:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LATEST_S)
            try:
                standby.ready = await self._may_be_read(standby)
            except _failures():
                continue  # it, or the primary, is still away

    async def _may_be_read(self, standby: _Standby) -> bool:
        position = self.position()
        if position >= NOWHERE:
            return False
        at, hash_ = await standby.pools.read(reader.head)
        if at < position:
            return False
        known = await self._primary.read(partial(_hash_of, at)) if at else ZERO
        if known != hash_:
            log.error("standby %s does not follow this registry", standby.name)
        return known == hash_

    def write(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._primary.write()

    def connections(self) -> dict[str, int]:
        each = [standby.pools.connections() for standby in self._all]
        return {name: sum(pool[name] for pool in each) for name in ("used", "open")}

    async def close(self) -> None:
        tasks = [standby.task for standby in self._all if standby.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for standby in self._all:
            await standby.pools.close()


def _failures() -> Errors:
    return (BiaojieError, *drivers())


async def _after_head(
    work: Callable[[AsyncConnection], Awaitable[T]], connection: AsyncConnection
) -> tuple[int, T]:
    # In this order: a standby only goes forward, so what is read later is not older.
    sequence, _ = await reader.head(connection)
    return sequence, await work(connection)


async def _hash_of(sequence: int, connection: AsyncConnection) -> bytes | None:
    statement = select(changelog.c.hash).where(changelog.c.sequence == sequence)
    found: bytes | None = await connection.scalar(statement)
    return found


async def _look_up(keys: Sequence[Key], connection: AsyncConnection) -> tuple[int, list[Found]]:
    """The question with which a commit begins: it gives the head too, in the same round trip."""
    begun = await direct(connection).load(keys, [])
    return begun.head[0], reader.found_in(begun.rows, keys)


class StandbyStore(SqlStore):
    """See registry.standbys.StandbyReader. Made by `open_standbys`."""

    def __init__(self, standbys: Standbys) -> None:
        super().__init__(standbys)
        self._standbys = standbys

    @property
    def position(self) -> Callable[[], int]:
        return self._standbys.position

    @position.setter
    def position(self, position: Callable[[], int]) -> None:
        self._standbys.position = position

    async def look_up(self, keys: Sequence[Key]) -> list[Found]:
        if not keys:
            return []
        assert len(keys) <= LOOK_UP_MAX
        return await self._standbys.read_placed(
            lambda c: reader.look_up(c, keys), partial(_look_up, keys)
        )

    def forget(self, entry: Entry) -> None:
        pass

    def clear(self) -> None:
        self._standbys.recheck()

    def readings(self) -> dict[str, float]:
        used = {f"standby_connections_{name}": n for name, n in self.connections().items()}
        return {"standbys_ready": self._standbys.ready, **used}

    def counts(self) -> dict[str, float]:
        return {f"reads_from_{name}": n for name, n in self._standbys.counts.items()}


async def open_standbys(
    store: SqlStore,
    urls: Sequence[str],
    *,
    connect_timeout_s: float = 2.0,
    read_timeout_s: float = 2.0,
    pool_size: int = 4,
) -> StandbyStore:
    """Readers of the standbys at `urls`, over the primary that `store` has open.

    They need not be there yet. No read takes longer than `read_timeout_s`, and a third of it on
    a standby that does not answer. Raises ValueError on what is no PostgreSQL URL,
    UnfitDatabase over Citus.
    """
    if isinstance(store, CitusStore):
        raise UnfitDatabase(
            "replica_url is for one PostgreSQL and its standbys; with Citus, leave it empty.",
            "replica_url 仅用于单个 PostgreSQL 及其备库；使用 Citus 时请留空。",
        )
    for url in urls:
        if read_url(url).get_backend_name() != "postgresql":
            raise ValueError("a standby must be a PostgreSQL database")
    limits = Limits(connect_timeout_s, read_timeout_s, read_timeout_s, pool_size)
    return StandbyStore(Standbys(store.reach, urls, limits))
