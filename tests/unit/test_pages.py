"""The public pages: what they show, and that nothing they are given becomes markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
import zxingcpp
from PIL import Image, ImageDraw

from biaojie.errors import (
    ERRORS,
    BiaojieError,
    IdentifierNotFound,
    InvalidIdentifier,
    TemporarilyUnavailable,
)
from biaojie.identifier import Identifier
from biaojie.record import Permissions, Record, Reference, Status, Value
from resolver.front.http import pages
from resolver.front.http.negotiation import Language
from tests.xss import IDENTIFIERS, PAYLOADS

NOW = 1_800_000_000
URL = "https://id.example.com/88.118.8/SN0001"
BOTH: tuple[Language, Language] = ("en", "zh")


class Page(HTMLParser):
    """A page as a list of elements and its visible text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "a":  # whether a value is a link depends on the value
            self.elements.append((tag, tuple(sorted(name for name, _ in attrs))))
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, name: str) -> list[str]:
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


def value(index: int, type_: str, data: bytes | str, **more: Any) -> Value:
    return Value(index, type_, data.encode() if isinstance(data, str) else data, **more)


def record(*values: Value, **more: Any) -> Record:
    fields: dict[str, Any] = {"created": NOW - 100, "modified": NOW - 50, "version": 3, **more}
    fields.setdefault("identifier", Identifier("88.118.8", "SN0001"))
    return Record(values=values, sequence=7, **fields)


def resolve(shown: Record, language: Language = "en", **more: Any) -> str:
    options: dict[str, Any] = {
        "source": "store",
        "permanent_url": URL,
        "json_url": "/api/v1/identifiers/88.118.8/SN0001",
        "now": NOW,
        **more,
    }
    return pages.resolve_page(shown, language=language, **options)


def error(caught: BiaojieError, text: str | None, language: Language = "en", **more: Any) -> str:
    return pages.error_page(caught, identifier_text=text, language=language, **more)


# Escaping -------------------------------------------------------------------------------


def check_same_markup(hostile: str, harmless: Page) -> Page:
    """`hostile` has the elements and attributes of `harmless`, and leads nowhere else."""
    page = Page(hostile)
    assert page.elements == harmless.elements
    for tag, name, content in page.attributes:
        assert not name.startswith("on")
        if name in ("href", "src", "action"):
            assert re.match(r"(/(?!/)|#|https?://|mailto:)", content), (tag, name, content)
    return page


def test_identifiers_do_not_become_markup() -> None:
    harmless = Page(resolve(record(value(1, "NAME", "x"))))
    for identifier in IDENTIFIERS:
        hostile = resolve(record(value(1, "NAME", "x"), identifier=identifier))
        page = check_same_markup(hostile, harmless)
        assert page.text.count(str(identifier)) >= 2, identifier  # title and heading


@pytest.mark.parametrize("type_", ["NAME", "URL", "EMAIL", "HS_ADMIN"])
def test_values_do_not_become_markup(type_: str) -> None:
    text, octets = (Page(resolve(record(value(1, type_, data)))) for data in ("x", b"\0"))
    for payload in PAYLOADS:
        html = resolve(record(value(1, type_, payload)))
        binary = re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", payload)
        page = check_same_markup(html, octets if binary else text)
        if not binary:
            shown = payload.replace("\u202e", "[U+202E]")
            assert shown in page.text, payload
        for href in page.all("a", "href"):
            assert "@" not in href or href.startswith("mailto:"), payload


def test_types_templates_and_references_do_not_become_markup() -> None:
    def shown(text: str) -> str:
        return resolve(record(value(1, text, "x", references=(Reference(text, 1),)), template=text))

    harmless = Page(shown("plain"))
    for payload in PAYLOADS:
        check_same_markup(shown(payload), harmless)


def test_what_visitors_send_does_not_become_markup() -> None:
    typed = Page(error(IdentifierNotFound(), "x"))
    told = Page(error(IdentifierNotFound("a", "b", request_id="c"), "x"))
    tags = {tag for tag, _ in typed.elements} | {"mark"}
    for payload in PAYLOADS:
        check_same_markup(error(IdentifierNotFound(), payload), typed)
        detail = IdentifierNotFound(payload, payload, request_id=payload)
        check_same_markup(error(detail, "x"), told)
        try:
            Identifier.parse(payload)
        except InvalidIdentifier as caught:
            page = Page(error(caught, payload))
            assert page.all("input", "value") == [payload] or "\x00" in payload or "\r" in payload
            assert {tag for tag, _ in page.elements} <= tags


