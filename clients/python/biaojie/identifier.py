"""Identifiers: `prefix/suffix`, parsed strictly, printed as first spelled.

`parse(str(x)) == x` for every identifier. Two spellings that differ only in ASCII case name
the same record: compare `key()`s, not texts (RFC 3651 §2; only ASCII letters fold).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from .errors import InvalidIdentifier
from .limits import IDENTIFIER_CHARS_MAX, PREFIX_CHARS_MAX

FULL_WIDTH_SLASH = "／"
_LABEL = re.compile(r"[A-Za-z0-9_-]+")
_ENCODED_SLASH = re.compile(r"%2f", re.IGNORECASE)
_SCHEME = re.compile(r"(hdl:|https?://)", re.IGNORECASE)
# Input methods for Chinese often leave full-width digits, letters and dots in what people paste.
_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}


class Key(NamedTuple):
    """What an identifier is looked up by: folded prefix and folded suffix octets."""

    prefix: str
    suffix: bytes


def _bad(rule: str, position: int, en: str, zh: str) -> InvalidIdentifier:
    return InvalidIdentifier(
        f"{en} (position {position}, rule {rule}).",
        f"{zh}（位置 {position}，规则 {rule}）。",
        position=position,
        rule=rule,
    )


def fold_prefix(prefix: str) -> str:
    """The form prefixes are compared by: ASCII letters in upper case."""
    return prefix.encode().upper().decode()


def check_prefix(prefix: str) -> str:
    """Return `prefix` if it is well-formed, else raise InvalidIdentifier.

    Labels of ASCII letters, digits, `-` and `_`, parted by single dots, at most 64
    characters in all. Under the national country code 88 the second label has 3 to 5 digits
    and the others are digits, at most 128 (VAA rules).
    """
    if not prefix:
        raise _bad("prefix-empty", 0, "The prefix is empty", "前缀为空")
    if len(prefix) > PREFIX_CHARS_MAX:
        raise _bad(
            "prefix-length",
            PREFIX_CHARS_MAX,
            f"The prefix is longer than {PREFIX_CHARS_MAX} characters",
            f"前缀超过 {PREFIX_CHARS_MAX} 个字符",
        )
    position = 0
    labels = prefix.split(".")
    for number, label in enumerate(labels):
        if not label:
            raise _bad(
                "prefix-label-empty",
                position,
                "The prefix has an empty label: no dot at either end, no two in a row",
                "前缀含空段：不能以点开头或结尾，也不能有连续的点",
            )
        match = _LABEL.match(label)
        good = match.end() if match else 0
        if good < len(label):
            raise _bad(
                "prefix-character",
                position + good,
                f"The prefix may not contain {label[good]!a}",
                f"前缀不能包含字符 {label[good]!a}",
            )
        if labels[0] == "88" and number:
            if not label.isdigit():
                raise _bad(
                    "prefix-national-digits",
                    position,
                    "Under country code 88 every label is made of digits",
                    "国家代码 88 下各段只能为数字",
                )
            if number == 1 and not 3 <= len(label) <= 5:
                raise _bad(
                    "prefix-national-industry",
                    position,
                    "Under country code 88 the second label has 3 to 5 digits",
                    "国家代码 88 下第二段应为 3 至 5 位数字",
                )
        position += len(label) + 1
    return prefix


@dataclass(frozen=True, slots=True)
class Identifier:
    """A well-formed identifier. Raises InvalidIdentifier naming position and rule.

    `suffix` is Unicode NFC, 1 or more printable characters (no controls, format characters
    or surrogates), not beginning or ending with a space; 255 characters in all.
    """

    prefix: str
    suffix: str

    def __post_init__(self) -> None:
        check_prefix(self.prefix)
        start = len(self.prefix) + 1
        if not self.suffix:
            raise _bad("suffix-empty", start, "The suffix is empty", "后缀为空")
        for offset, character in enumerate(self.suffix):
            if not character.isprintable():
                raise _bad(
                    "suffix-character",
                    start + offset,
                    f"The suffix may not contain U+{ord(character):04X}",
                    f"后缀不能包含字符 U+{ord(character):04X}",
                )
        # is_normalized is undefined on lone surrogates, hence after the printable check
        if not unicodedata.is_normalized("NFC", self.suffix):
            object.__setattr__(self, "suffix", unicodedata.normalize("NFC", self.suffix))
        if self.suffix[0] == " " or self.suffix[-1] == " ":
            at = start if self.suffix[0] == " " else start + len(self.suffix) - 1
            raise _bad(
                "suffix-space",
                at,
                "The suffix may not begin or end with a space",
                "后缀不能以空格开头或结尾",
            )
        if start + len(self.suffix) > IDENTIFIER_CHARS_MAX:
            raise _bad(
                "identifier-length",
                IDENTIFIER_CHARS_MAX,
                f"The identifier is longer than {IDENTIFIER_CHARS_MAX} characters",
                f"标识超过 {IDENTIFIER_CHARS_MAX} 个字符",
            )

    def __str__(self) -> str:
        return f"{self.prefix}/{self.suffix}"

    @classmethod
    def parse(cls, text: str) -> Identifier:
        """Read an identifier in any form people paste.

        `88.118.8/SN1` is taken letter by letter. `hdl:…`, `https://host/…` and text whose
        slash is written `%2F` are percent-decoded; a URL's query and fragment are dropped.
        A full-width slash, and full-width letters in the prefix, count as their ASCII forms.
        """
        text = text.strip()
        scheme = _SCHEME.match(text)
        encoded = scheme is not None
        if scheme:
            text = text[scheme.end() :]
            if scheme.group().lower() != "hdl:":
                text = re.split(r"[?#]", text, maxsplit=1)[0]
                _, slash, text = text.partition("/")
                if not slash:
                    raise _bad("slash-missing", len(text), "The URL has no path", "网址没有路径")
        slashes = [at for at in (text.find("/"), text.find(FULL_WIDTH_SLASH)) if at >= 0]
        found = _ENCODED_SLASH.search(text)
        if found and (not slashes or found.start() < min(slashes)):
            encoded = True
        if encoded:
            try:
                text = unquote_to_bytes(text).decode()
            except UnicodeError:
                raise _bad(
                    "percent-encoding", 0, "Percent-encoding is not UTF-8", "百分号编码不是 UTF-8"
                ) from None
            slashes = [at for at in (text.find("/"), text.find(FULL_WIDTH_SLASH)) if at >= 0]
        if not slashes:
            raise _bad(
                "slash-missing",
                len(text),
                "There is no slash between prefix and suffix",
                "前缀与后缀之间缺少斜杠",
            )
        at = min(slashes)
        return cls(text[:at].translate(_HALF_WIDTH), text[at + 1 :])

    def key(self, *, case_sensitive: bool = False) -> Key:
        """The look-up key. `case_sensitive` concerns the suffix only; prefixes always fold."""
        suffix = self.suffix.encode()
        return Key(fold_prefix(self.prefix), suffix if case_sensitive else suffix.upper())

    def url_path(self) -> str:
        """Percent-encoded path without a leading slash; the first slash stays literal."""
        return f"{self.prefix}/{quote(self.suffix, safe='')}"
