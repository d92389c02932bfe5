"""What Schemathesis must know about the node: loaded by its command line, not by pytest."""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis import GenerationMode

WAIT_S_MAX = 0.1


@schemathesis.hook
def map_query(context: Any, query: dict[str, Any] | None) -> dict[str, Any] | None:
    """Long polls wait as long as they are told; here they need not."""
    if query and isinstance(query.get("wait"), int | float):
        query["wait"] = min(query["wait"], WAIT_S_MAX)
    return query


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    """Few random texts are identifiers: most get a prefix that is here."""
    for name in ("identifier", "prefix") if isinstance(path_parameters, dict) else ():
        if name in path_parameters:
            path_parameters[name] = _named(name, path_parameters[name])
    if isinstance(path_parameters, dict) and "range" in path_parameters:
        path_parameters["range"] = f"88.118.8/{_numbered(str(path_parameters['range']))}"
    return path_parameters


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """The same in bodies, and in the rows of a batch."""
    objects = body.get("rows", [body]) if isinstance(body, dict) else []
    for row in objects if isinstance(objects, list) else ():
        for name in ("identifier", "prefix") if isinstance(row, dict) else ():
            if name in row:
                row[name] = _named(name, row[name])
        if isinstance(row, dict) and isinstance(row.get("pattern"), str):
            row["pattern"] = _numbered(row["pattern"])
    return body


def _numbered(text: str) -> str:
    """Hardly a random text is a pattern: most get a number."""
    if len(text) > 200 or len(text) % 4 == 3:
        return text
    return text.replace("{", "").replace("}", "") + "{00..99}"


def _named(name: str, text: Any) -> Any:
    if not isinstance(text, str) or "/" in text or len(text) > 200 or len(text) % 4 == 3:
        return text
    if name == "prefix":
        return "88.118.8" if len(text) % 2 else text
    return f"88.118.8/{text}"


@schemathesis.check
def refused_for_its_meaning(ctx: Any, response: Any, case: Any) -> None:
    """What fits the schema is never refused for its shape.

    It may be for its meaning: no identifier, two values of one index, a name that is not there.
    This is positive_data_acceptance as far as a JSON schema can say what is acceptable.
    """
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    if response.status_code != 400:
        return
    problem = response.json()
    # Only faults of shape come from the models, which word them in both languages.
    faults = [fault for fault in problem.get("errors", ()) if "message_zh" in fault]
    assert not faults, faults


@schemathesis.check
def problems_are_whole(ctx: Any, response: Any, case: Any) -> None:
    """Every refusal is a problem document in both languages with the request's id."""
    if response.status_code < 400:
        return
    kind = response.headers["content-type"][0]
    assert kind == "application/problem+json", kind
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["request_id"] == response.headers["x-request-id"][0]
    assert problem["code"] != "internal"
    assert problem["detail_en"]
    assert problem["detail_zh"]
    assert problem["advice"]
