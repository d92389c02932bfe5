"""The express lane's table: what is found, and when it is found no more."""

from __future__ import annotations

from biaojie.identifier import Identifier
from biaojie.record import Record
from resolver.core import Cached
from resolver.health import Health
from resolver.lane import READY_BYTES, Lane, Ready
from resolver.observe import Observer
from resolver.steps.s3fifo import S3Fifo


def cached(expires: float = 100) -> Cached:
    return Cached(Record(Identifier("88.118.8", "SN1"), ()), 0, expires, 700, 100)


def lane_with(entry: Cached, health: Health | None = None) -> Lane[Ready]:
    lane: Lane[Ready] = Lane(health or Health(), 1_000_000)
    lane.keep(b"request", Ready(entry, 100))
    return lane


def test_what_was_kept_is_found_and_counts_as_asked_for() -> None:
    entry = cached()
    lane = lane_with(entry)
    ready = lane.find(b"request", 99)
    assert ready is not None
    assert lane.find(b"request ", 99) is None
    assert (ready.hits, entry.hits, lane.hits) == (1, 1, 1)


def test_it_dies_of_age_and_gives_its_room_back() -> None:
    lane = lane_with(cached(expires=10))
    assert lane.find(b"request", 10) is None
    assert (len(lane), lane.bytes) == (0, 0)


def test_it_dies_with_its_entry() -> None:
    entry = cached()
    lane = lane_with(entry)
    entry.alive = False
    assert lane.find(b"request", 1) is None
    lane.keep(b"request", Ready(entry, 100))
    assert len(lane) == 0


def test_an_entry_that_left_the_cache_is_dead() -> None:
    cache: S3Fifo[int, Cached] = S3Fifo(7_000, lambda entry: setattr(entry, "alive", False))
    entries = [cached() for _ in range(20)]
    for number, entry in enumerate(entries):
        cache.put(number, entry)
    assert [e.alive for e in entries] == [n in cache.entries for n in range(20)]
    assert not all(e.alive for e in entries)


def test_while_the_registry_is_down_nothing_is_found() -> None:
    health = Health()
    lane = lane_with(cached(), health)
    health.failed("test")
    assert lane.find(b"request", 1) is None
    health.answered()
    assert lane.find(b"request", 1) is not None


def test_it_is_bounded_in_bytes() -> None:
    lane: Lane[Ready] = Lane(Health(), 100_000)
    for number in range(1_000):
        lane.keep(b"%d" % number, Ready(cached(), 1_000))
    assert lane.bytes <= 100_000
    assert len(lane) == 100_000 // (READY_BYTES + 1_000)
    off: Lane[Ready] = Lane(Health(), 0)
    off.keep(b"request", Ready(cached(), 1))
    assert len(off) == 0


def test_what_the_lane_answers_is_in_the_metrics() -> None:
    observer = Observer()
    observer.tally("http", "resolve").add(0.000_020, 2)
    observer.tally("http", "resolve").add(0.3)
    page = observer.page().decode()
    named = 'front="http",operation="resolve",outcome="ok"'
    assert f"biaojie_requests_total{{{named}}} 3.0" in page
    within = 'front="http",le="0.0005",operation="resolve",outcome="ok"'
    assert f"biaojie_request_seconds_bucket{{{within}}} 2.0" in page
    assert f"biaojie_request_seconds_sum{{{named}}} 0.30002" in page
