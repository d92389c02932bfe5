"""bench-peers and its kin without running anything: ratios, marks, tables, octets, verdicts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import results
from bench.peers import work
from bench.peers.table import (
    GROUPS,
    MARKS,
    Mark,
    Spread,
    group_table,
    judge,
    judge_p99,
    marks_table,
    number,
    paced_table,
    ratio,
)
from bench.programs import Sample
from bench.soak import Seen, Segment, slope_per_hour
from bench.soak import judge as judge_soak
from bench.words import BenchFault


def sample(rate: float, cpu_s: float = 1.0, **more: float) -> Sample:
    return replace(Sample(int(rate * 2), 2.0, cpu_s, 0.5), **more)


def test_a_ratio_is_taken_within_each_round() -> None:
    ours = [sample(100), sample(50), sample(90)]
    theirs = [sample(200), sample(50), sample(100)]
    # The medians alone would say 90 / 100; the rounds say 0.5, 1 and 0.9.
    assert ratio(ours, theirs, "wall") == Spread(0.9, 0.5, 1.0)


def test_ratios_by_processor_and_by_wall_differ() -> None:
    ours, theirs = [sample(100, cpu_s=1.0)], [sample(200, cpu_s=0.5)]
    assert ratio(ours, theirs, "wall") == Spread(0.5, 0.5, 0.5)
    assert ratio(ours, theirs, "cpu") == Spread(0.25, 0.25, 0.25)


def test_no_ratio_to_what_was_not_measured() -> None:
    assert ratio([sample(1)], [], "wall") is None
    assert ratio([sample(1)], [sample(1, cpu_s=0.0)], "cpu") is None


MARK = Mark("a mark", "ours", "theirs", 0.5, 0.7)


@pytest.mark.parametrize(
    ("ours", "verdict"), [(49, "missed"), (50, "met"), (69, "met"), (70, "stretch")]
)
def test_a_mark_is_met_from_its_floor_on(ours: int, verdict: str) -> None:
    judged = judge(MARK, {"ours": [sample(ours)], "theirs": [sample(100)]})
    assert judged.verdict == verdict
    assert judged.by == "cpu"


def test_a_miss_is_not_hidden() -> None:
    judged = judge(MARK, {"ours": [sample(49)], "theirs": [sample(100)]})
    assert "**missed**" in marks_table([judged])
    assert "0.49" in marks_table([judged])


def test_a_peer_without_processor_time_is_judged_on_the_wall() -> None:
    samples = {"ours": [sample(80)], "theirs": [sample(100, cpu_s=0.0)]}
    judged = judge(MARK, samples)
    assert (judged.by, judged.verdict, judged.other) == ("wall", "stretch", None)


def test_what_was_not_measured_says_so() -> None:
    assert judge(MARK, {}).verdict == "not measured"


def test_every_mark_is_of_lines_of_the_table() -> None:
    keys = {line.key for group in GROUPS for line in group.lines}
    for mark in MARKS:
        assert {mark.subject, mark.basis} <= keys
        assert mark.stretch >= mark.floor
    assert len(keys) == sum(len(group.lines) for group in GROUPS)


def test_a_group_is_held_against_its_limit() -> None:
    group = GROUPS[0]
    samples = {"nginx.fixed": [sample(1000, lost=3)], "node.http": [sample(600)]}
    table = group_table(group, samples).splitlines()
    assert next(line for line in table if "biaojie" in line).split(" | ")[3:5] == [
        "0.6 (0.6–0.6)",
        "0.6 (0.6–0.6)",
    ]
    assert group_table(group, {}) == ""


@pytest.mark.parametrize(
    ("p99_ms", "lost", "stalled", "verdict"),
    [
        (2.9, 0, 0.0, "stretch"),
        (2.9, 0, 0.5, "stretch"),  # a disturbance makes it worse, never better
        (9.9, 0, 0.0, "met"),
        (11.0, 0, 0.0, "**missed**"),
        (2.0, 1, 0.0, "**missed**"),
        (11.0, 0, 0.1, "not measured: the machine was disturbed"),
    ],
)
def test_p99(p99_ms: float, lost: int, stalled: float, verdict: str) -> None:
    assert judge_p99(p99_ms, lost, stalled) == verdict


def test_the_table_of_p99() -> None:
    assert paced_table({}) == ""
    table = paced_table({"node.http": [sample(1000, p99_us=5_000.0)]})
    front = "HTTP GET, keep-alive, 64 connections"
    assert f"| {front} | 1,000 | 5 (5–5) | 0 | 0.0% | 0.0% | met |" in table


@pytest.mark.parametrize(
    ("figure", "text"),
    [(0, "0"), (0.123456, "0.123"), (12.345, "12.3"), (123.4, "123"), (123_456, "123,000")],
)
def test_three_figures(figure: float, text: str) -> None:
    assert number(figure) == text


# What peers are asked -------------------------------------------------------------------


def test_a_body_is_as_long_as_told_and_differs_by_name() -> None:
    bodies = {work.body_of(number, 250) for number in range(100)}
    assert len(bodies) == 100
    assert {len(body) for body in bodies} == {250}
    assert work.needle_of(7) in work.body_of(7, 250)
    assert work.needle_of(7) not in work.body_of(8, 250)


def test_a_question_over_dns() -> None:
    query = work.dns_query(5)
    assert query[:12] == bytes.fromhex("000000000001000000000000")
    assert query[12:] == b"\x0cb-0000000005\x05bench\x07example\x00\x00\x10\x00\x01"
    assert f'"{work.body_of(5, 60).decode()}"' in work.dns_zone(6, 60)


def test_redis_is_asked_for_what_it_was_given() -> None:
    assert work.redis_get(5) == b"*2\r\n$3\r\nGET\r\n$12\r\nB-0000000005\r\n"
    assert work.redis_set(5, 60).endswith(b"\r\n$60\r\n" + work.body_of(5, 60) + b"\r\n")


# Results --------------------------------------------------------------------------------


def test_only_its_own_part_of_the_results_is_replaced() -> None:
    text = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n<!-- y: begin -->\n<!-- y: end -->\n"
    new = results.replaced(text, "x", "new\n")
    assert new == text.replace("\nold\n", "\n\nnew\n\n")
    assert results.replaced(new, "x", "new") == new
    with pytest.raises(BenchFault):
        results.replaced(text, "z", "new")


def test_the_results_have_all_parts() -> None:
    text = results.FILE.read_text(encoding="utf-8")
    for part in ("peers", "memory", "overload", "soak"):
        assert results.replaced(text, part, "new") != text


# The soak's verdict ---------------------------------------------------------------------

SEGMENT = Segment(10_000, 0, 0, 0, 20, 4.0, False, 0.0)
MIB = 2**20


def seen(count: int, growth: int = 0, files: int = 0, processes: int = 3) -> list[Seen]:
    return [
        Seen(float(at), processes, 300 * MIB + at * growth, 100 + at * files) for at in range(count)
    ]


def test_a_steady_soak_passes() -> None:
    judged = judge_soak(seen(60), [SEGMENT] * 6)
    assert judged["passed"]
    assert (judged["answered"], judged["written"]) == (60_000, 120)


@pytest.mark.parametrize(
    ("watched", "segments", "failed"),
    [
        (seen(60, growth=2 * MIB), [SEGMENT] * 6, "memory"),
        (seen(60, files=1), [SEGMENT] * 6, "descriptors"),
        (seen(60), [SEGMENT] * 5 + [replace(SEGMENT, wrong=1)], "no wrong answer"),
        (seen(60), [SEGMENT] * 5 + [replace(SEGMENT, failed=100)], "answers"),
        (seen(60), [replace(SEGMENT, right=0)] * 6, "answers"),
        (seen(60), [SEGMENT] * 3 + [replace(SEGMENT, p99_ms=11.0)] * 3, "p99"),
    ],
)
def test_each_check_of_a_soak_can_fail(
    watched: list[Seen], segments: list[Segment], failed: str
) -> None:
    judged = judge_soak(watched, segments)
    assert not judged["passed"]
    assert [name for name, ok in judged["checks"].items() if not ok] == [failed]


def test_moments_with_old_and_new_workers_do_not_count_as_growth() -> None:
    restarting = [replace(one, processes=5, resident=600 * MIB) for one in seen(15)]
    assert judge_soak(seen(45) + restarting, [SEGMENT] * 6)["passed"]


def test_slope() -> None:
    assert slope_per_hour(seen(10, growth=MIB)) == pytest.approx(3600 * MIB)
    assert slope_per_hour(seen(1)) == 0
