"""The API page: what it makes of an OpenAPI description, and of the node's own."""

from __future__ import annotations

import html
import json
import re
import shlex
from typing import Any, cast

import pytest

from biaojie.errors import ERRORS
from biaojie.wire.problem import HTTP_STATUS
from resolver.front.http import (
    accounts,
    api_reference,
    batches,
    identifiers,
    imports,
    pages,
    public,
    ranges,
    search,
    statistics,
)
from resolver.front.http.api_texts import CHINESE
from resolver.front.http.negotiation import Language
from resolver.front.http.openapi import describe
from tests.unit.test_pages import Page, check_same_markup
from tests.xss import PAYLOADS

SERVER = "http://127.0.0.1:8080"


def node_description() -> dict[str, Any]:
    fronts = (identifiers, batches, ranges, search, accounts, statistics)
    api = tuple(endpoint for front in fronts for endpoint in front.ENDPOINTS)
    api += imports.ImportRest(None).endpoints()
    own = public.public_endpoints(cast(Any, None), api)
    return describe((*api, *own), server=SERVER, version="1.2.3")


def small(words: str = "Words") -> dict[str, Any]:
    """A description with one of everything, whose every free text is `words`."""
    tree = {
        "type": "object",
        "description": words,
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": words},
            "size": {"type": "integer", "exclusiveMinimum": 0, "maximum": 10_000},
            "mode": {"enum": ["all", words], "default": words},
            "kind": {"const": words},
            "when": {"anyOf": [{"type": "string", "format": words}, {"type": "null"}]},
            "branches": {"type": "array", "items": {"$ref": "#/components/schemas/Tree"}},
            "mixed": {"type": "array", "items": {"anyOf": [{"type": "string"}, {}]}},
            "both": {"type": ["string", "null"], "description": words},
        },
    }
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Tree"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": words, "version": words, "description": words},
        "tags": [{"name": "trees", "description": words}],
        "security": [{"key": []}],
        "paths": {
            "/trees/{id}": {
                "parameters": [
                    {"name": "id", "in": "path", "required": True, "example": f"a/b {words}"}
                ],
                "get": {
                    "tags": ["trees"],
                    "operationId": "look",
                    "summary": words,
                    "description": words,
                    "security": [{}, {"key": []}],
                    "parameters": [
                        {
                            "name": "limit",
                            "in": "query",
                            "required": True,
                            "description": words,
                            "schema": {"type": "integer", "examples": [10]},
                        }
                    ],
                    "responses": {
                        "200": {
                            "description": words,
                            "content": {
                                "application/json": {
                                    "schema": {"$ref": "#/components/schemas/Tree"}
                                }
                            },
                        },
                        "404": {
                            "description": "Problem: `identifier-not-found`.",
                            "content": problem,
                        },
                        "503": {"description": "Problem.", "content": problem},
                    },
                },
                "put": {
                    "tags": ["trees"],
                    "deprecated": True,
                    "requestBody": {
                        "content": {
                            "application/json": {"schema": {"$ref": "#/components/schemas/Tree"}}
                        }
                    },
                    "responses": {},
                },
            },
        },
        "components": {"schemas": {"Tree": tree}},
    }


def test_types_and_limits_in_words() -> None:
    tree = api_reference.read(small(), "en").data_types[0]
    shown = {
        field.name: ("".join(part.text for part in field.type), field.limits)
        for field in tree.fields
    }
    assert shown == {
        "name": ("string", ("length: 1 to 64", "pattern Words")),
        "size": ("integer", ("at most 10,000", "more than 0")),
        "mode": ('"all" | "Words"', ('default "Words"',)),
        "kind": ('"Words"', ()),
        "when": ("string | null", ("Words",)),
        "branches": ("Tree[]", ()),
        "mixed": ("(string | any)[]", ()),
        "both": ("string | null", ()),
    }
    assert [field.name for field in tree.fields if field.required] == ["name"]
    assert tree.fields[5].type[0].anchor == tree.anchor


def test_operations_keys_and_outcomes() -> None:
    (group,) = api_reference.read(small(), "en").groups
    look, put = group.operations
    assert (look.method, look.path, look.key) == ("GET", "/trees/{id}", "optional")
    assert [(field.name, field.place, field.required) for field in look.parameters] == [
        ("id", "path", True),
        ("limit", "query", True),
    ]
    assert [failure.codes for failure in look.failures] == [("identifier-not-found",), ()]
    assert (put.method, put.key, put.deprecated) == ("PUT", "needed", True)
    assert look.curl == "curl 'http://127.0.0.1:8080/trees/a/b%20Words?limit=10'"
    assert shlex.split(put.curl)[:4] == ["curl", "-X", "PUT", f"{SERVER}/trees/a/b%20Words"]
    assert json.loads(shlex.split(put.curl)[-1]) == {"name": "text"}


