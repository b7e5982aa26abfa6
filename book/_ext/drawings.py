"""The figures of the book: inside the page, in the theme's colours, as large as their text needs.

In a page, a figure that a chapter has drawn, with a caption of its own and, where the page is in another
language, a text alternative of its own::

    ```{chapter-figure} 05-training fig-attention-one
    :alt: What the figure shows, instead of the chapter's text.

    The caption.
    ```
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

LOGGER = logging.getLogger(__name__)
# The grey that figures draw their text and axes with. On a page it becomes the colour of the page's text.
INK = re.compile("#757575", re.IGNORECASE)
# url(#clip), href="#glyph": references inside a figure to its own parts.
URL_REFERENCE = re.compile(r"url\(#([^)]+)\)")
FONT_SIZE = re.compile(r"\bfont(?:-size)?:[^;]*?([\d.]+)px")
# Figures are drawn for the width of a phone; where there is room they are shown this much larger.
LARGER = 1.2
# They shrink until their smallest text has this many CSS pixels; then they scroll.
SMALLEST = 9
# The CSS pixels that a phone has room for.
PHONE = 360


class InlineFigures(SphinxPostTransform):
    """Puts SVG figures into the page itself, where they take the theme's colours and can be read out."""

    # Before Sphinx's own image converters (100 and up) look at the images.
    default_priority = 50
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Replace each SVG image of the page by its drawing."""
        for number, image in enumerate(list(self.document.findall(nodes.image)), start=1):
            uri = image["uri"]
            if not uri.endswith(".svg") or "://" in uri:
                continue
            alt = image.get("alt", "").strip()
            if not alt or alt == uri:
                LOGGER.warning("a figure has no alt text (mystnb.image.alt in its cell)", location=image)
            text = _source(self.app, uri).read_text(encoding="utf-8")
            image.replace_self(nodes.raw("", framed_svg(text, f"svg{number}", alt), format="html"))


class ChapterFigure(SphinxDirective):
    """Shows a figure of a chapter's run on another page; see the head of this module."""

    required_arguments = 2
    option_spec = {"alt": directives.unchanged_required}  # noqa: RUF012
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Draw what the named cell of the chapter drew."""
        chapter, name = self.arguments
        path = Path(self.env.srcdir, "_build", "notebooks", f"{chapter}.ipynb")
        self.env.note_dependency(str(path))
        for cell in nbformat.read(path, as_version=4).cells:
            about = cell.metadata.get("mystnb", {})
            if about.get("figure", {}).get("name") == name:
                shown = [output["data"] for output in cell.outputs if "data" in output]
                svg = next(data["image/svg+xml"] for data in shown if "image/svg+xml" in data)
                alt = self.options.get("alt", about["image"]["alt"])
                markup = framed_svg(svg, f"shown-{name}", alt)
                drawing = nodes.raw("", markup, format="html")
                caption = nodes.caption("", "", *self.parse_inline("\n".join(self.content))[0])
                return [nodes.figure("", drawing, caption)]
        raise self.error(f"{chapter} has no figure {name!r}")


def _source(app: Sphinx, uri: str) -> Path:
    return Path(app.srcdir, uri.lstrip("/"))


def framed_svg(text: str, prefix: str, alt: str) -> str:
    """An SVG document as an element for an HTML page, in a frame in which it can scroll.

    Args:
        text: the SVG file's text.
        prefix: put before every id, so that two figures on a page cannot share one.
        alt: the text alternative.

    Returns:
        An <svg> element with the ink as currentColor, its own ids, role="img" and the alt text as its label,
        in a <div>, which the keyboard reaches if it scrolls on a phone.
    """
    root = ET.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            # Matplotlib's metadata names web addresses; a page needs none of it.
            if child.tag.endswith(("}metadata", "}title", "}desc")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.split("}")[-1]
        element.attrib = {
            name.split("}")[-1]: _attribute(name.split("}")[-1], value, prefix)
            for name, value in element.attrib.items()
        }
        if element.tag == "style" and element.text:
            # Inside a page a style sheet is everybody's; keep this one to its own figure.
            element.text = INK.sub(
                "currentColor", re.sub(r"(^|\})\s*([^{}@]+)\{", rf"\1#{prefix} \2{{", element.text)
            )
    width, least = _widths(root)
    for name in ("version", "width", "height"):
        root.attrib.pop(name, None)
    root.set("id", prefix)
    root.set("style", f"width: {ceil(width)}px; min-width: {ceil(least)}px")
    root.set("role", "img")
    root.set("aria-label", alt)
    scrolls = ' tabindex="0" role="group" aria-label="scrolls sideways"' if least > PHONE else ""
    return f'<div class="fbt-figure"{scrolls}>{ET.tostring(root, encoding="unicode")}</div>'


def _widths(root: ET.Element) -> tuple[float, float]:
    """The width a figure is shown with, and the least at which its text can be read, in CSS pixels."""
    drawn = root.attrib["width"]
    width = float(drawn.removesuffix("pt")) * (96 / 72 if drawn.endswith("pt") else 1)
    units = float(root.attrib["viewBox"].split()[2])
    return LARGER * width, SMALLEST * units / min(_text_sizes(root, 16), default=units)


def _text_sizes(element: ET.Element, inherited: float) -> Iterator[float]:
    """The sizes of a drawing's texts, in its own units; an index counts as the letter it stands at."""
    style = FONT_SIZE.search(element.get("style", ""))
    size = float(style[1] if style else element.get("font-size", inherited))
    if element.tag == "text":
        yield max([size, *(found for part in element for found in _text_sizes(part, size))])
    elif element.tag == "tspan":
        yield size
    else:
        for child in element:
            yield from _text_sizes(child, size)


def _attribute(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href" and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    return URL_REFERENCE.sub(rf"url(#{prefix}-\1)", INK.sub("currentColor", value))
