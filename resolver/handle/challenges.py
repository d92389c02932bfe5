"""Requests that wait for their sender to prove who it is (RFC 3652 §3.5.1).

Who needs authentication is sent a nonce; the request is kept until the answer comes, at most a
minute, and answered once. Clients tie the two together by the session number alone, over
whatever connection, so one outside any session is given a number of its own. Bounded in number
and in octets: beyond, the oldest is forgotten.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from biaojie.wire.handle import NONCE_OCTETS, Body, ValuesRequest

from .asked import Asked
from .identity import CHALLENGE_S
from .numbers import ALONE, Numbers

PENDING_MAX: Final = 20_000
PENDING_OCTETS_MAX: Final = 64 * 2**20
VALUE_OCTETS: Final = 200
REFERENCE_OCTETS: Final = 100
"""What one takes up, decoded, besides its octets: a message may be all small ones."""


@dataclass(frozen=True, slots=True)
class Pending:
    """`digest` is that of the request, which the answer signs along with `nonce`. `asked` came
    from the address that was told the nonce."""

    asked: Asked
    nonce: bytes
    digest: bytes
    until: float
    octets: int


_Name = tuple[object, int]


class PendingRequests:
    def __init__(
        self,
        *,
        seconds: float = CHALLENGE_S,
        pending_max: int = PENDING_MAX,
        octets_max: int = PENDING_OCTETS_MAX,
        numbers: Numbers = ALONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._numbers = numbers
        self._seconds = seconds
        self._pending_max = pending_max
        self._octets_max = octets_max
        self._clock = clock
        self._pending: OrderedDict[_Name, Pending] = OrderedDict()  # oldest first
        self.octets = 0

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, name: tuple[object, int]) -> bool:
        """Whether something waits in this scope under this number, or did a while ago."""
        return name in self._pending

    def number(self, scope: object) -> int:
        """A session number that nothing waits under, hard to guess."""
        while True:
            number = self._numbers.new()
            if (scope, number) not in self._pending:
                return number

    def keep(self, scope: object, number: int, asked: Asked, digest: bytes) -> bytes:
        """Keep a request under this session number, in place of another that waited there.
        Returns the nonce: 128 bits, never given before, save to the same request sent twice from
        the same address: nobody else is told what this one was."""
        now = self._clock()
        self._forget(now)
        request = asked.request
        before = self._pending.get((scope, number))
        if before is not None and _same(before.asked, asked):
            return before.nonce
        self._drop((scope, number))
        nonce = secrets.token_bytes(NONCE_OCTETS)
        octets = len(request.received) * 2 + 1_000 + _decoded_octets(request.body)
        pending = Pending(asked, nonce, digest, now + self._seconds, octets)
        self._pending[scope, number] = pending
        self.octets += octets
        while len(self._pending) > self._pending_max or self.octets > self._octets_max:
            self._drop(next(iter(self._pending)))
        return nonce

    def take(self, scope: object, number: int) -> Pending | None:
        """What waits for an answer in this session, no more from now on; None if nothing does."""
        self._forget(self._clock())
        for name in ((scope, number), (None, number)):
            pending = self._pending.get(name)
            if pending is not None:
                self._drop(name)
                return pending
        return None

    def _forget(self, now: float) -> None:
        while self._pending:
            name, pending = next(iter(self._pending.items()))
            if now < pending.until:
                return
            self._drop(name)

    def _drop(self, name: _Name) -> None:
        pending = self._pending.pop(name, None)
        if pending is not None:
            self.octets -= pending.octets


def _decoded_octets(body: Body) -> int:
    if not isinstance(body, ValuesRequest):
        return 0
    return sum(VALUE_OCTETS + REFERENCE_OCTETS * len(value.references) for value in body.values)


def _same(one: Asked, other: Asked) -> bool:
    return (
        one.request.request_id == other.request.request_id
        and one.request.received == other.request.received
        and one.peer.address == other.peer.address
        and one.peer.transport == other.peer.transport
    )
