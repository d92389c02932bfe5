"""The layered registry against a plain dictionary: random operations, and what must hold.

Every operation goes through the registrar. What each answers, what can be looked up and listed
then, in pages of any size, and what `audit` says must be as if there were one dictionary.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from biaojie.errors import BiaojieError, IdentifierNotFound, IdentifierRetired, IdentifierTaken
from biaojie.identifier import Identifier, Key
from biaojie.record import Record, Status, Value
from registry.admission import SYSTEM
from registry.audit import audit
from registry.blocks import Chunk, cut
from registry.matching import Criterion
from registry.operations import Create, HomePrefix, Modify, Operation, Purge, Put, Retire
from registry.registrar import Registrar
from registry.store import Store
from tests.recount import check_census

PREFIX = "88.118.8"
NOW = 1_700_000_000
TEMPLATES = [None, None, "88.118.8/T1", "88.118.8/T2"]
SHAPES = [[Value(1, "URL", b""), Value(2, "LOT", b"")], [Value(1, "URL", b"")], []]


class Model:
    """`names` bounds how many there are to choose from: the fewer, the more they meet."""

    def __init__(self, store: Store, registrar: Registrar, seed: int, names: int = 600) -> None:
        self.store = store
        self.registrar = registrar
        self.random = random.Random(seed)
        self.names = [f"{'sn' if n % 7 else 'Sn/'}{n:04}" for n in range(names)]
        self.kept: dict[bytes, Record] = {}
        self.counts: Counter[str] = Counter()
        self.sequence = 0
        self.audit_due = 0

    async def begin(self, *, searchable: bool) -> None:
        home = HomePrefix(PREFIX, "acme", searchable=("LOT",) if searchable else ())
        self.sequence = (await self.registrar.submit(SYSTEM, [home])).sequence

    async def step(self) -> None:
        await self.random.choices(
            [self.single, self.bulk, self.purge, self.compact, self.check_some],
            [6, 3, 4, 2, 3],
        )[0]()

    # Operations -------------------------------------------------------------------------

    def key(self, name: str) -> bytes:
        return name.encode().upper()

    def values(self, shape: int) -> tuple[Value, ...]:
        return tuple(
            replace(value, data=b"v%d" % self.random.randrange(9), timestamp=NOW)
            for value in SHAPES[shape]
        )

    def record(self, name: str, values: tuple[Value, ...], template: str | None) -> Record:
        return Record(
            Identifier(PREFIX, name),
            values,
            created=NOW,
            modified=NOW,
            sequence=self.sequence + 1,
            template=template,
        )

    async def submit(self, operation: Operation) -> type[BiaojieError] | None:
        """The error, if it was refused."""
        self.counts[type(operation).__name__] += 1
        try:
            outcome = (await self.registrar.submit(SYSTEM, [operation])).single()
        except BiaojieError as error:
            return type(error)
        assert outcome.sequence == self.sequence + 1
        return None

    async def single(self) -> None:
        name = self.random.choice(self.names)
        key = self.key(name)
        identifier = Identifier(PREFIX, name)
        old = self.kept.get(key)
        values = self.values(self.random.randrange(3))
        template = self.random.choice(TEMPLATES)
        kind = self.random.choice(["create", "put", "modify", "retire"])
        new: Record | None = None
        expected: type[BiaojieError] | None = None
        if old is not None and old.status is Status.RETIRED:
            expected = IdentifierRetired
        elif kind == "create" and old is not None:
            expected = IdentifierTaken
        elif kind in ("modify", "retire") and old is None:
            expected = IdentifierNotFound
        elif old is None:
            new = self.record(name, values, template)
        else:
            new = replace(old, version=old.version + 1, modified=NOW, sequence=self.sequence + 1)
            if kind == "put":
                new = replace(new, values=values, template=template or old.template)
            elif kind == "modify":
                new = replace(new, status=Status.DRAFT)
            else:
                new = replace(new, values=(), status=Status.RETIRED)
        operation: Operation
        match kind:
            case "create":
                operation = Create(identifier, values, template=template)
            case "put":
                operation = Put(identifier, values, template=template)
            case "modify":
                operation = Modify(identifier, status=Status.DRAFT)
            case _:
                operation = Retire(identifier)
        assert await self.submit(operation) is expected, (kind, name)
        if new is not None:
            self.kept[key] = new
            self.sequence += 1

    async def purge(self) -> None:
        for name in self.random.sample(self.names, self.random.choice([1, 1, 20])):
            key = self.key(name)
            error = await self.submit(Purge(Identifier(PREFIX, name)))
            assert error is (None if key in self.kept else IdentifierNotFound)
            if self.kept.pop(key, None) is not None:
                self.sequence += 1

    async def bulk(self) -> None:
        count = self.random.choice([1, 5, 60, 200])
        if self.random.random() < 0.5:
            first = self.random.randrange(len(self.names))
            chosen = self.names[first : first + count]
        else:
            chosen = self.random.sample(self.names, min(count, len(self.names)))
        chosen.sort(key=self.key)
        kinds = [self.random.randrange(3) for _ in chosen]
        values = [self.values(kind) for kind in kinds]
        columns: list[list[bytes]] = [[], [], []]
        for kind, given in zip(kinds, values, strict=True):
            for n, value in enumerate(given):
                columns[n if kind == 0 else 2].append(value.data)
        whole = self.random.random() < 0.3
        template = self.random.choice(TEMPLATES)
        outcome = await self.registrar.load(
            SYSTEM,
            cut(Chunk(PREFIX, chosen, SHAPES, columns, kinds, template=template), NOW),
            mode="all" if whole else "valid-rows",
        )
        self.counts["bulk"] += len(chosen)
        taken = [f"{PREFIX}/{name}" for name in chosen if self.key(name) in self.kept]
        assert sorted(outcome.refused) == sorted(taken)
        if whole and taken:
            assert outcome.count == 0
            return
        assert outcome.count == len(chosen) - len(taken)
        assert outcome.sequence == (self.sequence + 1 if outcome.count else 0)
        for name, given in zip(chosen, values, strict=True):
            if self.key(name) not in self.kept:
                self.kept[self.key(name)] = self.record(name, given, template)
        self.sequence += outcome.count > 0

    async def compact(self) -> None:
        before = self.random.choice([self.sequence + 1, max(self.sequence - 20, 0)])
        after: bytes | None = None
        while True:
            done = await self.registrar.compact(SYSTEM, PREFIX, before=before, after=after)
            self.counts["folded"] += done.rows + done.markers
            self.sequence = (await self.store.head())[0]
            after = done.after
            if after is None:
                return

    def members(self) -> int:
        """How many of those kept are members of ranges, which are not verified one by one."""
        return 0

    # What must hold ---------------------------------------------------------------------

    async def check_some(self) -> None:
        names = self.random.sample(self.names, 20)
        keys = [Key(PREFIX, self.key(name)) for name in names]
        found = await self.store.look_up(keys)
        assert [at.record for at in found] == [self.kept.get(key.suffix) for key in keys]
        after = self.key(self.random.choice(self.names))
        limit = self.random.choice([1, 10, 100])
        expected = [self.kept[key] for key in sorted(self.kept) if key > after][:limit]
        page = await self.store.list_records(PREFIX, after, limit)
        assert page == expected

    async def check_all(self, *, searchable: bool, last: bool = False) -> None:
        assert (await self.store.head())[0] == self.sequence
        listed: list[Record] = []
        after: bytes | None = None
        while page := await self.store.list_records(PREFIX, after, 77):
            listed += page
            after = page[-1].identifier.key().suffix
        assert listed == [self.kept[key] for key in sorted(self.kept)]
        if searchable:
            for n in range(9):
                data = b"v%d" % n
                expected = [
                    Key(PREFIX, key)
                    for key in sorted(self.kept)
                    if any(v.type == "LOT" and v.data == data for v in self.kept[key].values)
                ]
                public, private = [
                    await self.store.find_matches(
                        Criterion("LOT", data).digest,
                        private=private,
                        prefix=PREFIX,
                        after=Key("", b""),
                        limit=10_000,
                    )
                    for private in (False, True)
                ]
                assert private == expected
                assert set(public) <= set(private)
        counted = await check_census(self.store, [PREFIX])
        there = Counter((kept.template or "", kept.status) for kept in self.kept.values())
        sorts: Counter[tuple[str, Status]] = Counter()
        for kind, number in counted.items():
            sorts[kind.template, kind.state] += number if kind.prefix == PREFIX else 0
        assert sorts == there
        if self.sequence < self.audit_due and not last:
            return  # it reads the log from its beginning: only when that is a fifth longer
        self.audit_due = self.sequence + self.sequence // 5
        found = await audit(self.store)
        assert not found.faults, found.faults[:5]
        assert found.records == len(self.kept) - self.members()
