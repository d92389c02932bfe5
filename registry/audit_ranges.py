"""What the log says there should be of ranges. Pure; `registry.audit` compares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from biaojie.change import Action, Change
from biaojie.identifier import fold_prefix

from .changelog import ZERO
from .ranges import HeldRange, range_digest

OF_RANGES = (Action.REGISTER_RANGE, Action.CUT_RANGE)
State = tuple[int, bytes, int]
"""Version, digest, entry."""


class RangeLedger:
    """Grows with the number of ranges, which are few."""

    def __init__(self) -> None:
        self._states: dict[str, list[State]] = {}  # the last, and those given meanwhile
        self._gone: set[str] = set()  # meanwhile

    def note(self, change: Change, sequence: int, *, walked: bool) -> None:
        """`walked`: the ranges are being compared already, and may be read before or after."""
        name = change.subject
        if change.digest == ZERO:
            if walked:
                self._gone.add(name)
            else:
                self._states.pop(name, None)
            return
        states = self._states.setdefault(name, [])
        if walked:
            self._gone.add(name)
        else:
            states.clear()
        states.append((change.version, change.digest, sequence))

    def knows(self, held: HeldRange) -> bool:
        state = (held.rule.version, range_digest(held), held.written)
        return state in self._states.get(held.name, ())

    def lost(self, prefix: str, seen: Iterable[str]) -> Iterator[str]:
        """Names of the folded prefix that should have been seen."""
        for name in sorted(self._states.keys() - set(seen) - self._gone):
            if fold_prefix(name.partition("/")[0]) == prefix:
                yield name
