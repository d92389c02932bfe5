"""Records, receipts, prefixes, keys and log entries as arrays of the native protocol. Sans I/O.

Positions and numbers are permanent; arrays grow at their end only. `encode_*` gives what msgpack
packs; `decode_*` takes what it unpacked and raises InvalidRecord or InvalidRequest with the path
of the fault, which readers of answers turn into MalformedAnswer.
"""

from __future__ import annotations

from typing import Any, Final

from ...account import ApiKey, Prefix, PrefixStatus, Role
from ...change import Action, BatchResult, Change, Entry, Receipt, RowResult
from ...identifier import Identifier
from ...limits import REFERENCES_MAX, VALUES_MAX
from ...record import (
    Permissions,
    Record,
    Reference,
    Status,
    Value,
    make_record,
    make_value,
)
from .shapes import EPOCH_MAX, WHOLE_MAX, Row, bad_record, flag, many, octets, row, text, whole

STATUS_NUMBERS: Final = {
    Status.DRAFT: 0,
    Status.ACTIVE: 1,
    Status.FROZEN: 2,
    Status.RETIRED: 3,
}
STATUSES: Final = {number: status for status, number in STATUS_NUMBERS.items()}
assert STATUS_NUMBERS.keys() == set(Status)
_PERMISSIONS: Final = tuple(Permissions(number) for number in range(16))
_IDENTIFIER_CHARS_MAX: Final = 3_060
"""Forms that people paste are longer than what they stand for."""
_TEXT_MAX: Final = 2**16


def decode_status(got: object, path: str) -> Status:
    status = STATUSES.get(got) if type(got) is int else None
    if status is None:
        raise bad_record(path, "must be a status, 0 to 3.", "应为状态码 0 至 3。")
    return status


# Values and records ---------------------------------------------------------------------


def encode_value(value: Value) -> Row:
    return (
        value.index,
        value.type,
        value.data,
        value.ttl,
        value.ttl_absolute,
        value.timestamp,
        int(value.permissions),
        [(r.identifier, r.index) for r in value.references] if value.references else (),
    )


def decode_value(got: object, path: str, number: int) -> Value:
    """`number` is which of the values at `path` it is."""
    if type(got) is tuple and len(got) >= 8:
        index, type_, data, ttl, absolute, timestamp, permissions, references = got[:8]
        if (
            type(index) is int
            and type(type_) is str
            and type(data) is bytes
            and type(ttl) is int
            and type(absolute) is bool
            and type(timestamp) is int
            and type(permissions) is int
            and type(references) is tuple
            and 0 <= index <= WHOLE_MAX
            and 0 <= ttl <= WHOLE_MAX
            and 0 <= timestamp <= EPOCH_MAX
            and 0 <= permissions <= 15
        ):
            named = _references(references, f"{path}[{number}].references") if references else ()
            allowed = _PERMISSIONS[permissions]
            return make_value(index, type_, data, ttl, absolute, timestamp, allowed, named)
    raise bad_record(
        f"{path}[{number}]",
        "must be [index, type, data, ttl, ttl_absolute, timestamp, permissions, references].",
        "应为 [index, type, data, ttl, ttl_absolute, timestamp, permissions, references]。",
    )


def _references(got: Row, path: str) -> tuple[Reference, ...]:
    if len(got) > REFERENCES_MAX:
        raise bad_record(path, f"over {REFERENCES_MAX}.", f"超过 {REFERENCES_MAX} 个。")
    references = []
    for item in got:
        if not (
            type(item) is tuple
            and len(item) >= 2
            and type(item[0]) is str
            and len(item[0]) <= _IDENTIFIER_CHARS_MAX
            and type(item[1]) is int
            and 0 <= item[1] <= WHOLE_MAX
        ):
            raise bad_record(path, "must be [[identifier, index], …].", "应为 [[标识, 索引], …]。")
        references.append(Reference(item[0], item[1]))
    return tuple(references)


