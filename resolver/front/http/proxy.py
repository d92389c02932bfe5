"""What Handle proxies do with an identifier beyond showing it: filters, aliases, redirects.

    ?type= ?index=      only those values            ?ignore_aliases   the alias itself
    ?redirect           lead on to the address       ?urlappend=TEXT   at the address's end
    ?noredirect         show the values              ?locatt=KEY:VALUE the location with that
    ?auth               bypass caches                                  attribute

Addresses are those that the record has, by its values 10320/loc, else URL, and http or https.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import parse_qsl, quote, urlsplit

from biaojie.errors import (
    IdentifierNotFound,
    IdentifierRetired,
    InvalidIdentifier,
    InvalidRequest,
    PrefixNotHere,
)
from biaojie.identifier import Identifier
from biaojie.limits import INDEX_MAX
from biaojie.record import Permissions, Record
from biaojie.wire.handle import Malformed, decode_xml
from biaojie.wire.handle.markup import Element
from registry.admission import Caller

from ...query import Query, Resolution
from ...service import Service
from .endpoint import Asked
from .handle_query import fault, number

ALIASES_MAX: Final = 8
LOCATIONS_MAX: Final = 256
CHOOSE_BY: Final = "locatt,country,weighted"
FILTERS_MAX: Final = 100
URL_CHARS_MAX: Final = 8_192


@dataclass(frozen=True, slots=True)
class PageQuestion:
    query: Query
    redirect: bool = False
    aliases: bool = True
    append: str = ""
    attribute: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class PageAnswer:
    """`found` is what is shown; `target` where to go instead, or "". `alias` says that `found` is
    of another identifier than was asked for."""

    found: Resolution
    target: str = ""
    alias: bool = False


def page_question(asked: Asked, *, redirects: bool) -> PageQuestion:
    """Unknown parameters are passed over, as proxies do. Raises InvalidRequest,
    InvalidIdentifier."""
    try:
        pairs = parse_qsl(asked.query, keep_blank_values=True, errors="replace", max_num_fields=200)
    except ValueError:
        raise fault("query", "too many fields.", "字段过多。") from None
    given = dict(pairs)
    attribute = given.get("locatt", "")
    key, colon, value = attribute.partition(":")
    indexes = [number(text, "index", 1, INDEX_MAX) for name, text in pairs if name == "index"]
    types = [text for name, text in pairs if name == "type"]
    if len(indexes) + len(types) > FILTERS_MAX:
        raise fault("type", f"over {FILTERS_MAX} filters.", f"过滤条件超过 {FILTERS_MAX} 个。")
    return PageQuestion(
        Query(asked.identifier(), tuple(indexes), tuple(types), "auth" in given),
        redirect=("redirect" in given or redirects) and "noredirect" not in given,
        aliases="ignore_aliases" not in given,
        append=given.get("urlappend", ""),
        attribute=(key, value) if colon else None,
    )


async def resolve_page(service: Service, caller: Caller, question: PageQuestion) -> PageAnswer:
    """Raises what `Service.resolve` does; InvalidRequest for a `urlappend` that leads astray."""
    whole = replace(question.query, indexes=(), types=())
    filtered = bool(question.query.indexes or question.query.types)
    first = await service.resolve(whole, caller)
    found = await _followed(service, caller, whole, first) if question.aliases else first
    name = found.record.identifier
    if filtered:
        found = await service.resolve(replace(question.query, identifier=name), caller)
    if found.entry is not first.entry or (question.aliases and alias_of(first.record) is not None):
        found = replace(found, entry=None)  # another record than the one shown decides as well
    target = target_of(found.record, question) if question.redirect else ""
    return PageAnswer(found, target, name != first.record.identifier)


async def _followed(
    service: Service, caller: Caller, query: Query, first: Resolution
) -> Resolution:
    """The record at the end of the aliases; `first` itself where they go round in circles, are
    too many, or end nowhere here."""
    seen = {first.record.identifier.key()}
    found = first
    for _ in range(ALIASES_MAX):
        alias = alias_of(found.record)
        if alias is None:
            return found
        if alias.key() in seen:
            return first
        seen.add(alias.key())
        try:
            found = await service.resolve(replace(query, identifier=alias), caller)
        except (IdentifierNotFound, IdentifierRetired, PrefixNotHere):
            return first
    return first


def alias_of(record: Record) -> Identifier | None:
    value = record.first("HS_ALIAS")
    if value is None or value.text is None:
        return None
    prefix, _, suffix = value.text.strip().partition("/")
    try:
        return Identifier(prefix, suffix)
    except InvalidIdentifier:
        return None


# Where to go ----------------------------------------------------------------------------


def target_of(
    record: Record, question: PageQuestion, chance: Callable[[], float] = random.random
) -> str:
    """An http or https address of the record's public values; "" if it has none."""
    public = replace(
        record, values=tuple(v for v in record.values if v.permissions & Permissions.PUBLIC_READ)
    )
    addresses = []
    locations = public.first("10320/loc")
    if locations is not None:
        addresses.append(chosen(locations.data, question.attribute, chance))
    addresses += [v.text or "" for v in public.values if v.type.upper() in ("URL", "URL.HTTP")]
    for address in addresses:
        if web_address(address):
            return _appended(address, question.append)
    return ""


