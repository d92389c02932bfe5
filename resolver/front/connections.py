"""The connections of a front that speaks over streams: they are taken, looked at now and then, and
ended; what they hold is bounded.

One sweep over all of them takes the place of a timer for each; a front adds what it answers.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final, Generic, NamedTuple, TypeVar

from .listening import BACKLOG

SWEEP_S: Final = 0.5
FAREWELL_S: Final = 1.0
"""How long a peer has to take our last words and hang up."""
CROWD_SHARE: Final = 1.25
"""How many connections there may be while some take our last words, as a share of how many there
may be."""
WRITE_OCTETS: Final = 65_536
"""A connection with more unsent than this is not read from."""
HELD_OCTETS_FREE: Final = 131_072
"""What one connection may hold, unfinished messages, large requests and unsent answers, whatever
others do."""
HELD_OCTETS_MAX: Final = 64 * 2**20
"""What all may hold. Beyond, those over their free share are cut."""


class Times(NamedTuple):
    """How long a peer may take, in seconds: nothing of an answer, over a message, no message."""

    reply_s: float
    message_s: float
    idle_s: float


class StreamConnection(asyncio.Protocol):
    """One of them. `_deaf`: nothing more is begun, what comes is thrown away; `_ended`: nothing
    more will come; `_holding`: it is not read from; `_held`: so many octets of `held_octets`."""

    __slots__ = (
        "_deadline",
        "_deaf",
        "_ended",
        "_flushing",
        "_heard",
        "_held",
        "_holding",
        "_partial_since",
        "_stuck_since",
        "_transport",
        "_unsent",
        "_unsent_octets",
        "_writable",
    )
    _front: Connections[Any]

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self._held = self._unsent_octets = 0
        self._deaf = self._ended = self._flushing = self._holding = False
        self._heard = monotonic()
        # A new connection counts as one that has begun a message: the first must come in time.
        self._partial_since: float | None = self._heard
        self._stuck_since: float | None = None
        self._writable: asyncio.Event | None = None
        self._deadline: float | None = None

    @property
    def _busy(self) -> bool:
        """Whether something is being answered."""
        raise NotImplementedError

    def _read_on(self) -> None:
        """Begin what has come, as far as the limits allow."""
        raise NotImplementedError

    def _written(self) -> None:
        """What was ready has been written."""
        raise NotImplementedError

    def drain(self) -> None:
        """Read nothing more, answer what has come, hang up."""
        raise NotImplementedError

    def _hold(self, holding: bool) -> None:
        """Stop reading, or go on."""
        if holding == self._holding or self._transport is None or self._transport.is_closing():
            return
        self._holding = holding
        if holding:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def resume_writing(self) -> None:
        self._stuck_since = None
        if self._writable is not None:
            self._writable.set()
            self._writable = None
        self._read_on()

    def send(self, reply: bytes) -> None:
        """Write soon, together with what else gets ready meanwhile."""
        self._unsent.append(reply)
        self._unsent_octets += len(reply)
        if self._unsent_octets > WRITE_OCTETS:
            self._flush()
        elif not self._flushing:
            self._flushing = True
            self._front.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if not self._unsent:
            return
        data = b"".join(self._unsent)
        self._unsent.clear()
        self._unsent_octets = 0
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)
            self._written()

    def _account(self, octets: int) -> None:
        """It holds so many besides what the system has not taken yet."""
        if self._writable is not None and self._transport is not None:
            octets += self._transport.get_write_buffer_size()
        self._hold_octets(octets)
        if self._front.held_octets > HELD_OCTETS_MAX and octets > HELD_OCTETS_FREE:
            self._cut()

    def _hold_octets(self, octets: int) -> None:
        self._front.held_octets += octets - self._held
        self._held = octets

    def sweep(self, now: float) -> None:
        """Cut or let go whoever has taken longer than he may, at the monotonic time `now`."""
        front = self._front
        if self._deadline is not None:
            if now >= self._deadline:
                self.abort()
        elif self._stuck_since is not None:
            if now - self._stuck_since > front.times.reply_s:
                self._cut()
        elif self._partial_since is not None and not self._deaf:
            if now - self._partial_since > front.times.message_s:
                self._cut()
        elif not self._busy and now - self._heard > front.times.idle_s:
            front.counts[f"{front.name}_idle"] += 1
            self._hang_up()

    def _go_deaf(self) -> None:
        self._deaf = True

    def abort(self) -> None:
        self._go_deaf()
        if self._transport is not None:
            self._transport.abort()

    def _cut(self) -> None:
        self._front.counts[f"{self._front.name}_cut"] += 1
        self.abort()

    def _hang_up(self) -> None:
        """Send what is to be sent and close. What the peer still sends is taken and thrown away
        for a moment: closed over unread octets, the system would make it lose our words."""
        self._flush()
        self._go_deaf()
        self._deadline = monotonic() + FAREWELL_S
        if self._transport is None or self._transport.is_closing():
            return
        if self._ended:
            self._transport.close()
        else:
            try:
                self._transport.write_eof()
            except OSError:  # the peer is gone already
                self._transport.abort()
                return
            self._hold(False)


C = TypeVar("C", bound=StreamConnection)


class Connections(Generic[C]):
    """A connection puts itself among `connections` and takes itself out, and says `left` then;
    while `draining` none are taken. `held_octets`: what all of them hold, which they count.
    `counts`: by `name` with `_crowded`, `_cut`, `_idle` and `_malformed` behind it."""

    def __init__(self, name: str, times: Times) -> None:
        self.name = name
        self.times = times
        self.counts = {f"{name}_{end}": 0 for end in ("crowded", "cut", "idle", "malformed")}
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
