"""The local registry as a step: concurrent misses gather into one look-up.

The next batch leaves when one returns, so a lone miss waits for nobody and a burst costs a
few statements. Authorised readers use `fetch` directly and never touch the cache.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import structlog

from biaojie.account import ApiKey, Prefix
from biaojie.errors import BiaojieError, Internal, OverCapacity, TemporarilyUnavailable
from biaojie.identifier import Key
from biaojie.record import Record
from registry.store import Found, ReadStore

from ..core import Answer, Onward, Outcome, Source, make_answer, public_view
from ..health import Health

BATCH_KEYS_MAX = 512
LANES = 2
"""Look-ups at a time: while one is with the registry, the other is brought or answered."""
_STORE = Source.STORE
log = structlog.get_logger("biaojie.local")


class Watcher(Protocol):
    def looked_up(self, keys: int, seconds: float, ok: bool) -> None: ...


@dataclass(eq=False, slots=True)
class _Wanted:
    """What one caller waits for: `found` fills up, and when nothing is `left` he is told."""

    found: list[Found | BiaojieError]
    left: int
    told: asyncio.Future[None]


Batch = dict[Key, list[tuple[_Wanted, int]]]
"""Who wants each name, and which of his it is."""


class LocalStep:
    """`lanes` look-ups run at a time; `pending_max` names may wait, counted for each caller
    (beyond: OverCapacity)."""

    def __init__(
        self,
        store: ReadStore,
        health: Health,
        *,
        watcher: Watcher | None = None,
        lanes: int = LANES,
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
        self._pending: Batch = {}
        self._waiting = 0  # entries in its lists
        self._tasks: set[asyncio.Task[None]] = set()

    async def resolve(self, keys: Sequence[Key], onward: Onward) -> Sequence[Outcome]:
        outcomes: list[Outcome] = []
        elsewhere: list[int] = []
        looked_up = await self.fetch_many(keys)
        now = self._clock()
        for n, found in enumerate(looked_up):
            if isinstance(found, BiaojieError):
                outcomes.append(found)
                continue
            prefix, record = found
            if prefix is None:
                elsewhere.append(n)
            outcomes.append(_answer(prefix, record, now))
        if elsewhere:  # not ours: whoever comes next may know them
            others = await onward([keys[n] for n in elsewhere])
            for n, outcome in zip(elsewhere, others, strict=True):
                outcomes[n] = outcome
        return outcomes

    def answer(self, prefix: Prefix | None, record: Record | None) -> Answer:
        """The public answer made of what `fetch` found just now."""
        return _answer(prefix, record, self._clock())

    async def fetch(self, key: Key) -> Found:
        """What the registry holds, private values and all.

        Raises TemporarilyUnavailable, OverCapacity, and Internal for what cannot be read.
        """
        (found,) = await self.fetch_many((key,))
        if isinstance(found, BiaojieError):
            raise found
        return found

    async def fetch_many(self, keys: Sequence[Key]) -> list[Found | BiaojieError]:
        """For each key what `fetch` gives or raises, in order."""
        if self._health.down:
            return [TemporarilyUnavailable() for _ in keys]
        room = self._pending_max - self._waiting
        if room < len(keys):
            refused: list[Found | BiaojieError] = [OverCapacity() for _ in keys[max(room, 0) :]]
            return await self.fetch_many(keys[:room]) + refused if room > 0 else refused
        if not keys:
            return []
        told = asyncio.get_running_loop().create_future()
        wanted = _Wanted([_NOTHING] * len(keys), len(keys), told)
        pending = self._pending
        for n, key in enumerate(keys):
            waiting = pending.get(key)
            if waiting is None:
                pending[key] = [(wanted, n)]
            else:
                waiting.append((wanted, n))
        self._waiting += len(keys)
        if len(self._tasks) < self._lanes:
            self._tasks.add(asyncio.create_task(self._drain(), name="look-up"))
        await told
        return wanted.found

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
            for wanted, _ in waiting:
                if not wanted.told.done():  # else he has given up
                    batch[key] = waiting
                    break
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
    told: dict[_Wanted, int] = {}
    for number, waiting in enumerate(batch.values()):
        for wanted, n in waiting:
            wanted.found[n] = answers[number] if failure is None else failure.again()
            told[wanted] = told.get(wanted, 0) + 1
    for wanted, count in told.items():
        wanted.left -= count
        if not wanted.left and not wanted.told.done():
            wanted.told.set_result(None)


_NOTHING = Found(None, None)


def _answer(prefix: Prefix | None, record: Record | None, now: float) -> Answer:
    view, absence = public_view(prefix, record)
    if view is None:
        return make_answer(None, absence, _STORE, 0, 0, False, None)
    return make_answer(view, None, _STORE, 0, view.ttl_s(now), view is record, None)
