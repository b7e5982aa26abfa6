"""A module as rows: docstrings and comments, and the code beside them."""

from __future__ import annotations

import ast
import html
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fbt_modules import Definition, Function, Module, Named, Use
from pygments.lexers import get_lexer_for_filename
from pygments.token import STANDARD_TYPES

# A comment that begins a part of a C++ file: "// Forward -----".
RULED = re.compile(r"(.+?) -{3,}")


@dataclass
class Note:
    """A docstring or a comment: its lines and its text."""

    first: int
    last: int
    text: str


@dataclass
class Row:
    """Notes and the lines of code beside them; each line of a file is in one row.

    Attributes:
        heading: the definition whose section begins here, or the title of a part of a
            C++ file.
        notes: in the order of their lines.
        code: the line numbers.
    """

    heading: Definition | str | None = None
    notes: list[Note] = field(default_factory=list)
    code: list[int] = field(default_factory=list)


def docstrings(module: Module) -> dict[int, Note]:
    """Return the docstrings that have lines of their own, by first line."""
    notes = {}
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Module | Named):
            continue
        text = ast.get_docstring(node)
        if text is not None:
            statement = node.body[0]
            first, last = statement.lineno, statement.end_lineno or 0
            before = module.lines[first - 1].encode()[: statement.col_offset]
            after = module.lines[last - 1].encode()[statement.end_col_offset :]
            if not (before + after).strip():
                notes[first] = Note(first, last, text)
    return notes


def comments(module: Module) -> dict[int, Note]:
    """Return the comments that have lines of their own, by first line.

    Comments on consecutive lines are one note.
    """
    python = module.path.suffix == ".py"
    if python:
        tokens = tokenize.generate_tokens(io.StringIO(module.text).readline)
        starts = {token.start for token in tokens if token.type == tokenize.COMMENT}
        own_lines = [n for n, col in starts if not module.lines[n - 1][:col].strip()]
    else:
        lines = enumerate(module.lines, start=1)
        own_lines = [n for n, line in lines if line.lstrip().startswith("//")]
    notes: dict[int, Note] = {}
    note = None
    for number in sorted(own_lines):
        text = module.lines[number - 1].strip()
        text = text.removeprefix("#" if python else "//").removeprefix(" ")
        if note is not None and number == note.last + 1:
            note.last, note.text = number, f"{note.text}\n{text}"
        else:
            note = notes[number] = Note(number, number, text)
    return notes


def rows(module: Module) -> list[Row]:
    """Split a module into rows.

    A row begins at each definition, and at each comment that follows code.
    """
    described, remarks = docstrings(module), comments(module)
    heads = {
        definition.first: definition
        for definition in module.definitions.values()
        if definition.headed
    }
    # A nested function has no section, but its docstring does not belong beside the
    # code before it.
    functions = [node for node in ast.walk(module.tree) if isinstance(node, Function)]
    nested = [
        node for outer in functions for node in ast.walk(outer) if node is not outer
    ]
    inner = {
        node.lineno
        for node in nested
        if isinstance(node, Function) and node.body[0].lineno in described
    }
    result, number = [Row()], 1
    while number <= len(module.lines):
        row, head = result[-1], heads.get(number)
        is_comment = row.heading is None and row.notes and not row.code
        if head is not None and len(result) > 1 and is_comment:
            row.heading = head  # below the comment above it
        elif head is not None or number in inner:
            result.append(Row(head))
        remark = remarks.get(number)
        if remark is not None and any(
            module.lines[n - 1].strip() for n in result[-1].code
        ):
            result.append(Row())
        note = remark or described.get(number)
        if note is None:
            result[-1].code.append(number)
        else:
            result[-1].notes.append(note)
        number = number + 1 if note is None else note.last + 1
    for row in result:
        if row.notes and row.heading is None:
            ruled = RULED.fullmatch(row.notes[0].text)
            if ruled is not None:
                row.heading, row.notes[0].text = ruled[1], ""
    return result


def code_lines(
    module: Module, uses: list[Use], link: Callable[[str], tuple[str, str]]
) -> dict[int, str]:
    """Return the lines of a module as highlighted HTML.

    Lines are numbered, each is an anchor, and names link to their definitions.

    Args:
        module: the module.
        uses: the names to link, in their order.
        link: returns the address and the title for a dotted name.

    Returns:
        The HTML by line number; the text of each is exactly the line and its end.
    """
    uses_by_line: dict[int, list[Use]] = {}
    for use in uses:
        uses_by_line.setdefault(use.line, []).append(use)
    pieces: list[list[str]] = [[]]
    column = 0
    lexer = get_lexer_for_filename(module.path.name)
    for _, kind, value in lexer.get_tokens_unprocessed(module.text):
        while kind not in STANDARD_TYPES:
            kind = kind.parent
        for row, text in enumerate(value.split("\n")):
            if row:
                pieces.append([])
                column = 0
            for part, name in _cut(text, column, uses_by_line.get(len(pieces), [])):
                target = link(name.dotted) if name else None
                pieces[-1].append(_coloured(part, STANDARD_TYPES[kind], target))
            column += len(text)
    anchors: dict[int, str] = {}
    for definition in module.definitions.values():
        if not definition.headed:
            anchor = f'<span id="{definition.dotted}"></span>'
            anchors[definition.line] = anchors.get(definition.line, "") + anchor
    return {
        n: f'<span class="fbt-line" id="L{n}">{anchors.get(n, "")}'
        f'<a class="fbt-number" href="#L{n}" data-line="{n}" tabindex="-1" '
        f'aria-hidden="true"></a>{"".join(spans)}\n</span>'
        for n, spans in enumerate(pieces[: len(module.lines)], start=1)
    }


def _cut(text: str, column: int, uses: list[Use]) -> Iterator[tuple[str, Use | None]]:
    """Split a piece of a line, which begins at a column, at the linked names."""
    done = 0
    for use in uses:
        start, stop = use.start - column, use.stop - column
        if start >= 0 and stop <= len(text):
            yield text[done:start], None
            yield text[start:stop], use
            done = stop
    yield text[done:], None


def _coloured(text: str, style: str, link: tuple[str, str] | None) -> str:
    """Return a piece of code as HTML, in the colour of its kind."""
    shown = html.escape(text)
    if link is not None:
        address, title = map(html.escape, link)
        shown = f'<a href="{address}" title="{title}">{shown}</a>'
    return (
        f'<span class="{style}">{shown}</span>' if style and text.strip() else shown
    )
