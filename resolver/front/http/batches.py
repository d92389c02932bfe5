"""Endpoints for many identifiers at once: resolve them, or register, replace and retire them.

Decoding runs in a thread when the body is large, so everything that costs time per row is
done there and not in the service.
"""

from __future__ import annotations

from typing import Any

from biaojie.change import BatchResult
from biaojie.errors import (
    BatchRejected,
    BiaojieError,
    IdempotencyMismatch,
    IdempotencyRunning,
    InvalidIdentifier,
    TooLarge,
    Unauthenticated,
)
from biaojie.identifier import Identifier
from biaojie.limits import BATCH_ROWS_MAX
from biaojie.record import Status
from biaojie.wire import document
from registry.admission import Caller
from registry.operations import Create, Put, RecordOperation, Retire

from ...query import Resolution
from ...service import REPLY_BYTES_MAX, Service
from ...writing import Batch, write_batch
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


def _batch(asked: Asked) -> Batch:
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
    return Batch(
        body.mode, body.dry_run, [_row(given) for given in body.rows], texts, asked.idempotency()
    )


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
        write_batch,
        _encode_batch,
        body=BatchBody,
        reply=BatchReply,
        errors=(Unauthenticated, BatchRejected, IdempotencyMismatch, IdempotencyRunning),
        headers=("Idempotency-Key",),
    ),
)
