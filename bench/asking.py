"""One question of a run, from its scheduled time to its answer."""

from __future__ import annotations

from typing import Any


class Ask:
    """Times are of `time.monotonic()`. `done`: answered, failed or given up."""

    __slots__ = ("authoritative", "done", "due", "id", "kind", "link", "number", "sent")

    def __init__(self, kind: int, number: int, due: float, authoritative: bool) -> None:
        self.kind = kind
        self.number = number
        self.due = due
        self.authoritative = authoritative
        self.sent = 0.0
        self.id = 0
        self.link: Any = None
        self.done = False
