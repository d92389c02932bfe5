"""What is asked of the node and what it answers: some values of one identifier."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from biaojie.identifier import Identifier, Key
from biaojie.making import maker
from biaojie.record import Record, fold_type

from .core import Answer, Cached, Source


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked: all values, or those whose index is listed or whose type matches.

    A type ending in "." matches all its subtypes and the bare type (Handle rule).
    `authoritative` bypasses every cache.
    """

    identifier: Identifier
    indexes: tuple[int, ...] = ()
    types: tuple[str, ...] = ()
    authoritative: bool = False
    _key: Key | None = field(default=None, init=False, compare=False, repr=False)

    def key(self, *, case_sensitive: bool) -> Key:
        """That of the identifier, worked out once: it is the same in all of a node."""
        key = self._key
        if key is None:
            key = self.identifier.key(case_sensitive=case_sensitive)
            object.__setattr__(self, "_key", key)
        return key


@dataclass(frozen=True, slots=True)
class Resolution:
    """The values asked for. `private` when the view holds what the public may not see; `whole`
    when there are no values that the public may not see. `entry` is what the cache holds of the
    record, where the answer is fresh, from there, and the same for everybody: a front may keep
    the reply made of it for as long as the entry is alive (see `lane`)."""

    record: Record
    source: Source
    age_s: int
    ttl_s: int
    private: bool
    whole: bool = False
    entry: Cached | None = None


def select(record: Record, query: Query) -> Record:
    """Only the values the query asks for."""
    if not query.indexes and not query.types:
        return record
    types = [fold_type(type_) for type_ in query.types]

    def wanted(index: int, type_: str) -> bool:
        folded = fold_type(type_)
        return index in query.indexes or any(
            folded == t or (t.endswith(".") and (folded.startswith(t) or folded == t[:-1]))
            for t in types
        )

    return replace(record, values=tuple(v for v in record.values if wanted(v.index, v.type)))


_make_query, make_resolution = maker(Query), maker(Resolution)


def make_query(
    identifier: Identifier,
    indexes: tuple[int, ...] = (),
    types: tuple[str, ...] = (),
    authoritative: bool = False,
) -> Query:
    """A Query, made fast."""
    return _make_query(identifier, indexes, types, authoritative, None)


def shown(answer: Answer, query: Query) -> Resolution:
    """What of a public answer the query asks for. Raises the absence."""
    record = answer.record if answer.record is not None else answer.found()
    view = select(record, query)
    entry = answer.entry if answer.whole else None
    return make_resolution(
        view, answer.source, answer.age_s, answer.ttl_s, False, answer.whole, entry
    )