def decode_values(got: object, path: str) -> tuple[Value, ...]:
    if not isinstance(got, tuple):
        raise bad_record(path, "must be an array.", "应为数组。")
    if len(got) > VALUES_MAX:
        raise bad_record(path, f"over {VALUES_MAX} values.", f"超过 {VALUES_MAX} 个值。")
    return tuple([decode_value(item, path, n) for n, item in enumerate(got)])


def encode_record(record: Record) -> Row:
    identifier = record.identifier
    return (
        f"{identifier.prefix}/{identifier.suffix}",
        STATUS_NUMBERS[record.status],
        record.version,
        record.sequence,
        record.created,
        record.modified,
        record.template,
        [encode_value(value) for value in record.values],
    )


def decode_record(got: object, path: str = "record") -> Record:
    identifier, status, version, sequence, created, modified, template, values = row(got, 8, path)[
        :8
    ]
    prefix, _, suffix = text(identifier, _IDENTIFIER_CHARS_MAX, f"{path}.identifier").partition("/")
    if not (
        type(version) is type(sequence) is type(created) is type(modified) is int
        and 0 <= version <= WHOLE_MAX
        and 0 <= sequence <= WHOLE_MAX
        and 0 <= created <= WHOLE_MAX
        and 0 <= modified <= WHOLE_MAX
    ):
        raise bad_record(
            path,
            "version, sequence, created and modified must be whole numbers.",
            "版本、序号、创建与修改时间应为整数。",
        )
    return make_record(
        Identifier(prefix, suffix),
        decode_values(values, f"{path}.values"),
        decode_status(status, f"{path}.status"),
        None if template is None else text(template, _TEXT_MAX, f"{path}.template"),
        version,
        created,
        modified,
        sequence,
    )


# Receipts and batches -------------------------------------------------------------------


def encode_receipt(receipt: Receipt, *, replayed: bool) -> Row:
    return (
        receipt.identifier,
        receipt.action.value,
        receipt.status,
        receipt.version,
        receipt.sequence,
        replayed,
    )


def decode_receipt(got: object, path: str = "receipt") -> tuple[Receipt, bool]:
    """The receipt, and whether it was that of an earlier request with the same key."""
    identifier, action, status, version, sequence, replayed = row(got, 6, path)[:6]
    receipt = Receipt(
        text(identifier, _TEXT_MAX, f"{path}.identifier"),
        Action(text(action, 64, f"{path}.action")),
        text(status, 64, f"{path}.status"),
        whole(version, f"{path}.version"),
        whole(sequence, f"{path}.sequence"),
    )
    return receipt, flag(replayed, f"{path}.replayed")


def encode_batch(result: BatchResult, *, replayed: bool) -> Row:
    return (
        result.mode,
        result.dry_run,
        result.sequence,
        [_encode_row(item, replayed) for item in result.rows],
        replayed,
    )


def _encode_row(result: RowResult, replayed: bool) -> Row:
    if result.receipt is not None:
        return (result.row, result.identifier, encode_receipt(result.receipt, replayed=replayed))
    return (result.row, result.identifier, None, result.code, result.en, result.zh)


def decode_batch(got: object, path: str = "batch") -> tuple[BatchResult, bool]:
    mode, dry_run, sequence, rows, replayed = row(got, 5, path)[:5]
    result = BatchResult(
        text(mode, 64, f"{path}.mode"),
        flag(dry_run, f"{path}.dry_run"),
        whole(sequence, f"{path}.sequence"),
        tuple(_decode_row(item, f"{path}.rows") for item in many(rows, WHOLE_MAX, f"{path}.rows")),
    )
    return result, flag(replayed, f"{path}.replayed")


def _decode_row(got: object, path: str) -> RowResult:
    number, identifier, receipt = row(got, 3, path)[:3]
    name = text(identifier, _TEXT_MAX, f"{path}.identifier")
    if receipt is not None:
        return RowResult(whole(number, path), name, decode_receipt(receipt, path)[0])
    code, en, zh = row(got, 6, path)[3:6]
    return RowResult(
        whole(number, path),
        name,
        None,
        text(code, 64, f"{path}.code"),
        text(en, _TEXT_MAX, f"{path}.en"),
        text(zh, _TEXT_MAX, f"{path}.zh"),
    )


