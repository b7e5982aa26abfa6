"""Docstrings and comments as part of a page: prose, mathematics, and the headings of Google's style.

What is written in a module is plain text that reads well in an editor, so only this much of Markdown is
understood: paragraphs, lists, `code`, $mathematics$, indented blocks, and bare addresses. All else is text.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator

from docutils import nodes
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from myst_parser.config.main import MdParserConfig
from myst_parser.mdit_to_docutils.base import DocutilsRenderer

RULES = ["code", "list", "backticks", "newline", "linkify"]
PART = re.compile(r"(Args|Attributes|Raises|Returns|Yields):")
ENTRY = re.compile(r"(\*{0,2}[A-Za-z][\w, *]*): ?(.*)")
# A name in backticks, as in `Attention.forward` or `build_native()`.
NAME = re.compile(r"([A-Za-z_][\w.]*)(?:\(\))?")
FILE = re.compile(r"(fbt/[\w/]+)\.(?:py|cpp)")


def parts(text: str) -> Iterator[tuple[str, str]]:
    """Cut a docstring at the headings of Google's style: ("", prose) and ("Args", what is indented below)."""
    title, lines = "", list[str]()
    for line in text.splitlines():
        heading = PART.fullmatch(line)
        if heading or (title and line and not line.startswith(" ")):
            yield title, textwrap.dedent("\n".join(lines)).strip("\n")
            title, lines = "", []
        if heading:
            title = heading[1]
        else:
            lines.append(line)
    yield title, textwrap.dedent("\n".join(lines)).strip("\n")


def entries(text: str) -> Iterator[tuple[str, str]]:
    """The names and descriptions below "Args"; a description goes on where lines are indented."""
    name, lines = "", list[str]()
    for line in text.splitlines():
        entry = ENTRY.fullmatch(line)
        if entry:
            if name:
                yield name, "\n".join(lines)
            name, lines = entry[1], [entry[2]]
        else:
            lines.append(line.strip())
    yield name, "\n".join(lines)


def prose(text: str, document: nodes.document) -> list[nodes.Node]:
    """Text with the little of Markdown that the head of this module names."""
    held = nodes.container()
    markdown = MarkdownIt("zero", {"linkify": True}, renderer_cls=DocutilsRenderer).enable(RULES)
    markdown.use(dollarmath_plugin, allow_space=False, allow_digits=False)
    if markdown.linkify is not None:
        markdown.linkify.set({"fuzzy_link": False, "fuzzy_email": False})
    markdown.options.update({"myst_config": MdParserConfig(), "document": document, "current_node": held})
    markdown.render(re.sub(r"::$", ":", text, flags=re.MULTILINE))
    return held.children


def note(text: str, document: nodes.document, address: Callable[[str], str | None]) -> list[nodes.Node]:
    """A docstring or a comment as nodes of a page.

    Args:
        text: what is written.
        document: the page.
        address: where a name in backticks leads, if it leads anywhere.
    """
    made: list[nodes.Node] = []
    for title, body in parts(text):
        if title:
            made.append(nodes.paragraph("", title, classes=["fbt-label"]))
        if title in ("Args", "Attributes", "Raises"):
            items = [
                nodes.definition_list_item(
                    "",
                    nodes.term("", "", nodes.literal("", name)),
                    nodes.definition("", *prose(description, document)),
                )
                for name, description in entries(body)
            ]
            made.append(nodes.definition_list("", *items))
        else:
            made += prose(body, document)
    for literal in [found for node in made for found in node.findall(nodes.literal)]:
        name = NAME.fullmatch(literal.astext())
        leads_to = address(name[1]) if name and not isinstance(literal.parent, nodes.term) else None
        if leads_to is not None:
            literal.replace_self(nodes.reference("", "", literal.deepcopy(), internal=True, refuri=leads_to))
    for paragraph in [found for node in made for found in node.findall(nodes.paragraph)]:
        for text in [child for child in paragraph.children if isinstance(child, nodes.Text)]:
            paragraph.replace(text, [*_with_files(str(text), address)])
    return made


def _with_files(text: str, address: Callable[[str], str | None]) -> Iterator[nodes.Node]:
    """Text in which the names of files, such as fbt/stack.py, lead to their pages."""
    end = 0
    for file in FILE.finditer(text):
        leads_to = address(file[1].replace("/", ".").removesuffix(".__init__"))
        if leads_to is not None:
            yield nodes.Text(text[end : file.start()])
            yield nodes.reference("", file[0], internal=True, refuri=leads_to)
            end = file.end()
    yield nodes.Text(text[end:])
