"""The operations of the native protocol: what each kind of request means, and its answer.

An `Operation` is the codec of its kind at the waist (`resolver.exchange.serve`). Rights, limits
of pages and what is true are the service's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from biaojie.account import ApiKey, Prefix, check_searchable
from biaojie.change import Action, BatchResult, Entry, Receipt
from biaojie.errors import (
    BiaojieError,
    InvalidIdentifier,
    InvalidRequest,
    NotFound,
    TooLarge,
)
from biaojie.identifier import Identifier, Key, check_prefix, fold_prefix
from biaojie.limits import PREFIX_CHARS_MAX
from biaojie.making import maker
from biaojie.record import Reference, Status, fold_type
from biaojie.wire.native import Kind, answers, decode_request, requests
from biaojie.wire.native.request_bodies import decode_resolve, unknown_kind
from registry.admission import Caller
from registry.matching import Criterion
from registry.operations import (
    ChangePrefix,
    Condition,
    Create,
    HomePrefix,
    Modify,
    Purge,
    Put,
    RecordOperation,
    Retire,
    make_create,
)
from registry.registrar import Idempotency, Outcome, Submission

from ...handle.identity import parse_identity
from ...lane import Lane
from ...query import Query, Resolution, make_query
from ...search import START, Findings, Question
from ...service import REPLY_BYTES_MAX, Service
from ...writing import Batch, minted, revoke_key, write_batch, write_prefix
from .imports import import_step
from .work import Asked, ReadyResolution, answer_frame, error_frame

WAIT_S: Final = 31.0
"""What a request that waits for changes may take beyond the others, its wait included."""


Tell = Callable[[Any], None]
"""Takes an answer or an error."""


@dataclass(frozen=True, slots=True)
class Operation:
    """`question` makes of a decoded request what `service` takes. `public`: answered for the
    public too, even while keys cannot be checked. `batch`: it may take `batch_deadline_s`.
    `waits`: it may wait for changes, and takes no place among the requests worked on. `begin`:
    how it is begun where its answer may come by a call."""

    operation: str
    question: Callable[[Asked, Any], Any]
    service: Callable[[Service, Caller, Any], Awaitable[Any]]
    encoder: Callable[[Any], bytes]
    public: bool = False
    batch: bool = False
    waits: bool = False
    begin: Callable[[Service, Caller, Any, Tell], Submission] | None = None
    front: str = "native"

    def decode(self, data: Asked) -> Any:
        if data.question is None:
            data.question = self.question(data, decode_request(data.kind, data.body))
        return data.question

    def encode(self, data: Asked, answer: Any) -> bytes:
        return answer_frame(data.id, self.encoder(answer))

    def encode_error(self, data: Asked, error: BiaojieError) -> bytes:
        return error_frame(data.id, error)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The codec of a request that is refused on its way in."""

    error: BiaojieError
    operation: str = "none"
    front: str = "native"

    def decode(self, data: Asked) -> Any:
        raise self.error

    def encode(self, data: Asked, answer: object) -> bytes:
        raise self.error

    def encode_error(self, data: Asked, error: BiaojieError) -> bytes:
        return error_frame(data.id, error)


def unknown(asked: Asked) -> Refusal:
    return Refusal(unknown_kind(asked.kind))


# Resolve --------------------------------------------------------------------------------

Parsed = tuple[list[Identifier | BiaojieError], bool]
Found = list[Resolution | BiaojieError]


def query_of(asked: Asked, r: requests.Resolve) -> Query:
    return make_query(Identifier.parse(r.identifier), r.indexes, r.types, r.authoritative)


async def _resolve(service: Service, caller: Caller, query: Query) -> Resolution:
    return await service.resolve(query, caller)


def _encode_resolution(found: Resolution) -> bytes:
    return answers.encode_resolution(found.record, found.age_s, found.ttl_s, found.source)


def _parsed(asked: Asked, r: requests.ResolveMany) -> Parsed:
    parsed: list[Identifier | BiaojieError] = []
    for text in r.identifiers:
        try:
            parsed.append(Identifier.parse(text))
        except InvalidIdentifier as error:
            parsed.append(error)
    return parsed, r.authoritative


