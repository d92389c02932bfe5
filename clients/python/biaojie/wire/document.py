"""The JSON document codec: values of this library to and from plain JSON objects, sans I/O.

`encode_*` gives dicts of JSON types; `decode_*` takes anything and gives a value or raises
(InvalidRecord, InvalidIdentifier, MalformedAnswer). Times are ISO 8601 UTC text.
The value object is the Handle JSON value (index, type, data, ttl, timestamp, permissions,
references) with these liberties: UTF-8 data is plain text instead of {"format": "string"},
and both are read.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ..account import ApiKey, Prefix, PrefixStatus, Role
from ..change import Action, BatchResult, Change, Entry, Receipt, RowResult
from ..errors import ERRORS, BiaojieError, InvalidRecord, MalformedAnswer
from ..identifier import Identifier
from ..limits import TTL_DEFAULT_S
from ..record import (
    PERMISSIONS_DEFAULT,
    PERMISSIONS_SECRET,
    SECRET_TYPES,
    Permissions,
    Record,
    Reference,
    Status,
    Value,
)

Json = dict[str, Any]

HTTP_STATUS: dict[str, int] = {
    "invalid-identifier": 400,
    "invalid-record": 400,
    "invalid-request": 400,
    "invalid-file": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "prefix-suspended": 403,
    "value-read-only": 403,
    "not-found": 404,
    "identifier-not-found": 404,
    "prefix-not-here": 404,
    "value-not-found": 404,
    "method-not-allowed": 405,
    "request-timeout": 408,
    "identifier-taken": 409,
    "prefix-taken": 409,
    "record-frozen": 409,
    "idempotency-running": 409,
    "identifier-retired": 410,
    "version-mismatch": 412,
    "too-large": 413,
    "unsupported-media-type": 415,
    "idempotency-mismatch": 422,
    "batch-rejected": 422,
    "too-many-requests": 429,
    "internal": 500,
    "tampered-log": 500,
    "malformed-answer": 502,
    "unreachable": 502,
    "over-capacity": 503,
    "temporarily-unavailable": 503,
    "deadline-exceeded": 504,
    "storage-full": 507,
}
"""HTTP status of each error code."""
assert HTTP_STATUS.keys() == ERRORS.keys(), HTTP_STATUS.keys() ^ ERRORS.keys()


# Times ----------------------------------------------------------------------------------

EPOCH_MAX = 253_402_300_799  # 9999-12-31T23:59:59Z, the last that ISO text and datetime hold


def encode_time(epoch_s: float) -> str:
    moment = datetime.fromtimestamp(min(max(epoch_s, 0), EPOCH_MAX), UTC)
    return moment.isoformat(timespec="milliseconds" if epoch_s % 1 else "seconds").replace(
        "+00:00", "Z"
    )


def decode_time(text: object, path: str) -> int:
    """Epoch seconds; text without an offset counts as UTC."""
    try:
        moment = datetime.fromisoformat(str(text))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = int(moment.timestamp())
    except (ValueError, OverflowError):
        raise InvalidRecord(
            f"{path}: not an ISO 8601 time such as 2030-01-01T00:00:00Z.",
            f"{path}：不是 ISO 8601 时间，例如 2030-01-01T00:00:00Z。",
            path=path,
        ) from None
    return max(seconds, 0)


# Values and records ---------------------------------------------------------------------


def encode_value(value: Value) -> Json:
    text = value.text
    document: Json = {
        "index": value.index,
        "type": value.type,
        "data": text
        if text is not None
        else {"format": "base64", "value": base64.b64encode(value.data).decode()},
        "ttl": encode_time(value.ttl) if value.ttl_absolute else value.ttl,
        "permissions": str(value.permissions),
    }
    if value.timestamp:
        document["timestamp"] = encode_time(value.timestamp)
    if value.references:
        document["references"] = [
            {"identifier": r.identifier, "index": r.index} for r in value.references
        ]
    return document


def _bad(path: str, en: str, zh: str) -> InvalidRecord:
    return InvalidRecord(f"{path}: {en}", f"{path}：{zh}", path=path)


def _field(
    document: Mapping[str, Any], name: str, kind: type, path: str, default: Any = None
) -> Any:
    got = document.get(name, default)
    if not isinstance(got, kind) or (kind is int and isinstance(got, bool)):
        raise _bad(f"{path}.{name}", f"must be {kind.__name__}.", f"类型应为 {kind.__name__}。")
    return got


def _octets(data: object, path: str) -> bytes:
    form, text = "string", data
    if isinstance(data, Mapping):
        form, text = data.get("format", "string"), data.get("value")
    if not isinstance(text, str):
        raise _bad(path, "must be text or {format, value}.", "应为文本或 {format, value}。")
    try:
        if form == "string":
            return text.encode()
        if form == "base64":
            return base64.b64decode(text, validate=True)
        if form == "hex":
            return bytes.fromhex(text)
    except UnicodeError:
        raise _bad(path, "has a lone surrogate.", "含有孤立代理字符。") from None
    except (ValueError, binascii.Error):
        raise _bad(path, f"is not {form}.", f"不是合法的 {form}。") from None
    raise _bad(path, "format must be string, base64 or hex.", "format 应为 string、base64 或 hex。")


def decode_value(document: object, path: str = "value") -> Value:
    """A Value from its JSON object.

    A missing ttl is 86400 s, missing permissions are 1110 (1100 for secret types).
    """
    if not isinstance(document, Mapping):
        raise _bad(path, "must be an object.", "应为对象。")
    type_ = _field(document, "type", str, path)
    ttl = document.get("ttl", TTL_DEFAULT_S)
    absolute = isinstance(ttl, str)
    if absolute:
        ttl = decode_time(ttl, f"{path}.ttl")
    elif not isinstance(ttl, int) or isinstance(ttl, bool):
        raise _bad(f"{path}.ttl", "must be seconds or a time.", "应为秒数或时间。")
    usual = PERMISSIONS_SECRET if type_ in SECRET_TYPES else PERMISSIONS_DEFAULT
    permissions = _field(document, "permissions", str, path, str(usual))
    references = []
    for number, item in enumerate(_field(document, "references", list, path, [])):
        at = f"{path}.references[{number}]"
        if not isinstance(item, Mapping):
            raise _bad(at, "must be an object.", "应为对象。")
        name = "handle" if "handle" in item else "identifier"
        references.append(Reference(_field(item, name, str, at), _field(item, "index", int, at, 0)))
    stamp = document.get("timestamp")
    return Value(
        index=_field(document, "index", int, path),
        type=type_,
        data=_octets(document.get("data"), f"{path}.data"),
        ttl=ttl,
        ttl_absolute=absolute,
        timestamp=0 if stamp is None else decode_time(stamp, f"{path}.timestamp"),
        permissions=Permissions.parse(permissions),
        references=tuple(references),
    )


def decode_values(documents: object, path: str = "values") -> tuple[Value, ...]:
    if not isinstance(documents, list):
        raise _bad(path, "must be a list.", "应为列表。")
    return tuple(decode_value(item, f"{path}[{n}]") for n, item in enumerate(documents))


def encode_record(record: Record) -> Json:
    return {
        "identifier": str(record.identifier),
        "status": record.status.value,
        "template": record.template,
        "version": record.version,
        "sequence": record.sequence,
        "created": encode_time(record.created),
        "modified": encode_time(record.modified),
        "values": [encode_value(value) for value in record.values],
    }


def decode_record(document: object) -> Record:
    """A Record from a node's answer; raises MalformedAnswer on anything else."""
    try:
        assert isinstance(document, Mapping)
        prefix, _, suffix = document["identifier"].partition("/")
        return Record(
            identifier=Identifier(prefix, suffix),
            values=decode_values(document["values"]),
            status=Status(document["status"]),
            template=document.get("template"),
            version=int(document["version"]),
            created=decode_time(document["created"], "created"),
            modified=decode_time(document["modified"], "modified"),
            sequence=int(document["sequence"]),
        )
    except (BiaojieError, AssertionError, KeyError, TypeError, ValueError, AttributeError) as e:
        raise MalformedAnswer(f"Not a record: {e!r}.", f"不是记录：{e!r}。") from e


