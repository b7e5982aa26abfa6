"""Pages on paper, code on phones, and pages without scripts."""

import build_book
import pytest

CHAPTER = (build_book.HTML / "book" / "02-weighted-memory.html").as_uri()
FOLDED = """() => [...document.querySelectorAll("article details:not([open]) pre")]
  .map((pre) => pre.checkVisibility() && pre.getBoundingClientRect().height > 0)"""
ROW = """() => {
  const row = [...document.querySelectorAll("pre > .fbt-row")]
    .find((one) => one.textContent.startsWith("        "));
  row.textContent = "        " + "x ".repeat(200);
  const range = document.createRange();
  range.setStart(row.firstChild, 8);
  range.setEnd(row.firstChild, 400);
  const lefts = [...range.getClientRects()]
    .filter((line) => line.width > 20) // not the space at the end of a line
    .map((line) => Math.round(line.left));
  const width = row.scrollWidth - row.clientWidth;
  return [[...new Set(lefts)].sort((a, b) => a - b), width];
}"""
LOOKS = """() => {
  const style = (selector) => getComputedStyle(document.querySelector(selector));
  const tokens = [...document.querySelectorAll(".cell_input pre .fbt-row span")];
  return {
    colours: new Set(tokens.map((token) => getComputedStyle(token).color)).size,
    frame: style(".cell_input").borderLeftWidth,
    formula: style("article math").fontFamily,
    toolbar: style(".bd-header-article").display,
    contents: style(".bd-sidebar-primary").visibility,
  };
}"""


def test_folded_code_and_solutions_are_printed(window):
    window.goto(CHAPTER)
    folded = window.page.evaluate(FOLDED)
    assert folded and not any(folded)
    window.page.emulate_media(media="print")
    assert all(window.page.evaluate(FOLDED))


@pytest.mark.parametrize("where", ["paper", "phone"])
def test_long_lines_of_code_hang(window, where):
    window.goto(CHAPTER)
    if where == "paper":
        window.page.emulate_media(media="print")
    else:
        window.page.set_viewport_size({"width": 390, "height": 900})
    (first, hanging), overflow = window.page.evaluate(ROW)
    assert hanging > first and overflow == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_are_readable_without_scripts(chromium, theme):
    context = chromium.new_context(java_script_enabled=False, color_scheme=theme)
    page = context.new_page()
    page.goto(CHAPTER)
    looks = page.evaluate(LOOKS)
    context.close()
    assert looks.pop("colours") > 2
    assert "fbt math" in looks.pop("formula")
    assert looks == {"frame": "3px", "toolbar": "none", "contents": "visible"}
