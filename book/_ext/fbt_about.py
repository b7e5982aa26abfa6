"""What a page says under its title: how long it takes to read, and where its notebook and its source are."""

from __future__ import annotations

import re
from math import ceil

from docutils import nodes
from sphinx.application import Sphinx

# How a chapter states its minutes in its first cell.
STATED = re.compile(r"Reading takes about (\d+) minutes, the exercises about (\d+)")
WORDS_A_MINUTE = 200
# Chinese and Japanese have no spaces; two of their characters take about as long as a word.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]{1,2}|[^\s\u3040-\u30ff\u3400-\u9fff]+")
HOST = "https://github.com/"


def minutes(text: str) -> tuple[int, int]:
    """The minutes a page's text takes to read, and those its exercises take.

    As the text states them, or else by the number of its words and without exercises.
    """
    stated = STATED.search(text)
    if stated is not None:
        return int(stated[1]), int(stated[2])
    return max(1, ceil(len(WORD.findall(text)) / WORDS_A_MINUTE)), 0


def links(app: Sphinx, docname: str) -> list[tuple[str, str]]:
    """The texts and addresses of the links under a page's title."""
    theme = app.config.html_theme_options
    url, branch = theme["repository_url"], theme["repository_branch"]
    file = app.env.doc2path(docname, base=False)
    found = []
    if file.endswith(".ipynb"):
        copy = app.builder.get_relative_uri(docname, "_sources/").removesuffix(".html")
        found.append(("Notebook", f"{copy}{file}"))
        place = f"{url.removeprefix(HOST)}/blob/{branch}/{file}"
        found.append(("Open in Colab", f"{theme['launch_buttons']['colab_url']}/github/{place}"))
    return [*found, ("Edit this page", f"{url}/edit/{branch}/{file}")]


def add_line(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the line under the title of a page."""
    title = next(iter(doctree.findall(nodes.title)), None)
    # A module of the package is a page too, but code is not read by the minute.
    if app.builder.format != "html" or title is None or not docname.startswith("book/"):
        return
    # Not the markup of figures, which stands in the page as it is.
    texts = [text for text in doctree.findall(nodes.Text) if not isinstance(text.parent, nodes.raw)]
    reading, exercises = minutes(" ".join(texts))
    said = f"{reading} minute{'s' * (reading != 1)} to read"
    if exercises:
        said += f", {exercises} for the exercises"
    line = nodes.container("", nodes.inline(said, said), classes=["fbt-about"])
    for text, address in links(app, docname):
        line += [nodes.Text(" "), nodes.inline("", "", nodes.reference(text, text, refuri=address))]
    title.parent.insert(title.parent.index(title) + 1, line)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.connect("doctree-resolved", add_line)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
