"""The Handle transport: the client's methods as operations of the Handle protocol.

The protocol knows values and who may change them, and nothing of versions, statuses, batches,
keys or a change log. What it lacks raises MethodNotAllowed before anything is sent; where a
Record or Receipt has a field that it lacks, version and sequence are 0 and the status is active
(retired after a delete).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeVar

from .account import ApiKey, Prefix, PrefixStatus, Role
from .calls import IssuedKey, Mint, Mode, Operation, Page, Resolved
from .change import Action, BatchResult, Entry, Receipt, RowResult
from .errors import (
    BiaojieError,
    IdentifierNotFound,
    InvalidIdentifier,
    InvalidRequest,
    PrefixNotHere,
    TooLarge,
    ValueNotFound,
)
from .handle_exchange import HandleExchange
from .handle_options import HandleOptions
from .handle_results import check_state, folded, lacking, receipt, record, unfit
from .handle_server import Ask
from .identifier import Identifier, check_prefix
from .limits import INDEX_MAX
from .record import Record
from .transport import Options
from .wire.handle import (
    FLAGS_DEFAULT,
    Body,
    CreateResponse,
    HandleRequest,
    ListResponse,
    Message,
    OpCode,
    OpFlag,
    RemoveRequest,
    ResolveRequest,
    ValuesRequest,
)

T = TypeVar("T")
log = logging.getLogger("biaojie.client")
TOGETHER_MAX: Final = 64
"""Operations of one batch that are under way at a time."""
WRITES_TOGETHER_MAX: Final = 8
LISTS_MAX: Final = 4
"""Lists of names kept between the pages of as many readers."""
NAMES_MAX: Final = 1_000_000


class HandleTransport:
    """A Transport to `hdl://…`."""

    def __init__(self, url: str, options: Options) -> None:
        if options.key is not None:
            raise InvalidRequest(
                "A key is for http(s):// and biaojie://; over hdl:// give identity, and secret or "
                "private_key.",
                "key 仅用于 http(s):// 与 biaojie://；hdl:// 请提供 identity，"
                "以及 secret 或 private_key。",
            )
        self._octets_max = options.reply_octets_max
        handle = options.handle or HandleOptions()
        self._exchange = HandleExchange(url, options, handle, options.login)
        self._read_flags = int(FLAGS_DEFAULT)
        if options.login is not None:  # values for those who log in are wanted as well
            self._read_flags &= ~OpFlag.PUBLIC_ONLY
        self._lists: OrderedDict[str, list[Identifier]] = OrderedDict()

    @property
    def address(self) -> str:
        return self._exchange.address

    async def close(self) -> None:
        self._lists.clear()
        await self._exchange.close()

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
        return await self._resolve(identifier, index, types, authoritative, timeout_s)

    async def _resolve(
        self,
        identifier: Identifier,
        index: Sequence[int] = (),
        types: Sequence[str] = (),
        authoritative: bool = False,
        timeout_s: float = 0.0,
        *,
        bulk: bool = False,
    ) -> Resolved:
        name = str(identifier)
        if not all(0 <= number <= INDEX_MAX for number in index):
            raise InvalidRequest(f"An index is 0 to {INDEX_MAX}.", f"索引应为 0 至 {INDEX_MAX}。")
        flags = self._read_flags | (OpFlag.AUTHORITATIVE if authoritative else 0)
        body = ResolveRequest(name, tuple(index), tuple(types))
        try:
            message = await self._exchange.send(
                Ask(OpCode.RESOLUTION, body, name, flags, bulk=bulk), timeout_s
            )
        except ValueNotFound:  # it is there, and has none of what was asked for
            return Resolved(Record(identifier, (), version=0))
        return Resolved(record(identifier, message))

    async def resolve_batch(
        self, identifiers: Sequence[Identifier], *, timeout_s: float
    ) -> list[Resolved | BiaojieError]:
        bulk = len(identifiers) > 1
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s

        async def one(identifier: Identifier) -> Resolved | BiaojieError:
            try:
                left_s = max(deadline - loop.time(), 0.0)
                return await self._resolve(identifier, timeout_s=left_s, bulk=bulk)
            except BiaojieError as error:
                if error.retryable:  # says nothing of the name: everybody shall hear it
                    raise
                error.fields = {**error.fields, "identifier": str(identifier)}
                return error

        return await _together([one(each) for each in identifiers], TOGETHER_MAX)

    async def list_records(
        self, prefix: str, *, after: str | None, limit: int, timeout_s: float
    ) -> Page[Record]:
        """The server gives all names at once; they are kept here while the pages are read."""
        if after is None:
            token, start = secrets.token_hex(8), 0
            names = await self._list(prefix, timeout_s)
            self._lists[token] = names
            while len(self._lists) > LISTS_MAX:
                self._lists.popitem(last=False)
        else:
            token, _, place = after.partition(":")
            start = int(place) if place.isascii() and place.isdigit() else 0
            found = self._lists.get(token)
            if found is None:
                raise InvalidRequest(
                    "This list is kept no more: begin anew.", "该列表已不再保留：请重新开始。"
                )
            names = found
            self._lists.move_to_end(token)
        page = names[start : start + limit]
        end = start + len(page)
        if end >= len(names):
            self._lists.pop(token, None)
        records = []
        for answer in await self.resolve_batch(page, timeout_s=timeout_s):
            if isinstance(answer, Resolved):
                records.append(answer.record)
            elif not isinstance(answer, IdentifierNotFound):  # deleted since it was listed
                raise answer
        return Page(tuple(records), f"{token}:{end}" if end < len(names) else None)

    async def _list(self, prefix: str, timeout_s: float) -> list[Identifier]:
        """The names under a prefix in order of suffix."""
        found: set[Identifier] = set()
        for name in await self._names(OpCode.LIST_HANDLES, f"0.NA/{prefix}", timeout_s):
            try:
                found.add(Identifier(*name.partition("/")[::2]))
            except InvalidIdentifier:
                log.warning("%s lists %a, which is no identifier", self.address, name[:80])
        return sorted(found, key=lambda each: (each.key(), each.suffix))

    async def _names(self, opcode: OpCode, handle: str, timeout_s: float) -> list[str]:
        names: list[str] = []
        octets = 0

        def take(message: Message) -> None:
            nonlocal octets
            if not isinstance(message.body, ListResponse):
                raise unfit("a list was asked for", "应为列表")
            names.extend(message.body.handles)
            octets += len(message.received)
            if len(names) > NAMES_MAX or octets > self._octets_max:
                raise TooLarge(
                    f"The list is longer than {NAMES_MAX} names or {self._octets_max} octets.",
                    f"列表超过 {NAMES_MAX} 个名称或 {self._octets_max} 字节。",
                )

        ask = Ask(opcode, HandleRequest(handle), handle, self._read_flags, take=take)
        take(await self._exchange.send(ask, timeout_s))
        return names

    # Writes -----------------------------------------------------------------------------

    async def write(self, operation: Operation, *, key: str, timeout_s: float) -> Receipt:
        """MODIFY is up to three operations, one after another: change, add, remove. If one
        fails, those before it have happened (field `done` of the error)."""
        check_state(operation.status, operation.template, operation.if_version)
        name = str(operation.identifier)
        match operation.action:
            case Action.CREATE | Action.PUT:
                flags = OpFlag.OVERWRITE if operation.action is Action.PUT else 0
                body = ValuesRequest(name, operation.values)
                await self._change(OpCode.CREATE_HANDLE, body, name, timeout_s, flags)
            case Action.MODIFY:
                await self._modify(operation, timeout_s)
            case Action.RETIRE | Action.PURGE:
                await self._change(OpCode.DELETE_HANDLE, HandleRequest(name), name, timeout_s)
            case _:
                raise lacking(f"the action {operation.action}", f"操作 {operation.action}")
        return receipt(name, operation.action)

    async def _modify(self, operation: Operation, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        name = str(operation.identifier)
        steps: list[tuple[str, OpCode, Body]] = []
        if operation.values:
            found = await self._resolve(
                operation.identifier, authoritative=True, timeout_s=timeout_s
            )
            have = {value.index for value in found.record.values}
            old = tuple(value for value in operation.values if value.index in have)
            new = tuple(value for value in operation.values if value.index not in have)
            if old:
                steps.append(("modify", OpCode.MODIFY_VALUE, ValuesRequest(name, old)))
            if new:
                steps.append(("add", OpCode.ADD_VALUE, ValuesRequest(name, new)))
        if operation.remove:
            gone = RemoveRequest(name, operation.remove)
            steps.append(("remove", OpCode.REMOVE_VALUE, gone))
        if not steps:
            raise InvalidRequest("There is nothing to change.", "没有要修改的内容。")
        done: list[str] = []
        for step, opcode, body in steps:
            try:
                left_s = max(deadline - loop.time(), 0.0)
                await self._change(opcode, body, name, left_s)
            except BiaojieError as error:
                error.fields = {**error.fields, "step": step, "done": done}
                raise
            done.append(step)

    async def mint(self, mint: Mint, *, key: str, timeout_s: float) -> Receipt:
        check_state(mint.status, mint.template, None)
        start = f"{mint.prefix}/{mint.suffix_start}"
        message = await self._change(
            OpCode.CREATE_HANDLE, ValuesRequest(start, mint.values), start, timeout_s,
            OpFlag.MINT_SUFFIX,
        )  # fmt: skip
        made = message.body.handle if isinstance(message.body, CreateResponse) else None
        if made is None or not folded(made).startswith(folded(start)):
            raise unfit("it does not say what was minted", "未给出新生成的标识")
        return receipt(made, Action.CREATE)

    async def _change(
        self, opcode: OpCode, body: Body, handle: str, timeout_s: float, flags: int = 0
    ) -> Message:
        flags |= FLAGS_DEFAULT & ~OpFlag.PUBLIC_ONLY
        return await self._exchange.send(Ask(opcode, body, handle, flags, write=True), timeout_s)

    async def write_batch(
        self,
        operations: Sequence[Operation],
        *,
        mode: Mode,
        dry_run: bool,
        key: str,
        timeout_s: float,
    ) -> BatchResult:
        """Each row is a write of its own; rows that are in doubt say so in their results."""
        if mode != "valid-rows":
            raise lacking("a batch that is written whole or not at all", "整批原子写入")
        if dry_run:
            raise lacking("dry runs", "试运行")

        async def one(row: int, operation: Operation) -> RowResult:
            name = str(operation.identifier)
            try:
                receipt = await self.write(operation, key=key, timeout_s=timeout_s)
            except BiaojieError as error:
                return RowResult(row, name, None, error.code, error.detail.en, error.detail.zh)
            return RowResult(row, name, receipt)

        rows = await _together(
            [one(row, operation) for row, operation in enumerate(operations, 1)],
            WRITES_TOGETHER_MAX,
        )
        return BatchResult(mode, False, 0, tuple(rows))

    # Prefixes ---------------------------------------------------------------------------

    async def list_prefixes(
        self, *, after: str | None, limit: int, timeout_s: float
    ) -> Page[Prefix]:
        names = await self._names(OpCode.LIST_HOMED_PREFIXES, "0.NA/", timeout_s)
        found = []
        for name in sorted(set(names)):
            prefix = name[5:] if name[:5].upper() == "0.NA/" else name
            try:
                found.append(Prefix(check_prefix(prefix), "", version=0))
            except InvalidIdentifier:
                log.warning("%s homes %a, which is no prefix", self.address, name[:80])
        return Page(tuple(found), None)

    async def find_prefix(self, name: str, *, timeout_s: float) -> Prefix:
        page = await self.list_prefixes(after=None, limit=0, timeout_s=timeout_s)
        found = next((each for each in page.items if folded(each.name) == folded(name)), None)
        if found is None:
            raise PrefixNotHere()
        return found

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
        if tenant or searchable or admin or status is not PrefixStatus.ACTIVE:
            raise lacking(
                "tenants, searchable types, administrators by name and delegation;"
                " give '' as the tenant",
                "租户、可检索类型、指定管理员与委派",
            )
        return await self._home(OpCode.HOME_PREFIX, name, PrefixStatus.ACTIVE, timeout_s)

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
        if tenant is None and searchable is None:
            if status is PrefixStatus.UNHOMED:
                return await self._home(OpCode.UNHOME_PREFIX, name, status, timeout_s)
            if status is PrefixStatus.ACTIVE:
                return await self._home(OpCode.HOME_PREFIX, name, status, timeout_s)
        raise lacking(
            "prefixes other than homed (active) and unhomed", "active 与 unhomed 以外的前缀状态"
        )

    async def _home(
        self, opcode: OpCode, name: str, status: PrefixStatus, timeout_s: float
    ) -> Prefix:
        handle = f"0.NA/{name}"
        await self._change(opcode, HandleRequest(handle), handle, timeout_s)
        return Prefix(name, "", status, version=0)

    # What the protocol lacks ------------------------------------------------------------

    async def search(
        self,
        values: Sequence[tuple[str, str]],
        *,
        prefix: str | None,
        after: str | None,
        limit: int,
        timeout_s: float,
    ) -> Page[Identifier]:
        raise lacking("a search by value", "按值检索")

    async def list_changes(
        self, after: int, *, limit: int, wait_s: float, timeout_s: float
    ) -> tuple[tuple[Entry, ...], int]:
        raise lacking("a change log", "变更日志")

    async def list_keys(self, *, after: str | None, limit: int, timeout_s: float) -> Page[ApiKey]:
        raise lacking("API keys", "API 密钥")

    async def issue_key(
        self, role: Role, tenant: str, label: str, *, timeout_s: float
    ) -> IssuedKey:
        raise lacking("API keys", "API 密钥")

    async def revoke_key(self, id_: str, *, key: str, timeout_s: float) -> ApiKey:
        raise lacking("API keys", "API 密钥")


async def _together(work: Sequence[Coroutine[Any, Any, T]], most: int) -> list[T]:
    """The results in order, `most` at a time; the first fault ends all."""
    room = asyncio.Semaphore(most)

    async def one(coroutine: Coroutine[Any, Any, T]) -> T:
        async with room:
            return await coroutine

    tasks = [asyncio.create_task(one(each)) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in work:
            each.close()
