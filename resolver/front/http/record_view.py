"""What of a record goes on its page: text made safe to show, times and sizes in words. Pure.

Whatever a registrant wrote, a value is shown as plain text or as the head of its octets in
hex; it becomes a link only where its type and its form both say so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from urllib.parse import quote, urlsplit

from biaojie.errors import InvalidIdentifier
from biaojie.identifier import Identifier
from biaojie.record import Record, Value, fold_type
from biaojie.wire.document import EPOCH_MAX, encode_time

from .negotiation import Language
from .texts import Translator, translator

TEXT_CHARS_MAX = 2_000
"""Longer text values are cut on the page; the JSON has them whole."""
HEX_OCTETS_MAX = 64
_BEIJING = timezone(timedelta(hours=8))
_MAIL_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,255}")
# Octets that make a UTF-8 value something other than text: control characters
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# Characters that turn the reading direction around, and so can make a text look like another
_DIRECTION = {code: f"[U+{code:04X}]" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))


@dataclass(frozen=True, slots=True)
class Moment:
    """A time for `<time>`: ISO 8601 for programs, words for people."""

    iso: str
    words: str


@dataclass(frozen=True, slots=True)
class Link:
    """Text and where it leads; `href` is None for plain text."""

    text: str
    href: str | None = None


@dataclass(frozen=True, slots=True)
class ShownValue:
    """One value. `text` is None where the data is binary, then `hex_head` is its first octets."""

    index: int
    type: str
    text: str | None
    hex_head: str
    href: str | None
    size: str
    cut: bool
    ttl: str
    permissions: str
    timestamp: Moment | None
    references: tuple[Link, ...]


@dataclass(frozen=True, slots=True)
class ShownRecord:
    prefix: str
    suffix: str
    status: str
    version: int
    sequence: int
    validity: tuple[str, ...]
    registered: Moment | None
    modified: Moment | None
    template: Link | None
    values: tuple[ShownValue, ...]


def duration(seconds: int, t: Translator) -> str:
    """The two largest units that are not zero: `1 day 2 hours`."""
    parts = []
    left = max(seconds, 0)
    for name, size in _UNITS:
        count, left = divmod(left, size)
        if count:
            parts.append(t(f"{name}_one" if count == 1 else name, count=f"{count:,}"))
    return t("duration_join").join(parts[:2]) or t("second", count=0)


def octets(count: int, t: Translator) -> str:
    return t("bytes_one" if count == 1 else "bytes", count=f"{count:,}")


def moment(epoch_s: int, language: Language) -> Moment:
    """English in UTC, Chinese in Beijing time; each says which."""
    at = datetime.fromtimestamp(min(max(epoch_s, 0), EPOCH_MAX - 86_400), UTC)
    local = at.astimezone(_BEIJING if language == "zh" else UTC)
    words = f"{local:%Y-%m-%d %H:%M:%S} {translator(language)('time_zone')}"
    return Moment(encode_time(epoch_s), words)


def safe_link(type_: str, text: str) -> str | None:
    """Where a value of this type leads: http, https and mailto only, else None."""
    kind = fold_type(type_)
    if kind == "EMAIL":
        address = text.removeprefix("mailto:")
        return f"mailto:{quote(address, safe='@')}" if _MAIL_ADDRESS.fullmatch(address) else None
    if kind != "URL" or not text.isprintable() or " " in text or "\\" in text:
        return None
    try:
        parts = urlsplit(text)
        # a name before the host is there to be mistaken for the host
        plain = bool(parts.hostname) and parts.username is None and parts.port != 0
    except ValueError:
        return None
    return text if plain and parts.scheme in {"http", "https"} else None


def identifier_link(text: str, label: str | None = None) -> Link:
    """A link to the identifier's page here, or plain text where it is none."""
    shown = (label or text).translate(_DIRECTION)
    try:
        return Link(shown, "/" + Identifier.parse(text).url_path())
    except InvalidIdentifier:
        return Link(shown)


def _ttl(value: Value, language: Language, now: float) -> str:
    t = translator(language)
    if value.ttl_absolute:
        key = "expired" if value.ttl <= now else "valid_until"
        return t(key, time=moment(value.ttl, language).words)
    return duration(value.ttl, t)


def _show_value(value: Value, language: Language, now: float) -> ShownValue:
    t = translator(language)
    text = value.text
    if text is not None and _CONTROL.search(text):
        text = None
    cut = len(text) > TEXT_CHARS_MAX if text is not None else len(value.data) > HEX_OCTETS_MAX
    return ShownValue(
        index=value.index,
        type=value.type,
        text=None if text is None else text[:TEXT_CHARS_MAX].translate(_DIRECTION),
        hex_head="" if text is not None else value.data[:HEX_OCTETS_MAX].hex(" "),
        href=None if text is None or cut else safe_link(value.type, text),
        size=octets(len(value.data), t),
        cut=cut,
        ttl=_ttl(value, language, now),
        permissions=str(value.permissions),
        timestamp=moment(value.timestamp, language) if value.timestamp else None,
        references=tuple(
            identifier_link(r.identifier, f"{r.identifier} #{r.index}" if r.index else None)
            for r in value.references
        ),
    )


def _validity(values: tuple[Value, ...], language: Language, now: float) -> tuple[str, ...]:
    """How long the answer holds: the shortest relative TTL and the earliest fixed end."""
    t = translator(language)
    lines = []
    relative = [value.ttl for value in values if not value.ttl_absolute]
    ends = [value for value in values if value.ttl_absolute]
    if relative:
        least = min(relative)
        lines.append(t("valid_for", duration=duration(least, t)) if least else t("valid_no_store"))
    if ends:
        lines.append(_ttl(min(ends, key=lambda value: value.ttl), language, now))
    return tuple(lines) or (t("unknown"),)


def show_record(record: Record, language: Language, now: float) -> ShownRecord:
    """The public view of the record in words. `now` is epoch seconds."""
    record = record.public()  # the page is for everyone, whoever asked
    return ShownRecord(
        prefix=record.identifier.prefix,
        suffix=record.identifier.suffix,
        status=record.status.value,
        version=record.version,
        sequence=record.sequence,
        validity=_validity(record.values, language, now),
        registered=moment(record.created, language) if record.created else None,
        modified=moment(record.modified, language) if record.modified else None,
        template=identifier_link(record.template) if record.template else None,
        values=tuple(_show_value(value, language, now) for value in record.values),
    )
