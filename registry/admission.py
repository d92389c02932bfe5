"""May this caller do this, and what comes of it? Pure: state in, new state or an error out.

`authorize` is the one policy function; whatever it does not allow is refused. The `decide_*`
functions turn one operation and the present state into the next state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum, auto
from typing import NamedTuple

from biaojie.account import Prefix, PrefixStatus, Role
from biaojie.change import Action
from biaojie.errors import (
    Elsewhere,
    Forbidden,
    IdentifierNotFound,
    IdentifierRetired,
    IdentifierTaken,
    InvalidRecord,
    PrefixNotHere,
    PrefixSuspended,
    RecordFrozen,
    Unauthenticated,
    ValueNotFound,
    ValueReadOnly,
    ValueTaken,
    VersionMismatch,
)
from biaojie.identifier import Identifier
from biaojie.record import (
    SECRET_TYPES,
    Permissions,
    Record,
    Status,
    Value,
    check_values,
    fold_type,
    make_record,
    make_value,
)

from .blocks import Bulk
from .handle_rights import HandleIdentity, needed
from .operations import (
    Condition,
    Create,
    Modify,
    Purge,
    Put,
    RecordOperation,
    Retire,
)
from .store import Found


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the holder of an API key (`role`), of a key value at a handle (`handle`), or
    the public, which has neither. `key_id` is what the change log calls them."""

    key_id: str = ""
    tenant: str = ""
    role: Role | None = None
    handle: HandleIdentity | None = None

    @property
    def is_public(self) -> bool:
        return self.role is None and self.handle is None


PUBLIC = Caller()
SYSTEM = Caller("system", "", Role.ADMIN)
"""The node itself: first start, sample data, commands on the operator's own machine."""


class Right(IntEnum):
    READ_PRIVATE = auto()  # private values, drafts, listing a prefix
    WRITE = auto()  # register, modify, retire
    PURGE = auto()
    MANAGE = auto()  # prefixes and keys
    READ_CHANGES = auto()


_RIGHTS: Mapping[Role, frozenset[Right]] = {
    Role.ADMIN: frozenset(Right),
    Role.REGISTRAR: frozenset({Right.READ_PRIVATE, Right.WRITE, Right.READ_CHANGES}),
    Role.READER: frozenset({Right.READ_PRIVATE, Right.READ_CHANGES}),
}


def allows(
    caller: Caller, right: Right, tenant: str | None, *, needs: int = 0, holds: int = 0
) -> bool:
    """The policy. `tenant` owns what is asked for; None when it belongs to the node.

    Handle identities have no role: of them the AdminRight bits `needs` are asked, all of which
    they must hold by HS_ADMIN values (`holds`). What names no bits is not for them.
    """
    if caller.handle is not None:
        return needs > 0 and needs & ~holds == 0
    if caller.role is None or right not in _RIGHTS[caller.role]:
        return False
    return caller.role is Role.ADMIN or (tenant is not None and tenant == caller.tenant)


def authorize(
    caller: Caller, right: Right, tenant: str | None, *, needs: int = 0, holds: int = 0
) -> None:
    """Raise Unauthenticated or Forbidden unless the policy allows it."""
    if not allows(caller, right, tenant, needs=needs, holds=holds):
        raise Unauthenticated() if caller.is_public else Forbidden()


class Decision(NamedTuple):
    """What an operation does: the record to write, or None to remove it."""

    action: Action
    record: Record | None


def decide_record(
    operation: RecordOperation,
    caller: Caller,
    found: Found,
    now: int,
    *,
    strict_slash: bool,
    holds: int = 0,
    sequence: int = 0,
) -> Decision:
    """The outcome of an operation on a record, given what is there now.

    `holds` are the AdminRight bits of a Handle identity on this record. A new record carries
    `sequence` already; one that was there still has its own.
    `strict_slash` refuses new identifiers with a slash in the suffix, as some national nodes do.
    """
    prefix, current = found
    if prefix is None:
        # The public learns nothing more than that it needs a key.
        if caller.handle is None:
            authorize(caller, Right.WRITE, caller.tenant)
        raise _not_here(operation.identifier)
    right = Right.PURGE if isinstance(operation, Purge) else Right.WRITE
    authorize(caller, right, prefix.tenant, needs=needed(operation, current), holds=holds)
    if prefix.status is not PrefixStatus.ACTIVE:
        _authorize_inactive(prefix, caller, operation.identifier)
    retired = current is not None and current.status is Status.RETIRED
    if retired and not isinstance(operation, Purge):
        # Before any condition: a tombstone matches nothing and yet is not absent.
        name = operation.identifier
        raise IdentifierRetired(f"{name} has been retired.", f"{name} 已注销。")
    match operation:
        case Create():
            return _create(operation, current, now, strict_slash, sequence)
        case Put():
            return _put(operation, current, now, strict_slash, sequence)
        case Modify():
            return _modify(operation, current, now)
        case Retire():
            return _retire(operation, current, now)
        case Purge():
            _check(operation.condition, current)
            if current is None:
                raise _missing(operation.identifier)
            return Decision(Action.PURGE, None)


