"""The verdicts on a node under overload."""

from __future__ import annotations

import pytest

from bench.overload import judge_beside, judge_capacity, medians, normal_after, table

CAPACITY = {
    "peak": 4_000.0,
    "offered": 20_000.0,
    "right": 3_600.0,
    "goodput": 0.9,
    "cpu_goodput": 0.79,
    "cpu_share": 0.95,
    "refused": 16_400.0,
    "failed": 0.0,
    "reference_p99_ms": 40.0,
    "accepted_p50_ms": 40.0,
    "accepted_p99_ms": 79.0,
    "refused_p50_ms": 5.0,
    "refused_p99_ms": 40.0,
    "normal_after_s": 1.0,
    "probed": 10,
    "without_retry_after": 0,
}
BESIDE = {
    "rate": 1_000.0,
    "alone": 1_000.0,
    "beside": 980.0,
    "loss": 0.02,
    "refused": 0.0,
    "failed": 0.0,
    "alone_p99_ms": 30.0,
    "beside_p99_ms": 50.0,
    "growth_octets": 2**20,
    "loud_right": 200.0,
    "loud_refused": 9_000.0,
}


def test_what_is_promised_passes() -> None:
    assert all(judge_capacity(CAPACITY).values())
    assert all(judge_beside(BESIDE).values())


@pytest.mark.parametrize(
    ("name", "figure", "check"),
    [
        ("goodput", 0.79, "goodput"),
        ("accepted_p99_ms", 81.0, "accepted"),
        ("refused_p99_ms", 51.0, "refused"),
        ("without_retry_after", 1, "retry-after"),
        ("normal_after_s", 6.0, "normal"),
    ],
)
def test_each_check_of_capacity_can_fail(name: str, figure: float, check: str) -> None:
    judged = judge_capacity(CAPACITY | {name: figure})
    assert [failed for failed, good in judged.items() if not good] == [check]


@pytest.mark.parametrize(
    ("name", "figure", "check"),
    [
        ("loss", 0.051, "throughput"),
        ("beside_p99_ms", 61.0, "p99"),
        ("growth_octets", 65 * 2**20, "memory"),
    ],
)
def test_each_check_beside_others_can_fail(name: str, figure: float, check: str) -> None:
    judged = judge_beside(BESIDE | {name: figure})
    assert [failed for failed, good in judged.items() if not good] == [check]


def test_when_all_is_as_usual_again() -> None:
    calm = [100, 0, 0, 0, 9_000]
    assert normal_after([calm] * 5) == 0
    assert normal_after([[60, 40, 0, 0, 9_000], calm, [99, 0, 1, 0, 9_000], calm]) == 3
    assert normal_after([calm, [100, 0, 0, 0, 51_000]]) == 2


def test_the_table_says_what_is_not_met() -> None:
    found = {
        "capacity http": {"median": CAPACITY, "checks": judge_capacity(CAPACITY)},
        "tenant": {"median": BESIDE, "checks": judge_beside(BESIDE | {"loss": 0.5})},
    }
    shown = table(found)
    assert "| http |" in shown
    assert "90%" in shown
    assert "all held" in shown
    assert "**not held: throughput**; held: p99, memory" in shown
    assert medians([{"a": 1.0}, {"a": 9.0}, {"a": 2.0}]) == {"a": 2.0}
