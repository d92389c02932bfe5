"""An OpenAPI 3.1 document as the plain tables that the API page shows. Pure.

Reads what the page needs and passes over the rest; whatever is missing or of another shape
is left out, never an exception. Chinese words may stand beside English ones as
`x-summary-zh` and `x-description-zh`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from .negotiation import Language
from .texts import Translator, translator

METHODS = ("get", "post", "put", "patch", "delete")
DEPTH_MAX = 8
"""Nesting followed in schemas, so that one that holds itself comes to an end."""
SERVER_DEFAULT = "http://127.0.0.1:8080"
JSON_TYPE = "application/json"

Json = Mapping[str, Any]
_NOTHING: Json = {}


@dataclass(frozen=True, slots=True)
class TypePart:
    """A piece of a type expression; `anchor` names the data type it leads to."""

    text: str
    anchor: str | None = None


@dataclass(frozen=True, slots=True)
class Field:
    """A parameter, a header or a member of an object. `place` is empty for members."""

    name: str
    type: tuple[TypePart, ...]
    required: bool
    limits: tuple[str, ...]
    about: str
    place: str = ""


@dataclass(frozen=True, slots=True)
class Body:
    media_type: str
    type: tuple[TypePart, ...]
    fields: tuple[Field, ...]
    example: str


@dataclass(frozen=True, slots=True)
class Response:
    status: str
    about: str
    type: tuple[TypePart, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """`key` is "needed", "optional" or empty."""

    anchor: str
    method: str
    path: str
    summary: str
    about: str
    deprecated: bool
    key: str
    parameters: tuple[Field, ...]
    body: Body | None
    responses: tuple[Response, ...]
    curl: str


@dataclass(frozen=True, slots=True)
class Group:
    name: str
    about: str
    anchor: str
    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class DataType:
    name: str
    anchor: str
    about: str
    type: tuple[TypePart, ...]
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    title: str
    version: str
    about: str
    server: str
    groups: tuple[Group, ...]
    data_types: tuple[DataType, ...]


def _mapping(value: object) -> Json:
    return value if isinstance(value, Mapping) else _NOTHING


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _anchor(kind: str, text: str) -> str:
    return f"{kind}-" + re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-").lower()


def _words(document: Json, name: str, language: Language) -> str:
    chinese = document.get(f"x-{name}-zh") if language == "zh" else None
    return str(chinese or document.get(name) or "").strip()


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
        found = _mapping(value)
        for _ in range(DEPTH_MAX):
            target = found.get("$ref")
            if not isinstance(target, str):
                return found
            node: object = self._document
            for step in target.removeprefix("#/").split("/"):
                node = _mapping(node).get(step.replace("~1", "/").replace("~0", "~"))
            found = _mapping(node)
        return _NOTHING

    def type_of(self, value: object, depth: int = 0) -> tuple[TypePart, ...]:
        """A type expression such as `string | null` or `Value[]`."""
        schema = _mapping(value)
        name = str(schema.get("$ref", "")).rpartition("/")[2]
        if name:
            return (TypePart(name, _anchor("type", name)),)
        if depth > DEPTH_MAX:
            return (TypePart("…"),)
        if "const" in schema:
            return (TypePart(json.dumps(schema["const"], ensure_ascii=False)),)
        if choices := _list(schema.get("enum")):
            return (TypePart(" | ".join(json.dumps(c, ensure_ascii=False) for c in choices)),)
        variants = _list(schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"))
        if variants:
            joined: list[TypePart] = []
            for variant in variants:
                parts = self.type_of(variant, depth + 1)
                if parts and not set(parts) <= set(joined):
                    joined += [TypePart(" | "), *parts] if joined else parts
            return tuple(joined)
        kind = schema.get("type")
        if isinstance(kind, list):
            return (TypePart(" | ".join(map(str, kind))),)
        if kind == "array":
            inner = self.type_of(schema.get("items"), depth + 1)
            several = any(" | " in part.text for part in inner)
            return (TypePart("("), *inner, TypePart(")[]")) if several else (*inner, TypePart("[]"))
        return (TypePart(str(kind)),) if kind else (TypePart("any"),)

    def limits(self, value: object) -> tuple[str, ...]:
        """What the value must keep to, in words, the variants of `anyOf` included."""
        schema, t = _mapping(value), self._t
        found: list[str] = []
        for part in (schema, *map(_mapping, _list(schema.get("anyOf")))):
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
        required = _list(schema.get("required"))
        return tuple(
            Field(
                name=str(name),
                type=self.type_of(member),
                required=name in required,
                limits=self.limits(member),
                about=_words(_mapping(member), "description", self._language),
            )
            for name, member in _mapping(schema.get("properties")).items()
        )

    def example(self, value: object, depth: int = 0) -> Any:
        """An example the schema states, or one made from its types."""
        schema = self.resolve(value)
        if "example" in schema:
            return schema["example"]
        for name in ("examples", "enum"):
            if stated := _list(schema.get(name)):
                return stated[0]
        for name in ("const", "default"):
            if schema.get(name) is not None:
                return schema[name]
        if depth > DEPTH_MAX:
            return None
        for name in ("anyOf", "oneOf", "allOf"):
            if variants := _list(schema.get(name)):
                return self.example(variants[0], depth + 1)
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = kind[0] if kind else None
        if kind == "object" or "properties" in schema:
            members = _mapping(schema.get("properties"))
            wanted = _list(schema.get("required")) or list(members)
            return {k: self.example(members[k], depth + 1) for k in wanted if k in members}
        if kind == "array":
            return [self.example(schema.get("items"), depth + 1)]
        made = {"string": "text", "integer": schema.get("minimum", 1), "number": 1.5}
        return {**made, "boolean": True}.get(str(kind))


def _parameters(schemas: Schemas, shared: object, own: object, language: Language) -> list[Json]:
    found: dict[tuple[object, object], Json] = {}
    for item in (*_list(shared), *_list(own)):
        parameter = schemas.resolve(item)
        found[parameter.get("in"), parameter.get("name")] = parameter
    return list(found.values())


def _parameter_field(schemas: Schemas, parameter: Json, language: Language) -> Field:
    schema = parameter.get("schema")
    place = str(parameter.get("in", ""))
    known = place in {"path", "query", "header", "cookie"}
    return Field(
        name=str(parameter.get("name", "")),
        type=schemas.type_of(schema),
        required=bool(parameter.get("required")),
        limits=schemas.limits(schema),
        about=_words(parameter, "description", language)
        or _words(_mapping(schema), "description", language),
        place=translator(language)(f"api_in_{place}") if known else place,
    )


def _json_media(schemas: Schemas, holder: object) -> tuple[str, Json]:
    """The media type to show, JSON before others, and its object."""
    content = _mapping(schemas.resolve(holder).get("content"))
    for name in (JSON_TYPE, *content):
        if name in content:
            return str(name), _mapping(content[name])
    return "", _NOTHING


def _stated_example(schemas: Schemas, media: Json) -> Any:
    if "example" in media:
        return media["example"]
    for stated in _mapping(media.get("examples")).values():
        return schemas.resolve(stated).get("value")
    return schemas.example(media.get("schema"))


def _body(schemas: Schemas, holder: object) -> Body | None:
    name, media = _json_media(schemas, holder)
    if not name:
        return None
    schema = media.get("schema")
    example = json.dumps(_stated_example(schemas, media), ensure_ascii=False, indent=2)
    return Body(name, schemas.type_of(schema), schemas.fields(schema), example)


def _stated_value(parameter: Json) -> Any:
    schema = _mapping(parameter.get("schema"))
    for holder in (parameter, schema):
        if "example" in holder:
            return holder["example"]
    return next(iter(_list(schema.get("examples"))), None)


def _curl(
    server: str, method: str, path: str, values: list[Json], body: Body | None, key: str
) -> str:
    """A command to copy: path and stated query values filled in, one option a line."""
    query = {}
    for parameter in values:
        name, value = str(parameter.get("name")), _stated_value(parameter)
        if parameter.get("in") == "path":
            filled = quote(str(value), safe="/") if value is not None else name.upper()
            path = path.replace(f"{{{name}}}", filled)
        elif parameter.get("in") == "query" and (value is not None or parameter.get("required")):
            query[name] = name.upper() if value is None else str(value)
    url = server.rstrip("/") + path + (f"?{urlencode(query, safe='/')}" if query else "")
    lines = [
        f"curl {shlex.quote(url)}"
        if method == "get"
        else f"curl -X {method.upper()} {shlex.quote(url)}"
    ]
    if key == "needed":
        lines.append('-H "Authorization: Bearer $BIAOJIE_KEY"')
    if body:
        lines.append(f"-H 'Content-Type: {body.media_type}'")
        lines.append(f"-d {shlex.quote(body.example)}")
    return " \\\n  ".join(lines)


def _key(document: Json, operation: Json) -> str:
    wanted = _list(operation.get("security", document.get("security")))
    if not wanted:
        return ""
    return "optional" if any(not item for item in wanted) else "needed"


def _operations(
    document: Json, schemas: Schemas, server: str, language: Language
) -> Iterator[tuple[str, Operation]]:
    """(tag, operation) in the document's order."""
    for path, item in _mapping(document.get("paths")).items():
        for method in METHODS:
            operation = _mapping(_mapping(item).get(method))
            if not operation:
                continue
            values = _parameters(
                schemas, _mapping(item).get("parameters"), operation.get("parameters"), language
            )
            body = _body(schemas, operation.get("requestBody"))
            key = _key(document, operation)
            tag = next(iter(_list(operation.get("tags"))), "")
            yield (
                str(tag),
                Operation(
                    anchor=_anchor("op", str(operation.get("operationId") or f"{method}{path}")),
                    method=method.upper(),
                    path=str(path),
                    summary=_words(operation, "summary", language),
                    about=_words(operation, "description", language),
                    deprecated=bool(operation.get("deprecated")),
                    key=key,
                    parameters=tuple(_parameter_field(schemas, v, language) for v in values),
                    body=body,
                    responses=tuple(
                        Response(
                            str(status),
                            _words(schemas.resolve(response), "description", language),
                            schemas.type_of(media["schema"]) if "schema" in media else (),
                        )
                        for status, response in _mapping(operation.get("responses")).items()
                        for media in (_json_media(schemas, response)[1],)
                    ),
                    curl=_curl(server, method, str(path), values, body, key),
                ),
            )


