"""Follows the change log, so that what others committed is forgotten here within a second.

Also the one that keeps asking when the registry is down: its first success after a failure
has already dropped every changed entry, so `Health.answered` means the cache is true again.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

import structlog

from biaojie.change import Entry
from biaojie.errors import BiaojieError
from biaojie.identifier import Key
from registry.store import ReadStore

from .health import Health

PAGE = 8  # an entry may hold thousands of changes, and reading them holds up everything else
OWN_MAX = 4_096
NUDGED_S = 0.02
"""However often it is nudged, the log is looked at no more often than this."""
PROBE = Key("0", b"0")
log = structlog.get_logger("biaojie.tail")


class Listener(Protocol):
    def forget(self, entry: Entry) -> None:
        """Drop what a commit changed."""
        ...

    def clear(self) -> None:
        """Drop everything: there may have been changes that were not seen."""
        ...


class Tail:
    """`poll_s` between looks at the log, `timeout_s` for one look."""

    def __init__(
        self,
        store: ReadStore,
        health: Health,
        listeners: list[Listener],
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
        self._head = (0, b"")
        self._nudged = asyncio.Event()
        self.released = False
        self._own: dict[int, tuple[bytes, bytes]] = {}
        """Entries of this process by sequence: the hash before, and their own."""

    @property
    def sequence(self) -> int:
        """The last entry that was followed."""
        return self._head[0]

    async def start(self) -> None:
        """Begin after the present end of the log: the caches are still empty."""
        self._head = await self._store.head()
        self._task = asyncio.create_task(self._run(), name="tail")

    async def stop(self) -> None:
        self.release()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def committed(self, entry: Entry | None = None) -> None:
        """This process has committed: wakes those who wait. The log is still followed in order,
        but its listeners, who know this entry, are not told of it again: what they have cached
        since is newer."""
        if entry is not None:
            self._own[entry.sequence] = entry.previous, entry.hash
            while len(self._own) > OWN_MAX:
                del self._own[next(iter(self._own))]
        news, self._news = self._news, asyncio.Event()
        news.set()

    def nudge(self) -> None:
        """Somebody else has committed: look at the log soon."""
        self._nudged.set()

    def release(self) -> None:
        """The node is about to stop: nobody waits for news any more."""
        self.released = True
        self._news.set()

    async def wait(self, after: int, timeout_s: float) -> None:
        """Return when the log may have grown beyond `after`, or when the time is up."""
        if self.sequence > after or self.released:
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
                    more = await self._look()
                if more:
                    continue
                if self._health.down:
                    # The log can be read; can records? Those who ask for them wait otherwise.
                    async with asyncio.timeout(self._timeout_s):
                        await self._store.look_up([PROBE])
                self._health.answered()
            except (TimeoutError, BiaojieError) as error:
                self._health.failed(repr(error))
            except Exception as error:
                log.exception("tail")
                self._health.failed(repr(error))
            await self._pause()

    async def _pause(self) -> None:
        """Until a nudge or the next look is due."""
        pause_s = min(NUDGED_S, self._poll_s)
        await asyncio.sleep(pause_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._poll_s - pause_s):
                await self._nudged.wait()
        self._nudged.clear()

    async def _look(self) -> bool:
        """Follow the next entries; says whether there may be more."""
        head = await self._store.head()
        if head == self._head:
            return False
        if head[0] <= self.sequence:
            # Restored from a backup, or a standby that had not got everything took over.
            log.error("the change log is not the one followed so far", sequence=head[0])
            for listener in self.listeners:
                listener.clear()
            self._head = head
            return False
        if self._all_own(head):
            self._follow(head)
            return False
        entries = await self._store.list_changes(self.sequence, PAGE)
        if entries:
            before = entries[0].previous
            for listener in self.listeners:
                if before != self._head[1]:
                    listener.clear()
                for entry in entries:
                    if self._own.get(entry.sequence, (b"", b""))[1] != entry.hash:
                        listener.forget(entry)
            self._follow((entries[-1].sequence, entries[-1].hash))
        return len(entries) == PAGE

    def _all_own(self, head: tuple[int, bytes]) -> bool:
        """Whether this process wrote all that came since: then it need not be read again, which
        would cost a third of what writing it did."""
        sequence, hash_ = self._head
        while sequence < head[0]:
            sequence += 1
            before, after = self._own.get(sequence, (b"", b""))
            if before != hash_:
                return False
            hash_ = after
        return hash_ == head[1]

    def _follow(self, head: tuple[int, bytes]) -> None:
        for sequence in range(self.sequence + 1, head[0] + 1):
            self._own.pop(sequence, None)
        self._head = head
        self.committed()
