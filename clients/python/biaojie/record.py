"""Records: what an identifier stands for. Values only; no I/O, no clock.

The value is the Handle value (RFC 3651 §3.1): index, type, data, ttl, timestamp, permissions,
references. A Record that leaves a node for a caller without rights is its `public()` view.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntFlag, StrEnum

from .errors import InvalidIdentifier, InvalidRecord
from .identifier import Identifier
from .limits import (
    INDEX_MAX,
    RECORD_BYTES_MAX,
    REFERENCES_MAX,
    TTL_CACHE_MAX_S,
    TTL_DEFAULT_S,
    TTL_MAX_S,
    TYPE_CHARS_MAX,
    VALUE_BYTES_MAX,
    VALUES_MAX,
)
from .making import maker


class Permissions(IntFlag):
    """The permission octet of a value. Printed as four digits, admin-read first."""

    ADMIN_READ = 0x08
    ADMIN_WRITE = 0x04
    PUBLIC_READ = 0x02
    PUBLIC_WRITE = 0x01

    def __str__(self) -> str:
        return f"{self.value:04b}"

    @classmethod
    def parse(cls, text: str, path: str = "permissions") -> Permissions:
        """From four digits such as `1110`; raises InvalidRecord."""
        if len(text) != 4 or not set(text) <= {"0", "1"}:
            raise InvalidRecord(
                f"{path}: must be four digits 0 or 1, not {text[:20]!r}.",
                f"{path}：应为四位 0 或 1，而不是 {text[:20]!r}。",
                path=path,
            )
        return cls(int(text, 2))


_PUBLIC_READ = int(Permissions.PUBLIC_READ)
PERMISSIONS_DEFAULT = Permissions(0x0E)
PERMISSIONS_SECRET = Permissions(0x0C)
SECRET_TYPES = frozenset({"HS_SECKEY"})
"""Types that must never be publicly readable, folded."""

_UPPER = {code: code - 32 for code in range(ord("a"), ord("z") + 1)}


def fold_type(type_: str) -> str:
    """The form value types are compared by: ASCII letters in upper case."""
    return type_.upper() if type_.isascii() else type_.translate(_UPPER)


def usual_permissions(type_: str) -> Permissions:
    """What a value of this type has when nothing else is said: 1110, or 1100 for secrets."""
    return PERMISSIONS_SECRET if fold_type(type_) in SECRET_TYPES else PERMISSIONS_DEFAULT


class Status(StrEnum):
    """Where a record is in its life cycle.

    draft: registered, not yet public. active: resolves. frozen: resolves, cannot be changed
    until active again. retired: a tombstone; resolves no more and is never given out again.
    """

    DRAFT = "draft"
    ACTIVE = "active"
    FROZEN = "frozen"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Reference:
    """A value elsewhere: identifier as `prefix/suffix` and value index (0: the whole record)."""

    identifier: str
    index: int


@dataclass(frozen=True, slots=True)
class Value:
    """One Handle value.

    `ttl` is seconds from fetch, or epoch seconds when `ttl_absolute`; `timestamp` is epoch
    seconds, set by the node that takes the write.
    """

    index: int
    type: str
    data: bytes
    ttl: int = TTL_DEFAULT_S
    ttl_absolute: bool = False
    timestamp: int = 0
    permissions: Permissions = PERMISSIONS_DEFAULT
    references: tuple[Reference, ...] = ()

    @property
    def text(self) -> str | None:
        """The data as text, or None where it is not UTF-8."""
        try:
            return self.data.decode()
        except UnicodeError:
            return None

    def check(self, path: str = "value", *, listed: bool = False) -> None:
        """Raise InvalidRecord with the path of the first fault; `listed` adds the index to it."""

        def bad(field: str, en: str, zh: str) -> InvalidRecord:
            at = f"{path}[index={self.index}].{field}" if listed else f"{path}.{field}"
            return InvalidRecord(f"{at}: {en}", f"{at}：{zh}", path=at)

        if not 1 <= self.index <= INDEX_MAX:
            raise bad("index", f"must be 1 to {INDEX_MAX}.", f"应为 1 至 {INDEX_MAX}。")
        if not 1 <= len(self.type) <= TYPE_CHARS_MAX or not self.type.isprintable():
            raise bad(
                "type",
                f"must be 1 to {TYPE_CHARS_MAX} printable characters.",
                f"应为 1 至 {TYPE_CHARS_MAX} 个可打印字符。",
            )
        if len(self.data) > VALUE_BYTES_MAX:
            raise bad("data", f"over {VALUE_BYTES_MAX} bytes.", f"超过 {VALUE_BYTES_MAX} 字节。")
        if not 0 <= self.ttl <= TTL_MAX_S:
            if self.ttl_absolute:
                last = "2038-01-19T03:14:07Z"
                raise bad("ttl", f"must not be after {last}.", f"不能晚于 {last}。")
            raise bad("ttl", f"must be 0 to {TTL_MAX_S}.", f"应为 0 至 {TTL_MAX_S}。")
        if len(self.references) > REFERENCES_MAX:
            raise bad("references", f"over {REFERENCES_MAX}.", f"超过 {REFERENCES_MAX} 个。")
        for number, reference in enumerate(self.references):
            if not 0 <= reference.index <= INDEX_MAX:
                raise bad(f"references[{number}].index", "out of range.", "超出范围。")
            try:
                Identifier(*reference.identifier.partition("/")[::2])
            except InvalidIdentifier as error:
                raise bad(
                    f"references[{number}].identifier", "not an identifier.", "不是合法标识。"
                ) from error
        if fold_type(self.type) in SECRET_TYPES and self.permissions & Permissions.PUBLIC_READ:
            raise bad(
                "permissions",
                f"a {self.type} may not be publicly readable; use 1100.",
                f"{self.type} 不能公开可读；请使用 1100。",
            )


make_value = maker(Value)


def check_values(values: Iterable[Value], path: str = "values") -> tuple[Value, ...]:
    """Return the values sorted by index; raise InvalidRecord on the first fault."""
    listed = sorted(values, key=lambda value: value.index)
    if len(listed) > VALUES_MAX:
        raise InvalidRecord(
            f"{path}: over {VALUES_MAX} values.", f"{path}：超过 {VALUES_MAX} 个值。", path=path
        )
    octets = 0
    before = 0
    for value in listed:
        value.check(path, listed=True)
        if value.index == before:
            raise InvalidRecord(
                f"{path}: index {value.index} occurs twice.",
                f"{path}：索引 {value.index} 重复。",
                path=path,
                index=value.index,
            )
        before = value.index
        octets += len(value.data)
    if octets > RECORD_BYTES_MAX:
        raise InvalidRecord(
            f"{path}: over {RECORD_BYTES_MAX} bytes of data.",
            f"{path}：数据超过 {RECORD_BYTES_MAX} 字节。",
            path=path,
        )
    return tuple(listed)


@dataclass(frozen=True, slots=True)
class Record:
    """The state of one identifier.

    `version` starts at 1 and grows by 1 with each change; `created` and `modified` are epoch
    seconds; `sequence` is the change-log entry that wrote it.
    """

    identifier: Identifier
    values: tuple[Value, ...]
    status: Status = Status.ACTIVE
    template: str | None = None
    version: int = 1
    created: int = 0
    modified: int = 0
    sequence: int = 0

    def public(self) -> Record:
        """The view for callers without rights: only values with the public-read bit."""
        # As numbers: an IntFlag makes a new flag of each `&`, which takes ten times as long.
        for value in self.values:
            if not int(value.permissions) & _PUBLIC_READ:
                break
        else:
            return self
        values = tuple([v for v in self.values if int(v.permissions) & _PUBLIC_READ])
        return replace(self, values=values)

    def readable(self) -> Record:
        """The view for callers with rights: values with the admin-read or public-read bit.

        Secrets are for checking only and are in no view at all.
        """
        either = Permissions.ADMIN_READ | Permissions.PUBLIC_READ
        values = tuple(
            v
            for v in self.values
            if v.permissions & either and fold_type(v.type) not in SECRET_TYPES
        )
        return self if len(values) == len(self.values) else replace(self, values=values)

    def at(self, sequence: int) -> Record:
        """As written by that change-log entry."""
        return make_record(
            self.identifier,
            self.values,
            self.status,
            self.template,
            self.version,
            self.created,
            self.modified,
            sequence,
        )

    def value(self, index: int) -> Value | None:
        return next((value for value in self.values if value.index == index), None)

    def first(self, type_: str) -> Value | None:
        """The value of that type with the lowest index (types match ASCII case-insensitively)."""
        folded = fold_type(type_)
        return next((value for value in self.values if fold_type(value.type) == folded), None)

    def ttl_s(self, now: float) -> int:
        """Seconds this record may be kept: the least of its values' TTLs, capped at two days."""
        least = TTL_CACHE_MAX_S
        for value in self.values:
            left = value.ttl - int(now) if value.ttl_absolute else value.ttl
            if left < least:  # noqa: PLR1730  (`min` takes three times as long)
                least = left
        return max(least, 0)


make_record = maker(Record)