def test_node_names_and_examples_do_not_become_markup() -> None:
    harmless = Page(pages.search_page(language="en", node_name="x", examples=["x"]))
    for payload in PAYLOADS:
        page = pages.search_page(language="en", node_name=payload, examples=[payload])
        check_same_markup(page, harmless)


def test_lone_surrogates_do_not_break_a_page() -> None:
    assert "?" in error(IdentifierNotFound("\ud800"), "88.118.8/\udfff")
    try:
        Identifier.parse("88.118.8/\udfff")
    except InvalidIdentifier as caught:
        error(caught, "88.118.8/\udfff").encode()
    pages.search_page(language="en", node_name="\ud800", examples=["\ud800"]).encode()


# The resolve page -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "data", "href"),
    [
        ("URL", "https://www.example.com/a?b=c#d", "https://www.example.com/a?b=c#d"),
        ("url", "http://example.com", "http://example.com"),
        ("URL", "HTTPS://例子.测试/路", "HTTPS://例子.测试/路"),
        ("URL", "http://[::1]:8080/x", "http://[::1]:8080/x"),
        ("URL", "ftp://example.com/", None),
        ("URL", "javascript:alert(1)", None),
        ("URL", "https:///nowhere", None),
        ("URL", "https://user:pass@example.com/", None),
        ("URL", "https://www.example.com@evil.invalid/", None),
        ("URL", "https://example.com\\@evil.invalid/", None),
        ("URL", "https://example.com/ x", None),
        ("URL", "https://example.com:99999/", None),
        ("URL", "http://[::1/", None),
        ("URL", "//example.com/", None),
        ("NAME", "https://www.example.com/", None),
        ("EMAIL", "a.b+c@example.com", "mailto:a.b%2Bc@example.com"),
        ("EMAIL", "mailto:a@example.com", "mailto:a@example.com"),
        ("EMAIL", "a@example.com?subject=x", None),
        ("EMAIL", "a@b@c", None),
        ("EMAIL", "A <a@example.com>", None),
        ("EMAIL", "http://example.com", None),
    ],
)
def test_only_web_and_mail_addresses_are_links(type_: str, data: str, href: str | None) -> None:
    page = Page(resolve(record(value(1, type_, data))))
    rel = "nofollow noopener noreferrer ugc"
    found = re.findall(rf'<a href="([^"]*)" rel="{rel}">', resolve(record(value(1, type_, data))))
    assert found == ([href] if href else [])
    assert data in page.text


def test_a_page_tells_what_the_record_says() -> None:
    shown = record(
        value(1, "产品名称", "永磁直驱风力发电机组\n第二行"),
        value(2, "URL", "https://www.example.com/"),
        value(3, "SECRET", "nobody sees this", permissions=Permissions(0b1100)),
        template="88.118.8/模板",
        created=1_763_000_000,
        modified=1_763_003_600,
    )
    english, chinese = Page(resolve(shown, "en")), Page(resolve(shown, "zh"))
    for page in (english, chinese):
        assert "永磁直驱风力发电机组\n第二行" in page.text
        assert "nobody sees this" not in page.text
        assert "SECRET" not in page.text
        assert "/88.118.8/%E6%A8%A1%E6%9D%BF" in page.all("a", "href")
        assert URL in page.all("a", "href")
        assert "/api/v1/identifiers/88.118.8/SN0001" in page.all("a", "href")
        assert page.all("time", "datetime")[:2] == ["2025-11-13T02:13:20Z", "2025-11-13T03:13:20Z"]
    assert english.all("html", "lang") == ["en"]
    assert chinese.all("html", "lang") == ["zh-CN"]
    assert "2025-11-13 02:13:20 UTC" in english.text
    assert "2025-11-13 10:13:20 北京时间" in chinese.text
    assert "Active" in english.text
    assert "有效" in chinese.text
    assert "1 day from retrieval" in english.text
    assert "自获取起 1 天" in chinese.text


@pytest.mark.parametrize("status", list(Status))
@pytest.mark.parametrize("language", BOTH)
@pytest.mark.parametrize("source", ["cache", "store", "stale"])
def test_every_status_and_source_has_words(status: Status, language: Language, source: str) -> None:
    text = Page(resolve(record(status=status), language, source=source)).text
    stale = {"en": "This is the last known answer", "zh": "以下是最近一次的解析结果"}[language]
    assert (stale in text) is (source == "stale")


