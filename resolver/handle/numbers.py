"""Session numbers, hard to guess. Clients open a connection per message and reach any worker of
a node, so a number that a worker has given says which one remembers what it stands for.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

NUMBER_MAX: Final = 2**31 - 1
"""Clients take session numbers for signed."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """Those of worker `slot` among `workers`."""

    slot: int = 0
    workers: int = 1

    def new(self) -> int:
        """A random number from 1 to NUMBER_MAX."""
        turns = NUMBER_MAX // self.workers
        return (1 + secrets.randbelow(turns - 1)) * self.workers + self.slot

    def keeper(self, number: int) -> int:
        """The worker that has given `number`, if any has."""
        return number % self.workers


ALONE: Final = Numbers()
