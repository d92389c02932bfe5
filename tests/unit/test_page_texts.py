"""Both languages say everything, and nothing is said outside the tables."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

from biaojie.errors import ERRORS
from resolver.front.http import api_texts, pages, texts

HTTP = Path(texts.__file__).parent
TEMPLATES = sorted((HTTP / "templates").glob("*.html"))
# Names made of two parts in templates and code: "status_" ~ record.status
MADE = ("status_", "source_", "api_key_", "api_in_", "bytes", "day", "hour", "minute", "second")


def _chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)


def _fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_every_text_is_in_both_languages() -> None:
    english, chinese = texts.translator("en"), texts.translator("zh")
    same_in_both = {"html_lang", "separator", "limit_value", "duration_join", "api_in_cookie"}
    for name, text in texts.TEXTS.items():
        assert english(name), name
        assert chinese(name), name
        assert _fields(text.en) == _fields(text.zh), name
        assert not _chinese(text.en), name
        assert _chinese(text.zh) or name in same_in_both, name


def test_help_is_in_both_languages_and_for_known_errors() -> None:
    assert texts.ERROR_HELP.keys() <= ERRORS.keys()
    for help_ in texts.ERROR_HELP.values():
        for text in (*help_.about, *help_.steps):
            assert _chinese(text.zh), text
            assert not _chinese(text.en), text
    for english, chinese in api_texts.CHINESE.items():
        assert _chinese(chinese), chinese
        assert not _chinese(english), english
        assert english.count("`") == chinese.count("`"), english


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(KeyError):
        texts.translator("en")("no-such-text")


def test_every_text_is_used_and_every_used_text_is_there() -> None:
    code = [path for path in HTTP.glob("*.py") if path.name != "texts.py"]
    sources = "".join(path.read_text() for path in (*TEMPLATES, *code))
    quoted = set(re.findall(r"['\"]([a-z0-9_]+)['\"]", sources))
    unused = {name for name in texts.TEXTS if name not in quoted and not name.startswith(MADE)}
    assert not unused
    called = set(re.findall(r"\bt\(\s*['\"](\w+)['\"]\s*[,)]", sources))
    assert len(called) > 80
    assert called <= texts.TEXTS.keys()


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_template_has_words_of_its_own(path: Path) -> None:
    source = path.read_text()
    for attribute, value in re.findall(r"\b(aria-label|placeholder|alt|title)=\"(.*?)\"", source):
        assert value == "" or value.startswith("{{ t("), f"{path.name}: {attribute}={value}"
    bare = re.sub(r"{#.*?#}|{%.*?%}", "", source, flags=re.DOTALL)
    bare = re.sub(r"{{.*?}}", "", bare, flags=re.DOTALL)
    bare = re.sub(r"<code>.*?</code>", "", bare, flags=re.DOTALL)
    bare = re.sub(r"<(\w+) class=\"[^\"]*\bcode\b[^\"]*\"[^>]*>[^<]*</\1>", "", bare)
    bare = re.sub(r"<[^>]*>", " ", bare)
    assert set(re.findall(r"[^\W\d_]{2,}", bare)) <= {"HTTP"}, path.name


def test_pages_hold_no_style_or_script() -> None:
    for path in TEMPLATES:
        source = path.read_text()
        assert not re.search(r"<script|<style|\bstyle=|\bon\w+=|javascript:|\|\s*safe", source)
    assert "unsafe" not in pages.CONTENT_SECURITY_POLICY
    assert "default-src 'none'" in pages.CONTENT_SECURITY_POLICY
