"""What commands print: in the reader's language, and safe to print whatever it holds."""

from __future__ import annotations

import base64
import json
import os
import unicodedata
from collections.abc import Mapping
from typing import Any

from biaojie.errors import BiaojieError
from biaojie.record import Record, Value


def chinese(environment: Mapping[str, str] | None = None) -> bool:
    """Whether the locale of the terminal is a Chinese one."""
    environment = os.environ if environment is None else environment
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if environment.get(name):
            return environment[name].lower().startswith("zh")
    return False


def say(en: str, zh: str) -> str:
    return zh if chinese() else en


def safe(text: str) -> str:
    """Text from outside on one line: control and format characters are written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def error_text(error: BiaojieError, *, as_json: bool = False) -> str:
    """One block: what, the details, what to do; or problem JSON on one line."""
    if as_json:
        from biaojie.wire.document import encode_error

        return to_json(encode_error(error, chinese=chinese()))
    pick = 1 if chinese() else 0
    lines = [f"biaojie: {error.title[pick]} [{error.code}]"]
    if error.detail[pick].rstrip(".。") != error.title[pick]:
        lines.append(f"  {safe(error.detail[pick])}")
    for fault in _faults(error):
        lines.append(f"  - {safe(fault)}")
    lines.append(f"  {error.advice[pick]}")
    if error.request_id:
        lines.append(say("  request ", "  请求编号 ") + safe(error.request_id))
    return "\n".join(lines)


def _faults(error: BiaojieError) -> list[str]:
    """The single faults that some errors list, at most 20."""
    listed = error.fields.get("errors") or error.fields.get("rows") or ()
    if not isinstance(listed, (list, tuple)):
        return []
    return [fault if isinstance(fault, str) else to_json(fault) for fault in listed[:20]]


def to_json(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, default=str)


def value_data(value: Value) -> str:
    text = value.text
    if text is None:
        return "base64:" + base64.b64encode(value.data).decode()
    return safe(text)


def value_ttl(value: Value) -> str:
    if not value.ttl_absolute:
        return str(value.ttl)
    from biaojie.wire.document import encode_time

    return encode_time(value.ttl)


def answer(record: Record, source: str, flags: list[str], took_s: float, server: str) -> str:
    """A look-up's result for people, after the manner of dig."""
    name = safe(str(record.identifier))
    facts = [
        f"status: {record.status}",
        f"version: {record.version}",
        f"source: {source or '-'}",
        f"flags: {' '.join(flags) or '-'}",
    ]
    if record.template:
        facts.append(f"template: {safe(record.template)}")
    head = ("identifier", "ttl", "index", "type", "perm", "data")
    rows = [
        (
            name,
            value_ttl(value),
            str(value.index),
            safe(value.type),
            str(value.permissions),
            value_data(value),
        )
        for value in record.values
    ]
    widths = [max(_width(row[column]) for row in [head, *rows]) for column in range(5)]
    lines = [f"; {name}", f";; {', '.join(facts)}", "", f";; ANSWER: {len(rows)}"]
    if rows:
        lines.append(";" + _line(head, [widths[0] - 1, *widths[1:]]))
        lines += [_line(row, widths) for row in rows]
    lines += ["", f";; Query time: {took_s * 1000:.0f} ms", f";; Server: {server}"]
    return "\n".join(lines)


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = [
        cell + " " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=False)
    ]
    return "  ".join([*padded, cells[-1]])


def _width(text: str) -> int:
    """Columns on a terminal: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
