"""The connections of a front that speaks over streams: they are taken, looked at now and then, and
ended.

One sweep over all of them takes the place of a timer for each; a front adds what it answers.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final, Generic, Protocol, TypeVar

from .listening import BACKLOG

SWEEP_S: Final = 0.5
FAREWELL_S: Final = 1.0
"""How long a peer has to take our last words and hang up."""


class Swept(Protocol):
    """What a connection lets its front do with it."""

    def sweep(self, now: float) -> None:
        """Cut or let go whoever has taken longer than he may, at the monotonic time `now`."""
        ...

    def drain(self) -> None:
        """Read nothing more, answer what has come, hang up."""
        ...

    def abort(self) -> None: ...


C = TypeVar("C", bound=Swept)


class Connections(Generic[C]):
    """A connection puts itself among `connections` and takes itself out, and says `left` then;
    while `draining` none are taken. `held_octets`: what all of them hold, which they count."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop
        self.connections: set[C] = set()
        self.held_octets = 0
        self.draining = False
        self._servers: list[asyncio.Server] = []
        self._sweeper: asyncio.Task[None] | None = None
        self._empty = asyncio.Event()

    async def _take(
        self, sockets: Sequence[socket.socket], make: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        """Serve sockets that are bound already and listen, TCP or Unix."""
        self.loop = asyncio.get_running_loop()
        for listening in sockets:
            listen = (
                self.loop.create_unix_server
                if listening.family == socket.AF_UNIX
                else self.loop.create_server
            )
            self._servers.append(await listen(make, sock=listening, backlog=BACKLOG))
        self._sweeper = asyncio.create_task(self._sweep(), name=f"{type(self).__name__} sweep")

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now = monotonic()
            for connection in tuple(self.connections):
                connection.sweep(now)

    def left(self) -> None:
        """A connection is gone."""
        if not self.connections:
            self._empty.set()

    def _take_no_more(self) -> None:
        for server in self._servers:
            server.close()

    async def _end(self, drain_s: float) -> None:
        """Answer what has come, for `drain_s` seconds at most; then cut."""
        self.draining = True
        for connection in tuple(self.connections):
            connection.drain()
        await self._emptied(drain_s)
        for connection in tuple(self.connections):
            connection.abort()
        await self._emptied(FAREWELL_S)
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
            self._sweeper = None
        self._servers.clear()

    async def _emptied(self, timeout_s: float) -> None:
        self._empty.clear()
        if not self.connections:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            pass
