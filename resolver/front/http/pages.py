"""The public pages as text: search, resolve, error and API page, in Chinese and English.

Pure functions of their arguments; the routes that serve them live beside this file. Every
page escapes whatever it is given, holds no style or script of its own, and works with
scripts off under `CONTENT_SECURITY_POLICY`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from biaojie.errors import ERRORS, BiaojieError, InvalidIdentifier
from biaojie.record import Record
from biaojie.wire.problem import HTTP_STATUS

from . import api_reference, api_schemas
from .negotiation import Language, language, wants_json
from .qr import qr_svg
from .record_view import Link, duration, identifier_link, show_record
from .static_files import STATIC_NAMES, static_file, static_url
from .texts import ERROR_HELP, ErrorHelp, pick, translator

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = [
    "CONTENT_SECURITY_POLICY",
    "NODE_NAME",
    "STATIC_NAMES",
    "Language",
    "api_page",
    "error_page",
    "language",
    "resolve_page",
    "search_page",
    "static_file",
    "wants_json",
]

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
NODE_NAME = "biaojie"
TYPED_CHARS_MAX = 2_048
"""Of what a visitor typed, so much is kept in the search box."""
MARK_WINDOW_CHARS = 60
"""Characters shown on each side of the fault in a bad identifier."""

_ESCAPE = re.compile("%[0-9A-Fa-f]{2}")
_ESCAPED_LETTERS = re.compile("(?:%[89A-Fa-f][0-9A-Fa-f])+")


@cache
def _environment() -> Environment:
    """Made for the first page: a start is quicker without."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("resolver.front.http", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.globals["static_url"] = static_url
    return made


@dataclass(frozen=True, slots=True)
class Mark:
    """A bad identifier around its fault; `at` is empty where the text ends too early."""

    before: str
    at: str
    after: str


def _render(template: str, language: Language, node_name: str, **context: Any) -> str:
    page = (
        _environment()
        .get_template(template)
        .render(t=translator(language), node_name=node_name, typed_max=TYPED_CHARS_MAX, **context)
    )
    return _clean(page)


def _clean(text: str) -> str:
    """`text` without lone surrogates, which would fail later, when the page is encoded."""
    return text.encode("utf-8", "replace").decode()


def _web_link(url: str) -> str | None:
    """`url` if it is http or https, else None: the only links a page makes of an address."""
    try:
        return url if urlsplit(url).scheme in {"http", "https"} else None
    except ValueError:
        return None


def search_page(*, language: Language, node_name: str = NODE_NAME, examples: Sequence[str]) -> str:
    """The start page: one search box (GET /resolve?identifier=…) and `examples` to try."""
    return _render(
        "search.html",
        language,
        node_name,
        typed="",
        examples=[_example(text) for text in examples],
    )


def _example(text: str) -> Link:
    link = identifier_link(text)
    return link if link.href else Link(link.text, _search_url(text))


def _search_url(text: str) -> str:
    return "/resolve?identifier=" + quote(text[:TYPED_CHARS_MAX], safe="", errors="replace")


def resolve_page(
    record: Record,
    *,
    source: str,
    permanent_url: str,
    json_url: str,
    language: Language,
    now: float,
    node_name: str = NODE_NAME,
) -> str:
    """The page of a record: its public values, validity, QR code of `permanent_url`.

    `source` is "cache", "store" or "stale"; `now` is epoch seconds. Takes about 1 ms, and
    5 to 35 ms more when the QR code has not been made before.
    """
    return _render(
        "record.html",
        language,
        node_name,
        typed=str(record.identifier),
        record=show_record(record, language, now),
        source=source if source in {"cache", "store", "stale"} else "store",
        permanent_text=_readable(permanent_url),
        permanent_href=_web_link(permanent_url),
        json_url=json_url if json_url.startswith("/") else _web_link(json_url),
        qr=qr_svg(permanent_url),
    )


def _readable(url: str) -> str:
    """`url` with its non-ASCII letters as letters; what is escaped for a reason stays so."""

    def letters(escaped: re.Match[str]) -> str:
        text = unquote(escaped.group(), errors="replace")
        return text if text.isprintable() and "\ufffd" not in text else escaped.group()

    return _ESCAPED_LETTERS.sub(letters, url)


def _visible(character: str) -> str:
    return character if character.isprintable() else f"U+{ord(character):04X}"


def _mark(error: BiaojieError, text: str) -> Mark | None:
    """The surroundings of the fault in `text`, the text as it was given to `Identifier.parse`."""
    position = error.fields.get("position")
    if not isinstance(error, InvalidIdentifier) or not isinstance(position, int):
        return None
    at = min(max(position, 0), len(text))
    escape = _ESCAPE.match(text, at)
    end = escape.end() if escape else at + 1
    before, after = text[:at], text[end:]
    return Mark(
        before=("…" if at > MARK_WINDOW_CHARS else "")
        + "".join(map(_visible, before[-MARK_WINDOW_CHARS:])),
        at="".join(map(_visible, text[at:end])),
        after="".join(map(_visible, after[:MARK_WINDOW_CHARS]))
        + ("…" if len(after) > MARK_WINDOW_CHARS else ""),
    )


def error_page(
    error: BiaojieError,
    *,
    identifier_text: str | None,
    language: Language,
    retry_after_s: float | None = None,
    node_name: str = NODE_NAME,
) -> str:
    """What went wrong and what the visitor can do, with what was typed kept in the box.

    `identifier_text` is the text as it was asked for (decoded), or None where there was none.
    `retry_after_s` adds how long to wait.
    """
    t = translator(language)
    typed = _clean(identifier_text or "")[:TYPED_CHARS_MAX]
    title, detail = pick(error.title, language), pick(error.detail, language)
    help_ = ERROR_HELP.get(error.code, ErrorHelp((), (error.advice,)))
    sentences = [pick(text, language) for text in help_.about]
    if detail.rstrip(".。") != title:
        sentences.insert(0, detail)
    steps = [pick(text, language) for text in help_.steps]
    if retry_after_s is not None:
        seconds = max(math.ceil(retry_after_s), 1)
        steps.append(t("retry_after", duration=duration(seconds, t)))
    elif error.retryable:
        steps.append(t("retry_soon"))
    return _render(
        "error.html",
        language,
        node_name,
        typed=typed,
        title=title,
        sentences=sentences,
        steps=steps,
        code=error.code,
        status=HTTP_STATUS[error.code],
        request_id=error.request_id,
        mark=_mark(error, typed),
        again=bool(typed) and error.retryable,
    )


def api_page(openapi: Mapping[str, Any], *, language: Language, node_name: str = NODE_NAME) -> str:
    """The API reference, readable without scripts or the internet.

    The same for the same arguments, and large: keep it rather than render it per request.
    """
    other: Language = "en" if language == "zh" else "zh"
    return _render(
        "api.html",
        language,
        node_name,
        typed="",
        reference=api_reference.read(openapi, language),
        errors=sorted(
            ((HTTP_STATUS[code], code, cls) for code, cls in ERRORS.items()),
            key=lambda row: row[:2],
        ),
        say=lambda text: api_schemas.prose(pick(text, language)),
        say_other=lambda text: api_schemas.prose(pick(text, other)),
        other_lang=translator(other)("html_lang"),
    )
