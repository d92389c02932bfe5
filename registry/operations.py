"""What can be asked of the registrar. Values only; each names one change to one subject."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from biaojie.account import PrefixStatus, Role
from biaojie.identifier import Identifier
from biaojie.making import maker
from biaojie.record import Reference, Status, Value

from .patterns import Pattern


@dataclass(frozen=True, slots=True)
class Condition:
    """What must hold of the record before the change (RFC 9110 §13.1).

    `absent`: it must not exist (If-None-Match: *). Otherwise it must exist, with `version` and
    `sequence` where they are given (If-Match).
    """

    absent: bool = False
    version: int | None = None
    sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Create:
    """Register; fails when the identifier is taken or retired."""

    identifier: Identifier
    values: tuple[Value, ...]
    status: Status = Status.ACTIVE
    template: str | None = None


make_create = maker(Create)


@dataclass(frozen=True, slots=True)
class Put:
    """Register, or replace all values. A status or template not given stays as it is."""

    identifier: Identifier
    values: tuple[Value, ...]
    status: Status | None = None
    template: str | None = None
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class Modify:
    """Add or replace values by index, remove others, change status or template.

    `only` "new": each index set must be free (else ValueTaken). "known": each must be in use
    (else ValueNotFound), as Handle's add and modify have it.
    """

    identifier: Identifier
    set: tuple[Value, ...] = ()
    remove: tuple[int, ...] = ()
    status: Status | None = None
    template: str | None = None
    condition: Condition | None = None
    only: Literal["any", "new", "known"] = "any"


@dataclass(frozen=True, slots=True)
class Retire:
    """Leave a tombstone: the identifier resolves no more and is never given out again."""

    identifier: Identifier
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class Purge:
    """Remove without trace but for the change log; the identifier may be registered again."""

    identifier: Identifier
    condition: Condition | None = None


RecordOperation = Create | Put | Modify | Retire | Purge


@dataclass(frozen=True, slots=True)
class RegisterRange:
    """Register every identifier that the pattern names, by rule; fails when one of them is
    registered or retired. Placeholders in values are filled in for each member."""

    prefix: str
    pattern: Pattern
    values: tuple[Value, ...]
    status: Status = Status.ACTIVE
    template: str | None = None


@dataclass(frozen=True, slots=True)
class CutRange:
    """Take the members that the pattern names out of the ranges they are in: as tombstones, or
    with `purge` without trace but for the change log. Members that were changed one by one
    are records of their own and stay."""

    prefix: str
    pattern: Pattern
    purge: bool = False


RangeOperation = RegisterRange | CutRange
"""Handed in alone: what it looks at is all that lies between its first and its last member."""


@dataclass(frozen=True, slots=True)
class HomePrefix:
    """Make a prefix known here: homed (active), or as living at another node.

    With `admin`, a record `0.NA/<name>` is registered as well, whose HS_ADMIN value gives that
    Handle identity every right under the prefix.
    """

    name: str
    tenant: str
    status: PrefixStatus = PrefixStatus.ACTIVE
    admin: Reference | None = None
    searchable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChangePrefix:
    """What is None stays as it is. `searchable` replaces the declared types as a whole."""

    name: str
    tenant: str | None = None
    status: PrefixStatus | None = None
    searchable: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class IssueKey:
    """`digest` is the SHA-256 of the secret. `first`: only into a registry without a history."""

    id: str
    digest: bytes
    tenant: str
    role: Role
    label: str = ""
    first: bool = False


@dataclass(frozen=True, slots=True)
class RevokeKey:
    id: str


Operation = RecordOperation | RangeOperation | HomePrefix | ChangePrefix | IssueKey | RevokeKey