async def _resolve_many(service: Service, caller: Caller, asked: Parsed) -> Found:
    parsed, authoritative = asked
    good = [item for item in parsed if isinstance(item, Identifier)]
    found = iter(await service.resolve_many(good, caller, authoritative=authoritative))
    return [next(found) if isinstance(item, Identifier) else item for item in parsed]


def _encode_many(found: Found) -> bytes:
    items: list[tuple[Any, int, int, str] | BiaojieError] = []
    octets = 0
    for item in found:
        if isinstance(item, BiaojieError):
            items.append(item)
            continue
        octets += sum(len(value.data) for value in item.record.values)
        if octets > REPLY_BYTES_MAX:
            full = "The reply is full; ask again for this one.", "回复已满；请再次查询该标识。"
            items.append(TooLarge(*full))
        else:
            items.append((item.record, item.age_s, item.ttl_s, item.source.value))
    return answers.encode_resolutions(items)


# Write ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Write:
    operation: Any
    idempotency: Idempotency | None


_make_write = maker(_Write)


def _idempotency(asked: Asked, key: str | None) -> Idempotency | None:
    """Of the request as it was sent: any other octet makes it another request."""
    if key is None:
        return None
    return Idempotency(key, hashlib.sha256(bytes((asked.kind,)) + asked.body).digest())


def _condition(condition: requests.Condition | None) -> Condition | None:
    if condition is None:
        return None
    return Condition(condition.absent, condition.version, condition.sequence)


def _operation(o: requests.Operation, condition: Condition | None = None) -> RecordOperation:
    identifier = Identifier.parse(o.identifier)
    match o.action:
        case Action.CREATE:
            if condition is not None and not condition.absent:
                raise InvalidRequest(
                    "condition: what is created is not there yet.",
                    "condition：新建时标识尚不存在。",
                    errors=[{"path": "condition", "message": "absent, or none"}],
                )
            return make_create(identifier, o.values, o.status or Status.ACTIVE, o.template)
        case Action.PUT:
            return Put(identifier, o.values, o.status, o.template, condition)
        case Action.MODIFY:
            return Modify(identifier, o.values, o.remove, o.status, o.template, condition)
        case Action.RETIRE:
            return Retire(identifier, condition)
        case _:
            return Purge(identifier, condition)


def _write_question(asked: Asked, r: requests.Write) -> _Write:
    operation = _operation(r.operation, _condition(r.condition))
    return _make_write(operation, _idempotency(asked, r.idempotency_key))


def _mint_question(asked: Asked, r: requests.Mint) -> _Write:
    identifier = minted(r.prefix, r.suffix_start)
    operation = Create(identifier, r.values, r.status or Status.ACTIVE, r.template)
    return _Write(operation, _idempotency(asked, r.idempotency_key))


async def _write(service: Service, caller: Caller, write: _Write) -> tuple[Receipt, bool]:
    outcome = await service.write(caller, [write.operation], idempotency=write.idempotency)
    return outcome.single(), outcome.replayed


def _begin_write(service: Service, caller: Caller, write: _Write, tell: Tell) -> Submission:
    def told(outcome: Outcome | BiaojieError) -> None:
        if isinstance(outcome, Outcome):
            (result,) = outcome.results
            tell(result if isinstance(result, BiaojieError) else (result, outcome.replayed))
        else:
            tell(outcome)

    return service.hand_in(caller, [write.operation], told, idempotency=write.idempotency)


def _row(row: requests.Operation | requests.BadRow) -> RecordOperation | BiaojieError:
    if isinstance(row, requests.BadRow):
        return row.error
    try:
        return _operation(row)
    except BiaojieError as error:
        return error


def _batch(asked: Asked, r: requests.WriteMany) -> Batch:
    return Batch(
        r.mode,
        r.dry_run,
        [_row(row) for row in r.rows],
        [row.identifier[:300] for row in r.rows],
        _idempotency(asked, r.idempotency_key),
    )


def _encode_batch(answer: tuple[BatchResult, bool]) -> bytes:
    return answers.encode_written_many(answer[0], replayed=answer[1])


# Search ---------------------------------------------------------------------------------


def _bad(path: str, en: str, zh: str) -> InvalidRequest:
    errors = [{"path": path, "message": en}]
    return InvalidRequest(f"{path}: {en}", f"{path}：{zh}", errors=errors)


