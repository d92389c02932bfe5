"""The Handle fronts of a node as one thing to start and stop."""

from __future__ import annotations

import asyncio
import socket

from ...handle.direct import DirectWrites
from ...handle.lane import HandleLane
from ...handle.peer import Answerer
from ...handle.together import Together
from ...overload import Gate
from ..listening import listen
from .tcp import TcpFront
from .tunnel import Tunnel
from .udp import UdpFront
from .work import HandleLimits, Work


class HandleFront:
    """TCP and UDP on one port; `tunnel` is what the HTTP front hands bodies to, and works without
    the others. `lane` has the answers that need no answerer, `together` answers plain resolutions
    beside it, `direct` writes in proved sessions over TCP; none without them."""

    def __init__(
        self,
        answerer: Answerer,
        limits: HandleLimits,
        lane: HandleLane | None = None,
        *,
        gate: Gate | None = None,
        together: Together | None = None,
        direct: DirectWrites | None = None,
    ) -> None:
        self.gate = gate or Gate(limits.handle_requests_max)
        self._work = Work(answerer, self.gate)
        self.tcp = TcpFront(self._work, limits, lane, together, direct)
        self.udp = UdpFront(self._work, limits, lane, together)
        self.tunnel = Tunnel(self._work)

    async def start(self, host: str, port: int, *, fallback: str = "") -> int:
        """Listen, and return the port; see `listening.listen`. Raises OSError."""
        return await self.serve(*await listen(host, port, fallback=fallback))

    async def serve(self, streams: list[socket.socket], datagrams: list[socket.socket]) -> int:
        """Serve sockets that are bound already; returns their port."""
        await self.tcp.start(streams)
        self.udp.start(datagrams)
        return int(streams[0].getsockname()[1])

    async def stop(self, drain_s: float, linger_s: float = 0.0) -> None:
        """Finish what has come, for `drain_s` seconds at most; see `TcpFront.stop`."""
        await asyncio.gather(self.tcp.stop(drain_s, linger_s), self.udp.stop(drain_s))

    def readings(self) -> dict[str, float]:
        return {
            "handle_requests_running": self.gate.running,
            "handle_requests_limit": self.gate.limit,
            "handle_tcp_connections": len(self.tcp.connections),
            "handle_tcp_held_bytes": self.tcp.held_octets,
            **self.udp.readings(),
        }

    def counts(self) -> dict[str, float]:
        return {"handle_too_busy": self.gate.refused, **self.tcp.counts, **self.udp.counts}
