"""Rows over blocks over ranges are one dictionary, whatever is done in whatever order."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from biaojie.errors import BiaojieError, IdentifierRetired, NotFound, RangeTaken
from biaojie.identifier import Identifier
from biaojie.record import Record, Status, Value
from registry.admission import SYSTEM
from registry.memory import MemoryStore
from registry.operations import CutRange, RegisterRange
from registry.patterns import Pattern, parse_pattern
from registry.registrar import Registrar
from registry.sql import open_store
from registry.store import Store
from tests.citus import prepared
from tests.layers_model import NOW, PREFIX, Model

STEPS = int(os.environ.get("LAYERS_STEPS", "150"))
SEED = int(os.environ.get("LAYERS_SEED", "1"))
URL = Value(1, "URL", b"https://acme.example/{number}/{suffix}")


class RangedModel(Model):
    """`parts`: the ranges there should be, and whether they are retired. `ranged`: what they
    answer; where `kept` has something else by now, that is a record of its own."""

    def __init__(self, store: Store, registrar: Registrar, seed: int) -> None:
        super().__init__(store, registrar, seed)
        self.parts: list[tuple[Pattern, bool]] = []
        self.ranged: dict[bytes, Record] = {}

    async def step(self) -> None:
        steps = [super().step, self.register_range, self.cut_range]
        await self.random.choices(steps, [12, 2, 2])[0]()

    def members(self) -> int:
        return sum(self.kept.get(key) is record for key, record in self.ranged.items())

    def some_pattern(self, step: int) -> Pattern:
        low = self.random.randrange(len(self.names))
        high = low + self.random.choice([0, 5, 40, 150])
        stem = self.random.choice(["sn", "SN", "Sn/"])
        return parse_pattern(f"{stem}{{{low:04}..{high:04}..{step}}}")

    async def submit_range(self, operation: RegisterRange | CutRange) -> BiaojieError | None:
        self.counts[type(operation).__name__] += 1
        try:
            (await self.registrar.submit(SYSTEM, [operation])).single()
        except BiaojieError as error:
            return error
        self.sequence += 1
        self.counts["done"] += 1
        return None

    async def register_range(self) -> None:
        pattern = self.some_pattern(self.random.choice([1, 1, 1, 3]))
        numbers = range(pattern.first, pattern.last + 1, pattern.step)
        taken = any(pattern.key(number) in self.kept for number in numbers) or any(
            part.shape() == pattern.shape()
            and part.first <= pattern.last
            and pattern.first <= part.last
            for part, _ in self.parts
        )
        error = await self.submit_range(RegisterRange(PREFIX, pattern, (URL,)))
        if error is not None and not taken:
            # A purged name that a block still has beneath: the one thing that shows.
            assert isinstance(error, RangeTaken)
            assert "compact" in error.detail.en
            return
        assert (error is not None) == taken
        if error is not None:
            assert isinstance(error, RangeTaken)
            return
        self.parts.append((pattern, False))
        for number in numbers:
            suffix = pattern.spelled(number)
            data = f"https://acme.example/{number:04}/{suffix}".encode()
            record = Record(
                Identifier(PREFIX, suffix),
                (replace(URL, data=data, timestamp=NOW),),
                created=NOW,
                modified=NOW,
                sequence=self.sequence,
            )
            self.kept[pattern.key(number)] = self.ranged[pattern.key(number)] = record

    async def cut_range(self) -> None:
        pattern = self.some_pattern(1)
        purge = self.random.random() < 0.6
        parts: list[tuple[Pattern, bool]] = []
        gone: list[Pattern] = []
        spared = False
        for part, retired in self.parts:
            same = part.shape() == pattern.shape()
            below, cut, above = (
                part.cut(pattern.first, pattern.last) if same else (part, None, None)
            )
            if cut is None or (retired and not purge):
                spared = spared or cut is not None
                parts.append((part, retired))
                continue
            gone.append(cut)
            parts += [(each, retired) for each in (below, above) if each is not None]
            if not purge:
                parts.append((cut, True))
        error = await self.submit_range(CutRange(PREFIX, pattern, purge))
        if not gone:
            assert isinstance(error, IdentifierRetired if spared else NotFound)
            return
        assert error is None
        self.parts = parts
        for cut in gone:
            for number in range(cut.first, cut.last + 1, cut.step):
                key = cut.key(number)
                before = self.ranged.pop(key) if purge else self.ranged[key]
                if self.kept.get(key) is not before:
                    continue
                if purge:
                    del self.kept[key]
                    continue
                self.kept[key] = self.ranged[key] = replace(
                    before,
                    values=(),
                    status=Status.RETIRED,
                    version=2,
                    sequence=self.sequence,
                )


async def run(store: Store, seed: int) -> None:
    registrar = Registrar(store, clock=lambda: float(NOW))
    registrar.start()
    try:
        model = RangedModel(store, registrar, seed)
        await model.begin(searchable=False)
        for step in range(STEPS):
            await model.step()
            if step % 50 == 49:
                await model.check_all(searchable=False)
        await model.check_all(searchable=False, last=True)
        ranges = await store.list_ranges(PREFIX, None, 1_000)
        assert {(each.pattern, each.rule.status is Status.RETIRED) for each in ranges} == set(
            model.parts
        )
        assert min(model.counts[what] for what in ("RegisterRange", "CutRange", "folded")) > 0
        assert model.counts["done"] > 4
    finally:
        await registrar.stop()
        await store.close()


async def test_memory() -> None:
    await run(MemoryStore(), SEED)


async def test_sqlite(sqlite_url: str) -> None:
    await run(await open_store(sqlite_url), SEED + 1)


async def test_postgresql(postgres_url: str) -> None:
    await run(await open_store(postgres_url), SEED + 2)


async def test_citus() -> None:
    store = await open_store(prepared(), read_timeout_s=10, write_timeout_s=15)
    await run(store, SEED + 9)


@pytest.mark.parametrize("seed", range(3, 6))
async def test_more(seed: int) -> None:
    await run(MemoryStore(), SEED + seed)
