"""Doing as much as can be done well: how many requests are worked on at a time, and whose.

A `Gate` bounds what one front works on. Its limit starts at the setting and sinks while even the
quickest of the recent requests took too long, which is what a standing queue looks like
(Nichols & Jacobson, CoDel, RFC 8289); a slow disk or one slow name makes no such sign. So under
any load the accepted are answered in time and the rest are told at once.

`Quotas` are token buckets by tenant. What is refused costs next to nothing, and whoever goes on
asking is read from less often (`PENALTY_S`), so that a loud one costs the others nothing.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

TARGET_S: Final = 0.05
"""A quickest request slower than this means that requests wait for each other."""
WINDOW_S: Final = 0.1
SAMPLES_MIN: Final = 8
LIMIT_MIN: Final = 16
PENALTY_S: Final = 0.03
"""A connection whose request was refused is read from again after this long: refusing is cheap,
but without end it is not. Less than the 50 ms within which the refused are answered."""
TENANTS_MAX: Final = 10_000


class Gate:
    """`enter` before work, `leave` after it. `limit` is how many may be within just now."""

    __slots__ = (
        "_clock",
        "_crowded",
        "_quickest",
        "_samples",
        "_since",
        "limit",
        "most",
        "refused",
        "running",
    )

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self.limit = most
        self.running = 0
        self.refused = 0
        self._clock = clock
        self._since = clock()
        self._quickest = float("inf")
        self._samples = 0
        self._crowded = False
        """Whether the limit was reached in this window."""

    @property
    def full(self) -> bool:
        return self.running >= self.limit

    def enter(self) -> bool:
        """Whether there is room; if so it is taken."""
        if self.running >= self.limit:
            self._crowded = True
            self.refused += 1
            return False
        self.running += 1
        return True

    def leave(self, seconds: float | None = None) -> None:
        """`seconds` it took, of requests that should be quick; None for others."""
        self.running -= 1
        if seconds is None:
            return
        self._samples += 1
        self._quickest = min(self._quickest, seconds)
        if self._samples >= SAMPLES_MIN:
            now = self._clock()
            if now - self._since >= WINDOW_S:
                self._judge(now)

    def _judge(self, now: float) -> None:
        if self._quickest > TARGET_S:
            self.limit = max(LIMIT_MIN, min(self.limit, self.running + 1) * 3 // 4)
        elif self._crowded or self.limit < self.most:
            self.limit = min(self.most, self.limit + max(1, self.limit // 16))
        self._since = now
        self._quickest = float("inf")
        self._samples = 0
        self._crowded = False


class Quotas:
    """`rate_max` requests a second for each tenant, with a second's worth of them at once; 0: any
    number. The least lately seen are forgotten beyond TENANTS_MAX: a full bucket says nothing."""

    def __init__(self, rate_max: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate_max
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self.refused = 0

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, tenant: str) -> float:
        """Take one request's worth: 0, or after how many seconds to ask again."""
        if not self._rate:
            return 0.0
        now = self._clock()
        left, then = self._buckets.get(tenant, (float(self._rate), now))
        left = min(self._rate, left + (now - then) * self._rate)
        if left < 1:
            self._buckets[tenant] = (left, now)
            self.refused += 1
            return (1 - left) / self._rate
        self._buckets[tenant] = (left - 1, now)
        self._buckets.move_to_end(tenant)
        while len(self._buckets) > TENANTS_MAX:
            self._buckets.popitem(last=False)
        return 0.0