@pytest.mark.parametrize(
    ("ttls", "english"),
    [
        ([], ["Not stated"]),
        ([(0, False)], ["Ask anew each time"]),
        ([(90_061, False), (86_400, False)], ["1 day from retrieval"]),
        ([(93_784, False)], ["1 day 2 hours from retrieval"]),
        ([(NOW + 60, True)], ["Until 2027-01-15 08:01:00 UTC"]),
        ([(NOW, True)], ["Expired on 2027-01-15 08:00:00 UTC"]),
        (
            [(61, False), (NOW + 9, True), (NOW + 8, True)],
            ["1 minute 1 second from retrieval", "Until 2027-01-15 08:00:08 UTC"],
        ),
        ([(2**31 - 1, True)], ["Until 2038-01-19 03:14:07 UTC"]),
    ],
)
def test_validity_in_words(ttls: list[tuple[int, bool]], english: list[str]) -> None:
    values = [
        value(n + 1, "T", "x", ttl=ttl, ttl_absolute=absolute)
        for n, (ttl, absolute) in enumerate(ttls)
    ]
    text = Page(resolve(record(*values))).text
    for line in english:
        assert line in text


def test_data_that_is_no_text() -> None:
    admin = bytes.fromhex("07f20000000a302e4e412f38382e313138000000c8")
    text = Page(resolve(record(value(100, "HS_ADMIN", admin)))).text
    assert "Binary data, 21 bytes" in text
    assert "07 f2 00 00 00 0a 30 2e" in text
    long = Page(resolve(record(value(1, "BLOB", b"\xff" * 1_000)))).text
    assert "1,000 bytes" in long
    assert long.count("ff") == 64
    assert "Binary data, 3 bytes" in Page(resolve(record(value(1, "X", "a\x00b")))).text
    assert "(empty)" in Page(resolve(record(value(1, "X", b"")))).text
    assert "[U+202E]gpj.exe" in Page(resolve(record(value(1, "X", "\u202egpj.exe")))).text


def test_long_values_are_cut_and_say_so() -> None:
    text = Page(resolve(record(value(1, "X", "字" * 20_000)))).text
    assert text.count("字") == 2_000
    assert "of 60,000 bytes in all" in text
    assert len(resolve(record(value(1, "X", "x" * 65_536)))) < 30_000


def test_addresses_that_are_no_web_addresses_are_text() -> None:
    html = resolve(record(), permanent_url="javascript:xss()", json_url="javascript:xss()")
    assert "javascript:" not in " ".join(Page(html).all("a", "href"))


# QR codes -------------------------------------------------------------------------------


def drawn(html: str) -> Image.Image:
    """The inline QR code as a picture: its path is rows of horizontal runs of modules."""
    size = re.search(r'<svg viewBox="0 0 (\d+) \1"', html)
    path = re.search(r'stroke="#000" d="([^"]*)"', html)
    assert size
    assert path
    scale, width = 4, int(size[1])
    picture = Image.new("L", (width * scale, width * scale), 255)
    pen = ImageDraw.Draw(picture)
    x = y = 0.0
    for move, run in re.findall(r"([Mm][-\d. ]+)|h(\d+)", path[1]):
        if move:
            right, down = map(float, move[1:].split())
            x, y = (right, down) if move[0] == "M" else (x + right, y + down)
        else:
            left, top = x * scale, (y - 0.5) * scale
            pen.rectangle((left, top, left + int(run) * scale - 1, top + scale - 1), fill=0)
            x += int(run)
    return picture


@pytest.mark.parametrize(
    "suffix", ["SN0001", "风机-2025-永磁直驱-0001", "PVI [480V] 50%/a b", "é" * 40, "x" * 240]
)
def test_the_qr_code_reads_as_the_permanent_link(suffix: str) -> None:
    identifier = Identifier("88.118.8", suffix)
    url = f"https://id.example.com/{identifier.url_path()}"
    html = resolve(record(identifier=identifier), permanent_url=url)
    found = zxingcpp.read_barcodes(drawn(html))
    assert [code.text for code in found] == [url]
    assert Identifier.parse(found[0].text) == identifier


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("88.118.8/%E9%A3%8E%E6%9C%BA%2F1%3Fa%20b%25", "88.118.8/风机%2F1%3Fa%20b%25"),
        ("88.118.8/%E9%A3", "88.118.8/%E9%A3"),
        ("88.118.8/%E2%80%AE", "88.118.8/%E2%80%AE"),
        ("88.118.8/%3Cscript%3E", "88.118.8/%3Cscript%3E"),
    ],
)
def test_the_link_is_shown_in_letters_and_leads_to_its_escapes(path: str, shown: str) -> None:
    url = "https://id.example.com/"
    page = Page(resolve(record(), permanent_url=url + path))
    assert url + shown in page.text
    assert url + path in page.all("a", "href")


