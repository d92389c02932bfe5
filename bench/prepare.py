"""Getting names into a node before a run, and checking that all are there as they should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from biaojie.calls import Row
from biaojie.client import Client
from biaojie.errors import BiaojieError, PrefixNotHere
from biaojie.limits import BATCH_ROWS_MAX, RESOLVE_MANY_MAX
from biaojie.record import Record, Value

from .names import VALUE_INDEX, VALUE_TYPE, Found, OwnNames
from .words import BenchFault

TENANT: Final = "bench"
CHUNK_OCTETS: Final = 2**20
"""Of values, in one request."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """How many names were there already, and how many had to be written."""

    there: int
    written: int


def value_of(names: OwnNames, number: int, generation: int) -> Value:
    return Value(VALUE_INDEX, VALUE_TYPE, names.data(number, generation))


def found_in(record: Record) -> Found:
    values = sorted(record.values, key=lambda value: value.index)
    return str(record.identifier), tuple((v.index, v.type, v.data) for v in values)


async def prepare(
    client: Client, names: OwnNames, told: Callable[[int, int], None] = lambda done, of: None
) -> Prepared:
    """Bring every name to generation 0, homing the prefix if nobody has.

    `told` hears how many of how many have been looked at. Raises BiaojieError, and BenchFault
    where a name cannot be written or is not what was written.
    """
    try:
        await client.prefixes.get(names.prefix)
    except PrefixNotHere:
        await client.prefixes.home(names.prefix, TENANT)
    there = written = 0
    rows_max = max(1, min(RESOLVE_MANY_MAX, CHUNK_OCTETS // names.value_octets))
    for chunk in chunks(names.count, rows_max):
        wrong = await _differing(client, names, chunk)
        there += len(chunk) - len(wrong)
        if wrong:
            rows = [Row(names.name(n), [value_of(names, n, 0)], action="put") for n in wrong]
            for result in await client.register_batch(rows, "valid-rows"):
                if not result.ok:
                    raise BenchFault(
                        f"{result.identifier} cannot be written: {result.en}",
                        f"无法写入 {result.identifier}：{result.zh}",
                    )
            written += len(wrong)
            lost = await _differing(client, names, wrong)
            if lost:
                raise BenchFault(
                    f"{names.name(lost[0])} was written and acknowledged, and reads otherwise.",
                    f"{names.name(lost[0])} 已确认写入，但读回内容不同。",
                )
        told(chunk[-1] + 1, names.count)
    return Prepared(there, written)


async def restore(client: Client, names: OwnNames, numbers: Sequence[int]) -> None:
    """Bring names that a run has written back to generation 0. Raises BiaojieError."""
    size = max(1, min(BATCH_ROWS_MAX, CHUNK_OCTETS // names.value_octets))
    for start in range(0, len(numbers), size):
        rows = [
            Row(names.name(number), [value_of(names, number, 0)], action="put")
            for number in numbers[start : start + size]
        ]
        await client.register_batch(rows)


def chunks(count: int, size: int) -> Iterator[list[int]]:
    for start in range(0, count, size):
        yield list(range(start, min(start + size, count)))


async def _differing(client: Client, names: OwnNames, numbers: list[int]) -> list[int]:
    answers = client.resolve_many([names.name(number) for number in numbers])
    wrong = []
    position = 0
    async for answer in answers:
        number = numbers[position]
        position += 1
        if isinstance(answer, BiaojieError) or (
            names.generation_of(number, found_in(answer.record)) != 0
        ):
            wrong.append(number)
    return wrong
