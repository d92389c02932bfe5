"""When a run asks for what: fixed before it starts, the same for the same seed.

Open loop: nothing here, and nothing that reads it, knows how the node is doing. A schedule is a
cycle of at most CYCLE_MAX arrivals that repeats, so that its memory is bounded however long the
run; its times go on.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import gcd
from pathlib import Path
from typing import Final, Literal

from .names import Names, read_trace
from .words import BenchFault

CYCLE_MAX: Final = 2**19
KINDS: Final = ("hit", "miss", "unknown", "auth")
"""hit: names that are asked for again and again. miss: names asked for once each, walking
through a reserve, so that no cache has them. unknown: names that are not registered. auth: hit
names with every cache bypassed, by the authoritative flag."""
UNKNOWN_MAX: Final = 2**40


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for. Names 0 to `names.count - cold` are the hit names, the rest the reserve.

    `mix` are the shares of KINDS, in any unit. `keys` is `uniform`, `zipf:S` or `trace:FILE`.
    """

    rate: float
    mix: Mapping[str, float]
    keys: str = "zipf:0.99"
    arrivals: Literal["poisson", "even"] = "poisson"
    seed: int = 1
    cold: int = 0


@dataclass(slots=True)
class Schedule:
    """`offsets_s` from the start of the cycle, rising; `kinds` index KINDS; `numbers` are of
    names. After the last arrival the cycle begins anew, `period_s` later."""

    offsets_s: array[float]
    kinds: bytearray
    numbers: array[int]
    period_s: float

    def __len__(self) -> int:
        return len(self.kinds)

    def arrivals(self) -> Iterator[tuple[float, int, int]]:
        """Offset, kind and number, without end."""
        base = 0.0
        while True:
            for offset, kind, number in zip(self.offsets_s, self.kinds, self.numbers, strict=True):
                yield base + offset, kind, number
            base += self.period_s


def parse_mix(text: str) -> dict[str, float]:
    """`hit=90,miss=5,unknown=5`; raises BenchFault."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        kind, _, share = part.strip().partition("=")
        try:
            shares[kind] = float(share or "nan")
        except ValueError:
            shares[kind] = -1.0
        if kind not in KINDS or not 0 <= shares[kind] < float("inf"):
            raise BenchFault(
                f"The mix is like hit=90,miss=5,unknown=5 ({', '.join(KINDS)}), not {text!r}.",
                f"比例形如 hit=90,miss=5,unknown=5（{'、'.join(KINDS)}），而不是 {text!r}。",
            )
    if not sum(shares.values()):
        raise BenchFault("The mix adds up to nothing.", "比例之和为零。")
    return shares


class Keys:
    """Draws numbers of hit names. Popular names are scattered over all, not side by side."""

    def __init__(self, how: str, names: Names, hits: int, draw: random.Random) -> None:
        self._hits = hits
        self._draw = draw
        self._trace: Sequence[int] = ()
        self._next = 0
        self._weights: list[float] = []
        kind, _, rest = how.partition(":")
        if kind == "zipf":
            try:
                skew = float(rest)
            except ValueError:
                skew = -1.0
            if not 0 < skew <= 5:
                raise BenchFault("zipf:S needs S from 0 to 5.", "zipf:S 的 S 应在 0 至 5 之间。")
            self._weights = list(accumulate(rank**-skew for rank in range(1, hits + 1)))
            self._step = _coprime(hits)
        elif kind == "trace":
            self._trace = read_trace(Path(rest), names, CYCLE_MAX)
        elif how != "uniform":
            raise BenchFault(
                f"Keys are uniform, zipf:S or trace:FILE, not {how!r}.",
                f"keys 应为 uniform、zipf:S 或 trace:FILE，而不是 {how!r}。",
            )

    def next(self) -> int:
        if self._trace:
            self._next += 1
            return self._trace[(self._next - 1) % len(self._trace)]
        if self._weights:
            weights = self._weights
            rank = bisect(weights, self._draw.random() * weights[-1], 0, len(weights) - 1)
            return scattered(rank, self._hits, self._step)
        return self._draw.randrange(self._hits)


def scattered(rank: int, hits: int, step: int) -> int:
    """The name of that popularity; each rank has its own."""
    return rank * step % hits


def _coprime(hits: int) -> int:
    step = int(hits * 0.6180339887) | 1
    while gcd(step, hits) != 1:
        step += 2
    return step


def popular(hits: int, how_many: int) -> list[int]:
    """That many names, spread evenly over the ranks of popularity from the first on."""
    step = _coprime(hits)
    how_many = min(how_many, hits)
    return [scattered(k * hits // how_many, hits, step) for k in range(how_many)]


def plan(load: Load, names: Names, *, seconds: float, part: int = 0, parts: int = 1) -> Schedule:
    """The share of process `part` of `parts` in a load, for a run of `seconds`.

    The seed gives each part its own arrivals; together they have the rate of the load.
    """
    hits = names.count - load.cold
    if load.rate <= 0 or seconds <= 0:
        raise BenchFault("Rate and duration are more than 0.", "速率与时长应大于 0。")
    if hits < 1:
        raise BenchFault(
            f"Of {names.count} names {load.cold} are kept for misses: none is left for hits.",
            f"共 {names.count} 个标识，{load.cold} 个留作未命中：已无命中标识。",
        )
    if load.mix.get("miss") and not load.cold:
        raise BenchFault(
            "A mix with misses needs a reserve of names (--cold).",
            "含未命中的比例需要预留标识（--cold）。",
        )
    draw = random.Random(f"{load.seed} {part}")  # noqa: S311 # a schedule, no secret
    rate = load.rate / parts
    count = max(1, min(CYCLE_MAX, int(rate * seconds * 1.02) + 16))
    offsets = array("d")
    at = part / load.rate
    for _ in range(count):
        offsets.append(at)
        at += draw.expovariate(rate) if load.arrivals == "poisson" else 1 / rate
    period = at - offsets[0]
    shares = [load.mix.get(kind, 0.0) for kind in KINDS]
    kinds = bytearray(draw.choices(range(len(KINDS)), shares, k=count))
    keys = Keys(load.keys, names, hits, draw)
    cold = part
    numbers = array("q")
    for kind in kinds:
        if KINDS[kind] == "miss":
            numbers.append(hits + cold % load.cold)
            cold += parts
        elif KINDS[kind] == "unknown":
            numbers.append(draw.randrange(UNKNOWN_MAX))
        else:
            numbers.append(keys.next())
    return Schedule(offsets, kinds, numbers, period)


def misses_repeat(load: Load, seconds: float) -> bool:
    """Whether the reserve is walked through more than once, so that "misses" may be hits."""
    share = load.mix.get("miss", 0.0) / sum(load.mix.values())
    return share * load.rate * seconds > load.cold if share else False
