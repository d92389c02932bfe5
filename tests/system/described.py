"""A client that holds every reply against the node's own OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.system.wire import Answer, Wire

PROBLEM_FIELDS = ("type", "title", "code", "detail", "detail_en", "detail_zh", "advice")
ROOT = "urn:node"


class Described:
    """`ask()` is one request on a connection of its own, and fails if the reply is not as declared.

    `operation` in the errors is the operationId.
    """

    def __init__(self, port: int, key: str | None = None, *, source: str = "127.0.0.1") -> None:
        self.port = port
        self.key = key
        self.source = source
        with Wire(port) as wire:
            self.document = wire.ask("GET", "/openapi.json").json
        resource: Resource[Any] = Resource.from_contents(
            self.document, default_specification=_DRAFT
        )
        self._schemas: Registry[Any] = Registry().with_resource(ROOT, resource)
        self.undeclared: set[str] = set()

    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(method, path template, operation) of each operation."""
        for path, methods in self.document["paths"].items():
            for method, operation in methods.items():
                yield method.upper(), path, operation

    def ask(
        self,
        method: str,
        target: str,
        body: Any = None,
        *,
        key: str | None = "",
        **headers: str,
    ) -> Answer:
        """`key=""` sends this client's key, None sends none; header names with `_` for `-`."""
        sent = {name.replace("_", "-"): text for name, text in headers.items()}
        sent.setdefault("Connection", "close")
        if key == "":
            key = self.key
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        with Wire(self.port, source=self.source, timeout_s=20) as wire:
            answer = wire.ask(method, target, sent, body)
        self.check(method, target, answer)
        return answer

    def check(self, method: str, target: str, answer: Answer) -> None:
        assert answer.headers["x-request-id"]
        kind = answer.headers.get("content-type", "")
        if kind == "application/problem+json" and answer.body:
            check_problem(answer)
        found = self._find(method, target.partition("?")[0])
        if found is None:
            return
        name, operation = found
        where = f"{name} {answer.status}"
        declared = operation["responses"].get(str(answer.status))
        assert declared is not None, f"{where} is not declared: {answer.body[:300]!r}"
        contents: Mapping[str, Any] = declared.get("content", {})
        if not answer.body:
            assert method == "HEAD" or not contents, f"{where} has no body"
            return
        assert kind in contents, f"{where} is {kind}, declared are {list(contents)}"
        schema = contents[kind].get("schema")
        if schema is not None and kind.endswith("json"):
            reference = {"$ref": ROOT + schema["$ref"]} if "$ref" in schema else schema
            validator = Draft202012Validator(reference, registry=self._schemas)
            faults = [f"{fault.json_path}: {fault.message}" for fault in _faults(validator, answer)]
            assert not faults, f"{where}: {faults}"

    def _find(self, method: str, path: str) -> tuple[str, dict[str, Any]] | None:
        method = "GET" if method == "HEAD" else method
        fits: list[tuple[int, dict[str, Any]]] = []
        for declared_method, template, operation in self.operations():
            fixed, brace, _ = template.partition("{")
            fit = path.startswith(fixed) and len(path) > len(fixed) if brace else path == fixed
            if fit and declared_method == method:
                fits.append((len(fixed), operation))
        if not fits:
            return None
        operation = max(fits, key=lambda fit: fit[0])[1]
        return operation["operationId"], operation


def _faults(validator: Draft202012Validator, answer: Answer) -> list[Any]:
    return list(validator.iter_errors(answer.json))[:5]


def check_problem(answer: Answer) -> None:
    """A problem document: permanent code, both languages, the request id of the header."""
    problem = answer.json
    assert problem["status"] == answer.status
    for name in PROBLEM_FIELDS:
        assert problem[name], name
    assert problem["type"] == "urn:biaojie:error:" + problem["code"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert any("\u4e00" <= character <= "\u9fff" for character in problem["detail_zh"])
    if answer.status in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
    if answer.status == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer")


def _draft() -> Any:
    from referencing.jsonschema import DRAFT202012

    return DRAFT202012


_DRAFT = _draft()
