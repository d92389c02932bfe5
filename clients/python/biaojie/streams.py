"""Streams over a transport: many names, many rows, all pages, the change log.

Everything here reads ahead by a stated number of chunks and no more. Page-level and
chunk-level, so that the async and the sync face share it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

from .accept import Chunk, identifier_of
from .calls import Mode, Operation, Page, Resolved
from .change import Entry, RowResult
from .errors import BatchRejected, BiaojieError, InvalidIdentifier, MalformedAnswer, TooLarge
from .identifier import Identifier
from .record import Record
from .retry import Backoff, keyed
from .transport import Streaming, Transport
from .wire.document import encode_row

T = TypeVar("T")
log = logging.getLogger("biaojie.client")
FOLLOW_WAIT_S = 25.0
"""How long a long-poll for changes stays open; proxies tend to hang up at 30 s or 60 s."""
_FOLLOW_BACKOFF = Backoff(base_s=0.25, cap_s=15.0)
_QUIET_S = 1.0


async def each(source: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """The items of either kind of iterable."""
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    else:
        for item in source:
            yield item


# Many names -----------------------------------------------------------------------------


def parse_name(name: str | Identifier) -> Identifier | InvalidIdentifier:
    """A name that is wrong in itself is answered here and not sent."""
    try:
        return identifier_of(name)
    except InvalidIdentifier as error:
        return type(error)(*error.detail, **{**error.fields, "identifier": str(name)})


async def resolve_chunk(
    transport: Transport, names: Sequence[Identifier | InvalidIdentifier], timeout_s: float
) -> list[Resolved | BiaojieError]:
    """One answer per name, in order.

    A node's reply has a limit in octets; names beyond it are asked for again, on their own.
    """
    answers: list[Resolved | BiaojieError | None] = [
        None if isinstance(name, Identifier) else name for name in names
    ]
    todo = [at for at, name in enumerate(names) if isinstance(name, Identifier)]
    while todo:
        asked = [name for at in todo if isinstance(name := names[at], Identifier)]
        got = await transport.resolve_batch(asked, timeout_s=timeout_s)
        for at, answer in zip(todo, got, strict=True):
            answers[at] = answer
        left = [at for at, answer in zip(todo, got, strict=True) if isinstance(answer, TooLarge)]
        todo = left if len(left) < len(todo) else []
    return [answer for answer in answers if answer is not None]


async def resolve_names(
    transport: Transport,
    identifiers: Iterable[str | Identifier] | AsyncIterable[str | Identifier],
    chunk_names: int,
    concurrency: int,
    timeout_s: float,
) -> AsyncGenerator[Resolved | BiaojieError, None]:
    """One answer per name, in order; `concurrency` chunks are under way at most."""
    running: deque[asyncio.Task[list[Resolved | BiaojieError]]] = deque()
    names: list[Identifier | InvalidIdentifier] = []

    def start() -> None:
        asked = resolve_chunk(transport, tuple(names), timeout_s)
        running.append(asyncio.create_task(asked))
        names.clear()

    try:
        async for name in each(identifiers):
            names.append(parse_name(name))
            if len(names) == chunk_names:
                start()
                if len(running) == concurrency:
                    for answer in await running.popleft():
                        yield answer
        if names:
            start()
        while running:
            for answer in await running.popleft():
                yield answer
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


# Many rows ------------------------------------------------------------------------------


async def write_chunk(
    transport: Transport,
    chunk: Chunk,
    *,
    mode: Mode,
    dry_run: bool,
    key: str | None,
    timeout_s: float,
) -> list[RowResult]:
    """One result per row, numbered as the chunk is. Raises BatchRejected in mode `all`."""
    wrong = [row for row in chunk.rows if isinstance(row, RowResult)]
    if mode == "all" and wrong:
        raise BatchRejected(rows=[encode_row(row) for row in wrong])
    numbered = [
        (number, row)
        for number, row in enumerate(chunk.rows, chunk.first_row)
        if isinstance(row, Operation)
    ]
    results: dict[int, RowResult] = {row.row: row for row in wrong}
    if numbered:
        try:
            with keyed(key) as sent_key:
                batch = await transport.write_batch(
                    [row for _, row in numbered],
                    mode=mode,
                    dry_run=dry_run,
                    key=sent_key,
                    timeout_s=timeout_s,
                )
        except BatchRejected as error:
            raise _renumbered(error, chunk.first_row) from None
        for (number, _), result in zip(numbered, batch.rows, strict=True):
            results[number] = replace(result, row=number)
    return [results[number] for number in sorted(results)]


def _renumbered(error: BatchRejected, first_row: int) -> BatchRejected:
    """The node counts the rows of one batch from 1; callers count those of the stream."""
    told = error.fields.get("rows")
    rows = [
        {**row, "row": row["row"] + first_row - 1}
        for row in (told if isinstance(told, list) else ())
        if isinstance(row, dict) and isinstance(row.get("row"), int)
    ]
    error.fields = {**error.fields, "rows": rows}
    return error


# Pages ----------------------------------------------------------------------------------


async def flat(source: AsyncGenerator[Sequence[T], None]) -> AsyncGenerator[T, None]:
    """The items of all pages."""
    async for page in source:
        for item in page:
            yield item


async def pages(
    fetch: Callable[[str | None], Awaitable[Page[T]]],
) -> AsyncGenerator[Sequence[T], None]:
    """All pages, one request each, none ahead of the reader."""
    after: str | None = None
    while True:
        page = await fetch(after)
        yield page.items
        if page.next is None:
            return
        if page.next == after:
            raise MalformedAnswer("The cursor does not move.", "分页游标没有前进。")
        after = page.next


def record_pages(
    transport: Transport, prefix: str, *, page_rows: int, timeout_s: float
) -> AsyncGenerator[Sequence[Record], None]:
    """All records under a prefix."""
    if isinstance(transport, Streaming):
        return transport.stream_records(prefix, page_rows=page_rows, timeout_s=timeout_s)
    return pages(
        lambda after: transport.list_records(
            prefix, after=after, limit=page_rows, timeout_s=timeout_s
        )
    )


async def change_pages(
    transport: Transport, after: int, *, follow: bool, page_rows: int, timeout_s: float
) -> AsyncGenerator[Sequence[Entry], None]:
    """Log entries after a sequence, each once and in order.

    With `follow` it waits for more for ever and outlives every fault that may pass; without,
    it ends at the head of the log.
    """
    failures = 0
    while True:
        if follow and isinstance(transport, Streaming):
            coming = transport.stream_changes(
                after, page_rows=page_rows, wait_s=FOLLOW_WAIT_S, timeout_s=timeout_s
            )
        else:
            coming = _polled(transport, after, follow, page_rows, timeout_s)
        try:
            async with aclosing(coming):
                async for entries, following in coming:
                    failures = 0
                    for entry in entries:
                        if not after < entry.sequence <= following:
                            raise MalformedAnswer("The log is out of order.", "变更日志顺序错误。")
                        after = entry.sequence
                    after = following
                    if entries:
                        yield entries
            return
        except BiaojieError as error:
            if not (follow and error.retryable):
                raise
            failures += 1
            wait = error.fields.get("retry_after_s")
            delay_s = _FOLLOW_BACKOFF.delay_s(failures, wait if isinstance(wait, float) else None)
            log.warning("following changes after %d: %s, again in %.1f s", after, error, delay_s)
        await asyncio.sleep(delay_s)


async def _polled(
    transport: Transport, after: int, follow: bool, page_rows: int, timeout_s: float
) -> AsyncGenerator[tuple[tuple[Entry, ...], int], None]:
    """Page by page, to the head of the log or for ever."""
    loop = asyncio.get_running_loop()
    while True:
        started = loop.time()
        entries, following = await transport.list_changes(
            after, limit=page_rows, wait_s=FOLLOW_WAIT_S if follow else 0, timeout_s=timeout_s
        )
        yield entries, following
        if not entries and following == after:
            if not follow:
                return
            if loop.time() - started < _QUIET_S:
                await asyncio.sleep(_QUIET_S)  # a node that does not wait is not asked in a circle
        after = following
