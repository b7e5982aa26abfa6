r"""Formulas as MathML, converted when the book is built: pages need no script.

Browsers typeset MathML themselves, screen readers read it, and its TeX is kept in an
annotation. Numbers of equations are those of Sphinx; numbered environments such as
`align`, with `\label` and `\eqref`, are numbered on each page from 1.
"""

from __future__ import annotations

import re
from functools import partial

from bs4 import BeautifulSoup
from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

CONVERTER = partial(LatexToMathML, annotation=True, fancy_error=False)
# A size for brackets lets browsers choose a taller shape, which has wider margins.
BIG = re.compile(r'<mo minsize="([\d.]+em)" maxsize="\1">')
PRIMES = "′″‴⁗"
# Characters of TeX: within a line, a longer formula may be wider than a phone.
LONG = 60
# The theme gives boxes of this class a tab stop while they scroll.
SCROLLS = "pst-scrollable-table-container"


def tex(node: nodes.math | nodes.math_block) -> str:
    """Return the TeX of a formula; several lines of a display are aligned."""
    text = node.astext().strip()
    is_display = isinstance(node, nodes.math_block)
    if not is_display or node["nowrap"] or r"\\" not in text:
        return text
    # A line break in an environment such as cases does not end a line of the display.
    outside = re.sub(r"\\begin\{(\w+\*?)\}.*?\\end\{\1\}", "", text, flags=re.DOTALL)
    if r"\\" not in outside:
        return text
    return rf"\begin{{aligned}}{text}\end{{aligned}}"


def mathml(formulas: list[tuple[str, bool]], prefix: str = "") -> list[str]:
    r"""Convert the formulas of a page to MathML.

    Args:
        formulas: the TeX of each, and whether it is displayed on lines of its own.
        prefix: begins the ids of labelled equations.

    Raises:
        ValueError: quoting the formula that is not TeX.
    """
    converter = CONVERTER(id_prefix=prefix)
    try:
        converted = converter.convert_all(formulas)
    except LatexError:
        for text, is_display in formulas:
            try:
                converter.convert_with_local_state(text, displaystyle=is_display)
            except LatexError as error:
                message = f"{text!r} must be a formula in TeX: {error}"
                raise ValueError(message) from error
        raise
    return [
        lower_primes(BIG.sub(r'<mo stretchy="false" style="font-size: \1">', one))
        for one in converted
    ]


def lower_primes(markup: str) -> str:
    """Return MathML with primes beside their letters: fonts raise them already."""
    if not any(prime in markup for prime in PRIMES):
        return markup
    page = BeautifulSoup(markup, "html.parser")
    for prime in page.find_all("mo", string=list(PRIMES)):
        raised = prime.parent
        if raised is None or raised.name not in ("msup", "msubsup"):
            continue
        if raised.name == "msup":
            raised.name = "mrow"
        else:
            raised.name = "msub"
            letter = page.new_tag("mrow")
            letter.extend([raised.contents[0], prime])
            raised.insert(0, letter)
    return str(page)


def convert(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Store the MathML of each formula of a page in its node."""
    if app.builder.format != "html":
        return
    kinds = (nodes.math, nodes.math_block)
    found = [node for node in doctree.findall() if isinstance(node, kinds)]
    formulas = [(tex(node), isinstance(node, nodes.math_block)) for node in found]
    try:
        converted = mathml(formulas, "equation-")
    except ValueError as error:
        raise ExtensionError(f"{docname}: {error}") from error
    for node, markup in zip(found, converted, strict=True):
        node["mathml"] = markup


def markup(node: nodes.math | nodes.math_block) -> str:
    """Return a formula's MathML; those in copies of a title are converted here."""
    if "mathml" not in node:
        node["mathml"] = mathml([(tex(node), isinstance(node, nodes.math_block))])[0]
    return str(node["mathml"])


def visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    """Write a formula within a line."""
    classes = "math notranslate"
    if len(node.astext()) > LONG:
        classes += f" fbt-long {SCROLLS}"
    tag = self.starttag(node, "span", "", CLASS=classes)
    self.body.append(f"{tag}{markup(node)}</span>")
    raise nodes.SkipNode


def visit_display(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula on lines of its own, with its number if it has one."""
    self.body.append(self.starttag(node, "div", CLASS=f"math notranslate {SCROLLS}"))
    if node["number"]:
        self.body.append(
            f'<span class="eqno">({get_node_equation_number(self, node)})'
        )
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(f"{markup(node)}</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.connect("doctree-resolved", convert)
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
