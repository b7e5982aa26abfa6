"""Figures of the book: inlined SVG in the theme's colours, with readable text.

To show a figure of a chapter on another page, with its own caption and, for a page in
another language, its own alt text::

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
# The grey of a figure's text and axes. On a page it becomes the text colour.
INK = re.compile("#757575", re.IGNORECASE)
# A reference inside a figure to one of its elements, such as url(#clip).
URL_REFERENCE = re.compile(r"url\(#([^)]+)\)")
FONT_SIZE = re.compile(r"\bfont(?:-size)?:[^;]*?([\d.]+)px")
# Figures are drawn for the width of a phone; wider pages enlarge them by this factor.
ENLARGEMENT = 1.2
# Figures shrink until their smallest text has this size in CSS pixels, then scroll.
SMALLEST_TEXT = 9
# Width available on a phone, in CSS pixels.
PHONE_WIDTH = 360


class InlineFigures(SphinxPostTransform):
    """Inline SVG images, so that they follow the theme and can be read aloud."""

    # Run before Sphinx's own image converters (100 and up).
    default_priority = 50
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Replace each SVG image of the page with inline SVG."""
        images = list(self.document.findall(nodes.image))
        for number, image in enumerate(images, start=1):
            uri = image["uri"]
            if not uri.endswith(".svg") or "://" in uri:
                continue
            alt = image.get("alt", "").strip()
            if not alt or alt == uri:
                LOGGER.warning(
                    "figure without alt text: set mystnb.image.alt in its cell",
                    location=image,
                )
            text = _source(self.app, uri).read_text(encoding="utf-8")
            markup = framed_svg(text, f"svg{number}", alt)
            image.replace_self(nodes.raw("", markup, format="html"))


class ChapterFigure(SphinxDirective):
    """Show a figure of a chapter on another page; see the module's docstring."""

    required_arguments = 2
    option_spec = {"alt": directives.unchanged_required}  # noqa: RUF012
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the figure drawn by the named cell of the chapter."""
        chapter, name = self.arguments
        path = Path(self.env.srcdir, "_build", "notebooks", f"{chapter}.ipynb")
        self.env.note_dependency(str(path))
        for cell in nbformat.read(path, as_version=4).cells:
            metadata = cell.metadata.get("mystnb", {})
            if metadata.get("figure", {}).get("name") == name:
                outputs = [out["data"] for out in cell.outputs if "data" in out]
                svgs = (data.get("image/svg+xml") for data in outputs)
                svg = next(svg for svg in svgs if svg is not None)
                alt = self.options.get("alt", metadata["image"]["alt"])
                markup = framed_svg(svg, f"shown-{name}", alt)
                figure = nodes.raw("", markup, format="html")
                text = self.parse_inline("\n".join(self.content))[0]
                return [nodes.figure("", figure, nodes.caption("", "", *text))]
        raise self.error(f"{chapter} has no figure {name!r}")


def _source(app: Sphinx, uri: str) -> Path:
    return Path(app.srcdir, uri.lstrip("/"))


def framed_svg(text: str, prefix: str, alt: str) -> str:
    """Return an SVG document as an HTML element in a frame that can scroll.

    Args:
        text: the SVG file's text.
        prefix: prepended to every id, so that ids stay unique on a page.
        alt: the alt text.

    Returns:
        A <div> with an <svg> element: the ink is currentColor, ids are prefixed,
        role="img", and the alt text is its label. The <div> can be focused with the
        keyboard if it scrolls on a phone.
    """
    root = ET.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            # Matplotlib's metadata contains web addresses, which no page needs.
            if child.tag.endswith(("}metadata", "}title", "}desc")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.split("}")[-1]
        element.attrib = {
            name.split("}")[-1]: _attribute(name.split("}")[-1], value, prefix)
            for name, value in element.attrib.items()
        }
        if element.tag == "style" and element.text:
            # Inside a page a style sheet is global, so limit it to this figure.
            text = re.sub(r"(^|\})\s*([^{}@]+)\{", rf"\1#{prefix} \2{{", element.text)
            element.text = INK.sub("currentColor", text)
    width, least = _widths(root)
    for name in ("version", "width", "height"):
        root.attrib.pop(name, None)
    root.set("id", prefix)
    root.set("style", f"width: {ceil(width)}px; min-width: {ceil(least)}px")
    root.set("role", "img")
    root.set("aria-label", alt)
    scrolls = ""
    if least > PHONE_WIDTH:
        scrolls = ' tabindex="0" role="group" aria-label="scrolls sideways"'
    svg = ET.tostring(root, encoding="unicode")
    return f'<div class="fbt-figure"{scrolls}>{svg}</div>'


def _widths(root: ET.Element) -> tuple[float, float]:
    """Return a figure's display width and least readable width, in CSS pixels."""
    declared = root.attrib["width"]
    scale = 96 / 72 if declared.endswith("pt") else 1
    width = float(declared.removesuffix("pt")) * scale
    units = float(root.attrib["viewBox"].split()[2])
    smallest = min(_text_sizes(root, 16), default=units)
    return ENLARGEMENT * width, SMALLEST_TEXT * units / smallest


def _text_sizes(element: ET.Element, inherited: float) -> Iterator[float]:
    """Yield a drawing's text sizes in its own units.

    Subscripts and superscripts count with the size of the text around them.
    """
    style = FONT_SIZE.search(element.get("style", ""))
    size = float(style[1] if style else element.get("font-size", inherited))
    if element.tag == "text":
        inner = (s for child in element for s in _text_sizes(child, size))
        yield max([size, *inner])
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
