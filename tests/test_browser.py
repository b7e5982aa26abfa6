"""Every built page in a real browser: light and dark, wide and narrow, from a server and from the disk."""

from dataclasses import dataclass

import build_book
import pytest
from axe_playwright_python.base import AXE_SCRIPT
from browser import THEMES, WIDTHS
from watching import built_pages, watched

HTML = build_book.HTML
# Wide and light from a server, narrow and dark from the disk.
WAYS = dict(zip(("http", "file"), zip(THEMES, WIDTHS, strict=True), strict=True))
# axe is asked for all it knows, except that focus-order-semantics, an experiment, objects to what another of
# its rules demands: that boxes which scroll are stops of the tab key. The contrast of code is left to
# readable.js, which measures each colour once; axe would look at every one of many thousand words.
AXE = """async () => {
  axe.configure({ rules: [{ id: "color-contrast", selector: "*:not(.highlight pre span)" }] });
  const experiments = axe.getRules(["experimental"]).map((rule) => [rule.ruleId, { enabled: true }]);
  const rules = { ...Object.fromEntries(experiments), "focus-order-semantics": { enabled: false } };
  const { violations } = await axe.run(document, { resultTypes: ["violations"], preload: false, rules });
  return violations.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.html.slice(0, 200)}`));
}"""
UNTYPESET = """[...document.querySelectorAll(".math")]
  .filter((math) => !math.querySelector("mjx-container svg") || math.querySelector("[data-mml-node=merror]"))
  .map((math) => math.textContent)"""
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
    theme, width = WAYS[request.param]
    with watched(chromium, theme=theme, width=width) as window:
        yield window, {"http": site, "file": HTML.as_uri()}[request.param], width


@pytest.fixture(scope="module", params=built_pages(), ids=lambda page: page.relative_to(HTML).as_posix())
def seen(request, way):
    """A page is opened once each way, for all tests."""
    window, home, width = way
    window.requests.clear()
    window.complaints.clear()
    window.goto(f"{home}/{request.param.relative_to(HTML).as_posix()}")
    window.page.evaluate(AXE_SCRIPT)
    violations = window.page.evaluate(AXE)
    unreadable, sideways = [], {}
    for size in (*{*WIDTHS} - {width}, width):
        window.page.set_viewport_size({"width": size, "height": 900})
        unreadable += [f"{size} px: {found}" for found in window.unreadable()]
        sideways[size] = window.page.evaluate(SIDEWAYS)
    return Seen(
        window.outside(home),
        list(window.complaints),
        violations,
        window.page.evaluate(UNTYPESET),
        unreadable,
        sideways,
    )


def test_a_page_asks_for_nothing_from_outside(seen):
    assert not seen.outside


def test_a_page_has_no_complaints(seen):
    assert not seen.complaints


def test_a_page_is_accessible(seen):
    assert not seen.violations


def test_mathematics_is_typeset(seen):
    assert not seen.untypeset


def test_figures_and_code_can_be_read(seen):
    assert not seen.unreadable


def test_a_page_does_not_scroll_sideways(seen):
    assert seen.sideways == dict.fromkeys(seen.sideways, 0)
