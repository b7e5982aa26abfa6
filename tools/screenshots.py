"""Photograph the book's pages in light and dark, wide and narrow, into _build/screenshots. Needs Chromium."""

from __future__ import annotations

import itertools
import sys

from browser import MISSING, THEMES, WIDTHS, chromium, executable, show, window
from notebooks import BUILD

HTML = BUILD / "html"
FOLDER = BUILD / "screenshots"
HEIGHT = 2400  # the top of a page


def main() -> None:
    """Photograph the pages named on the command line, such as book/api, or all of them."""
    if executable() is None:
        sys.exit(MISSING)
    FOLDER.mkdir(parents=True, exist_ok=True)
    pages = [HTML / f"{name}.html" for name in sys.argv[1:]] or sorted((HTML / "book").glob("*.html"))
    with chromium() as browser:
        for theme, width in itertools.product(THEMES, WIDTHS):
            opened = window(browser, theme, width, HEIGHT)
            for page in pages:
                target = FOLDER / f"{page.stem}-{theme}-{width}.png"
                show(opened, page.as_uri())
                opened.screenshot(path=target)
                print(target)
            opened.close()


if __name__ == "__main__":
    main()