# Receipts and batches -------------------------------------------------------------------


def encode_receipt(receipt: Receipt) -> Json:
    return {
        "identifier": receipt.identifier,
        "action": receipt.action.value,
        "status": receipt.status,
        "version": receipt.version,
        "sequence": receipt.sequence,
    }


def decode_receipt(document: object) -> Receipt:
    try:
        assert isinstance(document, Mapping)
        return Receipt(
            identifier=str(document["identifier"]),
            action=Action(document["action"]),
            status=str(document["status"]),
            version=int(document["version"]),
            sequence=int(document["sequence"]),
        )
    except (AssertionError, KeyError, TypeError, ValueError) as e:
        raise MalformedAnswer(f"Not a receipt: {e!r}.", f"不是回执：{e!r}。") from e


def encode_row(row: RowResult) -> Json:
    if row.receipt is not None:
        return {"row": row.row, "ok": True, **encode_receipt(row.receipt)}
    return {
        "row": row.row,
        "ok": False,
        "identifier": row.identifier,
        "code": row.code,
        "detail": row.en,
        "detail_zh": row.zh,
    }


def encode_batch(result: BatchResult) -> Json:
    return {
        "mode": result.mode,
        "dry_run": result.dry_run,
        "sequence": result.sequence,
        "written": result.written,
        "failed": len(result.failed),
        "rows": [encode_row(row) for row in result.rows],
    }


def decode_batch(document: object) -> BatchResult:
    try:
        assert isinstance(document, Mapping)
        return BatchResult(
            mode=str(document["mode"]),
            dry_run=bool(document["dry_run"]),
            sequence=int(document["sequence"]),
            rows=tuple(
                RowResult(
                    row=int(row["row"]),
                    identifier=str(row["identifier"]),
                    receipt=decode_receipt(row) if row["ok"] else None,
                    code=str(row.get("code", "")),
                    en=str(row.get("detail", "")),
                    zh=str(row.get("detail_zh", "")),
                )
                for row in document["rows"]
            ),
        )
    except (AssertionError, KeyError, TypeError, ValueError) as e:
        raise MalformedAnswer(f"Not a batch result: {e!r}.", f"不是批量结果：{e!r}。") from e


