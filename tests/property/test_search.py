"""Search against reading everything: any history, any caller, the same answer; and no traces.

Histories are drawn by weight from a seed: few records, few values, so that much is found.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from biaojie.account import Prefix, PrefixStatus, Role
from biaojie.errors import BiaojieError
from biaojie.identifier import Identifier, Key
from biaojie.record import Permissions, Status, Value
from registry import indexing
from registry.admission import PUBLIC, SYSTEM, Caller
from registry.audit import audit
from registry.indexing import index_page
from registry.matching import Criterion
from registry.memory import MemoryStore
from registry.operations import ChangePrefix, HomePrefix, Modify, Operation, Purge, Put, Retire
from registry.registrar import Registrar
from resolver import search
from resolver.search import START, Question, Search
from tests.core_parts import ACME, ACME_READER, ADMIN, BETA

OWNERS = {"1.1": "acme", "1.2": "beta", "1.3": "acme"}
CALLERS = [PUBLIC, ACME, ACME_READER, BETA, ADMIN]
TYPES = ["URL", "URL", "url", "NOTE"]
BITS = ["1110", "1110", "0010", "1100", "0100", "0000"]
DECLARED = [("URL",), ("note", "URL"), ("NOTE", "url"), ("note",), ()]
WANTED: list[tuple[Criterion, ...]] = [
    (Criterion("URL", b"x"),),
    (Criterion("NOTE", b"x"),),
    (Criterion("URL", b"y"),),
]
WANTED += [WANTED[0] + WANTED[1], WANTED[0] + WANTED[2], WANTED[1] + WANTED[2]]


class History:
    """`_expected` is a word-by-word reading of the rules, over all records there are."""

    def __init__(self, seed: int, seen: Counter[str]) -> None:
        self.chance = random.Random(seed)
        self.seen = seen
        self.store = MemoryStore()
        self.registrar = Registrar(self.store)

    async def run(self, steps: int) -> None:
        self.registrar.start()
        choose = self.chance.choice
        homes: list[Operation] = [
            HomePrefix(name, owner, searchable=choose(DECLARED[:3]))
            for name, owner in OWNERS.items()
        ]
        await self._do(homes)
        doing = [self._write] * 6 + [self._index] * 3 + [self._declare, self._close_or_open]
        for _ in range(steps):
            await choose(doing)()
            for caller in CALLERS:
                for wanted in WANTED:
                    for prefix in (None, choose([*OWNERS])):
                        await self._compare(caller, wanted, prefix, self.chance.randint(1, 3))
        await self.registrar.stop()
        assert (await audit(self.store)).faults == []

    async def _do(self, operations: list[Operation]) -> None:
        await self.registrar.submit(SYSTEM, operations, mode="valid-rows")

    def _values(self) -> tuple[Value, ...]:
        choose = self.chance.choice
        return tuple(
            Value(
                index,
                choose(TYPES),
                choose([b"x", b"x", b"y"]),
                permissions=Permissions.parse(choose(BITS)),
            )
            for index in range(1, self.chance.randint(1, 5))
        )

    def _operations(self) -> list[Operation]:
        operations: list[Operation] = []
        for _ in range(self.chance.randint(1, 6)):
            at = Identifier(self.chance.choice([*OWNERS]), self.chance.choice("aBcdEf"))
            status = self.chance.choice([None, None, Status.ACTIVE, Status.DRAFT, Status.FROZEN])
            kinds: list[Operation] = [Put(at, self._values(), status)] * 6
            kinds += [Modify(at, self._values(), status=status)] * 3
            kinds += [Purge(at), Retire(at)]
            operations.append(self.chance.choice(kinds))
        return operations

    async def _write(self) -> None:
        await self._do(self._operations())

    async def _declare(self) -> None:
        """With writes before, in and after the commit that changes it."""
        change = ChangePrefix(
            self.chance.choice([*OWNERS]), searchable=self.chance.choice(DECLARED)
        )
        await self._do([*self._operations(), change, *self._operations()])
        await self._do(self._operations())

    async def _close_or_open(self) -> None:
        name = self.chance.choice([*OWNERS])
        [now] = (await self.store.find_prefixes([name])).values()
        status = PrefixStatus.ACTIVE
        if now.status is PrefixStatus.ACTIVE:
            status = self.chance.choice([*PrefixStatus])
        await self._do([ChangePrefix(name, status=status)])

    async def _index(self) -> None:
        for prefix in await self.store.list_indexing():
            for _ in range(self.chance.choice([1, 2, 9])):
                await index_page(self.store, prefix)

    async def _compare(
        self, caller: Caller, wanted: tuple[Criterion, ...], prefix: str | None, limit: int
    ) -> None:
        got = await self._read(caller, wanted, prefix, limit)
        assert got == await self._expected(caller, wanted, prefix)
        kind = got if isinstance(got, str) else f"{len(wanted)} values, {min(len(got), 2)} found"
        self.seen[kind] += 1

    async def _read(
        self, caller: Caller, wanted: tuple[Criterion, ...], prefix: str | None, limit: int
    ) -> list[str] | str:
        finder = Search(self.store)
        found: list[str] = []
        after: Key | None = START
        try:
            for _ in range(50):
                assert after is not None
                page = await finder.find(caller, Question(wanted, prefix, after, limit))
                assert len(page.identifiers) <= limit
                found += map(str, page.identifiers)
                if page.next is not None:
                    assert page.next > after
                    # What a cursor tells is what the caller was told.
                    last = page.identifiers[-1].key() if page.identifiers else None
                    assert last == page.next or len(wanted) > 1
                    await self._may_know(caller, wanted, prefix, page.next)
                after = page.next
                if after is None:
                    return found
        except BiaojieError as error:
            return error.code
        raise AssertionError("the search has no end")

    def _private(self, caller: Caller, prefix: str | None) -> bool:
        if caller.role is None or prefix is None:
            return caller.role is Role.ADMIN
        return caller.role is Role.ADMIN or caller.tenant == OWNERS[prefix]

    async def _may_know(
        self, caller: Caller, wanted: tuple[Criterion, ...], prefix: str | None, at: Key
    ) -> None:
        """A cursor is a record that one of the values leads this caller to."""
        known = {
            Identifier(*text.partition("/")[::2]).key()
            for criterion in wanted
            for text in await self._matching(caller, (criterion,), prefix)
        }
        assert at in known

    async def _expected(
        self, caller: Caller, wanted: tuple[Criterion, ...], prefix: str | None
    ) -> list[str] | str:
        private = self._private(caller, prefix)
        for homed in await self.store.list_prefixes(None, 9):
            if prefix == homed.name:
                if homed.status.elsewhere:
                    return "elsewhere"
                if homed.status is PrefixStatus.UNHOMED:
                    return "prefix-not-here"
                if homed.status is PrefixStatus.SUSPENDED and not private:
                    return "prefix-suspended"
                if not {type_ for type_, _ in wanted} <= set(homed.searchable):
                    return "invalid-request"
                if homed.indexing:
                    return "temporarily-unavailable"
            if prefix is None and homed.indexing and self._is_searched(homed, private, wanted):
                return "temporarily-unavailable"
        return await self._matching(caller, wanted, prefix)

    @staticmethod
    def _is_searched(homed: Prefix, private: bool, wanted: tuple[Criterion, ...]) -> bool:
        shown = {PrefixStatus.ACTIVE} | ({PrefixStatus.SUSPENDED} if private else set())
        return homed.status in shown and {t for t, _ in wanted} <= set(homed.searchable)

    async def _matching(
        self, caller: Caller, wanted: tuple[Criterion, ...], prefix: str | None
    ) -> list[str]:
        private = self._private(caller, prefix)
        found = []
        for homed in await self.store.list_prefixes(None, 9):
            if prefix not in (None, homed.name):
                continue
            shown = {PrefixStatus.ACTIVE} | ({PrefixStatus.SUSPENDED} if private else set())
            types = set(homed.searchable)
            if homed.status not in shown or not types.issuperset(t for t, _ in wanted):
                continue
            for record in await self.store.list_records(homed.name, None, 99):
                if record.status is Status.DRAFT and not private:
                    continue
                bits = Permissions.PUBLIC_READ
                if private:
                    bits |= Permissions.ADMIN_READ
                has = {(v.type.upper(), v.data) for v in record.values if v.permissions & bits}
                if has.issuperset(wanted):
                    found.append(str(record.identifier))
        return found


def test_search_finds_what_reading_everything_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "ROWS", 3)
    monkeypatch.setattr(indexing, "PAGE_RECORDS", 2)
    seen: Counter[str] = Counter()
    for seed in range(12):
        asyncio.run(History(seed, seen).run(40))
    # Otherwise this would be a test of nothing much.
    for values in (1, 2):
        for found in (0, 1, 2):
            assert seen[f"{values} values, {found} found"] > 100, seen
    assert min(seen.values()) > 20, seen
