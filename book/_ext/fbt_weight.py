"""What built pages need not load, or compute: icon fonts, unused styles, layouts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

# Scripts that draw icons or tabs, and those of the search that fbt_search replaces.
DROPPED = (
    "fontawesome|design-tabs|searchtools|searchindex|language_data|sphinx_highlight"
)
SCRIPT = re.compile(rf'\s*<script[^>]* src="[^"]*?(?:{DROPPED})\.js[^"]*"></script>')
ICON = re.compile(
    r'<(i|span) class="([^"]*\bfa(?:s|-solid) fa-([\w-]+)[^"]*)"([^>]*)></\1>'
)
FILES = (
    "_static/scripts/fontawesome.js",
    "_static/scripts/fontawesome.js.map",
    "_static/searchtools.js",
    "_static/sphinx_highlight.js",
    "_static/design-tabs.js",
    "_static/vendor/fontawesome",
    "searchindex.js",
)
# The theme makes a stop of the Tab key of each element that scrolls. It writes after
# each look, and looks into closed folds, so that the browser lays out something for
# each element: when a page opens, and again whenever a view has changed it.
THEME = "_static/scripts/pydata-sphinx-theme.js"
STOPS = re.compile(
    r"(document\.querySelectorAll\(\[[^\]]*\]\.join\(\", \"\)\))"
    r"\.forEach\((\w)=>\{\2\.tabIndex=([^{}]*\.scrollWidth>[^{}]*\?0:-1)\}\)"
)
# The book's own style sheets; all others are for many more kinds of pages.
OWN = ("fbt.css", "source.css")
# A selector names classes; a negated one also applies where they are missing.
WORD = re.compile(r"[\w-]+")
CLASS = re.compile(r"\.(-?[A-Za-z_](?:[\w-]|\\.)*)")
NEGATED = re.compile(r":not\([^()]*\)")
GROUPED = ("@media", "@supports", "@layer", "@container")


def shapes(script: str) -> dict[str, tuple[int, int, str]]:
    """Return the width, height and path of each icon in the theme's script."""
    # Of brands, regular and solid icons the last are the ones in use.
    found = re.findall(
        r'"?([\w-]+)"?:\[(\d+),(\d+),\[[^\]]*\],"\w+",("(?:[^"\\]|\\.)*")', script
    )
    return {
        name: (int(width), int(height), json.loads(path))
        for name, width, height, path in found
    }


def inline(page: str, icons: dict[str, tuple[int, int, str]]) -> str:
    """Return a page with its icons drawn in it, and without scripts it can miss."""

    def draw(icon: re.Match[str]) -> str:
        if icon[3] not in icons:
            raise ExtensionError(f"the theme has no icon {icon[3]!r}")
        width, height, path = icons[icon[3]]
        box = f'viewBox="0 0 {width} {height}" aria-hidden="true"{icon[4]}'
        shape = f'<path fill="currentColor" d="{path}"/>'
        # As the theme's script leaves it; its styles depend on that.
        classes = re.sub(r"\bfa(?:s|-solid) ", "", icon[2])
        return f'<svg class="svg-inline--fa {classes}" {box}>{shape}</svg>'

    return ICON.sub(draw, SCRIPT.sub("", page))


def looks_first(script: str) -> str:
    """Return the theme's script, which looks at all that is visible, then changes it.

    Raises:
        ExtensionError: if the script has no such place, or more than one.
    """
    changed, count = STOPS.subn(
        r"[...\1].filter(\2=>\2.checkVisibility()).map(\2=>[\2,\3])"
        r".forEach(([\2,stop])=>{if(\2.tabIndex!==stop)\2.tabIndex=stop})",
        script,
    )
    if count != 1:
        raise ExtensionError(f"the theme's script sets tab stops in {count} places")
    return changed


def rules(style: str) -> Iterator[tuple[str, str]]:
    """Return the rules of a style sheet: what is before their braces, and in them."""
    depth = start = opened = 0
    for match in re.finditer(r"""[{};]|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'""", style):
        if match[0] == "{":
            opened = opened if depth else match.start()
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                yield style[start:opened], style[opened + 1 : match.start()]
                start = match.end()
        elif match[0] == ";" and depth == 0:  # a statement such as @charset
            yield style[start : match.end()], ""
            start = match.end()


def in_use(style: str, names: set[str]) -> str:
    """Return a style sheet without rules for classes that no page has, or for icons.

    Args:
        style: the style sheet, without comments.
        names: the classes in pages, and all words in scripts, which may add them.
    """
    kept = []
    for before, inside in rules(style):
        head = before.strip()
        if head.endswith(";"):
            kept.append(head)
        elif head.startswith(GROUPED):
            if part := in_use(inside, names):
                kept.append(f"{head}{{{part}}}")
        elif head.startswith("@font-face"):
            if "Awesome" not in inside:
                kept.append(f"{head}{{{inside}}}")
        elif head.startswith("@"):
            kept.append(f"{head}{{{inside}}}")
        else:
            selectors = [
                selector
                for selector in re.split(r",(?![^()]*\))", head)
                if ":is(" in selector
                or ":where(" in selector
                or set(CLASS.findall(NEGATED.sub("", selector))) <= names
            ]
            if selectors:
                kept.append(f"{','.join(selectors)}{{{inside}}}")
    return "".join(kept)


def lighten(app: Sphinx, exception: Exception | None) -> None:
    """Lighten the built pages, and remove the files that no page loads any more."""
    if exception is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir)
    script = folder / FILES[0]
    if not script.exists():  # built before, and no page has changed
        return
    icons = shapes(script.read_text(encoding="utf-8"))
    theme = folder / THEME
    theme.write_text(looks_first(theme.read_text(encoding="utf-8")), encoding="utf-8")
    names: set[str] = set()
    for path in folder.rglob("*.html"):
        page = inline(path.read_text(encoding="utf-8"), icons)
        path.write_text(page, encoding="utf-8")
        names.update(*map(str.split, re.findall(r'class="([^"]*)"', page)))
        names.update(*map(WORD.findall, re.findall(r"<script>(.*?)</script>", page)))
    for path in folder.rglob("*.js"):
        if path != script:
            names.update(WORD.findall(path.read_text(encoding="utf-8")))
    for path in folder.rglob("*.css"):
        if path.name in OWN:
            continue
        style = path.read_text(encoding="utf-8")
        licences = re.findall(r"/\*!.*?\*/", style, flags=re.DOTALL)
        plain = re.sub(r"/\*.*?\*/", "", style, flags=re.DOTALL)
        content = "\n".join([in_use(plain, names), *licences])
        path.write_text(content, encoding="utf-8")
    for name in FILES:
        file = folder / name
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.connect("build-finished", lighten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
