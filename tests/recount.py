"""The census by brute force: every name that a store lists, and the layer that has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from biaojie.identifier import fold_prefix
from registry.census import ALL_PREFIXES, Kind, Layer
from registry.members import Members
from registry.statistics import TEMPLATES_MAX
from registry.store import Store

PAGE = 500


async def recounted(store: Store, prefixes: Iterable[str]) -> Counter[Kind]:
    """Of these prefixes, one by one and together."""
    counts: Counter[Kind] = Counter()
    for name in map(fold_prefix, prefixes):
        rows: set[bytes] = set()
        after: bytes | None = None
        while page := await store.list_rows(name, after, PAGE):
            rows |= {row.suffix for row in page if row.record is not None}
            after = page[-1].suffix
        in_blocks: set[bytes] = set()
        after = None
        while blocks := await store.list_blocks(name, after, 100):
            for block in blocks:
                in_blocks.update(Members(block.blob, block.size, block.sequence).suffixes())
            after = blocks[-1].first
        after = None
        while listed := await store.list_records(name, after, PAGE):
            for record in listed:
                suffix = record.identifier.key().suffix
                layer = Layer.BLOCKS if suffix in in_blocks else Layer.RANGES
                layer = Layer.ROWS if suffix in rows else layer
                for prefix in (name, ALL_PREFIXES):
                    counts[Kind(prefix, record.template or "", layer, record.status)] += 1
            after = listed[-1].identifier.key().suffix
    return counts


async def check_census(store: Store, prefixes: Iterable[str]) -> Counter[Kind]:
    """That what is counted bit by bit is that; gives the latter. Fewer templates than are listed
    at the most."""
    names = [ALL_PREFIXES, *map(fold_prefix, prefixes)]
    expected = await recounted(store, names[1:])
    while await store.fold_statistics():
        pass
    found = await store.read_census(names)
    together: Counter[Kind] = Counter()
    for kind, number in expected.items():
        together[kind._replace(template="")] += number
    assert found.counts == together
    assert found.sequence == (await store.head())[0]
    for name in names:
        templates: Counter[str] = Counter()
        for kind, number in expected.items():
            templates[kind.template] += number if kind.prefix == name else 0
        most = sorted((+templates).items(), key=lambda each: (-each[1], each[0]))
        assert len(most) < TEMPLATES_MAX
        got = await store.read_templates(name, None, TEMPLATES_MAX)
        assert (got.sequence, got.counts) == (found.sequence, most)
    return expected