def test_a_link_too_long_for_a_code_has_none() -> None:
    html = resolve(record(), permanent_url="https://id.example.com/88.118.8/" + "x" * 600)
    assert "qrline" not in html
    assert "too long for a QR code" in html


# Error pages ----------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(ERRORS))
@pytest.mark.parametrize("language", BOTH)
def test_every_error_has_a_page(code: str, language: Language) -> None:
    caught = ERRORS[code](request_id="01JDREQUEST")
    html = error(caught, "88.118.8/SN0001", language, retry_after_s=5)
    page = Page(html)
    assert caught.title[language == "zh"] in page.text
    assert "01JDREQUEST" in page.text
    assert code in page.text
    assert page.all("input", "value") == ["88.118.8/SN0001"]
    assert re.search(r'<ul class="steps">\s*<li>', html), "says what to do"


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("88.118.8/", ""),
        ("88.1l8.8/SN0001", "1"),
        ("  88.118..8/SN0001", "."),
        ("风机0001", ""),
        ("hdl:88.118.8/SN%00", "%00"),
        ("88.118.8/a\u202eb", "U+202E"),
        ("88.118.8/" + "x" * 300, "x"),
    ],
)
def test_the_fault_is_marked(text: str, marked: str) -> None:
    with pytest.raises(InvalidIdentifier) as caught:
        Identifier.parse(text)
    html = error(caught.value, text)
    found = re.search(r"<mark>.*?</span>(?:<bdi>(.*?)</bdi>)?</mark>", html)
    assert found
    assert (found[1] or "") == marked
    assert len(html) < 10_000


def test_pages_of_errors_that_pass_say_when_to_try_again() -> None:
    busy = TemporarilyUnavailable()
    assert "Try again in about 1 minute." in error(busy, "88.118.8/A", retry_after_s=59.2)
    assert "约 5 秒后重试" in error(busy, "88.118.8/A", "zh", retry_after_s=5)
    assert "Try again in a moment." in error(busy, "88.118.8/A")
    assert "does not mean that the identifier does not exist" in error(busy, "88.118.8/A")
    assert "Try again" not in error(IdentifierNotFound(), "88.118.8/A")


def test_long_text_stays_bounded() -> None:
    html = error(IdentifierNotFound(), "<" * 1_000_000)
    assert len(html) < 40_000


# Search page and files ------------------------------------------------------------------


def test_the_search_page_works_without_scripts() -> None:
    html = pages.search_page(language="en", node_name="Node 8", examples=["88.118.8/a b", "?"])
    page = Page(html)
    assert page.all("form", "action") == ["/resolve"]
    assert page.all("form", "method") == ["get"]
    assert page.all("input", "name") == ["identifier"]
    assert {"/88.118.8/a%20b", "/resolve?identifier=%3F", "/api"} <= set(page.all("a", "href"))
    assert "Node 8" in page.text


@pytest.mark.parametrize("language", BOTH)
def test_every_page_is_valid_in_its_references(language: Language) -> None:
    for html in (
        pages.search_page(language=language, examples=["88.118.8/A"]),
        resolve(record(value(1, "A", "b")), language),
        error(IdentifierNotFound(), "88.118.8/A", language),
        pages.api_page({}, language=language),
    ):
        page = Page(html)
        ids = [content for _, name, content in page.attributes if name == "id"]
        assert len(ids) == len(set(ids))
        assert set(page.all("label", "for")) <= set(ids)
        for href in page.all("a", "href"):
            assert not href.startswith("#") or href[1:] in ids, href
        files = page.all("link", "href") + page.all("img", "src")
        for path in files:
            if path.startswith("/static/"):
                assert pages.static_file(path.removeprefix("/static/").partition("?")[0])


def test_files_come_from_a_fixed_table() -> None:
    assert set(pages.STATIC_NAMES) == {"style.css", "icon.svg"}
    for name in pages.STATIC_NAMES:
        found = pages.static_file(name)
        assert found
        body, content_type, tag = found
        assert body
        assert content_type in {"text/css; charset=utf-8", "image/svg+xml"}
        assert re.fullmatch(r'"[0-9a-f]{16}"', tag)
    for name in ("", ".", "..", "../pages.py", "/etc/passwd", "style.css/", "STYLE.CSS", "a\x00"):
        assert pages.static_file(name) is None


def test_the_style_sheet_asks_nobody() -> None:
    found = pages.static_file("style.css")
    assert found
    assert b"url(" not in found[0]
    assert b"@import" not in found[0]


def test_a_record_changes_nothing_in_another_page() -> None:
    first = record(value(1, "A", "b"))
    before = resolve(first)
    resolve(replace(first, status=Status.RETIRED), "zh")
    assert resolve(first) == before
