"""Whether an answer is right.

Every answer is checked. The first of a record is decoded and compared; octets that are the same
as those found right before are right again, as long as they are fresh. Freshness is known from
the generations that a writer has had acknowledged, in memory shared between processes.
"""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path
from typing import BinaryIO, Final

from biaojie.errors import BiaojieError

from .fronts import ABSENT, RECORD, Answer, Wire
from .names import Names
from .schedule import KINDS

REMEMBERED_MAX: Final = 200_000
STALE_S: Final = 1.0
"""An answer to a question sent this long after a change was acknowledged must show it."""
_FIELDS: Final = 4
_UNKNOWN: Final = KINDS.index("unknown")
_MISS: Final = KINDS.index("miss")


class Acknowledged:
    """For each name that is written: its last two acknowledged generations and their times.

    One process writes, others read. The writer's order of stores makes a reader who comes in
    between believe less, never more. Times are of `time.monotonic()`, the same in all
    processes of a machine.
    """

    def __init__(self, file: BinaryIO, numbers: list[int], *, fresh: bool) -> None:
        size = max(1, len(numbers)) * _FIELDS * 8
        if fresh:
            file.truncate(size)
        self._map = mmap.mmap(file.fileno(), size)
        self._cells = memoryview(self._map).cast("d")
        self._rows = {number: row * _FIELDS for row, number in enumerate(numbers)}

    @classmethod
    def create(cls, numbers: list[int]) -> tuple[Acknowledged, Path]:
        """Also the file by which other processes find it; delete it when they have."""
        with tempfile.NamedTemporaryFile(prefix="biaojie-bench-", delete=False) as file:
            return cls(file, numbers, fresh=True), Path(file.name)  # type: ignore[arg-type]

    @classmethod
    def open(cls, path: Path, numbers: list[int]) -> Acknowledged:
        with path.open("r+b") as file:
            return cls(file, numbers, fresh=False)

    def __contains__(self, number: int) -> bool:
        return number in self._rows

    def note(self, number: int, generation: int, now: float) -> None:
        """The writer has had this generation acknowledged just now."""
        row, cells = self._rows[number], self._cells
        cells[row + 3] = cells[row + 1]
        cells[row + 2] = cells[row]
        cells[row + 1] = now
        cells[row] = generation

    def least(self, number: int, sent: float) -> int:
        """The generation that an answer to a question sent then must have at least."""
        row = self._rows.get(number)
        if row is None:
            return 0
        cells = self._cells
        limit = sent - STALE_S
        if cells[row + 1] <= limit:
            return int(cells[row])
        if cells[row + 3] <= limit:
            return int(cells[row + 2])
        return 0


class Checker:
    """`fault` says what is wrong with an answer, or None. `decoded` counts those that were not
    octets known before."""

    def __init__(self, names: Names, wire: Wire, acknowledged: Acknowledged | None = None) -> None:
        self._names = names
        self._wire = wire
        self._acknowledged = acknowledged
        self._right: dict[int, tuple[bytes, int]] = {}
        self.decoded = 0

    def fault(self, kind: int, number: int, sent: float, answer: Answer) -> str | None:
        """`answer` is a record or ABSENT; other codes are not wrong but failures."""
        if kind == _UNKNOWN:
            if answer.code == ABSENT:
                return None
            return self._told(self._names.unknown(number), "is not registered, and was found")
        name = self._names.name
        if answer.code != RECORD:
            return self._told(name(number), "is registered, and was not found")
        known = self._right.get(number)
        if known is not None and known[0] == answer.body:
            generation = known[1]
        else:
            self.decoded += 1
            try:
                found = self._wire.found(answer.body)
            except (BiaojieError, ValueError) as error:
                return self._told(name(number), f"cannot be read: {error}")
            seen = self._names.generation_of(number, found)
            if seen is None:
                return self._told(name(number), f"has another answer: {str(found)[:300]}")
            generation = seen
            if number in self._right or (kind != _MISS and len(self._right) < REMEMBERED_MAX):
                self._right[number] = (answer.body, generation)
        if self._acknowledged is not None:
            least = self._acknowledged.least(number, sent)
            if generation < least:
                return self._told(
                    name(number),
                    f"has the answer of generation {generation}; {least} was acknowledged"
                    f" more than {STALE_S:g} s before it was asked for",
                )
        return None

    @staticmethod
    def _told(name: str, what: str) -> str:
        return f"{name} {what}"
