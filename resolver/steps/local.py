"""The local registry as a step: concurrent misses gather into one look-up.

The next batch leaves when one returns, so a lone miss waits for nobody and a burst costs a
few statements. Authorised readers use `fetch` directly and never touch the cache.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Protocol

import structlog

from biaojie.account import ApiKey, Prefix
from biaojie.errors import BiaojieError, Internal, OverCapacity, TemporarilyUnavailable
from biaojie.identifier import Key
from biaojie.record import Record
from registry.store import Found, ReadStore

from ..core import Answer, Onward, Source, public_view
from ..health import Health

BATCH_KEYS_MAX = 512
Batch = dict[Key, list[asyncio.Future[Found]]]
log = structlog.get_logger("biaojie.local")


class Watcher(Protocol):
    def looked_up(self, keys: int, seconds: float, ok: bool) -> None: ...


class LocalStep:
    """`lanes` look-ups run at a time; `pending_max` callers may wait (beyond: OverCapacity)."""

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
        self._waiting = 0  # callers in `_pending`
        self._tasks: set[asyncio.Task[None]] = set()

    async def resolve(self, key: Key, onward: Onward) -> Answer:
        prefix, record = await self.fetch(key)
        if prefix is None:
            return await onward(key)  # not ours: whoever comes next may know it
        return self.answer(prefix, record)

    def answer(self, prefix: Prefix | None, record: Record | None) -> Answer:
        """The public answer made of what `fetch` found just now."""
        view, absence = public_view(prefix, record)
        if view is None:
            return Answer(None, absence, Source.STORE, 0, 0)
        return Answer(view, None, Source.STORE, 0, view.ttl_s(self._clock()), view is record)

    async def fetch(self, key: Key) -> Found:
        """What the registry holds, private values and all.

        Raises TemporarilyUnavailable, OverCapacity, and Internal for what cannot be read.
        """
        if self._health.down:
            raise TemporarilyUnavailable()
        if self._waiting >= self._pending_max:
            raise OverCapacity()
        future: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._pending.setdefault(key, []).append(future)
        self._waiting += 1
        if len(self._tasks) < self._lanes:
            self._tasks.add(asyncio.create_task(self._drain(), name="look-up"))
        return await future

    async def find_key(self, digest: bytes) -> ApiKey | None:
        """The key whose secret has this SHA-256. Raises TemporarilyUnavailable."""
        if self._health.down:
            raise TemporarilyUnavailable()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._store.find_key(digest)
        except (TimeoutError, TemporarilyUnavailable) as error:
            self._health.failed(repr(error))
            raise TemporarilyUnavailable() from error

    async def _drain(self) -> None:
        try:
            while self._pending:
                batch = self._take()
                if self._health.down:  # it went down while these waited
                    _settle(batch, [], TemporarilyUnavailable())
                elif batch:
                    await self._look_up(batch)
        finally:
            # Here, not in a callback that comes later: between the two a caller could find
            # all lanes taken by tasks that look no more.
            task = asyncio.current_task()
            assert task is not None
            self._tasks.discard(task)

    def _take(self) -> Batch:
        batch: Batch = {}
        for key in list(islice(self._pending, BATCH_KEYS_MAX)):
            waiting = self._pending.pop(key)
            self._waiting -= len(waiting)
            wanted = [future for future in waiting if not future.done()]
            if wanted:  # else all who asked have given up
                batch[key] = wanted
        return batch

    async def _look_up(self, batch: Batch) -> None:
        started = time.perf_counter()
        failure: BiaojieError | None = None
        answers: list[Found] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                answers = await self._store.look_up(list(batch))
        except TimeoutError:
            failure = TemporarilyUnavailable(
                "The registry did not answer in time.", "注册库未在限时内响应。"
            )
        except BiaojieError as error:
            failure = error
        except Exception:
            # It answered, but with something that cannot be read, such as a damaged record.
            failure = Internal()
            if len(batch) == 1:
                log.exception("look-up failed", key=next(iter(batch)))
        if self._watcher is not None:
            self._watcher.looked_up(len(batch), time.perf_counter() - started, failure is None)
        if isinstance(failure, Internal) and len(batch) > 1:
            # Halve until the bad one is alone: the others must not suffer for it.
            keys = list(batch)
            for part in (keys[: len(keys) // 2], keys[len(keys) // 2 :]):
                await self._look_up({key: batch[key] for key in part})
            return
        if failure is not None and not isinstance(failure, Internal):
            self._health.failed(repr(failure))
        _settle(batch, answers, failure)

    async def close(self) -> None:
        """Wait for look-ups under way; they are bounded by `timeout_s`."""
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)


def _settle(batch: Batch, answers: Sequence[Found], failure: BiaojieError | None) -> None:
    for number, futures in enumerate(batch.values()):
        for future in futures:
            if future.done():
                continue
            if failure is None:
                future.set_result(answers[number])
            else:
                # One object each: tracebacks and request ids are not shared.
                future.set_exception(type(failure)(*failure.detail, **failure.fields))
