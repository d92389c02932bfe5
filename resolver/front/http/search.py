"""Endpoints of reverse lookup: our own, and `/hrls/handles/` as existing clients ask it.

`hrls` is the search servlet that many Handle sites run beside their server. Its clients put
types into the query as names (`?URL=…&CHECKSUM=…`), mostly unencoded, and read a JSON array.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote_to_bytes

from biaojie.errors import (
    BiaojieError,
    Elsewhere,
    InvalidIdentifier,
    InvalidRequest,
    PrefixNotHere,
    PrefixSuspended,
)
from biaojie.identifier import Key, check_prefix
from biaojie.limits import (
    PREFIX_CHARS_MAX,
    SEARCH_VALUES_MAX,
    TYPE_CHARS_MAX,
    VALUE_BYTES_MAX,
)
from biaojie.record import fold_type
from registry.admission import Caller
from registry.matching import Criterion

from ...search import START, Findings, Question
from ...service import Service
from .cursor import cursor_octets, cursor_text
from .endpoint import Asked, Endpoint, json_reply
from .models import IdentifierPage, SearchQuery

ERRORS: tuple[type[BiaojieError], ...] = (
    InvalidIdentifier,
    PrefixNotHere,
    PrefixSuspended,
    Elsewhere,
)
HANDLES_LIMIT = 1_000
"""Handles in a reply of the search servlet, if not told otherwise; and"""
HANDLES_MAX = 10_000
"""how far its numbered pages reach: those of a search are all read again for each."""
_WILDCARD = "*"


def _fault(en: str, zh: str, path: str) -> InvalidRequest:
    errors = [{"path": f"query.{path}", "message": en}]
    return InvalidRequest(f"{path}: {en}", f"{path}：{zh}", errors=errors)


def _criteria(pairs: Iterable[tuple[str, bytes]]) -> tuple[Criterion, ...]:
    criteria = tuple(dict.fromkeys(Criterion(fold_type(type_), data) for type_, data in pairs))
    if not 1 <= len(criteria) <= SEARCH_VALUES_MAX:
        raise _fault(
            f"1 to {SEARCH_VALUES_MAX} values to look for.",
            f"应给出 1 至 {SEARCH_VALUES_MAX} 个检索值。",
            "value",
        )
    for type_, data in criteria:
        if not 1 <= len(type_) <= TYPE_CHARS_MAX or not type_.isprintable():
            raise _fault(
                f"a type is 1 to {TYPE_CHARS_MAX} printable characters.",
                f"类型应为 1 至 {TYPE_CHARS_MAX} 个可打印字符。",
                "value",
            )
        if len(data) > VALUE_BYTES_MAX:
            raise _fault(
                f"over {VALUE_BYTES_MAX} bytes.", f"超过 {VALUE_BYTES_MAX} 字节。", "value"
            )
    return criteria


# Our own --------------------------------------------------------------------------------


def _value(text: str) -> tuple[str, bytes]:
    type_, equals, data = text.partition("=")
    if not equals:
        raise _fault("write it as TYPE=DATA.", "应写作 TYPE=DATA。", "value")
    return type_, data.encode()


def _cursor(text: str | None) -> Key:
    if text is None:
        return START
    try:
        octets = cursor_octets(text)
        prefix, slash, suffix = octets.partition(b"/")
        name = prefix.decode("ascii")
    except ValueError:
        raise _fault("not a cursor.", "不是有效游标。", "after") from None
    if not slash or not name.isprintable() or len(name) > PREFIX_CHARS_MAX:
        raise _fault("not a cursor.", "不是有效游标。", "after")
    return Key(name, suffix)


def _question(asked: Asked) -> Question:
    query = asked.query_as(SearchQuery)
    return Question(
        _criteria(_value(text) for text in query.value),
        None if query.prefix is None else check_prefix(query.prefix),
        _cursor(query.after),
        query.limit,
    )


async def _search(service: Service, caller: Caller, question: Question) -> Findings:
    return await service.search(caller, question)


def _page(findings: Findings) -> dict[str, Any]:
    onward = None
    if findings.next is not None:
        octets = findings.next.prefix.encode() + b"/" + findings.next.suffix
        onward = cursor_text(octets)
    return {"items": [str(identifier) for identifier in findings.identifiers], "next": onward}


# As the search servlet ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Numbered:
    """A page by its number, from 0; each has `question.limit` handles."""

    question: Question
    page: int


def _pairs(query: str) -> list[tuple[str, str]]:
    """Names and texts, percent-decoded; a plus is a plus, since these clients mean it so."""
    parts = [part.partition("=") for part in query.split("&") if part]
    if len(parts) > 64:
        raise _fault("too many fields.", "字段过多。", "query")
    try:
        return [
            (unquote_to_bytes(name).decode(), unquote_to_bytes(text).decode())
            for name, _, text in parts
        ]
    except UnicodeError:
        raise _fault("not UTF-8.", "不是 UTF-8。", "query") from None


def _number(given: dict[str, str], name: str, least: int, most: int, otherwise: int) -> int:
    text = given.get(name)
    if text is None:
        return otherwise
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise _fault(f"a number from {least} to {most}.", f"应为 {least} 至 {most} 的整数。", name)
    return int(text)


def _handles_question(asked: Asked) -> _Numbered:
    told: dict[str, str] = {}
    wanted: list[tuple[str, bytes]] = []
    for name, text in _pairs(asked.query):
        if name in ("limit", "page", "retrieverecords"):
            told[name] = text
        elif _WILDCARD in text:
            raise _fault(
                "wildcards are not supported; give the whole value.",
                "不支持通配符；请给出完整的值。",
                name[:TYPE_CHARS_MAX],
            )
        else:
            wanted.append((name, text.encode()))
    if told.get("retrieverecords", "false").lower() != "false":
        raise _fault(
            "records are not given here; resolve the handles.",
            "此处不返回记录；请逐个解析标识。",
            "retrieverecords",
        )
    limit = _number(told, "limit", 1, HANDLES_MAX, HANDLES_LIMIT)
    page = _number(told, "page", 0, HANDLES_MAX // limit - 1, 0)
    prefix = check_prefix(asked.tail_text()) if asked.tail else None
    return _Numbered(Question(_criteria(wanted), prefix, START, limit), page)


async def _search_handles(service: Service, caller: Caller, numbered: _Numbered) -> list[str]:
    """Read from the beginning, since a page number says nothing of where it begins."""
    first = numbered.page * numbered.question.limit
    handles: list[str] = []
    after: Key | None = START
    while after is not None and (left := first + numbered.question.limit - len(handles)) > 0:
        findings = await service.search(
            caller, replace(numbered.question, after=after, limit=min(left, 1_000))
        )
        handles += map(str, findings.identifiers)
        after = findings.next
    return handles[first:]


ENDPOINTS: tuple[Endpoint[Any, Any], ...] = (
    Endpoint(
        "GET",
        "/api/v1/identifiers:search",
        "search",
        "identifiers",
        "Find identifiers by their values",
        _question,
        _search,
        lambda asked, findings: json_reply(_page(findings)),
        query=SearchQuery,
        reply=IdentifierPage,
        errors=ERRORS,
        public=True,
    ),
    *(
        Endpoint(
            "GET",
            path,
            "search-handles",
            "",
            "Find handles by their values, as the search servlet of Handle sites does",
            _handles_question,
            _search_handles,
            lambda asked, handles: json_reply(handles),
            errors=ERRORS,
            public=True,
        )
        for path in ("/hrls/handles", "/hrls/handles/", "/hrls/handles/{prefix}")
    ),
)
