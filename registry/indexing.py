"""Makes the index of values anew when a prefix declares other types searchable.

Page by page, each in a transaction of its own that also notes how far it came: what is written
meanwhile is indexed by the write itself, a restart goes on where the last page ended, and two
nodes on one registry only share the work. Until the last page the prefix is `indexing`.
"""

from __future__ import annotations

import asyncio
import logging
import time

from biaojie.account import Prefix
from biaojie.change import Action, Entry
from biaojie.errors import BiaojieError
from biaojie.identifier import fold_prefix

from .matching import ALL_TYPES, Match, rows_of
from .store import Store

PAGE_RECORDS = 200
POLL_S = 30.0
"""How soon a change made through another process, or left by one that died, is taken up."""
REST_MIN_S, REST_MAX_S = 0.001, 1.0
_OF_PREFIXES = (Action.HOME_PREFIX, Action.CHANGE_PREFIX)
log = logging.getLogger("biaojie.indexing")


async def index_page(store: Store, prefix: Prefix, *, case_sensitive: bool = False) -> bool:
    """Index the next records of a prefix, at most 200; False when there is nothing left to do."""
    name = fold_prefix(prefix.name)
    async with store.transaction() as tx:
        after = await tx.indexed_to(name)
        if after is None:
            return False
        found = await tx.find_prefixes([name])
        types = found[name].searchable
        records = await tx.list_records(name, after, PAGE_RECORDS)
        added: set[Match] = set()
        removed: set[Match] = set()
        for record in records:
            key = record.identifier.key(case_sensitive=case_sensitive)
            wanted = rows_of(key, record, types)
            added |= wanted
            removed |= rows_of(key, record, ALL_TYPES) - wanted
            after = key.suffix
        await tx.change_rows(added, removed)
        more = len(records) == PAGE_RECORDS
        await tx.set_indexed_to(name, after if more else None)
    return more


class Indexer:
    """`start()` looks for work, then every `poll_s` and when the log tells of some (it listens
    to the resolver's tail); `stop()` ends after the present page.

    It rests as long as each page took, so that writers have at least every second turn.
    """

    def __init__(
        self, store: Store, *, case_sensitive: bool = False, poll_s: float = POLL_S
    ) -> None:
        self._store = store
        self._case_sensitive = case_sensitive
        self._poll_s = poll_s
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="indexer")

    def forget(self, entry: Entry) -> None:
        if any(change.action in _OF_PREFIXES for change in entry.changes):
            self._wake.set()

    def clear(self) -> None:
        self._wake.set()

    async def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
            self._task = None

    async def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                for prefix in await self._store.list_indexing():
                    await self._index(prefix)
            except BiaojieError as error:  # the registry is away: there will be another time
                log.warning("indexing is interrupted: %s", error)
            if not self._stopping:
                await self._pause(self._poll_s)

    async def _index(self, prefix: Prefix) -> None:
        more = True
        while more and not self._stopping:
            started = time.perf_counter()
            try:
                more = await index_page(self._store, prefix, case_sensitive=self._case_sensitive)
            except BiaojieError:
                raise
            except Exception:  # a record that cannot be read; other prefixes have none
                log.exception("%s cannot be indexed", prefix.name)
                return
            took_s = time.perf_counter() - started
            if more:
                await asyncio.sleep(min(max(took_s, REST_MIN_S), REST_MAX_S))
        if not more:
            log.info("indexed: %s", prefix.name)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
