"""Changes: what a commit did. Values only; hashing and verification live in the registry."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .making import maker


class Action(StrEnum):
    """What was done. Names are permanent: they are hashed into the change log."""

    CREATE = "create"
    PUT = "put"
    MODIFY = "modify"
    RETIRE = "retire"
    PURGE = "purge"
    HOME_PREFIX = "home-prefix"
    CHANGE_PREFIX = "change-prefix"
    ISSUE_KEY = "issue-key"
    REVOKE_KEY = "revoke-key"
    REGISTER_RANGE = "register-range"
    CUT_RANGE = "cut-range"
    LEAVE_RANGE = "leave-range"
    BULK = "bulk"
    COMPACT = "compact"
    DISSOLVE = "dissolve"
    FOLD = "fold"


RUNS = (Action.BULK, Action.COMPACT, Action.DISSOLVE)
"""Changes of a whole run of identifiers, kept together as a block: registered, rewritten (its
members stay what they were), taken out (others of the same commit have its members)."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change inside a commit.

    `subject` is the identifier, the prefix, the key id or `prefix/pattern`, by action. `digest`
    is the SHA-256 of the new state (32 zero bytes after a purge). `actor` is the id of the key
    that asked.

    `leave-range` comes before the first change of a member of a range and has its state until
    then: from here on it is a record of its own.

    A run (RUNS) goes from `subject`, in folded form, to the identifier with the folded suffix
    `last`, and has `count` members; its digest is that of the block's content. `fold` says that
    a record is now kept in a block, or that the mark of a purge is gone (version 0); nothing is
    changed by it. `count` is then the version of what lay beneath in a block, 0 for nothing.
    """

    action: Action
    subject: str
    version: int
    actor: str
    digest: bytes
    last: str = ""
    count: int = 0


make_change = maker(Change)


@dataclass(frozen=True, slots=True)
class Entry:
    """One commit in the change log: `sequence` counts 1, 2, 3 … without gaps.

    `time_ms` is epoch milliseconds. `actor`, `action` and `prefix` are what all changes have
    in common, else empty. `root` is the RFC 6962 Merkle root of the changes' leaves,
    `previous` the hash of the entry before (32 zero bytes for the first).
    """

    sequence: int
    time_ms: int
    actor: str
    action: str
    prefix: str
    count: int
    root: bytes
    previous: bytes
    hash: bytes
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a write returns: the state that was written and the log entry that wrote it."""

    identifier: str
    action: Action
    status: str
    version: int
    sequence: int


make_receipt = maker(Receipt)


@dataclass(frozen=True, slots=True)
class RowResult:
    """The outcome of one row of a batch: a receipt, or an error code with both texts."""

    row: int
    identifier: str
    receipt: Receipt | None = None
    code: str = ""
    en: str = ""
    zh: str = ""

    @property
    def ok(self) -> bool:
        return self.receipt is not None


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The outcome of a batch: every row, in the order sent. `sequence` is 0 if none was written."""

    mode: str
    dry_run: bool
    sequence: int
    rows: tuple[RowResult, ...]

    @property
    def written(self) -> int:
        return 0 if self.dry_run else sum(row.ok for row in self.rows)

    @property
    def failed(self) -> tuple[RowResult, ...]:
        return tuple(row for row in self.rows if not row.ok)
