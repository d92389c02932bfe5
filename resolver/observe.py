"""What the node says of itself: metrics for Prometheus, log lines of requests.

Metrics belong to a node object, not to the process, so that several nodes in one process
never mix. Nothing here ever sees a key: log events name key ids only.
"""

from __future__ import annotations

import ipaddress
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.utils import floatToGoString

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
FAST_S = _SECONDS[0]
"""A request that took less is in the first bucket of its `Tally`."""
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_CROWDED = frozenset({"over-capacity", "too-many-requests"})
CROWDED_LINE_S = 0.1
"""Between two log lines of one kind of them: writing more would cost more than refusing does."""
LINES_MAX = 100
"""Log lines in a second of others of one kind, so that a flood of unknown names is none of lines;
the first after that says how many were `left_out`."""
RESOLVING = frozenset({"resolve", "resolve-many", "page", "handle-get", "resolution"})
"""Operations that resolve, under their names at all fronts."""
METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
log = structlog.get_logger("biaojie.request")


class _Said:
    """How many of one kind got a log line, from `since` on."""

    __slots__ = ("left_out", "lines", "since")

    def __init__(self) -> None:
        self.since = 0.0
        self.lines = self.left_out = 0

    def more(self, crowded: bool) -> bool:
        """Whether one more is to have a line. `crowded`: it is refused because there are too many,
        which one in a while says for all."""
        now = time.monotonic()
        if now - self.since >= (CROWDED_LINE_S if crowded else 1.0):
            self.since, self.lines = now, 0
        if self.lines >= (1 if crowded else LINES_MAX):
            self.left_out += 1
            return False
        self.lines += 1
        return True


class Tally:
    """Requests of one front, operation and outcome: how many, and how long they took. For one
    event loop: no lock, so that counting costs the express lane next to nothing. `said`: of which
    there were log lines."""

    __slots__ = ("buckets", "said", "seconds")

    def __init__(self) -> None:
        self.said = _Said()
        self.seconds = 0.0
        self.buckets = [0] * (len(_SECONDS) + 1)

    def add(self, seconds: float, count: int = 1) -> None:
        """`count` requests that together took `seconds`."""
        self.seconds += seconds
        self.buckets[bisect_left(_SECONDS, seconds / count)] += count

    def leave_out(self, seconds: float) -> None:
        """One request of a kind that has had its log line just now."""
        self.add(seconds)
        self.said.left_out += 1

    @property
    def count(self) -> int:
        return sum(self.buckets)


class Observer:
    """Counts and logs. `slow_s` is from when on a good request is worth a log line."""

    def __init__(self, *, slow_s: float = 1.0, truncate_addresses: bool = True) -> None:
        self.slow_s = slow_s
        self.truncate_addresses = truncate_addresses
        self.look_up_s = 0.0
        """How long the last look-up in the registry took."""
        self.registry = CollectorRegistry()
        self._tallies: dict[tuple[str, str, str], Tally] = {}
        self.registry.register(_Requests(self._tallies))
        self._store_seconds = Histogram(
            "biaojie_store_seconds",
            "Seconds of one call to the registry store.",
            ("call", "outcome"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._look_up_keys = Histogram(
            "biaojie_look_up_keys",
            "Names gathered into one look-up.",
            buckets=_COUNTS,
            registry=self.registry,
        )
        self._commit_operations = Histogram(
            "biaojie_commit_operations",
            "Operations in one group commit.",
            buckets=_COUNTS,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def page(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self.registry)

    def watch(self, gauges: Callable[[], Mapping[str, float]], counters: bool = False) -> None:
        """Read numbers at scrape time: name → value, names without the `biaojie_` in front."""
        self.registry.register(_Readings(gauges, counters))

    # What the parts report --------------------------------------------------------------

    def tally(self, front: str, operation: str, outcome: str = "ok") -> Tally:
        """Where requests of this kind are counted; `answered` does, and the express lane."""
        named = (front, operation, outcome)
        tally = self._tallies.get(named)
        if tally is None:
            tally = self._tallies[named] = Tally()
        return tally

    @property
    def resolved(self) -> int:
        """Requests to resolve that were answered; one for many names counts as one."""
        return sum(
            tally.count
            for (_, operation, outcome), tally in self._tallies.items()
            if operation in RESOLVING and outcome == "ok"
        )

    def looked_up(self, keys: int, seconds: float, ok: bool) -> None:
        self.look_up_s = seconds
        self._look_up_keys.observe(keys)
        self._store_seconds.labels("look-up", "ok" if ok else "failed").observe(seconds)

    def committed(self, operations: int, seconds: float, ok: bool) -> None:
        self._commit_operations.observe(operations)
        self._store_seconds.labels("commit", "ok" if ok else "failed").observe(seconds)

    def answered(
        self,
        front: str,
        operation: str,
        outcome: str,
        seconds: float,
        *,
        request_id: str,
        peer: str,
        fault: BaseException | None = None,
    ) -> None:
        """One request is done. `outcome` is ok or the error code; bad ones get a log line,
        as long as there are not too many of a kind."""
        tally = self.tally(front, operation, outcome)
        tally.add(seconds)
        slow = seconds >= self.slow_s
        if outcome == "ok" and not slow:
            return
        left_out = 0
        if fault is None:
            said = tally.said
            if not said.more(outcome in _CROWDED):
                return
            left_out, said.left_out = said.left_out, 0
        event: dict[str, Any] = {
            "front": front,
            "operation": operation,
            "outcome": outcome,
            "ms": round(seconds * 1000, 1),
            "request_id": request_id,
            "peer": self.address(peer),
        }
        if left_out:
            event["left_out"] = left_out
        if fault is not None:
            log.error("request failed", **event, exc_info=fault)
        elif outcome == "ok":
            log.warning("request slow", **event)
        else:
            log.info("request refused", **event)

    def address(self, peer: str) -> str:
        """The address as it may be logged: cut to /24 or /48 unless the operator wants all."""
        if not self.truncate_addresses or not peer:
            return peer
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return ""
        keep = 24 if address.version == 4 else 48
        return str(ipaddress.ip_network(f"{address}/{keep}", strict=False).network_address)


class _Requests:
    """The tallies in the forms that Prometheus knows."""

    def __init__(self, tallies: Mapping[tuple[str, str, str], Tally]) -> None:
        self._tallies = tallies

    def collect(self) -> Iterator[Metric]:
        labels = ("front", "operation", "outcome")
        requests = CounterMetricFamily(
            "biaojie_requests",
            "Requests answered, by front, operation and outcome (ok or the error code).",
            labels=labels,
        )
        lasted = HistogramMetricFamily(
            "biaojie_request_seconds",
            "Seconds from the whole request to the reply, by front, operation and outcome.",
            labels=labels,
        )
        for named, tally in self._tallies.items():
            if not tally.count:
                continue
            requests.add_metric(named, tally.count)
            upto = accumulate(tally.buckets)
            bounds = [*map(floatToGoString, _SECONDS), "+Inf"]
            buckets = list(zip(bounds, upto, strict=True))
            lasted.add_metric(named, buckets, tally.seconds)
        yield requests
        yield lasted


class _Readings:
    def __init__(self, read: Callable[[], Mapping[str, float]], counters: bool) -> None:
        self._read = read
        self._family: Callable[[str, str], Metric] = (
            CounterMetricFamily if counters else GaugeMetricFamily
        )

    def collect(self) -> Iterator[Metric]:
        for name, value in self._read().items():
            family = self._family("biaojie_" + name, name.replace("_", " ").capitalize() + ".")
            family.add_metric([], value)  # type: ignore[attr-defined]
            yield family
