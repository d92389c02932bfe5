"""What a node says over the native protocol: bodies both ways, and errors. Sans I/O.

Encoding gives packed bodies; decoding takes packed bodies and raises MalformedAnswer. Encoding
an error is total: it works on any error, whatever is in its fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import Any, Final

import msgpack

from ...account import ApiKey, Prefix
from ...change import BatchResult, Entry, Receipt
from ...errors import ERRORS, BiaojieError, MalformedAnswer
from ...identifier import Identifier
from ...record import Record
from .shapes import (
    WHOLE_MAX,
    Row,
    answering,
    flag,
    many,
    octets,
    pack,
    plain,
    row,
    text,
    unpack_answer,
    whole,
)
from .values import (
    decode_batch,
    decode_entry,
    decode_key,
    decode_prefix,
    decode_receipt,
    decode_record,
    encode_batch,
    encode_entry,
    encode_key,
    encode_prefix,
    encode_receipt,
    encode_record,
)

SOURCES: Final = ("cache", "store", "stale")
"""Where an answer came from, by permanent number."""
SOURCE_NUMBERS: Final = {name: number for number, name in enumerate(SOURCES)}
RESOLUTION: Final = Struct(">BBIBIB")
"""0x94, 0xce, age in seconds, 0xce, ttl in seconds, source: how every resolution begins."""
RESOLUTION_OCTETS: Final = RESOLUTION.size
_ARRAY_4, _UINT_32 = 0x94, 0xCE
_SECONDS_MAX: Final = 2**32 - 1
_TEXT_MAX: Final = 2**16


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer to a hello: the version spoken from here on, what the node calls itself, its
    limits by name, and the role and tenant of the key (None without one)."""

    version: int
    node: str
    limits: Mapping[str, int] = field(default_factory=dict)
    role: str | None = None
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Resolution:
    """`age_s` is how long ago the node read it from its registry, `ttl_s` how long it may be
    kept, `source` one of SOURCES, or empty for a number from a later version."""

    age_s: int
    ttl_s: int
    source: str
    record: Record


# Hello, and what has no shape of its own ------------------------------------------------


def encode_welcome(welcome: Welcome) -> bytes:
    return pack((welcome.version, welcome.node, dict(welcome.limits), welcome.role, welcome.tenant))


def decode_welcome(body: bytes) -> Welcome:
    with answering("welcome", "应答"):
        version, node, limits, role, tenant = row(unpack_answer(body), 5, "welcome")[:5]
        if not isinstance(limits, dict):
            raise ValueError("limits")
        return Welcome(
            whole(version, "version", most=255),
            text(node, _TEXT_MAX, "node"),
            {str(name): whole(limit, "limits") for name, limit in limits.items()},
            None if role is None else text(role, _TEXT_MAX, "role"),
            None if tenant is None else text(tenant, _TEXT_MAX, "tenant"),
        )


NOTHING: Final = pack(None)
"""The body of an answer to ping."""

# Resolutions ----------------------------------------------------------------------------


def encode_resolution_tail(record: Record) -> bytes:
    """A packed record: what follows the RESOLUTION_OCTETS that age and ttl are written into."""
    return pack(encode_record(record))


def encode_resolution_head(age_s: int, ttl_s: int, source: str) -> bytes:
    if not (0 <= age_s <= _SECONDS_MAX and 0 <= ttl_s <= _SECONDS_MAX):
        age_s, ttl_s = (min(max(seconds, 0), _SECONDS_MAX) for seconds in (age_s, ttl_s))
    return RESOLUTION.pack(_ARRAY_4, _UINT_32, age_s, _UINT_32, ttl_s, SOURCE_NUMBERS[source])


def encode_resolution(record: Record, age_s: int, ttl_s: int, source: str) -> bytes:
    return encode_resolution_head(age_s, ttl_s, source) + encode_resolution_tail(record)


def decode_resolution(body: bytes) -> Resolution:
    with answering("resolution", "解析结果"):
        return _resolution(unpack_answer(body))


def _resolution(got: object) -> Resolution:
    age_s, ttl_s, source, record = row(got, 4, "resolution")[:4]
    number = whole(source, "source")
    return Resolution(
        whole(age_s, "age"),
        whole(ttl_s, "ttl"),
        SOURCES[number] if number < len(SOURCES) else "",
        decode_record(record),
    )


