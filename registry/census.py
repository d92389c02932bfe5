"""How many identifiers there are of each kind: by prefix, template, layer and state. Pure.

A name counts once, in the layer that answers for it; what is hidden beneath does not count. Each
commit says by how much it changes that (its shift), which is kept beside its entry of the change
log, outside the hashes. The sum of all shifts is the census.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

import msgpack

from biaojie.record import Record, Status

ALL_PREFIXES = ""


class Layer(StrEnum):
    ROWS = "rows"
    BLOCKS = "blocks"
    RANGES = "ranges"

    # That of an Enum is many times slower, and this is on the way of every commit.
    __hash__ = str.__hash__


class Kind(NamedTuple):
    """`prefix` is folded, ALL_PREFIXES stands for all; `template` is empty for none."""

    prefix: str
    template: str
    layer: Layer
    state: Status


Shift = Counter[Kind]
"""Identifiers more (or fewer) of each kind."""

# Numbers in the stored form: they stay what they are.
_STATES = (Status.DRAFT, Status.ACTIVE, Status.FROZEN, Status.RETIRED)
_SORTS = [(layer, state) for layer in Layer for state in _STATES]
_SORT_NUMBER = {sort: number for number, sort in enumerate(_SORTS)}
assert len(_STATES) == len(Status)


def kind_of(prefix: str, record: Record, layer: Layer) -> Kind:
    """Of a record under a folded prefix."""
    return Kind(prefix, record.template or "", layer, record.status)


def pack_shift(shift: Shift) -> bytes:
    packed: bytes = msgpack.packb(
        [
            [kind.prefix, kind.template, _SORT_NUMBER[kind.layer, kind.state], number]
            for kind, number in shift.items()
            if number
        ]
    )
    return packed


def unpack_shift(packed: bytes) -> Shift:
    """Raises ValueError on anything `pack_shift` did not write."""
    try:
        return Counter(
            {
                Kind(prefix, template, *_SORTS[sort]): int(number)
                for prefix, template, sort, number in msgpack.unpackb(packed)
            }
        )
    except Exception as error:
        raise ValueError(f"not a packed shift: {error}") from error


def added(shifts: Iterable[bytes | None]) -> Shift | None:
    """Their sum, also that of all prefixes together; None if one is not known."""
    total: Shift = Counter()
    for packed in shifts:
        if packed is None:
            return None
        for kind, number in unpack_shift(packed).items():
            total[kind] += number
            total[kind._replace(prefix=ALL_PREFIXES)] += number
    return total
