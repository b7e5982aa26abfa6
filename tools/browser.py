"""The browser that photographs and tests the built pages: Chromium without a network.

    .venv/bin/python tools/browser.py [PAGE ...]

Photographs pages such as book/api, or all of them, in light and dark, wide and
narrow, into _build/screenshots.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright
from repo import BUILD

Theme = Literal["light", "dark"]
NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    f"No browser found, looked for {', '.join(NAMES)}: install Chromium "
    "(on Debian: apt-get install chromium)"
)
ARGUMENTS = (
    "--no-sandbox",  # not available in containers; the pages are our own
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
TIMEOUT = 180_000  # milliseconds; a busy machine must not fail a page
WIDTHS = (1300, 390)
THEMES: tuple[Theme, ...] = ("light", "dark")


def executable() -> str | None:
    """Return the path of Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a headless Chromium without a profile."""
    if executable() is None:
        sys.exit(MISSING)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable(), args=list(ARGUMENTS)
        )
        try:
            yield browser
        finally:
            browser.close()


def window(browser: Browser, theme: Theme, width: int, height: int = 900) -> Page:
    """Open an isolated window in the system's theme, without animations."""
    size: ViewportSize = {"width": width, "height": height}
    page = browser.new_page(
        color_scheme=theme, viewport=size, reduced_motion="reduce"
    )
    page.set_default_timeout(TIMEOUT)
    return page


def show(page: Page, address: str) -> None:
    """Open an address and wait until its fonts, asked for by layout, are loaded."""
    page.goto(address)
    page.evaluate(
        "() => new Promise(requestAnimationFrame)"
        ".then(() => document.fonts.ready).then(() => null)"
    )


def main() -> None:
    """Photograph the top of the pages."""
    html, folder = BUILD / "html", BUILD / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    pages = [html / f"{name}.html" for name in sys.argv[1:]] or sorted(
        (html / "book").glob("*.html")
    )
    with chromium() as browser:
        for theme, width in itertools.product(THEMES, WIDTHS):
            opened = window(browser, theme, width, height=2400)
            for page in pages:
                show(opened, page.as_uri())
                target = folder / f"{page.stem}-{theme}-{width}.png"
                opened.screenshot(path=target)
                print(target)
            opened.close()


if __name__ == "__main__":
    main()
