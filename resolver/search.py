"""Reverse lookup: the identifiers whose records have certain values.

A question is answered by rows of the index, page by page, each row held against the record it
leads to. What the caller may not read matches nothing, is passed over without a trace and
never becomes a cursor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from biaojie.account import Prefix, PrefixStatus, Role
from biaojie.errors import (
    BiaojieError,
    InvalidRequest,
    PrefixNotHere,
    PrefixSuspended,
    TemporarilyUnavailable,
)
from biaojie.identifier import Identifier, Key, fold_prefix
from biaojie.record import Record, Status
from biaojie.wire.handle.typed import AdminRight
from registry.admission import Caller, Right, allows, elsewhere
from registry.matching import Criterion, has_all
from registry.store import Found, ReadStore

from .core import public_view

START = Key("", b"")
ROWS = 100
"""Index rows, and records, read at a time."""
ROUNDS_MAX = 32
"""Such reads for one page; what is not found by then is on a later page."""
_PAST_ALL = b"\xff"  # no suffix begins so: suffixes are UTF-8


@dataclass(frozen=True, slots=True)
class Question:
    """All of `criteria` (1 to 8) must hold. Without a `prefix`, of any that is searchable."""

    criteria: tuple[Criterion, ...]
    prefix: str | None = None
    after: Key = START
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Findings:
    """In order of prefix and suffix. `next` is where the following page begins, None at the end."""

    identifiers: tuple[Identifier, ...]
    next: Key | None


class Search:
    def __init__(self, store: ReadStore) -> None:
        self._store = store

    async def find(self, caller: Caller, question: Question, *, holds: int = 0) -> Findings:
        """Callers with rights on `prefix` search all they may read there, drafts included;
        others, and all but admins without a `prefix`, what the public may read. `holds` are
        the AdminRight bits of a Handle identity on the prefix.

        Raises InvalidRequest for a type that `prefix` does not declare searchable,
        PrefixNotHere, PrefixSuspended, Elsewhere, and TemporarilyUnavailable while what is
        asked for is being indexed.
        """
        if question.prefix is None:
            private = caller.role is Role.ADMIN
            await self._check_indexes(question.criteria, private)
        else:
            private = await self._check_prefix(caller, question.prefix, question.criteria, holds)
        return await _Page(self._store, question, private).read()

    async def _check_prefix(
        self, caller: Caller, name: str, criteria: Sequence[Criterion], holds: int
    ) -> bool:
        """Whether the caller has rights on it; raises why it cannot be searched."""
        folded = fold_prefix(name)
        prefix = (await self._store.find_prefixes([folded])).get(folded)
        if prefix is None:
            raise PrefixNotHere()
        needs = AdminRight.AUTHORIZED_READ
        private = allows(caller, Right.READ_PRIVATE, prefix.tenant, needs=needs, holds=holds)
        if not _open(prefix, private):
            raise _closed(prefix)
        for type_, _ in criteria:
            if type_ not in prefix.searchable:
                raise InvalidRequest(
                    f"{type_[:128]!a} is not a searchable type of {prefix.name}.",
                    f"{type_[:128]!a} 不是前缀 {prefix.name} 的可检索类型。",
                    path="value",
                )
        if prefix.indexing:
            raise _unfinished(prefix)
        return private

    async def _check_indexes(self, criteria: Sequence[Criterion], private: bool) -> None:
        for prefix in await self._store.list_indexing():
            if _declares(prefix, criteria) and _open(prefix, private):
                raise _unfinished(prefix)


def _open(prefix: Prefix, private: bool) -> bool:
    """Whether records of it may be shown: to the public, or to callers with rights."""
    status = prefix.status
    return status is PrefixStatus.ACTIVE or (private and status is PrefixStatus.SUSPENDED)


def _closed(prefix: Prefix) -> BiaojieError:
    if prefix.status.elsewhere:
        return elsewhere(prefix)
    return PrefixSuspended() if prefix.status is PrefixStatus.SUSPENDED else PrefixNotHere()


def _declares(prefix: Prefix, criteria: Sequence[Criterion]) -> bool:
    return all(type_ in prefix.searchable for type_, _ in criteria)


def _unfinished(prefix: Prefix) -> TemporarilyUnavailable:
    return TemporarilyUnavailable(
        f"The index of {prefix.name} is being made; it cannot be searched until it is.",
        f"前缀 {prefix.name} 正在建立索引，完成前无法检索。",
        retry_after_s=5,
    )


def _reach(keys: Sequence[Key]) -> tuple[bool, int, Key]:
    return len(keys) < ROWS, -len(keys), keys[-1] if keys else START


class _Page:
    def __init__(self, store: ReadStore, question: Question, private: bool) -> None:
        self._store = store
        self._question = question
        self._private = private
        self._folded = None if question.prefix is None else fold_prefix(question.prefix)
        self._after = question.after
        self._shown: Key | None = None
        """The last row on this page whose record the caller may see."""
        self._found: list[Identifier] = []

    async def read(self) -> Findings:
        for _ in range(ROUNDS_MAX):
            keys = await self._keys()
            ended = len(keys) < ROWS
            answers = await self._store.look_up(keys) if keys else []
            for number, (key, found) in enumerate(zip(keys, answers, strict=True)):
                self._take(key, found)
                if len(self._found) == self._question.limit:
                    last = ended and number == len(keys) - 1
                    return Findings(tuple(self._found), None if last else self._shown)
            if ended:
                return Findings(tuple(self._found), None)
        if self._shown is None:
            raise TemporarilyUnavailable(
                "The search takes too long; name a prefix or more values.",
                "检索耗时过长；请指定前缀或更多的值。",
            )
        return Findings(tuple(self._found), self._shown)

    async def _keys(self) -> list[Key]:
        """Where to look next: rows of the criterion that has fewest on the way ahead.

        A list shorter than ROWS reaches to the end, a full one to its last key; what matches
        is in all of them, so the one that reaches furthest leaves least to read.
        """
        listed = await asyncio.gather(
            *(
                self._store.find_matches(
                    criterion.digest,
                    private=self._private,
                    prefix=self._folded,
                    after=self._after,
                    limit=ROWS,
                )
                for criterion in self._question.criteria
            )
        )
        return max(listed, key=_reach)

    def _take(self, key: Key, found: Found) -> None:
        if key <= self._after:
            return  # of a prefix that is passed over
        prefix, record = found
        if prefix is None or not _open(prefix, self._private):
            self._after = Key(key.prefix, _PAST_ALL)
            return
        self._after = key
        view = self._view(prefix, record)
        criteria = self._question.criteria
        if view is None or not _declares(prefix, criteria):
            return
        if any(has_all(view, [criterion]) for criterion in criteria):
            self._shown = key
            if has_all(view, criteria):
                self._found.append(view.identifier)

    def _view(self, prefix: Prefix, record: Record | None) -> Record | None:
        if not self._private:
            return public_view(prefix, record)[0]
        if record is None or record.status is Status.RETIRED:
            return None
        return record.readable()
