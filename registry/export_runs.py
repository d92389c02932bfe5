"""What exports write of runs: the octets that their records would give, made by the column. Pure.

What all records of a group share is encoded once, by the same functions as a single record, and
kept as a form (`bytes % …`) for the next run with the same head.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from biaojie.identifier import Identifier
from biaojie.making import maker
from biaojie.record import Status, Value, make_record
from biaojie.wire.document import encode_record, encode_time, encode_value
from biaojie.wire.handle_batch import CREATE, TYPED, all_fit, encode_line, fits, has_line

from .runs import Group, Head, Run

_FORMS_KEPT = 1_024
_identifier = maker(Identifier)


def _literal(octets: bytes) -> bytes:
    """As part of a form."""
    return octets.replace(b"%", b"%%")


def _all_text(joined: bytes) -> bool:
    """Whether all items are UTF-8 that were joined by something in ASCII."""
    if joined.isascii():
        return True
    try:
        joined.decode()
    except UnicodeDecodeError:
        return False
    return True


# JSON -----------------------------------------------------------------------------------

_ESCAPED = bytes(range(32)) + b'"\\'


def _json_column(items: Sequence[bytes]) -> tuple[bytes, Sequence[bytes]]:
    """Data as JSON, and the quotation mark that is yet to be put around each."""
    joined = b"\n".join(items)
    safe = len(joined.translate(None, _ESCAPED)) == len(joined) - len(items) + 1
    if safe and _all_text(joined):
        return b'"', items
    return b"", list(map(_json_data, items))


def _json_data(item: bytes) -> bytes:
    try:
        return orjson.dumps(item.decode())
    except UnicodeDecodeError:
        return b'{"format":"base64","value":"%b"}' % b2a_base64(item, newline=False)


@lru_cache(_FORMS_KEPT)
def _value_form(value: Value, quote: bytes) -> bytes:
    fields = list(encode_value(value).items())
    at = [name for name, _ in fields].index("data")
    before, after = (orjson.dumps(dict(some)) for some in (fields[:at], fields[at + 1 :]))
    start, end = _literal(before[:-1]), _literal(after[1:])
    return start + b',"data":' + quote + b"%b" + quote + b"," + end


@lru_cache(_FORMS_KEPT)
def _record_form(head: Head, values: tuple[Value, ...], quotes: tuple[bytes, ...]) -> bytes:
    """For a suffix and the data of each value."""
    prefix, status, template, version, sequence, created, modified = head
    bare = make_record(
        _identifier(prefix, ""), (), status, template, version, created, modified, sequence
    )
    document: dict[str, Any] = encode_record(bare)
    name, _ = document.pop("identifier"), document.pop("values")
    assert [*encode_record(bare)] == ["identifier", *document, "values"]
    start = b'{"identifier":' + orjson.dumps(name)[:-1]
    between = b'",' + orjson.dumps(document)[1:-1] + b',"values":['
    listed = b",".join(map(_value_form, values, quotes))
    return _literal(start) + b"%b" + _literal(between) + listed + b"]}\n"


def json_lines(run: Run) -> Sequence[bytes]:
    """A line for each record."""
    made = []
    for kind, group in enumerate(run.groups):
        quote, names = _json_column(run.names(kind))
        if not quote:
            names = [name[1:-1] for name in names]
        columns = [_json_column(items) for items in group.columns]
        form = _record_form(run.head, group.values, tuple([quote for quote, _ in columns]))
        each = zip(names, *[items for _, items in columns], strict=True)
        made.append(list(map(form.__mod__, each)))
    return run.placed(made)


# CSV ------------------------------------------------------------------------------------

_QUOTED = b',"\r\n'


def _cell(octets: bytes) -> bytes:
    if len(octets.translate(None, _QUOTED)) == len(octets):
        return octets
    return b'"' + octets.replace(b'"', b'""') + b'"'


def _cells(items: Sequence[bytes]) -> Sequence[bytes]:
    joined = b"\n".join(items)
    if len(joined.translate(None, _QUOTED)) == len(joined) - len(items) + 1:
        return items
    return list(map(_cell, items))


def _shown(item: bytes) -> bool:
    """Whether the data is text that a cell can show."""
    return bool(item) and b"\0" not in item and _all_text(item)


def _all_shown(items: Sequence[bytes]) -> bool:
    joined = b"\n".join(items)
    return all(items) and b"\0" not in joined and _all_text(joined)


class _Cells(NamedTuple):
    """Of a group: cells by place in the row, and what no cell shows."""

    shown: dict[int, Sequence[bytes]]
    more: list[tuple[Value, Sequence[bytes]]]


def _sorted_out(
    group: Group, place: Mapping[tuple[int, str], int], is_plain: Callable[[Value], bool]
) -> _Cells | None:
    """None where some of a column can be shown, and some of it cannot."""
    cells = _Cells({}, [])
    for value, items in zip(group.values, group.columns, strict=True):
        at = place.get((value.index, value.type))
        if at is None or not is_plain(value):
            cells.more.append((value, items))
        elif _all_shown(items):
            cells.shown[at] = _cells(items)
        elif any(map(_shown, items)):
            return None
        else:
            cells.more.append((value, items))
    return cells


def _more_cells(more: Sequence[tuple[Value, Sequence[bytes]]]) -> list[bytes]:
    """JSON lists, within the quotation marks that are to be put around them."""
    columns = [_json_column(items) for _, items in more]
    forms = [
        _value_form(_unstamped(value), quote)
        for (value, _), (quote, _) in zip(more, columns, strict=True)
    ]
    form = b"[" + b",".join(forms) + b"]"
    each = zip(*[items for _, items in columns], strict=True)
    # At once: no JSON has a line feed in it.
    return b"\n".join(map(form.__mod__, each)).replace(b'"', b'""').split(b"\n")


@lru_cache(_FORMS_KEPT)
def _unstamped(value: Value) -> Value:
    return replace(value, timestamp=0)


@lru_cache(_FORMS_KEPT)
def _alike(head: Head) -> list[bytes]:
    """Cells for a form."""
    times = (encode_time(head.created), encode_time(head.modified))
    texts = (head.status.value, head.template or "", str(head.version), *times)
    return [_literal(_cell(text.encode())) for text in texts]


def csv_lines(
    run: Run, place: Mapping[tuple[int, str], int], is_plain: Callable[[Value], bool]
) -> Sequence[bytes] | None:
    """A row for each record; None where they must be looked at one by one.

    `place` says which cell shows values of an index and type, if `is_plain` says so of them
    without their data.
    """
    start = run.head.prefix.encode() + b"/"
    made: list[list[bytes]] = []
    for kind, group in enumerate(run.groups):
        names = run.names(kind)
        if not names:
            made.append([])
            continue
        cells = _sorted_out(group, place, is_plain)
        if cells is None:
            return None
        columns = [_cells([start + name for name in names])]
        form = [b"%b", *_alike(run.head)]
        form += [b"%b" if at in cells.shown else b"" for at in range(len(place))]
        columns += [cells.shown[at] for at in sorted(cells.shown)]
        form.append(b'"%b"' if cells.more else b"")
        if cells.more:
            columns.append(_more_cells(cells.more))
        whole = b",".join(form) + b"\r\n"
        made.append(list(map(whole.__mod__, zip(*columns, strict=True))))
    return run.placed(made)


# Handle batches -------------------------------------------------------------------------

_RESOLVES = frozenset({Status.ACTIVE, Status.FROZEN})


class Creates(NamedTuple):
    """What is written of each record, nothing of those that are left out."""

    texts: Sequence[bytes]
    records_left_out: int
    values_left_out: int


def creates(run: Run) -> Creates:
    if run.head.status not in _RESOLVES:
        return Creates((), len(run), 0)
    start = (CREATE + run.head.prefix + "/").encode()
    made = []
    records = left_out = 0
    for kind, group in enumerate(run.groups):
        names = run.names(kind)
        columns = list(map(_value_lines, group.values, group.columns))
        bodies = list(map(b"".join, zip(*columns, strict=True))) if columns else [b""] * len(names)
        left_out += sum(lines.count(b"") for lines in columns)
        records += bodies.count(b"")
        made.append(
            [
                b"%b%b\n%b\n" % (start, name, body) if body else b""
                for name, body in zip(names, bodies, strict=True)
            ]
        )
    return Creates(run.placed(made), records, left_out)


def _value_lines(value: Value, items: Sequence[bytes]) -> list[bytes]:
    """The line of each, nothing where none can carry it."""
    if not has_line(value):
        return [b""] * len(items)
    if value.type in TYPED:
        lines = {item: encode_line(replace(value, data=item)).encode() for item in set(items)}
        return [lines[item] for item in items]
    start = f"{value.index} {value.type} {value.ttl} {value.permissions} UTF8 ".encode()
    try:
        texts = b"\n".join(items).decode().split("\n")
    except UnicodeDecodeError:
        texts = []
    if len(texts) == len(items) and all_fit(texts):
        return [start + item + b"\n" for item in items]
    return [start + item + b"\n" if _fits(item) else b"" for item in items]


def _fits(item: bytes) -> bool:
    try:
        return fits(item.decode())
    except UnicodeDecodeError:
        return False