def encode_resolutions(found: Sequence[tuple[Record, int, int, str] | BiaojieError]) -> bytes:
    """One element each, in order: (record, age_s, ttl_s, source), or the error in its place."""
    parts = [_array_head(len(found))]
    for item in found:
        if isinstance(item, BiaojieError):
            parts.append(_pack_error((item.code, *item.detail, dict(item.fields))))
        else:
            parts.append(encode_resolution(*item))
    return b"".join(parts)


def decode_resolutions(body: bytes) -> list[Resolution | BiaojieError]:
    """One bad element is that name's error, and does not hide the others."""
    with answering("list of resolutions", "解析结果列表"):
        items = many(unpack_answer(body), WHOLE_MAX, "answers")
    found: list[Resolution | BiaojieError] = []
    for item in items:
        try:
            with answering("resolution", "解析结果"):
                first = row(item, 1, "answer")[0]
                found.append(_error(item) if isinstance(first, str) else _resolution(item))
        except MalformedAnswer as error:
            found.append(error)
    return found


def _array_head(count: int) -> bytes:
    packed: bytes = msgpack.Packer().pack_array_header(count)
    return packed


# Writes ---------------------------------------------------------------------------------


def encode_written(receipt: Receipt, *, replayed: bool) -> bytes:
    return pack(encode_receipt(receipt, replayed=replayed))


def decode_written(body: bytes) -> tuple[Receipt, bool]:
    """The receipt, and whether it was that of an earlier request with the same key."""
    with answering("receipt", "回执"):
        return decode_receipt(unpack_answer(body))


def encode_written_many(result: BatchResult, *, replayed: bool) -> bytes:
    return pack(encode_batch(result, replayed=replayed))


def decode_written_many(body: bytes) -> tuple[BatchResult, bool]:
    with answering("batch result", "批量结果"):
        return decode_batch(unpack_answer(body))


# Lists and streams ----------------------------------------------------------------------


def encode_records(packed: Sequence[bytes]) -> bytes:
    """A part of a list, from records as `encode_resolution_tail` packs them."""
    return _array_head(len(packed)) + b"".join(packed)


def decode_records(body: bytes) -> tuple[Record, ...]:
    with answering("part of a list", "列表片段"):
        return tuple(decode_record(item) for item in many(unpack_answer(body), WHOLE_MAX, "part"))


def encode_entry_packed(entry: Entry) -> bytes:
    return pack(encode_entry(entry))


def encode_entries(packed: Sequence[bytes]) -> bytes:
    """A part of what is followed, from entries as `encode_entry_packed` packs them."""
    return _array_head(len(packed)) + b"".join(packed)


def decode_entries(body: bytes) -> tuple[Entry, ...]:
    with answering("part of the change log", "变更日志片段"):
        return tuple(decode_entry(item) for item in many(unpack_answer(body), WHOLE_MAX, "part"))


def encode_end(cursor: bytes | int | None) -> bytes:
    return pack((cursor,))


def decode_list_end(body: bytes) -> bytes | None:
    """Where a list goes on; None after the last record."""
    with answering("end of a list", "列表结尾"):
        cursor = row(unpack_answer(body), 1, "end")[0]
        return None if cursor is None else octets(cursor, _TEXT_MAX, "end")


def decode_follow_end(body: bytes) -> int | None:
    """The sequence to follow on from."""
    with answering("end of a stream", "流结尾"):
        cursor = row(unpack_answer(body), 1, "end")[0]
        return None if cursor is None else whole(cursor, "end")


def encode_changes(entries: Sequence[Entry], onward: int) -> bytes:
    return pack(([encode_entry(entry) for entry in entries], onward))


def decode_changes(body: bytes) -> tuple[tuple[Entry, ...], int]:
    with answering("page of the change log", "变更日志页"):
        entries, onward = row(unpack_answer(body), 2, "page")[:2]
        listed = many(entries, WHOLE_MAX, "entries")
        return tuple(decode_entry(item) for item in listed), whole(onward, "next")


def _page(body: bytes) -> tuple[Row, bytes | None]:
    items, onward = row(unpack_answer(body), 2, "page")[:2]
    cursor = None if onward is None else octets(onward, _TEXT_MAX, "next")
    return many(items, WHOLE_MAX, "items"), cursor


def encode_findings(identifiers: Sequence[Identifier], onward: bytes | None) -> bytes:
    return pack(([str(identifier) for identifier in identifiers], onward))


