"""A real browser for the system tests, and a watch over what a page does in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_TIMEOUT_S = 60
PAGE_TIMEOUT_S = 20

_REPORTER = """
window.__ran = 0;
window.xss = () => { window.__ran += 1; };
window.__violations = [];
addEventListener('securitypolicyviolation',
    e => window.__violations.push(`${e.effectiveDirective} ${e.blockedURI} ${e.sample}`));
"""


# Elements, attributes and addresses that no page of ours has.
_STRANGERS = """(() => {
    const found = [];
    for (const element of document.querySelectorAll('*')) {
        if (element.matches('script, style, iframe, object, embed, base, math, template, video, '
                + 'audio, img:not(header img), form:not(.search), svg:not(.qr-code)'))
            found.push(element.outerHTML.slice(0, 200));
        for (const {name, value} of element.attributes)
            if (name.startsWith('on') || name === 'style' || name === 'srcdoc'
                    || (['href', 'src', 'action'].includes(name)
                        && /^\\s*(javascript|data|vbscript):/i.test(value)))
                found.push(`${element.tagName} ${name}=${value}`);
    }
    return found;
})()"""


def chromium_path() -> str:
    """Where Chromium is; the test fails with what to do if there is none."""
    chosen = os.environ.get("BIAOJIE_CHROMIUM")
    path = chosen or next(filter(None, map(shutil.which, _NAMES)), None)
    if not path or not os.access(path, os.X_OK):
        pytest.fail(
            f"No browser {chosen or 'found'}. Run `apt-get install chromium`, or name one in "
            "BIAOJIE_CHROMIUM.",
            pytrace=False,
        )
    return path


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    path = chromium_path()
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(
            executable_path=path, args=_ARGUMENTS, timeout=START_TIMEOUT_S * 1_000
        )
        try:
            yield browser
        finally:
            await browser.close()


@dataclass
class Watch:
    """Everything a page did that a clean page does not do, in words."""

    page: Page
    origin: str
    seen: list[str] = field(default_factory=list)

    async def faults(self) -> list[str]:
        """What happened since the last call, the markers of the page shown now included."""
        ran, violations, strangers = await self.page.evaluate(
            f"[window.__ran, window.__violations, {_STRANGERS}]"
        )
        if ran:
            self.seen.append(f"script ran {ran} times")
        self.seen += [f"violation: {text}" for text in violations]
        self.seen += [f"stranger: {text}" for text in strangers]
        found, self.seen = self.seen, []
        return found


@asynccontextmanager
async def open_page(browser: Browser, origin: str, **options: Any) -> AsyncIterator[Watch]:
    """A page in a context of its own (`options`: locale, viewport, color_scheme …), watched."""
    context = await browser.new_context(**options)
    context.set_default_timeout(PAGE_TIMEOUT_S * 1_000)
    try:
        await context.add_init_script(_REPORTER)
        page = await context.new_page()
        watch = Watch(page, origin)

        async def on_dialog(dialog: Any) -> None:
            watch.seen.append(f"dialog: {dialog.message}")
            await dialog.dismiss()

        page.on("dialog", on_dialog)
        page.on("pageerror", lambda error: watch.seen.append(f"page error: {error}"))
        page.on("popup", lambda popup: watch.seen.append(f"popup: {popup.url}"))
        page.on(
            "console",
            # Chromium reports the status of an error page as a console error; that is no fault
            lambda message: (
                None
                if "the server responded with a status of" in message.text
                else watch.seen.append(f"console: {message.text}")
            ),
        )
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((origin + "/", "data:"))
                else watch.seen.append(f"request: {request.url}")
            ),
        )
        yield watch
    finally:
        await context.close()
