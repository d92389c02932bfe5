"""The JSON document codec: values of this library to and from plain JSON objects, sans I/O.

`encode_*` gives dicts of JSON types; `decode_*` takes anything and gives a value or raises:
InvalidRecord about what callers send, MalformedAnswer about what nodes answer. Times are
ISO 8601 UTC text. Errors have their own file, problem.py; its names are here as well.
The value object is the Handle JSON value (index, type, data, ttl, timestamp, permissions,
references) with these liberties: UTF-8 data is plain text instead of {"format": "string"},
and both are read.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from ..account import ApiKey, Prefix, PrefixStatus, Role
from ..change import Action, BatchResult, Change, Entry, Receipt, RowResult
from ..errors import BiaojieError, InvalidIdentifier, InvalidRecord, MalformedAnswer
from ..identifier import Identifier
from ..limits import REFERENCES_MAX, TTL_DEFAULT_S, VALUES_MAX
from ..range import Range
from ..record import (
    Permissions,
    Record,
    Reference,
    Status,
    Value,
    usual_permissions,
)
from .problem import HTTP_STATUS as HTTP_STATUS  # noqa: PLC0414
from .problem import decode_error as decode_error  # noqa: PLC0414
from .problem import encode_error as encode_error  # noqa: PLC0414

Json = dict[str, Any]

# Times ----------------------------------------------------------------------------------

EPOCH_MAX = 253_402_300_799  # 9999-12-31T23:59:59Z, the last that ISO text and datetime hold


@lru_cache(1_024)
def encode_time(epoch_s: float) -> str:
    """ISO text; of a record and its values it is mostly the same time."""
    moment = datetime.fromtimestamp(min(max(epoch_s, 0), EPOCH_MAX), UTC)
    return moment.isoformat(timespec="milliseconds" if epoch_s % 1 else "seconds").replace(
        "+00:00", "Z"
    )


def decode_time(text: object, path: str) -> int:
    """Epoch seconds, 0 to EPOCH_MAX; text without an offset counts as UTC."""
    try:
        if not isinstance(text, str):
            raise ValueError
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = int(moment.timestamp())
    except (ValueError, OverflowError):
        raise InvalidRecord(
            f"{path}: not an ISO 8601 time such as 2030-01-01T00:00:00Z.",
            f"{path}：不是 ISO 8601 时间，例如 2030-01-01T00:00:00Z。",
            path=path,
        ) from None
    return min(max(seconds, 0), EPOCH_MAX)


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


_KINDS = {str: ("text", "文本"), int: ("a whole number", "整数"), list: ("a list", "列表")}
_WHOLE_MAX = 2**63 - 1


def _field(
    document: Mapping[str, Any], name: str, kind: type, path: str, default: Any = None
) -> Any:
    got = document.get(name, default)
    at = f"{path}.{name}"
    if not isinstance(got, kind) or isinstance(got, bool):
        en, zh = _KINDS[kind]
        raise _bad(at, f"must be {en}.", f"应为{zh}。")
    if isinstance(got, int) and abs(got) > _WHOLE_MAX:
        raise _bad(at, "is out of range.", "超出范围。")
    return got


def decode_data(data: object, path: str) -> bytes:
    """The octets of a value's `data`: text, or `{"format": "string|base64|hex", "value": …}`."""
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
    except ValueError:
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
    elif not isinstance(ttl, int) or isinstance(ttl, bool) or abs(ttl) > _WHOLE_MAX:
        raise _bad(f"{path}.ttl", "must be seconds or a time.", "应为秒数或时间。")
    usual = usual_permissions(type_)
    permissions = _field(document, "permissions", str, path, str(usual))
    stamp = document.get("timestamp")
    return Value(
        index=_field(document, "index", int, path),
        type=type_,
        data=decode_data(document.get("data"), f"{path}.data"),
        ttl=ttl,
        ttl_absolute=absolute,
        timestamp=0 if stamp is None else decode_time(stamp, f"{path}.timestamp"),
        permissions=Permissions.parse(permissions, f"{path}.permissions"),
        references=_references(document, path),
    )


