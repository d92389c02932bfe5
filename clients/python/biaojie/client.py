"""The async client: every method of a node, typed, with a deadline and safe retries.

Here are the conveniences; what a call is on the wire belongs to the transport behind it.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .accept import (
    Chunk,
    Chunks,
    check_chunks,
    chunk_key,
    chunk_of,
    identifier_of,
    numbers_of,
    search_values_of,
    status_of,
    texts_of,
    values_of,
)
from .administration import Keys, Prefixes
from .calls import IssuedKey, Mint, Mode, Operation, Resolved, Row, Values
from .change import Action, Entry, Receipt, RowResult
from .errors import BiaojieError, InvalidRequest
from .identifier import Identifier, check_prefix
from .importing import Imports
from .limits import BATCH_ROWS_MAX, PAGE_ROWS_MAX, RESOLVE_MANY_MAX
from .range_calls import Ranges
from .record import Record, Status
from .retry import Backoff, keyed
from .streams import (
    change_pages,
    each,
    flat,
    pages,
    record_pages,
    resolve_names,
    write_chunk,
)
from .transport import Options, Transport, login_of, open_transport

if TYPE_CHECKING:
    from .handle_options import HandleOptions
    from .keys import PrivateKey

__all__ = ["Client", "Imports", "IssuedKey", "Keys", "Prefixes", "Resolved", "Row"]


class Client:
    """A node's client, for one event loop. Close it, or use it as `async with Client(url)`.

    `url` is `http://host:port` or `https://host[:port]`, or for the native protocol, the
    quickest, `biaojie://host[:port]` or `biaojie+unix:///path`; `key` says who asks. Over the
    native protocol concurrent calls share few connections; nothing is encrypted.
    Or it is `hdl://host[:port]`, to speak the Handle protocol: then `identity`, such as
    `300:88.118.8/ADMIN`, logs in with its `secret` or `private_key` (a key of `biaojie.keys`
    or the octets of a key file), and `handle` says more.
    `timeout_s` is the whole time a call may take, retries included; each method takes
    another. `retries` is how often a safe call is tried again. `tls` replaces the trust
    store, for a node with a private certificate authority.

    Methods raise the classes of `biaojie.errors`: what the node answered, or Unreachable,
    DeadlineExceeded or MalformedAnswer. After an Unreachable or DeadlineExceeded write,
    `error.fields["idempotency_key"]` is the key to repeat it with (`idempotency_key=`): it
    then happens once, whether or not the first attempt had got through.
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
        if timeout_s <= 0 or retries < 0 or connections_max < 1 or reply_octets_max < 1:
            raise InvalidRequest(
                "retries is 0 or more; timeout_s, connections_max, reply_octets_max more than 0.",
                "timeout_s、connections_max、reply_octets_max 应大于 0，retries 不小于 0。",
            )
        self._timeout_s = timeout_s
        self._connections_max = connections_max
        self._transport: Transport = open_transport(
            url,
            Options(
                key=key,
                connections_max=connections_max,
                reply_octets_max=reply_octets_max,
                backoff=backoff or Backoff(retries=retries),
                tls=tls,
                login=login_of(identity, secret, private_key),
                handle=handle,
            ),
        )
        self.prefixes = Prefixes(self._transport, timeout_s)
        self.keys = Keys(self._transport, timeout_s)
        self.imports = Imports(self._transport, timeout_s)
        self.ranges = Ranges(self._transport, timeout_s)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._transport.address}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Calling it again does nothing."""
        await self._transport.close()

    @property
    def url(self) -> str:
        """The node's address."""
        return self._transport.address

    @property
    def connections_max(self) -> int:
        """Most connections open at a time; calls beyond them wait, within their timeout."""
        return self._connections_max

    # Look-ups ---------------------------------------------------------------------------

    async def resolve(
        self,
        identifier: str | Identifier,
        *,
        index: int | Iterable[int] = (),
        types: str | Iterable[str] = (),
        authoritative: bool = False,
        timeout_s: float | None = None,
    ) -> Resolved:
        """The record of an identifier, in any form people paste (`hdl:…`, a URL, …).

        `index` and `types` choose among its values. `authoritative` bypasses every cache.
        Raises IdentifierNotFound, IdentifierRetired, PrefixNotHere, PrefixSuspended,
        TemporarilyUnavailable.
        """
        return await self._transport.resolve(
            identifier_of(identifier),
            index=numbers_of(index),
            types=texts_of(types),
            authoritative=authoritative,
            timeout_s=timeout_s or self._timeout_s,
        )

    async def resolve_many(
        self,
        identifiers: Iterable[str | Identifier] | AsyncIterable[str | Identifier],
        *,
        chunk_names: int = RESOLVE_MANY_MAX,
        concurrency: int = 4,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Resolved | BiaojieError, None]:
        """For each name, in order, a Resolved or the error it met (with field `identifier`).

        Any number of names: they are read `chunk_names` at a time and at most `concurrency`
        chunks are under way. `timeout_s` is for each chunk. A fault of the exchange itself
        (the node cannot be reached, the key is refused) is raised and ends the iteration.
        """
        check_chunks(chunk_names, concurrency)
        answers = resolve_names(
            self._transport, identifiers, chunk_names, concurrency, timeout_s or self._timeout_s
        )
        async with aclosing(answers):
            async for answer in answers:
                yield answer

    async def records(
        self, prefix: str, *, page_rows: int = PAGE_ROWS_MAX, timeout_s: float | None = None
    ) -> AsyncGenerator[Record, None]:
        """All records under a prefix in order of suffix, tombstones included (status retired).

        Needs a key with rights on the prefix. `timeout_s` is for each page.
        """
        async for record in flat(
            self._record_pages(prefix, page_rows=page_rows, timeout_s=timeout_s)
        ):
            yield record

    def _record_pages(
        self, prefix: str, *, page_rows: int = PAGE_ROWS_MAX, timeout_s: float | None = None
    ) -> AsyncGenerator[Sequence[Record], None]:
        check_prefix(prefix)
        return record_pages(
            self._transport,
            prefix,
            page_rows=page_rows,
            timeout_s=timeout_s or self._timeout_s,
        )

    def search(
        self,
        values: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        /,
        *,
        prefix: str | None = None,
        page_rows: int = PAGE_ROWS_MAX,
        timeout_s: float | None = None,
        **types: str,
    ) -> AsyncGenerator[Identifier, None]:
        """Identifiers whose records have these values, in order of prefix and suffix.

        `search(URL="https://example.com/SN1")`, or `search({"10320/loc": …})` where the type
        is no Python name; data match whole and letter by letter, types in any case, and of
        several all must match. Only types that a prefix declares searchable are found. Without
        `prefix`, what the public may read is searched (by an admin: everything); with it,
        drafts and private values as well if the key has rights there. `timeout_s` is for
        each page. Raises InvalidRequest, PrefixNotHere, PrefixSuspended, Elsewhere, and
        TemporarilyUnavailable while a prefix is being indexed.
        """
        return flat(
            self._search_pages(
                values, prefix=prefix, page_rows=page_rows, timeout_s=timeout_s, **types
            )
        )

    def _search_pages(
        self,
        values: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        /,
        *,
        prefix: str | None = None,
        page_rows: int = PAGE_ROWS_MAX,
        timeout_s: float | None = None,
        **types: str,
    ) -> AsyncGenerator[Sequence[Identifier], None]:
        wanted = search_values_of(values, types)
        if prefix is not None:
            check_prefix(prefix)
        return pages(
            lambda after: self._transport.search(
                wanted,
                prefix=prefix,
                after=after,
                limit=page_rows,
                timeout_s=timeout_s or self._timeout_s,
            )
        )

    async def changes(
        self,
        after: int = 0,
        *,
        follow: bool = True,
        page_rows: int = 100,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Entry, None]:
        """Entries of the change log after that sequence, each once and in order.

        With `follow` it goes on for ever: it waits for new entries by long-poll and carries on
        after restarts and network faults; without, it ends at the head of the log. To resume
        later, keep the `sequence` of the last entry you have dealt with.
        """
        async for entry in flat(
            self._change_pages(after, follow=follow, page_rows=page_rows, timeout_s=timeout_s)
        ):
            yield entry

    def _change_pages(
        self,
        after: int = 0,
        *,
        follow: bool = True,
        page_rows: int = 100,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Sequence[Entry], None]:
        return change_pages(
            self._transport,
            after,
            follow=follow,
            page_rows=page_rows,
            timeout_s=timeout_s or self._timeout_s,
        )

    # Writes -----------------------------------------------------------------------------

    async def register(
        self,
        identifier: str | Identifier,
        values: Values,
        *,
        status: Status | str | None = None,
        template: str | None = None,
        overwrite: bool = False,
        if_version: int | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Register an identifier; raises IdentifierTaken if it already is.

        `values` are Value objects, JSON-style objects, or {type: text}. With `overwrite` all
        values are replaced if it exists, and with `if_version` only if it is of that version
        (else VersionMismatch).
        """
        if if_version is not None and not overwrite:
            raise InvalidRequest(
                "if_version needs overwrite=True: what does not exist has no version.",
                "if_version 需要 overwrite=True：不存在的记录没有版本。",
            )
        return await self._write(
            Operation(
                Action.PUT if overwrite else Action.CREATE,
                identifier_of(identifier),
                values_of(values),
                status=status_of(status),
                template=template,
                if_version=if_version,
            ),
            idempotency_key,
            timeout_s,
        )

    async def mint(
        self,
        prefix: str,
        values: Values,
        suffix_start: str = "",
        *,
        status: Status | str | None = None,
        template: str | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Register under a suffix the node makes up; the receipt has the identifier."""
        mint = Mint(
            check_prefix(prefix), suffix_start, values_of(values), status_of(status), template
        )
        with keyed(idempotency_key) as key:
            return await self._transport.mint(mint, key=key, timeout_s=timeout_s or self._timeout_s)

    async def register_many(
        self,
        rows: Iterable[Row] | AsyncIterable[Row],
        mode: Mode = "valid-rows",
        dry_run: bool = False,
        *,
        job: str | None = None,
        chunk_rows: int = BATCH_ROWS_MAX,
        timeout_s: float = 60.0,
    ) -> AsyncGenerator[RowResult, None]:
        """Write any number of rows; yields a RowResult for each, in order, counted from 1.

        Rows are read and sent by chunks, one at a time. Mode `valid-rows` writes the good
        rows and reports the bad. Mode `all` writes a chunk whole or not at all: at the first
        bad row BatchRejected is raised, whose field `rows` lists the bad rows of that chunk;
        chunks before it stay written. `dry_run` decides everything and writes nothing.

        `job` names the work, so that it can be repeated after a crash: give the same name,
        rows, mode and `chunk_rows`, and chunks that are already written are answered from
        memory (the node keeps it for two days). Other rows need another name.
        """
        chunks = Chunks(chunk_rows)
        async for row in each(rows):
            for chunk in chunks.add(row):
                for result in await self._write_chunk(chunk, mode, dry_run, job, timeout_s):
                    yield result
        for chunk in chunks.rest():
            for result in await self._write_chunk(chunk, mode, dry_run, job, timeout_s):
                yield result

    async def _write_chunk(
        self, chunk: Chunk, mode: Mode, dry_run: bool, job: str | None, timeout_s: float
    ) -> Sequence[RowResult]:
        return await write_chunk(
            self._transport,
            chunk,
            mode=mode,
            dry_run=dry_run,
            key=chunk_key(job, chunk, mode, dry_run),
            timeout_s=timeout_s,
        )

    async def register_batch(
        self,
        rows: Iterable[Row],
        mode: Mode = "valid-rows",
        dry_run: bool = False,
        *,
        idempotency_key: str | None = None,
        timeout_s: float = 60.0,
    ) -> Sequence[RowResult]:
        """At most 2,000 rows in one request and one commit; otherwise as `register_many`.

        With the same key and rows a second time, the node gives the first results again.
        """
        return await write_chunk(
            self._transport,
            chunk_of(rows),
            mode=mode,
            dry_run=dry_run,
            key=idempotency_key,
            timeout_s=timeout_s,
        )

    async def modify(
        self,
        identifier: str | Identifier,
        set: Values = (),
        remove: int | Iterable[int] = (),
        *,
        status: Status | str | None = None,
        template: str | None = None,
        if_version: int | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Add or replace values by index (`set`), remove others, change status or template.

        What is not given stays. The values in `set` need their indexes, so {type: text} is
        refused here.
        """
        return await self._write(
            Operation(
                Action.MODIFY,
                identifier_of(identifier),
                values_of(set, numbered=False),
                numbers_of(remove),
                status_of(status),
                template,
                if_version,
            ),
            idempotency_key,
            timeout_s,
        )

    async def retire(
        self,
        identifier: str | Identifier,
        *,
        if_version: int | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Leave a tombstone: it resolves no more and is never given out again."""
        operation = Operation(Action.RETIRE, identifier_of(identifier), if_version=if_version)
        return await self._write(operation, idempotency_key, timeout_s)

    async def purge(
        self,
        identifier: str | Identifier,
        *,
        if_version: int | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Remove a record for good (admin keys only); only the change log remembers it."""
        operation = Operation(Action.PURGE, identifier_of(identifier), if_version=if_version)
        return await self._write(operation, idempotency_key, timeout_s)

    async def _write(
        self, operation: Operation, idempotency_key: str | None, timeout_s: float | None
    ) -> Receipt:
        with keyed(idempotency_key) as key:
            return await self._transport.write(
                operation, key=key, timeout_s=timeout_s or self._timeout_s
            )