def decide_bulk(caller: Caller, bulk: Bulk, prefix: Prefix | None, *, strict_slash: bool) -> Prefix:
    """Whether the caller may register a chunk under its prefix; which names are free is another
    question. Handle identities may not: their rights are asked for one record at a time."""
    first = Identifier(bulk.prefix, bulk.sealed[0].first.decode())
    if prefix is None:
        authorize(caller, Right.WRITE, caller.tenant)
        raise _not_here(first)
    authorize(caller, Right.WRITE, prefix.tenant)
    if prefix.status is not PrefixStatus.ACTIVE:
        _authorize_inactive(prefix, caller, first)
    if strict_slash and bulk.slashes:
        raise _slash()
    return prefix


def _slash() -> InvalidRecord:
    return InvalidRecord(
        "identifier: this node registers no suffix with a slash in it.",
        "identifier：本节点不注册后缀中含斜杠的标识。",
        path="identifier",
    )


def _authorize_inactive(prefix: Prefix, caller: Caller, identifier: Identifier) -> None:
    if prefix.status is PrefixStatus.UNHOMED:
        raise _not_here(identifier)
    if prefix.status.elsewhere:
        raise elsewhere(prefix)
    if prefix.status is PrefixStatus.SUSPENDED and caller.role is not Role.ADMIN:
        raise PrefixSuspended()


def _not_here(identifier: Identifier) -> PrefixNotHere:
    return PrefixNotHere(
        f"The prefix {identifier.prefix} is not homed at this node.",
        f"本节点不托管前缀 {identifier.prefix}。",
    )


def elsewhere(prefix: Prefix) -> Elsewhere:
    """The error that says where the records of `prefix` are."""
    return Elsewhere(
        f"The records of {prefix.name} are at another node.",
        f"前缀 {prefix.name} 的记录由其他节点负责。",
        referral=f"0.NA/{prefix.name}",
        kind=prefix.status.value,
    )


def _missing(identifier: Identifier) -> IdentifierNotFound:
    return IdentifierNotFound(f"{identifier} is not registered.", f"{identifier} 未注册。")


def _check(condition: Condition | None, current: Record | None) -> None:
    if condition is None:
        return
    if condition.absent:
        if current is not None:
            raise VersionMismatch(
                f"{current.identifier} exists already.", f"{current.identifier} 已存在。"
            )
        return
    if current is None:
        raise VersionMismatch("There is no such record to match.", "没有可匹配的记录。")
    if (condition.version is not None and condition.version != current.version) or (
        condition.sequence is not None and condition.sequence != current.sequence
    ):
        wanted = ".".join(str(n) for n in (condition.version, condition.sequence) if n is not None)
        at = f"{current.version}.{current.sequence}"
        raise VersionMismatch(
            f"{current.identifier} is at version {at}, not {wanted}.",
            f"{current.identifier} 当前版本为 {at}，不是 {wanted}。",
            version=current.version,
        )


def _stamped(values: tuple[Value, ...], now: int) -> tuple[Value, ...]:
    return tuple(
        [
            make_value(
                v.index, v.type, v.data, v.ttl, v.ttl_absolute, now, v.permissions, v.references
            )
            for v in values
        ]
    )


def _checked_status(status: Status | None, otherwise: Status) -> Status:
    if status is Status.RETIRED:
        raise InvalidRecord(
            "status: use DELETE to retire an identifier.",
            "status：注销标识请使用 DELETE。",
            path="status",
        )
    return status or otherwise


def _checked_template(template: str | None, otherwise: str | None) -> str | None:
    return otherwise if template is None else str(Identifier.parse(template))