# Prefixes, keys, changes ----------------------------------------------------------------


def encode_prefix(prefix: Prefix) -> Row:
    return (
        prefix.name,
        prefix.tenant,
        prefix.status.value,
        prefix.created,
        prefix.version,
        prefix.sequence,
        prefix.searchable,
        prefix.indexing,
    )


def decode_prefix(got: object, path: str = "prefix") -> Prefix:
    name, tenant, status, created, version, sequence, searchable, indexing = row(got, 8, path)[:8]
    listed = many(searchable, WHOLE_MAX, f"{path}.searchable")
    return Prefix(
        text(name, _TEXT_MAX, f"{path}.name"),
        text(tenant, _TEXT_MAX, f"{path}.tenant"),
        PrefixStatus(text(status, 64, f"{path}.status")),
        whole(created, f"{path}.created"),
        whole(version, f"{path}.version"),
        whole(sequence, f"{path}.sequence"),
        tuple(text(type_, _TEXT_MAX, f"{path}.searchable") for type_ in listed),
        flag(indexing, f"{path}.indexing"),
    )


def encode_key(key: ApiKey) -> Row:
    return (key.id, key.tenant, key.role.value, key.label, key.created, key.revoked)


def decode_key(got: object, path: str = "key") -> ApiKey:
    id_, tenant, role, label, created, revoked = row(got, 6, path)[:6]
    return ApiKey(
        text(id_, _TEXT_MAX, f"{path}.id"),
        text(tenant, _TEXT_MAX, f"{path}.tenant"),
        Role(text(role, 64, f"{path}.role")),
        text(label, _TEXT_MAX, f"{path}.label"),
        whole(created, f"{path}.created"),
        whole(revoked, f"{path}.revoked"),
    )


def encode_entry(entry: Entry) -> Row:
    return (
        entry.sequence,
        entry.time_ms,
        entry.actor,
        entry.action,
        entry.prefix,
        entry.count,
        entry.root,
        entry.previous,
        entry.hash,
        [
            (c.action.value, c.subject, c.version, c.actor, c.digest)
            + ((c.last, c.count) if c.count else ())
            for c in entry.changes
        ],
    )


def decode_entry(got: object, path: str = "entry") -> Entry:
    sequence, time_ms, actor, action, prefix, count, root, previous, hash_, changes = row(
        got, 10, path
    )[:10]
    return Entry(
        whole(sequence, f"{path}.sequence"),
        whole(time_ms, f"{path}.time_ms"),
        text(actor, _TEXT_MAX, f"{path}.actor"),
        text(action, _TEXT_MAX, f"{path}.action"),
        text(prefix, _TEXT_MAX, f"{path}.prefix"),
        whole(count, f"{path}.count"),
        _hash(root, f"{path}.root"),
        _hash(previous, f"{path}.previous"),
        _hash(hash_, f"{path}.hash"),
        tuple(_change(item, path) for item in many(changes, WHOLE_MAX, f"{path}.changes")),
    )


def _change(got: object, path: str) -> Change:
    fields = row(got, 5, f"{path}.changes")
    action, subject, version, actor, digest = fields[:5]
    last, count = fields[5:7] if len(fields) >= 7 else ("", 0)
    return Change(
        Action(text(action, 64, f"{path}.action")),
        text(subject, _TEXT_MAX, f"{path}.subject"),
        whole(version, f"{path}.version"),
        text(actor, _TEXT_MAX, f"{path}.actor"),
        _hash(digest, f"{path}.digest"),
        text(last, _TEXT_MAX, f"{path}.last"),
        whole(count, f"{path}.count"),
    )


def _hash(got: Any, path: str) -> bytes:
    if len(octets(got, 32, path)) != 32:
        raise bad_record(path, "must be 32 octets.", "应为 32 字节。")
    return bytes(got)
