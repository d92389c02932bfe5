"""The Handle protocol on TCP as one thing to start and stop; see connection.py for each of its
connections. Plain resolutions of all of them are answered together."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Final

from ...handle.direct import DirectWrites
from ...handle.lane import HandleLane
from ...handle.together import Gathering, Together
from ..connections import Connections, Times
from .connection import Connection
from .work import HandleLimits, Work

ACCEPTED_S: Final = 0.05
"""By then every connection that was taken is among the others."""


class TcpFront(Connections[Connection]):
    """All connections. `start` serves listening sockets, `stop` drains."""

    def __init__(
        self,
        work: Work,
        limits: HandleLimits,
        lane: HandleLane | None = None,
        together: Together | None = None,
        direct: DirectWrites | None = None,
    ) -> None:
        times = Times(
            limits.reply_timeout_s, limits.handle_message_timeout_s, limits.handle_idle_timeout_s
        )
        super().__init__("handle_tcp", times)
        self.work = work
        self.limits = limits
        self.lane = lane
        self.direct = direct
        self.gathering: Gathering[tuple[Connection, bytes]] | None = None
        if together is not None:
            self.gathering = Gathering("tcp", together, _deliver)
        self.leaving = False
        """Connections end behind their next answer."""

    async def start(self, sockets: list[socket.socket]) -> None:
        await self._take(sockets, lambda: Connection(self))

    async def stop(self, drain_s: float, linger_s: float = 0.0) -> None:
        """Take no more, answer what has come, for `drain_s` seconds at most; then cut. For
        `linger_s` before that connections may still ask what they were opened for."""
        self._take_no_more()
        if linger_s:
            self.leaving = True
            for connection in tuple(self.connections):
                connection.let_go()
            await asyncio.sleep(ACCEPTED_S)
            await self._emptied(linger_s)
        await self._end(drain_s)


def _deliver(
    askers: Sequence[tuple[Connection, bytes]], answers: Sequence[bytes | None], seconds: float
) -> None:
    for (connection, frame), answer in zip(askers, answers, strict=True):
        connection.gathered(frame, answer, seconds)
    for connection in dict.fromkeys(connection for connection, _ in askers):
        connection.answered()
