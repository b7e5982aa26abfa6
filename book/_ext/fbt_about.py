"""The line under a page's title: reading time and links to notebook and source."""

from __future__ import annotations

import re
from math import ceil

from docutils import nodes
from sphinx.application import Sphinx

# The sentence in a chapter's first cell that states its reading time.
STATED = re.compile(r"Reading takes about (\d+) minutes, the exercises about (\d+)")
WORDS_PER_MINUTE = 200
# Chinese and Japanese have no spaces; two characters count as one word.
WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]{1,2}|[^\s\u3040-\u30ff\u3400-\u9fff]+"
)
HOST = "https://github.com/"


def minutes(text: str) -> tuple[int, int]:
    """Return the minutes needed to read a page and to do its exercises.

    They are taken from the text where it states them. Otherwise the reading time is
    estimated from the number of words, and the exercises take none.
    """
    stated = STATED.search(text)
    if stated is not None:
        return int(stated[1]), int(stated[2])
    return max(1, ceil(len(WORD.findall(text)) / WORDS_PER_MINUTE)), 0


def links(app: Sphinx, docname: str) -> list[tuple[str, str]]:
    """Return the texts and addresses of the links under a page's title."""
    theme = app.config.html_theme_options
    url, branch = theme["repository_url"], theme["repository_branch"]
    file = app.env.doc2path(docname, base=False)
    result = []
    if file.endswith(".ipynb"):
        sources = app.builder.get_relative_uri(docname, "_sources/")
        result.append(("Notebook", f"{sources.removesuffix('.html')}{file}"))
        path = f"{url.removeprefix(HOST)}/blob/{branch}/{file}"
        colab = theme["launch_buttons"]["colab_url"]
        result.append(("Open in Colab", f"{colab}/github/{path}"))
    return [*result, ("Edit this page", f"{url}/edit/{branch}/{file}")]


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
    for text, address in links(app, docname):
        link = nodes.reference(text, text, refuri=address)
        line += [nodes.Text(" "), nodes.inline("", "", link)]
    title.parent.insert(title.parent.index(title) + 1, line)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.connect("doctree-resolved", add_line)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
