"""Some of the records changed and retired one by one, over their blocks, and read back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice
from typing import Final

from biaojie.identifier import Identifier
from biaojie.record import Status, Value
from registry.admission import SYSTEM
from registry.operations import Condition, Modify, Operation, Retire
from registry.registrar import Registrar
from registry.store import ReadStore

from .plan import Expected, Plan
from .reading import WrongAnswer, fault_in, key_of

_BATCH: Final = 1_000
_NOTE: Final = 9
_RETIRED_EACH: Final = 10
"""Of so many one is retired, the others get another value."""


def sample(plan: Plan, count: int) -> list[int]:
    """Numbers of the records to change: the same for the same plan."""
    chosen = random.Random(f"{plan.seed} change")  # noqa: S311  (which names to change)
    return sorted(chosen.sample(range(plan.total), min(count, plan.total)))


def _note(number: int) -> bytes:
    return f"inspected {number}".encode()


async def change(registrar: Registrar, plan: Plan, numbers: Sequence[int]) -> None:
    """Change and retire; those that were already, by a run that was killed, stay as they are."""
    at = 0
    while batch := list(islice(numbers, at, at + _BATCH)):
        operations: list[Operation] = []
        for place, number in enumerate(batch, at):
            wanted = plan.expected(number)
            name, first = Identifier(wanted.prefix, wanted.suffix), Condition(version=1)
            if place % _RETIRED_EACH == 0:
                operations.append(Retire(name, first))
            else:
                note = Value(_NOTE, "NOTE", _note(number))
                operations.append(Modify(name, (note,), condition=first))
        await registrar.submit(SYSTEM, operations, mode="valid-rows")
        at += len(batch)


async def check(store: ReadStore, plan: Plan, numbers: Sequence[int]) -> None:
    """Raise WrongAnswer unless each is as `change` left it."""
    for at in range(0, len(numbers), _BATCH):
        some = list(enumerate(numbers[at : at + _BATCH], at))
        wanted = [_changed(place, plan.expected(number), number) for place, number in some]
        found = await store.look_up([key_of(each) for each, _ in wanted])
        for (each, status), (_, record) in zip(wanted, found, strict=True):
            if fault := fault_in(record, each, status):
                raise WrongAnswer(
                    f"{each.prefix}/{each.suffix}, changed: it {fault}.",
                    f"{each.prefix}/{each.suffix} 变更后有误（{fault}）。",
                )


def _changed(place: int, before: Expected, number: int) -> tuple[Expected, Status]:
    if place % _RETIRED_EACH == 0:
        return before._replace(values=()), Status.RETIRED
    values = (*before.values, (_NOTE, "NOTE", _note(number)))
    return before._replace(values=values), Status.ACTIVE
