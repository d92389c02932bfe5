"""The error tree: permanent codes, both languages, a status for each, a page that lists all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from biaojie import errors, identifier
from biaojie.errors import ERRORS, BiaojieError, IdentifierNotFound, InvalidRecord, Text
from biaojie.wire.document import HTTP_STATUS, decode_error, encode_error

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
HAN = re.compile("[\u4e00-\u9fff]")

# Codes are permanent: this list only ever grows.
RELEASED = {
    "batch-rejected",
    "deadline-exceeded",
    "forbidden",
    "idempotency-mismatch",
    "idempotency-running",
    "identifier-not-found",
    "identifier-retired",
    "identifier-taken",
    "internal",
    "invalid-file",
    "invalid-identifier",
    "invalid-record",
    "invalid-request",
    "malformed-answer",
    "method-not-allowed",
    "not-found",
    "over-capacity",
    "prefix-not-here",
    "prefix-suspended",
    "prefix-taken",
    "record-frozen",
    "request-timeout",
    "storage-full",
    "tampered-log",
    "temporarily-unavailable",
    "too-large",
    "too-many-requests",
    "unauthenticated",
    "unreachable",
    "unsupported-media-type",
    "value-not-found",
    "value-read-only",
    "version-mismatch",
}


def _classes() -> Iterator[type[BiaojieError]]:
    for thing in vars(errors).values():
        if isinstance(thing, type) and issubclass(thing, BiaojieError):
            yield thing


def test_codes_are_unique_and_permanent() -> None:
    classes = [cls for cls in _classes() if cls is not BiaojieError]
    codes = [cls.code for cls in classes]
    assert len(codes) == len(set(codes)), "two classes share a code"
    assert dict(zip(codes, classes, strict=True)) == ERRORS
    assert set(codes) >= RELEASED, "a released code is gone"
    assert all(re.fullmatch("[a-z]+(-[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("cls", ERRORS.values(), ids=lambda cls: cls.code)
def test_every_error_helps_in_both_languages(cls: type[BiaojieError]) -> None:
    for text in (cls.title, cls.advice):
        assert isinstance(text, Text)
        assert text.en.isascii()
        assert not HAN.search(text.en)
        assert HAN.search(text.zh)
        assert text.en == text.en.strip() != ""
    assert cls.title.en[-1].isalnum(), "a title is no sentence"
    assert cls.advice.en.endswith(".")
    assert cls.advice.zh.endswith("。")
    if cls is not errors.Internal:
        assert cls.title != BiaojieError.title, "inherited"
        assert cls.advice != BiaojieError.advice, "inherited"


@pytest.mark.parametrize("cls", ERRORS.values(), ids=lambda cls: cls.code)
def test_every_error_crosses_the_wire(cls: type[BiaojieError]) -> None:
    error = cls("What happened.", "发生了什么。", request_id="r1", position=3, rows=[{"row": 1}])
    for chinese in (False, True):
        back = decode_error(encode_error(error, chinese=chinese), HTTP_STATUS[cls.code])
        assert type(back) is cls
        assert (back.detail, back.request_id, back.fields) == (
            error.detail,
            error.request_id,
            error.fields,
        )
    assert str(error) == f"{cls.code}: What happened. {cls.advice.en} [request r1]"


def test_texts_left_out() -> None:
    assert IdentifierNotFound().detail == ("The identifier is not registered.", "标识未注册。")
    assert InvalidRecord("Only English.").detail == ("Only English.", "Only English.")
    assert str(BiaojieError("x.")).startswith("internal: x. Try again")


def test_status_of_every_code() -> None:
    assert HTTP_STATUS.keys() == ERRORS.keys()
    assert all(400 <= status < 600 for status in HTTP_STATUS.values())
    for code, status in HTTP_STATUS.items():
        if status in {429, 503, 504}:
            assert ERRORS[code].retryable, code
        if status in {400, 401, 403, 404, 405, 410, 412, 413, 415, 422, 507}:
            assert not ERRORS[code].retryable, code


def test_a_node_in_trouble_never_says_not_found() -> None:
    assert HTTP_STATUS["temporarily-unavailable"] == 503
    assert {code for code, status in HTTP_STATUS.items() if status == 404} == {
        "not-found",
        "identifier-not-found",
        "prefix-not-here",
        "value-not-found",
    }


def _rows(page: str) -> dict[str, str]:
    return {m[1]: m[0] for m in re.finditer(r"^\| `([a-z-]+)` \| \d{3} \|.*$", page, re.MULTILINE)}


def _row(cls: type[BiaojieError]) -> str:
    retry = "yes · 是" if cls.retryable else "no · 否"
    return (
        f"| `{cls.code}` | {HTTP_STATUS[cls.code]} | {retry} "
        f"| {cls.title.en}. {cls.advice.en} | {cls.title.zh}。{cls.advice.zh} |"
    )


def test_the_page_lists_every_error_as_it_is() -> None:
    assert _rows(PAGE.read_text()) == {code: _row(cls) for code, cls in ERRORS.items()}


def test_the_page_lists_every_rule_of_identifiers() -> None:
    source = Path(identifier.__file__).read_text()
    rules = set(re.findall(r'_Fault\(\s*"([a-z-]+)"', source))
    assert len(rules) == 12
    assert set(re.findall(r"^\| `([a-z]+-[a-z-]+)` \| [^\d]", PAGE.read_text(), re.M)) == rules


def test_the_page_test_can_fail() -> None:
    page = PAGE.read_text()
    row = _row(IdentifierNotFound)
    assert row in page
    assert _rows(page.replace(row + "\n", "")) != _rows(page)
    assert _rows(page.replace("404", "200")) != _rows(page)