def _references(document: Mapping[str, Any], path: str) -> tuple[Reference, ...]:
    listed = _field(document, "references", list, path, [])
    if len(listed) > REFERENCES_MAX:
        raise _bad(f"{path}.references", f"over {REFERENCES_MAX}.", f"超过 {REFERENCES_MAX} 个。")
    references = []
    for number, item in enumerate(listed):
        at = f"{path}.references[{number}]"
        if not isinstance(item, Mapping):
            raise _bad(at, "must be an object.", "应为对象。")
        name = "handle" if "handle" in item else "identifier"
        try:
            identifier = Identifier.parse(_field(item, name, str, at))
        except InvalidIdentifier as error:
            raise _bad(f"{at}.{name}", error.detail.en, error.detail.zh) from error
        references.append(Reference(str(identifier), _field(item, "index", int, at, 0)))
    return tuple(references)


def decode_values(documents: object, path: str = "values") -> tuple[Value, ...]:
    if not isinstance(documents, list):
        raise _bad(path, "must be a list.", "应为列表。")
    if len(documents) > VALUES_MAX:
        raise _bad(path, f"over {VALUES_MAX} values.", f"超过 {VALUES_MAX} 个值。")
    return tuple(decode_value(item, f"{path}[{n}]") for n, item in enumerate(documents))


# What follows decodes a node's answers. Whatever is wrong with one is MalformedAnswer.


@contextmanager
def _answer(en: str, zh: str) -> Iterator[None]:
    try:
        yield
    except (BiaojieError, ValueError) as error:
        why = error.detail if isinstance(error, BiaojieError) else (f"{error}", f"{error}")
        raise MalformedAnswer(f"Not a {en}: {why[0][:200]}", f"不是{zh}：{why[1][:200]}") from error


def _object(document: object) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        raise _bad("answer", "must be an object.", "应为对象。")
    return document


def _text(document: Mapping[str, Any], name: str, default: str | None = None) -> str:
    got: str = _field(document, name, str, "answer", default)
    return got


def _whole(document: Mapping[str, Any], name: str) -> int:
    got: int = _field(document, name, int, "answer")
    return got


def _flag(document: Mapping[str, Any], name: str) -> bool:
    got = document.get(name)
    if not isinstance(got, bool):
        raise _bad(f"answer.{name}", "must be true or false.", "应为 true 或 false。")
    return got


