"""Photograph the book's pages in light and dark, wide and narrow, into _build/screenshots. Needs Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from notebooks import BUILD

HTML = BUILD / "html"
FOLDER = BUILD / "screenshots"
WIDTHS = (1300, 390)
MODES = ("light", "dark")
# Headless Chromium photographs its window, not the page: a window this high holds the top of every page.
HEIGHT = 2400
NAMES = ("chromium", "chromium-browser", "google-chrome")


def photograph(browser: str, page: Path, target: Path, width: int) -> None:
    """Save a picture of a page, offline and with a profile of its own."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
        ]
        command += [f"--user-data-dir={profile}", f"--window-size={width},{HEIGHT}", f"--screenshot={target}"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=8000", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


def frame(page: Path, mode: str, width: int) -> Path:
    """A copy beside the page that is fixed to one theme and, below Chromium's least window, to one width."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"<html ([^>]*)>", rf'<html \1 data-mode="{mode}" data-theme="{mode}">', text, count=1)
    script = (
        f'<script>localStorage.setItem("mode", "{mode}"); localStorage.setItem("theme", "{mode}");</script>'
    )
    text = text.replace("<head>", f"<head>{script}", 1)
    themed = page.with_name(f"{page.stem}.screenshot.html")
    themed.write_text(text, encoding="utf-8")
    if width >= 500:
        return themed
    # Chromium makes no window under 500 pixels, so a narrow page is shown in a frame of its own.
    outer = page.with_name(f"{page.stem}.narrow.html")
    style = f"border:0;width:{width}px;height:{HEIGHT}px"
    outer.write_text(
        f'<body style="margin:0"><iframe src="{themed.name}" style="{style}"></iframe>', encoding="utf-8"
    )
    return outer


def main() -> None:
    """Photograph the pages named on the command line, such as book/api, or all of them."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        sys.exit(f"No browser found: install one of {', '.join(NAMES)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    pages = [HTML / f"{name}.html" for name in sys.argv[1:]] or sorted((HTML / "book").glob("*.html"))
    for page in pages:
        for mode in MODES:
            for width in WIDTHS:
                target = FOLDER / f"{page.stem}-{mode}-{width}.png"
                try:
                    photograph(browser, frame(page, mode, width), target, width)
                finally:
                    for name in ("screenshot", "narrow"):
                        page.with_name(f"{page.stem}.{name}.html").unlink(missing_ok=True)
                print(target)


if __name__ == "__main__":
    main()
