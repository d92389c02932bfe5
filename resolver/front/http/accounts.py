"""Endpoints for prefixes, keys and the change log."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from biaojie.account import ApiKey, Prefix, PrefixStatus, Role, check_searchable
from biaojie.change import Entry
from biaojie.errors import (
    BiaojieError,
    Forbidden,
    IdempotencyMismatch,
    IdempotencyRunning,
    InvalidIdentifier,
    NotFound,
    PrefixNotHere,
    PrefixTaken,
    Unauthenticated,
)
from biaojie.identifier import check_prefix, fold_prefix
from biaojie.record import Reference
from biaojie.wire import document
from registry.admission import Caller
from registry.operations import ChangePrefix, HomePrefix
from registry.registrar import Idempotency

from ...handle.identity import parse_identity
from ...service import Service
from ...writing import revoke_key, write_prefix
from .cursor import cursor_octets, cursor_text, not_a_cursor
from .endpoint import Asked, Endpoint, Reply, json_reply, write_headers
from .models import (
    ChangesPage,
    ChangesQuery,
    KeyBody,
    KeyPage,
    KeyReply,
    NewKeyReply,
    PageQuery,
    PrefixBody,
    PrefixPage,
    PrefixPatch,
    PrefixReply,
)

REFUSED: tuple[type[BiaojieError], ...] = (Unauthenticated, Forbidden)
KEYED: tuple[type[BiaojieError], ...] = (*REFUSED, IdempotencyMismatch, IdempotencyRunning)
_KEY_ID = re.compile(r"[0-9A-Za-z]{1,64}")


def name_of_cursor(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        name = cursor_octets(text).decode("ascii")
        if not name.isprintable():
            raise ValueError
        return name
    except ValueError:
        raise not_a_cursor() from None


def _page(items: list[dict[str, Any]], last: str | None) -> dict[str, Any]:
    onward = None if last is None else cursor_text(last.encode())
    return {"items": items, "next": onward}


# Prefixes -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _PrefixWrite:
    operation: HomePrefix | ChangePrefix
    idempotency: Idempotency | None


async def _list_prefixes(service: Service, caller: Caller, query: PageQuery) -> dict[str, Any]:
    found = await service.list_prefixes(caller, name_of_cursor(query.after), query.limit)
    last = fold_prefix(found[-1].name) if len(found) == query.limit else None
    return _page([document.encode_prefix(prefix) for prefix in found], last)


def _home(asked: Asked) -> _PrefixWrite:
    body = asked.body_as(PrefixBody)
    admin = parse_identity(body.admin) if body.admin else None
    operation = HomePrefix(
        check_prefix(body.prefix),
        body.tenant,
        PrefixStatus(body.status),
        admin=Reference(str(admin.identifier), admin.index) if admin else None,
        searchable=check_searchable(body.searchable),
    )
    return _PrefixWrite(operation, asked.idempotency())


def _change_prefix(asked: Asked) -> _PrefixWrite:
    body = asked.body_as(PrefixPatch)
    status = PrefixStatus(body.status) if body.status else None
    name = check_prefix(asked.tail_text())
    searchable = None if body.searchable is None else check_searchable(body.searchable)
    return _PrefixWrite(ChangePrefix(name, body.tenant, status, searchable), asked.idempotency())


async def _write_prefix(
    service: Service, caller: Caller, write: _PrefixWrite
) -> tuple[Prefix, bool]:
    return await write_prefix(service, caller, write.operation, write.idempotency)


async def _find_prefix(service: Service, caller: Caller, name: str) -> Prefix:
    return await service.find_prefix(caller, name)


def _encode_written_prefix(asked: Asked, answer: tuple[Prefix, bool]) -> Reply:
    prefix, replayed = answer
    status = 201 if asked.method == "POST" else 200
    return json_reply(document.encode_prefix(prefix), status, write_headers(replayed))


# Keys -----------------------------------------------------------------------------------


async def _list_keys(service: Service, caller: Caller, query: PageQuery) -> dict[str, Any]:
    found = await service.list_keys(caller, name_of_cursor(query.after), query.limit)
    last = found[-1].id if len(found) == query.limit else None
    return _page([document.encode_key(key) for key in found], last)


async def _issue(service: Service, caller: Caller, body: KeyBody) -> tuple[str, ApiKey]:
    return await service.issue_key(caller, body.tenant, Role(body.role), body.label)


def _encode_issued(asked: Asked, answer: tuple[str, ApiKey]) -> Reply:
    secret, key = answer
    return json_reply({**document.encode_key(key), "key": secret}, 201)


def _key_id(asked: Asked) -> str:
    if not _KEY_ID.fullmatch(asked.tail):
        raise NotFound("There is no such key.", "没有该密钥。")
    return asked.tail


async def _revoke(
    service: Service, caller: Caller, question: tuple[str, Idempotency | None]
) -> tuple[ApiKey, bool]:
    return await revoke_key(service, caller, *question)


def _encode_revoked(asked: Asked, answer: tuple[ApiKey, bool]) -> Reply:
    key, replayed = answer
    return json_reply(document.encode_key(key), 200, write_headers(replayed))


# Changes --------------------------------------------------------------------------------


async def _list_changes(
    service: Service, caller: Caller, query: ChangesQuery
) -> tuple[Sequence[Entry], int]:
    return await service.list_changes(caller, query.after, query.limit, query.wait)


def _encode_changes(asked: Asked, answer: tuple[Sequence[Entry], int]) -> Reply:
    entries, onward = answer
    return json_reply(
        {"items": [document.encode_entry(entry) for entry in entries], "next": onward}
    )


ENDPOINTS: tuple[Endpoint[Any, Any], ...] = (
    Endpoint(
        "GET",
        "/api/v1/prefixes",
        "list-prefixes",
        "prefixes",
        "List prefixes (all for an admin, its tenant's for others)",
        lambda asked: asked.query_as(PageQuery),
        _list_prefixes,
        lambda asked, page: json_reply(page),
        query=PageQuery,
        reply=PrefixPage,
        errors=REFUSED,
    ),
    Endpoint(
        "POST",
        "/api/v1/prefixes",
        "home-prefix",
        "prefixes",
        "Home a prefix at this node (admin)",
        _home,
        _write_prefix,
        _encode_written_prefix,
        body=PrefixBody,
        reply=PrefixReply,
        success=(201,),
        errors=(*KEYED, InvalidIdentifier, PrefixTaken),
        headers=("Idempotency-Key",),
    ),
    Endpoint(
        "GET",
        "/api/v1/prefixes/{prefix}",
        "find-prefix",
        "prefixes",
        "Look at a prefix",
        lambda asked: check_prefix(asked.tail_text()),
        _find_prefix,
        lambda asked, prefix: json_reply(document.encode_prefix(prefix)),
        reply=PrefixReply,
        errors=(*REFUSED, InvalidIdentifier, PrefixNotHere),
    ),
    Endpoint(
        "PATCH",
        "/api/v1/prefixes/{prefix}",
        "change-prefix",
        "prefixes",
        "Change a prefix's status, its tenant, or what is searchable (admin)",
        _change_prefix,
        _write_prefix,
        _encode_written_prefix,
        body=PrefixPatch,
        reply=PrefixReply,
        errors=(*KEYED, InvalidIdentifier, PrefixNotHere),
        headers=("Idempotency-Key",),
    ),
    Endpoint(
        "GET",
        "/api/v1/keys",
        "list-keys",
        "keys",
        "List keys (admin)",
        lambda asked: asked.query_as(PageQuery),
        _list_keys,
        lambda asked, page: json_reply(page),
        query=PageQuery,
        reply=KeyPage,
        errors=REFUSED,
    ),
    Endpoint(
        "POST",
        "/api/v1/keys",
        "issue-key",
        "keys",
        "Issue a key; its secret is shown once (admin)",
        lambda asked: asked.body_as(KeyBody),
        _issue,
        _encode_issued,
        body=KeyBody,
        reply=NewKeyReply,
        success=(201,),
        errors=REFUSED,
    ),
    Endpoint(
        "DELETE",
        "/api/v1/keys/{id}",
        "revoke-key",
        "keys",
        "Revoke a key (admin)",
        lambda asked: (_key_id(asked), asked.idempotency()),
        _revoke,
        _encode_revoked,
        reply=KeyReply,
        errors=(*KEYED, NotFound),
        headers=("Idempotency-Key",),
    ),
    Endpoint(
        "GET",
        "/api/v1/changes",
        "changes",
        "changes",
        "Read the change log, waiting for news if asked to",
        lambda asked: asked.query_as(ChangesQuery),
        _list_changes,
        _encode_changes,
        query=ChangesQuery,
        reply=ChangesPage,
        errors=REFUSED,
    ),
)
