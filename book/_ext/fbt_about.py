"""The line under a page's title: reading time, downloads and links to its source."""

from __future__ import annotations

import re
from importlib.metadata import version
from math import ceil

from docutils import nodes
from fbt_repository import has_address
from sphinx import addnodes
from sphinx.application import Sphinx

# The sentence in a chapter's first cell that states its reading time.
STATED = re.compile(r"Reading takes about (\d+) minutes, the exercises about (\d+)")
WORDS_PER_MINUTE = 200
# Chinese and Japanese have no spaces; two characters count as one word.
WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]{1,2}|[^\s\u3040-\u30ff\u3400-\u9fff]+"
)
HOST = "https://github.com/"
# tools/build_book.py puts it beside the pages, for Colab without a repository.
WHEEL = f"fbt_book-{version('fbt-book')}-py3-none-any.whl"


def minutes(text: str) -> tuple[int, int]:
    """Return the minutes needed to read a page and to do its exercises.

    They are taken from the text where it states them. Otherwise the reading time is
    estimated from the number of words, and the exercises take none.
    """
    stated = STATED.search(text)
    if stated is not None:
        return int(stated[1]), int(stated[2])
    return max(1, ceil(len(WORD.findall(text)) / WORDS_PER_MINUTE)), 0


def downloads(app: Sphinx, docname: str) -> list[tuple[str, str]]:
    """Return the texts and addresses of the files beside a page that it offers."""
    file = app.env.doc2path(docname, base=False)
    if not file.endswith(".ipynb"):
        return []
    sources = app.builder.get_relative_uri(docname, "_sources/").removesuffix(".html")
    notebook = ("Notebook", f"{sources}{file}")
    if has_address(app.config):
        return [notebook]
    return [notebook, ("Package for Colab", WHEEL)]


def links(app: Sphinx, docname: str) -> list[tuple[str, str]]:
    """Return the texts and addresses of a page's links into the repository."""
    if not has_address(app.config):
        return []
    theme = app.config.html_theme_options
    url, branch = theme["repository_url"], theme["repository_branch"]
    file = app.env.doc2path(docname, base=False)
    edit = ("Edit this page", f"{url}/edit/{branch}/{file}")
    if not file.endswith(".ipynb"):
        return [edit]
    path = f"{url.removeprefix(HOST)}/blob/{branch}/{file}"
    colab = theme["launch_buttons"]["colab_url"]
    return [("Open in Colab", f"{colab}/github/{path}"), edit]


def add_line(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Insert the line under the title of a page."""
    title = next(iter(doctree.findall(nodes.title)), None)
    # Pages of source code have no reading time.
    has_line = app.builder.format == "html" and docname.startswith("book/")
    if title is None or not has_line:
        return
    # Skip the markup of inlined figures.
    texts = [
        text
        for text in doctree.findall(nodes.Text)
        if not isinstance(text.parent, nodes.raw)
    ]
    reading, exercises = minutes(" ".join(texts))
    summary = f"{reading} minute{'s' * (reading != 1)} to read"
    if exercises:
        summary += f", {exercises} for the exercises"
    line = nodes.container("", nodes.inline(summary, summary), classes=["fbt-about"])
    targets = [
        addnodes.download_reference(text, text, refuri=address)
        for text, address in downloads(app, docname)
    ]
    targets += [
        nodes.reference(text, text, refuri=address)
        for text, address in links(app, docname)
    ]
    for link in targets:
        line += [nodes.Text(" "), nodes.inline("", "", link)]
    title.parent.insert(title.parent.index(title) + 1, line)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.connect("doctree-resolved", add_line)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
