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
    window: Watched, address: str, home: str, rules: tuple
) -> dict[str, list[str]]:
    """Open a page, and return its faults by kind."""
    window.requests.clear()
    window.complaints.clear()
    window.goto(address)
    window.page.evaluate(AXE_SCRIPT)
    faults = {
        "untypeset": window.page.evaluate(UNTYPESET),
        "unreadable": [],
        "sideways": [],
        "clipped": [],
    }
    if NARROW in rules:
        faults["clipped"] += clipped_lines(window.page, FITTING[0])
    for width in WIDTHS:
        window.page.set_viewport_size({"width": width, "height": 900})
        if NARROW in rules:
            faults["clipped"] += clipped_lines(window.page, width)
        faults["unreadable"] += [
            f"{width} px: {text}" for text in window.unreadable()
        ]
        if pixels := window.page.evaluate(SIDEWAYS):
            faults["sideways"].append(f"{pixels} px at {width} px")
    faults["inaccessible"] = []
    for width, width_rules in reversed([*zip(WIDTHS, rules, strict=True)]):
        window.page.set_viewport_size({"width": width, "height": 900})
        if width_rules != []:
            window.page.wait_for_function(SETTLED)
            violations = window.page.evaluate(ACCESSIBLE, width_rules)
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
    if theme == "dark":  # the pages of the source have one look: two of them will do
        of_source = [page for page in pages if page.is_relative_to(HTML / "fbt")]
        pages = [*(set(pages) - {*of_source}), *of_source[:2]]
    with watched(chromium, theme=theme) as window:
        for page in pages:
            name = page.relative_to(HTML).as_posix()
            found = findings_on(window, f"{home}/{name}", home, RULES[theme])
            assert found.keys() == {*KINDS}
            for kind, findings in found.items():
                if findings:
                    faults[kind][name] = findings
    return faults
