"""A client that holds every reply against the node's own OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

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
        self.read_to = 0
        with Wire(port) as wire:
            self.document = wire.ask("GET", "/openapi.json").json
        resource: Resource[Any] = Resource.from_contents(
            self.document, default_specification=DRAFT202012
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


# Calls and values that most tests of the API use ---------------------------------------------

IDS = "/api/v1/identifiers"
URL = {"index": 1, "type": "URL", "data": "https://acme.example/1"}


def value(index: int, data: str, type_: str = "URL", **more: Any) -> dict[str, Any]:
    return {"index": index, "type": type_, "data": data, **more}


def path(name: str) -> str:
    return f"{IDS}/88.118.8/{quote(name)}"


def data(answer: Answer) -> dict[int, str]:
    return {v["index"]: v["data"] for v in answer.json["values"]}


def batch(api: Described, mode: str, rows: list[Any], **more: Any) -> Answer:
    return api.ask("POST", IDS + ":batch", {"mode": mode, "rows": rows, **more})


def pages(api: Described, target: str, limit: int, key: str | None = "") -> list[Any]:
    """All items of a list, page by page."""
    items: list[Any] = []
    after = ""
    for _ in range(200):
        page = api.ask("GET", f"{target}limit={limit}{after}", key=key).json
        items += page["items"]
        assert len(page["items"]) <= limit
        if page["next"] is None:
            return items
        after = f"&after={quote(page['next'])}"
    raise AssertionError("the list has no end")


def end_of_log(api: Described) -> int:
    """Read from where this client last was at the end."""
    while True:
        page = api.ask("GET", f"/api/v1/changes?after={api.read_to}&limit=1000").json
        if not page["items"]:
            return api.read_to
        api.read_to = page["next"]


Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def metrics(api: Described, name: str = "") -> Series:
    """The series whose names begin so; to read all of them takes a tenth of a second."""
    with Wire(api.port) as wire:
        return read_metrics(wire.ask("GET", "/metrics").body.decode(), name)


def read_metrics(text: str, name: str = "") -> Series:
    wanted = "".join(line for line in text.splitlines(True) if line.startswith(name))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(wanted)
        for sample in family.samples
    }


def total(series: Series, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(v for (n, given), v in series.items() if n == name and wanted <= set(given))


def verdict(answer: Answer) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    check_problem(answer)
    return answer.status, answer.code
