"""Look-ups one after another, each answer held against what its number says it must be."""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from biaojie.identifier import Identifier, Key
from biaojie.record import Record, Status
from registry.store import ReadStore

from ..words import BenchFault
from .plan import Expected, Plan

_BATCH: Final = 5_000


class WrongAnswer(BenchFault):
    """The registry does not hold what was put into it. Exit code 1."""


@dataclass(frozen=True, slots=True)
class Reading:
    """`count` look-ups of one name each, by one caller. Times in milliseconds; `wall_s` and
    `cpu_s` of this process while it asked; `disk_octets` were read from the disk by it."""

    what: str
    count: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    wall_s: float
    cpu_s: float
    disk_octets: int


def fault_in(record: Record | None, wanted: Expected, status: Status = Status.ACTIVE) -> str:
    """What is wrong with an answer; empty if nothing is."""
    if record is None:
        return "is not found"
    if (record.identifier.prefix, record.identifier.suffix) != (wanted.prefix, wanted.suffix):
        return f"is answered as {record.identifier}"
    if record.status is not status or record.template != wanted.template:
        return f"is {record.status} of template {record.template}"
    if tuple((v.index, v.type, v.data) for v in record.values) != wanted.values:
        return "has other values"
    return ""


def key_of(wanted: Expected) -> Key:
    return Identifier(wanted.prefix, wanted.suffix).key()


async def read(store: ReadStore, plan: Plan, what: str, numbers: Iterable[int]) -> Reading:
    """Look up the records with these numbers. Raises WrongAnswer on the first wrong answer."""
    took = array("d")
    wall = busy = 0.0
    octets = 0
    coming = iter(numbers)
    while batch := list(islice(coming, _BATCH)):
        wanted = [plan.expected(number) for number in batch]
        keys = [[key_of(each)] for each in wanted]
        records: list[Record | None] = []
        before, began, cpu = disk_octets_read(), time.perf_counter(), time.process_time()
        for key in keys:
            asked = time.perf_counter()
            [found] = await store.look_up(key)
            took.append(time.perf_counter() - asked)
            records.append(found.record)
        wall += time.perf_counter() - began
        busy += time.process_time() - cpu
        octets += disk_octets_read() - before
        for each, record in zip(wanted, records, strict=True):
            if fault := fault_in(record, each):
                raise WrongAnswer(
                    f"{each.prefix}/{each.suffix} {fault}.",
                    f"{each.prefix}/{each.suffix} 的应答有误（{fault}）。",
                )
    in_order = sorted(took)

    def at(share: float) -> float:
        return in_order[min(int(len(in_order) * share), len(in_order) - 1)] * 1_000

    return Reading(what, len(took), at(0.5), at(0.99), at(1.0), wall, busy, octets)


def spread(total: int, count: int, seed: int) -> Sequence[int]:
    """Numbers drawn from all, evenly."""
    drawn = random.Random(seed)  # noqa: S311  (which names to ask for)
    return array("Q", (drawn.randrange(total) for _ in range(count)))


def recent(total: int, count: int, seed: int) -> Sequence[int]:
    """The last numbers of all, each once, in no order."""
    numbers = list(range(max(total - count, 0), total))
    random.Random(seed).shuffle(numbers)  # noqa: S311
    return array("Q", numbers)


def repeated(numbers: Sequence[int], few: int, count: int) -> Iterator[int]:
    """The first few of them again and again, `count` in all."""
    few = min(few, len(numbers))
    return (numbers[at % few] for at in range(count))


def disk_octets_read() -> int:
    """By this process, from the disk itself and not from memory; 0 where that is not told."""
    try:
        for line in Path("/proc/self/io").read_text().splitlines():
            if line.startswith("read_bytes:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
