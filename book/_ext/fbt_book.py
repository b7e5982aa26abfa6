"""Changes to Jupyter Book: figures in the theme's colours, no external files."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from drawings import ChapterFigure, InlineFigures
from sphinx.application import Sphinx

DESCRIPTION_LENGTH = 180
CODE = re.compile(
    r'(<div class="highlight"><pre>(?:<span></span>)?)(.*?)(</pre>)', re.S
)
DOT = '<span class="o">.</span>'
PHONE = 36  # columns of code that fit on any phone
EMPTY_CORNER = re.compile(r'<th class="head stub">\s*(?:<p>\s*</p>)?\s*</th>')
# What the theme's first script takes, and what it should take.
CHOICE = (
    'localStorage.getItem("theme") || "auto"',
    'localStorage.getItem("theme") || '
    '(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")',
)


def in_rows(code: re.Match[str]) -> str:
    """Put each line of a block of code into an element, for a hanging indent."""
    rows = []
    for line in code[2].splitlines(keepends=True):
        text = re.sub("<[^>]*>", "", line)
        indent = len(text) - len(text.lstrip(" "))
        if len(text) > PHONE:  # may also break before a method
            line = line.replace(DOT, f"<wbr>{DOT}")
        style = f' style="--fbt-indent: {indent}ch"' if indent else ""
        rows.append(f'<span class="fbt-row"{style}>{line}</span>')
    return "".join([code[1], *rows, code[3]])


def find_public_name(
    app: Sphinx, env: Any, node: Any, contnode: nodes.Node
) -> nodes.Node | None:
    """Resolve fbt.state.State to the entry of fbt.State on the API page."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("fbt."):
        return None
    python = env.domains["py"]
    public = f"fbt.{target.rsplit('.', 1)[-1]}"
    if public == target or public not in python.objects:
        return None
    link = python.resolve_xref(
        env, node["refdoc"], app.builder, "obj", public, node, contnode
    )
    return link if isinstance(link, nodes.Node) else None


def name_rows(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Mark the first column as row headers in tables whose corner cell is empty."""
    for table in doctree.findall(nodes.tgroup):
        corner = next(table.findall(nodes.entry), None)
        if corner is not None and not corner.astext().strip():
            next(table.findall(nodes.colspec))["stub"] = 1


def drop_thebe(app: Sphinx, config: Any) -> None:
    """Unload sphinx-thebe, the live-code extension that Jupyter Book always loads.

    It would fetch a script on every page.
    """
    for listeners in app.events.listeners.values():
        listeners[:] = [
            item
            for item in listeners
            if not item.handler.__module__.startswith("sphinx_thebe")
        ]


def finish_page(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: Any,
) -> None:
    """Add a description to the page; remove live-code files and repeated labels."""
    for kind in ("script_files", "css_files"):
        files = context.get(kind, [])
        files[:] = [
            file
            for file in files
            if "thebe" not in f"{file} {getattr(file, 'attributes', '')}".lower()
        ]
    # An empty corner cell is not a heading.
    context["body"] = EMPTY_CORNER.sub("<td></td>", context.get("body", ""))
    # The theme labels every button that unfolds code alike, whatever its text.
    context["body"] = context["body"].replace(
        ' aria-label="Toggle hidden content"', ""
    )
    context["body"] = CODE.sub(in_rows, context["body"])
    if doctree is not None:
        context["metatags"] = context.get("metatags", "") + _description(
            doctree, app.config.html_title
        )


def choose_theme(app: Sphinx, exception: Exception | None) -> None:
    """Choose light or dark before a page is drawn; "auto" is none of them.

    The theme's script would choose later, and all styles would be computed twice.
    Without scripts pages are light.
    """
    if exception is not None or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        chosen = text.replace('data-theme="auto"', 'data-theme="light"', 1)
        chosen = chosen.replace(*CHOICE, 1)
        path.write_text(chosen, encoding="utf-8")


def _description(doctree: nodes.document, book: str) -> str:
    """Return a meta description from the first long paragraph.

    Returns "" if the page has a description of its own.
    """
    if any(node.get("name") == "description" for node in doctree.findall(nodes.meta)):
        return ""
    paragraphs = (
        " ".join(paragraph.astext().split())
        for paragraph in doctree.findall(nodes.paragraph)
    )
    text = next((paragraph for paragraph in paragraphs if len(paragraph) > 40), book)
    if len(text) > DESCRIPTION_LENGTH:
        text = text[:DESCRIPTION_LENGTH].rsplit(" ", 1)[0].rstrip(",;:.") + "…"
    return f'<meta name="description" content="{html.escape(text)}" />'


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.add_directive("chapter-figure", ChapterFigure)
    app.add_post_transform(InlineFigures)
    app.connect("missing-reference", find_public_name)
    app.connect("doctree-resolved", name_rows)
    # After every extension has connected its handlers, before any of them runs.
    app.connect("config-inited", drop_thebe, priority=0)
    app.connect("html-page-context", finish_page, priority=900)
    app.connect("build-finished", choose_theme)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
