"""The sync client: the same core on an event loop in a thread of its own.

Every call hands a coroutine of the async client to that loop and waits. Streams of names and
rows are read in the caller's thread, so a generator may use what belongs to that thread (a
database cursor, this very client).
"""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from functools import wraps
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from .accept import Chunks, check_chunks
from .administration import Keys, Prefixes
from .calls import Mode, Resolved, Row
from .change import RowResult
from .client import Client
from .errors import BiaojieError, InvalidIdentifier
from .identifier import Identifier
from .importing import Imports
from .limits import BATCH_ROWS_MAX, RESOLVE_MANY_MAX
from .range_calls import Ranges
from .retry import Backoff
from .streams import parse_name, resolve_chunk

if TYPE_CHECKING:
    from .handle_options import HandleOptions
    from .keys import PrivateKey

A = TypeVar("A")
P = ParamSpec("P")
R = TypeVar("R")
_CLOSE_S = 5.0
_LOOK_S = 1.0


class _LoopThread:
    """An event loop in a daemon thread, started by the first call. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._closed = False

    def start(self, coroutine: Coroutine[Any, Any, R]) -> Future[R]:
        """Hand a coroutine over; the result is to be waited for with `wait`."""
        try:
            with self._lock:  # nothing can be handed over once `close` has begun
                return asyncio.run_coroutine_threadsafe(coroutine, self._ready())
        except RuntimeError:
            coroutine.close()
            raise

    def wait(self, future: Future[R]) -> R:
        """The core's deadlines end every call; this looks that the core itself is alive."""
        try:
            while not wait([future], _LOOK_S).done:
                if self._thread is None or not self._thread.is_alive():
                    break
            return future.result(0)
        except CancelledError:
            raise RuntimeError("The client was closed meanwhile. 客户端已被关闭。") from None
        except BaseException:  # KeyboardInterrupt above all: the call must not go on unseen
            future.cancel()
            raise

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        return self.wait(self.start(coroutine))

    def _ready(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise RuntimeError("The client is closed. 客户端已关闭。")
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name="biaojie-client", daemon=True
            )
            self._pid = os.getpid()
            self._thread.start()
        if self._pid != os.getpid():
            raise RuntimeError(
                "This SyncClient was used before the fork: make one in each process. "
                "该客户端在 fork 之前已使用：请在每个进程中各自创建。"
            )
        if self._thread is threading.current_thread():
            raise RuntimeError(
                "A SyncClient cannot be called from its own loop. 不能在其自身的事件循环中调用。"
            )
        return self._loop

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancel what runs, run `last`, stop the loop. At most about fifteen seconds."""
        with self._lock:
            loop, thread = self._loop, self._thread
            done = self._closed or self._pid != os.getpid()
            self._closed = True
            if done or loop is None or thread is None:
                return
            ending = asyncio.run_coroutine_threadsafe(_end(loop, last), loop)
        if thread is threading.current_thread():  # collected as garbage by the loop's own thread
            return
        wait([ending], 2 * _CLOSE_S)
        thread.join(_CLOSE_S)
        if not thread.is_alive():
            loop.close()


async def _end(
    loop: asyncio.AbstractEventLoop, last: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    try:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), _CLOSE_S)
        await loop.shutdown_asyncgens()
        await asyncio.wait_for(last(), _CLOSE_S)
    finally:
        loop.call_soon(loop.stop)


class _Face(Generic[A]):
    """Something async and the thread it runs in."""

    def __init__(self, thread: _LoopThread, behind: A) -> None:
        self._thread = thread
        self._behind = behind


def _call(
    method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[_Face[A], P], R]:
    @wraps(method)
    def call(self: _Face[A], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._thread.run(method(self._behind, *args, **kwargs))

    return call


def _iterate(
    method: Callable[Concatenate[A, P], AsyncGenerator[Sequence[R], None]],
    documented: Callable[..., Any],
) -> Callable[Concatenate[_Face[A], P], Iterator[R]]:
    @wraps(documented)
    def iterate(self: _Face[A], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        pages = method(self._behind, *args, **kwargs)
        while (page := self._thread.run(_next(pages))) is not None:
            yield from page

    return iterate


async def _next(pages: AsyncGenerator[Sequence[R], None]) -> Sequence[R] | None:
    return await anext(pages, None)


class SyncPrefixes(_Face[Prefixes]):
    """The prefixes homed at the node. Homing and changing them needs an admin key."""

    list = _iterate(Prefixes._pages, Prefixes.list)
    get = _call(Prefixes.get)
    home = _call(Prefixes.home)
    change = _call(Prefixes.change)


class SyncKeys(_Face[Keys]):
    """The node's API keys. Needs an admin key."""

    list = _iterate(Keys._pages, Keys.list)
    issue = _call(Keys.issue)
    revoke = _call(Keys.revoke)


