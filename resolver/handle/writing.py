"""The operations that change something: create, delete, add, remove, modify, home, unhome.

Each becomes one operation of the registrar, so rights, the change log and caches are the same
as over HTTP.
"""

from __future__ import annotations

from typing import Final, Literal

from ulid import ULID

from biaojie.account import PrefixStatus
from biaojie.errors import (
    IdentifierRetired,
    IdentifierTaken,
    InvalidRecord,
    InvalidRequest,
    PrefixTaken,
)
from biaojie.identifier import Identifier, fold_prefix
from biaojie.record import Reference
from biaojie.wire.handle import (
    CreateResponse,
    Done,
    HandleRequest,
    OpCode,
    OpFlag,
    RemoveRequest,
    ValuesRequest,
)
from registry.handle_rights import ancestors
from registry.operations import (
    ChangePrefix,
    Create,
    HomePrefix,
    Modify,
    Operation,
    Purge,
    Put,
    Retire,
)
from registry.store import ReadStore

from ..service import Service
from .asked import Answered, Asked, identifier_of, prefix_of

WRITES: Final = frozenset(
    {
        OpCode.CREATE_HANDLE,
        OpCode.DELETE_HANDLE,
        OpCode.ADD_VALUE,
        OpCode.REMOVE_VALUE,
        OpCode.MODIFY_VALUE,
        OpCode.HOME_PREFIX,
        OpCode.UNHOME_PREFIX,
    }
)
TENANT_UNKNOWN: Final = "handle"
"""Owns a prefix that was homed over this protocol below none that has an owner."""


class Writing:
    """`delete` says what DELETE_HANDLE does: remove the record, or leave a tombstone."""

    def __init__(
        self, service: Service, store: ReadStore, delete: Literal["purge", "retire"]
    ) -> None:
        self._service = service
        self._store = store
        self._delete = delete

    async def write(self, asked: Asked) -> Answered:
        """Raises what the registrar does."""
        request, body = asked.request, asked.request.body
        match request.opcode, body:
            case OpCode.CREATE_HANDLE, ValuesRequest():
                return await self._create(asked, body)
            case OpCode.DELETE_HANDLE, HandleRequest(handle):
                name = identifier_of(handle)
                remove = Purge(name) if self._delete == "purge" else Retire(name)
                await self._submit(asked, remove)
            case OpCode.ADD_VALUE, ValuesRequest(handle, values):
                _need_some(values)
                only: Literal["any", "new"] = "any" if request.has(OpFlag.OVERWRITE) else "new"
                add = Modify(identifier_of(handle), values, only=only)
                await self._submit(asked, add)
            case OpCode.MODIFY_VALUE, ValuesRequest(handle, values):
                _need_some(values)
                change = Modify(identifier_of(handle), values, only="known")
                await self._submit(asked, change)
            case OpCode.REMOVE_VALUE, RemoveRequest(handle, indexes):
                _need_some(indexes)
                fewer = Modify(identifier_of(handle), remove=tuple(dict.fromkeys(indexes)))
                await self._submit(asked, fewer)
            case OpCode.HOME_PREFIX, HandleRequest(handle):
                await self._home(asked, prefix_of(handle))
            case OpCode.UNHOME_PREFIX, HandleRequest(handle):
                unhome = ChangePrefix(prefix_of(handle), status=PrefixStatus.UNHOMED)
                await self._submit(asked, unhome)
            case _:
                raise InvalidRequest()
        return Answered(Done())

    async def _submit(self, asked: Asked, operation: Operation) -> str:
        outcome = await self._service.write(asked.caller, [operation])
        return outcome.single().action.value

    async def _create(self, asked: Asked, body: ValuesRequest) -> Answered:
        if asked.request.has(OpFlag.MINT_SUFFIX):
            identifier = _minted(body.handle)
        else:
            identifier = identifier_of(body.handle)
        overwrite = asked.request.has(OpFlag.OVERWRITE)
        operation = (Put if overwrite else Create)(identifier, body.values)
        try:
            action = await self._submit(asked, operation)
        except IdentifierRetired as error:
            # A tombstone is never given out again: to who wants the name it is taken.
            raise IdentifierTaken(*error.detail) from None
        handle = str(identifier) if asked.request.has(OpFlag.MINT_SUFFIX) else body.handle
        return Answered(CreateResponse(handle), flags=0 if action != "put" else OpFlag.OVERWRITE)

    async def _home(self, asked: Asked, name: str) -> None:
        identity = asked.caller.handle
        admin = Reference(str(identity.identifier), identity.index) if identity else None
        operation = HomePrefix(name, await self._tenant(name), admin=admin)
        try:
            await self._submit(asked, operation)
        except PrefixTaken:
            # Who may home it hears what it wants to hear; clients repeat this at will.
            known = await self._store.find_prefixes([fold_prefix(name)])
            if known[fold_prefix(name)].status is not PrefixStatus.ACTIVE:
                raise

    async def _tenant(self, name: str) -> str:
        """Of the nearest prefix above, to whose administrators homing is open."""
        folded = fold_prefix(name)
        names = [folded, *ancestors(folded)]
        known = await self._store.find_prefixes(names)
        return next((known[n].tenant for n in names if n in known), TENANT_UNKNOWN)


def _need_some(listed: tuple[object, ...]) -> None:
    if not listed:
        raise InvalidRecord("The list of values is empty.", "值列表为空。", path="values")


def _minted(start: str) -> Identifier:
    """`start` is a prefix and what the suffix shall begin with; 26 characters are added, in the
    order of time."""
    prefix, _, before = start.partition("/")
    return Identifier(prefix, before + str(ULID()))
