"""The native transport: one request of the native protocol per method, and streams.

How a request gets there and its answer back belongs to `native_exchange`.
"""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TypeVar

from .account import ApiKey, Prefix, PrefixStatus, Role
from .calls import IssuedKey, Mint, Mode, Operation, Page, Resolved
from .change import BatchResult, Entry, Receipt
from .errors import BiaojieError, InvalidRequest, MalformedAnswer, TooLarge
from .identifier import Identifier
from .limits import BATCH_ROWS_MAX, PAGE_ROWS_MAX, RESOLVE_MANY_MAX
from .native_exchange import NativeExchange
from .native_imports import NativeImports
from .native_streams import follow, list_pages
from .record import Record
from .transport import Options
from .wire.native import Kind, Resolution, decode_resolution, decode_resolutions, encode_request
from .wire.native import answers as said
from .wire.native import requests as asked
from .wire.native.shapes import pack

T = TypeVar("T")


class NativeTransport(NativeImports):
    """A Transport to `biaojie://…` or `biaojie+unix://…`. It is Streaming and Importing as well."""

    def __init__(self, url: str, options: Options) -> None:
        self._native = NativeExchange(url, options)

    @property
    def address(self) -> str:
        return self._native.address

    async def close(self) -> None:
        await self._native.close()

    # Look-ups ---------------------------------------------------------------------------

    async def resolve(
        self,
        identifier: Identifier,
        *,
        index: Sequence[int],
        types: Sequence[str],
        authoritative: bool,
        timeout_s: float,
    ) -> Resolved:
        name = str(identifier)
        if index or types or authoritative:
            body = pack((name, tuple(index), tuple(types), authoritative))
        else:
            body = pack((name,))
        return _resolved(decode_resolution(await self._native.call(Kind.RESOLVE, body, timeout_s)))

    async def resolve_batch(
        self, identifiers: Sequence[Identifier], *, timeout_s: float
    ) -> list[Resolved | BiaojieError]:
        timing = _Timing(timeout_s)
        most = await self._limit("resolve_many_max", RESOLVE_MANY_MAX, timing)
        found: list[Resolved | BiaojieError] = []
        for start in range(0, len(identifiers), most):
            names = tuple(str(identifier) for identifier in identifiers[start : start + most])
            body = await self._ask(asked.ResolveMany(names), timing.left)
            answers = decode_resolutions(body)
            if len(answers) != len(names):
                raise _uneven(len(answers), len(names))
            for answer, name in zip(answers, names, strict=True):
                if isinstance(answer, Resolution):
                    found.append(_resolved(answer))
                else:
                    answer.fields = {**answer.fields, "identifier": name}
                    found.append(answer)
        return found

    async def list_records(
        self, prefix: str, *, after: str | None, limit: int, timeout_s: float
    ) -> Page[Record]:
        records, following = await self._records(prefix, _octets(after), limit, timeout_s)
        return Page(records, _text(following))

    async def _records(
        self, prefix: str, after: bytes | None, limit: int, timeout_s: float
    ) -> tuple[tuple[Record, ...], bytes | None]:
        timing = _Timing(timeout_s)
        rows = min(limit, await self._limit("page_rows_max", PAGE_ROWS_MAX, timing))
        kind, body = _encoded(asked.ListRecords(prefix, after, rows))
        got = await self._native.gather(kind, body, timing.left)
        records = [record for part in got.parts for record in said.decode_records(part)]
        return tuple(records), said.decode_list_end(got.end)

    async def search(
        self,
        values: Sequence[tuple[str, str]],
        *,
        prefix: str | None,
        after: str | None,
        limit: int,
        timeout_s: float,
    ) -> Page[Identifier]:
        pairs = tuple((type_, data.encode()) for type_, data in values)
        return await self._page(
            lambda cursor, rows: asked.Search(pairs, prefix, cursor, rows),
            after,
            limit,
            timeout_s,
            said.decode_findings,
        )

    async def list_changes(
        self, after: int, *, limit: int, wait_s: float, timeout_s: float
    ) -> tuple[tuple[Entry, ...], int]:
        timing = _Timing(wait_s + timeout_s)
        rows = min(limit, await self._limit("page_rows_max", PAGE_ROWS_MAX, timing))
        body = await self._ask(asked.Changes(after, rows, wait_s), timing.left)
        entries, following = said.decode_changes(body)
        if following < after:
            raise MalformedAnswer("The change log runs backwards.", "变更日志倒退。")
        return entries, following

    # Streams ----------------------------------------------------------------------------

    def stream_records(
        self, prefix: str, *, page_rows: int, timeout_s: float
    ) -> AsyncGenerator[Sequence[Record], None]:
        return list_pages(
            self._native,
            prefix,
            lambda after: self._records(prefix, after, page_rows, timeout_s),
            page_rows=page_rows,
            timeout_s=timeout_s,
        )

    def stream_changes(
        self, after: int, *, page_rows: int, wait_s: float, timeout_s: float
    ) -> AsyncGenerator[tuple[tuple[Entry, ...], int], None]:
        return follow(
            self._native,
            after,
            lambda sequence: self.list_changes(
                sequence, limit=page_rows, wait_s=wait_s, timeout_s=timeout_s
            ),
            timeout_s=timeout_s,
        )

    # Writes -----------------------------------------------------------------------------

    async def write(self, operation: Operation, *, key: str, timeout_s: float) -> Receipt:
        condition = None
        if operation.if_version is not None:
            condition = asked.Condition(version=operation.if_version)
        request = asked.Write(_operation(operation), key, condition)
        return said.decode_written(await self._ask(request, timeout_s))[0]

    async def mint(self, mint: Mint, *, key: str, timeout_s: float) -> Receipt:
        request = asked.Mint(
            mint.prefix, mint.suffix_start, mint.values, mint.status, mint.template, key
        )
        return said.decode_written(await self._ask(request, timeout_s))[0]

    async def write_batch(
        self,
        operations: Sequence[Operation],
        *,
        mode: Mode,
        dry_run: bool,
        key: str,
        timeout_s: float,
    ) -> BatchResult:
        timing = _Timing(timeout_s)
        most = await self._limit("batch_rows_max", BATCH_ROWS_MAX, timing)
        if len(operations) > most:
            raise TooLarge(
                f"The batch has {len(operations)} rows; the node takes {most}.",
                f"本批 {len(operations)} 行；节点上限为 {most} 行。",
            )
        rows = tuple(_operation(operation) for operation in operations)
        body = await self._ask(asked.WriteMany(rows, mode, dry_run, key), timing.left)
        result = said.decode_written_many(body)[0]
        if len(result.rows) != len(operations):
            raise _uneven(len(result.rows), len(operations))
        return result

    # Prefixes and keys ------------------------------------------------------------------

    async def list_prefixes(
        self, *, after: str | None, limit: int, timeout_s: float
    ) -> Page[Prefix]:
        return await self._page(asked.ListPrefixes, after, limit, timeout_s, said.decode_prefixes)

    async def find_prefix(self, name: str, *, timeout_s: float) -> Prefix:
        return said.decode_one_prefix(await self._ask(asked.FindPrefix(name), timeout_s))

    async def home_prefix(
        self,
        name: str,
        tenant: str,
        *,
        searchable: Sequence[str],
        status: PrefixStatus,
        admin: str,
        key: str,
        timeout_s: float,
    ) -> Prefix:
        request = asked.HomePrefix(name, tenant, tuple(searchable), status, admin, key)
        return said.decode_written_prefix(await self._ask(request, timeout_s))[0]

    async def change_prefix(
        self,
        name: str,
        *,
        tenant: str | None,
        status: PrefixStatus | None,
        searchable: Sequence[str] | None,
        key: str,
        timeout_s: float,
    ) -> Prefix:
        types = None if searchable is None else tuple(searchable)
        request = asked.ChangePrefix(name, tenant, status, types, key)
        return said.decode_written_prefix(await self._ask(request, timeout_s))[0]

    async def list_keys(self, *, after: str | None, limit: int, timeout_s: float) -> Page[ApiKey]:
        return await self._page(asked.ListKeys, after, limit, timeout_s, said.decode_keys)

    async def issue_key(
        self, role: Role, tenant: str, label: str, *, timeout_s: float
    ) -> IssuedKey:
        kind, body = _encoded(asked.IssueKey(role, tenant, label))
        answer = await self._native.call(kind, body, timeout_s, again=False)
        return IssuedKey(*said.decode_issued(answer))

    async def revoke_key(self, id_: str, *, key: str, timeout_s: float) -> ApiKey:
        return said.decode_revoked(await self._ask(asked.RevokeKey(id_, key), timeout_s))[0]

    # What they have in common -----------------------------------------------------------

    async def _ask(self, request: asked.Request, timeout_s: float) -> bytes:
        kind, body = _encoded(request)
        return await self._native.call(kind, body, timeout_s)

    async def _page(
        self,
        request: Callable[[bytes | None, int], asked.Request],
        after: str | None,
        limit: int,
        timeout_s: float,
        decode: Callable[[bytes], tuple[tuple[T, ...], bytes | None]],
    ) -> Page[T]:
        timing = _Timing(timeout_s)
        rows = min(limit, await self._limit("page_rows_max", PAGE_ROWS_MAX, timing))
        items, following = decode(await self._ask(request(_octets(after), rows), timing.left))
        return Page(items, _text(following))

    async def _limit(self, name: str, default: int, timing: _Timing) -> int:
        """What the node allows, or this protocol where it does not say."""
        return max(1, (await self._native.limits(timing.left)).get(name, default))


class _Timing:
    """How much of a call's time is left, where it takes several requests."""

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + timeout_s

    @property
    def left(self) -> float:
        return self._deadline - self._loop.time()


def _encoded(request: asked.Request) -> tuple[Kind, bytes]:
    try:
        return encode_request(request)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"The request cannot be written: {error}.", f"请求无法写出：{error}。"
        ) from None


def _operation(operation: Operation) -> asked.Operation:
    return asked.Operation(
        operation.action,
        str(operation.identifier),
        operation.values,
        operation.remove,
        operation.status,
        operation.template,
    )


def _resolved(found: Resolution) -> Resolved:
    return Resolved(found.record, found.source, found.age_s)


def _uneven(answers: int, asked_for: int) -> MalformedAnswer:
    return MalformedAnswer(
        f"There are {answers} answers for {asked_for} questions.",
        f"{asked_for} 个请求得到 {answers} 个答复。",
    )


def _text(cursor: bytes | None) -> str | None:
    return None if cursor is None else urlsafe_b64encode(cursor).decode()


def _octets(after: str | None) -> bytes | None:
    return None if after is None else urlsafe_b64decode(after)
