"""Prefixes below one that lives at another node live there too.

Asked last, for names whose prefix this node does not know by itself.
"""

from __future__ import annotations

import asyncio

from biaojie.account import Prefix
from biaojie.errors import Elsewhere, TemporarilyUnavailable
from biaojie.identifier import Key
from registry.handle_rights import ancestors
from registry.store import ReadStore

from ..core import Answer, Onward, Source


class ReferralStep:
    def __init__(self, store: ReadStore, *, timeout_s: float = 1.5) -> None:
        self._store = store
        self._timeout_s = timeout_s

    async def resolve(self, key: Key, onward: Onward) -> Answer:
        if await self.responsible(key.prefix) is None:
            return await onward(key)
        return Answer(None, Elsewhere, Source.STORE, 0, 0)

    async def responsible(self, prefix: str) -> Prefix | None:
        """The nearest known prefix at or above a folded one, if its records are elsewhere."""
        names = [prefix, *ancestors(prefix)]
        try:
            async with asyncio.timeout(self._timeout_s):
                known = await self._store.find_prefixes(names)
        except TimeoutError:
            raise TemporarilyUnavailable() from None
        for name in names:
            if name in known:
                return known[name] if known[name].status.elsewhere else None
        return None
