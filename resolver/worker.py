"""A worker's place among the others, and its pipe to the supervisor."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from pathlib import Path

from .worker_sockets import Sockets


@dataclass(frozen=True, slots=True)
class Post:
    """`slot` of `workers`; alone there is one, which binds its own sockets. In `folder` the
    workers find each other."""

    slot: int = 0
    workers: int = 1
    folder: Path | None = None
    sockets: Sockets = field(default_factory=dict)


class SupervisorPipe:
    """`ready` tells the supervisor; when it is gone, `stop` is set."""

    def __init__(self, number: int) -> None:
        self._socket = socket.socket(fileno=number)
        self._socket.setblocking(False)

    def watch(self, stop: asyncio.Event) -> None:
        """Within the loop."""
        loop = asyncio.get_running_loop()

        def heard() -> None:
            try:
                if self._socket.recv(64):
                    return
            except BlockingIOError:
                return
            except OSError:
                pass
            loop.remove_reader(self._socket.fileno())
            stop.set()

        loop.add_reader(self._socket.fileno(), heard)

    def ready(self) -> None:
        self._socket.send(b"1")
