"""Patterns: text that names the members of a range. Pure.

A pattern such as `SN{0000..9999}` has literals around one number of a fixed width, optionally
with a step (`{0000..9998..2}`) and a check digit right after the number (`{0000..9999+luhn}`).
Literal digits that touch the number are taken into it, so that in every member the number with
its check digit (the *run*) is a maximal run of digits. Members that are alike but for the run
have one *shape*; in it, octets sort as numbers do. All else rests on that.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from biaojie.errors import InvalidRecord
from biaojie.identifier import Identifier
from biaojie.limits import IDENTIFIER_CHARS_MAX

DIGITS_MAX = 40
"""Digits of the number, those of literals that touch it and the check digit included."""
MEMBERS_MAX = 10**15
"""Members of one range: a number that JSON carries exactly."""
RUNS_SOUGHT = 4
"""A member is found by one of its last so many runs of digits."""


class Check(StrEnum):
    """The check digit after the number. Names are permanent: they are part of patterns."""

    NONE = ""
    LUHN = "luhn"  # ISO/IEC 7812-1, annex B
    MOD11_10 = "mod11-10"  # ISO/IEC 7064, hybrid system MOD 11,10
    GS1 = "gs1"  # GS1 General Specifications, 7.9


def _luhn(number: str) -> int:
    total = 0
    for place, digit in enumerate(reversed(number)):
        doubled = int(digit) * (2 - place % 2)
        total += doubled - 9 if doubled > 9 else doubled
    return -total % 10


def _mod11_10(number: str) -> int:
    rest = 10
    for digit in number:
        rest = ((rest + int(digit)) % 10 or 10) * 2 % 11
    return (11 - rest) % 10


def _gs1(number: str) -> int:
    total = sum(
        int(digit) * (1 if place % 2 else 3) for place, digit in enumerate(reversed(number))
    )
    return -total % 10


_DIGIT: dict[Check, Callable[[str], int]] = {
    Check.LUHN: _luhn,
    Check.MOD11_10: _mod11_10,
    Check.GS1: _gs1,
}


def check_digit(number: str, check: Check) -> str:
    """The digit that follows these digits; none for `Check.NONE`."""
    return str(_DIGIT[check](number)) if check else ""


def fold(text: str, *, case_sensitive: bool) -> bytes:
    """Octets of (a part of) a suffix as keys have them."""
    return text.encode() if case_sensitive else text.encode().upper()


class Sought(NamedTuple):
    """How a range would know a name: the shape of its members, and the name's run in it."""

    shape: bytes
    run: bytes


def filled(shape: bytes, run: str) -> bytes:
    """The folded suffix with this run in it."""
    return shape.replace(bytes(len(run)), run.encode(), 1)


_RUN = re.compile(rb"[0-9]+")


