"""What can be asked over the native protocol, as values. Bodies: `request_bodies`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from ...account import PrefixStatus, Role
from ...change import Action
from ...errors import BiaojieError
from ...record import Status, Value

ACTIONS: Final = (Action.CREATE, Action.PUT, Action.MODIFY, Action.RETIRE, Action.PURGE)
Mode = Literal["all", "valid-rows"]


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame. `key` is the API key in whose name all that follows is asked."""

    version_min: int
    version_max: int
    key: str | None
    agent: str

    def __repr__(self) -> str:
        return f"Hello({self.version_min}, {self.version_max}, agent={self.agent!r})"


@dataclass(frozen=True, slots=True)
class Resolve:
    """All values, or those whose index is listed or whose type matches."""

    identifier: str
    indexes: tuple[int, ...] = ()
    types: tuple[str, ...] = ()
    authoritative: bool = False


@dataclass(frozen=True, slots=True)
class ResolveMany:
    identifiers: tuple[str, ...]
    authoritative: bool = False


@dataclass(frozen=True, slots=True)
class Condition:
    """What must hold before a write: `absent`, or that it exists, with `version` and `sequence`
    where they are given."""

    absent: bool = False
    version: int | None = None
    sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """One change to one identifier. `values` are all of them, or for modify those to set;
    `remove` is for modify. A status or template that is None stays as it is."""

    action: Action
    identifier: str
    values: tuple[Value, ...] = ()
    remove: tuple[int, ...] = ()
    status: Status | None = None
    template: str | None = None


@dataclass(frozen=True, slots=True)
class Write:
    operation: Operation
    idempotency_key: str | None = None
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is no operation, and the identifier it seems to be about."""

    identifier: str
    error: BiaojieError


@dataclass(frozen=True, slots=True)
class WriteMany:
    rows: tuple[Operation | BadRow, ...]
    mode: Mode
    dry_run: bool = False
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Mint:
    prefix: str
    suffix_start: str = ""
    values: tuple[Value, ...] = ()
    status: Status | None = None
    template: str | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class ListRecords:
    """`after` is the cursor that an earlier list ended with; without `limit`, all of them."""

    prefix: str
    after: bytes | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Follow:
    """Entries after that sequence as they come; without `limit`, for ever."""

    after: int
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """`request` is the id of the stream to stop."""

    request: int


@dataclass(frozen=True, slots=True)
class Search:
    """Identifiers that have all of the values (type, data)."""

    values: tuple[tuple[str, bytes], ...]
    prefix: str | None = None
    after: bytes | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class ListPrefixes:
    after: bytes | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class FindPrefix:
    name: str


@dataclass(frozen=True, slots=True)
class HomePrefix:
    name: str
    tenant: str
    searchable: tuple[str, ...] = ()
    status: PrefixStatus = PrefixStatus.ACTIVE
    admin: str = ""
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class ChangePrefix:
    name: str
    tenant: str | None = None
    status: PrefixStatus | None = None
    searchable: tuple[str, ...] | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class ListKeys:
    after: bytes | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class IssueKey:
    role: Role
    tenant: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class RevokeKey:
    id: str
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """One page of the log after that sequence, waiting `wait_s` for news (at most 30)."""

    after: int
    limit: int = 100
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ImportStep:
    """A step of an import, with what it takes: see `imports.STEPS`."""

    step: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Ping:
    pass


Request = (
    Hello
    | Resolve
    | ResolveMany
    | Write
    | WriteMany
    | Mint
    | ListRecords
    | Follow
    | Cancel
    | Search
    | ListPrefixes
    | FindPrefix
    | HomePrefix
    | ChangePrefix
    | ListKeys
    | IssueKey
    | RevokeKey
    | Changes
    | Ping
    | ImportStep
)
