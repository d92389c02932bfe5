"""The metrics of all workers on one page, whichever is asked: each sample with the worker it is
of. Who does not tell its own in time shows as down and nothing more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Any, Final

import msgpack
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from .neighbours import NeighbourFault, Neighbours

KIND: Final = b"m"
ASK_S: Final = 1.0
_Family = tuple[str, str, str, list[tuple[str, dict[str, str], float]]]


class SharedMetrics:
    """`page()` is what GET /metrics answers; `registry` has this worker's own."""

    def __init__(self, registry: CollectorRegistry, neighbours: Neighbours) -> None:
        self._registry = registry
        self._neighbours = neighbours
        neighbours.on_call[KIND] = self._asked

    async def page(self) -> bytes:
        others = self._neighbours.others
        told = await asyncio.gather(*map(self._ask, others))
        workers: dict[int, list[_Family] | None] = dict(zip(others, told, strict=True))
        workers[self._neighbours.slot] = families(self._registry)
        return joined_page(workers)

    async def _ask(self, slot: int) -> list[_Family] | None:
        asking = self._neighbours.ask(slot, KIND, b"", timeout_s=ASK_S)
        try:
            async with aclosing(asking) as parts:
                found: list[_Family] = msgpack.unpackb(await anext(parts))
                return found
        except (NeighbourFault, StopAsyncIteration):
            return None

    async def _asked(self, question: bytes) -> AsyncGenerator[bytes, None]:
        yield msgpack.packb(families(self._registry))


def families(registry: CollectorRegistry) -> list[_Family]:
    """All metrics as values that can be sent."""
    return [
        (
            metric.name,
            metric.documentation,
            metric.type,
            [(sample.name, dict(sample.labels), sample.value) for sample in metric.samples],
        )
        for metric in registry.collect()
    ]


def joined_page(workers: dict[int, list[_Family] | None]) -> bytes:
    """Prometheus text; None for a worker that did not tell."""
    up = GaugeMetricFamily(
        "biaojie_worker_up", "Whether the worker told its metrics.", labels=("worker",)
    )
    joined: dict[str, Metric] = {}
    for slot, told in sorted(workers.items()):
        up.add_metric((str(slot),), float(told is not None))
        for name, documentation, type_, samples in told or ():
            family = joined.setdefault(name, Metric(name, documentation, type_))
            for sample, labels, value in samples:
                family.add_sample(sample, {"worker": str(slot), **labels}, value)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Known((up, *joined.values())))
    return generate_latest(registry)


class _Known:
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics: Any = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics
