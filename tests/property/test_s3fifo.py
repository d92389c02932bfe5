"""S3-FIFO: exact bytes under any use, and worth its trouble on skewed traffic."""

from __future__ import annotations

import random
from bisect import bisect
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from resolver.steps.s3fifo import CHANCES_MAX, S3Fifo


@dataclass
class Entry:
    size: int
    hits: int = 0


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 30), st.integers(1, 130)),
        st.tuples(st.just("find"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("drop"), st.integers(0, 30), st.just(0)),
    ),
    max_size=300,
)


def check(cache: S3Fifo[int, Entry]) -> None:
    small, main = set(cache._small), set(cache._main)
    assert not small & main
    assert small | main == set(cache.entries)
    assert cache.bytes == sum(entry.size for entry in cache.entries.values())
    assert cache._small_bytes == sum(cache.entries[key].size for key in small)
    assert cache.bytes <= cache.bytes_max
    assert not set(cache._ghosts) & set(cache.entries)
    assert len(cache._ghosts) <= 1_000
    assert len(cache) == len(cache.entries) == len(list(cache))


@given(steps)
def test_bytes_are_exact_and_bounded(done: list[tuple[str, int, int]]) -> None:
    cache: S3Fifo[int, Entry] = S3Fifo(1_000)
    model: dict[int, Entry] = {}
    for name, key, size in done:
        if name == "put":
            entry = Entry(size)
            kept = cache.put(key, entry)
            assert kept is (size <= 100)
            model.pop(key, None)
            if kept:
                model[key] = entry
        elif name == "find":
            found = cache.entries.get(key)
            if found is not None:
                found.hits += 1
        else:
            dropped = cache.drop(key)
            assert dropped is None or dropped is model[key]
            assert key not in cache.entries
            model.pop(key, None)
        check(cache)
        # Whatever is found is what was put last.
        assert all(model[key] is entry for key, entry in cache.entries.items())


def test_dropping_everything_leaves_nothing() -> None:
    cache: S3Fifo[int, Entry] = S3Fifo(10_000)
    for key in range(1_000):
        cache.put(key, Entry(37, hits=key % 3))
    for key in list(cache):
        cache.drop(key)
    assert (cache.bytes, cache._small_bytes, len(cache)) == (0, 0, 0)
    check(cache)


def zipf(keys: int, exponent: float, count: int, seed: int) -> list[int]:
    chance = random.Random(seed)
    weights = list(accumulate(1 / rank**exponent for rank in range(1, keys + 1)))
    return [bisect(weights, chance.random() * weights[-1]) for _ in range(count)]


def s3_fifo_ratio(asked: list[int], entries: int) -> float:
    cache: S3Fifo[int, Entry] = S3Fifo(entries)
    hits = 0
    for key in asked:
        entry = cache.entries.get(key)
        if entry is None:
            cache.put(key, Entry(1))
        else:
            entry.hits += 1
            hits += 1
    return hits / len(asked)


def fifo_ratio(asked: list[int], entries: int) -> float:
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in asked:
        if key in cache:
            hits += 1
        else:
            cache[key] = None
            if len(cache) > entries:
                cache.popitem(last=False)
    return hits / len(asked)


def test_hit_ratio_on_zipf() -> None:
    """Zipf 0.99 over 50,000 names, room for one in a hundred."""
    asked = zipf(50_000, 0.99, 200_000, seed=1)
    ours, fifo = s3_fifo_ratio(asked, 500), fifo_ratio(asked, 500)
    assert ours > fifo + 0.12
    assert ours > 0.54


def test_a_scan_does_not_flush_what_is_asked_often() -> None:
    cache: S3Fifo[int, Entry] = S3Fifo(1_000)
    hot = range(500)
    for _ in range(4):
        for key in hot:
            entry = cache.entries.get(key)
            if entry is None:
                cache.put(key, Entry(1))
            else:
                entry.hits += 1
    for key in range(10_000, 110_000):  # names asked once, as in a flood
        cache.put(key, Entry(1))
    assert sum(key in cache.entries for key in hot) >= 450


def test_no_eviction_takes_long() -> None:
    """However many entries were found meanwhile, one insertion does bounded work."""
    cache: S3Fifo[int, Entry] = S3Fifo(5_000)
    for key in range(5_001):
        cache.put(key, Entry(1, hits=3))
    assert len(cache._main) > 4_000
    for key in range(10_000, 10_100):
        for entry in cache.entries.values():
            entry.hits = 3
        before = 3 * len(cache)
        cache.put(key, Entry(1, hits=3))
        # Every turn of the queue takes one from the hits of an entry.
        assert before + 3 - sum(entry.hits for entry in cache.entries.values()) <= 2 * CHANCES_MAX
        check(cache)
