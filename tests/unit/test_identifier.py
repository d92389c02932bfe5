"""Identifiers, against tests/vectors/identifiers.jsonl and case by case."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from biaojie import identifier as identifier_module
from biaojie.errors import InvalidIdentifier
from biaojie.identifier import Identifier, Key, check_prefix, fold_prefix

VECTORS = [
    json.loads(line)
    for line in (Path(__file__).parent.parent / "vectors" / "identifiers.jsonl")
    .read_text()
    .splitlines()
]
GOOD = [vector for vector in VECTORS if "prefix" in vector]
BAD = [vector for vector in VECTORS if "rule" in vector]


def _name(vector: dict[str, Any]) -> str:
    return str(vector["why"])


@pytest.mark.parametrize("vector", GOOD, ids=_name)
def test_what_is_read(vector: dict[str, Any]) -> None:
    identifier = Identifier.parse(vector["text"])
    assert (identifier.prefix, identifier.suffix) == (vector["prefix"], vector["suffix"])
    assert identifier.url_path() == vector["url"]
    prefix, suffix = vector["key"]
    assert identifier.key() == Key(prefix, suffix.encode())
    assert identifier.key(case_sensitive=True) == Key(prefix, vector["suffix"].encode())


@pytest.mark.parametrize("vector", GOOD, ids=_name)
def test_every_way_of_writing_it_leads_back(vector: dict[str, Any]) -> None:
    identifier = Identifier.parse(vector["text"])
    path = vector["url"]
    for text in (
        str(identifier),
        f"hdl:{path}",
        f"https://id.example/{path}",
        f"https://id.example/{path}?a=/b#/c",
        path.replace("/", "%2F", 1),
        str(identifier).replace("/", "／", 1),
    ):
        assert Identifier.parse(text) == identifier, text


@pytest.mark.parametrize("vector", BAD, ids=_name)
def test_what_is_refused_and_where(vector: dict[str, Any]) -> None:
    with pytest.raises(InvalidIdentifier) as caught:
        Identifier.parse(vector["text"])
    error = caught.value
    assert error.fields == {"position": vector["position"], "rule": vector["rule"]}
    assert f"position {vector['position']}, rule {vector['rule']}" in error.detail.en
    assert f"位置 {vector['position']}，规则 {vector['rule']}" in error.detail.zh
    error.detail.en.encode()  # nothing that no reply could carry
    error.detail.zh.encode()


def test_vectors_break_every_rule() -> None:
    source = Path(identifier_module.__file__).read_text()
    rules = set(re.findall(r'_Fault\(\s*"([a-z-]+)"', source))
    assert rules == {vector["rule"] for vector in BAD}


def test_spellings_that_differ_in_ascii_case_share_a_key() -> None:
    assert Identifier("Ab", "xY").key() == Identifier("aB", "Xy").key()
    assert Identifier("Ab", "xY") != Identifier("aB", "Xy")
    assert Identifier("a", "x").key(case_sensitive=True) != Identifier("A", "X").key(
        case_sensitive=True
    )


def test_the_message_shows_what_can_be_seen() -> None:
    with pytest.raises(InvalidIdentifier, match="U\\+6807 '标'"):
        Identifier.parse("标识/1")
    with pytest.raises(InvalidIdentifier, match="U\\+200B \\("):
        Identifier.parse("a/\u200b")


def test_prefixes_alone() -> None:
    assert check_prefix("88.118.8") == "88.118.8"
    assert fold_prefix("acme_x.De-1") == "ACME_X.DE-1"
    with pytest.raises(InvalidIdentifier) as caught:
        check_prefix("88.118.8/x")
    assert caught.value.fields["position"] == 8


def test_identifiers_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Identifier("a", "b").suffix = "c"  # type: ignore[misc]


@pytest.mark.parametrize(
    "text",
    [
        "88.118.8/" + "e\u0301" * 5_000_000,
        "hdl:88.118.8/" + "%41" * 3_000_000,
        "https://h/" + "%" * 10_000_000,
        "/" * 10_000_000,
        "%" * 10_000_000,
        "a." * 5_000_000,
        " " * 10_000_000,
    ],
    ids=["NFD", "encoded", "percents", "slashes", "no slash", "labels", "space"],
)
def test_ten_megabytes_are_refused_at_once(text: str) -> None:
    before = time.process_time()
    with pytest.raises(InvalidIdentifier) as caught:
        Identifier.parse(text)
    assert time.process_time() - before < 0.25
    assert len(str(caught.value)) < 500


def test_ten_megabytes_are_refused_at_once_when_not_parsed_either() -> None:
    suffix = "e\u0301\u0323" * 3_000_000  # to normalize it would take a second
    before = time.process_time()
    with pytest.raises(InvalidIdentifier, match="identifier-length"):
        Identifier("88.118.8", suffix)
    assert time.process_time() - before < 0.1
