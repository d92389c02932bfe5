"""An export gives the same octets whichever layers keep the records, and however they are read."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from biaojie.identifier import Identifier
from biaojie.record import Permissions, Record, Reference, Status, Value
from registry.blocks import Chunk, cut, seal
from registry.exports import FORMS, Exported, Form, Page, export, paged
from registry.members import Member, Members
from registry.registrar import Registrar
from registry.runs import Run
from registry.sql import SqlStore, open_store
from registry.store import Ask
from tests.citus import prepared
from tests.layers_model import NOW, PREFIX, SHAPES
from tests.property.test_layers_ranges import RangedModel

STEPS = int(os.environ.get("LAYERS_STEPS", "60"))
SEED = int(os.environ.get("LAYERS_SEED", "1"))
ODD = [b"", b'"', b"a,b", b"\xff\x00", "标\\".encode(), b"two\nlines", b" x ", b"100 %s", b"\0"]


async def written(pages: AsyncIterator[Page], form: Form) -> tuple[bytes, Exported]:
    out = io.BytesIO()
    done = await export(pages, form, out)
    return out.getvalue(), done


async def each(records: Sequence[Record]) -> AsyncIterator[Record]:
    for record in records:
        yield record


class OddModel(RangedModel):
    """With data that needs care, here and there."""

    def values(self, shape: int) -> tuple[Value, ...]:
        usual = super().values(shape)
        if self.random.random() < 0.9:
            return usual
        return tuple(replace(value, data=self.random.choice(ODD)) for value in usual)


async def by_pages(store: SqlStore, ask: Ask) -> AsyncIterator[Page]:
    after: bytes | None = b""
    while after is not None:
        listed = await store.list_pieces(PREFIX, after, ask)
        assert listed.after is None or listed.after > after
        after = listed.after
        yield Page(PREFIX, listed.pieces)


async def run(store: SqlStore, seed: int) -> None:
    registrar = Registrar(store, clock=lambda: float(NOW))
    registrar.start()
    runs = 0
    try:
        model = OddModel(store, registrar, seed)
        await model.begin(searchable=False)
        for step in range(STEPS):
            await model.step()
            if step % 10 != 9:
                continue
            records = [model.kept[key] for key in sorted(model.kept)]
            for form in FORMS:
                expected = await written(paged(each(records)), form)
                for ask in (Ask(), Ask(7, 3), Ask(1, 1)):
                    assert await written(by_pages(store, ask), form) == expected
            async for page in by_pages(store, Ask()):
                runs += sum(isinstance(piece, Run) for piece in page.pieces)
        assert runs > STEPS // 10
        assert min(model.counts[what] for what in ("bulk", "folded", "done")) > 0
    finally:
        await registrar.stop()
        await store.close()


async def test_sqlite(sqlite_url: str) -> None:
    await run(await open_store(sqlite_url), SEED)


async def test_postgresql(postgres_url: str) -> None:
    await run(await open_store(postgres_url), SEED + 1)


async def test_citus() -> None:
    await run(await open_store(prepared(), read_timeout_s=10, write_timeout_s=15), SEED + 2)


# Blocks of any records ------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8"), max_size=8)
values = st.builds(
    Value,
    st.integers(1, 4),
    st.sampled_from(["URL", "NOTE", 'a "type" %s', "HS_ADMIN", "HS_VLIST", "HS_SECKEY"]),
    texts.map(str.encode) | st.binary(max_size=9) | st.sampled_from(ODD),
    st.sampled_from([86_400, 86_400, 5]),
    st.booleans(),
    st.sampled_from([NOW, 0, 77]),
    st.sampled_from([14, 14, 12]).map(Permissions),
    st.sampled_from([(), (), (Reference("88.118.8/A", 1),)]),
)
plain = st.builds(
    Value, st.integers(1, 3), st.sampled_from(["URL", "NOTE"]), texts.map(str.encode)
).map(lambda value: replace(value, timestamp=NOW))
listed_values = st.lists(values | plain, max_size=3, unique_by=lambda value: value.index)
names = st.text(st.sampled_from('ABab019"%,\\-标'), min_size=1, max_size=3)
heads = st.tuples(
    st.sampled_from([Status.ACTIVE, Status.ACTIVE, Status.DRAFT, Status.RETIRED]),
    st.sampled_from([None, '88.118.8/"T%,'[:-1]]),
)


def both_ways(members: Sequence[Member], pieces: Sequence[object]) -> None:
    async def compare() -> None:
        async def one() -> AsyncIterator[Page]:
            yield Page(PREFIX, pieces)  # type: ignore[arg-type]

        for form in FORMS:
            expected = await written(paged(each([member.record for member in members])), form)
            assert await written(one(), form) == expected

    asyncio.run(compare())


@given(
    st.dictionaries(names, listed_values | st.just([]), min_size=1, max_size=9),
    st.lists(heads, min_size=1, max_size=2),
    st.data(),
)
def test_blocks_of_any_records(
    records: dict[str, list[Value]], heads: list[tuple[Status, str | None]], data: st.DataObject
) -> None:
    alike = data.draw(st.booleans()) and next(iter(records.values()))
    members = {}
    for n, (name, some) in enumerate(records.items()):
        status, template = heads[n % len(heads)]
        own = tuple(sorted(alike or some, key=lambda value: value.index))
        made = Record(
            Identifier(PREFIX, name), own, status, template, 1 + n % len(heads), NOW, NOW, 5
        )
        members[made.identifier.key().suffix] = made
    ordered = [Member(key, members[key]) for key in sorted(members)]
    [block] = seal(ordered, 7)
    columns = Members(block.blob, block.size, 7).columns(PREFIX)
    assert isinstance(columns, Run) == (
        len(heads) == 1 or len({(r.status, r.template, r.version) for r in members.values()}) == 1
    )
    both_ways(ordered, [columns])
    if isinstance(columns, Run):
        assert list(columns.records()) == [member.record for member in ordered]
        first = data.draw(st.integers(0, len(ordered)))
        end = data.draw(st.integers(first, len(ordered)))
        both_ways(ordered[first:end], [columns.cut(first, end)])


@given(st.lists(st.integers(0, 2), min_size=1, max_size=48))
def test_blocks_of_several_shapes(kinds: list[int]) -> None:
    columns: list[list[bytes]] = [[], [], []]
    for n, kind in enumerate(kinds):
        for at in ((0, 1), (2,), ())[kind]:
            columns[at].append(b"%d" % n)
    suffixes = [f"sn{n:02}" for n in range(len(kinds))]
    [block] = cut(Chunk(PREFIX, suffixes, SHAPES, columns, kinds), NOW).sealed
    made = Members(block.blob, block.size, 3)
    both_ways(made.all(), [made.columns(PREFIX)])