# Prefixes, keys, changes ----------------------------------------------------------------


def encode_prefix(prefix: Prefix) -> Json:
    return {
        "prefix": prefix.name,
        "tenant": prefix.tenant,
        "status": prefix.status.value,
        "created": encode_time(prefix.created),
        "version": prefix.version,
        "sequence": prefix.sequence,
    }


def decode_prefix(document: object) -> Prefix:
    try:
        assert isinstance(document, Mapping)
        return Prefix(
            name=str(document["prefix"]),
            tenant=str(document["tenant"]),
            status=PrefixStatus(document["status"]),
            created=decode_time(document["created"], "created"),
            version=int(document["version"]),
            sequence=int(document["sequence"]),
        )
    except (BiaojieError, AssertionError, KeyError, TypeError, ValueError) as e:
        raise MalformedAnswer(f"Not a prefix: {e!r}.", f"不是前缀：{e!r}。") from e


def encode_key(key: ApiKey) -> Json:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "role": key.role.value,
        "label": key.label,
        "created": encode_time(key.created),
        "revoked": encode_time(key.revoked) if key.revoked else None,
    }


def decode_key(document: object) -> ApiKey:
    try:
        assert isinstance(document, Mapping)
        revoked = document["revoked"]
        return ApiKey(
            id=str(document["id"]),
            tenant=str(document["tenant"]),
            role=Role(document["role"]),
            label=str(document["label"]),
            created=decode_time(document["created"], "created"),
            revoked=0 if revoked is None else decode_time(revoked, "revoked"),
        )
    except (BiaojieError, AssertionError, KeyError, TypeError, ValueError) as e:
        raise MalformedAnswer(f"Not a key: {e!r}.", f"不是密钥：{e!r}。") from e


def encode_entry(entry: Entry) -> Json:
    return {
        "sequence": entry.sequence,
        "time_ms": entry.time_ms,
        "actor": entry.actor,
        "action": entry.action,
        "prefix": entry.prefix,
        "count": entry.count,
        "root": entry.root.hex(),
        "previous": entry.previous.hex(),
        "hash": entry.hash.hex(),
        "changes": [
            {
                "action": change.action.value,
                "subject": change.subject,
                "version": change.version,
                "actor": change.actor,
                "digest": change.digest.hex(),
            }
            for change in entry.changes
        ],
    }


def decode_entry(document: object) -> Entry:
    try:
        assert isinstance(document, Mapping)
        return Entry(
            sequence=int(document["sequence"]),
            time_ms=int(document["time_ms"]),
            actor=str(document["actor"]),
            action=str(document["action"]),
            prefix=str(document["prefix"]),
            count=int(document["count"]),
            root=bytes.fromhex(document["root"]),
            previous=bytes.fromhex(document["previous"]),
            hash=bytes.fromhex(document["hash"]),
            changes=tuple(
                Change(
                    action=Action(item["action"]),
                    subject=str(item["subject"]),
                    version=int(item["version"]),
                    actor=str(item["actor"]),
                    digest=bytes.fromhex(item["digest"]),
                )
                for item in document["changes"]
            ),
        )
    except (AssertionError, KeyError, TypeError, ValueError) as e:
        raise MalformedAnswer(f"Not a log entry: {e!r}.", f"不是日志条目：{e!r}。") from e


# Errors (RFC 9457 problem details) ------------------------------------------------------

PROBLEM_TYPE = "urn:biaojie:error:"


def encode_error(error: BiaojieError, *, chinese: bool = False) -> Json:
    """Problem JSON. `title`, `detail` and `advice` follow the reader's language; the English
    and Chinese detail are both present as `detail_en` and `detail_zh`."""
    pick = 1 if chinese else 0
    return {
        **error.fields,
        "type": PROBLEM_TYPE + error.code,
        "title": error.title[pick],
        "status": HTTP_STATUS[error.code],
        "code": error.code,
        "detail": error.detail[pick],
        "detail_en": error.detail.en,
        "detail_zh": error.detail.zh,
        "advice": error.advice[pick],
        "request_id": error.request_id,
    }


_PROBLEM_MEMBERS = frozenset(
    ("type", "title", "status", "code", "detail", "detail_en", "detail_zh", "advice", "request_id")
)


def decode_error(document: object, status: int) -> BiaojieError:
    """The error a problem document stands for; total, whatever the document is."""
    if not isinstance(document, Mapping) or document.get("code") not in ERRORS:
        return MalformedAnswer(
            f"HTTP {status} without a problem document.", f"HTTP {status}，且没有错误说明。"
        )
    extra = {
        str(name): item
        for name, item in document.items()
        if name not in _PROBLEM_MEMBERS and isinstance(name, str) and name.isidentifier()
    }
    return ERRORS[document["code"]](
        str(document.get("detail_en", "")),
        str(document.get("detail_zh", "")),
        request_id=str(document.get("request_id", "")),
        **extra,
    )