def read(document: Json, language: Language) -> Reference:
    """Everything the API page shows of `document`, in the reader's language."""
    schemas = Schemas(document, language)
    info = _mapping(document.get("info"))
    server = str(
        next((_mapping(s).get("url") for s in _list(document.get("servers"))), "") or SERVER_DEFAULT
    )
    if server.startswith("/"):
        server = SERVER_DEFAULT + server.rstrip("/")
    tags = {str(_mapping(tag).get("name")): _mapping(tag) for tag in _list(document.get("tags"))}
    grouped: dict[str, list[Operation]] = {name: [] for name in tags}
    for tag, operation in _operations(document, schemas, server, language):
        grouped.setdefault(tag, []).append(operation)
    t = translator(language)
    components = _mapping(_mapping(document.get("components")).get("schemas"))
    return Reference(
        title=_words(info, "title", language),
        version=str(info.get("version", "")),
        about=_words(info, "description", language),
        server=server,
        groups=tuple(
            Group(
                name=_words(tags.get(name, _NOTHING), "name", language) or name or t("api_other"),
                about=_words(tags.get(name, _NOTHING), "description", language),
                anchor=_anchor("tag", name or "other"),
                operations=tuple(operations),
            )
            for name, operations in grouped.items()
            if operations
        ),
        data_types=tuple(
            DataType(
                name=str(name),
                anchor=_anchor("type", str(name)),
                about=_words(_mapping(schema), "description", language),
                type=schemas.type_of(schema),
                fields=schemas.fields(schema),
            )
            for name, schema in components.items()
        ),
    )
