"""The operations that change something: create, delete, add, remove, modify, home, unhome.

Each becomes one operation of the registrar, so rights, the change log and caches are the same
as over HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from ulid import ULID

from biaojie.account import PrefixStatus
from biaojie.change import Action, Receipt
from biaojie.errors import (
    BiaojieError,
    IdentifierRetired,
    IdentifierTaken,
    InvalidRecord,
    InvalidRequest,
    PrefixTaken,
)
from biaojie.identifier import Identifier, fold_prefix
from biaojie.record import Reference
from biaojie.wire.handle import (
    Body,
    CreateResponse,
    Done,
    HandleRequest,
    OpCode,
    OpFlag,
    RemoveRequest,
    ValuesRequest,
)
from registry.admission import Caller
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
from registry.registrar import Outcome, Submission
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
        if request.opcode == OpCode.HOME_PREFIX and isinstance(body, HandleRequest):
            await self._home(asked, prefix_of(body.handle))
            return Answered(Done())
        operation = self._operation(request.opcode, request.flags, body)
        try:
            receipt = (await self._service.write(asked.caller, [operation])).single()
        except BiaojieError as error:
            raise _refusal(request.opcode, error) from None
        return _answered(request.opcode, request.flags, body, operation, receipt)

    def begin(
        self,
        caller: Caller,
        opcode: int,
        flags: int,
        body: Body,
        tell: Callable[[Answered | BiaojieError], None],
    ) -> Submission:
        """`write`, whose answer or error comes by a call, or is raised at once. Not for
        HOME_PREFIX."""
        operation = self._operation(opcode, flags, body)

        def told(outcome: Outcome | BiaojieError) -> None:
            result = outcome.results[0] if isinstance(outcome, Outcome) else outcome
            if isinstance(result, BiaojieError):
                tell(_refusal(opcode, result))
            else:
                tell(_answered(opcode, flags, body, operation, result))

        return self._service.hand_in(caller, [operation], told)

    def _operation(self, opcode: int, flags: int, body: Body) -> Operation:
        match opcode, body:
            case OpCode.CREATE_HANDLE, ValuesRequest(handle, values):
                identifier = (
                    _minted(handle) if flags & OpFlag.MINT_SUFFIX else identifier_of(handle)
                )
                return (Put if flags & OpFlag.OVERWRITE else Create)(identifier, values)
            case OpCode.DELETE_HANDLE, HandleRequest(handle):
                name = identifier_of(handle)
                return Purge(name) if self._delete == "purge" else Retire(name)
            case OpCode.ADD_VALUE, ValuesRequest(handle, values):
                _need_some(values)
                only: Literal["any", "new"] = "any" if flags & OpFlag.OVERWRITE else "new"
                return Modify(identifier_of(handle), values, only=only)
            case OpCode.MODIFY_VALUE, ValuesRequest(handle, values):
                _need_some(values)
                return Modify(identifier_of(handle), values, only="known")
            case OpCode.REMOVE_VALUE, RemoveRequest(handle, indexes):
                _need_some(indexes)
                return Modify(identifier_of(handle), remove=tuple(dict.fromkeys(indexes)))
            case OpCode.UNHOME_PREFIX, HandleRequest(handle):
                return ChangePrefix(prefix_of(handle), status=PrefixStatus.UNHOMED)
        raise InvalidRequest()

    async def _home(self, asked: Asked, name: str) -> None:
        identity = asked.caller.handle
        admin = Reference(str(identity.identifier), identity.index) if identity else None
        operation = HomePrefix(name, await self._tenant(name), admin=admin)
        try:
            (await self._service.write(asked.caller, [operation])).single()
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


def _answered(
    opcode: int, flags: int, body: Body, operation: Operation, receipt: Receipt
) -> Answered:
    if opcode != OpCode.CREATE_HANDLE:
        return Answered(Done())
    assert isinstance(operation, Create | Put)
    assert isinstance(body, ValuesRequest)
    handle = str(operation.identifier) if flags & OpFlag.MINT_SUFFIX else body.handle
    overwritten = receipt.action is Action.PUT
    return Answered(CreateResponse(handle), flags=OpFlag.OVERWRITE if overwritten else 0)


def _refusal(opcode: int, error: BiaojieError) -> BiaojieError:
    """A tombstone is never given out again: to who wants the name it is taken."""
    if isinstance(error, IdentifierRetired) and opcode == OpCode.CREATE_HANDLE:
        return IdentifierTaken(*error.detail)
    return error


def _need_some(listed: tuple[object, ...]) -> None:
    if not listed:
        raise InvalidRecord("The list of values is empty.", "值列表为空。", path="values")


def _minted(start: str) -> Identifier:
    """`start` is a prefix and what the suffix shall begin with; 26 characters are added, in the
    order of time."""
    prefix, _, before = start.partition("/")
    return Identifier(prefix, before + str(ULID()))
