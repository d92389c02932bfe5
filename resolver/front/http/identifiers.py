"""Endpoints under /api/v1/identifiers: resolve, register, change, retire, list, batch."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from ulid import ULID

from biaojie.change import Action, BatchResult, Receipt, RowResult
from biaojie.errors import (
    BatchRejected,
    BiaojieError,
    Forbidden,
    IdempotencyMismatch,
    IdempotencyRunning,
    IdentifierNotFound,
    IdentifierRetired,
    IdentifierTaken,
    InvalidIdentifier,
    InvalidRecord,
    InvalidRequest,
    PrefixNotHere,
    PrefixSuspended,
    RecordFrozen,
    TooLarge,
    Unauthenticated,
    ValueNotFound,
    ValueReadOnly,
    VersionMismatch,
)
from biaojie.identifier import Identifier, check_prefix
from biaojie.limits import BATCH_ROWS_MAX
from biaojie.record import Status, Value
from biaojie.wire import document
from registry.admission import Caller
from registry.operations import Create, Modify, Purge, Put, RecordOperation, Retire
from registry.registrar import Idempotency, Mode, Outcome

from ...core import Source
from ...service import REPLY_BYTES_MAX, Query, Resolution, Service
from .endpoint import Asked, Endpoint, Reply, etag, json_reply, validated
from .models import (
    BatchBody,
    BatchReply,
    BatchRow,
    CreateBody,
    DeleteQuery,
    ListQuery,
    PatchBody,
    PutBody,
    ReceiptReply,
    RecordPage,
    RecordReply,
    ResolveBody,
    ResolvedReply,
    ResolveQuery,
    ValueShape,
)

BASE = "/api/v1/identifiers"
READ_ERRORS: tuple[type[BiaojieError], ...] = (
    InvalidIdentifier,
    IdentifierNotFound,
    IdentifierRetired,
    PrefixNotHere,
    PrefixSuspended,
)
WRITE_ERRORS: tuple[type[BiaojieError], ...] = (
    InvalidIdentifier,
    InvalidRecord,
    Unauthenticated,
    Forbidden,
    PrefixNotHere,
    PrefixSuspended,
    IdentifierRetired,
    IdempotencyMismatch,
    IdempotencyRunning,
)


# Resolve --------------------------------------------------------------------------------


def _query(asked: Asked) -> Query:
    given = asked.query_as(ResolveQuery)
    return Query(asked.identifier(), tuple(given.index), tuple(given.type), given.auth)


async def _resolve(service: Service, caller: Caller, query: Query) -> Resolution:
    return await service.resolve(query, caller)


def resolution_headers(found: Resolution) -> dict[str, str]:
    scope = "private" if found.private else "public"
    return {
        "ETag": etag(found.record, private=found.private),
        "Cache-Control": f"{scope}, max-age={found.ttl_s}",
        "Age": "0",
        "Biaojie-Source": found.source.value,
        "Biaojie-Age": str(found.age_s),
        "Vary": "Accept, Accept-Language, Authorization",
    }


def matches(asked: Asked, tag: str) -> bool:
    """If-None-Match, weak comparison (RFC 9110 §13.1.2)."""
    header = asked.headers.get("if-none-match")
    if header is None:
        return False
    listed = [item.strip().removeprefix("W/") for item in header.split(",")[:64]]
    return "*" in listed or tag in listed


def encode_resolution(asked: Asked, found: Resolution) -> Reply:
    headers = resolution_headers(found)
    if found.source is not Source.STALE and matches(asked, headers["ETag"]):
        return Reply(304, headers=headers)
    return json_reply(document.encode_record(found.record), 200, headers)


async def _resolve_many(
    service: Service, caller: Caller, texts: list[str]
) -> list[tuple[str, Resolution | BiaojieError]]:
    parsed: list[tuple[str, Identifier | BiaojieError]] = []
    for text in texts:
        try:
            parsed.append((text, Identifier.parse(text)))
        except InvalidIdentifier as error:
            parsed.append((text, error))
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
            items.append({"identifier": text, "record": document.encode_record(answer.record)})
    return json_reply({"items": items})


# List -----------------------------------------------------------------------------------


def _cursor(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return base64.b64decode(text, altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise InvalidRequest(
            "after: not a cursor; pass `next` of the page before.",
            "after：不是有效游标；请传入上一页的 `next`。",
            errors=[{"path": "query.after", "message": "not a cursor"}],
        ) from None


async def _list(service: Service, caller: Caller, query: ListQuery) -> dict[str, Any]:
    check_prefix(query.prefix)
    records, more = await service.list_records(
        caller, query.prefix, _cursor(query.after), query.limit
    )
    onward = base64.urlsafe_b64encode(service.cursor(records[-1])).decode() if more else None
    return {"items": [document.encode_record(record) for record in records], "next": onward}


# Write one ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Write:
    operation: RecordOperation
    idempotency: Idempotency | None


def _values(shapes: list[ValueShape]) -> tuple[Value, ...]:
    return document.decode_values([s.model_dump(exclude_none=True) for s in shapes])


def _status(text: str | None) -> Status | None:
    return Status(text) if text else None


def _put(asked: Asked) -> _Write:
    body = asked.body_as(PutBody)
    operation = Put(
        asked.identifier(),
        _values(body.values),
        _status(body.status),
        body.template,
        asked.condition(),
    )
    return _Write(operation, asked.idempotency())


def _patch(asked: Asked) -> _Write:
    body = asked.body_as(PatchBody)
    operation = Modify(
        asked.identifier(),
        _values(body.set),
        tuple(body.remove),
        _status(body.status),
        body.template,
        asked.condition(),
    )
    return _Write(operation, asked.idempotency())


def _delete(asked: Asked) -> _Write:
    kind = Purge if asked.query_as(DeleteQuery).purge else Retire
    return _Write(kind(asked.identifier(), asked.condition()), asked.idempotency())


def _create(asked: Asked) -> _Write:
    body = asked.body_as(CreateBody)
    if (body.identifier is None) == (body.prefix is None):
        raise InvalidRequest(
            "Give either identifier or prefix.",
            "请给出 identifier 或 prefix 之一。",
            errors=[{"path": "body", "message": "identifier or prefix"}],
        )
    if body.identifier is not None:
        identifier = Identifier.parse(body.identifier)
    else:
        # A ULID sorts by time, so minted suffixes of one prefix lie together in the registry.
        identifier = Identifier(str(body.prefix), body.suffix_start + str(ULID()))
    operation = Create(identifier, _values(body.values), Status(body.status), body.template)
    return _Write(operation, asked.idempotency())


async def _write(service: Service, caller: Caller, write: _Write) -> tuple[Receipt, bool]:
    outcome = await service.write(caller, [write.operation], idempotency=write.idempotency)
    return outcome.single(), outcome.replayed


def _encode_receipt(asked: Asked, answer: tuple[Receipt, bool]) -> Reply:
    receipt, replayed = answer
    headers = {"Cache-Control": "no-store"}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    if receipt.action is not Action.PURGE:
        headers["ETag"] = f'"{receipt.version}.{receipt.sequence}"'
    created = receipt.action is Action.CREATE
    if created:
        prefix, _, suffix = receipt.identifier.partition("/")
        headers["Location"] = f"{BASE}/{Identifier(prefix, suffix).url_path()}"
    return json_reply(document.encode_receipt(receipt), 201 if created else 200, headers)


# Write many -----------------------------------------------------------------------------


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
        values, status = _values(row.values), _status(row.status)
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
    InvalidRecord,
    Forbidden,
    PrefixNotHere,
    PrefixSuspended,
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
    headers = {"Cache-Control": "no-store"}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    return json_reply(document.encode_batch(result), 200, headers)


ENDPOINTS: tuple[Endpoint[Any, Any], ...] = (
    Endpoint(
        "GET",
        BASE + "/{identifier}",
        "resolve",
        "identifiers",
        "Resolve an identifier",
        _query,
        _resolve,
        encode_resolution,
        query=ResolveQuery,
        reply=RecordReply,
        success=(200, 304),
        errors=READ_ERRORS,
        headers=("If-None-Match",),
        public=True,
        whole_tail=True,
    ),
    Endpoint(
        "PUT",
        BASE + "/{identifier}",
        "put",
        "identifiers",
        "Register an identifier or replace its values",
        _put,
        _write,
        _encode_receipt,
        body=PutBody,
        reply=ReceiptReply,
        success=(200, 201),
        errors=(*WRITE_ERRORS, VersionMismatch, RecordFrozen, ValueReadOnly),
        headers=("If-Match", "If-None-Match", "Idempotency-Key"),
        whole_tail=True,
    ),
    Endpoint(
        "PATCH",
        BASE + "/{identifier}",
        "modify",
        "identifiers",
        "Change some values, the status or the template",
        _patch,
        _write,
        _encode_receipt,
        body=PatchBody,
        reply=ReceiptReply,
        errors=(
            *WRITE_ERRORS,
            IdentifierNotFound,
            VersionMismatch,
            RecordFrozen,
            ValueReadOnly,
            ValueNotFound,
        ),
        headers=("If-Match", "If-None-Match", "Idempotency-Key"),
        whole_tail=True,
    ),
    Endpoint(
        "DELETE",
        BASE + "/{identifier}",
        "retire",
        "identifiers",
        "Retire an identifier for ever, or purge it (admin)",
        _delete,
        _write,
        _encode_receipt,
        query=DeleteQuery,
        reply=ReceiptReply,
        errors=(*WRITE_ERRORS, IdentifierNotFound, VersionMismatch),
        headers=("If-Match", "If-None-Match", "Idempotency-Key"),
        whole_tail=True,
    ),
    Endpoint(
        "POST",
        BASE,
        "register",
        "identifiers",
        "Register a new identifier, or have one minted",
        _create,
        _write,
        _encode_receipt,
        body=CreateBody,
        reply=ReceiptReply,
        success=(201,),
        errors=(*WRITE_ERRORS, IdentifierTaken),
        headers=("Idempotency-Key",),
    ),
    Endpoint(
        "GET",
        BASE,
        "list",
        "identifiers",
        "List the identifiers under a prefix",
        lambda asked: asked.query_as(ListQuery),
        _list,
        lambda asked, page: json_reply(page),
        query=ListQuery,
        reply=RecordPage,
        errors=(InvalidIdentifier, Unauthenticated, Forbidden, PrefixNotHere),
    ),
    Endpoint(
        "POST",
        BASE + ":resolve",
        "resolve-many",
        "identifiers",
        "Resolve up to 1,000 identifiers at once",
        lambda asked: asked.body_as(ResolveBody).identifiers,
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
