"""What a resolution is, and the chain of steps that makes one.

`Resolver.resolve_many(keys)` asks the first step; each step answers what it knows and asks the one
after it for the rest, so that names asked for together stay together down to the registry. What
travels here is public: values without the public-read bit are taken off before an answer
enters the chain, so no cache can ever leak one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from biaojie.account import Prefix, PrefixStatus
from biaojie.errors import (
    BiaojieError,
    Elsewhere,
    IdentifierNotFound,
    IdentifierRetired,
    PrefixNotHere,
    PrefixSuspended,
)
from biaojie.identifier import Key
from biaojie.making import maker
from biaojie.record import Record, Status


class Source(StrEnum):
    """Where an answer came from. `stale`: the registry cannot confirm it just now."""

    CACHE = "cache"
    STORE = "store"
    STALE = "stale"


@dataclass(eq=False, slots=True)
class Cached:
    """One cached record. `alive` is cleared when the identifier changes or the entry leaves the
    cache, and all that was made of it dies with it. Times are monotonic."""

    record: Record
    fetched: float
    expires: float
    size: int
    ttl_s: int
    whole: bool = False
    hits: int = 0
    alive: bool = True
    _made: Ready | None = field(default=None, repr=False)
    """The first of what was made of it."""

    def bury(self) -> None:
        self.alive = False
        ready, self._made = self._made, None
        while ready is not None:
            ready.die()
            after, ready._after, ready._before = ready._after, None, None
            ready = after

    def count_hits(self) -> None:
        """Take what was made of it for asked for as often as it was: it must not leave the cache
        either."""
        ready = self._made
        while ready is not None:
            self.hits += ready.hits
            ready.hits = 0
            ready = ready._after


READY_BYTES: Final = 350
"""Memory of a ready reply besides its octets: objects, dictionary and queue."""


class Ready(ABC):
    """What a front keeps of a reply made of one cached record; it adds fields of its own.

    It dies with its entry, which knows all that was made of it. So whoever sends it looks at it
    alone: in a large cache each object more is one more wait for memory. `size`, that of its
    octets and READY_BYTES, and `hits` are as S3Fifo wants them.
    """

    __slots__ = ("_after", "_before", "entry", "hits", "size")

    def __init__(self, entry: Cached, octets: int) -> None:
        self.entry = entry
        self.hits = 0
        self.size = READY_BYTES + octets
        self._after: Ready | None = None
        self._before: Ready | None = None

    @abstractmethod
    def die(self) -> None:
        """From now on it is too old to be sent."""

    def link(self) -> None:
        """Die with the entry from now on."""
        first = self._after = self.entry._made
        if first is not None:
            first._before = self
        self.entry._made = self

    def unlink(self) -> None:
        """It is kept no longer. Nothing happens where it was not linked, or is dead."""
        before, after = self._before, self._after
        if before is not None:
            before._after = after
        elif self.entry._made is self:
            self.entry._made = after
        if after is not None:
            after._before = before
        self._after = self._before = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A public record, or the error class that stands for its absence.

    `age_s` is how long ago it was read from the registry, `ttl_s` how long it may be kept.
    `whole`: the record has no value that the public may not see. `entry` is what the cache
    holds of it, where the answer is fresh and from there.
    """

    record: Record | None
    absence: type[BiaojieError] | None
    source: Source
    age_s: int
    ttl_s: int
    whole: bool = False
    entry: Cached | None = None

    def found(self) -> Record:
        """The record; raises the absence."""
        if self.record is None:
            assert self.absence is not None
            raise self.absence()
        return self.record


make_answer = maker(Answer)
Outcome = Answer | BiaojieError
"""What becomes of one name: an answer, or the error to raise. Each error is nobody else's: its
traceback and request id are not shared."""


_ACTIVE, _SUSPENDED, _UNHOMED = PrefixStatus.ACTIVE, PrefixStatus.SUSPENDED, PrefixStatus.UNHOMED
_DRAFT, _RETIRED = Status.DRAFT, Status.RETIRED


def public_view(
    prefix: Prefix | None, record: Record | None
) -> tuple[Record | None, type[BiaojieError] | None]:
    """What the public sees of what the registry holds: a record, or why there is none."""
    if prefix is None or prefix.status is _UNHOMED:
        return None, PrefixNotHere
    if prefix.status is not _ACTIVE:
        if prefix.status.elsewhere:
            return None, Elsewhere
        if prefix.status is _SUSPENDED:
            return None, PrefixSuspended
    if record is None or record.status is _DRAFT:
        return None, IdentifierNotFound
    if record.status is _RETIRED:
        return None, IdentifierRetired
    return record.public(), None


Onward = Callable[[Sequence[Key]], Awaitable[Sequence[Outcome]]]


class Step(Protocol):
    async def resolve(self, keys: Sequence[Key], onward: Onward) -> Sequence[Outcome]:
        """An outcome for each of `keys`, in order; `await onward(some)` gives those of others."""
        ...


async def _nobody(keys: Sequence[Key]) -> list[Outcome]:
    return [Answer(None, PrefixNotHere, Source.STORE, 0, 0) for _ in keys]


class Resolver:
    """`resolve_many` asks the steps in order. `at_hand` is what the first of them knows without
    waiting, None where it has to ask, as it has wherever it `knows` nothing; `flight`: what brings
    it, if somebody has asked for it already."""

    def __init__(
        self,
        steps: Sequence[Step],
        at_hand: Callable[[Key], Answer | None] = lambda key: None,
        knows: Callable[[Key], bool] = lambda key: False,
        flight: Callable[[Key], object | None] = lambda key: None,
    ) -> None:
        self.at_hand = at_hand
        self.knows = knows
        self.flight = flight
        onward: Onward = _nobody
        for step in reversed(steps):
            onward = _link(step, onward)
        self.resolve_many = onward

    async def resolve(self, key: Key) -> Answer:
        """The answer for one name; raises its error."""
        (outcome,) = await self.resolve_many((key,))
        if isinstance(outcome, BiaojieError):
            raise outcome
        return outcome


def _link(step: Step, onward: Onward) -> Onward:
    async def resolve(keys: Sequence[Key]) -> Sequence[Outcome]:
        return await step.resolve(keys, onward)

    return resolve
