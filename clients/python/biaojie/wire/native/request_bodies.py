"""The bodies of requests of the native protocol, both ways. Sans I/O.

`encode_request` and `decode_request` are the whole of it. Decoding checks shape and size only;
identifiers and prefixes stay text as sent, and what they mean is decided by the node. One bad
row of a batch stands in its place as an error and does not hide the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ...account import PrefixStatus, Role
from ...errors import BiaojieError
from ...limits import (
    BATCH_ROWS_MAX,
    IDEMPOTENCY_KEY_CHARS_MAX,
    IDENTIFIER_CHARS_MAX,
    INDEX_MAX,
    LABEL_CHARS_MAX,
    PAGE_ROWS_MAX,
    PREFIX_CHARS_MAX,
    RESOLVE_MANY_MAX,
    SEARCH_VALUES_MAX,
    SEARCHABLE_TYPES_MAX,
    TENANT_CHARS_MAX,
    TYPE_CHARS_MAX,
    VALUE_BYTES_MAX,
    VALUES_MAX,
)
from ...making import maker
from ...record import Status
from . import imports
from .frames import Kind
from .requests import (
    ACTIONS,
    BadRow,
    Cancel,
    ChangePrefix,
    Changes,
    Condition,
    FindPrefix,
    Follow,
    Hello,
    HomePrefix,
    ImportStep,
    IssueKey,
    ListKeys,
    ListPrefixes,
    ListRecords,
    Mint,
    Operation,
    Ping,
    Request,
    Resolve,
    ResolveMany,
    RevokeKey,
    Search,
    Write,
    WriteMany,
)
from .shapes import (
    Row,
    bad,
    bad_record,
    flag,
    many,
    number,
    octets,
    pack,
    row,
    text,
    unpack,
    whole,
)
from .values import STATUS_NUMBERS, decode_status, decode_values, encode_value

NAMED_MAX: Final = 64
"""Indexes, and types, that one resolution may ask for."""
WAIT_MAX_S: Final = 30.0
SUFFIX_START_CHARS_MAX: Final = 128
CURSOR_OCTETS_MAX: Final = 1_500
_IDENTIFIER_TEXT_MAX: Final = 12 * IDENTIFIER_CHARS_MAX
"""Pasted forms (hdl:, https://…) are longer than what they stand for."""
_IDENTITY_CHARS_MAX: Final = IDENTIFIER_CHARS_MAX + 11

# Encoding -------------------------------------------------------------------------------


def encode_request(request: Request) -> tuple[Kind, bytes]:
    """The kind and the packed body. Raises ValueError or TypeError for what is no such value."""
    kind, shape = _SHAPES[type(request)]
    return kind, pack(shape(request))


def _resolve(r: Resolve) -> Row:
    if not (r.indexes or r.types or r.authoritative):
        return (r.identifier,)
    return (r.identifier, r.indexes, r.types, r.authoritative)


def _status(status: Status | None) -> int | None:
    return None if status is None else STATUS_NUMBERS[status]


def _operation(o: Operation | BadRow) -> Row:
    if isinstance(o, BadRow):
        raise TypeError("a bad row is not sent")
    return (
        o.action.value,
        o.identifier,
        [encode_value(value) for value in o.values] or None,
        o.remove or None,
        _status(o.status),
        o.template,
    )


def _condition(condition: Condition | None) -> Row | None:
    if condition is None:
        return None
    if condition.absent:
        return ("absent",)
    if condition.version is None:
        return ("exists",)
    return ("version", condition.version, condition.sequence)


def _mint(m: Mint) -> Row:
    return (
        m.prefix,
        m.suffix_start,
        [encode_value(value) for value in m.values],
        _status(m.status),
        m.template,
        m.idempotency_key,
    )


_SHAPES: Final[dict[type, tuple[Kind, Callable[[Any], object]]]] = {
    Hello: (Kind.HELLO, lambda r: (r.version_min, r.version_max, r.key, r.agent)),
    Resolve: (Kind.RESOLVE, _resolve),
    ResolveMany: (Kind.RESOLVE_MANY, lambda r: (r.identifiers, r.authoritative)),
    Write: (
        Kind.WRITE,
        lambda r: (_operation(r.operation), r.idempotency_key, _condition(r.condition)),
    ),
    WriteMany: (
        Kind.WRITE_MANY,
        lambda r: ([_operation(o) for o in r.rows], r.mode, r.dry_run, r.idempotency_key),
    ),
    Mint: (Kind.MINT, _mint),
    ListRecords: (Kind.LIST, lambda r: (r.prefix, r.after, r.limit)),
    Follow: (Kind.FOLLOW, lambda r: (r.after, r.limit)),
    Cancel: (Kind.CANCEL, lambda r: r.request),
    Search: (Kind.SEARCH, lambda r: (r.values, r.prefix, r.after, r.limit)),
    ListPrefixes: (Kind.LIST_PREFIXES, lambda r: (r.after, r.limit)),
    FindPrefix: (Kind.FIND_PREFIX, lambda r: (r.name,)),
    HomePrefix: (
        Kind.HOME_PREFIX,
        lambda r: (r.name, r.tenant, r.searchable, r.status.value, r.admin, r.idempotency_key),
    ),
    ChangePrefix: (
        Kind.CHANGE_PREFIX,
        lambda r: (
            r.name,
            r.tenant,
            r.status and r.status.value,
            r.searchable,
            r.idempotency_key,
        ),
    ),
    ListKeys: (Kind.LIST_KEYS, lambda r: (r.after, r.limit)),
    IssueKey: (Kind.ISSUE_KEY, lambda r: (r.role.value, r.tenant, r.label)),
    RevokeKey: (Kind.REVOKE_KEY, lambda r: (r.id, r.idempotency_key)),
    Changes: (Kind.CHANGES, lambda r: (r.after, r.limit, r.wait_s)),
    Ping: (Kind.PING, lambda r: None),
    ImportStep: (Kind.IMPORT, imports.shape),
}

# Decoding -------------------------------------------------------------------------------


def decode_request(kind: int, body: bytes) -> Request:
    """What a frame asks for; raises InvalidRequest or InvalidRecord with the path of the fault."""
    decode = _DECODERS.get(kind)
    if decode is None:
        raise unknown_kind(kind)
    return decode(unpack(body))


def unknown_kind(kind: int) -> BiaojieError:
    return bad("kind", f"0x{kind:02x} is no request.", f"0x{kind:02x} 不是请求类型。")


def _decode_hello(got: object) -> Hello:
    least, most, key, agent = row(got, 4, "hello")[:4]
    return Hello(
        whole(least, "hello.version_min", most=255),
        whole(most, "hello.version_max", most=255),
        None if key is None else text(key, 256, "hello.key"),
        text(agent, 256, "hello.agent"),
    )


def _identifier(got: object, path: str) -> str:
    return text(got, _IDENTIFIER_TEXT_MAX, path, least=1)


_make_resolve: Final = maker(Resolve)
_make_operation: Final = maker(Operation)
_make_write: Final = maker(Write)
_ACTIONS: Final = {action.value: action for action in ACTIONS}


def decode_resolve(body: bytes) -> Resolve:
    """`decode_request` of the kind RESOLVE, which is what most requests are."""
    return _decode_resolve(unpack(body))


def _decode_resolve(got: object) -> Resolve:
    parts = row(got, 1, "resolve")
    identifier = _identifier(parts[0], "identifier")
    if len(parts) == 1:
        return _make_resolve(identifier, (), (), False)
    indexes, types, authoritative = row(got, 4, "resolve")[1:4]
    return Resolve(
        identifier,
        tuple(
            whole(n, "index", least=1, most=INDEX_MAX) for n in many(indexes, NAMED_MAX, "index")
        ),
        tuple(text(t, TYPE_CHARS_MAX, "type", least=1) for t in many(types, NAMED_MAX, "type")),
        flag(authoritative, "authoritative"),
    )


def _decode_resolve_many(got: object) -> ResolveMany:
    identifiers, authoritative = row(got, 2, "resolve-many")[:2]
    named = many(identifiers, RESOLVE_MANY_MAX, "identifiers")
    if not named:
        raise bad("identifiers", "must not be empty.", "不能为空。")
    return ResolveMany(
        tuple(_identifier(item, f"identifiers[{n}]") for n, item in enumerate(named)),
        flag(authoritative, "authoritative"),
    )


def _settable(got: object, path: str) -> Status:
    status = decode_status(got, path)
    if status is Status.RETIRED:
        raise bad_record(path, "retired is reached by action retire.", "注销请用 retire 操作。")
    return status


def _decode_operation(got: object, path: str) -> Operation:
    action, identifier, values, remove, status, template = row(got, 6, path)[:6]
    if not isinstance(action, str) or action not in _ACTIONS:
        known = ", ".join(ACTIONS)
        raise bad(f"{path}.action", f"must be one of {known}.", f"应为 {known} 之一。")
    # Paths are put together only for those who need them: it takes as long as the decoding.
    return _make_operation(
        _ACTIONS[action],
        identifier
        if type(identifier) is str and 0 < len(identifier) <= _IDENTIFIER_TEXT_MAX
        else _identifier(identifier, f"{path}.identifier"),
        () if values is None else decode_values(values, f"{path}.values"),
        ()
        if remove is None
        else tuple(
            whole(n, f"{path}.remove", least=1, most=INDEX_MAX)
            for n in many(remove, VALUES_MAX, f"{path}.remove")
        ),
        None if status is None else _settable(status, f"{path}.status"),
        None if template is None else _identifier(template, f"{path}.template"),
    )


def _decode_condition(got: object) -> Condition | None:
    if got is None:
        return None
    parts = row(got, 1, "condition")
    if parts[0] == "absent":
        return Condition(absent=True)
    if parts[0] == "exists":
        return Condition()
    if parts[0] != "version":
        raise bad(
            "condition", "must be absent, exists or version.", "应为 absent、exists 或 version。"
        )
    version, sequence = row(got, 3, "condition")[1:3]
    return Condition(
        version=whole(version, "condition.version"),
        sequence=None if sequence is None else whole(sequence, "condition.sequence"),
    )


def _idempotency_key(got: object) -> str | None:
    if got is None:
        return None
    key = text(got, IDEMPOTENCY_KEY_CHARS_MAX, "idempotency_key", least=1)
    if not (key.isascii() and key.isprintable()):
        raise bad("idempotency_key", "must be printable ASCII.", "应为可打印 ASCII 字符。")
    return key


def _decode_write(got: object) -> Write:
    operation, key, condition = row(got, 3, "write")[:3]
    return _make_write(
        _decode_operation(operation, "operation"),
        _idempotency_key(key),
        _decode_condition(condition),
    )


def _decode_row(got: object, path: str) -> Operation | BadRow:
    try:
        return _decode_operation(got, path)
    except BiaojieError as error:
        named = got[1] if isinstance(got, tuple) and len(got) > 1 else ""
        return BadRow(named[:300] if isinstance(named, str) else "", error)


def _decode_write_many(got: object) -> WriteMany:
    rows, mode, dry_run, key = row(got, 4, "write-many")[:4]
    if not many(rows, BATCH_ROWS_MAX, "rows"):
        raise bad("rows", "must not be empty.", "不能为空。")
    if mode not in ("all", "valid-rows"):
        raise bad("mode", "must be all or valid-rows.", "应为 all 或 valid-rows。")
    return WriteMany(
        tuple(_decode_row(item, f"rows[{n}]") for n, item in enumerate(rows)),
        mode,
        flag(dry_run, "dry_run"),
        _idempotency_key(key),
    )


def _decode_mint(got: object) -> Mint:
    prefix, start, values, status, template, key = row(got, 6, "mint")[:6]
    return Mint(
        text(prefix, PREFIX_CHARS_MAX, "prefix", least=1),
        text(start, SUFFIX_START_CHARS_MAX, "suffix_start"),
        decode_values(values, "values"),
        None if status is None else _settable(status, "status"),
        None if template is None else _identifier(template, "template"),
        _idempotency_key(key),
    )


def _cursor(got: object) -> bytes | None:
    return None if got is None else octets(got, CURSOR_OCTETS_MAX, "after")


def _limit(got: object) -> int:
    return whole(got, "limit", least=1, most=PAGE_ROWS_MAX)


def _stream_limit(got: object) -> int | None:
    return None if got is None else whole(got, "limit", least=1)


def _decode_list(got: object) -> ListRecords:
    prefix, after, limit = row(got, 3, "list")[:3]
    return ListRecords(
        text(prefix, PREFIX_CHARS_MAX, "prefix", least=1), _cursor(after), _stream_limit(limit)
    )


def _decode_follow(got: object) -> Follow:
    after, limit = row(got, 2, "follow")[:2]
    return Follow(whole(after, "after"), _stream_limit(limit))


def _decode_search(got: object) -> Search:
    values, prefix, after, limit = row(got, 4, "search")[:4]
    pairs = []
    for item in many(values, SEARCH_VALUES_MAX, "values"):
        type_, data = row(item, 2, "values")[:2]
        pairs.append(
            (
                text(type_, TYPE_CHARS_MAX, "values.type", least=1),
                octets(data, VALUE_BYTES_MAX, "values.data"),
            )
        )
    return Search(
        tuple(pairs),
        None if prefix is None else text(prefix, PREFIX_CHARS_MAX, "prefix", least=1),
        _cursor(after),
        _limit(limit),
    )


def _decode_find_prefix(got: object) -> FindPrefix:
    return FindPrefix(text(row(got, 1, "prefix")[0], PREFIX_CHARS_MAX, "prefix", least=1))


def _choice(kind: Callable[[str], Any], got: object, path: str) -> Any:
    try:
        return kind(text(got, 32, path))
    except ValueError:
        raise bad(path, "is none of those known.", "不在已知取值之内。") from None


def _searchable(got: object) -> tuple[str, ...]:
    listed = many(got, SEARCHABLE_TYPES_MAX, "searchable")
    return tuple(text(type_, TYPE_CHARS_MAX, "searchable", least=1) for type_ in listed)


def _tenant(got: object, least: int) -> str:
    return text(got, TENANT_CHARS_MAX, "tenant", least=least)


def _decode_home(got: object) -> HomePrefix:
    name, tenant, searchable, status, admin, key = row(got, 6, "prefix")[:6]
    return HomePrefix(
        text(name, PREFIX_CHARS_MAX, "prefix", least=1),
        _tenant(tenant, 1),
        _searchable(searchable),
        _choice(PrefixStatus, status, "status"),
        text(admin, _IDENTITY_CHARS_MAX, "admin"),
        _idempotency_key(key),
    )


def _decode_change_prefix(got: object) -> ChangePrefix:
    name, tenant, status, searchable, key = row(got, 5, "prefix")[:5]
    return ChangePrefix(
        text(name, PREFIX_CHARS_MAX, "prefix", least=1),
        None if tenant is None else _tenant(tenant, 1),
        None if status is None else _choice(PrefixStatus, status, "status"),
        None if searchable is None else _searchable(searchable),
        _idempotency_key(key),
    )


def _page(got: object) -> tuple[bytes | None, int]:
    after, limit = row(got, 2, "page")[:2]
    return _cursor(after), _limit(limit)


def _decode_issue(got: object) -> IssueKey:
    role, tenant, label = row(got, 3, "key")[:3]
    return IssueKey(
        _choice(Role, role, "role"), _tenant(tenant, 0), text(label, LABEL_CHARS_MAX, "label")
    )


def _decode_revoke(got: object) -> RevokeKey:
    id_, key = row(got, 2, "key")[:2]
    return RevokeKey(text(id_, 64, "id", least=1), _idempotency_key(key))


def _decode_changes(got: object) -> Changes:
    after, limit, wait_s = row(got, 3, "changes")[:3]
    return Changes(whole(after, "after"), _limit(limit), number(wait_s, "wait_s", most=WAIT_MAX_S))


_DECODERS: Final[dict[int, Callable[[object], Request]]] = {
    Kind.HELLO: _decode_hello,
    Kind.RESOLVE: _decode_resolve,
    Kind.RESOLVE_MANY: _decode_resolve_many,
    Kind.WRITE: _decode_write,
    Kind.WRITE_MANY: _decode_write_many,
    Kind.MINT: _decode_mint,
    Kind.LIST: _decode_list,
    Kind.FOLLOW: _decode_follow,
    Kind.CANCEL: lambda got: Cancel(whole(got, "cancel", least=1, most=2**32 - 1)),
    Kind.SEARCH: _decode_search,
    Kind.LIST_PREFIXES: lambda got: ListPrefixes(*_page(got)),
    Kind.FIND_PREFIX: _decode_find_prefix,
    Kind.HOME_PREFIX: _decode_home,
    Kind.CHANGE_PREFIX: _decode_change_prefix,
    Kind.LIST_KEYS: lambda got: ListKeys(*_page(got)),
    Kind.ISSUE_KEY: _decode_issue,
    Kind.REVOKE_KEY: _decode_revoke,
    Kind.CHANGES: _decode_changes,
    Kind.PING: lambda got: Ping(),
    Kind.IMPORT: imports.decode_step,
}
assert {kind for kind, _ in _SHAPES.values()} == _DECODERS.keys()
