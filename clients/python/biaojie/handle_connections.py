"""Asking over TCP: connections that are kept and shared where the server keeps them.

Some servers hang up after every answer, others never do, and nothing they send says which; so
a connection serves one question until it has outlived its first answer by `SETTLE_S`. From
then on questions are sent through it without waiting for the answers before, which come in
any order and are told apart by their request ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

from .handle_datagrams import Accept
from .wire.handle import Malformed, Message, OpFlag, StreamFraming, decode_envelope

SETTLE_S: Final = 0.05
DEPTH: Final = 8
"""Questions on one connection before another is opened."""
DEPTH_MAX: Final = 64
"""Most where no other may be opened."""
FRESH_S: Final = 5.0
"""A connection that was heard of this lately is not being hung up just now."""
_READ_OCTETS: Final = 65_536
_PARTS_MAX: Final = 4
"""Parts of a long answer that wait for their reader; then the server has to."""


class Lost(Exception):
    """There is no answer, and will be none on this connection."""


@dataclass(slots=True)
class Question:
    """A frame to send, and how to know its answer. `take` gets each part of a long answer but
    the last. `sent`: it has left, in whole or in part, and may have been acted on."""

    frame: bytes
    request_id: int
    accept: Accept
    take: Callable[[Message], None] | None = None
    sent: bool = False


class Connection:
    """One TCP connection. Frames whose request id nobody waits for are passed over; one
    without a number (the server could not read ours) is for whoever waits alone."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = reader
        self._writer = writer
        self._waiting: dict[int, asyncio.Queue[bytes | None]] = {}
        self._why = "the connection was closed"
        self.users = 1
        self.shared = False
        self.good = True
        self.heard = self._loop.time()
        self.ending: asyncio.TimerHandle | None = None
        self.reading = asyncio.create_task(self._read())

    async def ask(self, question: Question) -> Message:
        """The last part of the answer. Raises Lost, and MalformedAnswer where it is none."""
        if not self.good or question.request_id in self._waiting:
            raise Lost(self._why)
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(_PARTS_MAX)
        self._waiting[question.request_id] = queue
        try:
            question.sent = True
            self._writer.write(question.frame)
            with suppress(OSError):  # whoever reads learns of it as well
                await self._writer.drain()
            while True:
                got = await queue.get()
                if got is None:
                    raise Lost(self._why)
                message = question.accept(got)
                self.heard = self._loop.time()
                if not message.has(OpFlag.CONTINUOUS):
                    return message
                if question.take is not None:
                    question.take(message)
        finally:
            del self._waiting[question.request_id]
            if queue.full():  # the reader may be waiting for room in it
                queue.get_nowait()

    def close(self) -> None:
        self.good = False
        if self.ending is not None:
            self.ending.cancel()
        self.reading.cancel()
        self._writer.close()

    async def _read(self) -> None:
        framing = StreamFraming()
        try:
            while data := await self._reader.read(_READ_OCTETS):
                for frame in framing.feed(data):
                    number = decode_envelope(frame).request_id
                    queue = self._waiting.get(number)
                    if queue is None and number == 0 and len(self._waiting) == 1:
                        queue = next(iter(self._waiting.values()))
                    if queue is not None:
                        await queue.put(frame)
        except Malformed as fault:
            self._why = f"what came is not the Handle protocol ({fault})"
        except OSError as fault:
            self._why = str(fault) or type(fault).__name__
        finally:
            self.good = False
            self._writer.close()
            for queue in self._waiting.values():
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(None)


class Connections:
    """The connections to one server, at most `most` of them."""

    def __init__(
        self, host: str, port: int, *, most: int, connect_timeout_s: float, idle_s: float
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._host = host
        self._port = port
        self._most = most
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self._all: set[Connection] = set()
        self._opening = 0
        self._freed = asyncio.Event()

    @property
    def busy(self) -> bool:
        return bool(self._opening) or any(connection.users for connection in self._all)

    async def close(self) -> None:
        found = list(self._all)
        for connection in found:
            connection.close()
        await asyncio.gather(*(each.reading for each in found), return_exceptions=True)

    async def ask(self, question: Question, *, alone: bool = False, fresh: bool = False) -> Message:
        """The last part of the answer. Raises Lost, and MalformedAnswer where it is none.

        `alone`: on a connection that nobody else uses meanwhile. `fresh`: on none that the
        server may be about to hang up.
        """
        async with self._borrowed(alone, fresh) as connection:
            connection.shared = connection.shared and not alone
            return await connection.ask(question)

    @asynccontextmanager
    async def _borrowed(self, alone: bool, fresh: bool) -> AsyncIterator[Connection]:
        connection = await self._take(alone, fresh)
        try:
            yield connection
        except BaseException:
            connection.good = False  # no more questions; those under way may still be answered
            raise
        finally:
            self._give_back(connection)

    async def _take(self, alone: bool, fresh: bool) -> Connection:
        while True:
            full = len(self._all) + self._opening >= self._most
            depth = 1 if alone else DEPTH_MAX if full else DEPTH
            found = self._shared(fresh)
            if found is not None and found.users < depth:
                found.users += 1
                if found.ending is not None:
                    found.ending.cancel()
                return found
            if not full:
                return await self._open()
            stale = (each for each in self._all if each.shared and not each.users)
            if (old := next(stale, None)) is not None:
                self._remove(old)
                continue
            self._freed.clear()
            await self._freed.wait()

    def _shared(self, fresh: bool) -> Connection | None:
        """The least used of those that may be shared."""
        since = self._loop.time() - FRESH_S if fresh else 0.0
        return min(
            (each for each in self._all if each.shared and each.good and each.heard >= since),
            key=lambda each: each.users,
            default=None,
        )

    async def _open(self) -> Connection:
        self._opening += 1
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                streams = await asyncio.open_connection(self._host, self._port)
        except TimeoutError:
            raise Lost("no connection in time") from None
        except OSError as fault:
            raise Lost(str(fault) or type(fault).__name__) from None
        finally:
            self._opening -= 1
            self._freed.set()
        connection = Connection(*streams)
        self._all.add(connection)
        connection.reading.add_done_callback(lambda _: self._remove(connection))
        return connection

    def _give_back(self, connection: Connection) -> None:
        connection.users -= 1
        self._freed.set()
        if connection.users:
            return
        if not connection.good:
            self._remove(connection)
        elif connection.shared:
            self._end_later(connection)
        else:
            connection.ending = self._loop.call_later(SETTLE_S, self._settle, connection)

    def _settle(self, connection: Connection) -> None:
        connection.shared = True
        self._freed.set()
        self._end_later(connection)

    def _end_later(self, connection: Connection) -> None:
        connection.ending = self._loop.call_later(self._idle_s, self._remove, connection)

    def _remove(self, connection: Connection) -> None:
        self._all.discard(connection)
        connection.close()
        self._freed.set()
