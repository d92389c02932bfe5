"""Which language and which form a request gets."""

from __future__ import annotations

import time

import pytest

from resolver.front.http.negotiation import language, wants_json


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, "en"),
        ("", "en"),
        ("zh", "zh"),
        ("ZH-cn", "zh"),
        ("zh-Hant-TW", "zh"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-US,en;q=0.9,zh-CN;q=0.8", "en"),
        ("en;q=0.8, zh;q=0.9", "zh"),
        ("en;q=0.9,zh;q=0.900", "en"),  # a tie goes to the first
        ("zh;q=0.5,en;q=0.5", "zh"),
        ("fr, zh;q=0.1", "zh"),
        ("fr", "en"),
        ("zh;q=0", "en"),
        ("zh;q=0, *", "en"),
        ("en;q=0, *", "zh"),
        ("*", "en"),
        ("*;q=0.1, zh;q=0.2", "zh"),
        ("*, zh;q=0.2", "en"),
        ("zh-CN;q=0.3, zh;q=0.9, en;q=0.5", "zh"),
        (" zh ; q = 1 ", "zh"),
        ("zh;q=2, en;q=0.1", "en"),  # a weight over 1 is none
        ("zh;q=NaN", "en"),
        ("zh;q=-1", "en"),
        ("zh;q=1e9", "en"),
        ("zh;q=0.1234", "en"),
        ("zhx", "en"),
        (",,,;;;q=,=", "en"),
        ("zh\x00", "en"),
    ],
)
def test_language(header: str | None, expected: str) -> None:
    assert language(header) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        ("application/json", True),
        ("application/problem+json", True),
        ("APPLICATION/JSON", True),
        ("application/json; charset=utf-8", True),
        ("application/json, text/plain, */*", True),  # what HTTP clients for scripts send
        ("application/json, text/html", False),  # a tie goes to the page
        ("application/json, text/html;q=0.9", True),
        ("application/json;q=0.9, text/html", False),
        ("application/json;q=0.5, */*", False),
        ("application/json;q=0", False),
        ("application/json;q=0, */*", False),
        ("application/*", False),
        ("text/*, application/json;q=0.9", False),
        ("application/xhtml+xml, application/json;q=0.9", False),
        ("application/jsonp", False),
        ("application/ld+json", False),
        ("image/png", False),
    ],
)
def test_wants_json(header: str | None, expected: bool) -> None:
    assert wants_json(header) is expected


def test_headers_are_read_to_a_bound() -> None:
    assert language("fr," * 31 + "zh") == "zh"
    assert language("fr," * 32 + "zh") == "en"
    assert language(" " * 1_024 + "zh") == "en"
    began = time.perf_counter()
    for hostile in ("zh;q=1," * 1_000_000, ";" * 5_000_000, "," * 5_000_000, "q=" * 3_000_000):
        language(hostile)
        wants_json(hostile)
    assert time.perf_counter() - began < 0.5
