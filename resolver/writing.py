"""Writes whose answer is more than a receipt: batches, prefixes, keys. The same for every front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ulid import ULID

from biaojie.account import ApiKey, Prefix, PrefixStatus
from biaojie.change import BatchResult, RowResult
from biaojie.errors import (
    BatchRejected,
    BiaojieError,
    Elsewhere,
    Forbidden,
    IdentifierNotFound,
    IdentifierRetired,
    IdentifierTaken,
    InvalidIdentifier,
    InvalidRecord,
    PrefixNotHere,
    PrefixSuspended,
    RecordFrozen,
    Unauthenticated,
    ValueReadOnly,
)
from biaojie.identifier import Identifier
from biaojie.wire import document
from registry.admission import Caller
from registry.operations import ChangePrefix, HomePrefix, RecordOperation, RevokeKey
from registry.registrar import Idempotency, Mode, Outcome

from .service import Service


@dataclass(frozen=True, slots=True)
class Batch:
    """`rows` are operations, or why a row is none; `texts` the identifiers as they were sent."""

    mode: Mode
    dry_run: bool
    rows: Sequence[RecordOperation | BiaojieError]
    texts: Sequence[str]
    idempotency: Idempotency | None


async def write_batch(service: Service, caller: Caller, batch: Batch) -> tuple[BatchResult, bool]:
    """Every row's outcome, and whether they are those of an earlier request with the same key.
    Raises BatchRejected with all bad rows where none may be written for their sake."""
    good = [row for row in batch.rows if not isinstance(row, BiaojieError)]
    doomed = batch.mode == "all" and len(good) < len(batch.rows)
    outcome = Outcome((), 0)
    if good:
        try:
            # A doomed batch still runs dry, so that every bad row is named at once.
            outcome = await service.write(
                caller,
                good,
                mode="valid-rows" if doomed else batch.mode,
                dry_run=batch.dry_run or doomed,
                idempotency=None if doomed or batch.dry_run else batch.idempotency,
            )
        except BatchRejected as error:
            outcome = Outcome(error.fields["results"], 0)
            doomed = True
        except _ROW_ERRORS as error:  # the only row, refused as a single operation is
            outcome = Outcome((error,), 0)
            doomed = True
    elif caller.role is None:
        raise Unauthenticated()
    rows = _rows(batch, outcome)
    if doomed:
        bad = [document.encode_row(row) for row in rows if not row.ok]
        raise BatchRejected(
            f"{len(bad)} of {len(rows)} rows are bad; none was written.",
            f"{len(rows)} 行中有 {len(bad)} 行错误；整批未写入。",
            rows=bad,
        )
    result = BatchResult(batch.mode, batch.dry_run, outcome.sequence, rows)
    return result, outcome.replayed


_ROW_ERRORS = (
    InvalidIdentifier,
    InvalidRecord,
    Forbidden,
    PrefixNotHere,
    PrefixSuspended,
    Elsewhere,
    IdentifierNotFound,
    IdentifierRetired,
    IdentifierTaken,
    RecordFrozen,
    ValueReadOnly,
)


def _rows(batch: Batch, outcome: Outcome) -> tuple[RowResult, ...]:
    results = iter(outcome.results)
    rows = []
    for number, (row, text) in enumerate(zip(batch.rows, batch.texts, strict=True), start=1):
        result = row if isinstance(row, BiaojieError) else next(results)
        if isinstance(result, BiaojieError):
            rows.append(RowResult(number, text, None, result.code, *result.detail))
        else:
            rows.append(RowResult(number, result.identifier, result))
    return tuple(rows)


def minted(prefix: str, suffix_start: str) -> Identifier:
    """An identifier nobody has. A ULID sorts by time, so minted suffixes of one prefix lie
    together in the registry."""
    return Identifier(prefix, suffix_start + str(ULID()))


async def write_prefix(
    service: Service,
    caller: Caller,
    operation: HomePrefix | ChangePrefix,
    idempotency: Idempotency | None,
) -> tuple[Prefix, bool]:
    """The prefix as this request made it, whatever came after (a replay is the first reply
    again), and whether it is a replay."""
    outcome = await service.write(caller, [operation], idempotency=idempotency)
    receipt = outcome.single()
    now = await service.find_prefix(caller, operation.name)
    made = replace(
        now,
        tenant=operation.tenant or now.tenant,
        status=PrefixStatus(receipt.status),
        version=receipt.version,
        sequence=receipt.sequence,
        searchable=now.searchable if operation.searchable is None else operation.searchable,
    )
    return made, outcome.replayed


async def revoke_key(
    service: Service, caller: Caller, key_id: str, idempotency: Idempotency | None
) -> tuple[ApiKey, bool]:
    outcome = await service.write(caller, [RevokeKey(key_id)], idempotency=idempotency)
    outcome.single()
    return await service.find_key(caller, key_id), outcome.replayed
