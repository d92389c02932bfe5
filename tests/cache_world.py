"""A cache over a step behind it that answers what a test says, when it says so."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from biaojie.change import Action, Change, Entry
from biaojie.errors import (
    BiaojieError,
)
from biaojie.identifier import Identifier, Key
from biaojie.record import Record
from registry.changelog import ZERO, next_entry
from resolver.core import Answer, Outcome, Source
from resolver.health import Health
from resolver.steps.cache import CacheStep
from tests.core_parts import (
    PREFIX,
    key,
    value,
)


class World:
    """A cache over an onward step that answers what it is told, when it is told."""

    def __init__(self, **options: Any) -> None:
        self.now = 1_000.0
        self.health = Health()
        self.cache = CacheStep(self.health, clock=lambda: self.now, **options)
        self.asked: list[Key] = []
        self.together: list[int] = []
        """How many were asked for each time."""
        self.errors: dict[Key, BiaojieError] = {}
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None
        self.absence: type[BiaojieError] | None = None
        self.ttl_s = 100
        self.version = 1

    async def onward(self, keys: Sequence[Key]) -> list[Outcome]:
        self.asked += keys
        self.together.append(len(keys))
        error, absence, version = self.error, self.absence, self.version
        if self.gate is not None:
            await self.gate.wait()
        if error is not None:
            raise error
        if absence is not None:
            return [Answer(None, absence, Source.STORE, 0, 0) for _ in keys]
        return [self._answer(at, version) for at in keys]

    def _answer(self, at: Key, version: int) -> Outcome:
        error = self.errors.get(at)
        if error is not None:
            return error
        record = Record(Identifier(at.prefix, at.suffix.decode()), (value(),), version=version)
        return Answer(record, None, Source.STORE, 0, self.ttl_s)

    async def ask(self, suffix: str = "SN1", prefix: str = PREFIX) -> Answer:
        (outcome,) = await self.cache.resolve([key(suffix, prefix)], self.onward)
        if isinstance(outcome, BiaojieError):
            raise outcome
        return outcome

    async def ask_many(self, *suffixes: str) -> list[Outcome]:
        return await self.cache.resolve([key(suffix) for suffix in suffixes], self.onward)

    def later(self, suffix: str = "SN1") -> asyncio.Task[Answer]:
        return asyncio.create_task(self.ask(suffix))

    def commit(self, subject: str = f"{PREFIX}/SN1", action: Action = Action.PUT) -> None:
        self.version += 1
        self.cache.forget(entry(subject, action))

    def append(self, *changes: Change) -> None:
        """A commit of any changes."""
        self.version += 1
        self.cache.forget(next_entry((0, ZERO), 0, changes))


def entry(subject: str, action: Action = Action.PUT) -> Entry:
    return next_entry((0, ZERO), 0, [Change(action, subject, 1, "k", bytes(32))])


async def turns() -> None:
    """Let everything happen that needs no time."""
    for _ in range(5):
        await asyncio.sleep(0)
