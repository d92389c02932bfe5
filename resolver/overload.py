"""Doing as much as can be done well: how many requests are worked on at a time, and whose.

A `Gate` bounds what one front works on. Its limit starts at the setting and sinks while even the
quickest of the recent requests took too long, which is what a standing queue looks like
(Nichols & Jacobson, CoDel, RFC 8289); a slow disk or one slow name makes no such sign. So under
any load the accepted are answered in time and the rest are told at once.

`Quotas` are token buckets by tenant. What is refused costs next to nothing, and whoever goes on
asking is read from less often (`Penalties`), so that a loud one costs the others nothing.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

from biaojie.errors import OverCapacity, TooManyRequests

TARGET_S: Final = 0.03
"""A quickest request slower than this, and than a look-up in the registry takes besides, means
that requests wait for each other."""
LOOK_UP_S: Final = 0.1
"""A registry slower than this is no excuse."""
WINDOW_S: Final = 0.1
SAMPLES_MIN: Final = 8
LIMIT_MIN: Final = 128
"""The limit sinks to as many as are answered within the time allowed, but never below this: what
comes in one piece gets done together, so that even the quickest of it may take long."""
FORGIVEN_S: Final = 0.5
"""After so long without a sample the limit grows by a step."""
PENALTY_S: Final = 0.03
"""Whoever was refused and asks again sooner than this waits so long for an answer: refusing is
cheap, but without end it is not. Less than the 50 ms within which the refused are answered."""
SWEEP_S: Final = 0.004
"""How far apart, at the least, the moments are at which penalties are looked at."""
REFUSING_SHARE: Final = 0.2
"""Of the processor's time that we get, what refusing may cost, so that four fifths are for work;
that is for each"""
REFUSAL_S: Final = 0.000_012
"""over HTTP, as measured with thousands of connections, system calls included, and"""
FRAME_REFUSAL_S: Final = 0.000_01
"""over the framed protocols; and of"""
QUOTA_REFUSAL_S: Final = 0.000_04
"""one that has to be read first, because it depends on who asks. To refuse them may cost"""
QUOTA_SHARE: Final = 0.05
"""of the processor's time: who is over his quota waits, and the others do not."""
QUOTA_AGAIN_PER_S: Final = 500
"""As READ_AGAIN_PER_S, of those."""
READ_SHARE: Final = 2.0
"""What one costs, of that, for which it is looked up first whether the cache has it;"""
PIPELINED_SHARE: Final = 0.4
"""what one costs that came in one piece with others; and"""
REFUSED_AT_ONCE: Final = 4
"""how many of a piece are refused before its connection has to wait with the rest."""
READ_AGAIN_PER_S: Final = 2_000
"""So many may be refused in any case. Beyond, whoever asks at once with thousands of others waits
longer: to refuse them all in time would leave no time for work."""
ASIDE_OCTETS: Final = 4_096
"""A request up to this size is taken from the system and put aside while it waits. Not to read
from its connection, and to read again, would cost more."""
PLACE_OCTETS: Final = 256
"""A request for many identifiers takes one more place for each so many octets, some ten of them;"""
LARGE_SHARE: Final = 8
"""but no more than all places by this."""
SHUT_S: Final = 0.1
"""So long after somebody used up his quota it is looked at who comes."""
RETRY_S: Final = 1
"""When those who were refused are asked to come again."""
TENANTS_MAX: Final = 10_000


class Held(Protocol):
    """A connection that is not read from for now."""

    def read_again(self, now: float) -> None:
        """Its time has come, or there is room, at the monotonic time `now`."""
        ...