def web_address(text: str) -> bool:
    """Whether a browser may be sent there: http or https, a host, nothing unprintable."""
    if len(text) > URL_CHARS_MAX or not text.isprintable() or " " in text or "\\" in text:
        return False
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _appended(address: str, text: str) -> str:
    """What is appended must not change whom the address belongs to."""
    whole = address + text
    try:
        same = web_address(whole) and urlsplit(whole)[:2] == urlsplit(address)[:2]
    except ValueError:
        same = False
    if not same:
        raise InvalidRequest(
            "urlappend: does not fit the address of this identifier.",
            "urlappend：不能附加到该标识的地址。",
            errors=[],
        )
    return quote(whole, safe="!#$%&'()*+,/:;=?@[]~-._")


@dataclass(frozen=True, slots=True)
class Location:
    href: str
    weight: float
    attributes: dict[str, str]


def chosen(
    data: bytes, attribute: tuple[str, str] | None, chance: Callable[[], float] = random.random
) -> str:
    """The address that a 10320/loc value leads to, or "".

    `chooseby` names methods in order; one that leaves nothing counts as not used. By country
    nothing is chosen, since where a client is nobody here knows. At the end by weight.
    """
    try:
        root = decode_xml(data)
    except Malformed:
        return ""
    left: Sequence[Location] = _locations(root.children[:LOCATIONS_MAX])
    for method in root.attributes.get("chooseby", CHOOSE_BY).split(",")[:16]:
        if len(left) < 2 and method.strip() != "locatt":
            break
        if method.strip() == "locatt" and attribute is not None:
            key, wanted = attribute
            left = [one for one in left if one.attributes.get(key) == wanted] or left
        elif method.strip() == "weighted":
            break
    return _weighted(left, chance) if left else ""


def _locations(elements: Sequence[Element]) -> list[Location]:
    found = []
    for element in elements:
        if element.is_("location"):
            href = element.attributes.get("href", "")
            if web_address(href):
                found.append(Location(href, _weight(element.attributes), element.attributes))
    return found


def _weight(attributes: dict[str, str]) -> float:
    try:
        weight = float(attributes.get("weight", "1"))
    except ValueError:
        return 1.0
    return min(max(weight, 0.0), 1.0) if weight == weight else 1.0  # noqa: PLR0124 - not a number


def _weighted(locations: Sequence[Location], chance: Callable[[], float]) -> str:
    """At random by weight; those of weight 0 only where there are no others."""
    likely = [one for one in locations if one.weight > 0] or list(locations)
    total = sum(one.weight for one in likely)
    if not total:
        return likely[min(int(chance() * len(likely)), len(likely) - 1)].href
    point = chance() * total
    for one in likely:
        point -= one.weight
        if point < 0:
            return one.href
    return likely[-1].href
