"""Identifiers: `prefix/suffix`, parsed strictly, printed as first spelled.

`parse(str(x)) == x` for every identifier. Two spellings that differ only in ASCII case name
the same record: compare `key()`s, not texts (RFC 3651 §2; only ASCII letters fold).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote

from .errors import InvalidIdentifier
from .limits import IDENTIFIER_CHARS_MAX, PREFIX_CHARS_MAX
from .making import maker

FULL_WIDTH_SLASH = "／"
_LABEL = re.compile(r"[A-Za-z0-9_-]+")
_SLASH = re.compile(f"[/{FULL_WIDTH_SLASH}]")
# What is nearly always asked for: read at once, since nothing in it can be meant otherwise.
_PLAIN = re.compile(r"([A-Za-z0-9_.-]+)/([!-~](?:[ -~]*[!-~])?)")
_SCHEME = re.compile("(?:hdl[:：]|(https?[:：]//))", re.IGNORECASE)
_PERCENT_PIECE = re.compile("%[0-9A-Fa-f]{2}|.", re.DOTALL)
# Input methods for Chinese often leave full-width digits, letters and dots in what people paste.
_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {ord("。"): ord(".")}
# Unicode decomposes no character into more than four, so nothing longer can come to fit.
_DECOMPOSED_CHARS_MAX = 4 * IDENTIFIER_CHARS_MAX
# The same written as %XX, four octets a character.
_ENCODED_CHARS_MAX = 12 * _DECOMPOSED_CHARS_MAX


class Key(NamedTuple):
    """What an identifier is looked up by: folded prefix and folded suffix octets."""

    prefix: str
    suffix: bytes


_make_key: Callable[[type[Key], tuple[str, bytes]], Key] = tuple.__new__
"""A third of the time that calling `Key` takes."""


class _Fault(NamedTuple):
    """What is wrong; `position` counts characters from 0."""

    rule: str
    position: int
    en: str
    zh: str

    def error(self) -> InvalidIdentifier:
        return InvalidIdentifier(
            f"{self.en} (position {self.position}, rule {self.rule}).",
            f"{self.zh}（位置 {self.position}，规则 {self.rule}）。",
            position=self.position,
            rule=self.rule,
        )


def fold_prefix(prefix: str) -> str:
    """The form prefixes are compared by: ASCII letters in upper case."""
    return prefix.encode().upper().decode()


_folded = lru_cache(maxsize=1_024)(fold_prefix)
"""For those that are known to be well-formed, and so no longer than they may be."""


def check_prefix(prefix: str) -> str:
    """Return `prefix` if it is well-formed, else raise InvalidIdentifier.

    Labels of ASCII letters, digits, `-` and `_`, parted by single dots, at most 64
    characters in all. Under the national country code 88 every label is made of digits and
    the second has 3 to 5 (VAA rules).
    """
    fault = _prefix_fault(prefix)
    if fault:
        raise fault.error()
    return prefix


def _too_long_prefix() -> _Fault:
    return _Fault(
        "prefix-length",
        PREFIX_CHARS_MAX,
        f"The prefix is longer than {PREFIX_CHARS_MAX} characters",
        f"前缀超过 {PREFIX_CHARS_MAX} 个字符",
    )


def _prefix_fault(prefix: str) -> _Fault | None:
    if not prefix:
        return _Fault("prefix-empty", 0, "The prefix is empty", "前缀为空")
    # Few prefixes make up most of what is asked for.
    return _too_long_prefix() if len(prefix) > PREFIX_CHARS_MAX else _labels_fault(prefix)


@lru_cache(maxsize=1_024)
def _labels_fault(prefix: str) -> _Fault | None:
    position = 0
    labels = prefix.split(".")
    for number, label in enumerate(labels):
        if not label:
            return _Fault(
                "prefix-label-empty",
                position,
                "The prefix has an empty label: no dot at either end, no two in a row",
                "前缀含空段：不能以点开头或结尾，也不能有连续的点",
            )
        match = _LABEL.match(label)
        good = match.end() if match else 0
        if good < len(label):
            return _Fault(
                "prefix-character",
                position + good,
                f"The prefix may not contain {_named(label[good])}",
                f"前缀不能包含字符 {_named(label[good])}",
            )
        if labels[0] == "88" and number:
            if not label.isdigit():
                return _Fault(
                    "prefix-national-digits",
                    position,
                    "Under country code 88 every label is made of digits",
                    "国家代码 88 下各段只能为数字",
                )
            if number == 1 and not 3 <= len(label) <= 5:
                return _Fault(
                    "prefix-national-industry",
                    position,
                    "Under country code 88 the second label has 3 to 5 digits",
                    "国家代码 88 下第二段应为 3 至 5 位数字",
                )
        position += len(label) + 1
    return None


def _suffix_fault(suffix: str, start: int) -> _Fault | None:
    """The fault of a suffix that begins at `start`, as far as it shows before NFC."""
    if not suffix:
        return _Fault("suffix-empty", start, "The suffix is empty", "后缀为空")
    if len(suffix) > _DECOMPOSED_CHARS_MAX:
        return _too_long()
    if not suffix.isprintable():
        offset = next(n for n, character in enumerate(suffix) if not character.isprintable())
        return _Fault(
            "suffix-character",
            start + offset,
            f"The suffix may not contain {_named(suffix[offset])}",
            f"后缀不能包含字符 {_named(suffix[offset])}",
        )
    if suffix[0] == " " or suffix[-1] == " ":
        return _Fault(
            "suffix-space",
            start if suffix[0] == " " else start + len(suffix) - 1,
            "The suffix may not begin or end with a space",
            "后缀不能以空格开头或结尾",
        )
    return None


def _too_long() -> _Fault:
    return _Fault(
        "identifier-length",
        IDENTIFIER_CHARS_MAX,
        f"The identifier is longer than {IDENTIFIER_CHARS_MAX} characters",
        f"标识超过 {IDENTIFIER_CHARS_MAX} 个字符",
    )


def _named(character: str) -> str:
    """`U+00E9 'é'`; characters that cannot be seen by number alone."""
    number = f"U+{ord(character):04X}"
    return f"{number} {character!r}" if character.isprintable() else number


def _percent_decoded(text: str, start: int) -> tuple[str, Sequence[int]]:
    """The decoded text, and for each of its characters (and its end) the offset it had.

    `start` is where `text` begins in what the caller was given, for the error. A `%` that is
    not followed by two hexadecimal digits stands for itself.
    """
    if "%" not in text:
        return text, range(len(text) + 1)
    octets = bytearray()
    positions: list[int] = []
    for piece in _PERCENT_PIECE.finditer(text):
        part = piece.group()
        raw = bytes.fromhex(part[1:]) if len(part) == 3 else part.encode("utf-8", "surrogatepass")
        octets += raw
        positions += [piece.start()] * len(raw)
    try:
        decoded = octets.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise _Fault(
            "percent-encoding",
            start + positions[error.start],
            "Percent-encoding is not UTF-8",
            "百分号编码不是 UTF-8",
        ).error() from None
    firsts = [at for octet, at in zip(octets, positions, strict=True) if octet & 0xC0 != 0x80]
    return decoded, [*firsts, len(text)]


@dataclass(frozen=True, slots=True)
class Identifier:
    """A well-formed identifier. Raises InvalidIdentifier naming position and rule.

    `suffix` is Unicode NFC, 1 or more printable characters (no controls, format characters
    or surrogates), not beginning or ending with a space; 255 characters in all.
    """

    prefix: str
    suffix: str

    def __post_init__(self) -> None:
        start = len(self.prefix) + 1
        fault = _prefix_fault(self.prefix) or _suffix_fault(self.suffix, start)
        if fault:
            raise fault.error()
        # only now: is_normalized is undefined on lone surrogates
        if not unicodedata.is_normalized("NFC", self.suffix):
            object.__setattr__(self, "suffix", unicodedata.normalize("NFC", self.suffix))
        if start + len(self.suffix) > IDENTIFIER_CHARS_MAX:
            raise _too_long().error()

    def __str__(self) -> str:
        return f"{self.prefix}/{self.suffix}"

    @classmethod
    def parse(cls, text: str) -> Identifier:
        """Read an identifier in any form people paste.

        `88.118.8/SN1` is taken letter by letter. `hdl:…`, `https://host/…` and text with a
        `%` before its first slash (`88.118.8%2FSN1`) are percent-decoded; a URL's query and
        fragment are dropped. A full-width slash, and full-width letters, digits and dots in
        the prefix, count as their ASCII forms. Space around the text is ignored. The position
        in an error counts in `text` as given.
        """
        plain = _PLAIN.fullmatch(text)
        if plain is not None and len(text) <= IDENTIFIER_CHARS_MAX:
            prefix, suffix = plain.groups()
            if _prefix_fault(prefix) is None:
                return _make_identifier(prefix, suffix)
        body = text.strip()
        start = text.find(body)
        scheme = _SCHEME.match(body)
        if scheme:
            start += scheme.end()
            body = body[scheme.end() :]
        if scheme and scheme[1]:
            body = re.split(r"[?#]", body, maxsplit=1)[0]
            host, slash, path = body.partition("/")
            if not slash:
                raise _Fault(
                    "slash-missing", start + len(body), "The URL has no path", "网址没有路径"
                ).error()
            start += len(host) + 1
            body = path
        if len(body) > _ENCODED_CHARS_MAX:
            raise _too_long().error()
        positions: Sequence[int] = range(len(body) + 1)
        if scheme or "%" in _SLASH.split(body, maxsplit=1)[0]:
            body, positions = _percent_decoded(body, start)
        slash_at = _SLASH.search(body)
        if not slash_at:
            raise _Fault(
                "slash-missing",
                start + positions[-1],
                "There is no slash between prefix and suffix",
                "前缀与后缀之间缺少斜杠",
            ).error()
        prefix, suffix = body[: slash_at.start()].translate(_HALF_WIDTH), body[slash_at.end() :]
        try:
            return cls(prefix, suffix)
        except InvalidIdentifier:
            fault = _prefix_fault(prefix) or _suffix_fault(suffix, slash_at.end()) or _too_long()
            position = start + positions[fault.position]
            raise fault._replace(position=position).error() from None

    def key(self, *, case_sensitive: bool = False) -> Key:
        """The look-up key. `case_sensitive` concerns the suffix only; prefixes always fold."""
        suffix = self.suffix.encode()
        folded = suffix if case_sensitive else suffix.upper()
        return _make_key(Key, (_folded(self.prefix), folded))

    def url_path(self) -> str:
        """Percent-encoded path without a leading slash.

        Slashes stay literal, since proxies and readers mishandle `%2F`, save where empty or
        dot segments would be walked away by URL parsers.
        """
        segments = self.suffix.split("/")
        if self.suffix in {".", ".."}:
            return f"{self.prefix}%2F{self.suffix}"
        literal = not any(segment in {"", ".", ".."} for segment in segments)
        return f"{self.prefix}/{quote(self.suffix, safe='/:' if literal else '')}"


_make_identifier = maker(Identifier)
