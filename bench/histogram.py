"""Latencies as HDR histograms: microseconds up to a minute, three significant digits.

What is in one process travels to another as text, and is added there without loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from .words import missing_extra

try:
    from hdrh.histogram import HdrHistogram
except ImportError as error:
    raise missing_extra(error) from None

LOWEST_US: Final = 1
HIGHEST_US: Final = 60_000_000
DIGITS: Final = 3
PERCENTILES: Final = (50.0, 75.0, 90.0, 99.0, 99.9, 99.99)


class Histogram:
    """`add_us` takes any whole number; what is out of range counts as the end of it."""

    __slots__ = ("_hdr", "_record")

    def __init__(self, encoded: str | None = None) -> None:
        self._hdr = (
            HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
            if encoded is None
            else HdrHistogram.decode(encoded.encode())
        )
        self._record = self._hdr.record_value

    def add_us(self, value: int, count: int = 1) -> None:
        self._record(min(max(value, LOWEST_US), HIGHEST_US), count)

    def encode(self) -> str:
        return str(self._hdr.encode().decode())

    def merge(self, other: Histogram) -> None:
        self._hdr.add(other._hdr)

    @property
    def count(self) -> int:
        return int(self._hdr.get_total_count())

    def percentile_ms(self, percentile: float) -> float:
        """0 where nothing was recorded."""
        if not self.count:
            return 0.0
        return float(self._hdr.get_value_at_percentile(percentile)) / 1e3

    def max_ms(self) -> float:
        return float(self._hdr.get_max_value()) / 1e3 if self.count else 0.0

    def mean_ms(self) -> float:
        return float(self._hdr.get_mean_value()) / 1e3 if self.count else 0.0

    def summary(self) -> dict[str, float]:
        """`mean_ms`, `max_ms` and `p50_ms` … `p99.99_ms`."""
        found = {"count": self.count, "mean_ms": round(self.mean_ms(), 4)}
        for percentile in PERCENTILES:
            found[f"p{percentile:g}_ms"] = round(self.percentile_ms(percentile), 4)
        return {**found, "max_ms": round(self.max_ms(), 4)}

    def curve(self) -> list[tuple[float, float]]:
        """Percentile and milliseconds, for a plot: from the median as far as there is more than
        one value beyond."""
        nines = [1 - 0.5 * 10 ** (-step / 8) for step in range(41)]
        nines = [share for share in nines if (1 - share) * self.count >= 1] or nines[:1]
        return [(100 * share, self.percentile_ms(100 * share)) for share in nines]


def merged(encoded: Iterable[str]) -> Histogram:
    whole = Histogram()
    for text in encoded:
        whole.merge(Histogram(text))
    return whole


def from_pairs(pairs: Iterable[tuple[int, int] | list[Any]]) -> Histogram:
    """From microseconds and how often they occurred."""
    whole = Histogram()
    for value, count in pairs:
        whole.add_us(int(value), int(count))
    return whole
