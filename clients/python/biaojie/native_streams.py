"""Streams of the native protocol: whole lists, and the change log as it grows.

A stream has a connection of its own, so that a slow reader holds up what the node sends to it
and nobody else's answers. Where there is none to be had, pages are asked for instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Final

from .change import Entry
from .errors import MalformedAnswer
from .native_connection import EXPIRED, Connection, Lost, Parted, Reply, Stream
from .native_exchange import NativeExchange
from .record import Record
from .wire.native import Kind, encode_request
from .wire.native.answers import NOTHING, decode_entries, decode_list_end, decode_records
from .wire.native.requests import Follow, ListRecords

STRETCH_PAGES: Final = 10
"""A list is asked for in stretches of so many pages; after a fault one of them is read again."""
QUIET_S: Final = 25.0
"""Who follows the log and hears nothing for so long asks whether the node is still there."""


async def list_pages(
    native: NativeExchange,
    prefix: str,
    fetch: Callable[[bytes | None], Awaitable[tuple[Sequence[Record], bytes | None]]],
    *,
    page_rows: int,
    timeout_s: float,
) -> AsyncGenerator[Sequence[Record], None]:
    """All records under a prefix, each once. `fetch` gets one page after a cursor, as an
    ordinary call; `timeout_s` is how long a page may take, attempts included."""
    # A list of one page needs no stream.
    records, after = await fetch(None)
    yield records
    loop = asyncio.get_running_loop()
    connection: Connection | None = None
    given: set[str] = set()
    failures, moved = 0, loop.time()
    try:
        while after is not None:
            fault: Reply | None = None
            if connection is None:
                leased = await native.lease()
                if leased is None:
                    records, after = await fetch(after)
                    yield records
                    continue
                if isinstance(leased, Connection):
                    connection = leased
                else:
                    fault = leased
            if connection is not None:
                request = ListRecords(prefix, after, page_rows * STRETCH_PAGES)
                stream = connection.stream(*encode_request(request))
                stretch = _Stretch(given)
                while isinstance(part := await stream.next(timeout_s), bytes):
                    failures, moved = 0, loop.time()
                    if fresh := stretch.fresh(decode_records(part)):
                        yield fresh
                        moved = loop.time()
                if isinstance(part, Parted):
                    if stretch.held:
                        yield stretch.held
                    before, after = after, decode_list_end(part.end)
                    if after == before:
                        raise MalformedAnswer("The cursor does not move.", "分页游标没有前进。")
                    given.clear()
                    continue
                connection.close()
                connection = None
                fault = EXPIRED if part is None else part
            failures += 1
            assert fault is not None
            await native.pause(fault, failures, timeout_s, moved + timeout_s)
    finally:
        if connection is not None:
            connection.close()


class _Stretch:
    """A part of a list that is read once more, perhaps, because it broke off. `given` are the
    names that the reader has of it, and grows. Order is kept: what has been registered
    meanwhile before a name that was given is passed over, as it would be without the fault."""

    def __init__(self, given: set[str]) -> None:
        self._given = given
        self._missing = set(given)
        self.held: list[Record] = []

    def fresh(self, records: Sequence[Record]) -> Sequence[Record]:
        """Those that the reader gets now. `held` is for the end of the stretch."""
        if not self._missing:
            self._given.update(str(record.identifier) for record in records)
            return records
        for record in records:
            name = str(record.identifier)
            if name in self._missing:
                self._missing.discard(name)
                self.held.clear()
            else:
                self.held.append(record)
        if self._missing:
            return ()
        held, self.held = self.held, []
        self._given.update(str(record.identifier) for record in held)
        return held


async def follow(
    native: NativeExchange,
    after: int,
    fetch: Callable[[int], Awaitable[tuple[tuple[Entry, ...], int]]],
    *,
    timeout_s: float,
) -> AsyncGenerator[tuple[tuple[Entry, ...], int], None]:
    """Entries as they come, and the sequence to go on from; for ever, or until a fault, which is
    raised. `fetch` gets one page after a sequence, waiting for it, as an ordinary call."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    failures = 0
    while isinstance(leased := await native.lease(), Lost):
        failures += 1
        await native.pause(leased, failures, timeout_s, deadline)
    if leased is None:
        while True:
            entries, after = await fetch(after)
            yield entries, after
    try:
        stream = leased.stream(*encode_request(Follow(after)))
        while True:
            reply = await _heard(stream, timeout_s)
            if not isinstance(reply, bytes):
                break
            if entries := decode_entries(reply):
                yield entries, entries[-1].sequence
    finally:
        leased.close()
    if isinstance(reply, Parted):  # a node that stops
        reply = Lost("the node ended the stream", "节点结束了数据流")
    raise native.error_of(reply, timeout_s)


async def _heard(stream: Stream, timeout_s: float) -> Reply:
    """What comes next, however long that takes while the node is there."""
    loop = asyncio.get_running_loop()
    while True:
        reply = await stream.next(QUIET_S)
        if reply is not None:
            return reply
        asked_at = loop.time()
        stream.connection.ask(Kind.PING, NOTHING, asked_at + timeout_s, asked_at)
        reply = await stream.next(timeout_s)
        if reply is not None:
            return reply
        if stream.connection.heard <= asked_at:
            return EXPIRED