def _texts(document: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A list of texts; none where nodes of an earlier version do not tell."""
    got = document.get(name, [])
    if not isinstance(got, list) or not all(isinstance(text, str) for text in got):
        raise _bad(f"answer.{name}", "must be a list of text.", "应为文本列表。")
    return tuple(got)


def _hash(document: Mapping[str, Any], name: str) -> bytes:
    got = bytes.fromhex(_text(document, name))
    if len(got) != 32:
        raise _bad(f"answer.{name}", "must be 32 octets in hexadecimal.", "应为 32 字节十六进制。")
    return got


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
    with _answer("record", "记录"):
        body = _object(document)
        prefix, _, suffix = _text(body, "identifier").partition("/")
        return Record(
            identifier=Identifier(prefix, suffix),
            values=decode_values(body.get("values")),
            status=Status(_text(body, "status")),
            template=None if body.get("template") is None else _text(body, "template"),
            version=_whole(body, "version"),
            created=decode_time(body.get("created"), "created"),
            modified=decode_time(body.get("modified"), "modified"),
            sequence=_whole(body, "sequence"),
        )


def encode_range(found: Range) -> Json:
    return {
        "prefix": found.prefix,
        "pattern": found.pattern,
        "first": found.first,
        "last": found.last,
        "count": found.count,
        "status": found.status.value,
        "template": found.template,
        "version": found.version,
        "sequence": found.sequence,
        "created": encode_time(found.created),
        "modified": encode_time(found.modified),
        "values": [encode_value(value) for value in found.values],
    }


def decode_range(document: object) -> Range:
    with _answer("range", "号段"):
        body = _object(document)
        return Range(
            prefix=_text(body, "prefix"),
            pattern=_text(body, "pattern"),
            first=_text(body, "first"),
            last=_text(body, "last"),
            count=_whole(body, "count"),
            values=decode_values(body.get("values")),
            status=Status(_text(body, "status")),
            template=None if body.get("template") is None else _text(body, "template"),
            version=_whole(body, "version"),
            created=decode_time(body.get("created"), "created"),
            modified=decode_time(body.get("modified"), "modified"),
            sequence=_whole(body, "sequence"),
        )


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
    with _answer("receipt", "回执"):
        body = _object(document)
        return Receipt(
            identifier=_text(body, "identifier"),
            action=Action(_text(body, "action")),
            status=_text(body, "status"),
            version=_whole(body, "version"),
            sequence=_whole(body, "sequence"),
        )


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


def decode_row(document: object) -> RowResult:
    with _answer("row result", "行结果"):
        body = _object(document)
        return RowResult(
            row=_whole(body, "row"),
            identifier=_text(body, "identifier"),
            receipt=decode_receipt(body) if _flag(body, "ok") else None,
            code=_text(body, "code", ""),
            en=_text(body, "detail", ""),
            zh=_text(body, "detail_zh", ""),
        )


def decode_batch(document: object) -> BatchResult:
    with _answer("batch result", "批量结果"):
        body = _object(document)
        return BatchResult(
            mode=_text(body, "mode"),
            dry_run=_flag(body, "dry_run"),
            sequence=_whole(body, "sequence"),
            rows=tuple(decode_row(row) for row in _field(body, "rows", list, "answer")),
        )


# Prefixes, keys, changes ----------------------------------------------------------------


def encode_prefix(prefix: Prefix) -> Json:
    return {
        "prefix": prefix.name,
        "tenant": prefix.tenant,
        "status": prefix.status.value,
        "created": encode_time(prefix.created),
        "version": prefix.version,
        "sequence": prefix.sequence,
        "searchable": list(prefix.searchable),
        "indexing": prefix.indexing,
    }


def decode_prefix(document: object) -> Prefix:
    with _answer("prefix", "前缀"):
        body = _object(document)
        return Prefix(
            name=_text(body, "prefix"),
            tenant=_text(body, "tenant"),
            status=PrefixStatus(_text(body, "status")),
            created=decode_time(body.get("created"), "created"),
            version=_whole(body, "version"),
            sequence=_whole(body, "sequence"),
            searchable=_texts(body, "searchable"),
            indexing=body.get("indexing") is True,
        )


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
    with _answer("key", "密钥"):
        body = _object(document)
        revoked = body.get("revoked")
        return ApiKey(
            id=_text(body, "id"),
            tenant=_text(body, "tenant"),
            role=Role(_text(body, "role")),
            label=_text(body, "label"),
            created=decode_time(body.get("created"), "created"),
            revoked=0 if revoked is None else decode_time(revoked, "revoked"),
        )


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
                **({"last": change.last, "count": change.count} if change.count else {}),
            }
            for change in entry.changes
        ],
    }


def decode_entry(document: object) -> Entry:
    with _answer("log entry", "日志条目"):
        body = _object(document)
        changes = [_object(item) for item in _field(body, "changes", list, "answer")]
        return Entry(
            sequence=_whole(body, "sequence"),
            time_ms=_whole(body, "time_ms"),
            actor=_text(body, "actor"),
            action=_text(body, "action"),
            prefix=_text(body, "prefix"),
            count=_whole(body, "count"),
            root=_hash(body, "root"),
            previous=_hash(body, "previous"),
            hash=_hash(body, "hash"),
            changes=tuple(
                Change(
                    action=Action(_text(item, "action")),
                    subject=_text(item, "subject"),
                    version=_whole(item, "version"),
                    actor=_text(item, "actor"),
                    digest=_hash(item, "digest"),
                    last=_text(item, "last") if "last" in item else "",
                    count=_whole(item, "count") if "count" in item else 0,
                )
                for item in changes
            ),
        )
