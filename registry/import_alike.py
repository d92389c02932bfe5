"""Records of a batch that say the same things about different names, taken column by column.

A look at a whole column at once costs a tenth of looking at each row. What is not certainly
alike is left to whoever looks row by row: `alike` says None, or the same as that would.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from .import_batches import PLAIN_BYTES_MAX
from .import_documents import RECORD_FIELDS

VALUES_MAX = 16
_ARRAY = ("identifier", "values", "status", "template")
_VALUE = ("index", "type", "data")


class Alike(NamedTuple):
    """`said` are index and type of each value, by turns; `data` those of each row."""

    names: Sequence[str]
    said: tuple[Any, ...]
    data: list[tuple[bytes, ...]]


def alike(
    rows: Sequence[Any], statuses: Collection[object], templates: Collection[object]
) -> Alike | None:
    """Rows of JSON or msgpack, whose status and template is one of these or not given."""
    try:
        fields = _fields(rows)
        if (
            fields is None
            or _only(map(type, fields["identifier"])) is not str
            or not set(fields.get("status", ())) <= set(statuses)
            or not set(fields.get("template", ())) <= set(templates)
        ):
            return None
        values = fields["values"]
        if _only(map(type, values)) is not list:
            return None
        if len(values[0]) > VALUES_MAX:
            return None
        said: list[Any] = []
        columns = []
        for nth in zip(*values, strict=True):
            index, type_, data = _value(nth)
            octets = _octets(data)
            if octets is None or type(index) is not int or type(type_) is not str:
                return None
            said += index, type_
            columns.append(octets)
    except (KeyError, TypeError, ValueError):  # a field is missing or more, a value no text
        return None
    datas: list[tuple[bytes, ...]] = list(zip(*columns, strict=True)) or [()] * len(rows)
    return Alike(fields["identifier"], tuple(said), datas)


def _only(items: Any) -> Any:
    """What they all are, None where they differ. Types told apart first: 1 is True, too."""
    found = set(items)
    return found.pop() if len(found) == 1 else None


def _fields(rows: Sequence[Any]) -> dict[str, Sequence[Any]] | None:
    kind, width = _only(map(type, rows)), _only(map(len, rows))
    if kind is list and width in (2, 3, 4):
        return dict(zip(_ARRAY, zip(*rows, strict=True), strict=False))
    names = tuple(rows[0]) if kind is dict and width else ()
    if {"identifier", "values"} <= set(names) <= RECORD_FIELDS:
        return dict(zip(names, zip(*map(itemgetter(*names), rows), strict=True), strict=True))
    return None


def _value(nth: Sequence[Any]) -> tuple[Any, Any, Sequence[Any]]:
    """Index and type of the n-th values of all rows, None where they differ; and their data."""
    kind = _only(map(type, nth))
    if kind is list:
        indexes, types, data = zip(*nth, strict=True)
    elif kind is dict and _only(map(len, nth)) == len(_VALUE):
        indexes, types, data = zip(*map(itemgetter(*_VALUE), nth), strict=True)
    else:
        return None, None, ()
    if _only(map(type, indexes)) is not int:
        return None, None, ()
    one = types.count(types[0]) == len(types)
    return _only(indexes), types[0] if one else None, data


def _octets(data: Sequence[Any]) -> Sequence[bytes] | None:
    kind = _only(map(type, data))
    octets: Sequence[bytes]
    if kind is str:
        octets = "\n".join(data).encode().split(b"\n")
        if len(octets) != len(data):
            octets = [text.encode() for text in data]
    elif kind is bytes:
        octets = data
    else:
        return None
    return octets if max(map(len, octets)) <= PLAIN_BYTES_MAX else None
