"""The browser that photographs and tests the built pages: the system's Chromium, cut off from the network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

Theme = Literal["light", "dark"]
NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = f"no browser found: install Chromium (Debian: apt-get install chromium), one of {', '.join(NAMES)}"
ARGUMENTS = (
    "--no-sandbox",  # which a container has no right to; the pages are our own
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
PATIENCE = 180_000  # milliseconds; a busy machine is no fault of a page
WIDTHS = (1300, 390)
THEMES: tuple[Theme, ...] = ("light", "dark")


def executable() -> str | None:
    """Where Chromium is, or None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium of its own, without a profile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


def window(browser: Browser, theme: Theme, width: int, height: int = 900) -> Page:
    """A window that shares nothing with others; its pages follow the system's theme, and move nothing."""
    size: ViewportSize = {"width": width, "height": height}
    page = browser.new_page(color_scheme=theme, viewport=size, reduced_motion="reduce")
    page.set_default_timeout(PATIENCE)
    return page


def show(page: Page, address: str) -> None:
    """Open an address and wait until the mathematics is typeset."""
    page.goto(address)
    page.evaluate("() => window.MathJax?.startup?.promise.then(() => null)")
