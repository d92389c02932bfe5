"""The schemas of an OpenAPI 3.1 document as type expressions, limits in words and examples. Pure.

Whatever is missing or of another shape is left out, never an exception.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from biaojie.errors import ERRORS

from .api_texts import CHINESE
from .negotiation import Language
from .texts import Translator, translator

DEPTH_MAX = 8
"""Nesting followed in schemas, so that one that holds itself comes to an end."""

Json = Mapping[str, Any]
NOTHING: Json = {}


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a type expression or a sentence; `anchor` is the place on the page it leads to."""

    text: str
    anchor: str | None = None
    code: bool = False


@dataclass(frozen=True, slots=True)
class Field:
    """A parameter, a header or a member of an object. `place` is empty for members."""

    name: str
    type: tuple[Piece, ...]
    required: bool
    limits: tuple[str, ...]
    about: tuple[Piece, ...]
    place: str = ""


def mapping(value: object) -> Json:
    return value if isinstance(value, Mapping) else NOTHING


def listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def anchor(kind: str, text: str) -> str:
    return f"{kind}-" + re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-").lower()


def words(document: Json, name: str, language: Language) -> str:
    """The text of a member, in Chinese where there is Chinese for it."""
    text = " ".join(str(document.get(name) or "").split())
    return CHINESE.get(text, text) if language == "zh" else text


def prose(text: str) -> tuple[Piece, ...]:
    """`text` parted at its backticks: what stands between two of them is code."""
    found = []
    for number, part in enumerate(text.split("`")):
        code = bool(number % 2)
        if part:
            found.append(Piece(part, f"error-{part}" if code and part in ERRORS else None, code))
    return tuple(found)


def _range(t: Translator, low: object, high: object) -> str:
    def shown(number: object) -> str:
        return f"{number:,}" if isinstance(number, int | float) else str(number)

    if low is not None and high is not None:
        if low == high:
            return t("limit_exactly", low=shown(low))
        return t("limit_between", low=shown(low), high=shown(high))
    if low is not None:
        return t("limit_at_least", low=shown(low))
    return t("limit_at_most", high=shown(high))


class Schemas:
    """The document's schemas, read in one language."""

    def __init__(self, document: Json, language: Language) -> None:
        self._document = document
        self._language = language
        self._t = translator(language)

    def resolve(self, value: object) -> Json:
        """Follow `$ref` inside the document; an unknown target is an empty object."""
        found = mapping(value)
        for _ in range(DEPTH_MAX):
            target = found.get("$ref")
            if not isinstance(target, str):
                return found
            node: object = self._document
            for step in target.removeprefix("#/").split("/"):
                node = mapping(node).get(step.replace("~1", "/").replace("~0", "~"))
            found = mapping(node)
        return NOTHING

    def type_of(self, value: object, depth: int = 0) -> tuple[Piece, ...]:
        """A type expression such as `string | null` or `Value[]`."""
        schema = mapping(value)
        name = str(schema.get("$ref", "")).rpartition("/")[2]
        if name:
            return (Piece(name, anchor("type", name)),)
        if depth > DEPTH_MAX:
            return (Piece("…"),)
        if "const" in schema:
            return (Piece(json.dumps(schema["const"], ensure_ascii=False)),)
        if choices := listed(schema.get("enum")):
            return (Piece(" | ".join(json.dumps(c, ensure_ascii=False) for c in choices)),)
        variants = listed(schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"))
        if variants:
            joined: list[Piece] = []
            for variant in variants:
                parts = self.type_of(variant, depth + 1)
                if parts and not set(parts) <= set(joined):
                    joined += [Piece(" | "), *parts] if joined else parts
            return tuple(joined)
        kind = schema.get("type")
        if isinstance(kind, list):
            return (Piece(" | ".join(map(str, kind))),)
        if kind == "array":
            inner = self.type_of(schema.get("items"), depth + 1)
            several = any(" | " in part.text for part in inner)
            return (Piece("("), *inner, Piece(")[]")) if several else (*inner, Piece("[]"))
        return (Piece(str(kind)),) if kind else (Piece("any"),)

    def limits(self, value: object) -> tuple[str, ...]:
        """What the value must keep to, in words, the variants of `anyOf` included."""
        schema, t = mapping(value), self._t
        found: list[str] = []
        for part in (schema, *map(mapping, listed(schema.get("anyOf")))):
            for low, high, key in (
                ("minLength", "maxLength", "limit_chars"),
                ("minItems", "maxItems", "limit_items"),
                ("minimum", "maximum", "limit_value"),
            ):
                if low in part or high in part:
                    found.append(t(key, range=_range(t, part.get(low), part.get(high))))
            if "exclusiveMinimum" in part:
                found.append(t("limit_above", low=part["exclusiveMinimum"]))
            if "exclusiveMaximum" in part:
                found.append(t("limit_below", high=part["exclusiveMaximum"]))
            if "format" in part:
                found.append(str(part["format"]))
            if "pattern" in part:
                found.append(f"{t('limit_pattern')} {part['pattern']}")
        if schema.get("default") is not None:
            shown = json.dumps(schema["default"], ensure_ascii=False)
            found.append(f"{t('limit_default')} {shown}")
        return tuple(dict.fromkeys(found))

    def fields(self, value: object) -> tuple[Field, ...]:
        schema = self.resolve(value)
        required = listed(schema.get("required"))
        return tuple(
            Field(
                name=str(name),
                type=self.type_of(member),
                required=name in required,
                limits=self.limits(member),
                about=prose(words(mapping(member), "description", self._language)),
            )
            for name, member in mapping(schema.get("properties")).items()
        )

    def example(self, value: object, depth: int = 0) -> Any:
        """An example the schema states, or one made from its types."""
        schema = self.resolve(value)
        if "example" in schema:
            return schema["example"]
        for name in ("examples", "enum"):
            if stated := listed(schema.get(name)):
                return stated[0]
        for name in ("const", "default"):
            if schema.get(name) is not None:
                return schema[name]
        if depth > DEPTH_MAX:
            return None
        for name in ("anyOf", "oneOf", "allOf"):
            if variants := listed(schema.get(name)):
                return self.example(variants[0], depth + 1)
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = kind[0] if kind else None
        if kind == "object" or "properties" in schema:
            members = mapping(schema.get("properties"))
            wanted = listed(schema.get("required")) or list(members)
            return {k: self.example(members[k], depth + 1) for k in wanted if k in members}
        if kind == "array":
            return [self.example(schema.get("items"), depth + 1)]
        made = {"string": "text", "integer": schema.get("minimum", 1), "number": 1.5}
        return {**made, "boolean": True}.get(str(kind))