def not_a_cursor() -> InvalidRequest:
    return _bad("after", "not a cursor.", "不是有效游标。")


def _name_cursor(after: bytes | None) -> str | None:
    try:
        name = None if after is None else after.decode("ascii")
    except UnicodeError:
        raise not_a_cursor() from None
    if name is not None and not name.isprintable():
        raise not_a_cursor()
    return name


def _key_cursor(after: bytes | None) -> Key:
    if after is None:
        return START
    prefix, slash, suffix = after.partition(b"/")
    name = _name_cursor(prefix) or ""
    if not slash or len(name) > PREFIX_CHARS_MAX:
        raise not_a_cursor()
    return Key(name, suffix)


def _search_question(asked: Asked, r: requests.Search) -> Question:
    criteria = tuple(dict.fromkeys(Criterion(fold_type(type_), data) for type_, data in r.values))
    if not criteria or not all(type_.isprintable() for type_, _ in criteria):
        raise _bad("values", "give printable types.", "请给出可打印的类型。")
    prefix = None if r.prefix is None else check_prefix(r.prefix)
    return Question(criteria, prefix, _key_cursor(r.after), r.limit)


async def _search(service: Service, caller: Caller, question: Question) -> Findings:
    return await service.search(caller, question)


def _encode_findings(findings: Findings) -> bytes:
    onward = findings.next
    cursor = None if onward is None else onward.prefix.encode() + b"/" + onward.suffix
    return answers.encode_findings(findings.identifiers, cursor)


# Prefixes -------------------------------------------------------------------------------

Page = tuple[str | None, int]


def _page(asked: Asked, r: requests.ListPrefixes | requests.ListKeys) -> Page:
    return _name_cursor(r.after), r.limit


async def _list_prefixes(
    service: Service, caller: Caller, page: Page
) -> tuple[list[Prefix], bytes | None]:
    found = await service.list_prefixes(caller, *page)
    return found, fold_prefix(found[-1].name).encode() if len(found) == page[1] else None


async def _find_prefix(service: Service, caller: Caller, name: str) -> Prefix:
    return await service.find_prefix(caller, name)


def _home_question(asked: Asked, r: requests.HomePrefix) -> _Write:
    admin = parse_identity(r.admin) if r.admin else None
    operation = HomePrefix(
        check_prefix(r.name),
        r.tenant,
        r.status,
        admin=Reference(str(admin.identifier), admin.index) if admin else None,
        searchable=check_searchable(r.searchable),
    )
    return _Write(operation, _idempotency(asked, r.idempotency_key))


def _change_question(asked: Asked, r: requests.ChangePrefix) -> _Write:
    searchable = None if r.searchable is None else check_searchable(r.searchable)
    operation = ChangePrefix(check_prefix(r.name), r.tenant, r.status, searchable)
    return _Write(operation, _idempotency(asked, r.idempotency_key))


async def _write_prefix(service: Service, caller: Caller, write: _Write) -> tuple[Prefix, bool]:
    return await write_prefix(service, caller, write.operation, write.idempotency)


def _encode_written_prefix(answer: tuple[Prefix, bool]) -> bytes:
    return answers.encode_written_prefix(answer[0], replayed=answer[1])


# Keys -----------------------------------------------------------------------------------


async def _list_keys(
    service: Service, caller: Caller, page: Page
) -> tuple[list[ApiKey], bytes | None]:
    found = await service.list_keys(caller, *page)
    return found, found[-1].id.encode() if len(found) == page[1] else None


async def _issue(service: Service, caller: Caller, r: requests.IssueKey) -> tuple[ApiKey, str]:
    secret, key = await service.issue_key(caller, r.tenant, r.role, r.label)
    return key, secret


def _revoke_question(asked: Asked, r: requests.RevokeKey) -> tuple[str, Idempotency | None]:
    if not (r.id.isascii() and r.id.isalnum()):
        raise NotFound("There is no such key.", "没有该密钥。")
    return r.id, _idempotency(asked, r.idempotency_key)


async def _revoke(
    service: Service, caller: Caller, question: tuple[str, Idempotency | None]
) -> tuple[ApiKey, bool]:
    return await revoke_key(service, caller, *question)


