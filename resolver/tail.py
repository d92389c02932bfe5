"""Follows the change log, so that what others committed is forgotten here within a second.

Also the one that keeps asking when the registry is down: its first success after a failure
has already dropped every changed entry, so `Health.answered` means the cache is true again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from biaojie.change import Entry
from biaojie.errors import BiaojieError
from registry.store import ReadStore

from .health import Health

PAGE = 32  # an entry may hold thousands of changes
log = structlog.get_logger("biaojie.tail")


class Tail:
    """`poll_s` between looks at the log, `timeout_s` for one look."""

    def __init__(
        self,
        store: ReadStore,
        health: Health,
        listeners: list[Callable[[Entry], None]],
        *,
        poll_s: float = 0.25,
        timeout_s: float = 2.0,
    ) -> None:
        self._store = store
        self._health = health
        self.listeners = listeners
        self._poll_s = poll_s
        self._timeout_s = timeout_s
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self.sequence = 0

    async def start(self) -> None:
        """Begin after the present end of the log: the caches are still empty."""
        self.sequence = (await self._store.head())[0]
        self._task = asyncio.create_task(self._run(), name="tail")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._news.set()

    def committed(self, entry: Entry) -> None:
        """An entry of this process: wakes those who wait. The log is still read in order."""
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def wait(self, after: int, timeout_s: float) -> None:
        """Return when the log may have grown beyond `after`, or when the time is up."""
        if self.sequence > after:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):
                    entries = await self._store.list_changes(self.sequence, PAGE)
                for entry in entries:
                    for listener in self.listeners:
                        listener(entry)
                    self.sequence = entry.sequence
                if len(entries) < PAGE:
                    self._health.answered()
                if entries:
                    self._wake()
                    continue
            except (TimeoutError, BiaojieError) as error:
                self._health.failed(repr(error))
            except Exception as error:
                log.exception("tail")
                self._health.failed(repr(error))
            await asyncio.sleep(self._poll_s)
