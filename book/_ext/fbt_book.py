"""What the book adds to Jupyter Book: figures that follow the theme, pages that load nothing from outside.

In a page, a figure that a chapter has drawn, with a caption of its own and, where the page is in another
language, a text alternative of its own::

    ```{chapter-figure} 05-training fig-attention-one
    :alt: What the figure shows, instead of the chapter's text.

    The caption.
    ```
"""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET
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
DESCRIPTION_LENGTH = 180


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
            markup = inline_svg(_source(self.app, uri).read_text(encoding="utf-8"), f"svg{number}", alt)
            image.replace_self(nodes.raw("", f'<div class="fbt-figure">{markup}</div>', format="html"))


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
                markup = inline_svg(svg, f"shown-{name}", alt)
                drawing = nodes.raw("", f'<div class="fbt-figure">{markup}</div>', format="html")
                caption = nodes.caption("", "", *self.parse_inline("\n".join(self.content))[0])
                return [nodes.figure("", drawing, caption)]
        raise self.error(f"{chapter} has no figure {name!r}")


def _source(app: Sphinx, uri: str) -> Path:
    return Path(app.srcdir, uri.lstrip("/"))


def inline_svg(text: str, prefix: str, alt: str) -> str:
    """An SVG document as an element for an HTML page.

    Args:
        text: the SVG file's text.
        prefix: put before every id, so that two figures on a page cannot share one.
        alt: the text alternative.

    Returns:
        An <svg> element with the ink as currentColor, its own ids, role="img" and the alt text as its label.
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
    root.attrib.pop("version", None)
    root.set("id", prefix)
    root.set("role", "img")
    root.set("aria-label", alt)
    return ET.tostring(root, encoding="unicode")


def _attribute(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href" and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    return URL_REFERENCE.sub(rf"url(#{prefix}-\1)", INK.sub("currentColor", value))


def find_public_name(app: Sphinx, env: Any, node: Any, contnode: nodes.Node) -> nodes.Node | None:
    """Lead fbt.state.State to the entry of fbt.State: the API page lists names as people import them."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("fbt."):
        return None
    python = env.domains["py"]
    public = f"fbt.{target.rsplit('.', 1)[-1]}"
    if public == target or public not in python.objects:
        return None
    found = python.resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, contnode)
    return found if isinstance(found, nodes.Node) else None


def drop_thebe(app: Sphinx, config: Any) -> None:
    """Unload the live-code extension that Jupyter Book always loads: it fetches a script on every page."""
    for listeners in app.events.listeners.values():
        listeners[:] = [item for item in listeners if not item.handler.__module__.startswith("sphinx_thebe")]


def finish_page(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Leave out the live-code files the theme still names, and say what the page is about."""
    for kind in ("script_files", "css_files"):
        files = context.get(kind, [])
        files[:] = [
            file for file in files if "thebe" not in f"{file} {getattr(file, 'attributes', '')}".lower()
        ]
    if doctree is not None:
        context["metatags"] = context.get("metatags", "") + _description(doctree, app.config.html_title)


def _description(doctree: nodes.document, book: str) -> str:
    """A meta description from the page's first full paragraph, unless the page has its own."""
    if any(node.get("name") == "description" for node in doctree.findall(nodes.meta)):
        return ""
    paragraphs = (" ".join(paragraph.astext().split()) for paragraph in doctree.findall(nodes.paragraph))
    text = next((paragraph for paragraph in paragraphs if len(paragraph) > 40), book)
    if len(text) > DESCRIPTION_LENGTH:
        text = text[:DESCRIPTION_LENGTH].rsplit(" ", 1)[0].rstrip(",;:.") + "…"
    return f'<meta name="description" content="{html.escape(text)}" />'


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.add_directive("chapter-figure", ChapterFigure)
    app.add_post_transform(InlineFigures)
    app.connect("missing-reference", find_public_name)
    # After every extension has connected its handlers, before the first of them runs.
    app.connect("config-inited", drop_thebe, priority=0)
    app.connect("html-page-context", finish_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
