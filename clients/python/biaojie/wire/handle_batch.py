"""The batch format of handle.net: text in which Handle tools take registrations in bulk.

    CREATE 88.118.8/SN1
    1 URL 86400 1110 UTF8 https://example.com/
    100 HS_ADMIN 86400 1110 ADMIN 300:111111111111:0.NA/88.118.8
    (an empty line)

A value is written only if reading the line gives the same value again, its timestamp apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from ..errors import BiaojieError, InvalidFile
from ..identifier import Identifier
from ..limits import VALUES_MAX
from ..record import Permissions, Record, Reference, Value, check_values
from .handle.typed import (
    Admin,
    decode_admin,
    decode_value_list,
    encode_value_list,
    format_rights,
    parse_rights,
)

CREATE = "CREATE "
TYPED = frozenset({"HS_ADMIN", "HS_VLIST"})
"""Types whose data a line shows in other ways than as text."""
_LINE = re.compile(
    r"([1-9][0-9]{0,9}) (\S+) ([0-9]{1,10}) ([01]{4}) (UTF8|ADMIN|LIST) (.+)", re.DOTALL
)


def fits(text: str) -> bool:
    """Whether a line can carry the text: it is neither empty nor has it line ends or outer
    white space."""
    return bool(text) and "\n" not in text and "\r" not in text and text.strip() == text


def all_fit(texts: list[str]) -> bool:
    """`fits` of each, none of which has a line feed."""
    return all(texts) and "\r" not in "".join(texts) and list(map(str.strip, texts)) == texts


def encode_create(record: Record) -> tuple[str, int]:
    """The lines that register a record, and how many of its values no line can carry.

    No lines if there would be no value, which Handle does not know.
    """
    lines = [line for value in record.values if (line := encode_line(value))]
    left_out = len(record.values) - len(lines)
    if not lines:
        return "", left_out
    return f"{CREATE}{record.identifier}\n{''.join(lines)}\n", left_out


def encode_line(value: Value) -> str:
    """The line of a value; empty if none can carry it."""
    if not has_line(value):
        return ""
    start = f"{value.index} {value.type} {value.ttl} {value.permissions} "
    for kind, shown in (("ADMIN", _admin), ("LIST", _list), ("UTF8", _text)):
        text = shown(value)
        if text and fits(text):
            return f"{start}{kind} {text}\n"
    return ""


def has_line(value: Value) -> bool:
    """Whether a line can say all but the data."""
    return not (value.ttl_absolute or value.references or any(c.isspace() for c in value.type))


def _admin(value: Value) -> str:
    if value.type != "HS_ADMIN":
        return ""
    try:
        held = decode_admin(value.data)
    except ValueError:
        return ""
    text = f"{held.admin.index}:{format_rights(held.rights)}:{held.admin.identifier}"
    return text if _admin_data(text) == value.data else ""


def _admin_data(text: str) -> bytes:
    index, rights, identifier = text.split(":", 2)
    return Admin(parse_rights(rights), Reference(identifier, int(index))).encode()


def _list(value: Value) -> str:
    if value.type != "HS_VLIST":
        return ""
    try:
        held = decode_value_list(value.data)
    except ValueError:
        return ""
    text = ";".join(f"{reference.index}:{reference.identifier}" for reference in held)
    return text if text and _list_data(text) == value.data else ""


def _list_data(text: str) -> bytes:
    pairs = [part.partition(":") for part in text.split(";")]
    try:
        return encode_value_list(tuple(Reference(name, int(index)) for index, _, name in pairs))
    except ValueError:  # a semicolon was part of a name
        return b""


def _text(value: Value) -> str:
    return value.text or ""


_DATA: dict[str, Callable[[str], bytes]] = {
    "ADMIN": _admin_data,
    "LIST": _list_data,
    "UTF8": str.encode,
}


def decode_line(line: str) -> Value:
    """A value from its line, without the line's end. Raises ValueError or BiaojieError."""
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError("not a value line")
    index, type_, ttl, permissions, kind, text = match.groups()
    data = _DATA[kind](text)
    if not data:
        raise ValueError(f"not the text of a {kind} value")
    value = Value(int(index), type_, data, int(ttl), permissions=Permissions.parse(permissions))
    value.check()
    return value


def decode_creates(lines: Iterable[str]) -> Iterator[tuple[Identifier, tuple[Value, ...]]]:
    """What the CREATE operations of a batch file register. Raises InvalidFile with the line.

    Other operations are refused; lines that begin with `#` say nothing.
    """
    identifier: Identifier | None = None
    values: list[Value] = []
    for number, ended in enumerate(lines, 1):
        line = ended.rstrip("\r\n")
        try:
            if line.startswith("#"):
                continue
            if identifier is None:
                if line.strip():
                    if not line.startswith(CREATE):
                        raise ValueError("not a CREATE operation")
                    identifier, values = Identifier.parse(line.removeprefix(CREATE)), []
            elif line.strip():
                if len(values) == VALUES_MAX:
                    raise ValueError(f"over {VALUES_MAX} values")
                values.append(decode_line(line))
            else:
                yield identifier, check_values(values)
                identifier = None
        except (BiaojieError, ValueError) as error:
            en, zh = error.detail if isinstance(error, BiaojieError) else (str(error), str(error))
            raise InvalidFile(f"Line {number}: {en}", f"第 {number} 行：{zh}") from error
    if identifier is not None:
        yield identifier, check_values(values)
