"""Endpoints for many identifiers at once: resolve them, or register, replace and retire them.

Decoding runs in a thread when the body is large, so everything that costs time per row is
done there and not in the service.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from biaojie.change import BatchResult, RowResult
from biaojie.errors import (
    BatchRejected,
    BiaojieError,
    Elsewhere,
    Forbidden,
    IdempotencyMismatch,
    IdempotencyRunning,
    IdentifierNotFound,
    IdentifierRetired,
    IdentifierTaken,
    InvalidIdentifier,
    InvalidRecord,
    PrefixNotHere,
    PrefixSuspended,
    RecordFrozen,
    TooLarge,
    Unauthenticated,
    ValueReadOnly,
)
from biaojie.identifier import Identifier
from biaojie.limits import BATCH_ROWS_MAX
from biaojie.record import Status
from biaojie.wire import document
from registry.admission import Caller
from registry.operations import Create, Put, RecordOperation, Retire
from registry.registrar import Idempotency, Mode, Outcome

from ...service import REPLY_BYTES_MAX, Resolution, Service
from .endpoint import Asked, Endpoint, Reply, json_reply, write_headers
from .faults import validated
from .identifiers import BASE, status_of, values_of
from .models import BatchBody, BatchReply, BatchRow, ResolveBody, ResolvedReply

# Resolve --------------------------------------------------------------------------------

Parsed = list[tuple[str, Identifier | BiaojieError]]


def _parsed(asked: Asked) -> Parsed:
    parsed: Parsed = []
    for text in asked.body_as(ResolveBody).identifiers:
        try:
            parsed.append((text, Identifier.parse(text)))
        except InvalidIdentifier as error:
            parsed.append((text, error))
    return parsed


async def _resolve_many(
    service: Service, caller: Caller, parsed: Parsed
) -> list[tuple[str, Resolution | BiaojieError]]:
    good = [identifier for _, identifier in parsed if isinstance(identifier, Identifier)]
    found = iter(await service.resolve_many(good, caller))
    return [(text, next(found) if isinstance(item, Identifier) else item) for text, item in parsed]


def _encode_many(asked: Asked, answers: list[tuple[str, Resolution | BiaojieError]]) -> Reply:
    items: list[dict[str, Any]] = []
    octets = 0
    for text, found in answers:
        answer = found
        if not isinstance(answer, BiaojieError):
            octets += sum(len(value.data) for value in answer.record.values)
            if octets > REPLY_BYTES_MAX:
                answer = TooLarge(
                    "The reply is full; ask again for this one.", "回复已满；请再次查询该标识。"
                )
        if isinstance(answer, BiaojieError):
            detail = answer.detail
            items.append(
                {
                    "identifier": text,
                    "code": answer.code,
                    "detail": detail.en,
                    "detail_zh": detail.zh,
                }
            )
        else:
            items.append(
                {
                    "identifier": text,
                    "record": document.encode_record(answer.record),
                    "source": answer.source.value,
                    "age_s": answer.age_s,
                }
            )
    return json_reply({"items": items})


# Write ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Batch:
    mode: Mode
    dry_run: bool
    rows: list[RecordOperation | BiaojieError]
    texts: list[str]
    idempotency: Idempotency | None


def _row(given: Any) -> RecordOperation | BiaojieError:
    try:
        row = validated(BatchRow, given, "row")
        identifier = Identifier.parse(row.identifier)
        if row.action == "retire":
            return Retire(identifier)
        values, status = values_of(row.values), status_of(row.status)
        if row.action == "put":
            return Put(identifier, values, status, row.template)
        return Create(identifier, values, status or Status.ACTIVE, row.template)
    except BiaojieError as error:
        return error


def _batch(asked: Asked) -> _Batch:
    body = asked.body_as(BatchBody)
    if len(body.rows) > BATCH_ROWS_MAX:
        raise TooLarge(
            f"{len(body.rows)} rows; a batch takes {BATCH_ROWS_MAX}.",
            f"共 {len(body.rows)} 行；单批上限为 {BATCH_ROWS_MAX} 行。",
            rows_max=BATCH_ROWS_MAX,
        )
    texts = [
        str(given.get("identifier", ""))[:300] if isinstance(given, dict) else ""
        for given in body.rows
    ]
    return _Batch(
        body.mode, body.dry_run, [_row(given) for given in body.rows], texts, asked.idempotency()
    )


async def _write_batch(service: Service, caller: Caller, batch: _Batch) -> tuple[BatchResult, bool]:
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


def _rows(batch: _Batch, outcome: Outcome) -> tuple[RowResult, ...]:
    results = iter(outcome.results)
    rows = []
    for number, (row, text) in enumerate(zip(batch.rows, batch.texts, strict=True), start=1):
        result = row if isinstance(row, BiaojieError) else next(results)
        if isinstance(result, BiaojieError):
            rows.append(RowResult(number, text, None, result.code, *result.detail))
        else:
            rows.append(RowResult(number, result.identifier, result))
    return tuple(rows)


def _encode_batch(asked: Asked, answer: tuple[BatchResult, bool]) -> Reply:
    result, replayed = answer
    return json_reply(document.encode_batch(result), 200, write_headers(replayed))


ENDPOINTS: tuple[Endpoint[Any, Any], ...] = (
    Endpoint(
        "POST",
        BASE + ":resolve",
        "resolve-many",
        "identifiers",
        "Resolve up to 1,000 identifiers at once",
        _parsed,
        _resolve_many,
        _encode_many,
        body=ResolveBody,
        reply=ResolvedReply,
        public=True,
    ),
    Endpoint(
        "POST",
        BASE + ":batch",
        "batch",
        "identifiers",
        "Register, replace or retire up to 2,000 identifiers at once",
        _batch,
        _write_batch,
        _encode_batch,
        body=BatchBody,
        reply=BatchReply,
        errors=(Unauthenticated, BatchRejected, IdempotencyMismatch, IdempotencyRunning),
        headers=("Idempotency-Key",),
    ),
)
