"""S3-FIFO step by step: who stays, who goes, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

from resolver.steps.s3fifo import S3Fifo


@dataclass
class Entry:
    size: int = 1
    hits: int = 0


def filled(bytes_max: int, keys: int) -> S3Fifo[int, Entry]:
    cache: S3Fifo[int, Entry] = S3Fifo(bytes_max)
    for key in range(keys):
        assert cache.put(key, Entry())
    return cache


def test_until_it_is_full_nothing_goes() -> None:
    cache = filled(100, 100)
    assert list(cache) == list(range(100))
    assert cache.bytes == len(cache) == 100


def test_what_was_asked_once_goes_first() -> None:
    cache = filled(100, 100)
    for key in range(50):
        cache.entries[key].hits = 2
    for key in range(1_000, 1_040):
        cache.put(key, Entry())
    assert all(key in cache.entries for key in range(50))
    assert not any(key in cache.entries for key in range(50, 85))


def test_one_hit_in_the_small_queue_is_not_enough() -> None:
    cache = filled(100, 100)
    cache.entries[0].hits = 1
    cache.put(1_000, Entry())
    assert 0 not in cache.entries


def test_a_name_that_comes_back_goes_to_the_main_queue() -> None:
    cache = filled(100, 101)
    assert 0 not in cache.entries
    cache.put(0, Entry())  # remembered as a ghost
    for key in range(1_000, 1_200):
        cache.put(key, Entry())
    assert 0 in cache.entries, "a flood passes through the small queue"


def test_a_name_that_was_forgotten_starts_again() -> None:
    cache = filled(100, 100)
    for key in range(1_000, 1_300):
        cache.put(key, Entry())
    assert 0 not in cache._ghosts
    cache.put(0, Entry())
    for key in range(2_000, 2_120):
        cache.put(key, Entry())
    assert 0 not in cache.entries


def test_hits_in_the_main_queue_are_second_chances_but_not_for_ever() -> None:
    cache = filled(100, 100)
    for key in range(100):
        cache.entries[key].hits = 2
    cache.put(1_000, Entry())  # the small queue is sorted into the main one
    cache.entries[5].hits = 9
    for number in range(1_000):
        ghost = 2_000 + number
        cache.put(ghost, Entry())
        cache.entries[ghost].hits = 2
        if number == 150:
            assert 5 in cache.entries
            assert 6 not in cache.entries
    assert 5 not in cache.entries


def test_replacing_counts_the_new_size() -> None:
    cache: S3Fifo[str, Entry] = S3Fifo(100)
    cache.put("a", Entry(10))
    cache.put("a", Entry(3))
    assert (cache.bytes, len(cache)) == (3, 1)


def test_nothing_may_take_more_than_a_tenth() -> None:
    cache: S3Fifo[str, Entry] = S3Fifo(100)
    cache.put("a", Entry(10))
    assert cache.put("b", Entry(11)) is False
    assert cache.put("a", Entry(11)) is False
    assert (cache.bytes, len(cache)) == (0, 0), "the old entry is not what was put"


def test_drop_returns_what_was_there() -> None:
    cache: S3Fifo[str, Entry] = S3Fifo(100)
    entry = Entry(5)
    cache.put("a", entry)
    assert cache.drop("a") is entry
    assert cache.drop("a") is None
    assert cache.bytes == 0


def test_ghosts_are_bounded_by_what_is_cached() -> None:
    cache = filled(100, 10_000)
    assert len(cache._ghosts) <= 100