def _new(operation: Create | Put, now: int, strict_slash: bool, sequence: int) -> Decision:
    if strict_slash and "/" in operation.identifier.suffix:
        raise _slash()
    record = make_record(
        operation.identifier,
        _stamped(check_values(operation.values), now),
        _checked_status(operation.status, Status.ACTIVE),
        _checked_template(operation.template, None),
        1,
        now,
        now,
        sequence,
    )
    return Decision(Action.CREATE, record)


def _create(
    operation: Create, current: Record | None, now: int, strict_slash: bool, sequence: int
) -> Decision:
    if current is not None:
        raise IdentifierTaken(
            f"{current.identifier} is already registered.", f"{current.identifier} 已被注册。"
        )
    return _new(operation, now, strict_slash, sequence)


def _put(
    operation: Put, current: Record | None, now: int, strict_slash: bool, sequence: int
) -> Decision:
    _check(operation.condition, current)
    if current is None:
        return _new(operation, now, strict_slash, sequence)
    _changeable(current, operation.status)
    values = _stamped(check_values(operation.values), now)
    return Decision(
        Action.PUT,
        replace(
            current,
            values=_read_only_kept(current, values),
            status=_checked_status(operation.status, current.status),
            template=_checked_template(operation.template, current.template),
            version=current.version + 1,
            modified=now,
        ),
    )


def _changeable(current: Record, status: Status | None) -> None:
    if current.status is Status.FROZEN and status in (None, Status.FROZEN):
        raise RecordFrozen(f"{current.identifier} is frozen.", f"{current.identifier} 已冻结。")


def _read_only_kept(current: Record, values: tuple[Value, ...]) -> tuple[Value, ...]:
    """`values` with the read-only ones as they were, time included; raises ValueReadOnly."""
    after = {value.index: value for value in values}
    for value in current.values:
        if value.permissions & Permissions.ADMIN_WRITE:
            continue
        kept = after.get(value.index)
        if kept is None or replace(kept, timestamp=value.timestamp) != value:
            raise ValueReadOnly(
                f"Value {value.index} of {current.identifier} may not be changed.",
                f"{current.identifier} 的值 {value.index} 不可修改。",
                index=value.index,
            )
        after[value.index] = value
    return tuple(after.values())


def _is_secret(value: Value) -> bool:
    return fold_type(value.type) in SECRET_TYPES


def _no_value(current: Record, index: int) -> ValueNotFound:
    return ValueNotFound(
        f"{current.identifier} has no value {index}.",
        f"{current.identifier} 没有索引为 {index} 的值。",
        index=index,
    )


def _modify(operation: Modify, current: Record | None, now: int) -> Decision:
    _check(operation.condition, current)
    if current is None:
        raise _missing(operation.identifier)
    _changeable(current, operation.status)
    check_values(operation.set, "set")
    values = {value.index: value for value in current.values}
    for index in operation.remove:
        if index not in values:
            raise _no_value(current, index)
        del values[index]
    for value in _stamped(operation.set, now):
        if operation.only == "new" and value.index in values:
            raise ValueTaken(
                f"{current.identifier} already has a value {value.index}.",
                f"{current.identifier} 已有索引为 {value.index} 的值。",
                index=value.index,
            )
        old = values.get(value.index)
        if old is not None and _is_secret(old) and not _is_secret(value):
            # Who adds a value cannot see secrets, and must not write over one unawares.
            raise ValueTaken(
                f"Value {value.index} of {current.identifier} is a secret, which is not shown;"
                " use another index, or remove it first.",
                f"{current.identifier} 的值 {value.index} 是不显示的密钥；"
                "请使用其他索引，或先将其删除。",
                index=value.index,
            )
        if operation.only == "known" and value.index not in values:
            raise _no_value(current, value.index)
        values[value.index] = value
    after = _read_only_kept(current, check_values(values.values()))
    return Decision(
        Action.MODIFY,
        replace(
            current,
            values=after,
            status=_checked_status(operation.status, current.status),
            template=_checked_template(operation.template, current.template),
            version=current.version + 1,
            modified=now,
        ),
    )


def _retire(operation: Retire, current: Record | None, now: int) -> Decision:
    _check(operation.condition, current)
    if current is None:
        raise _missing(operation.identifier)
    return Decision(
        Action.RETIRE,
        replace(
            current,
            values=(),
            status=Status.RETIRED,
            version=current.version + 1,
            modified=now,
        ),
    )
