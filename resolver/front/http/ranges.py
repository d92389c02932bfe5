"""Endpoints for ranges: identifiers registered by one rule, listed and cut as such."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from biaojie.change import Receipt
from biaojie.errors import (
    BiaojieError,
    Elsewhere,
    Forbidden,
    IdempotencyMismatch,
    IdempotencyRunning,
    IdentifierRetired,
    InvalidIdentifier,
    InvalidRecord,
    NotFound,
    PrefixNotHere,
    PrefixSuspended,
    RangeTaken,
    TooLarge,
    Unauthenticated,
)
from biaojie.identifier import check_prefix
from biaojie.range import Range
from biaojie.record import Status
from biaojie.wire import document
from registry.admission import Caller
from registry.operations import CutRange, RangeOperation, RegisterRange
from registry.patterns import Pattern, parse_pattern
from registry.registrar import Idempotency

from ...service import Service
from .cursor import cursor_octets, cursor_text, not_a_cursor
from .endpoint import Asked, Endpoint, Reply, json_reply, write_headers
from .identifiers import values_of
from .models import (
    DeleteQuery,
    ListQuery,
    RangeBody,
    RangePage,
    RangeReply,
    ReceiptReply,
)

BASE = "/api/v1/ranges"
_REFUSED: tuple[type[BiaojieError], ...] = (
    InvalidIdentifier,
    InvalidRecord,
    Unauthenticated,
    Forbidden,
    PrefixNotHere,
)
_WRITE_ERRORS: tuple[type[BiaojieError], ...] = (
    *_REFUSED,
    PrefixSuspended,
    Elsewhere,
    TooLarge,
    IdempotencyMismatch,
    IdempotencyRunning,
)


@dataclass(frozen=True, slots=True)
class _Write:
    operation: RangeOperation
    idempotency: Idempotency | None


def _named(asked: Asked) -> tuple[str, Pattern]:
    prefix, _, pattern = asked.tail_text().partition("/")
    return check_prefix(prefix), parse_pattern(pattern)


def _register(asked: Asked) -> _Write:
    body = asked.body_as(RangeBody)
    operation = RegisterRange(
        check_prefix(body.prefix),
        parse_pattern(body.pattern),
        values_of(body.values),
        Status(body.status),
        body.template,
    )
    return _Write(operation, asked.idempotency())


def _cut(asked: Asked) -> _Write:
    prefix, pattern = _named(asked)
    purge = asked.query_as(DeleteQuery).purge
    return _Write(CutRange(prefix, pattern, purge), asked.idempotency())


async def _write(service: Service, caller: Caller, write: _Write) -> tuple[Receipt, bool]:
    outcome = await service.write(caller, [write.operation], idempotency=write.idempotency)
    return outcome.single(), outcome.replayed


def _encode_receipt(asked: Asked, answer: tuple[Receipt, bool]) -> Reply:
    receipt, replayed = answer
    status = 201 if asked.method == "POST" else 200
    return json_reply(document.encode_receipt(receipt), status, write_headers(replayed))


def _listing(asked: Asked) -> tuple[ListQuery, Pattern | None]:
    query = asked.query_as(ListQuery)
    check_prefix(query.prefix)
    if query.after is None:
        return query, None
    try:
        return query, parse_pattern(cursor_octets(query.after).decode())
    except (ValueError, InvalidRecord):
        raise not_a_cursor() from None


async def _list(
    service: Service, caller: Caller, question: tuple[ListQuery, Pattern | None]
) -> tuple[list[Range], bool]:
    query, after = question
    return await service.ranges.list(caller, query.prefix, after, query.limit)


def _encode_page(asked: Asked, answer: tuple[list[Range], bool]) -> Reply:
    found, more = answer
    onward = cursor_text(found[-1].pattern.encode()) if more else None
    return json_reply({"items": [document.encode_range(each) for each in found], "next": onward})


async def _find(service: Service, caller: Caller, named: tuple[str, Pattern]) -> Range:
    return await service.ranges.find(caller, *named)


ENDPOINTS: tuple[Endpoint[Any, Any], ...] = (
    Endpoint(
        "POST",
        BASE,
        "register-range",
        "ranges",
        "Register a range: any number of identifiers by one rule",
        _register,
        _write,
        _encode_receipt,
        body=RangeBody,
        reply=ReceiptReply,
        success=(201,),
        errors=(*_WRITE_ERRORS, RangeTaken),
        headers=("Idempotency-Key",),
    ),
    Endpoint(
        "GET",
        BASE,
        "list-ranges",
        "ranges",
        "List the ranges under a prefix",
        _listing,
        _list,
        _encode_page,
        query=ListQuery,
        reply=RangePage,
        errors=_REFUSED,
    ),
    Endpoint(
        "GET",
        BASE + "/{range}",
        "find-range",
        "ranges",
        "Look at a range",
        _named,
        _find,
        lambda asked, found: json_reply(document.encode_range(found)),
        reply=RangeReply,
        errors=(*_REFUSED, NotFound),
        whole_tail=True,
    ),
    Endpoint(
        "DELETE",
        BASE + "/{range}",
        "cut-range",
        "ranges",
        "Retire a range or a part of it for ever, or purge it (admin)",
        _cut,
        _write,
        _encode_receipt,
        query=DeleteQuery,
        reply=ReceiptReply,
        errors=(*_WRITE_ERRORS, NotFound, IdentifierRetired),
        headers=("Idempotency-Key",),
        whole_tail=True,
    ),
)