class Penalties:
    """Connections whose requests have to wait for a place or a refusal. One timer serves them all.
    A connection is in it once, until it is told `read_again`: when there is room, those who came
    last first, so that whoever is let in has not waited long; else in the order in which they
    came, after `pause_s`, as fast as a `share` of the processor's time allows, and `again_per_s` in
    any case."""

    def __init__(
        self,
        pause_s: float = PENALTY_S,
        cpu_s: Callable[[], float] = time.process_time,
        *,
        refusal_s: float = REFUSAL_S,
        share: float = REFUSING_SHARE,
        again_per_s: int = READ_AGAIN_PER_S,
    ) -> None:
        self.pause_s = pause_s
        self._per_cpu_s = share / refusal_s
        self._per_s = again_per_s
        self._most = PENALTY_S * max(again_per_s, self._per_cpu_s)
        self._cpu_s = cpu_s
        self._held: OrderedDict[Held, float] = OrderedDict()
        """Until when each waits, those who came first in front."""
        self._timer: asyncio.TimerHandle | None = None
        self._filled, self._spent_s = time.monotonic(), cpu_s()
        self._left = PENALTY_S * again_per_s

    def __len__(self) -> int:
        return len(self._held)

    def allow(self, now: float) -> bool:
        """Whether one more may be refused at once, at the monotonic time `now`; it is charged
        then. Else its connection has to wait."""
        if self.exhausted(now):
            return False
        self._left -= 1
        return True

    def exhausted(self, now: float) -> bool:
        """`not allow`, and nothing is charged."""
        if now >= self._filled + SWEEP_S:
            self._fill(now)
        return self._left <= 0 or self._due(now)

    def add(self, connection: Held, now: float) -> None:
        self._held[connection] = now + self.pause_s
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.pause_s, self._sweep, loop)

    def forget(self, connection: Held) -> None:
        """It is gone, or waits no more. Nothing happens where it did not."""
        self._held.pop(connection, None)

    def charge(self, share: float = PIPELINED_SHARE) -> None:
        """One was refused; by itself, or one more of the same piece, which costs less."""
        self._left -= share

    def release_one(self) -> None:
        """There is room for one who waits."""
        if self._held:
            self._held.popitem()[0].read_again(time.monotonic())

    def _due(self, now: float) -> bool:
        """Whether somebody has waited long enough."""
        return bool(self._held) and next(iter(self._held.values())) <= now

    def _fill(self, now: float) -> None:
        spent_s = self._cpu_s()
        earned = max(
            (now - self._filled) * self._per_s,
            (spent_s - self._spent_s) * self._per_cpu_s,
        )
        self._filled, self._spent_s = now, spent_s
        self._left = min(self._left + earned, self._most)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        self._fill(now)
        self._timer = None
        try:
            while self._left > 0 and self._due(now):
                self._left -= 1
                self._held.popitem(last=False)[0].read_again(now)
        finally:  # whatever becomes of one, the others wait for this
            if self._held and self._timer is None:
                wait_s = max(next(iter(self._held.values())) - now, SWEEP_S)
                self._timer = loop.call_later(wait_s, self._sweep, loop)