def _encode_revoked(answer: tuple[ApiKey, bool]) -> bytes:
    return answers.encode_revoked(answer[0], replayed=answer[1])


# Changes --------------------------------------------------------------------------------


async def _changes(
    service: Service, caller: Caller, r: requests.Changes
) -> tuple[Sequence[Entry], int]:
    return await service.list_changes(caller, r.after, r.limit, r.wait_s)


async def _pong(service: Service, caller: Caller, r: requests.Ping) -> None:
    return None


def _as_it_is(asked: Asked, request: Any) -> Any:
    return request


@dataclass(frozen=True, slots=True)
class PublicResolve:
    """`resolve` for those without a key: the lane learns what it may give out from now on."""

    lane: Lane[ReadyResolution]
    front: str = "native"
    operation: str = "resolve"
    public: bool = True
    batch: bool = False
    waits: bool = False

    def decode(self, data: Asked) -> Query:
        query: Query | None = data.question
        if query is None:
            query = data.question = query_of(data, decode_resolve(data.body))
        return query

    async def service(self, service: Service, caller: Caller, query: Query) -> Resolution:
        return await service.resolve(query, caller)

    def encode(self, data: Asked, answer: Resolution) -> bytes:
        record = answers.encode_resolution_tail(answer.record)
        head = answers.encode_resolution_head(answer.age_s, answer.ttl_s, answer.source)
        reply = answer_frame(data.id, head + record)
        if answer.entry is not None:
            key = bytes((data.kind,)) + data.body
            self.lane.keep(key, ReadyResolution(answer.entry, len(key), record))
        return reply

    def encode_error(self, data: Asked, error: BiaojieError) -> bytes:
        return error_frame(data.id, error)


RESOLVE: Final = Operation("resolve", query_of, _resolve, _encode_resolution, public=True)
PING: Final = Operation("ping", _as_it_is, _pong, lambda answer: answers.NOTHING, public=True)
OPERATIONS: Final[dict[int, Operation]] = {
    Kind.RESOLVE: RESOLVE,
    Kind.RESOLVE_MANY: Operation(
        "resolve-many", _parsed, _resolve_many, _encode_many, public=True, batch=True
    ),
    Kind.WRITE: Operation(
        "write", _write_question, _write, lambda a: _written(*a), begin=_begin_write
    ),
    Kind.WRITE_MANY: Operation("batch", _batch, write_batch, _encode_batch, batch=True),
    Kind.MINT: Operation(
        "register", _mint_question, _write, lambda a: _written(*a), begin=_begin_write
    ),
    Kind.SEARCH: Operation(
        "search", _search_question, _search, _encode_findings, public=True, batch=True
    ),
    Kind.LIST_PREFIXES: Operation(
        "list-prefixes", _page, _list_prefixes, lambda a: answers.encode_prefixes(*a)
    ),
    Kind.FIND_PREFIX: Operation(
        "find-prefix",
        lambda asked, r: check_prefix(r.name),
        _find_prefix,
        answers.encode_one_prefix,
    ),
    Kind.HOME_PREFIX: Operation(
        "home-prefix", _home_question, _write_prefix, _encode_written_prefix
    ),
    Kind.CHANGE_PREFIX: Operation(
        "change-prefix", _change_question, _write_prefix, _encode_written_prefix
    ),
    Kind.LIST_KEYS: Operation("list-keys", _page, _list_keys, lambda a: answers.encode_keys(*a)),
    Kind.ISSUE_KEY: Operation("issue-key", _as_it_is, _issue, lambda a: answers.encode_issued(*a)),
    Kind.REVOKE_KEY: Operation("revoke-key", _revoke_question, _revoke, _encode_revoked),
    Kind.CHANGES: Operation(
        "changes", _as_it_is, _changes, lambda a: answers.encode_changes(*a), waits=True
    ),
    Kind.PING: PING,
    Kind.IMPORT: Operation(
        "import",
        lambda asked, step: step,
        import_step,
        lambda answer: answer,
        batch=True,
    ),
}


def _written(receipt: Receipt, replayed: bool) -> bytes:
    return answers.encode_written(receipt, replayed=replayed)
