"""Test all light pages in a browser, wide and narrow, from a server."""

import pytest
from browser import WIDTHS
from browsing import FITTING, HTML, KINDS, clipped_lines, faults_of_pages


@pytest.fixture(scope="module")
def faults(chromium, site):
    return faults_of_pages(chromium, site, "light")


@pytest.mark.parametrize("kind", KINDS)
def test_light_pages_have_no_faults(faults, kind):
    assert not faults[kind]


def test_lines_of_86_columns_fit_and_longer_ones_are_found(window):
    window.goto((HTML / "book" / "02-weighted-memory.html").as_uri())
    code = window.page.locator("article details:not([class]) pre").first
    for columns, widths in ((86, ()), (120, FITTING)):
        line = "x" * columns
        code.evaluate("(pre, line) => { pre.textContent = line; }", line)
        found = [
            text
            for width in (*FITTING, *WIDTHS[1:])
            for text in clipped_lines(window.page, width)
            if line in text
        ]
        assert found == [f"{width} px: {line}" for width in widths]
    # On a phone a box that scrolls without a shade is not enough.
    code.evaluate("(pre) => { pre.style.background = 'none'; }")
    assert f"{WIDTHS[1]} px: {line}" in clipped_lines(window.page, WIDTHS[1])