class Gate:
    """`enter` before work, `leave` after it. `limit` is how many may be within just now. What asks
    for much takes several places, see `places_for`, if there is room for one.
    `penalties`: connections that were refused here; they are read from again as room is made.
    `look_up_s` says how long the registry took to answer lately; without end while it is
    down, for then time says nothing."""

    __slots__ = (
        "_clock",
        "_done",
        "_freed",
        "_look_up_s",
        "_quickest",
        "_samples",
        "_since",
        "_slow",
        "limit",
        "most",
        "penalties",
        "refused",
        "running",
    )

    def __init__(
        self,
        most: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        look_up_s: Callable[[], float] = lambda: 0.0,
        refusal_s: float = REFUSAL_S,
    ) -> None:
        self.most = most
        self.limit = most
        self.running = 0
        self.refused = 0
        self.penalties = Penalties(refusal_s=refusal_s)
        self._look_up_s = look_up_s
        self._clock = clock
        self._since = clock()
        self._quickest = float("inf")
        self._samples = self._done = 0
        self._freed = 0
        """Places that were left in this turn of the loop while somebody waited."""
        self._slow = False

    @property
    def full(self) -> bool:
        return self.running >= self.limit

    def places_for(self, octets: int) -> int:
        """What a request takes that asks for many identifiers in a body of so many octets: a
        part of all places at the most, for the others have to go on."""
        return min(1 + octets // PLACE_OCTETS, max(1, self.limit // LARGE_SHARE))

    def enter(self, places: int = 1) -> bool:
        """Whether there is room; if so it is taken."""
        if self.running >= self.limit:
            self.crowd()
            return False
        self.running += places
        return True

    def crowd(self) -> None:
        """Count one that found no room."""
        self.refused += 1

    def refuse(self) -> OverCapacity:
        """Count it; what it is told."""
        self.crowd()
        return OverCapacity(retry_after_s=RETRY_S)

    def leave(self, seconds: float | None = None, places: int = 1) -> None:
        """`seconds` they took, of requests that should be quick; None for others."""
        self._done += places
        self.step_out(places)
        if seconds is None:
            if self.limit < self.most:
                self._forgive()
            return
        self._samples += places
        self._quickest = min(self._quickest, seconds)
        if self._samples >= SAMPLES_MIN:
            now = self._clock()
            if now - self._since >= WINDOW_S:
                self._judge(now)

    def step_out(self, places: int = 1) -> None:
        """Leave one's places for a moment. Who waits is let in at the end of the turn: he may be
        answered by a call, leave in his turn and let in the next, and so on without end."""
        self.running -= places
        if self.penalties:
            if not self._freed:
                asyncio.get_running_loop().call_soon(self._let_in)
            self._freed += places

    def _let_in(self) -> None:
        freed, self._freed = self._freed, 0
        enough = max(1, self.limit - self.limit // 8)
        while freed and self.penalties and self.running < enough:
            freed -= 1
            self.penalties.release_one()

    def come_back(self, places: int = 1) -> None:
        """Into places that were left for a moment, whether there is room or not."""
        self.running += places

    def _forgive(self) -> None:
        """Where nothing tells how long requests wait, what was seen before holds not for ever."""
        now = self._clock()
        if now - self._since >= FORGIVEN_S:
            self.limit = min(self.most, self.limit + max(2, self.limit // 8))
            self._since, self._done = now, 0

    def _judge(self, now: float) -> None:
        look_up_s = self._look_up_s()
        allowed_s = TARGET_S + min(look_up_s, LOOK_UP_S)
        slow = self._quickest > allowed_s and not math.isinf(look_up_s)
        if slow and self._slow:  # twice running: once may be a pause of the machine
            in_time = int(self._done * allowed_s / (now - self._since))
            narrower = min(self.limit, self.running + 1) * 3 // 4
            self.limit = min(self.limit, max(LIMIT_MIN, in_time, narrower))
        elif not slow and self.limit < self.most:
            self.limit = min(self.most, self.limit + max(2, self.limit // 8))
        self._slow = slow
        self._since = now
        self._quickest = float("inf")
        self._samples = self._done = 0


class Place:
    """The places of one request, from when it came, if it `began` with one. Where the request is
    refused, its connection has to wait among the `penalties` then."""

    __slots__ = ("_gate", "_places", "_since", "penalties")

    def __init__(self, gate: Gate, began: float | None = None) -> None:
        self._gate = gate
        self._places = int(began is not None)
        self._since = time.monotonic() if began is None else began
        self.penalties: Penalties | None = None

    def expect(self) -> None:
        """Raises OverCapacity if there is no room now."""
        if not self._places and self._gate.full:
            self.penalties = self._gate.penalties
            raise self._gate.refuse()

    def enter(self, octets: int = 0) -> None:
        """`octets` of a body that asks for many identifiers. Raises OverCapacity."""
        self.expect()
        places = self._gate.places_for(octets)
        if not self._places and self._gate.enter(places):
            self._places = places

    def leave(self, *, quick: bool = False) -> None:
        """`quick`: it was a request whose time tells how much others wait."""
        if self._places:
            places, self._places = self._places, 0
            self._gate.leave(time.monotonic() - self._since if quick else None, places)


class Quotas:
    """`rate_max` requests a second for each tenant, with a second's worth of them at once; 0: any
    number. The least lately seen are forgotten beyond TENANTS_MAX: a full bucket says nothing.

    A costly request is let in like any other and what it costs beyond one is owed: the tenant
    waits the longer afterwards. `until`: so long (by the clock) who comes is looked at before
    anything is made of what he asks, for somebody was refused a moment ago.
    """

    def __init__(self, rate_max: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate_max = rate_max
        self.penalties = Penalties(
            refusal_s=QUOTA_REFUSAL_S, share=QUOTA_SHARE, again_per_s=QUOTA_AGAIN_PER_S
        )
        self.refused = 0
        self.until = 0.0
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._let_in: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, tenant: str) -> float:
        """Take one request's worth: 0, or after how many seconds to ask again."""
        if not self.rate_max:
            return 0.0
        before = self._let_in.pop(tenant, 0)
        if before:
            if before > 1:
                self._let_in[tenant] = before - 1
            return 0.0
        return self._take(tenant)

    def let_in(self, tenant: str) -> float:
        """`take` before a request is read. It takes no more then when it knows who asks: else all
        who come before the first of them gets that far would be let in."""
        if not self.rate_max:
            return 0.0
        wait_s = self._take(tenant)
        if not wait_s:
            # Not all come to be charged; what they have left over is for a second at the most.
            self._let_in[tenant] = min(self._let_in.get(tenant, 0) + 1, self.rate_max)
            if len(self._let_in) > TENANTS_MAX:
                del self._let_in[next(iter(self._let_in))]
        return wait_s

    def _take(self, tenant: str) -> float:
        left, now = self._left(tenant)
        if left < 1:
            self.refused += 1
            wait_s = (1 - left) / self.rate_max
            self.until = max(self.until, now + max(wait_s, SHUT_S))
            return wait_s
        self._keep(tenant, left - 1, now)
        return 0.0

    def owe(self, tenant: str, cost: float) -> None:
        """What a request that was let in costs beyond one."""
        if self.rate_max and cost:
            left, now = self._left(tenant)
            self._keep(tenant, left - cost, now)

    def left(self, tenant: str) -> int:
        """Whole requests that it may ask at once."""
        return max(0, int(self._left(tenant)[0]))

    def refusal(self, wait_s: float) -> TooManyRequests:
        """What is told a tenant that may ask again after `wait_s`."""
        return TooManyRequests(
            f"Your tenant may ask {self.rate_max} times a second.",
            f"贵租户每秒最多可请求 {self.rate_max} 次。",
            retry_after_s=max(1, math.ceil(wait_s)),
            rate_max=self.rate_max,
        )

    def _left(self, tenant: str) -> tuple[float, float]:
        now = self._clock()
        left, then = self._buckets.get(tenant, (float(self.rate_max), now))
        return min(float(self.rate_max), left + (now - then) * self.rate_max), now

    def _keep(self, tenant: str, left: float, now: float) -> None:
        self._buckets[tenant] = (left, now)
        self._buckets.move_to_end(tenant)
        while len(self._buckets) > TENANTS_MAX:
            self._buckets.popitem(last=False)
