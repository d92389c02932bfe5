"""What a submission comes to, and the form in which it is kept for an Idempotency-Key."""

from __future__ import annotations

from dataclasses import dataclass

import msgpack

from biaojie.change import Action, Receipt
from biaojie.errors import ERRORS, BiaojieError
from biaojie.making import maker

from .bulk import BulkOutcome


@dataclass(frozen=True, slots=True)
class Outcome:
    """One result per operation, in order. `sequence` is 0 when nothing was written."""

    results: tuple[Receipt | BiaojieError, ...]
    sequence: int
    replayed: bool = False

    def single(self) -> Receipt:
        """The receipt of the only operation; raises its error."""
        (result,) = self.results
        if isinstance(result, BiaojieError):
            raise result
        return result


make_outcome = maker(Outcome)


def pack(outcome: Outcome) -> bytes:
    packed: bytes = msgpack.packb(
        [
            outcome.sequence,
            [
                [r.code, r.detail.en, r.detail.zh]
                if isinstance(r, BiaojieError)
                else [r.identifier, r.action.value, str(r.status), r.version, r.sequence]
                for r in outcome.results
            ],
        ]
    )
    return packed


def pack_bulk(outcome: BulkOutcome) -> bytes:
    packed: bytes = msgpack.packb([outcome.sequence, outcome.count, outcome.refused])
    return packed


def unpack_bulk(reply: bytes) -> BulkOutcome:
    sequence, count, refused = msgpack.unpackb(reply)
    return BulkOutcome(sequence, count, tuple(refused), replayed=True)


def unpack(reply: bytes) -> Outcome:
    sequence, rows = msgpack.unpackb(reply)
    return Outcome(
        tuple(
            ERRORS[row[0]](row[1], row[2])
            if len(row) == 3
            else Receipt(row[0], Action(row[1]), row[2], row[3], row[4])
            for row in rows
        ),
        sequence,
        replayed=True,
    )
