"""The search for the highest rate that a node keeps up with.

Rates are doubled until one is too high, then the gap is halved (in ratio) until it is small. A
rate that fails is tried once more before it counts, for one pause of the machine is no limit of
the node. The rate found is then held for the whole duration; that run is the result.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

STEPS_MAX: Final = 24
CONFIRMATIONS_MAX: Final = 8
BACK_OFF: Final = 0.9
KEPT_UP: Final = 0.98
"""Share of the questions of a step that must have been answered rightly within it."""

Attempt = Callable[[float, bool], Awaitable[dict[str, Any]]]
"""Runs at a rate, for the whole duration if the flag says so, and gives the result."""


@dataclass(frozen=True, slots=True)
class Goal:
    """`precision` is the ratio of the rates between which the limit is known to lie."""

    p99_ms: float = 10.0
    start_rate: float = 1_000.0
    rate_max: float = 5_000_000.0
    precision: float = 1.05


def shortfall(result: Mapping[str, Any], p99_ms: float) -> str:
    """Why a run does not meet the goal; empty if it does."""
    counts = result["counts"]
    if counts["wrong"]:
        return "wrong"
    if counts["failed"] or counts["refused"]:
        return "errors"
    if result["latency"]["p99_ms"] > p99_ms:
        return "p99"
    if counts["right"] < KEPT_UP * counts["scheduled"]:
        return "behind"
    return ""


async def search(attempt: Attempt, goal: Goal, told: Callable[[str], None]) -> dict[str, Any]:
    """The result of the run at the highest rate, with the search's steps under `peak`.

    `peak.limited_by` is `generator` where this generator gave out before the node did: then the
    rate is a floor. It is `node` otherwise, and `bound` where `rate_max` was held.
    """
    steps: list[dict[str, Any]] = []

    async def holds(rate: float) -> tuple[bool, dict[str, Any]]:
        for _ in range(2):
            result = await attempt(rate, False)
            why = shortfall(result, goal.p99_ms)
            steps.append(_step(rate, result, why))
            told(_line(steps[-1]))
            if not why or why == "wrong":
                break
        return not why, result

    low, high = 0.0, float("inf")
    rate = goal.start_rate
    limited_by = "node"
    result: dict[str, Any] = {}
    while len(steps) < STEPS_MAX and (low == 0 or high / low > goal.precision):
        good, result = await holds(rate)
        if result["counts"]["wrong"]:
            return {**result, "peak": _told(goal, steps, 0.0, "node")}
        if good:
            low = rate
            # Late is not too weak: lateness makes what was measured worse, never better.
            if any(why["code"] == "busy" for why in result["lagged"]):
                limited_by = "generator"
                break
            if rate >= goal.rate_max:
                limited_by = "bound"
                break
        else:
            high = rate
            # What a lagging generator fails at says nothing of the node.
            limited_by = "generator" if result["lagged"] else "node"
        if high == float("inf"):
            rate = min(rate * 2, goal.rate_max)
        elif low:
            rate = (low * high) ** 0.5
        elif rate > 1:
            rate /= 4
        else:
            break
    if not low:
        return {**result, "peak": _told(goal, steps, 0.0, limited_by)}
    for _ in range(CONFIRMATIONS_MAX):
        result = await attempt(low, True)
        why = shortfall(result, goal.p99_ms)
        steps.append({**_step(low, result, why), "whole": True})
        told(_line(steps[-1]))
        if not why or why == "wrong":
            break
        low *= BACK_OFF
    held = low if not why else 0.0
    return {**result, "peak": _told(goal, steps, held, limited_by)}


def _step(rate: float, result: Mapping[str, Any], why: str) -> dict[str, Any]:
    return {
        "rate": round(rate, 1),
        "p99_ms": result["latency"]["p99_ms"],
        "failed": result["counts"]["failed"] + result["counts"]["refused"],
        "lagged": bool(result["lagged"]),
        "shortfall": why,
    }


def _told(goal: Goal, steps: list[dict[str, Any]], rate: float, limited_by: str) -> dict[str, Any]:
    return {
        "rate": round(rate, 1),
        "limit_p99_ms": goal.p99_ms,
        "limited_by": limited_by,
        "steps": steps,
    }


def _line(step: Mapping[str, Any]) -> str:
    from .words import say

    if not step["shortfall"]:
        verdict = say("held", "达标")
    else:
        en = {"wrong": "WRONG", "errors": "errors", "p99": "p99 too long", "behind": "behind"}
        zh = {"wrong": "应答错误", "errors": "有失败", "p99": "p99 超限", "behind": "跟不上"}
        verdict = say(en[step["shortfall"]], zh[step["shortfall"]])
    lag = say(", generator lagged", "，压测程序自身落后") if step["lagged"] else ""
    return say(
        f"{step['rate']:>11,.0f}/s   p99 {step['p99_ms']:8.2f} ms   {verdict}{lag}",
        f"{step['rate']:>11,.0f}/秒   p99 {step['p99_ms']:8.2f} 毫秒   {verdict}{lag}",
    )
