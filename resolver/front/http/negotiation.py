"""What a request's Accept and Accept-Language headers ask for. Pure.

Both headers come from strangers: only the first 1,024 characters and 32 entries are read,
and an entry with a malformed weight is passed over.
"""

from __future__ import annotations

import re
from typing import Literal

Language = Literal["zh", "en"]

HEADER_CHARS_MAX = 1_024
HEADER_ENTRIES_MAX = 32
_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
_JSON_TYPES = ("application/json", "application/problem+json")
_HTML_TYPES = ("text/html", "application/xhtml+xml")


def _weighted(header: str | None) -> list[tuple[str, float]]:
    """(range in lower case, weight 0 to 1) of each entry, in the order written."""
    found = []
    for entry in (header or "")[:HEADER_CHARS_MAX].split(",")[:HEADER_ENTRIES_MAX]:
        name, *parameters = (part.strip().lower() for part in entry.split(";"))
        weight = "1"
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                weight = value.strip()
        if name and _WEIGHT.fullmatch(weight):
            found.append((name, float(weight)))
    return found


def language(accept_language: str | None) -> Language:
    """The better of Chinese and English; English when neither is asked for.

    Any kind of Chinese (`zh-Hant-TW`, `zh-CN`) counts as `zh`. Of two equal weights the one
    written first wins; `*` stands for whichever of the two is not named.
    """
    best: dict[str, tuple[float, int]] = {}
    for order, (name, weight) in enumerate(_weighted(accept_language)):
        primary = name.partition("-")[0]
        best[primary] = max(best.get(primary, (-1.0, 0)), (weight, -order))
    rest = best.get("*", (0.0, 0))
    chinese, english = best.get("zh", rest), best.get("en", rest)
    return "zh" if chinese[0] > 0 and chinese > english else "en"


def wants_json(accept: str | None) -> bool:
    """Whether the reader is a program. Browsers, `*/*` and a missing header mean a page.

    True only when a JSON type is named, with a weight above HTML's, or with at least the
    weight of the wildcard where HTML is not named (`application/json, text/plain, */*`).
    """
    weights: dict[str, float] = {}
    for name, weight in _weighted(accept):
        weights[name] = max(weights.get(name, 0.0), weight)
    json = max(weights.get(name, 0.0) for name in _JSON_TYPES)
    if json <= 0:
        return False
    named = [weights[name] for name in _HTML_TYPES if name in weights]
    if named:
        return json > max(named)
    return json >= max(weights.get("text/*", 0.0), weights.get("*/*", 0.0))
