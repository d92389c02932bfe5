"""What callers of a node say and get back. Values only, whatever wire protocol carries them.

`Operation` is one change to one identifier as a transport takes it: checked, complete, and
free of the liberties that `accept` allows callers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from .account import ApiKey
from .change import Action
from .identifier import Identifier
from .record import Record, Status, Value

T = TypeVar("T")
Mode = Literal["all", "valid-rows"]
"""What a batch does about bad rows. all: write nothing. valid-rows: write the others."""

Values = Iterable[Value | Mapping[str, Any]] | Mapping[str, str | bytes]
"""How callers may write values: Value objects, JSON-style objects, or {type: text}."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The answer to a look-up.

    `source` is where the node had it from (`cache`, `store`, or `stale` when its registry was
    out of reach; empty where the node did not say, as in answers to many names at once).
    `age_s` is how long the node had kept it. `etag` is the opaque version text, or empty.
    """

    record: Record
    source: str = ""
    age_s: int = 0
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One row for `register_many`.

    `action` is `create` (fails if taken), `put` (create or replace) or `retire`.
    """

    identifier: str | Identifier
    values: Values = ()
    status: Status | str | None = None
    template: str | None = None
    action: Literal["create", "put", "retire"] = "create"


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key. The secret is shown this once and never printed by `repr`."""

    key: ApiKey
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Operation:
    """One change to one identifier. What is None or empty is left out, and stays as it is."""

    action: Action
    identifier: Identifier
    values: tuple[Value, ...] = ()
    remove: tuple[int, ...] = ()
    status: Status | None = None
    template: str | None = None
    if_version: int | None = None


@dataclass(frozen=True, slots=True)
class Mint:
    """Register under a suffix that the node makes: `suffix_start` and 26 characters."""

    prefix: str
    suffix_start: str = ""
    values: tuple[Value, ...] = ()
    status: Status | None = None
    template: str | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items and the cursor of the next page; None after the last."""

    items: tuple[T, ...]
    next: str | None
