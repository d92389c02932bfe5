"""The local registry as a step: concurrent misses gather into one look-up.

The next batch leaves when one returns, so a lone miss waits for nobody and a burst costs a
few statements. Authorised readers use `fetch` directly and never touch the cache.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from biaojie.account import Prefix
from biaojie.errors import BiaojieError, OverCapacity, TemporarilyUnavailable
from biaojie.identifier import Key
from biaojie.record import Record
from registry.store import Found, ReadStore

from ..core import Answer, Onward, Source, public_view
from ..health import Health

BATCH_KEYS_MAX = 512


class Watcher(Protocol):
    def looked_up(self, keys: int, seconds: float, ok: bool) -> None: ...


class LocalStep:
    """`lanes` look-ups run at a time; `pending_max` names may wait (beyond: OverCapacity)."""

    def __init__(
        self,
        store: ReadStore,
        health: Health,
        *,
        watcher: Watcher | None = None,
        lanes: int = 2,
        pending_max: int = 20_000,
        timeout_s: float = 1.5,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._health = health
        self._watcher = watcher
        self._lanes = lanes
        self._pending_max = pending_max
        self._timeout_s = timeout_s
        self._clock = clock
        self._pending: dict[Key, list[asyncio.Future[Found]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def resolve(self, key: Key, onward: Onward) -> Answer:
        prefix, record = await self.fetch(key)
        if prefix is None:
            return await onward(key)  # not ours: whoever comes next may know it
        return self.answer(prefix, record)

    def answer(self, prefix: Prefix | None, record: Record | None) -> Answer:
        """The public answer made of what `fetch` found just now."""
        view, absence = public_view(prefix, record)
        return Answer(view, absence, Source.STORE, 0, view.ttl_s(self._clock()) if view else 0)

    async def fetch(self, key: Key) -> Found:
        """What the registry holds, private values and all. Raises TemporarilyUnavailable."""
        if self._health.down:
            raise TemporarilyUnavailable()
        if len(self._pending) >= self._pending_max:
            raise OverCapacity()
        future: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._pending.setdefault(key, []).append(future)
        if len(self._tasks) < self._lanes:
            task = asyncio.create_task(self._drain(), name="look-up")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _drain(self) -> None:
        while self._pending:
            batch = dict(list(self._pending.items())[:BATCH_KEYS_MAX])
            for key in batch:
                del self._pending[key]
            await self._look_up(batch)

    async def _look_up(self, batch: dict[Key, list[asyncio.Future[Found]]]) -> None:
        started = time.perf_counter()
        failure: BiaojieError | None = None
        answers: list[Found] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                answers = await self._store.look_up(list(batch))
        except TimeoutError:
            failure = TemporarilyUnavailable("The registry did not answer in time.")
        except BiaojieError as error:
            failure = error
        except Exception as error:
            failure = TemporarilyUnavailable()
            failure.__cause__ = error
        if self._watcher is not None:
            self._watcher.looked_up(len(batch), time.perf_counter() - started, failure is None)
        if failure is not None:
            self._health.failed(repr(failure.__cause__ or failure))
        for number, futures in enumerate(batch.values()):
            for future in futures:
                if future.done():
                    continue
                if failure is None:
                    future.set_result(answers[number])
                else:
                    future.set_exception(type(failure)(*failure.detail))

    async def close(self) -> None:
        """Wait for look-ups under way; they are bounded by `timeout_s`."""
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
