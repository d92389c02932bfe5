"""The lists: handles under a prefix, prefixes below one, prefixes homed here. Long ones come in
parts, each one message, as they are read from the registry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

from biaojie.account import Prefix, PrefixStatus
from biaojie.errors import MethodNotAllowed, PrefixNotHere
from biaojie.identifier import Key, fold_prefix
from biaojie.record import Reference, Status
from biaojie.wire.handle import AdminRight, Body, HandleRequest, ListResponse, OpCode
from registry.admission import Caller, Right, allows, authorize
from registry.handle_rights import PREFIXES, admins, groups_of, held, prefix_identifier
from registry.store import Found, ReadStore

from ..service import Service
from ..steps.local import LocalStep
from .asked import Answered, Asked, prefix_of

PART_MAX: Final = 200
"""Handles in one message: 200 of 255 characters fit, whatever they are made of."""
PARTS_READ_MAX: Final = 50
"""Pages without anything to show (tombstones) that are read for one part."""
LISTS: Final = frozenset(
    {OpCode.LIST_HANDLES, OpCode.LIST_DERIVED_PREFIXES, OpCode.LIST_HOMED_PREFIXES}
)


class Listing:
    def __init__(
        self,
        service: Service,
        local: LocalStep,
        store: ReadStore,
        *,
        case_sensitive: bool = False,
    ) -> None:
        self._service = service
        self._local = local
        self._store = store
        self._case_sensitive = case_sensitive

    async def answer(self, asked: Asked) -> Answered:
        """Raises Unauthenticated, Forbidden, PrefixNotHere; MethodNotAllowed for more than one
        part over UDP, where parts are lost."""
        body = asked.request.body
        assert isinstance(body, HandleRequest)
        if asked.request.opcode == OpCode.LIST_HANDLES:
            parts = self._handles(asked.caller, prefix_of(body.handle))
        elif asked.request.opcode == OpCode.LIST_DERIVED_PREFIXES:
            parts = self._prefixes(asked.caller, fold_prefix(prefix_of(body.handle)))
        else:
            parts = self._prefixes(asked.caller, None)
        first = await anext(parts)
        following = await anext(parts, None)
        if following is None:
            return Answered(ListResponse(tuple(first)))
        if asked.peer.transport == "udp":
            raise MethodNotAllowed("Ask for this list over TCP.", "请通过 TCP 获取此列表。")
        return Answered(ListResponse(tuple(first)), more=_rest(following, parts))

    async def _handles(self, caller: Caller, prefix: str) -> AsyncIterator[Sequence[str]]:
        """At least one part, empty or not; none after it is empty."""
        after: bytes | None = None
        more = True
        begun = False
        while more:
            part: list[str] = []
            for _ in range(PARTS_READ_MAX):
                records, more = await self._service.list_records(
                    caller, prefix, after, PART_MAX - len(part)
                )
                part += [str(r.identifier) for r in records if r.status is not Status.RETIRED]
                if records:
                    after = self._service.cursor(records[-1])
                if not more or len(part) >= PART_MAX:
                    break
            if part or not begun:
                yield part
            begun = True

    async def _prefixes(self, caller: Caller, above: str | None) -> AsyncIterator[Sequence[str]]:
        """Those below `above`, a folded prefix; or all that are homed here and the caller may
        list."""
        if above is not None:
            homed = (await self._local.fetch(Key(above, b""))).prefix
            tenant = homed.tenant if homed else caller.tenant
            await self._authorize(caller, above, tenant)
            if homed is None:
                raise PrefixNotHere()
        elif caller.handle is None:
            authorize(caller, Right.READ_PRIVATE, caller.tenant)
        after = None if above is None else f"{above}."
        begun = False
        while True:
            page = await self._store.list_prefixes(after, PART_MAX)
            part = [p for p in page if above is None or fold_prefix(p.name).startswith(f"{above}.")]
            last = len(page) < PART_MAX or len(part) < len(page)
            after = fold_prefix(page[-1].name) if page else None
            if above is None:
                part = [
                    p
                    for p in part
                    if p.status is not PrefixStatus.UNHOMED
                    and not p.status.elsewhere
                    and await self._may_list(caller, p)
                ]
            if part or not begun:
                yield [f"{PREFIXES}/{p.name}" for p in part]
            begun = True
            if last:
                return

    async def _may_list(self, caller: Caller, prefix: Prefix) -> bool:
        holds = await self._holds(caller, fold_prefix(prefix.name))
        needs = AdminRight.LIST_HANDLES
        return allows(caller, Right.READ_PRIVATE, prefix.tenant, needs=needs, holds=holds)

    async def _authorize(self, caller: Caller, prefix: str, tenant: str) -> None:
        holds = await self._holds(caller, prefix)
        needs = AdminRight.LIST_HANDLES
        authorize(caller, Right.READ_PRIVATE, tenant, needs=needs, holds=holds)

    async def _holds(self, caller: Caller, prefix: str) -> int:
        if caller.handle is None:
            return 0
        key = prefix_identifier(prefix).key(case_sensitive=self._case_sensitive)
        record = (await self._local.fetch(key)).record
        named: list[Reference] = [reference for _, reference in admins(record)]
        groups = await groups_of(caller.handle, named, self._fetch_all)
        return held(caller.handle, groups, record)

    async def _fetch_all(self, keys: Sequence[Key]) -> list[Found]:
        return [await self._local.fetch(key) for key in keys]


async def _rest(
    following: Sequence[str], parts: AsyncIterator[Sequence[str]]
) -> AsyncIterator[Body]:
    yield ListResponse(tuple(following))
    async for part in parts:
        yield ListResponse(tuple(part))
