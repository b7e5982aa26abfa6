"""Every built page in a real browser: light and dark, wide and narrow, from a server and from the disk."""

from dataclasses import dataclass
from pathlib import Path

import build_book
import pytest
from axe_playwright_python.base import AXE_SCRIPT
from browser import WIDTHS
from watching import built_pages, watched

HTML = build_book.HTML
ACCESSIBLE = Path(__file__).with_name("accessible.js").read_text(encoding="utf-8")
# The rules that look at colours, and those that a width can change: no others find more in the dark, or
# on a narrow page, than they have found already.
COLOURS = ["color-contrast", "link-in-text-block"]
NARROW = ["scrollable-region-focusable", "target-size"]
# Light from a server, dark from the disk; axe's rules at each width, where None are all of them.
WAYS = {"http": ("light", (None, NARROW)), "file": ("dark", (COLOURS, []))}
UNTYPESET = """[...document.querySelectorAll(".math")]
  .filter((math) => !math.querySelector("mjx-container svg") || math.querySelector("[data-mml-node=merror]"))
  .map((math) => math.textContent)"""
# The theme makes boxes that scroll stops of the tab key, a moment after they begin to.
SETTLED = """() => [...document.querySelectorAll("[tabindex='-1']")]
  .every((box) => box.scrollWidth <= box.clientWidth || getComputedStyle(box).overflowX === "visible")"""
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@dataclass
class Seen:
    """What was found on one page."""

    outside: list[str]
    complaints: list[str]
    violations: list[str]
    untypeset: list[str]
    unreadable: list[str]
    sideways: dict[int, int]


@pytest.fixture(scope="module", params=WAYS)
def way(request, chromium, site):
    """How pages are opened: an open window, and the address of the book."""
    theme, rules = WAYS[request.param]
    with watched(chromium, theme=theme) as window:
        yield window, {"http": site, "file": HTML.as_uri()}[request.param], rules


@pytest.fixture(scope="module", params=built_pages(), ids=lambda page: page.relative_to(HTML).as_posix())
def seen(request, way):
    """A page is opened once each way, for all tests."""
    window, home, rules = way
    window.requests.clear()
    window.complaints.clear()
    window.goto(f"{home}/{request.param.relative_to(HTML).as_posix()}")
    window.page.evaluate(AXE_SCRIPT)
    untypeset, unreadable, sideways, violations = window.page.evaluate(UNTYPESET), [], {}, []
    for width in WIDTHS:
        window.page.set_viewport_size({"width": width, "height": 900})
        unreadable += [f"{width} px: {found}" for found in window.unreadable()]
        sideways[width] = window.page.evaluate(SIDEWAYS)
    for width, chosen in reversed([*zip(WIDTHS, rules, strict=True)]):
        window.page.set_viewport_size({"width": width, "height": 900})
        if chosen != []:
            window.page.wait_for_function(SETTLED)
            violations += [f"{width} px: {found}" for found in window.page.evaluate(ACCESSIBLE, chosen)]
    return Seen(window.outside(home), list(window.complaints), violations, untypeset, unreadable, sideways)


def test_a_page_asks_for_nothing_from_outside(seen):
    assert not seen.outside


def test_a_page_has_no_complaints(seen):
    assert not seen.complaints


def test_a_page_is_accessible(seen):
    assert not seen.violations


def test_mathematics_is_typeset(seen):
    assert not seen.untypeset


def test_figures_can_be_read(seen):
    assert not seen.unreadable


def test_a_page_does_not_scroll_sideways(seen):
    assert seen.sideways == dict.fromkeys(seen.sideways, 0)
