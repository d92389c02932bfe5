"""Statistics of the node: who counts them, and who may see which.

The change log is counted by one worker of each node, a few seconds after the commits and apart
from them. What is resolved is counted where it is answered, and added to the registry now and
then and at an orderly stop; a crash loses what was answered since the last time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

from biaojie.account import Role
from biaojie.errors import BiaojieError, PrefixNotHere
from biaojie.identifier import fold_prefix
from registry.admission import Caller, Right, authorize
from registry.statistics import Report, Scope, day_of, report
from registry.store import Store

POLL_S: Final = 10.0
STOP_S: Final = 5.0
log = structlog.get_logger("biaojie.statistics")


class Statistician:
    """`start()` counts every `poll_s`, `stop()` a last time. `resolved` is how many resolutions
    this process has answered so far; with `folds` it counts the change log as well."""

    def __init__(
        self,
        store: Store,
        resolved: Callable[[], int],
        *,
        folds: bool,
        poll_s: float = POLL_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._resolved = resolved
        self._folds = folds
        self._poll_s = poll_s
        self._clock = clock
        self._added = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="statistics")

    async def stop(self) -> None:
        """Comes after the fronts have stopped: nothing is answered any more."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        try:
            async with asyncio.timeout(STOP_S):
                await self.count()
        except (BiaojieError, TimeoutError) as error:
            lost = self._resolved() - self._added
            log.warning("resolutions are not counted", number=lost, why=str(error))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self.count()
            except BiaojieError as error:  # the registry is away: there will be another time
                log.info("not counted yet", why=str(error))
            except Exception:
                log.exception("statistics cannot be counted")

    async def count(self) -> None:
        """Bring the registry's statistics up to date; raises what the store does."""
        resolved = self._resolved()
        if resolved > self._added:
            today = day_of(int(self._clock() * 1000))
            adding = asyncio.ensure_future(
                self._store.add_resolutions(today, resolved - self._added)
            )
            # Should the node stop meanwhile, these must be neither forgotten nor added twice.
            try:
                await asyncio.shield(adding)
            except asyncio.CancelledError:
                await asyncio.wait((adding,))
                raise
            finally:
                if adding.done() and not adding.cancelled() and adding.exception() is None:
                    self._added = resolved
        while self._folds and await self._store.fold_statistics():
            pass


async def ask(store: Store, caller: Caller, prefix: str | None, days: int, listed: Scope) -> Report:
    """The numbers of a prefix; else of all for an admin, of its tenant's prefixes for others.
    `listed` says how many prefixes and templates are listed, but not whose.

    Raises Unauthenticated, Forbidden, PrefixNotHere (to those who may know).
    """
    scope = listed._replace(prefix=None, tenant=None)
    if prefix is not None:
        folded = fold_prefix(prefix)
        found = (await store.find_prefixes([folded])).get(folded)
        authorize(caller, Right.READ_PRIVATE, found.tenant if found else caller.tenant)
        if found is None:
            raise PrefixNotHere()
        scope = scope._replace(prefix=found)
    else:
        authorize(caller, Right.READ_PRIVATE, caller.tenant)
        if caller.role is not Role.ADMIN:
            scope = scope._replace(tenant=caller.tenant)
    return await report(store, scope, day_of(time.time_ns() // 1_000_000), days)