def decode_findings(body: bytes) -> tuple[tuple[Identifier, ...], bytes | None]:
    with answering("page of identifiers", "标识页"):
        items, onward = _page(body)
        names = [text(item, _TEXT_MAX, "identifier").partition("/") for item in items]
        return tuple(Identifier(prefix, suffix) for prefix, _, suffix in names), onward


# Prefixes and keys ----------------------------------------------------------------------


def encode_prefixes(prefixes: Sequence[Prefix], onward: bytes | None) -> bytes:
    return pack(([encode_prefix(prefix) for prefix in prefixes], onward))


def decode_prefixes(body: bytes) -> tuple[tuple[Prefix, ...], bytes | None]:
    with answering("page of prefixes", "前缀页"):
        items, onward = _page(body)
        return tuple(decode_prefix(item) for item in items), onward


def encode_one_prefix(prefix: Prefix) -> bytes:
    return pack(encode_prefix(prefix))


def decode_one_prefix(body: bytes) -> Prefix:
    with answering("prefix", "前缀"):
        return decode_prefix(unpack_answer(body))


def encode_written_prefix(prefix: Prefix, *, replayed: bool) -> bytes:
    return pack((encode_prefix(prefix), replayed))


def decode_written_prefix(body: bytes) -> tuple[Prefix, bool]:
    with answering("written prefix", "前缀写入结果"):
        prefix, replayed = row(unpack_answer(body), 2, "written")[:2]
        return decode_prefix(prefix), flag(replayed, "replayed")


def encode_keys(keys: Sequence[ApiKey], onward: bytes | None) -> bytes:
    return pack(([encode_key(key) for key in keys], onward))


def decode_keys(body: bytes) -> tuple[tuple[ApiKey, ...], bytes | None]:
    with answering("page of keys", "密钥页"):
        items, onward = _page(body)
        return tuple(decode_key(item) for item in items), onward


def encode_issued(key: ApiKey, secret: str) -> bytes:
    return pack((encode_key(key), secret))


def decode_issued(body: bytes) -> tuple[ApiKey, str]:
    """The key and its secret."""
    with answering("issued key", "新密钥"):
        key, secret = row(unpack_answer(body), 2, "issued")[:2]
        return decode_key(key), text(secret, _TEXT_MAX, "secret")


def encode_revoked(key: ApiKey, *, replayed: bool) -> bytes:
    return pack((encode_key(key), replayed))


def decode_revoked(body: bytes) -> tuple[ApiKey, bool]:
    with answering("revoked key", "已吊销密钥"):
        key, replayed = row(unpack_answer(body), 2, "revoked")[:2]
        return decode_key(key), flag(replayed, "replayed")


# Errors ---------------------------------------------------------------------------------


def encode_error(error: BiaojieError) -> bytes:
    """Total: what msgpack cannot say of the fields is said as text, and fields that are too
    long for a frame are left out."""
    body = _pack_error((error.code, *error.detail, dict(error.fields), error.request_id))
    if len(body) <= _ERROR_OCTETS_MAX:
        return body
    return _pack_error((error.code, *(part[:1_000] for part in error.detail), {}, error.request_id))


_ERROR_OCTETS_MAX: Final = 4 * 2**20


def _pack_error(parts: Row) -> bytes:
    try:
        return pack(parts)
    except (TypeError, ValueError, OverflowError, UnicodeError):
        return pack(plain(parts))


def decode_error(body: bytes) -> BiaojieError:
    """The error that a frame of kind ERROR stands for: total, whatever the octets are."""
    try:
        with answering("error", "错误应答"):
            return _error(unpack_answer(body))
    except MalformedAnswer as error:
        return error


def _error(got: Any) -> BiaojieError:
    code, en, zh, fields = row(got, 4, "error")[:4]
    request_id = got[4] if len(got) > 4 and isinstance(got[4], str) else ""
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise ValueError("fields")
    kind = ERRORS.get(text(code, _TEXT_MAX, "code"))
    if kind is None:
        return MalformedAnswer(
            f"The node answers with an error this version does not know: {code[:80]}.",
            f"节点返回了本版本未知的错误：{code[:80]}。",
        )
    extra = {name: _listed(value) for name, value in fields.items() if name != "request_id"}
    return kind(text(en, 2**20, "en"), text(zh, 2**20, "zh"), request_id=request_id, **extra)


def _listed(got: Any) -> Any:
    """With lists, which is what callers know in the fields of errors."""
    if isinstance(got, tuple):
        return [_listed(item) for item in got]
    return {name: _listed(item) for name, item in got.items()} if isinstance(got, dict) else got