def sought(suffix: bytes) -> list[Sought]:
    """All that a folded suffix can be a member by, at most RUNS_SOUGHT, the last run first."""
    runs = _RUN.finditer(suffix)
    return [
        Sought(suffix[: at.start()] + bytes(len(at[0])) + suffix[at.end() :], at[0])
        for at in [*runs][: -RUNS_SOUGHT - 1 : -1]
        if len(at[0]) <= DIGITS_MAX
    ]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A normal pattern: `before` ends and `after` begins with no digit, `last` is a member.

    `first`, `last` and `step` count without the check digit; `digits` is the width of the
    number without it. Make one by `parse_pattern` or from another.
    """

    before: str
    first: int
    last: int
    digits: int
    step: int
    check: Check
    after: str

    def __str__(self) -> str:
        step = f"..{self.step}" if self.step > 1 else ""
        check = f"+{self.check}" if self.check else ""
        number = f"{self._padded(self.first)}..{self._padded(self.last)}{step}{check}"
        return f"{self.before}{{{number}}}{self.after}"

    def _padded(self, number: int) -> str:
        return str(number).zfill(self.digits)

    @property
    def count(self) -> int:
        return (self.last - self.first) // self.step + 1

    def run(self, number: int) -> str:
        """The digits of a member: its number and check digit."""
        padded = self._padded(number)
        return padded + check_digit(padded, self.check)

    @property
    def runs(self) -> tuple[bytes, bytes]:
        """Those of the first and the last member."""
        return self.run(self.first).encode(), self.run(self.last).encode()

    def number_of(self, run: bytes) -> int | None:
        """The number of the member with this run; None if no member has it."""
        text = run.decode("ascii")
        if len(text) != self.digits + bool(self.check):
            return None
        padded = text[: self.digits]
        number = int(padded)
        member = (
            self.first <= number <= self.last
            and (number - self.first) % self.step == 0
            and text[self.digits :] == check_digit(padded, self.check)
        )
        return number if member else None

    def spelled(self, number: int) -> str:
        """The suffix of a member."""
        return self.before + self.run(number) + self.after

    def shape(self, *, case_sensitive: bool = False) -> bytes:
        """The folded suffix of any member with a NUL for each digit of its run."""
        blank = "\0" * (self.digits + bool(self.check))
        return fold(self.before + blank + self.after, case_sensitive=case_sensitive)

    def key(self, number: int, *, case_sensitive: bool = False) -> bytes:
        """The folded suffix of a member."""
        return fold(self.spelled(number), case_sensitive=case_sensitive)

    def number_at(self, index: int) -> int:
        return self.first + index * self.step

    def first_after(self, suffix: bytes | None, shape: bytes) -> int | None:
        """The number of the first member whose folded suffix is > `suffix`, if there is one.

        `shape` is its own. The cost does not grow with the number of members but with that of
        their digits.
        """
        if suffix is None:
            return self.first
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            if filled(shape, self.run(self.number_at(middle))) > suffix:
                high = middle
            else:
                low = middle + 1
        return self.number_at(low) if low < self.count else None

    def clipped(self, low: int, high: int) -> Pattern | None:
        """The members whose number is `low` to `high`, as a pattern; None if there are none."""
        first = self.first + max(-(-(low - self.first) // self.step), 0) * self.step
        last = self.first + (min(high, self.last) - self.first) // self.step * self.step
        if not self.first <= first <= last:
            return None
        # As `parse_pattern` has it: with one member there is no step.
        return replace(self, first=first, last=last, step=self.step if first < last else 1)

    def cut(self, low: int, high: int) -> tuple[Pattern | None, Pattern | None, Pattern | None]:
        """The members below `low`, those from `low` to `high`, and those above."""
        below = self.clipped(self.first, low - 1)
        above = self.clipped(high + 1, self.last)
        return below, self.clipped(low, high), above


# Patterns as text -----------------------------------------------------------------------

_NUMBER = re.compile(r"([0-9]+)\.\.([0-9]+)(?:\.\.([0-9]+))?(?:\+([A-Za-z0-9-]+))?")
_BEFORE = re.compile(r"[0-9]*\Z")
_AFTER = re.compile(r"[0-9]*")
_CHECKS = ", ".join(check for check in Check if check)


def _fault(en: str, zh: str, position: int) -> InvalidRecord:
    return InvalidRecord(
        f"pattern: {en} (position {position}).",
        f"pattern：{zh}（位置 {position}）。",
        path="pattern",
        position=position,
    )


def parse_pattern(text: str) -> Pattern:
    """The normal form of a pattern; raises InvalidRecord with the position of the fault.

    Its literals are checked as part of an identifier: see `check_members`.
    """
    if len(text) > IDENTIFIER_CHARS_MAX + 3 * DIGITS_MAX:
        raise _fault("is too long", "过长", IDENTIFIER_CHARS_MAX)
    opened, closed = text.find("{"), text.find("}")
    if opened < 0:
        raise _fault(
            "has no number such as {0000..9999}", "缺少形如 {0000..9999} 的编号段", len(text)
        )
    for brace, position in (("{", opened), ("}", closed)):
        other = text.find(brace, position + 1)
        if position >= 0 and other >= 0:
            raise _fault("has a second brace; one number only", "只能有一个花括号编号段", other)
    if closed < opened:
        raise _fault("the braces do not match", "花括号不配对", max(closed, opened))
    body = text[opened + 1 : closed]
    match = _NUMBER.fullmatch(body)
    if match is None:
        raise _fault(
            "between braces it takes FIRST..LAST, FIRST..LAST..STEP or FIRST..LAST+CHECK, such as"
            " {0000..9999}, {0000..9998..2} or {0000..9999+luhn}",
            "花括号内应为 起..止、起..止..步长 或 起..止+校验，"
            "例如 {0000..9999}、{0000..9998..2} 或 {0000..9999+luhn}",
            opened + 1,
        )
    first, last, step, check = match.groups()
    if len(first) != len(last):
        raise _fault(
            f"both ends take as many digits: {first.zfill(len(last))} or {last.zfill(len(first))}",
            f"起止编号位数应相同，例如 {first.zfill(len(last))} 或 {last.zfill(len(first))}",
            opened + 1 + match.start(2),
        )
    if len(step or "") > DIGITS_MAX or (step is not None and int(step) == 0):
        raise _fault("the step must be 1 or more", "步长应不小于 1", opened + 1 + match.start(3))
    if check is not None and check not in set(Check):
        raise _fault(
            f"there is no check digit {check[:20]}; known are {_CHECKS}",
            f"没有名为 {check[:20]} 的校验位；可用：{_CHECKS}",
            opened + 1 + match.start(4),
        )
    before, after = (unicodedata.normalize("NFC", t) for t in (text[:opened], text[closed + 1 :]))
    return _normal(
        before, first, last, int(step or 1), Check(check or ""), after, (opened + 1, closed + 1)
    )


def _normal(
    before: str,
    first: str,
    last: str,
    step: int,
    check: Check,
    after: str,
    places: tuple[int, int],
) -> Pattern:
    """`places`: where the number and what follows it begin, for errors."""
    begin, end = places
    head, tail = _BEFORE.search(before), _AFTER.match(after)
    assert head is not None
    assert tail is not None
    if check and tail[0]:
        raise _fault(
            "no digit may follow a check digit, since it would be read as part of it",
            "校验位之后不能紧跟数字，否则会与之相连",
            end,
        )
    digits = len(head[0]) + len(first) + len(tail[0])
    if digits + bool(check) > DIGITS_MAX:
        raise _fault(
            f"the number has over {DIGITS_MAX} digits with those that touch it",
            f"编号连同相邻数字超过 {DIGITS_MAX} 位",
            begin,
        )
    low, high = int(head[0] + first + tail[0]), int(head[0] + last + tail[0])
    if high < low:
        raise _fault("the last number is below the first", "止编号小于起编号", begin)
    step *= 10 ** len(tail[0])
    rest = after[tail.end() :]
    runs = len(_RUN.findall(rest.encode(errors="replace")))
    if runs >= RUNS_SOUGHT:
        raise _fault(
            f"at most {RUNS_SOUGHT - 1} other runs of digits may follow the number",
            f"编号之后最多再有 {RUNS_SOUGHT - 1} 段数字",
            end,
        )
    last_member = low + (high - low) // step * step
    if low == last_member:  # with one member no step is to be seen
        step = 1
    made = Pattern(before[: head.start()], low, last_member, digits, step, check, rest)
    if made.count > MEMBERS_MAX:
        raise _fault(f"over {MEMBERS_MAX} members", f"成员数超过 {MEMBERS_MAX}", begin)
    return made


parse_stored = lru_cache(maxsize=4_096)(parse_pattern)
"""For what a registry holds, which is asked for again and again."""


def check_members(prefix: str, pattern: Pattern) -> None:
    """Raise InvalidIdentifier unless every member is a well-formed identifier as it is spelled.

    All have the same characters but for ASCII digits, so one speaks for all.
    """
    first = Identifier(prefix, pattern.spelled(pattern.first))
    assert first.suffix == pattern.spelled(pattern.first), "literals are normal already"


def run_after(shape: bytes, suffix: bytes | None) -> bytes | None:
    """The first run that makes a name > `suffix` of this shape; None if none does."""
    digits = shape.count(b"\0")
    whole = Pattern("", 0, 10**digits - 1, digits, 1, Check.NONE, "")
    number = whole.first_after(suffix, shape)
    return None if number is None else whole.run(number).encode()
