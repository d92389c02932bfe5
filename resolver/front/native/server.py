"""The native front of a node as one thing to start and stop."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Final

from biaojie.errors import OverCapacity
from biaojie.limits import BATCH_ROWS_MAX, FRAME_OCTETS_MAX, PAGE_ROWS_MAX, RESOLVE_MANY_MAX
from biaojie.wire.native import VERSION
from biaojie.wire.native.answers import Welcome
from registry.admission import Caller

from ...exchange import Later, serve_many
from ...gathered import Soon
from ...lane import Lane
from ...observe import Observer
from ...overload import Gate
from ...query import Query
from ...service import Service
from ..connections import Connections, Times
from .connection import Connection
from .operations import PublicResolve
from .session import Session
from .work import Asked, NativeLimits, ReadyResolution

BEGUN_AT_ONCE: Final = 64
"""Requests that are begun in one turn of the loop, of all connections, and half as many of those
that had to wait for theirs: less than a millisecond's work. All else that the node does comes in
between, however much is asked here. The first of what comes in one piece does not wait."""


class NativeFront(Connections[Connection]):
    """All connections. `start` serves listening sockets, TCP and Unix; `stop` drains.

    `lane` holds the ready replies to resolutions by the octets of kind and body.
    """

    def __init__(
        self,
        service: Service,
        observer: Observer,
        limits: NativeLimits,
        lane: Lane[ReadyResolution],
        *,
        node_name: str = "biaojie",
        gate: Gate | None = None,
    ) -> None:
        times = Times(
            limits.reply_timeout_s, limits.native_message_timeout_s, limits.native_idle_timeout_s
        )
        super().__init__("native", times)
        self.service = service
        self.observer = observer
        self.limits = limits
        self.lane = lane
        self.resolve = PublicResolve(lane)
        self.tally = observer.tally("native", "resolve")
        self.crowded = observer.tally("native", "resolve", OverCapacity.code)
        self.in_full = 0.0
        """From then on the next refusal is worked out, so that one in a while is logged."""
        self.gate = gate or Gate(limits.native_requests_max)
        self.later = Later(limits.deadline_s, observer)
        self.room = BEGUN_AT_ONCE
        """How many more may be begun in this turn."""
        self._in_turn: deque[Connection] = deque()
        self._gathering_since = 0.0
        self.gathering: set[bytes] = set()
        """What is asked of them, as it was sent."""
        self._gathered: list[tuple[Session, Asked]] = []
        self._gatherings: set[asyncio.Task[None]] = set()
        self._soon = Soon(self._ask_gathered, self._gatherings)
        self._node_name = node_name

    def welcome(self, caller: Caller) -> Welcome:
        limits = {
            "frame_octets_max": FRAME_OCTETS_MAX,
            "pipeline_max": self.limits.native_pipeline_max,
            "resolve_many_max": RESOLVE_MANY_MAX,
            "batch_rows_max": BATCH_ROWS_MAX,
            "page_rows_max": PAGE_ROWS_MAX,
        }
        role = None if caller.role is None else caller.role.value
        return Welcome(VERSION, self._node_name, limits, role, caller.tenant if role else None)

    # One turn of the loop ---------------------------------------------------------------

    def begin(self) -> None:
        """Something is begun, for which there is `room`."""
        if self.room == BEGUN_AT_ONCE:
            self.loop.call_soon(self._end_turn)
        self.room -= 1

    def wait(self, connection: Connection) -> None:
        """It goes on in its turn; there is no `room` in this one."""
        self._in_turn.append(connection)

    def _end_turn(self) -> None:
        self.room = BEGUN_AT_ONCE
        if self._in_turn:
            self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        # Whatever else comes in this turn: who has waited must not wait for ever.
        self.room = max(self.room, BEGUN_AT_ONCE // 2)
        now = monotonic()
        try:
            while self._in_turn and self.room > 0:
                self._in_turn.popleft().read_again(now)
        finally:  # whatever becomes of one, the others wait for this
            if self._in_turn and self.room == BEGUN_AT_ONCE:
                self.loop.call_soon(self._go_on)

    # Resolutions that have to be waited for ---------------------------------------------

    def gather(self, session: Session, asked: Asked) -> None:
        """Ask for it together with all that come soon, of any connection: a task, a deadline and a
        write for many cost each of them little."""
        if not self._gathered:
            self._gathering_since = monotonic()
            self._soon.begin()
        self._gathered.append((session, asked))
        self.gathering.add(asked.body)

    def _ask_gathered(self) -> None:
        gathered, self._gathered = self._gathered, []
        self.gathering.clear()
        for part in self.service.parts(gathered, _query):
            task = self.loop.create_task(self._answer_gathered(part, self._gathering_since))
            self._gatherings.add(task)
            task.add_done_callback(self._gatherings.discard)

    async def _answer_gathered(
        self, gathered: Sequence[tuple[Session, Asked]], since: float
    ) -> None:
        replies: Sequence[bytes | None] = ()
        try:
            replies = await serve_many(
                self.resolve,
                self.service.resolve_public,
                [asked for _, asked in gathered],
                deadline_s=self.limits.deadline_s,
                observer=self.observer,
            )
        finally:
            for n, (session, asked) in enumerate(gathered):
                session.gathered(asked, (replies[n] if replies else None) or b"")
            self.gate.leave(monotonic() - since, len(gathered))
            for session in dict.fromkeys(session for session, _ in gathered):
                session.answered()

    async def start(self, sockets: Sequence[socket.socket]) -> int:
        """Serve sockets that are bound already and listen; returns the TCP port."""
        await self._take(sockets, lambda: Connection(self))
        ports = [s.getsockname()[1] for s in sockets if s.family != socket.AF_UNIX]
        return int(ports[0]) if ports else 0

    async def stop(self, drain_s: float, linger_s: float = 0.0) -> None:
        """Accept no more, answer what has come, for `drain_s` seconds at most; then cut. For
        the first `linger_s` the connections there are may go on asking."""
        self._take_no_more()
        if linger_s:
            await self._emptied(linger_s)
        await self._end(drain_s)

    def readings(self) -> dict[str, float]:
        return {
            "native_connections": len(self.connections),
            "native_requests_running": self.gate.running,
            "native_requests_limit": self.gate.limit,
            "native_held_bytes": self.held_octets,
            "native_lane_entries": len(self.lane),
            "native_lane_bytes": self.lane.bytes,
        }

    def all_counts(self) -> dict[str, float]:
        return {
            **self.counts,
            "native_too_busy": self.gate.refused,
            "native_lane_hits": self.lane.hits,
        }


def _query(gathered: tuple[Session, Asked]) -> Query:
    query: Query = gathered[1].question  # it was decoded when the cache was asked
    return query
