"""Turns what callers may write into checked values. Pure: no I/O, no clock.

Liberties end here: whatever passes is well-formed by this library's own rules, and what does
not raises InvalidIdentifier, InvalidRecord or InvalidRequest before anything is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from .calls import Mode, Operation, Row, Values
from .change import Action, RowResult
from .errors import BiaojieError, InvalidRecord, InvalidRequest
from .identifier import Identifier
from .limits import BATCH_ROWS_MAX, IDEMPOTENCY_KEY_CHARS_MAX, RESOLVE_MANY_MAX, SEARCH_VALUES_MAX
from .record import Status, Value, check_values
from .wire.document import decode_value

CHUNK_OCTETS_MAX = 1_048_576
"""Most octets of names and values in one chunk of rows; a single larger row goes alone."""

_MEMBERS = frozenset(("index", "type", "data", "ttl", "timestamp", "permissions", "references"))
_ROW_ACTIONS = (Action.CREATE, Action.PUT, Action.RETIRE)
Choice = TypeVar("Choice", bound=StrEnum)


def identifier_of(identifier: str | Identifier) -> Identifier:
    """From an Identifier or any form people paste; raises InvalidIdentifier."""
    return identifier if isinstance(identifier, Identifier) else Identifier.parse(identifier)


def values_of(values: Values, *, numbered: bool = True) -> tuple[Value, ...]:
    """Checked values in order of index; raises InvalidRecord with the path of the fault.

    `values` is a mapping of type to text or octets, whose indexes become 1, 2, 3 … in order,
    or an iterable of Value objects and JSON-style objects. With `numbered=False` the mapping
    is refused, because indexes made up here would replace values that already have them.

    >>> [(value.index, value.type, value.text) for value in values_of({"URL": "https://a.example"})]
    [(1, 'URL', 'https://a.example')]
    >>> str(values_of([{"index": 7, "type": "EMAIL", "data": "a@b.example"}])[0].permissions)
    '1110'
    """
    if isinstance(values, Mapping):
        if not numbered:
            raise _bad("values", "need an index each here.", "此处每个值都需要索引。")
        listed = [
            _value_of_type(str(type_), data, index)
            for index, (type_, data) in enumerate(values.items(), 1)
        ]
    else:
        listed = [_value(item, f"values[{number}]") for number, item in enumerate(values)]
    return check_values(listed)


def _bad(path: str, en: str, zh: str) -> InvalidRecord:
    return InvalidRecord(f"{path}: {en}", f"{path}：{zh}", path=path)


def _value_of_type(type_: str, data: object, index: int) -> Value:
    path = f"values[{type_}]"
    if isinstance(data, bytes):
        empty = decode_value({"index": index, "type": type_, "data": ""}, path)
        return Value(index, type_, data, permissions=empty.permissions)
    if not isinstance(data, str):
        raise _bad(
            path,
            "must be text or octets; JSON-style values come in a list.",
            "应为文本或字节；JSON 形式的值应放在列表中。",
        )
    return decode_value({"index": index, "type": type_, "data": data}, path)


def _value(item: object, path: str) -> Value:
    if isinstance(item, Value):
        return item
    if isinstance(item, Mapping):
        # A misspelt `permissions` that was ignored would publish a secret.
        unknown = sorted(str(name) for name in item if name not in _MEMBERS)
        if unknown:
            raise _bad(f"{path}.{unknown[0]}", "there is no such field.", "没有该字段。")
    return decode_value(item, path)


def choice_of(kind: type[Choice], text: Choice | str, path: str) -> Choice:
    """A member of an enumeration from its text; raises InvalidRequest naming the choices."""
    try:
        return kind(text)
    except ValueError:
        known = ", ".join(kind)
        raise InvalidRequest(
            f"{path}: {text!a} is none of {known}.", f"{path}：{text!a} 不在 {known} 之中。"
        ) from None


def search_values_of(
    values: Mapping[str, str] | Iterable[tuple[str, str]], types: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """Pairs of type and data to look for, 1 to 8; raises InvalidRequest.

    >>> search_values_of({"10320/loc": "x"}, {"URL": "https://a.example"})
    (('10320/loc', 'x'), ('URL', 'https://a.example'))
    """
    listed = [*(values.items() if isinstance(values, Mapping) else values), *types.items()]
    if not 1 <= len(listed) <= SEARCH_VALUES_MAX:
        raise InvalidRequest(
            f"A search is for 1 to {SEARCH_VALUES_MAX} values.",
            f"检索应给出 1 至 {SEARCH_VALUES_MAX} 个值。",
        )
    for type_, data in listed:
        if not (_is_text(type_) and _is_text(data) and type_) or "=" in type_:
            raise InvalidRequest(
                "A search is for type and data, both text, the type without an equals sign.",
                "检索项应为类型与数据，均为文本，且类型中不含等号。",
            )
    return tuple(listed)


def _is_text(given: object) -> bool:
    if not isinstance(given, str):
        return False
    try:
        return bool(given.encode()) or not given
    except UnicodeEncodeError:  # a lone surrogate: octets that were no UTF-8
        return False


def status_of(status: Status | str | None) -> Status | None:
    return None if status is None else choice_of(Status, status, "status")


def idempotency_key_of(key: str) -> str:
    """Raises InvalidRequest unless it is 1 to 255 printable ASCII characters."""
    if not (1 <= len(key) <= IDEMPOTENCY_KEY_CHARS_MAX and key.isascii() and key.isprintable()):
        raise InvalidRequest(
            f"An idempotency key is 1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable ASCII characters.",
            f"幂等键应为 1 至 {IDEMPOTENCY_KEY_CHARS_MAX} 个可打印 ASCII 字符。",
        )
    return key


def api_key_of(key: str) -> str:
    """A key that no node issues is refused, and not shown."""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidRequest(
            "The key has characters no key has: check for spaces and line ends.",
            "密钥含有非法字符：请检查空格与换行。",
        )
    return key


def operation_of(row: Row) -> Operation:
    """The operation a row asks for; raises what is wrong with it."""
    action = choice_of(Action, row.action, "action")
    if action not in _ROW_ACTIONS:
        known = ", ".join(_ROW_ACTIONS)
        raise InvalidRequest(
            f"action: in a batch it is one of {known}.", f"action：批量中只能是 {known} 之一。"
        )
    return Operation(
        action=action,
        identifier=identifier_of(row.identifier),
        values=values_of(row.values),
        status=status_of(row.status),
        template=row.template,
    )


def numbers_of(one_or_more: int | Iterable[int]) -> tuple[int, ...]:
    return (one_or_more,) if isinstance(one_or_more, int) else tuple(one_or_more)


def texts_of(one_or_more: str | Iterable[str]) -> tuple[str, ...]:
    """One text counts as a list of it: `types="URL"` is not the types U, R and L."""
    return (one_or_more,) if isinstance(one_or_more, str) else tuple(one_or_more)


def check_chunks(chunk_names: int, concurrency: int) -> None:
    if not 1 <= chunk_names <= RESOLVE_MANY_MAX or not 1 <= concurrency <= 64:
        raise InvalidRequest(
            f"chunk_names is 1 to {RESOLVE_MANY_MAX}, concurrency 1 to 64.",
            f"chunk_names 应为 1 至 {RESOLVE_MANY_MAX}，concurrency 应为 1 至 64。",
        )


# Chunks of rows -------------------------------------------------------------------------


@dataclass(slots=True)
class Chunk:
    """Neighbouring rows of a stream: `number` counts chunks from 0, `first_row` rows from 1.

    A row is an Operation, or the RowResult of one that is wrong in itself and is not sent.
    """

    number: int
    first_row: int
    rows: list[Operation | RowResult] = field(default_factory=list)
    octets: int = 0


class Chunks:
    """Gathers rows into chunks whose borders depend on nothing but the rows themselves.

    So a stream that is repeated gives the same chunks, and each the same idempotency key.
    Holds at most one chunk.
    """

    def __init__(self, rows_max: int = BATCH_ROWS_MAX) -> None:
        if not 1 <= rows_max <= BATCH_ROWS_MAX:
            raise InvalidRequest(
                f"A chunk has 1 to {BATCH_ROWS_MAX} rows.", f"每批应为 1 至 {BATCH_ROWS_MAX} 行。"
            )
        self._rows_max = rows_max
        self._chunk = Chunk(0, 1)

    def add(self, row: Row) -> list[Chunk]:
        """Take a row; return the chunks that are complete now (mostly none, at most two)."""
        taken, octets = _weigh(row, self._chunk.first_row + len(self._chunk.rows))
        complete = []
        if self._chunk.rows and self._chunk.octets + octets > CHUNK_OCTETS_MAX:
            complete.append(self._cut())
        self._chunk.rows.append(taken)
        self._chunk.octets += octets
        if len(self._chunk.rows) == self._rows_max:
            complete.append(self._cut())
        return complete

    def rest(self) -> list[Chunk]:
        """What is left when the rows have ended: one chunk or none."""
        return [self._cut()] if self._chunk.rows else []

    def _cut(self) -> Chunk:
        chunk = self._chunk
        self._chunk = Chunk(chunk.number + 1, chunk.first_row + len(chunk.rows))
        return chunk


def _weigh(row: Row, number: int) -> tuple[Operation | RowResult, int]:
    try:
        operation = operation_of(row)
    except BiaojieError as error:
        text = str(row.identifier)
        failed = RowResult(number, text, None, error.code, error.detail.en, error.detail.zh)
        return failed, len(text)
    octets = 128 + 4 * len(operation.identifier.suffix)
    for value in operation.values:
        octets += 128 + len(value.data) + 4 * len(value.type) + 300 * len(value.references)
    return operation, octets


def chunk_key(job: str | None, chunk: Chunk, mode: Mode, dry_run: bool) -> str | None:
    """The idempotency key of one chunk of a named job: the same whenever the job is repeated."""
    if job is None:
        return None
    told = "\0".join((job, str(chunk.number), mode, str(dry_run)))
    return "job-" + hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:48]


def chunk_of(rows: Iterable[Row]) -> Chunk:
    """Rows that are to go together; raises InvalidRequest beyond `limits.BATCH_ROWS_MAX`."""
    chunk = Chunk(0, 1)
    for row in rows:
        if len(chunk.rows) == BATCH_ROWS_MAX:
            raise InvalidRequest(
                f"A batch has at most {BATCH_ROWS_MAX} rows; register_many takes any number.",
                f"一批最多 {BATCH_ROWS_MAX} 行；更多请使用 register_many。",
            )
        chunk.rows.append(_weigh(row, len(chunk.rows) + 1)[0])
    return chunk
