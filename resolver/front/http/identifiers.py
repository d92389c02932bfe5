"""Endpoints for identifiers one by one: resolve, register, change, retire; and their list."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from biaojie.change import Action, Receipt
from biaojie.errors import (
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
    InvalidRequest,
    PrefixNotHere,
    PrefixSuspended,
    RecordFrozen,
    Unauthenticated,
    ValueNotFound,
    ValueReadOnly,
    VersionMismatch,
)
from biaojie.identifier import Identifier, check_prefix
from biaojie.record import Status, Value
from biaojie.wire import document
from registry.admission import Caller
from registry.operations import Create, Modify, Purge, Put, RecordOperation, Retire
from registry.registrar import Idempotency

from ...core import Source
from ...query import Query, Resolution
from ...service import Service
from ...writing import minted
from .cursor import cursor_octets, cursor_text, not_a_cursor
from .endpoint import Asked, Endpoint, Reply, etag, json_reply, write_headers
from .models import (
    CreateBody,
    DeleteQuery,
    ListQuery,
    PatchBody,
    PutBody,
    ReceiptReply,
    RecordPage,
    RecordReply,
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
    Elsewhere,
)
WRITE_ERRORS: tuple[type[BiaojieError], ...] = (
    InvalidIdentifier,
    InvalidRecord,
    Unauthenticated,
    Forbidden,
    PrefixNotHere,
    PrefixSuspended,
    Elsewhere,
    IdentifierRetired,
    IdempotencyMismatch,
    IdempotencyRunning,
)


# Resolve --------------------------------------------------------------------------------


def _query(asked: Asked) -> Query:
    if not asked.query:
        return Query(asked.identifier())
    given = asked.query_as(ResolveQuery)
    return Query(asked.identifier(), tuple(given.index), tuple(given.type), given.auth)


def _public_query(query: Query) -> Query | None:
    return None if query.authoritative else query


async def _resolve(service: Service, caller: Caller, query: Query) -> Resolution:
    return await service.resolve(query, caller)


def resolution_headers(found: Resolution) -> dict[str, str]:
    scope = "private" if found.private else "public"
    return {
        "Cache-Control": f"{scope}, max-age={found.ttl_s}",
        "Biaojie-Age": str(found.age_s),
        "Age": "0",
        "Biaojie-Source": found.source.value,
        "Vary": "Accept, Accept-Language, Authorization",
        "ETag": etag(found.record, private=found.private),
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
        return Reply(304, headers=headers, entry=found.entry)
    shown = json_reply(document.encode_record(found.record), 200, headers)
    return shown if found.entry is None else replace(shown, entry=found.entry)


# List -----------------------------------------------------------------------------------


def _cursor(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return cursor_octets(text)
    except ValueError:
        raise not_a_cursor() from None


async def _list(service: Service, caller: Caller, query: ListQuery) -> dict[str, Any]:
    check_prefix(query.prefix)
    records, more = await service.list_records(
        caller, query.prefix, _cursor(query.after), query.limit
    )
    onward = cursor_text(service.cursor(records[-1])) if more else None
    return {"items": [document.encode_record(record) for record in records], "next": onward}


# Write one ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Write:
    operation: RecordOperation
    idempotency: Idempotency | None


def values_of(shapes: list[ValueShape]) -> tuple[Value, ...]:
    return document.decode_values([s.model_dump(exclude_unset=True) for s in shapes])


def status_of(text: str | None) -> Status | None:
    return Status(text) if text else None


def _put(asked: Asked) -> _Write:
    body = asked.body_as(PutBody)
    operation = Put(
        asked.identifier(),
        values_of(body.values),
        status_of(body.status),
        body.template,
        asked.condition(),
    )
    return _Write(operation, asked.idempotency())


def _patch(asked: Asked) -> _Write:
    body = asked.body_as(PatchBody)
    operation = Modify(
        asked.identifier(),
        values_of(body.set),
        tuple(body.remove),
        status_of(body.status),
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
        identifier = minted(str(body.prefix), body.suffix_start)
    operation = Create(identifier, values_of(body.values), Status(body.status), body.template)
    return _Write(operation, asked.idempotency())


async def _write(service: Service, caller: Caller, write: _Write) -> tuple[Receipt, bool]:
    outcome = await service.write(caller, [write.operation], idempotency=write.idempotency)
    return outcome.single(), outcome.replayed


def _encode_receipt(asked: Asked, answer: tuple[Receipt, bool]) -> Reply:
    receipt, replayed = answer
    headers = write_headers(replayed)
    if receipt.action is not Action.PURGE:
        headers["ETag"] = f'"{receipt.version}.{receipt.sequence}"'
    created = receipt.action is Action.CREATE
    if created:
        prefix, _, suffix = receipt.identifier.partition("/")
        headers["Location"] = f"{BASE}/{Identifier(prefix, suffix).url_path()}"
    return json_reply(document.encode_receipt(receipt), 201 if created else 200, headers)


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
        public_query=_public_query,
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
)
