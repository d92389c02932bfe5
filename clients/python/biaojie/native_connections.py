"""The connections to one node: few, shared by all calls, opened as they are needed.

A call goes out on the first connection that is not busy. While all are busy another is opened
beside them, and they are used up to what the node takes; then calls wait, those who came first
first. One timer looks at the deadlines of all calls, so that a call costs none of its own.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from .errors import BiaojieError, MalformedAnswer, OverCapacity
from .native_address import Address
from .native_connection import CLOSE_S, EXPIRED, Connection, Expired, Lost, Refused
from .wire.native import VERSION, decode_error, decode_welcome

BUSY: Final = 64
"""Requests on one connection before another is opened."""
ROOM: Final = 64
"""Requests on one connection at a time, where the node does not say how many, and"""
ROOM_MAX: Final = 1_024
"""the most, whatever it says."""
QUEUE_MAX: Final = 65_536
"""Calls that wait for room."""
SWEEP_S: Final = 0.02
"""Deadlines are not looked at more often than this."""
REFUSED_S: Final = 1.0
"""How long no further connection is tried after one that failed."""
_NEVER: Final = float("inf")
_CLOSED: Final = Lost("the client was closed", "客户端已关闭")
Missing = Lost | Expired


class Connections:
    """`most` at a time, of one event loop. `limits` is what the node said of itself last,
    None before the first connection."""

    def __init__(
        self,
        address: Address,
        hello: bytes,
        *,
        most: int,
        connect_timeout_s: float,
        idle_s: float,
        octets_max: int,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._address = address
        self._hello = hello
        self._most = most
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self._octets_max = octets_max
        self._shared: list[Connection] = []
        self._leaving: list[Connection] = []
        self._leased: set[Connection] = set()
        self._queue: OrderedDict[asyncio.Future[Missing | None], float] = OrderedDict()
        self._opening: asyncio.Task[None] | None = None
        self._leasing = 0
        self._not_before = 0.0
        self._sweeping: asyncio.TimerHandle | None = None
        self._sweep_at = _NEVER
        self._swept = 0.0
        self.limits: Mapping[str, int] | None = None

    # Taking -----------------------------------------------------------------------------

    def take(self) -> Connection | None:
        """One with room for a request; None: wait for one."""
        return None if self._queue else self._with_room()

    async def wait(self, deadline: float) -> Connection | Missing:
        """One with room for a request, or why there is none."""
        if len(self._queue) >= QUEUE_MAX:
            full = OverCapacity(
                f"{QUEUE_MAX} calls of this client wait already.",
                f"本客户端已有 {QUEUE_MAX} 个调用在等待。",
            )
            return Lost(*full.detail, full)
        again = False
        while True:
            if not self._most:  # closed: nobody looks at the time any more
                return _CLOSED
            future: asyncio.Future[Missing | None] = self.loop.create_future()
            self._queue[future] = deadline
            if again:  # somebody else was quicker
                self._queue.move_to_end(future, last=False)
            if not self._shared:
                self._open_another()
            self.due(deadline)
            try:
                got = await future
            except asyncio.CancelledError:
                self._queue.pop(future, None)
                self._wake()  # it may have been our turn
                raise
            if got is not None:
                return got
            connection = self._with_room()
            if connection is not None:
                return connection
            again = True

    def pass_on(self) -> None:
        """The room that `wait` gave is not used after all."""
        self._wake()

    def _with_room(self) -> Connection | None:
        for connection in self._shared:
            # Once per call: spelt out what `load` says.
            on_their_way = len(connection.waiting) + len(connection.parted)
            if connection.ready and on_their_way < connection.busy:
                return connection
        self._open_another()
        free = [each for each in self._shared if each.ready and each.load < each.room]
        return min(free, key=lambda each: each.load, default=None)

    def _wake(self) -> None:
        """Let as many go on as there is room for."""
        if not self._queue:
            return
        free = sum(each.room - each.load for each in self._shared if each.ready)
        while free > 0 and self._queue:
            future, _ = self._queue.popitem(last=False)
            if not future.done():
                future.set_result(None)
                free -= 1
        if self._queue:
            self._open_another()

    # Opening ----------------------------------------------------------------------------

    @property
    def _count(self) -> int:
        opening = self._leasing + (self._opening is not None)
        return len(self._shared) + len(self._leaving) + len(self._leased) + opening

    def _open_another(self) -> None:
        if self._opening is not None or self._count >= self._most:
            return
        if not self._shared or self.loop.time() >= self._not_before:
            self._opening = asyncio.create_task(self._open(), name="biaojie-connect")

    async def _open(self) -> None:
        try:
            got = await self._greeted()
        finally:
            self._opening = None
        if isinstance(got, Connection):
            self._shared.append(got)
            self.due(got.used + self._idle_s)
            self._wake()
            return
        self._not_before = self.loop.time() + REFUSED_S
        if not self._shared:
            self._fail_queue(got)

    async def _greeted(self) -> Connection | Lost:
        """A new connection on which the node knows who we are."""
        made: list[Connection] = []

        def make() -> Connection:
            connection = Connection(
                octets_max=self._octets_max, freed=self._wake, gone=self._forget
            )
            made.append(connection)
            return connection

        lost = Lost("no connection in time", "连接超时")
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                connection = await self._address.connect(make)
                reply = await connection.greet(self._hello)
            if isinstance(reply, bytes):
                self._agree(connection, reply)
                return connection
            if isinstance(reply, Refused):
                error = decode_error(reply.body)
                lost = Lost(*error.detail, error)
            elif isinstance(reply, Lost):
                lost = reply
        except TimeoutError:
            pass
        except (OSError, UnicodeError) as fault:  # UnicodeError: no name of a host
            told = str(fault) or type(fault).__name__
            lost = Lost(told, told)
        except BiaojieError as error:
            lost = Lost(*error.detail, error)
        except asyncio.CancelledError:
            for each in made:
                each.close()
            raise
        for each in made:
            each.close()
        return lost

    def _agree(self, connection: Connection, body: bytes) -> None:
        welcome = decode_welcome(body)
        if welcome.version != VERSION:
            raise MalformedAnswer(
                f"The node speaks version {welcome.version} of the native protocol, this client"
                f" version {VERSION}.",
                f"节点使用原生协议版本 {welcome.version}，本客户端为版本 {VERSION}。",
            )
        self.limits = welcome.limits
        connection.room = max(1, min(welcome.limits.get("pipeline_max", ROOM), ROOM_MAX))
        connection.busy = min(BUSY, connection.room)
        connection.ready = True

    async def lease(self) -> Connection | Lost | None:
        """A connection for one caller alone, who closes it. None: there is no room for one, as
        one connection is kept for calls."""
        if self._count >= self._most or len(self._leased) + self._leasing >= self._most - 1:
            return None
        self._leasing += 1
        try:
            got = await self._greeted()
        finally:
            self._leasing -= 1
        if isinstance(got, Connection):
            if not self._most:  # closed meanwhile
                got.close()
                return _CLOSED
            self._leased.add(got)
        return got

    # Time and the end -------------------------------------------------------------------

    def due(self, when: float) -> None:
        """Have the deadlines looked at then."""
        if when >= self._sweep_at:
            return
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._sweep_at = max(when, self._swept + SWEEP_S)
        self._sweeping = self.loop.call_at(self._sweep_at, self._sweep)

    def _sweep(self) -> None:
        now = self._swept = self.loop.time()
        self._sweeping = None
        self._sweep_at = again = _NEVER
        for future, deadline in tuple(self._queue.items()):
            if deadline <= now:
                del self._queue[future]
                if not future.done():
                    future.set_result(EXPIRED)
            else:
                again = min(again, deadline)
        for connection in tuple(self._shared):
            when, answers = connection.sweep(now)
            if not answers:
                self._shared.remove(connection)
                self._leaving.append(connection)
            elif not connection.load:
                when = connection.used + self._idle_s
                if when <= now:
                    connection.close()
                    continue
            again = min(again, when)
        for connection in tuple(self._leaving):
            when, _ = connection.sweep(now)
            if connection.alive:
                again = min(again, when)
            else:
                connection.close()
        if again < _NEVER:
            self.due(again)
        if self._queue and not self._shared:
            self._open_another()

    def _forget(self, connection: Connection) -> None:
        """A connection has ended."""
        self._leased.discard(connection)
        for some in (self._shared, self._leaving):
            if connection in some:
                some.remove(connection)
        if self._queue:
            self._open_another()

    def _fail_queue(self, why: Missing) -> None:
        queue = tuple(self._queue)
        self._queue.clear()
        for future in queue:
            if not future.done():
                future.set_result(why)

    async def close(self) -> None:
        self._most = 0
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._fail_queue(_CLOSED)
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening], timeout=CLOSE_S)
        every = (*self._shared, *self._leaving, *self._leased)
        for connection in every:
            connection.close(_CLOSED)
        await asyncio.gather(*(connection.closed(CLOSE_S) for connection in every))
