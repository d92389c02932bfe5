"""The OpenAPI 3.1 description, made from the route table and its models. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from biaojie.errors import BiaojieError
from biaojie.wire.document import HTTP_STATUS

from .endpoint import JSON, PROBLEM, Endpoint
from .models import BatchRow, Problem

Json = dict[str, Any]

HEADER_TEXTS = {
    "If-Match": "ETag the record must have, or * for any.",
    "If-None-Match": "For reads: ETags you hold. For writes: * to fail if it exists.",
    "Idempotency-Key": "1 to 255 characters of your choice; the same key gets the same reply.",
}
HEADER_SCHEMAS: Mapping[str, Json] = {
    "If-Match": {"pattern": r'^(\*|"?[0-9]{1,18}(\.[0-9]{1,18})?(\.p)?"?)$'},
    "If-None-Match": {},
    "Idempotency-Key": {"pattern": "^[!-~]([ -~]{0,253}[!-~])?$"},
}
PATH_EXAMPLES = {
    "identifier": "88.118.8/SN0001",
    "range": "88.118.8/SN{00000000..99999999}",
    "prefix": "88.118.8",
    "id": "abcd2345",
    "import": "01JZ5V6Y8Q4T3N2M1K0H9G8F7E",
}
_ABOUT_PARAMETERS = ("title", "description", "allowEmptyValue")
ALWAYS = (400, 408, 413, 429, 500, 503, 504)
TAGS = (
    ("identifiers", "Resolve, register, change and retire identifiers."),
    ("ranges", "Identifiers registered by rule, any number in one call."),
    ("prefixes", "Prefixes homed at this node."),
    ("keys", "API keys: who may do what."),
    ("imports", "Files that are registered as a job."),
    ("changes", "The hash-chained change log."),
    ("node", "Health, metrics and this description."),
)


def describe(endpoints: Iterable[Endpoint[Any, Any]], *, server: str, version: str) -> Json:
    """The whole document. Endpoints without a tag are pages, not API, and are left out."""
    listed = [endpoint for endpoint in endpoints if endpoint.tag]
    models: set[type[BaseModel]] = {Problem, BatchRow}
    for endpoint in listed:
        models |= {model for model in (endpoint.body, endpoint.reply, endpoint.query) if model}
    _, schemas = models_json_schema(
        [(model, "validation") for model in sorted(models, key=lambda model: model.__name__)],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Json] = {}
    for endpoint in listed:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(
            endpoint, schemas["$defs"]
        )
    used = {str(endpoint.query.__name__) for endpoint in listed}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "biaojie identifier node",
            "version": version,
            "description": "Registers and resolves industrial-internet identifiers such as"
            " `88.118.8/SN0001`. Errors are RFC 9457 problem documents with permanent codes.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": server}],
        "tags": [{"name": name, "description": text} for name, text in TAGS],
        "paths": paths,
        "components": {
            "schemas": {
                name: schema for name, schema in schemas["$defs"].items() if name not in used
            },
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key: bj_<id>_<secret>.",
                }
            },
        },
    }


def _operation(endpoint: Endpoint[Any, Any], schemas: Mapping[str, Json]) -> Json:
    parameters: list[Json] = []
    for name in re.findall(r"\{(\w+)\}", endpoint.path):
        parameters.append(
            {
                "name": name,
                "in": "path",
                "required": True,
                "description": "Percent-encoded; the slash after the prefix may stay literal."
                if endpoint.whole_tail
                else "Percent-encoded.",
                "schema": {"type": "string", "minLength": 1},
                "example": PATH_EXAMPLES[name],
            }
        )
    query = schemas.get(endpoint.query.__name__, {})
    for name, schema in query.get("properties", {}).items():
        parameter = {
            "name": name,
            "in": "query",
            "required": name in query.get("required", ()),
            "schema": {k: v for k, v in schema.items() if k not in _ABOUT_PARAMETERS},
        }
        if schema.get("allowEmptyValue"):
            parameter["allowEmptyValue"] = True
        if "description" in schema:
            parameter["description"] = schema["description"]
        parameters.append(parameter)
    for name in endpoint.headers:
        parameters.append(
            {
                "name": name,
                "in": "header",
                "required": False,
                "description": HEADER_TEXTS[name],
                "schema": {"type": "string", **HEADER_SCHEMAS[name]},
            }
        )
    operation: Json = {
        "operationId": endpoint.operation,
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "parameters": parameters,
        "responses": _responses(endpoint),
        "security": _security(endpoint),
    }
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": _ref(endpoint.body)}},
        }
    if endpoint.upload:
        operation["requestBody"] = {
            "required": True,
            "content": {media: {"schema": {"type": "string"}} for media in endpoint.upload},
        }
    return operation


def _security(endpoint: Endpoint[Any, Any]) -> list[Json]:
    if endpoint.keyless:
        return []
    return [{}, {"key": []}] if endpoint.public else [{"key": []}]


def _ref(model: type[BaseModel]) -> Json:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _responses(endpoint: Endpoint[Any, Any]) -> Json:
    responses: Json = {}
    for status in endpoint.success:
        if status == 304:
            responses["304"] = {"description": "Not modified."}
        elif endpoint.reply is None:
            kind = "object" if endpoint.media == JSON else "string"
            medias = (endpoint.media, *endpoint.also)
            responses[str(status)] = {
                "description": "Done.",
                "content": {media: {"schema": {"type": kind}} for media in medias},
            }
        else:
            responses[str(status)] = {
                "description": "Created." if status == 201 else "Done.",
                "content": {JSON: {"schema": _ref(endpoint.reply)}},
            }
    by_status: dict[int, list[type[BiaojieError]]] = {status: [] for status in ALWAYS}
    if endpoint.body is not None or endpoint.upload:
        by_status[415] = []
    if not endpoint.keyless:
        by_status[401] = []
    for error in endpoint.errors:
        by_status.setdefault(HTTP_STATUS[error.code], []).append(error)
    for status, errors in sorted(by_status.items()):
        codes = ", ".join(sorted({f"`{error.code}`" for error in errors}))
        responses[str(status)] = {
            "description": f"Problem: {codes}." if codes else "Problem.",
            "content": {PROBLEM: {"schema": _ref(Problem)}},
        }
    return responses
