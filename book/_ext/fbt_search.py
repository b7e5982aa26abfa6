"""The search: an index of all sections with their text, for _static/search.js.

The index is a script, because pages opened from a disk cannot fetch files. It begins
with Sphinx's functions that split and stem words.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from bs4 import BeautifulSoup
from bs4.element import NavigableString, PageElement, Tag
from sphinx.application import Sphinx

INDEX = "search-sections.js"
WORDS = "language_data.js"  # how Sphinx splits and stems words
# What readers may call a thing, and what the book calls it. A search for the first
# also finds the second.
SYNONYMS = {
    "autoregressive": ["one character after another", "generate"],
    "backprop": ["backpropagation", "backward"],
    "bptt": ["backpropagation through time"],
    "cache": ["memory", "state"],
    "colab": ["notebook"],
    "cuda": ["gpu"],
    "embedding": ["embed"],
    "ffn": ["feed-forward"],
    "fp16": ["float16"],
    "kv": ["keys and values"],
    "layernorm": ["layer norm", "LN"],
    "lr": ["learning rate"],
    "mlp": ["feed-forward"],
    "perplexity": ["nats", "loss"],
    "recurrent": ["recurrence", "loop"],
    "rnn": ["recurrent", "recurrence", "lstm"],
    "sampling": ["generate", "temperature"],
    "seq2seq": ["sequence"],
    "throughput": ["tokens per second", "speed"],
    "window": ["span"],
}
# Parts of a page that are not its text. The code of a module has a page of its own.
UNWANTED = ".headerlink, .fbt-about, .fbt-code, annotation"
DRAWN = re.compile(r"<(script|style|svg|button)\b.*?</\1>", re.DOTALL)
CODE = re.compile(r"(<pre[^>]*>)(.*?)(</pre>)", re.DOTALL)
BLOCKS = ["p", "li", "div", "td", "th", "h1", "h2", "h3", "h4", "pre"]
HEADING = ["h1", "h2", "h3", "h4"]
# How formulas are written in one line.
SIGNS = {
    "mfrac": "/",
    "msub": "_",
    "msup": "^",
    "msubsup": "_^",
    "munder": "_",
    "mover": "^",
    "munderover": "_^",
}
RELATIONS = set("=+−<>≤≥≈←∑")
INVISIBLE = "[\u2061\ufe00]"  # between a function and its argument; a letter's form


def linear(element: PageElement) -> str:
    """Return a formula in one line, such as "m_t = ∑_(l=0)^L w_l x_t^l"."""
    if isinstance(element, NavigableString):
        return re.sub(INVISIBLE, "", str(element))
    assert isinstance(element, Tag)  # a tree has elements and texts only
    if element.name == "mspace":
        return " "
    parts = [
        linear(child)
        for child in element.children
        if not (isinstance(child, Tag) and child.name == "annotation")
    ]
    text = "".join(parts)
    if element.name in SIGNS:
        base, *others = (
            part.strip() if len(part) == 1 else f"({part.strip()})" for part in parts
        )
        if element.name != "mfrac":
            base = parts[0].strip()
        pairs = zip(SIGNS[element.name], others, strict=False)
        return "".join([base, *(sign + other for sign, other in pairs), " "])
    if element.name == "msqrt":
        return f"√({text})"
    return f" {text} " if text in RELATIONS and element.name == "mo" else text


def article(page: str) -> Tag | None:
    """Return a page's article with text only, and formulas in one line each."""
    text = DRAWN.sub("", "<article" + page.partition("<article")[2])
    # Coloured code has an element for each word, which would take seconds to read.
    text = CODE.sub(
        lambda code: code[1] + re.sub("<[^>]*>", "", code[2]) + code[3], text
    )
    found = BeautifulSoup(text.partition("</article>")[0], "html.parser").article
    if found is None or found.h1 is None:
        return None
    for part in found.select(UNWANTED):
        part.decompose()
    for formula in found.select("math"):
        line = " ".join(linear(formula).split())
        formula.replace_with(re.sub(r" (?=[,;.)\]])", "", line))
    for block in found.find_all(BLOCKS):
        block.insert_before(" ")
    return found


def sections(name: str, page: str) -> list[list[str]]:
    """Return the sections of a page: its name, anchor, title, heading and text each.

    Entries of the API are sections too. A section's text ends where the next begins.
    """
    root = article(page)
    if root is None:
        return []
    found: list[tuple[str, str, list[str]]] = []
    for part in root.descendants:
        if isinstance(part, NavigableString):
            if found:
                found[-1][2].append(str(part))
        elif isinstance(part, Tag) and part.name == "section" and part.find(HEADING):
            heading = part.find(HEADING)
            assert isinstance(heading, Tag)
            found.append((str(part.get("id", "")), heading.get_text(), []))
        elif isinstance(part, Tag) and part.name == "dt" and part.get("id"):
            found.append((str(part["id"]), str(part["id"]), []))
    title = found[0][1]
    entries = []
    for anchor, head, parts in found:
        top, shown, words = (
            " ".join(part.split()) for part in (title, head, "".join(parts))
        )
        entries.append([name, anchor, top, shown, words.removeprefix(shown).strip()])
    return entries


def write_index(app: Sphinx, exception: Exception | None) -> None:
    """Write the sections of all pages, in the order of the contents, as a script."""
    if exception is not None or app.builder.format != "html":
        return
    folder, entries = Path(app.outdir), []
    for name in sorted(app.env.found_docs):
        text = (folder / f"{name}.html").read_text(encoding="utf-8")
        entries += sections(name, text)
    content = json.dumps([SYNONYMS, entries], ensure_ascii=False)
    # U+2028 ends a line in old scripts, and "</" could end the script in a page.
    content = re.sub("[\u2028\u2029]", " ", content)
    words = (folder / "_static" / WORDS).read_text(encoding="utf-8")
    script = f"{words}\nconst fbtSections = {content};\n"
    (folder / "_static" / INDEX).write_text(script, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.connect("build-finished", write_index, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
