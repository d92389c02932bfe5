"""Reading from copies of the registry that follow it, as those who serve see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from biaojie.change import Entry

from .store import ReadStore

NOWHERE = 1 << 62
"""A position that no log reaches: with it the registry itself is asked."""


class StandbyReader(ReadStore, Protocol):
    """Reads as of `position()` or later, on a standby that has come so far, else on the primary.

    `position` is the sequence of the newest entry that this process knows of, from its own
    commits or from the log; NOWHERE until it is set.
    """

    position: Callable[[], int]

    def forget(self, entry: Entry) -> None:
        """The log grew, as it does."""
        ...

    def clear(self) -> None:
        """The log is not the one followed so far: make sure again that the standbys follow it."""
        ...

    def readings(self) -> dict[str, float]: ...

    def counts(self) -> dict[str, float]:
        """Reads by where they were answered."""
        ...

    async def close(self) -> None: ...
