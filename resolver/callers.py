"""Who asks, by API key. A key that was valid a moment ago is valid without asking the registry;
what a commit of this node revokes is forgotten at once. However many ask with one key, the
registry is asked for it once at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from biaojie.account import ApiKey
from biaojie.change import Action, Entry
from biaojie.errors import BiaojieError, Unauthenticated
from registry.accounts import KEY_PATTERN, digest
from registry.admission import PUBLIC, Caller

from .guesses import Guesses
from .steps.local import LocalStep

KEY_TRUSTED_S: Final = 2.0
"""How long a key is taken as valid without asking the registry again (promised: ≤ 5 s)."""
KEYS_MAX: Final = 10_000


class Callers:
    """Keys are known by their digests alone. `guesses`: who has asked with wrong ones."""

    def __init__(
        self, local: LocalStep, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._local = local
        self._monotonic = monotonic
        self._kept: OrderedDict[bytes, tuple[ApiKey, float]] = OrderedDict()
        self._asked: dict[bytes, asyncio.Task[ApiKey | None]] = {}
        self.guesses = Guesses()

    async def authenticate(self, key: str | None, peer: str) -> Caller:
        """The caller a key stands for; PUBLIC without one.

        Raises Unauthenticated for a key that is malformed, unknown or revoked, and
        TooManyRequests once a peer has guessed too often.
        """
        if key is None:
            return PUBLIC
        well_formed = KEY_PATTERN.fullmatch(key) is not None
        hashed = digest(key) if well_formed else b""
        kept = self._kept.get(hashed)
        now = self._monotonic()
        if kept is not None and now < kept[1]:
            return caller_of(kept[0])
        if kept is None:  # a key that was valid a moment ago is no guess
            self.guesses.check(peer, now)
        known = await self._known(hashed, now) if well_formed else None
        if known is None or known.revoked:
            self.guesses.missed(peer, now)
            raise Unauthenticated(
                "The key is not valid here: unknown or revoked.",
                "该密钥在本节点无效：未知或已吊销。",
            )
        return caller_of(known)

    async def _known(self, hashed: bytes, now: float) -> ApiKey | None:
        asked = self._asked.get(hashed)
        if asked is None:
            asked = self._asked[hashed] = asyncio.ensure_future(self._ask(hashed, now))
        try:
            # Shielded: one who runs out of time must not end it for the others.
            return await asyncio.shield(asked)
        except BiaojieError as error:
            raise error.again() from None

    async def _ask(self, hashed: bytes, now: float) -> ApiKey | None:
        known = None
        try:
            known = await self._local.find_key(hashed)
        finally:
            # Gone from there if keys were revoked meanwhile: what we were told may be no more.
            current = self._asked.get(hashed) is asyncio.current_task()
            if current:
                del self._asked[hashed]
        if known is None or known.revoked:
            self._kept.pop(hashed, None)
        elif current:
            self._kept[hashed] = (known, now + KEY_TRUSTED_S)
            while len(self._kept) > KEYS_MAX:
                self._kept.popitem(last=False)
        return known

    def trusted(self, hashed: bytes) -> Caller | None:
        """Who `authenticate` says the key with this digest stands for, if it need not ask."""
        kept = self._kept.get(hashed)
        if kept is None or self._monotonic() >= kept[1]:
            return None
        return caller_of(kept[0])

    def lately(self, key: str | None) -> Caller | None:
        """Who a key stood for when it was asked for last, as far as that is remembered. It need
        not be valid any more: nothing is granted by it."""
        if not key or KEY_PATTERN.fullmatch(key) is None:
            return None
        kept = self._kept.get(digest(key))
        return None if kept is None else caller_of(kept[0])

    def forget(self, entry: Entry) -> None:
        """A commit: forget the keys it revoked."""
        revoked = {c.subject for c in entry.changes if c.action is Action.REVOKE_KEY}
        if revoked:
            self._asked.clear()
            for hashed, (key, _) in list(self._kept.items()):
                if key.id in revoked:
                    del self._kept[hashed]

    def clear(self) -> None:
        """Trust no key unasked: commits may have been missed."""
        self._asked.clear()
        self._kept.clear()


def caller_of(key: ApiKey) -> Caller:
    return Caller(key.id, key.tenant, key.role)
