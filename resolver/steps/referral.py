"""Prefixes below one that lives at another node live there too.

Asked last, for names whose prefix this node does not know by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence, Set

from biaojie.account import Prefix
from biaojie.errors import BiaojieError, Elsewhere, TemporarilyUnavailable
from biaojie.identifier import Key
from registry.handle_rights import ancestors
from registry.store import ReadStore

from ..core import Answer, Onward, Outcome, Source

NAMES_MAX = 4_096
"""Prefixes asked for in one statement."""


class ReferralStep:
    def __init__(self, store: ReadStore, *, timeout_s: float = 1.5) -> None:
        self._store = store
        self._timeout_s = timeout_s

    async def resolve(self, keys: Sequence[Key], onward: Onward) -> Sequence[Outcome]:
        try:
            responsible = await self.responsible_for({key.prefix for key in keys})
        except BiaojieError as error:
            return [error.again() for _ in keys]
        rest = [key for key in keys if responsible[key.prefix] is None]
        others = iter(await onward(rest)) if rest else iter(())
        return [
            next(others)
            if responsible[key.prefix] is None
            else Answer(None, Elsewhere, Source.STORE, 0, 0)
            for key in keys
        ]

    async def responsible(self, prefix: str) -> Prefix | None:
        """The nearest known prefix at or above a folded one, if its records are elsewhere."""
        return (await self.responsible_for({prefix}))[prefix]

    async def responsible_for(self, prefixes: Set[str]) -> dict[str, Prefix | None]:
        """`responsible` for each."""
        above = {prefix: [prefix, *ancestors(prefix)] for prefix in prefixes}
        names = list({name for line in above.values() for name in line})
        known: dict[str, Prefix] = {}
        try:
            async with asyncio.timeout(self._timeout_s):
                for at in range(0, len(names), NAMES_MAX):
                    known |= await self._store.find_prefixes(names[at : at + NAMES_MAX])
        except TimeoutError:
            raise TemporarilyUnavailable() from None
        nearest = {
            prefix: next((known[name] for name in line if name in known), None)
            for prefix, line in above.items()
        }
        return {
            prefix: found if found is not None and found.status.elsewhere else None
            for prefix, found in nearest.items()
        }
