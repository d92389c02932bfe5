"""What is ready: it dies with its entry, and keeps it while it is asked for."""

from __future__ import annotations

from biaojie.identifier import Identifier
from biaojie.record import Record
from resolver.core import READY_BYTES, Cached, Ready
from resolver.health import Health
from resolver.lane import HITS, Lane
from resolver.observe import Observer
from resolver.steps.s3fifo import S3Fifo


class Reply(Ready):
    __slots__ = ("dead",)

    def __init__(self, entry: Cached, octets: int = 100) -> None:
        super().__init__(entry, octets)
        self.dead = False

    def die(self) -> None:
        self.dead = True


def cached() -> Cached:
    return Cached(Record(Identifier("88.118.8", "SN1"), ()), 0, 100, 700, 100)


def lane_of(health: Health | None = None, bytes_max: int = 1_000_000) -> Lane[Reply]:
    return Lane(health or Health(), bytes_max)


def test_all_that_was_made_of_an_entry_dies_with_it() -> None:
    lanes, entry, other = [lane_of(), lane_of()], cached(), cached()
    made = [Reply(entry) for _ in range(4)]
    for number, reply in enumerate(made):
        lanes[number % 2].keep(b"%d" % number, reply)
    lanes[0].keep(b"other", Reply(other))
    entry.bury()
    assert not entry.alive
    assert all(reply.dead for reply in made)
    assert [reply.dead for reply in lanes[0].everything.values()] == [True, True, False]
    lanes[1].keep(b"late", Reply(entry))
    assert b"late" not in lanes[1].everything
    for lane in lanes:
        for key in list(lane.everything):
            lane.drop(key)
        assert (len(lane), lane.bytes) == (0, 0)
    assert other.alive


def test_what_is_kept_no_longer_is_not_held_by_its_entry() -> None:
    """Dropped, replaced, pushed out, too large: in any order, only those that are kept."""
    lane, entry = lane_of(bytes_max=4 * READY_BYTES), cached()
    small = lane_of(bytes_max=1)
    gone = [Reply(entry, 0) for _ in range(3)]
    for reply in gone:
        lane.keep(b"replaced", reply)
    small.keep(b"too large", Reply(entry))
    kept = {reply for reply in gone if reply in lane.everything.values()}
    for number in range(50):
        reply = Reply(entry, 0)
        lane.keep(b"%d" % number, reply)
        if number % 7 == 3:
            lane.drop(b"%d" % number)
        if number % 3 == 0:
            lane.drop(next(iter(lane.everything), b""))
        kept = set(lane.everything.values())
        held = []
        after = entry._made
        while after is not None:
            held.append(after)
            after = after._after
        assert len(held) == len(set(held))
        assert set(held) == kept
    entry.bury()
    assert all(reply.dead for reply in kept)
    assert not any(reply.dead for reply in gone)


def test_what_is_asked_for_keeps_its_entry_in_the_cache() -> None:
    cache: S3Fifo[int, Cached] = S3Fifo(70_000, Cached.bury, Cached.count_hits)
    lane, hot = lane_of(), cached()
    cache.put(-1, hot)
    reply = Reply(hot)
    lane.keep(b"hot", reply)
    for number in range(1_000):
        if not number % 5:
            reply.hits = HITS
        cache.put(number, cached())
    assert hot.alive
    assert not reply.dead
    for number in range(1_000, 2_000):  # others are asked for, this one is not any more
        cache.put(number, cached())
        cache.entries[number].hits = 2
    assert not hot.alive
    assert reply.dead


def test_an_entry_that_left_the_cache_is_dead() -> None:
    cache: S3Fifo[int, Cached] = S3Fifo(7_000, Cached.bury)
    entries = [cached() for _ in range(20)]
    for number, entry in enumerate(entries):
        cache.put(number, entry)
    assert [e.alive for e in entries] == [n in cache.entries for n in range(20)]
    assert not all(e.alive for e in entries)


def test_nothing_made_of_a_dead_entry_is_left_to_the_collector() -> None:
    entry = cached()
    lane = lane_of()
    lane.keep(b"a", Reply(entry))
    lane.keep(b"b", Reply(entry))
    entry.bury()
    assert entry._made is None
    for reply in lane.everything.values():
        assert (reply._after, reply._before) == (None, None)


def test_while_the_registry_is_down_the_table_is_empty() -> None:
    health = Health()
    lane = lane_of(health)
    lane.keep(b"request", Reply(cached()))
    health.failed("test")
    assert not lane.table()
    health.answered()
    assert lane.table()


def test_it_is_bounded_in_bytes() -> None:
    lane = lane_of(bytes_max=100_000)
    for number in range(1_000):
        lane.keep(b"%d" % number, Reply(cached(), 1_000))
    assert lane.bytes <= 100_000
    assert len(lane) == 100_000 // (READY_BYTES + 1_000)
    off = lane_of(bytes_max=0)
    off.keep(b"request", Reply(cached(), 1))
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
