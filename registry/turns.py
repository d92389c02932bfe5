"""What waits for a commit, and whose turn it is.

While all of it fits into one commit it goes as it came. When there is more, the sides (tenants)
take turns, one submission each, so that however much one has sent, the others wait for one commit
at the most. What one side sent is never reordered, nor is what goes together.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """`size` is of all that waits; `size_max` bounds it. A side that has nothing here yet may use
    a quarter more than that, so that one who fills the queue does not shut the others out."""

    def __init__(self, size_max: int) -> None:
        self.size = 0
        self._size_max = size_max
        self._count = 0
        self._sides: OrderedDict[str, deque[tuple[int, int, T]]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._sides)

    def has_room(self, side: str, size: int) -> bool:
        most = self._size_max
        if side not in self._sides:
            most += most // 4
        return not self._sides or self.size + size <= most

    def put(self, side: str, size: int, item: T) -> None:
        waiting = self._sides.get(side)
        if waiting is None:
            waiting = self._sides[side] = deque()
        waiting.append((self._count, size, item))
        self._count += 1
        self.size += size

    def take(self, size_max: int) -> list[T]:
        """What goes next, of this size at the most; no item may be larger."""
        if self.size <= size_max:
            taken = [entry for waiting in self._sides.values() for entry in waiting]
            self._sides.clear()
            self.size = 0
        else:
            taken = self._take_turns(size_max)
        taken.sort(key=lambda entry: entry[0])
        return [item for _, _, item in taken]

    def _take_turns(self, room: int) -> list[tuple[int, int, T]]:
        taken = []
        turns = deque(self._sides)
        while turns:
            side = turns.popleft()
            waiting = self._sides[side]
            size = waiting[0][1]
            if size > room:
                continue  # it stays in front, for the next time
            taken.append(waiting.popleft())
            room -= size
            self.size -= size
            if waiting:
                self._sides.move_to_end(side)
                turns.append(side)
            else:
                del self._sides[side]
        return taken
