"""Values and records as they are written on a command line or in a JSON file."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from biaojie.errors import InvalidRecord, InvalidRequest
from biaojie.record import PERMISSIONS_DEFAULT, PERMISSIONS_SECRET, SECRET_TYPES, Record, Value
from biaojie.wire.document import decode_value, decode_values

_INDEXED = re.compile(r"([1-9][0-9]{0,9}):(.+)", re.DOTALL)
FILE_BYTES_MAX = 8 * 2**20
_VALUE_MEMBERS = {"index", "type", "data", "ttl", "timestamp", "permissions", "references"}
_MEMBERS = {"identifier", "values", "status", "template"}
_IGNORED = {"version", "sequence", "created", "modified"}
"""What a printed record holds and a registration decides anew."""


def parse_value(text: str) -> Value:
    """`TYPE=DATA`, `INDEX:TYPE=DATA`, or a JSON value object. Index 0: none was given."""
    if text.startswith("{"):
        document = _json(text, "value")
        _check_members(document, _VALUE_MEMBERS, "value")
        return decode_value({"index": 0, **document})
    name, equals, data = text.partition("=")
    indexed = _INDEXED.fullmatch(name)
    type_ = indexed[2] if indexed else name
    if not equals or not type_:
        raise InvalidRecord(
            f"{text!a} is not TYPE=DATA, INDEX:TYPE=DATA or a JSON value.",
            f"“{ascii(text)[1:-1]}”不是 TYPE=DATA、INDEX:TYPE=DATA 或 JSON 值。",
            path="value",
        )
    usual = PERMISSIONS_SECRET if type_ in SECRET_TYPES else PERMISSIONS_DEFAULT
    octets = data.encode("utf-8", "surrogateescape")  # as the shell gave them
    return Value(int(indexed[1]) if indexed else 0, type_, octets, permissions=usual)


def parse_pair(text: str) -> tuple[str, str]:
    """`TYPE=DATA` as type and data, to search for; raises InvalidRequest."""
    type_, equals, data = text.partition("=")
    if not equals or not type_:
        raise InvalidRequest(f"{text!a} is not TYPE=DATA.", f"{text!a} 不是 TYPE=DATA。")
    return type_, data


def number(
    values: Sequence[Value], taken: Record | None = None, hidden: Set[int] = frozenset()
) -> tuple[Value, ...]:
    """Give an index to each value without one: that of the only value of its type in `taken`,
    else the first that is free. `hidden` are indexes in use that the record does not show."""
    used = {value.index for value in values if value.index} | set(hidden)
    kept = {value.index for value in taken.values} if taken else set()
    numbered = []
    for value in values:
        index = value.index
        if not index:
            same = [old.index for old in taken.values if old.type == value.type] if taken else []
            fresh = [old for old in same if old not in used]
            index = fresh[0] if len(same) == 1 and fresh else _free(used | kept)
        used.add(index)
        numbered.append(replace(value, index=index))
    return tuple(numbered)


def _free(used: set[int]) -> int:
    index = 1
    while index in used:
        index += 1
    return index


@dataclass(frozen=True, slots=True)
class Given:
    """What a file says of a record to be; None: nothing."""

    identifier: str | None = None
    values: tuple[Value, ...] = ()
    status: str | None = None
    template: str | None = None


def read_record(path: Path) -> Given:
    """A record document, or a bare list of values, from a JSON file (`-`: standard input).

    What `resolve --json` printed can be registered again. Raises InvalidRecord.
    """
    if str(path) == "-":
        octets = sys.stdin.buffer.read(FILE_BYTES_MAX + 1)
    else:
        with path.open("rb") as file:
            octets = file.read(FILE_BYTES_MAX + 1)
    if len(octets) > FILE_BYTES_MAX:
        raise InvalidRecord(
            f"{path}: over {FILE_BYTES_MAX} bytes.", f"{path}：超过 {FILE_BYTES_MAX} 字节。"
        )
    document = _json(octets, str(path))
    if isinstance(document, list):
        document = {"values": document}
    if not isinstance(document, dict):
        raise InvalidRecord(
            f"{path}: neither a record nor a list of values.", f"{path}：不是记录，也不是值列表。"
        )
    _check_members(document, _MEMBERS | _IGNORED, str(path))
    texts = {name: document.get(name) for name in ("identifier", "status", "template")}
    for name, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise InvalidRecord(f"{name}: must be text.", f"{name}：应为文本。", path=name)
    values = document.get("values", [])
    for value in values if isinstance(values, list) else ():
        if isinstance(value, dict):
            _check_members(value, _VALUE_MEMBERS, f"{path}: values")
    return Given(values=decode_values(values), **texts)


def _check_members(document: dict[str, Any], known: set[str], what: str) -> None:
    """Raise InvalidRecord for a misspelt field: an ignored `permisions` publishes a secret."""
    unknown = sorted(document.keys() - known)
    if unknown:
        raise InvalidRecord(
            f"{what}: there is no field {unknown[0]!a}.",
            f"{what}：没有字段 {unknown[0]!a}。",
            path=unknown[0],
        )


def _json(text: str | bytes, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRecord(
            f"{what}: not JSON: {error}.", f"{what}：不是合法的 JSON：{error}。", path=what
        ) from None
