"""Reverse lookup: which rows the index of values has for a record. Pure.

A row says "this record has a value of this type and data", by a hash of the two, and whether
the public may know. Rows are found by hash and held against the record when they are read, so
neither a collision nor an old row ever makes an answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from typing import NamedTuple

from biaojie.account import Prefix
from biaojie.identifier import Key
from biaojie.record import SECRET_TYPES, Permissions, Record, Status, fold_type

HASH_BYTES = 16
_SHOWN = (Status.ACTIVE, Status.FROZEN)
_READABLE = Permissions.ADMIN_READ | Permissions.PUBLIC_READ
ALL_TYPES = None


class Match(NamedTuple):
    """One row. `public`: anybody may learn of it; otherwise callers with rights on the prefix."""

    digest: bytes
    public: bool
    key: Key


class Criterion(NamedTuple):
    """A value to look for; `type` is folded."""

    type: str
    data: bytes

    @property
    def digest(self) -> bytes:
        # No type has a NUL in it, so no two pairs hash the same octets.
        hashed = hashlib.sha256(self.type.encode() + b"\0" + self.data).digest()
        return hashed[:HASH_BYTES]


def rows_of(key: Key, record: Record | None, types: Collection[str] | None) -> set[Match]:
    """The rows of a record whose values of the folded `types` (ALL_TYPES: any) are indexed.

    Values that nobody may read, and secrets, have none.
    """
    shown: dict[bytes, bool] = {}
    for value in record.values if record is not None else ():
        type_ = fold_type(value.type)
        if (types is not ALL_TYPES and type_ not in types) or type_ in SECRET_TYPES:
            continue
        if value.permissions & _READABLE:
            assert record is not None
            public = record.status in _SHOWN and bool(value.permissions & Permissions.PUBLIC_READ)
            digest = Criterion(type_, value.data).digest
            shown[digest] = public or shown.get(digest, False)
    return {Match(digest, public, key) for digest, public in shown.items()}


def row_changes(
    prefix: Prefix, key: Key, before: Record | None, after: Record | None
) -> tuple[set[Match], set[Match]]:
    """Rows to add and rows to remove when a record of `prefix` changes.

    While the index of a prefix is being made anew, rows may be missing or left from other
    declarations: then all that `before` can have had are removed, all that `after` has added.
    """
    wanted = rows_of(key, after, prefix.searchable)
    if prefix.indexing:
        return wanted, rows_of(key, before, ALL_TYPES) - wanted
    present = rows_of(key, before, prefix.searchable)
    return wanted - present, present - wanted


def has_all(view: Record, criteria: Iterable[Criterion]) -> bool:
    """Whether each criterion is a value of `view`, which holds only what the caller may read."""
    values = {(fold_type(value.type), value.data) for value in view.values}
    return all(criterion in values for criterion in criteria)
