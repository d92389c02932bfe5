"""Ranges: identifiers registered together by one rule. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from .record import Status, Value


@dataclass(frozen=True, slots=True)
class Range:
    """A run of identifiers under `prefix`, all that `pattern` names.

    `pattern` is in its normal form, such as `SN{0000..9999}`; `first` and `last` are members,
    `count` is how many there are, those included that were changed one by one and have records
    of their own. `values` may hold the placeholders `{suffix}`, `{number}`, `{identifier}` and
    `{prefix}`. The rest is as in the record of a member.
    """

    prefix: str
    pattern: str
    first: str
    last: str
    count: int
    values: tuple[Value, ...]
    status: Status
    template: str | None
    version: int
    created: int
    modified: int
    sequence: int
