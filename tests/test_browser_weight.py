"""What loading a page costs: bytes, moved content, blocked time, requests."""

import re
from pathlib import Path

import build_book
import pytest
from browser import WIDTHS
from watching import slowness, task_times, watched

HTML = build_book.HTML
CHAPTERS = sorted((HTML / "book").glob("0*.html"))
# The heaviest other pages and one of each look, on a phone only.
OTHERS = [
    HTML / f"{name}.html"
    for name in ("book/api", "book/index", "book/source", "book/overview.si")
] + [HTML / "fbt" / "language_model.html"]
MOST_BYTES = 1_500_000
MOST_SHIFT = 0.05
MOST_BLOCKED = 100  # milliseconds of processor time at 3 GHz
TRIES = 3
WATCH = """() => {
  window.fbtShift = 0;
  new PerformanceObserver((list) => {
    for (const { value, hadRecentInput } of list.getEntries()) {
      if (!hadRecentInput) window.fbtShift += value;
    }
  }).observe({ type: "layout-shift", buffered: true });
}"""
LOADED = """() => performance.getEntries()
  .filter(({ entryType }) => ["navigation", "resource"].includes(entryType))
  .map(({ name, decodedBodySize }) => [name, decodedBodySize])"""


def cost(chromium, address: str, width: int) -> dict:
    """Open a page with an empty cache, scroll through it, and return what it cost."""
    with watched(chromium) as window:
        page = window.page
        page.set_viewport_size({"width": width, "height": 900})
        page.add_init_script(f"({WATCH})()")
        chromium.start_tracing(page=page, categories=["toplevel"])
        window.goto(address)
        page.wait_for_timeout(500)
        tasks = task_times(chromium.stop_tracing())
        slow = slowness(page)
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        page.wait_for_timeout(200)
        loaded = dict(page.evaluate(LOADED))
        home = re.match(r"https?://[^/]+", address)[0]
        return {
            "loaded": loaded,
            "bytes": sum(loaded.values()),
            "shift": page.evaluate("window.fbtShift"),
            "blocked": sum(max(0, task / slow - 50) for task in tasks),
            "outside": window.outside(home),
        }


def name(value) -> str | None:
    return value.stem if isinstance(value, Path) else None


@pytest.mark.parametrize(
    "page, width",
    [(page, width) for page in CHAPTERS for width in WIDTHS]
    + [(page, WIDTHS[1]) for page in OTHERS],
    ids=name,
)
def test_pages_are_light_stay_in_place_and_do_not_block(chromium, site, page, width):
    address = f"{site}/{page.relative_to(HTML).as_posix()}"
    for _ in range(TRIES):
        found = cost(chromium, address, width)
        assert not found["outside"]
        assert found["bytes"] <= MOST_BYTES, found["loaded"]
        if found["blocked"] < MOST_BLOCKED and found["shift"] < MOST_SHIFT:
            return
    assert found["shift"] < MOST_SHIFT
    assert found["blocked"] < MOST_BLOCKED
