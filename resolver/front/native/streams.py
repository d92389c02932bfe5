"""Streams of the native protocol: a list of records, the change log as it grows.

Each page of a stream passes the waist once, like the request it would be by itself, and is sent
before the next is asked for: the node holds one page of a stream, never more. A stream ends with
a frame that says where it goes on, also when it was cancelled or the node is about to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from biaojie.change import Entry
from biaojie.errors import BiaojieError
from biaojie.identifier import check_prefix
from biaojie.record import Record
from biaojie.wire.native import Kind, answers, requests
from registry.admission import Caller

from ...service import Service
from .work import Asked, error_frame, frame

LIST_ROWS: Final = 500
"""Records asked for at a time."""
FOLLOW_ENTRIES: Final = 100
FOLLOW_WAIT_S: Final = 30.0
PART_OCTETS: Final = 2**18
"""A part is sent when it has so many."""


@dataclass(slots=True)
class Sheet:
    """One page: its parts as frames. `cursor` is where the stream goes on after it, `items` how
    many it has; the stream ends with it when `last`."""

    parts: list[bytes]
    cursor: bytes | int | None
    items: int
    last: bool
    octets: int = field(init=False)

    def __post_init__(self) -> None:
        self.octets = sum(map(len, self.parts))


class Stream(Protocol):
    """The codec of one page (see `resolver.exchange.serve`), and where the stream is."""

    front: str
    operation: str

    @property
    def cursor(self) -> bytes | int | None: ...

    def encode(self, data: Asked, answer: Any) -> Sheet | bytes: ...

    def encode_error(self, data: Asked, error: BiaojieError) -> Sheet | bytes: ...

    async def page(self, service: Service, caller: Caller) -> Any: ...

    async def onward(self, service: Service, sheet: Sheet) -> bool:
        """After `sheet` was sent: wait until there may be more; False where that was the last."""
        ...


def _parts(
    id_: bytes, packed: Iterable[bytes], join: Callable[[list[bytes]], bytes]
) -> list[bytes]:
    parts: list[bytes] = []
    held: list[bytes] = []
    octets = 0
    for item in packed:
        if held and octets + len(item) > PART_OCTETS:
            parts.append(frame(id_, Kind.PART, join(held)))
            held, octets = [], 0
        held.append(item)
        octets += len(item)
    if held:
        parts.append(frame(id_, Kind.PART, join(held)))
    return parts


class RecordList:
    front = "native"
    operation = "list"

    def __init__(self, request: requests.Request) -> None:
        """Raises InvalidIdentifier."""
        assert isinstance(request, requests.ListRecords)
        self._prefix = check_prefix(request.prefix)
        self.cursor = request.after
        self._left = request.limit

    async def page(self, service: Service, caller: Caller) -> tuple[list[Record], bytes | None]:
        rows = LIST_ROWS if self._left is None else min(self._left, LIST_ROWS)
        records, more = await service.list_records(caller, self._prefix, self.cursor, rows)
        return records, service.cursor(records[-1]) if more else None

    def encode(self, data: Asked, answer: tuple[list[Record], bytes | None]) -> Sheet | bytes:
        records, cursor = answer
        packed = map(answers.encode_resolution_tail, records)
        left = None if self._left is None else self._left - len(records)
        last = cursor is None or left == 0
        return Sheet(_parts(data.id, packed, answers.encode_records), cursor, len(records), last)

    def encode_error(self, data: Asked, error: BiaojieError) -> Sheet | bytes:
        return error_frame(data.id, error)

    async def onward(self, service: Service, sheet: Sheet) -> bool:
        assert sheet.cursor is None or isinstance(sheet.cursor, bytes)
        self.cursor = sheet.cursor
        if self._left is not None:
            self._left -= sheet.items
        return not sheet.last


class Following:
    front = "native"
    operation = "follow"

    def __init__(self, request: requests.Request) -> None:
        assert isinstance(request, requests.Follow)
        self.cursor = request.after
        self._left = request.limit

    async def page(self, service: Service, caller: Caller) -> tuple[list[Entry], int]:
        rows = FOLLOW_ENTRIES if self._left is None else min(self._left, FOLLOW_ENTRIES)
        return await service.list_changes(caller, self.cursor, rows, 0)

    def encode(self, data: Asked, answer: tuple[list[Entry], int]) -> Sheet | bytes:
        entries, cursor = answer
        packed = map(answers.encode_entry_packed, entries)
        last = self._left is not None and self._left <= len(entries)
        return Sheet(_parts(data.id, packed, answers.encode_entries), cursor, len(entries), last)

    def encode_error(self, data: Asked, error: BiaojieError) -> Sheet | bytes:
        return error_frame(data.id, error)

    async def onward(self, service: Service, sheet: Sheet) -> bool:
        assert isinstance(sheet.cursor, int)
        caught_up = sheet.cursor == self.cursor
        self.cursor = sheet.cursor
        if self._left is not None:
            self._left -= sheet.items
        if sheet.last:
            return False
        # A full page may be one of many; else the next look waits until the log has grown.
        return not caught_up or await service.await_change(self.cursor, FOLLOW_WAIT_S)


STREAMS: Final[dict[int, type[RecordList] | type[Following]]] = {
    Kind.LIST: RecordList,
    Kind.FOLLOW: Following,
}


def end(id_: bytes, stream: Stream) -> bytes:
    return frame(id_, Kind.END, answers.encode_end(stream.cursor))
