"""A worker's place among the others, and its pipe to the supervisor."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from .worker_sockets import Sockets

BEGIN: Final = b"b"
"""What the supervisor says, and"""
READY: Final = b"1"
ALIVE: Final = b"."
"""what it is told;"""
BEATS: Final = 5
"""so many times in the time after which a silent worker is taken for one that hangs."""


class Start(StrEnum):
    """How a worker begins: the very first prepares what all need; one that is to `succeed` another
    that still serves must fail where it cannot do better; the others wait for what is missing."""

    FIRST = "first"
    SUCCEED = "succeed"
    JOIN = "join"


@dataclass(frozen=True, slots=True)
class Post:
    """`slot` of `workers`; alone there is one, which binds its own sockets. In `folder` the
    workers find each other."""

    slot: int = 0
    workers: int = 1
    folder: Path | None = None
    sockets: Sockets = field(default_factory=dict)


class SupervisorPipe:
    """How a worker and its supervisor speak. When the pipe ends, `stop` is set.

    `beat_s` is how often the supervisor is told that the loop turns; what is told never waits.
    """

    def __init__(self, number: int, beat_s: float) -> None:
        self._socket = socket.socket(fileno=number)
        self._socket.setblocking(False)
        self._beat_s = beat_s
        self._may_begin = asyncio.Event()

    def watch(self, stop: asyncio.Event) -> None:
        """Within the loop."""
        loop = asyncio.get_running_loop()

        def heard() -> None:
            try:
                said = self._socket.recv(64)
            except BlockingIOError:
                return
            except OSError:
                said = b""
            if not said:
                loop.remove_reader(self._socket.fileno())
                stop.set()
            self._may_begin.set()

        loop.add_reader(self._socket.fileno(), heard)

    async def may_begin(self) -> None:
        """Until the supervisor says so, or is gone; how long that may take is its affair."""
        await self._may_begin.wait()

    def ready(self) -> None:
        self._tell(READY)
        self._beat()

    def _beat(self) -> None:
        self._tell(ALIVE)
        asyncio.get_running_loop().call_later(self._beat_s, self._beat)

    def _tell(self, word: bytes) -> None:
        with suppress(OSError):  # it is gone, which `watch` hears, or does not read just now
            self._socket.send(word)
