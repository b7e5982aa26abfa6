"""The faults of all pages in a browser: light and dark, wide and narrow."""

from collections import defaultdict
from pathlib import Path

import build_book
from axe_playwright_python.base import AXE_SCRIPT
from browser import WIDTHS, Theme
from playwright.sync_api import Browser, Page
from watching import Watched, built_pages, watched

HTML = build_book.HTML
ACCESSIBLE = Path(__file__).with_name("accessible.js").read_text(encoding="utf-8")
CLIPPED = Path(__file__).with_name("clipped.js").read_text(encoding="utf-8")
# Windows in which every line fits; in narrower ones a shade must show what does not.
FITTING = (1440, *WIDTHS[:1])
# Rules on colours, and rules that depend on the width. Other rules need not be
# checked again in the dark or on a narrow page, nor need the layout in the dark.
COLOURS = ["color-contrast", "link-in-text-block"]
NARROW = ["scrollable-region-focusable", "target-size"]
RULES = {"light": (None, NARROW), "dark": (COLOURS, [])}  # per width; None: all
KINDS = ["outside", "complaints", "inaccessible", "untypeset", "unreadable"]
KINDS += ["sideways", "clipped"]
UNTYPESET = """[...document.querySelectorAll(".math")]
  .map((formula) => formula.querySelector("math"))
  .filter((math) => math.checkVisibility() && !math.getBoundingClientRect().width
    || !document.fonts.check("16px 'fbt math'"))
  .map((math) => math.textContent)"""
# The theme makes a tab stop of each of these boxes that scrolls, with a delay.
SETTLED = """() => [...document.querySelectorAll(
  "pre, .cell_output > .output, .pst-scrollable-table-container")]
  .every((box) => !box.checkVisibility() || (box.tabIndex >= 0)
    === (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight))"""
SIDEWAYS = (
    "document.documentElement.scrollWidth - document.documentElement.clientWidth"
)


def clipped_lines(page: Page, width: int) -> list[str]:
    """Return the lines that a wide window cuts off, a narrow one without a hint."""
    page.set_viewport_size({"width": width, "height": 900})
    found = page.evaluate(CLIPPED, width not in FITTING)
    return [f"{width} px: {line}" for line in found]


def findings_on(
    window: Watched, address: str, home: str, theme: Theme, *, accessible: bool
) -> dict[str, list[str]]:
    """Open a page, and return its faults by kind; `accessible` asks for all kinds."""
    layout = theme == "light"
    window.requests.clear()
    window.complaints.clear()
    window.goto(address)
    if accessible:
        window.page.evaluate(AXE_SCRIPT)
    faults = {
        "untypeset": window.page.evaluate(UNTYPESET),
        "unreadable": [],
        "sideways": [],
        "clipped": [],
    }
    if layout:
        faults["clipped"] += clipped_lines(window.page, FITTING[0])
    for width in WIDTHS if layout else WIDTHS[:1]:
        window.page.set_viewport_size({"width": width, "height": 900})
        if layout:
            faults["clipped"] += clipped_lines(window.page, width)
        faults["unreadable"] += [
            f"{width} px: {text}" for text in window.unreadable()
        ]
        if pixels := window.page.evaluate(SIDEWAYS):
            faults["sideways"].append(f"{pixels} px at {width} px")
    faults["inaccessible"] = []
    for width, rules in reversed([*zip(WIDTHS, RULES[theme], strict=True)]):
        if accessible and rules != []:
            window.page.set_viewport_size({"width": width, "height": 900})
            window.page.wait_for_function(SETTLED)
            violations = window.page.evaluate(ACCESSIBLE, rules)
            faults["inaccessible"] += [f"{width} px: {text}" for text in violations]
    return faults | {
        "complaints": list(window.complaints),
        "outside": window.outside(home),
    }


def faults_of_pages(
    chromium: Browser, home: str, theme: Theme
) -> dict[str, dict[str, list[str]]]:
    """Open each page once, and return its faults by kind and page."""
    faults: dict[str, dict[str, list[str]]] = defaultdict(dict)
    pages = built_pages()
    assert pages, "there is no book: run `make book` first"
    # The pages of the source have one look. So two of them, the largest, will do in
    # the dark and for accessibility, which takes seconds a page.
    of_source = [page for page in pages if page.is_relative_to(HTML / "fbt")]
    of_source.sort(key=lambda page: page.stat().st_size)
    alike = {*of_source[:-2]}
    if theme == "dark":
        pages = [page for page in pages if page not in alike]
    # To Chromium a font that an earlier page has left in the cache is preloaded in
    # vain. So each page that preloads fonts has a window of its own.
    alone = [page for page in pages if page.name.startswith("overview.")]
    together = [page for page in pages if page not in alone]
    for group in (together, *([page] for page in alone)):
        with watched(chromium, theme=theme) as window:
            for page in group:
                name = page.relative_to(HTML).as_posix()
                found = findings_on(
                    window,
                    f"{home}/{name}",
                    home,
                    theme,
                    accessible=page not in alike,
                )
                assert found.keys() == {*KINDS}
                for kind, findings in found.items():
                    if findings:
                        faults[kind][name] = findings
    return faults
