"""Looking at ranges: those of a prefix, for callers who may read all of it."""

from __future__ import annotations

from biaojie.errors import NotFound, PrefixNotHere
from biaojie.identifier import fold_prefix
from biaojie.range import Range
from registry.admission import Caller, Right, authorize
from registry.patterns import Pattern
from registry.ranges import RangeKey, view_of
from registry.store import ReadStore


class Ranges:
    """Reads the registry itself: nothing is cached."""

    def __init__(self, store: ReadStore, *, case_sensitive: bool = False) -> None:
        self._store = store
        self._case_sensitive = case_sensitive

    async def list(
        self, caller: Caller, prefix: str, after: Pattern | None, limit: int
    ) -> tuple[list[Range], bool]:
        """Ranges of a prefix, those of one shape together, and whether more follow."""
        folded = await self._readable(caller, prefix)
        at = None if after is None else self._key(folded, after)
        found = await self._store.list_ranges(folded, at, limit + 1)
        return [view_of(each) for each in found[:limit]], len(found) > limit

    async def find(self, caller: Caller, prefix: str, pattern: Pattern) -> Range:
        """The range of exactly this pattern; raises NotFound."""
        folded = await self._readable(caller, prefix)
        key = self._key(folded, pattern)
        # Nothing lies between a run and what it begins with.
        found = await self._store.list_ranges(folded, key._replace(first=key.first[:-1]), 1)
        for each in found:
            if each.pattern == pattern:
                return view_of(each)
        name = f"{prefix}/{pattern}"
        raise NotFound(f"There is no range {name}.", f"没有号段 {name}。")

    def _key(self, folded: str, pattern: Pattern) -> RangeKey:
        shape = pattern.shape(case_sensitive=self._case_sensitive)
        return RangeKey(folded, shape, pattern.runs[0])

    async def _readable(self, caller: Caller, prefix: str) -> str:
        """The folded name of a prefix here that the caller may read all of."""
        folded = fold_prefix(prefix)
        homed = (await self._store.find_prefixes([folded])).get(folded)
        authorize(caller, Right.READ_PRIVATE, homed.tenant if homed else caller.tenant)
        if homed is None:
            raise PrefixNotHere()
        return folded
