"""The stored form of a record: everything that has no column of its own. Pure.

msgpack [created, modified − created, values] or [created, modified − created, values, extras].
A value is [index, type, data] or [index, type, data, extras]. Extras are maps of small
integers and hold only what differs from the default, so the common record pays nothing for
the rare fields. The numbers below are permanent; a new field takes a new number.
"""

from __future__ import annotations

from typing import Any

import msgpack

from biaojie.identifier import Identifier, Key
from biaojie.limits import TTL_DEFAULT_S
from biaojie.making import maker
from biaojie.record import (
    PERMISSIONS_DEFAULT,
    Permissions,
    Record,
    Reference,
    Status,
    Value,
    make_record,
    make_value,
)

_SUFFIX, _PREFIX = 1, 2
_TTL, _TTL_ABSOLUTE, _TIMESTAMP, _PERMISSIONS, _REFERENCES = 1, 2, 3, 4, 5


def _encode_value(value: Value, modified: int) -> list[Any]:
    extras: dict[int, Any] = {}
    if value.ttl != TTL_DEFAULT_S:
        extras[_TTL] = value.ttl
    if value.ttl_absolute:
        extras[_TTL_ABSOLUTE] = True
    if value.timestamp != modified:
        extras[_TIMESTAMP] = value.timestamp
    if value.permissions != PERMISSIONS_DEFAULT:
        extras[_PERMISSIONS] = value.permissions.value
    if value.references:
        extras[_REFERENCES] = [[r.identifier, r.index] for r in value.references]
    plain = [value.index, value.type, value.data]
    return [*plain, extras] if extras else plain


def encode_blob(record: Record, key: Key) -> bytes:
    """What `decode_blob` needs besides the columns. `key` is the key the record is kept under."""
    extras: dict[int, str] = {}
    if record.identifier.suffix.encode() != key.suffix:
        extras[_SUFFIX] = record.identifier.suffix
    if record.identifier.prefix != key.prefix:
        extras[_PREFIX] = record.identifier.prefix
    values = [_encode_value(value, record.modified) for value in record.values]
    plain = [record.created, record.modified - record.created, values]
    packed: bytes = msgpack.packb([*plain, extras] if extras else plain)
    return packed


def _decode_value(
    modified: int, index: int, type_: str, data: bytes, extras: dict[int, Any]
) -> Value:
    permissions = extras.get(_PERMISSIONS)
    return make_value(
        index,
        type_,
        data,
        extras.get(_TTL, TTL_DEFAULT_S),
        extras.get(_TTL_ABSOLUTE, False),
        extras.get(_TIMESTAMP, modified),
        PERMISSIONS_DEFAULT if permissions is None else Permissions(permissions),
        tuple(Reference(text, number) for text, number in extras.get(_REFERENCES, ())),
    )


# It was checked when it was registered. Checking again on every read would cost more than the
# rest of the decoding, and would hide old records whenever a rule is tightened.
_identifier = maker(Identifier)


def decode_blob(
    blob: bytes, key: Key, status: Status, version: int, sequence: int, template: str | None
) -> Record:
    """The record kept under `key`. Raises ValueError or TypeError on a damaged blob."""
    parts = msgpack.unpackb(blob, strict_map_key=False)
    created, age, values = parts[:3]
    modified = created + age
    prefix, suffix = key.prefix, key.suffix.decode()
    if len(parts) > 3:
        prefix, suffix = parts[3].get(_PREFIX, prefix), parts[3].get(_SUFFIX, suffix)
    decoded = []
    for value in values:
        if len(value) == 3:
            index, type_, data = value
            decoded.append(
                make_value(
                    index, type_, data, TTL_DEFAULT_S, False, modified, PERMISSIONS_DEFAULT, ()
                )
            )
        else:
            decoded.append(_decode_value(modified, *value))
    return make_record(
        _identifier(prefix, suffix),
        tuple(decoded),
        status,
        template,
        version,
        created,
        modified,
        sequence,
    )
