"""The public pages in a real browser: nothing stored runs, everything fits, codes scan."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import pytest
import pytest_asyncio
import zxingcpp
from PIL import Image
from playwright.async_api import Browser, Route

from biaojie import Client, Row
from biaojie.identifier import Identifier
from biaojie.record import Record, Reference, Value
from resolver.front.http import pages
from tests.system.browser import Watch, open_browser, open_page
from tests.system.conftest import RunningNode
from tests.xss import IDENTIFIERS, PAYLOADS

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOW = 1_800_000_000
PHONE = {"width": 360, "height": 740}
NARROWEST = {"width": 320, "height": 640}
DESK = {"width": 1_280, "height": 860}
PAGES_AT_ONCE = 3
T = TypeVar("T")
LOCALES = ("en-US", "zh-CN")
SCHEMES = ("light", "dark")


def _values(*pairs: tuple[str, str | bytes]) -> tuple[Value, ...]:
    return tuple(
        Value(n + 1, type_, data if isinstance(data, bytes) else data.encode(), timestamp=NOW - 9)
        for n, (type_, data) in enumerate(pairs)
    )


def _record(name: str, *values: Value, template: str | None = None) -> Record:
    identifier = Identifier.parse(name)
    return Record(identifier, values, template=template, created=NOW - 90, modified=NOW - 9)


PLAIN = _record(
    "88.118.8/风机-2025-永磁直驱-0001",
    *_values(
        ("产品名称", "永磁直驱风力发电机组 GW155-4.5MW"),
        ("URL", "https://www.example.com/zh/gw155"),
        ("EMAIL", "service@example.com"),
        ("说明", "轮毂高度 100 m，叶轮直径 155 m。\n出厂前已完成 72 小时连续运行试验。"),
    ),
    template="88.118.8/模板",
)
LONG = _record(
    "88.118.8/" + "VERY-LONG-SUFFIX-" * 14,
    *_values(
        ("A" * 128, "x" * 65_536),
        ("无空格的长文本", "中文长文本没有空格" * 900),
        ("URL", "https://www.example.com/" + "a" * 2_000),
        ("HS_ADMIN", bytes(range(200))),
    ),
    Value(9, "REF", b"x", references=(Reference("88.118.8/" + "R" * 240, 3),)),
)
HOSTILE = tuple(
    _record(
        f"88.118.8/HOSTILE-{type_ or 'TYPE'}",
        *_values(
            *(
                (type_ or payload[:128], payload)
                for payload in PAYLOADS
                # a type that cannot be printed is refused at the door
                if type_ or payload[:128].isprintable()
            )
        ),
        template=f"88.118.8/{PAYLOADS[0]}",
    )
    for type_ in ("URL", "EMAIL", "NOTE", "")
)
RECORDS = (PLAIN, LONG, *HOSTILE, *(Record(i, (), created=NOW) for i in IDENTIFIERS))


@dataclass(frozen=True)
class Site:
    """A running node that holds RECORDS."""

    url: str

    def page_of(self, record: Record) -> str:
        return f"{self.url}/{record.identifier.url_path()}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(make_node: Callable[..., RunningNode]) -> AsyncIterator[Site]:
    node = make_node()
    node.home("88.118.8")
    rows = [Row(record.identifier, record.values, template=record.template) for record in RECORDS]
    async with Client(node.url, key=node.key) as client:
        async for result in client.register_many(rows):
            assert result.ok, (result.identifier, result.code, result.en)
    yield Site(node.url)
    node.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as opened:
        yield opened


def every_page(site: Site) -> list[str]:
    return [
        site.url + "/",
        site.url + "/api",
        site.page_of(PLAIN),
        site.page_of(LONG),
        site.url + "/88.118.8/NO-SUCH",
        site.url + "/resolve?identifier=88.118.8/",
        site.url + "/resolve?identifier=" + quote("https://id.example.com/" + "电池" * 300),
    ]


# Stored scripts -------------------------------------------------------------------------


async def test_the_watch_sees_scripts_that_run(site: Site, browser: Browser) -> None:
    """Without escaping, many of the payloads run or load: the tests below could fail."""
    ran = blocked = 0
    served: dict[str, Any] = {}

    async def serve(route: Route) -> None:
        await route.fulfill(**served)

    async with open_page(browser, site.url) as watch:
        await watch.page.route(site.url + "/raw", serve)
        for policy in ("", pages.CONTENT_SECURITY_POLICY):
            for payload in PAYLOADS[:40]:
                served["body"] = f"<!doctype html><p>{payload}"
                served["content_type"] = "text/html; charset=utf-8"
                served["headers"] = {"content-security-policy": policy}
                await watch.page.goto(site.url + "/raw")
                faults = await watch.faults()
                if policy:
                    blocked += any("violation" in fault for fault in faults)
                    assert not any("script ran" in fault for fault in faults), payload
                else:
                    ran += any("script ran" in fault for fault in faults)
    assert ran > 15
    assert blocked > 15


async def test_stored_values_never_run(site: Site, browser: Browser) -> None:
    async with open_page(browser, site.url) as watch:
        for record in HOSTILE:
            await watch.page.goto(site.page_of(record))
            await watch.page.locator("summary").click()
            shown = await watch.page.locator("dl.values > div").count()
            assert shown == len(record.values) > 180
            await _hover_and_focus_everything(watch)
            assert await watch.faults() == [], record.identifier


async def test_stored_identifiers_never_run(site: Site, browser: Browser) -> None:
    async def visit(watch: Watch, identifier: Identifier) -> None:
        await watch.page.goto(f"{site.url}/{identifier.url_path()}")
        assert await watch.page.locator("h1").text_content() == str(identifier)
        assert await watch.faults() == [], identifier

    await _each(browser, site, IDENTIFIERS, visit)


async def test_what_is_typed_never_runs(site: Site, browser: Browser) -> None:
    async def visit(watch: Watch, payload: str) -> None:
        await watch.page.goto(f"{site.url}/resolve?identifier={quote(payload, safe='')}")
        assert await watch.faults() == [], payload

    # the markup of all of them is compared in tests/unit/test_pages.py
    await _each(browser, site, PAYLOADS[::4], visit)


async def _each(
    browser: Browser, site: Site, items: Iterable[T], visit: Callable[[Watch, T], Awaitable[None]]
) -> None:
    """`visit` every item, in a few pages at once."""
    left = iter(items)

    async def work() -> None:
        async with open_page(browser, site.url) as watch:
            for item in left:
                await visit(watch, item)

    async with asyncio.TaskGroup() as group:
        for _ in range(PAGES_AT_ONCE):
            group.create_task(work())


async def _hover_and_focus_everything(watch: Watch) -> None:
    await watch.page.evaluate(
        """() => { for (const element of document.querySelectorAll('*')) {
            element.focus?.();
            for (const name of ['mouseover', 'pointerenter', 'focusin', 'toggle', 'animationend'])
                element.dispatchEvent(new Event(name, {bubbles: true}));
        } }"""
    )


# Clean pages ----------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("locale", LOCALES)
async def test_clean_pages_do_nothing_odd(
    site: Site, browser: Browser, locale: str, scheme: str
) -> None:
    async with open_page(
        browser, site.url, locale=locale, color_scheme=scheme, viewport=DESK
    ) as watch:
        for url in every_page(site):
            await watch.page.goto(url)
            assert await watch.page.locator("html").get_attribute("lang") == (
                "zh-CN" if locale == "zh-CN" else "en"
            )
            assert await watch.page.locator("h1").count() == 1
            assert await watch.faults() == [], url


@pytest.mark.parametrize("viewport", [PHONE, NARROWEST], ids=["360", "320"])
@pytest.mark.parametrize("locale", LOCALES)
async def test_pages_fit_a_phone(
    site: Site, browser: Browser, locale: str, viewport: dict[str, int]
) -> None:
    async with open_page(
        browser, site.url, locale=locale, viewport=viewport, is_mobile=True, has_touch=True
    ) as watch:
        for url in every_page(site):
            await watch.page.goto(url)
            for summary in await watch.page.locator(".technical summary").all():
                await summary.click()
            page, window = await watch.page.evaluate(
                "[document.documentElement.scrollWidth, visualViewport.width]"
            )
            assert page <= window == viewport["width"], url


def _qr_codes(picture: Image.Image) -> list[str]:
    # other kinds of code are seen in rows of letters now and then
    found = zxingcpp.read_barcodes(picture, formats=zxingcpp.BarcodeFormat.QRCode)
    return [code.text for code in found]


async def test_dark_and_light_differ(site: Site, browser: Browser) -> None:
    grounds = {}
    for scheme in SCHEMES:
        async with open_page(browser, site.url, color_scheme=scheme) as watch:
            await watch.page.goto(site.page_of(PLAIN))
            picture = Image.open(io.BytesIO(await watch.page.screenshot())).convert("L")
            grounds[scheme] = picture.getpixel((2, picture.height - 2))
    assert grounds["light"] > 220
    assert grounds["dark"] < 40


_CONTRASTS = """() => {
    const parts = text => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
    const ground = element => {
        for (; element; element = element.parentElement) {
            const found = parts(getComputedStyle(element).backgroundColor);
            if (found[3] !== 0) return found;
        }
        return [255, 255, 255];
    };
    const poor = [];
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
        if (!own || !element.checkVisibility() || element.closest('.unseen, .skip')) continue;
        const [a, b] = [parts(getComputedStyle(element).color), ground(element)].map(light);
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${element.outerHTML.slice(0, 100)}`);
    }
    return poor;
}"""


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_text_stands_out_from_its_ground(site: Site, browser: Browser, scheme: str) -> None:
    """WCAG 2.2 AA, 1.4.3: contrast of at least 4.5 to 1."""
    async with open_page(browser, site.url, color_scheme=scheme) as watch:
        for url in every_page(site):
            await watch.page.goto(url)
            assert await watch.page.evaluate(_CONTRASTS) == [], url


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
async def test_the_qr_code_scans_from_the_screen(
    site: Site, browser: Browser, scheme: str, viewport: dict[str, int]
) -> None:
    async with open_page(browser, site.url, color_scheme=scheme, viewport=viewport) as watch:
        await watch.page.goto(site.page_of(PLAIN))
        screen = Image.open(io.BytesIO(await watch.page.screenshot(full_page=True)))
        found = _qr_codes(screen)
        assert found == [site.page_of(PLAIN)]
        await watch.page.goto(found[0])
        assert await watch.page.locator("h1").inner_text() == str(PLAIN.identifier)


# Use ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
async def test_enter_in_the_search_box_opens_the_page(
    site: Site, browser: Browser, scripts: bool
) -> None:
    async with open_page(browser, site.url, java_script_enabled=scripts) as watch:
        page = watch.page
        await page.goto(site.url + "/")
        await page.keyboard.type(f" hdl:{PLAIN.identifier} ")  # the box has the focus
        await page.keyboard.press("Enter")
        await page.wait_for_url(site.page_of(PLAIN))
        box = page.get_by_role("searchbox")
        assert await box.input_value() == str(PLAIN.identifier)
        await box.fill("88.118.8/")
        await box.press("Enter")
        await page.wait_for_url(re.compile(r"/resolve\?identifier="))
        assert await page.get_by_role("searchbox").input_value() == "88.118.8/"
        assert await page.locator("mark").is_visible()
        await page.get_by_role("searchbox").fill("88.118.8/NO-SUCH")
        await page.get_by_role("button").click()
        await page.wait_for_url(site.url + "/88.118.8/NO-SUCH")
        assert await page.get_by_role("searchbox").input_value() == "88.118.8/NO-SUCH"


async def test_the_keyboard_reaches_everything_and_shows_where_it_is(
    site: Site, browser: Browser
) -> None:
    async with open_page(browser, site.url, viewport=DESK) as watch:
        await watch.page.goto(site.page_of(PLAIN))
        stops = []
        for _ in range(20):
            await watch.page.keyboard.press("Tab")
            stops.append(
                await watch.page.evaluate(
                    """() => { const e = document.activeElement, s = getComputedStyle(e);
                    return [e.tagName, e.getAttribute('href') || e.id || '', s.outlineStyle]; }"""
                )
            )
        assert stops[0][:2] == ["A", "#content"]
        reached = {stop[1] for stop in stops}
        assert {"/", "identifier", "https://www.example.com/zh/gw155", "/api"} <= reached
        assert "SUMMARY" in {stop[0] for stop in stops}
        for tag, name, outline in stops:
            assert tag == "BODY" or outline == "solid", (tag, name)


async def test_paper_has_the_record_and_not_the_controls(site: Site, browser: Browser) -> None:
    async with open_page(browser, site.url) as watch:
        await watch.page.goto(site.page_of(PLAIN))
        await watch.page.emulate_media(media="print", color_scheme="dark")
        assert not await watch.page.get_by_role("searchbox").is_visible()
        assert not await watch.page.locator("footer").is_visible()
        picture = Image.open(io.BytesIO(await watch.page.screenshot(full_page=True)))
        assert _qr_codes(picture) == [site.page_of(PLAIN)]
        assert picture.convert("L").getpixel((2, 2)) == 255
        assert await watch.page.evaluate(_CONTRASTS) == []
