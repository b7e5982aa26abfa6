"""What a page requests and logs during a browser test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import browser
import build_book
from playwright.sync_api import Browser, Page

READABLE = Path(__file__).with_name("readable.js").read_text(encoding="utf-8")
LOCAL = ("data:", "blob:", "about:")
# Each turn of this loop has to wait for the one before it, for four cycles.
LOOP = """() => {
  const start = performance.now();
  let x = 1;
  for (let i = 0; i < 2e7; i++) x = Math.imul(x ^ i, 0x9E3779B1);
  return x === 0.5 ? 0 : performance.now() - start;
}"""
LOOP_TIME = 27  # milliseconds at 3 GHz


def built_pages() -> list[Path]:
    """Return all pages except the first, which redirects, and templates."""
    pages = sorted(
        page
        for page in build_book.HTML.rglob("*.html")
        if "_static" not in page.parts
    )
    return [page for page in pages if page != build_book.HTML / "index.html"]


@dataclass
class Watched:
    """A page, its requests, and its errors and warnings."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        page = self.page
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("websocket", lambda socket: self.requests.append(socket.url))
        page.on("requestfailed", self.miss)
        page.on("response", self.check)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "dialog",
            lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()),
        )
        page.on("console", self.hear)

    def miss(self, request) -> None:
        if request.failure != "net::ERR_ABORTED":  # by opening the next page
            self.complaints.append(f"failed: {request.url}")

    def check(self, response) -> None:
        # 304 says that the browser's copy of a file is up to date.
        if response.status >= 400:
            self.complaints.append(f"{response.status}: {response.url}")

    def hear(self, message) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def goto(self, address: str) -> None:
        """Open an address and wait until its fonts are loaded."""
        browser.show(self.page, address)

    def outside(self, home: str) -> list[str]:
        """Return the requests to other addresses than home."""
        return [url for url in self.requests if not url.startswith((home, *LOCAL))]

    def unreadable(self) -> list[str]:
        """Return texts and lines with low contrast or small size."""
        return self.page.evaluate(READABLE)


@contextmanager
def watched(
    chromium: Browser, *, theme: browser.Theme = "light"
) -> Iterator[Watched]:
    """Open a window and watch it."""
    page = browser.window(chromium, theme, browser.WIDTHS[0])
    try:
        yield Watched(page)
    finally:
        page.close()


def slowness(page: Page) -> float:
    """Return how many times as long this machine takes as a core of 3 GHz, or 1.

    Of several tries the quickest counts, since other processes may interrupt one.
    """
    return max(1.0, min(page.evaluate(LOOP) for _ in range(5)) / LOOP_TIME)


def task_times(trace: bytes) -> list[float]:
    """Return the processor time in milliseconds of each task that a page waits for.

    Processor time, because on a busy machine a task also waits for its turn.

    Args:
        trace: from `Browser.stop_tracing`, with the category "toplevel".
    """
    events = json.loads(trace)["traceEvents"]
    threads = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name"
        and event["args"]["name"] == "CrRendererMain"
    }
    times = [
        event["tdur"] / 1000
        for event in events
        if event["name"].endswith("RunTask")
        and (event["pid"], event["tid"]) in threads
        and "tdur" in event
    ]
    assert times
    return times