def test_curl_examples_survive_a_shell() -> None:
    hostile = "'; rm -rf $HOME `id` \"\\\n"
    description = small()
    description["components"]["schemas"]["Tree"]["example"] = {"name": hostile}
    put = api_reference.read(description, "en").groups[0].operations[1]
    words = shlex.split(put.curl.replace("\\\n", ""))
    assert json.loads(words[-1]) == {"name": hostile}


@pytest.mark.parametrize(
    "description",
    [
        {},
        {"paths": {"/x": {"get": {}}}},
        {"paths": {"/x": {"get": {"responses": {"200": {"$ref": "#/nowhere"}}}}}},
        {"paths": {"/x/{y}": {"post": {"requestBody": {"$ref": "#/components/a~1b"}}}}},
        {"components": {"schemas": {"A": {"$ref": "#/components/schemas/A"}}}},
        {"components": {"schemas": {"A": True, "B": {"anyOf": []}, "C": {"type": "array"}}}},
        {"paths": None, "tags": [None], "servers": [], "info": [], "components": {"schemas": None}},
    ],
)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_gaps_are_left_out(description: dict[str, Any], language: Language) -> None:
    assert "</html>" in pages.api_page(description, language=language)


def test_a_schema_that_holds_itself_has_an_example() -> None:
    description = small()
    tree = description["components"]["schemas"]["Tree"]
    tree["required"] = ["branches"]
    put = api_reference.read(description, "en").groups[0].operations[1]
    assert '"branches"' in put.curl
    assert len(put.curl) < 10_000


def test_descriptions_do_not_become_markup() -> None:
    harmless = Page(pages.api_page(small("plain"), language="en"))
    for payload in PAYLOADS:
        words = payload.replace("`", "")  # backticks mean code here
        page = check_same_markup(pages.api_page(small(words), language="en"), harmless)
        assert "".join(words.split()) in "".join(page.text.split())


# The node's own -------------------------------------------------------------------------


def _words(node: object) -> set[str]:
    """Every text of a description that the page shows, failures apart."""
    found: set[str] = set()
    if isinstance(node, dict):
        found |= {node[k] for k in ("summary", "description") if isinstance(node.get(k), str)}
        for name, item in node.items():
            if name != "securitySchemes":
                found |= _words(item)
    elif isinstance(node, list):
        for item in node:
            found |= _words(item)
    return {" ".join(text.split()) for text in found if not text.startswith("Problem")}


def test_all_words_of_the_description_are_there_in_chinese() -> None:
    description = node_description()
    spoken = _words(description) | {tag["name"] for tag in description["tags"]}
    spoken.add(description["info"]["title"])
    assert spoken - CHINESE.keys() == set(), "not in api_texts.py"
    assert CHINESE.keys() - spoken == set(), "in api_texts.py for nothing"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_shows_every_operation_and_error(language: Language) -> None:
    description = node_description()
    page = Page(pages.api_page(description, language=language))
    for path, item in description["paths"].items():
        for method, operation in item.items():
            assert f"{method.upper()} {path}" in " ".join(page.text.split())
            words = operation["summary"]
            assert (CHINESE[words] if language == "zh" else words) in page.text
    for code, error in ERRORS.items():
        assert error.title.en in page.text
        assert error.title.zh in page.text
        assert f"error-{code}" in [c for _, name, c in page.attributes if name == "id"]
        assert str(HTTP_STATUS[code]) in page.text
    ids = {content for _, name, content in page.attributes if name == "id"}
    inside = {href[1:] for href in page.all("a", "href") if href.startswith("#")}
    assert inside <= ids


def test_every_example_is_a_command_of_this_node() -> None:
    page = pages.api_page(node_description(), language="en")
    commands = [html.unescape(text) for text in re.findall(r"<code>(curl.*?)</code>", page, re.S)]
    assert len(commands) > 15
    for command in commands:
        words = shlex.split(command.replace("\\\n", ""))
        url = next(word for word in words if word.startswith("http"))
        assert url.startswith(SERVER + "/")
        assert "{" not in url
        if "-d" in words:
            json.loads(words[words.index("-d") + 1])
