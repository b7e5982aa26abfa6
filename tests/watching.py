"""What a page does while a browser test looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import browser
import build_book
from playwright.sync_api import Browser, Page

READABLE = Path(__file__).with_name("readable.js").read_text(encoding="utf-8")
LOCAL = ("data:", "blob:", "about:")


def built_pages() -> list[Path]:
    """Every page of the book, except the first, which only leads to another; _static holds templates."""
    pages = sorted(
        page
        for page in build_book.HTML.rglob("*.html")
        if "_static" not in page.parts
    )
    return [page for page in pages if page != build_book.HTML / "index.html"]


@dataclass
class Watched:
    """A page, what it asked for, and what went wrong on it."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        page = self.page
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("websocket", lambda socket: self.requests.append(socket.url))
        page.on(
            "requestfailed",
            lambda request: self.complaints.append(f"failed: {request.url}"),
        )
        page.on(
            "response",
            lambda answer: (
                self.complaints.append(answer.url) if not answer.ok else None
            ),
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "dialog",
            lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()),
        )
        page.on("console", self.hear)

    def hear(self, message) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def goto(self, address: str) -> None:
        """Open an address, and wait until it is what its reader sees."""
        browser.show(self.page, address)

    def outside(self, home: str) -> list[str]:
        """What was asked for elsewhere than at home."""
        return [url for url in self.requests if not url.startswith((home, *LOCAL))]

    def unreadable(self) -> list[str]:
        """Lines and texts that cannot be made out; see readable.js."""
        return self.page.evaluate(READABLE)


@contextmanager
def watched(
    chromium: Browser, *, theme: browser.Theme = "light"
) -> Iterator[Watched]:
    """A window of its own."""
    page = browser.window(chromium, theme, browser.WIDTHS[0])
    try:
        yield Watched(page)
    finally:
        page.close()