class SyncImports(_Face[Imports]):
    """Files that the node registers as jobs of its own; see `Imports`."""

    list = _iterate(Imports._pages, Imports.list)
    run = _iterate(Imports._run_pages, Imports.run)
    follow = _iterate(Imports._follow_pages, Imports.follow)
    report = _iterate(Imports._report_pages, Imports.report)
    start = _call(Imports.start)
    get = _call(Imports.get)
    cancel = _call(Imports.cancel)
    save_errors = _call(Imports.save_errors)


class SyncRanges(_Face[Ranges]):
    """The ranges of a prefix. Needs a key with rights on it, and an http(s):// address."""

    list = _iterate(Ranges._pages, Ranges.list)
    get = _call(Ranges.get)
    register = _call(Ranges.register)
    cut = _call(Ranges.cut)


class SyncClient(_Face[Client]):
    """A node's client for code without an event loop, or inside one it does not own.

    Takes what `Client` takes and has its methods; iterators are plain ones. May be shared by
    threads; after a fork, each process uses its own. Close it, or use it as
    `with SyncClient(url)`; left open, it is closed when the program ends.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        timeout_s: float = 10.0,
        *,
        retries: int = 3,
        connections_max: int = 64,
        reply_octets_max: int = 64 * 1_048_576,
        tls: ssl.SSLContext | None = None,
        backoff: Backoff | None = None,
        identity: str | None = None,
        secret: str | bytes | None = None,
        private_key: PrivateKey | bytes | None = None,
        handle: HandleOptions | None = None,
    ) -> None:
        client = Client(
            url,
            key,
            timeout_s,
            retries=retries,
            connections_max=connections_max,
            reply_octets_max=reply_octets_max,
            tls=tls,
            backoff=backoff,
            identity=identity,
            secret=secret,
            private_key=private_key,
            handle=handle,
        )
        thread = _LoopThread()
        super().__init__(thread, client)
        self.prefixes = SyncPrefixes(thread, client.prefixes)
        self.keys = SyncKeys(thread, client.keys)
        self.imports = SyncImports(thread, client.imports)
        self.ranges = SyncRanges(thread, client.ranges)
        self._end = weakref.finalize(self, thread.close, client.close)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._behind.url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread. Calling it again does nothing."""
        self._end()

    @property
    def url(self) -> str:
        """The node's address."""
        return self._behind.url

    @property
    def connections_max(self) -> int:
        """Most connections open at a time; calls beyond them wait, within their timeout."""
        return self._behind.connections_max

    resolve = _call(Client.resolve)
    register = _call(Client.register)
    mint = _call(Client.mint)
    modify = _call(Client.modify)
    retire = _call(Client.retire)
    purge = _call(Client.purge)
    records = _iterate(Client._record_pages, Client.records)
    search = _iterate(Client._search_pages, Client.search)
    changes = _iterate(Client._change_pages, Client.changes)

    def resolve_many(
        self,
        identifiers: Iterable[str | Identifier],
        *,
        chunk_names: int = RESOLVE_MANY_MAX,
        concurrency: int = 4,
        timeout_s: float | None = None,
    ) -> Iterator[Resolved | BiaojieError]:
        """As `Client.resolve_many`; the names are read in the caller's thread."""
        check_chunks(chunk_names, concurrency)
        client = self._behind
        running: deque[Future[list[Resolved | BiaojieError]]] = deque()
        names: list[Identifier | InvalidIdentifier] = []

        def start() -> None:
            asked = resolve_chunk(client._transport, tuple(names), timeout_s or client._timeout_s)
            names.clear()
            running.append(self._thread.start(asked))

        try:
            for name in identifiers:
                names.append(parse_name(name))
                if len(names) == chunk_names:
                    start()
                    if len(running) == concurrency:
                        yield from self._thread.wait(running.popleft())
            if names:
                start()
            while running:
                yield from self._thread.wait(running.popleft())
        finally:
            for future in running:
                future.cancel()

    def register_many(
        self,
        rows: Iterable[Row],
        mode: Mode = "valid-rows",
        dry_run: bool = False,
        *,
        job: str | None = None,
        chunk_rows: int = BATCH_ROWS_MAX,
        timeout_s: float = 60.0,
    ) -> Iterator[RowResult]:
        """As `Client.register_many`; the rows are read in the caller's thread."""
        write = self._behind._write_chunk
        chunks = Chunks(chunk_rows)
        for row in rows:
            for chunk in chunks.add(row):
                yield from self._thread.run(write(chunk, mode, dry_run, job, timeout_s))
        for chunk in chunks.rest():
            yield from self._thread.run(write(chunk, mode, dry_run, job, timeout_s))

    def register_batch(
        self,
        rows: Iterable[Row],
        mode: Mode = "valid-rows",
        dry_run: bool = False,
        *,
        idempotency_key: str | None = None,
        timeout_s: float = 60.0,
    ) -> Sequence[RowResult]:
        """As `Client.register_batch`; the rows are read in the caller's thread."""
        return self._thread.run(
            self._behind.register_batch(
                list(islice(rows, BATCH_ROWS_MAX + 1)),
                mode,
                dry_run,
                idempotency_key=idempotency_key,
                timeout_s=timeout_s,
            )
        )
