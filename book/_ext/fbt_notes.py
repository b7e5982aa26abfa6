"""Docstrings and comments as part of a page.

The notes of a module are plain text that reads well in an editor, so only a small
part of Markdown is rendered: paragraphs, lists, `code`, $mathematics$, indented
blocks and bare web addresses, and the headings of Google's style. Everything else
stays text.
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


def sections(text: str) -> Iterator[tuple[str, str]]:
    """Split a docstring at the headings of Google's style.

    Yields:
        ("", prose), and for example ("Args", the text indented below "Args:").
    """
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
    """Yield the names and descriptions below "Args"; descriptions may span lines."""
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
    """Render text with the part of Markdown listed in the module's docstring."""
    container = nodes.container()
    markdown = MarkdownIt(
        "zero", {"linkify": True}, renderer_cls=DocutilsRenderer
    ).enable(RULES)
    markdown.use(dollarmath_plugin, allow_space=False, allow_digits=False)
    if markdown.linkify is not None:
        markdown.linkify.set({"fuzzy_link": False, "fuzzy_email": False})
    markdown.options.update(
        {
            "myst_config": MdParserConfig(),
            "document": document,
            "current_node": container,
        }
    )
    markdown.render(re.sub(r"::$", ":", text, flags=re.MULTILINE))
    return container.children


def note(
    text: str, document: nodes.document, address: Callable[[str], str | None]
) -> list[nodes.Node]:
    """Render a docstring or a comment as nodes of a page.

    Args:
        text: the docstring or comment.
        document: the page.
        address: returns where a name in backticks is defined, or None.
    """
    result: list[nodes.Node] = []
    for title, body in sections(text):
        if title:
            result.append(nodes.paragraph("", title, classes=["fbt-label"]))
        if title in ("Args", "Attributes", "Raises"):
            items = [
                nodes.definition_list_item(
                    "",
                    nodes.term("", "", nodes.literal("", name)),
                    nodes.definition("", *prose(description, document)),
                )
                for name, description in entries(body)
            ]
            result.append(nodes.definition_list("", *items))
        else:
            result += prose(body, document)
    for literal in [code for node in result for code in node.findall(nodes.literal)]:
        name = NAME.fullmatch(literal.astext())
        if name is None or isinstance(literal.parent, nodes.term):
            continue
        target = address(name[1])
        if target is not None:
            link = nodes.reference(
                "", "", literal.deepcopy(), internal=True, refuri=target
            )
            literal.replace_self(link)
    for paragraph in [p for node in result for p in node.findall(nodes.paragraph)]:
        for text in [
            node for node in paragraph.children if isinstance(node, nodes.Text)
        ]:
            paragraph.replace(text, [*_with_files(str(text), address)])
    return result


def _with_files(
    text: str, address: Callable[[str], str | None]
) -> Iterator[nodes.Node]:
    """Yield text in which file names, such as fbt/stack.py, link to their pages."""
    end = 0
    for file in FILE.finditer(text):
        target = address(file[1].replace("/", ".").removesuffix(".__init__"))
        if target is not None:
            yield nodes.Text(text[end : file.start()])
            yield nodes.reference("", file[0], internal=True, refuri=target)
            end = file.end()
    yield nodes.Text(text[end:])
