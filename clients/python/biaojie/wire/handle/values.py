"""The Handle value (RFC 3652 §2.1.2, RFC 3651 §3.1) as octets, and which values a query asks for.

    index 4 · timestamp 4 · ttl type 1 · ttl 4 · permissions 1 · type · data
    · number of references 4 · (identifier · index 4)*

Reference entries have an index, as in the reference code and against Wireshark's dissector.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from ...record import Permissions, Reference, Value, fold_type, make_value
from .codes import HANDLE_OCTETS_MAX, VALUES_PER_MESSAGE_MAX
from .cursor import Malformed, Reader, block, text, u32

_FIXED = struct.Struct("!IIBIB")
VALUE_OCTETS_MIN: Final = _FIXED.size + 12
REFERENCE_OCTETS_MIN: Final = 8
_FRONT = struct.Struct("!IIBIBI")
"""The fixed part and the length of the type."""
_NONE: Final = bytes(4)
_PERMISSIONS: Final = tuple(Permissions(octet) for octet in range(16))


def read_value(reader: Reader) -> Value:
    """One value; raises Malformed. Bits of the permission octet without a meaning are dropped."""
    fixed = reader.octets(_FIXED.size, "the fixed part of a value")
    index, timestamp, ttl_type, ttl, permissions = _FIXED.unpack(fixed)
    if ttl_type > 1:
        raise Malformed(reader.offset - 6, "a TTL type, 0 or 1")
    type_ = reader.text("a value's type")
    data = reader.block("a value's data")
    references = read_references(reader)
    return make_value(
        index,
        type_,
        data,
        ttl,
        ttl_type == 1,
        timestamp,
        _PERMISSIONS[permissions & 0x0F],
        references,
    )


def read_reference(reader: Reader, what: str = "a reference") -> Reference:
    """A string and an int4 index."""
    return Reference(reader.text(what, HANDLE_OCTETS_MAX), reader.u32("an index"))


def read_references(reader: Reader) -> tuple[Reference, ...]:
    """A count and that many references."""
    number = reader.count("references", VALUES_PER_MESSAGE_MAX, REFERENCE_OCTETS_MIN)
    return tuple(read_reference(reader) for _ in range(number))


def read_values(reader: Reader) -> tuple[Value, ...]:
    """A count and that many values."""
    number = reader.count("values", VALUES_PER_MESSAGE_MAX, VALUE_OCTETS_MIN)
    return tuple(read_value(reader) for _ in range(number))


def encode_value(value: Value) -> bytes:
    """Raises ValueError where a number does not fit its octets."""
    type_, data = value.type.encode(), value.data
    try:
        front = _FRONT.pack(
            value.index,
            value.timestamp,
            value.ttl_absolute,
            value.ttl,
            value.permissions,
            len(type_),
        )
    except struct.error as error:
        raise ValueError(f"value {value.index}: {error}") from None
    references = encode_references(value.references) if value.references else _NONE
    return b"".join((front, type_, block(data), references))


def encode_reference(reference: Reference) -> bytes:
    return text(reference.identifier) + u32(reference.index)


def encode_references(references: Sequence[Reference]) -> bytes:
    return u32(len(references)) + b"".join(map(encode_reference, references))


def encode_values(values: Sequence[Value]) -> bytes:
    return u32(len(values)) + b"".join(map(encode_value, values))


def decode_value(data: bytes) -> Value:
    """A value that stands alone; raises Malformed."""
    reader = Reader(data)
    value = read_value(reader)
    reader.done("the value")
    return value


def asked_for(
    values: Iterable[Value], indexes: Sequence[int] = (), types: Sequence[str] = ()
) -> tuple[Value, ...]:
    """The values that a resolution asks for: by index or by type; all where both are empty.

    Types match whatever their ASCII case; one that ends in `.` asks for the bare type and
    for all its subtypes (`URL.` for `URL` and `URL.mirror`).
    """
    if not indexes and not types:
        return tuple(values)
    wanted = frozenset(indexes)
    exact: set[str] = set()
    families: list[str] = []
    for type_ in map(fold_type, types):
        if type_.endswith("."):
            families.append(type_)
            exact.add(type_[:-1])
        else:
            exact.add(type_)
    starts = tuple(families)
    return tuple(
        value
        for value in values
        if value.index in wanted
        or (folded := fold_type(value.type)) in exact
        or (starts and folded.startswith(starts))
    )
