"""One connection: what strangers may hold open, and for how long.

`Connection` owns the transport. It answers from the express lane what it can, asks for more of that
kind itself (see `gathering`), and hands all else, octet by octet, to aiohttp's handler, which it
makes when it first needs it. Rule: it answers only `at rest`: whatever aiohttp was handed has been
parsed to the end of a message and answered, so that neither order nor the meaning of octets can
come out differently.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any, cast

from aiohttp import web

from biaojie.errors import BiaojieError, OverCapacity

from ...overload import ASIDE_OCTETS, Gate, Penalties
from .door import Door, always_served
from .gathering import Awaited, Gathering
from .handler import Handler, HttpLimits
from .lane import HttpLane
from .tls_client import client_certificate

DISMISSED_SHARE = 1.25
"""How many connections there may be while some are told why they are sent away, as a share of
`connections_max`."""
SWEEP_S = 5.0
"""How often idle connections are looked for, at the most."""
SHED_MAX = 128
"""So many are made to take less room at a time, which takes some milliseconds; then again after"""
SHED_AGAIN_S = 0.1
_monotonic = time.monotonic


class Connection(asyncio.Protocol):
    """`used` is when something was last asked, or it was opened (monotonic). What comes before
    `_again` came too soon after a refusal: it is put `_aside` and waits `_among` those who were
    refused for the same reason. `_waited`: what is looked at has done so. `_awaited` has been asked
    for without aiohttp. `_held`: it is not read from until then, because `_more` has come or
    something was refused by aiohttp."""

    __slots__ = (
        "_again",
        "_among",
        "_aside",
        "_awaited",
        "_express",
        "_handler",
        "_held",
        "_lane",
        "_more",
        "_paused",
        "_server",
        "_waited",
        "_write",
        "transport",
        "used",
    )

    transport: asyncio.Transport
    _write: Callable[[bytes], None]

    def __init__(self, server: ConnectionServer) -> None:
        self._server = server
        self._handler: Handler | None = None
        self._lane: HttpLane | None = None
        self._express = False  # at rest, and the lane may answer
        self._paused = False
        self._held = False
        self._waited = False
        self._aside: tuple[bytes, bytes, bytes, float] | None = None
        self._awaited: Awaited | None = None
        self._more = b""
        self._again = 0.0
        self._among = server.door.gate.penalties
        self.used = _monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._write = self.transport.write
        server = self._server
        limits = server.limits
        crowded = len(server.open) >= limits.connections_max
        server.open.add(self)
        connection = transport.get_extra_info("socket")
        if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            # A peer that takes nothing of what we wrote holds the connection no longer than this.
            milliseconds = int(limits.reply_timeout_s * 1000)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        if crowded:
            # Answered before a request is read: cheap for us, clear for the client.
            handler = self._begin()
            handler.dismiss(OverCapacity())
            if len(server.open) > limits.connections_max * DISMISSED_SHARE:
                handler.force_close()
        elif not client_certificate(transport):  # else it is somebody who asks
            self._lane = server.lane
            self._express = self._lane is not None

    def data_received(self, data: bytes) -> None:
        lane = self._lane
        key = None
        if lane is not None and (self._express or self._at_rest()):
            start, _, block = data.partition(b" HTTP/1.1\r\n")
            profile = lane.profiles.get(block)
            known = profile is not None
            if profile is None:
                profile = lane.profile(block)
            now = _monotonic()
            if profile is not None:
                key = profile + start
                reply = lane.reply(key, now)
                if reply is not None:
                    self.used = now
                    if not known and lane.request_id is not None:
                        reply = lane.renamed(reply)
                    self._write(reply)
                    return
                if not lane.is_start(start):
                    key = None
            if self._server.door.closed(now) and self._turned_away(
                data, start, block if key else b"", now
            ):
                return
            if key is not None and self._asked_for(data, key, start, block, now):
                return
        elif self._aside is not None or self._awaited is not None:
            self._more += data
            self._held = True
            self.transport.pause_reading()
            return
        self._hand_over(data, key, start if key else b"", now if key else 0.0)

    def _hand_over(
        self, data: bytes, key: bytes | None, start: bytes, now: float, *, placed: bool = False
    ) -> None:
        """To aiohttp. With `key` it is one plain request, which begins with `start`, came at `now`
        and may have its place at the gate already."""
        self._express = False
        self.used = _monotonic()
        handler = self._handler or self._begin()
        handler.key = key
        if placed:
            handler.began = now
        elif key is not None and not always_served(start):
            handler.enter(now)
        handler.data_received(data)

    # Asked for together with others -----------------------------------------------------

    def _asked_for(self, data: bytes, key: bytes, start: bytes, block: bytes, now: float) -> bool:
        """Whether a plain request needs no aiohttp."""
        gathering, lane = self._server.gathering, self._lane
        if gathering is None or lane is None or not start.startswith(gathering.starts):
            return False
        if len(data) > lane.octets_max:
            return False
        told = gathering.ask(self, data, key, start, block, now)
        if told is None:
            return False
        self.used = now
        if isinstance(told, bytes):
            self._write(told)
        else:
            self._awaited = told
            self._express = False
        return True

    def answer(self, told: bytes, now: float) -> None:
        """What was awaited and is settled, at the monotonic time `now`."""
        self.used = now
        self._write(told)
        self._read_on()

    def fall_through(self) -> None:
        """What was awaited is for aiohttp after all."""
        awaited = self.settle()
        self._hand_over(awaited.data, awaited.key, awaited.start, awaited.came, placed=True)
        self._read_on()

    def settle(self) -> Awaited:
        """What was awaited is so no more."""
        awaited, self._awaited = self._awaited, None
        assert awaited is not None
        awaited.connection = None
        return awaited

    def _read_on(self) -> None:
        more, self._more = self._more, b""
        held, self._held = self._held, False
        self._express = self._lane is not None and not self._paused and self._handler is None
        if self.transport.is_closing():
            return
        if more:
            self.data_received(more)
        if held and not self._held and (self._handler is None or self._handler.reads):
            self.transport.resume_reading()

    def refused(self, error: BiaojieError, peer: str, fault: BaseException | None = None) -> None:
        """Count and log what never became a request."""
        self._server.refused(error, peer, fault)

    @property
    def waits(self) -> bool:
        """Whether somebody is to be answered without aiohttp."""
        return self._awaited is not None or self._aside is not None

    def _turned_away(self, data: bytes, start: bytes, block: bytes, now: float) -> bool:
        """Whether `data` was refused, or waits for that. `block` is empty where it is no plain
        request."""
        if self._waited or always_served(data):
            return False
        large = len(data) > ASIDE_OCTETS
        if not large:
            gate = self._server.door.gate
            among = gate.penalties if gate.full else self._among
            at_once = among is gate.penalties and not gate.full
            if now < self._again or not (at_once or among.allow(now)):
                self._aside = data, start, block, now
                self.used = now
                self._express = False
                among.add(self, now)
                return True
        if not self._refused(data, start, block, now):
            return False
        if large:  # too much to be put aside: what comes next is left to the system
            self.hold(self._among)
        return True

    def _refused(
        self, data: bytes, start: bytes, block: bytes, now: float, waited_s: float = 0.0
    ) -> bool:
        door = self._server.door
        told = door.plain_refusal(start, block, now, waited_s)
        penalties = door.gate.penalties
        if told is None:
            refusal = door.refusal(data, self.transport, waited_s)
            if refusal is None:
                self._again, self._among = 0.0, penalties
                return False
            told, penalties = refusal
        self.used = now
        self._again = now + penalties.pause_s
        self._among = penalties
        self._write(told)
        return True

    def hold(self, penalties: Penalties) -> None:
        """A request was refused after all: do not read on at once."""
        penalties.charge()
        if not self._held and not self.transport.is_closing():
            self._held = True
            self.transport.pause_reading()
            penalties.add(self, _monotonic())

    def read_again(self, now: float) -> None:
        (aside, more), self._aside, self._more = (self._aside, self._more), None, b""
        held, self._held = self._held, False
        if self.transport.is_closing():
            return
        if aside is not None:
            data, start, block, came = aside
            self._express = self._lane is not None and not self._paused
            shut = self._express and self._server.door.closed(now)
            if not (shut and self._refused(data, start, block, now, now - came)):
                self._waited = True
                self.data_received(data)
                self._waited = False
        if more:
            self.data_received(more)
        if held and not self._held and (self._handler is None or self._handler.reads):
            self.transport.resume_reading()

    @property
    def gate(self) -> Gate:
        return self._server.door.gate

    def _begin(self) -> Handler:
        """From here on with aiohttp."""
        handler = self._handler = self._server.handler(self)
        handler.connection_made(self.transport)
        if self._paused:
            handler.pause_writing()
        return handler

    def _at_rest(self) -> bool:
        handler = self._handler
        busy = self._paused or self._aside or self._awaited
        self._express = not busy and (handler is None or handler.at_rest())
        return self._express

    def leave_lane(self) -> None:
        """From here on with aiohttp, which knows what is to be the last of a connection."""
        self._lane = None
        if self._awaited is not None:
            self.fall_through()
        elif self._aside is not None:
            self._forget()
            (data, *_), self._aside = self._aside, None
            self._hand_over(data, None, b"", 0.0)
            self._read_on()

    def _forget(self) -> None:
        """Wait for nothing any more among those who were refused."""
        door = self._server.door
        door.gate.penalties.forget(self)
        door.quotas.penalties.forget(self)

    def close_idle(self, since: float) -> None:
        """Hang up if nothing was asked since then; where aiohttp is in charge, it does that."""
        if self._handler is None and not self.waits and self.used < since:
            self.close()

    def shed(self) -> bool:
        """Go on without aiohttp's handler, which takes ten times the memory of all else, until
        one is needed again; whether there was one."""
        if self._handler is None or self._lane is None or not self._at_rest():
            return False
        handler, self._handler = self._handler, None
        handler.retire()
        return True

    def close(self) -> None:
        """Hang up, if nothing is asked that aiohttp would answer first."""
        self._lane = None
        if self._handler is not None:
            return
        if self.transport.get_write_buffer_size():  # of what nobody takes, nobody waits for
            self.transport.abort()
        else:
            self.transport.close()

    # What the transport tells, handed on ------------------------------------------------

    def pause_writing(self) -> None:
        """The peer does not read: from here on with aiohttp, which waits for it."""
        self._paused = True
        self._express = False
        if self._handler is not None:
            self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._paused = False
        if self._handler is not None:
            self._handler.resume_writing()

    def eof_received(self) -> None:
        if self._handler is not None:
            self._handler.eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.open.discard(self)
        self._lane = None
        self._forget()
        self._aside, self._more = None, b""
        if self._awaited is not None:
            self.settle()
            self.gate.leave()
        if self._handler is not None:
            self._handler.connection_lost(exc)
            self._handler = None


class ConnectionServer(web.Server):
    """`refused(error, peer, fault)` is told of what never became a request. While `draining`,
    each answer is the last on its connection and says so (Connection: close)."""

    limits: HttpLimits
    door: Door
    gathering: Gathering | None = None
    lane: HttpLane | None = None
    draining = False
    refused: Callable[..., None]
    _sweeper: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.open: set[Connection] = set()

    def __call__(self) -> Connection:  # type: ignore[override]
        return Connection(self)

    def handler(self, connection: Connection) -> Handler:
        return Handler(self, connection, loop=self._loop, **self._kwargs)

    def sweep(self) -> None:
        """Close what is idle, now and from now on; what has just become so takes less room."""
        timeout_s = self.limits.keepalive_timeout_s
        every_s = min(SWEEP_S, timeout_s / 4)
        now, shed = _monotonic(), 0
        for connection in tuple(self.open):
            connection.close_idle(now - timeout_s)
            if connection.used < now - every_s and shed < SHED_MAX:
                shed += connection.shed()
        again_s = min(SHED_AGAIN_S, every_s) if shed == SHED_MAX else every_s
        self._sweeper = self._loop.call_later(again_s, self.sweep)

    def drain(self) -> None:
        """Nothing is answered by the lane any more, for what it sends is never the last."""
        self.lane = None
        for connection in self.open:
            connection.leave_lane()

    def pre_shutdown(self) -> None:
        self.drain()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in tuple(self.open):
            connection.close()
        super().pre_shutdown()
