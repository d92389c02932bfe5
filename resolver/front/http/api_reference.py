"""An OpenAPI 3.1 document as the plain tables that the API page shows. Pure.

Reads what the page needs and passes over the rest; whatever is missing or of another shape
is left out, never an exception.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from biaojie.errors import ERRORS

from .api_schemas import NOTHING, Field, Json, Piece, Schemas, anchor, listed, mapping, prose, words
from .negotiation import Language
from .texts import translator

METHODS = ("get", "post", "put", "patch", "delete")
SERVER_DEFAULT = "http://127.0.0.1:8080"
JSON_TYPE = "application/json"
PROBLEM_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Body:
    media_type: str
    type: tuple[Piece, ...]
    fields: tuple[Field, ...]
    example: str


@dataclass(frozen=True, slots=True)
class Response:
    status: str
    about: tuple[Piece, ...]
    type: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """An HTTP status and the error codes it can come with, none named if any may."""

    status: str
    codes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """`key` is "needed", "optional" or empty."""

    anchor: str
    method: str
    path: str
    summary: str
    about: tuple[Piece, ...]
    deprecated: bool
    key: str
    parameters: tuple[Field, ...]
    body: Body | None
    responses: tuple[Response, ...]
    failures: tuple[Failure, ...]
    curl: str


@dataclass(frozen=True, slots=True)
class Group:
    name: str
    about: tuple[Piece, ...]
    anchor: str
    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class DataType:
    name: str
    anchor: str
    about: tuple[Piece, ...]
    type: tuple[Piece, ...]
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    title: str
    version: str
    about: tuple[Piece, ...]
    server: str
    groups: tuple[Group, ...]
    data_types: tuple[DataType, ...]


def _parameters(schemas: Schemas, shared: object, own: object) -> list[Json]:
    found: dict[tuple[object, object], Json] = {}
    for item in (*listed(shared), *listed(own)):
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
        about=prose(
            words(parameter, "description", language)
            or words(mapping(schema), "description", language)
        ),
        place=translator(language)(f"api_in_{place}") if known else place,
    )


def _json_media(schemas: Schemas, holder: object) -> tuple[str, Json]:
    """The media type to show, JSON before others, and its object."""
    content = mapping(schemas.resolve(holder).get("content"))
    for name in (JSON_TYPE, *content):
        if name in content:
            return str(name), mapping(content[name])
    return "", NOTHING


def _stated_example(schemas: Schemas, media: Json) -> Any:
    if "example" in media:
        return media["example"]
    for stated in mapping(media.get("examples")).values():
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
    schema = mapping(parameter.get("schema"))
    for holder in (parameter, schema):
        if "example" in holder:
            return holder["example"]
    return next(iter(listed(schema.get("examples"))), None)


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


def _outcomes(
    schemas: Schemas, operation: Json, language: Language
) -> tuple[tuple[Response, ...], tuple[Failure, ...]]:
    replies, failures = [], []
    for status, holder in mapping(operation.get("responses")).items():
        name, media = _json_media(schemas, holder)
        english = words(schemas.resolve(holder), "description", "en")
        if name == PROBLEM_TYPE:
            codes = [code for code in re.findall("`([a-z-]+)`", english) if code in ERRORS]
            failures.append(Failure(str(status), tuple(codes)))
        else:
            about = prose(words(schemas.resolve(holder), "description", language))
            type_ = schemas.type_of(media["schema"]) if "schema" in media else ()
            replies.append(Response(str(status), about, type_))
    return tuple(replies), tuple(failures)


def _key(document: Json, operation: Json) -> str:
    wanted = listed(operation.get("security", document.get("security")))
    if not wanted:
        return ""
    return "optional" if any(not item for item in wanted) else "needed"


def _operations(
    document: Json, schemas: Schemas, server: str, language: Language
) -> Iterator[tuple[str, Operation]]:
    """(tag, operation) in the document's order."""
    for path, item in mapping(document.get("paths")).items():
        for method in METHODS:
            operation = mapping(mapping(item).get(method))
            if not operation:
                continue
            values = _parameters(
                schemas, mapping(item).get("parameters"), operation.get("parameters")
            )
            body = _body(schemas, operation.get("requestBody"))
            key = _key(document, operation)
            tag = next(iter(listed(operation.get("tags"))), "")
            replies, failures = _outcomes(schemas, operation, language)
            yield (
                str(tag),
                Operation(
                    anchor=anchor("op", str(operation.get("operationId") or f"{method}{path}")),
                    method=method.upper(),
                    path=str(path),
                    summary=words(operation, "summary", language),
                    about=prose(words(operation, "description", language)),
                    deprecated=bool(operation.get("deprecated")),
                    key=key,
                    parameters=tuple(_parameter_field(schemas, v, language) for v in values),
                    body=body,
                    responses=replies,
                    failures=failures,
                    curl=_curl(server, method, str(path), values, body, key),
                ),
            )


def read(document: Json, language: Language) -> Reference:
    """Everything the API page shows of `document`, in the reader's language."""
    schemas = Schemas(document, language)
    info = mapping(document.get("info"))
    server = str(
        next((mapping(s).get("url") for s in listed(document.get("servers"))), "") or SERVER_DEFAULT
    )
    if server.startswith("/"):
        server = SERVER_DEFAULT + server.rstrip("/")
    tags = {str(mapping(tag).get("name")): mapping(tag) for tag in listed(document.get("tags"))}
    grouped: dict[str, list[Operation]] = {name: [] for name in tags}
    for tag, operation in _operations(document, schemas, server, language):
        grouped.setdefault(tag, []).append(operation)
    t = translator(language)
    components = mapping(mapping(document.get("components")).get("schemas"))
    return Reference(
        title=words(info, "title", language),
        version=str(info.get("version", "")),
        about=prose(words(info, "description", language)),
        server=server,
        groups=tuple(
            Group(
                name=words(tags.get(name, NOTHING), "name", language) or name or t("api_other"),
                about=prose(words(tags.get(name, NOTHING), "description", language)),
                anchor=anchor("tag", name or "other"),
                operations=tuple(operations),
            )
            for name, operations in grouped.items()
            if operations
        ),
        data_types=tuple(
            DataType(
                name=str(name),
                anchor=anchor("type", str(name)),
                about=prose(words(mapping(schema), "description", language)),
                type=schemas.type_of(schema),
                fields=schemas.fields(schema),
            )
            for name, schema in components.items()
        ),
    )
