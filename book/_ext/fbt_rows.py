"""A module cut into rows: notes, which are its docstrings and comments, and the code they are about."""

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

# What begins a part of a C++ file, among its comments: "// Small pieces -----".
RULED = re.compile(r"(.+?) -{3,}")


@dataclass
class Note:
    """A docstring or a comment: its lines and its text."""

    first: int
    last: int
    text: str


@dataclass
class Row:
    """Notes and the lines of code beside them; together the rows of a file hold each of its lines once.

    Attributes:
        heading: the definition whose section begins here, or the title of a part of a C++ file.
        notes: in the order of their lines.
        code: the numbers of the lines.
    """

    heading: Definition | str | None = None
    notes: list[Note] = field(default_factory=list)
    code: list[int] = field(default_factory=list)


def docstrings(module: Module) -> dict[int, Note]:
    """The docstrings that stand on lines of their own, by their first lines."""
    found = {}
    for node in ast.walk(module.tree):
        text = ast.get_docstring(node) if isinstance(node, ast.Module | Named) else None
        if text is not None:
            written = node.body[0]  # type: ignore[attr-defined]  # where a docstring is
            before = module.lines[written.lineno - 1].encode()[: written.col_offset]
            after = module.lines[written.end_lineno - 1].encode()[written.end_col_offset :]
            if not (before + after).strip():
                found[written.lineno] = Note(written.lineno, written.end_lineno, text)
    return found


def comments(module: Module) -> dict[int, Note]:
    """The comments on lines of their own, by their first lines; lines that follow each other are one."""
    python = module.path.suffix == ".py"
    if python:
        tokens = tokenize.generate_tokens(io.StringIO(module.text).readline)
        starts = {token.start for token in tokens if token.type == tokenize.COMMENT}
        alone = [line for line, column in starts if not module.lines[line - 1][:column].strip()]
    else:
        alone = [n for n, line in enumerate(module.lines, start=1) if line.lstrip().startswith("//")]
    found: dict[int, Note] = {}
    note = None
    for number in sorted(alone):
        text = module.lines[number - 1].strip().removeprefix("#" if python else "//").removeprefix(" ")
        if note is not None and number == note.last + 1:
            note.last, note.text = number, f"{note.text}\n{text}"
        else:
            note = found[number] = Note(number, number, text)
    return found


def rows(module: Module) -> list[Row]:
    """Cut a module into rows: one begins at each definition, and at each comment that follows code."""
    described, remarks = docstrings(module), comments(module)
    heads = {made.first: made for made in module.definitions.values() if made.headed}
    # A function inside another has no section, but its docstring does not belong beside the code before it.
    functions = [node for node in ast.walk(module.tree) if isinstance(node, Function)]
    inside = [node for outer in functions for node in ast.walk(outer) if node is not outer]
    inner = {n.lineno for n in inside if isinstance(n, Function) and n.body[0].lineno in described}
    found, number = [Row()], 1
    while number <= len(module.lines):
        row, head = found[-1], heads.get(number)
        if head is not None and len(found) > 1 and row.heading is None and row.notes and not row.code:
            row.heading = head  # below the comment above it
        elif head is not None or number in inner:
            found.append(Row(head))
        remark = remarks.get(number)
        if remark is not None and any(module.lines[n - 1].strip() for n in found[-1].code):
            found.append(Row())
        note = remark or described.get(number)
        if note is None:
            found[-1].code.append(number)
        else:
            found[-1].notes.append(note)
        number = number + 1 if note is None else note.last + 1
    for row in found:
        ruled = RULED.fullmatch(row.notes[0].text) if row.notes and row.heading is None else None
        if ruled is not None:
            row.heading, row.notes[0].text = ruled[1], ""
    return found


def code_lines(module: Module, uses: list[Use], link: Callable[[str], tuple[str, str]]) -> dict[int, str]:
    """The lines of a module as HTML: coloured, numbered, each an anchor, names linked to their definitions.

    Args:
        module: what to show.
        uses: the names to link, in their order.
        link: the address and the title for a dotted name.

    Returns:
        By the line's number; the text of each is exactly the line and its end.
    """
    linked: dict[int, list[Use]] = {}
    for use in uses:
        linked.setdefault(use.line, []).append(use)
    pieces: list[list[str]] = [[]]
    column = 0
    for _, kind, value in get_lexer_for_filename(module.path.name).get_tokens_unprocessed(module.text):
        while kind not in STANDARD_TYPES:
            kind = kind.parent
        for place, text in enumerate(value.split("\n")):
            if place:
                pieces.append([])
                column = 0
            for part, name in _cut(text, column, linked.get(len(pieces), [])):
                pieces[-1].append(_coloured(part, STANDARD_TYPES[kind], link(name.dotted) if name else None))
            column += len(text)
    anchors: dict[int, str] = {}
    for made in module.definitions.values():
        if not made.headed:
            anchors[made.line] = anchors.get(made.line, "") + f'<span id="{made.dotted}"></span>'
    return {
        n: f'<span class="fbt-line" id="L{n}">{anchors.get(n, "")}<a class="fbt-number" href="#L{n}" '
        f'data-line="{n}" tabindex="-1" aria-hidden="true"></a>{"".join(parts)}\n</span>'
        for n, parts in enumerate(pieces[: len(module.lines)], start=1)
    }


def _cut(text: str, column: int, uses: list[Use]) -> Iterator[tuple[str, Use | None]]:
    """Cut a piece of a line, which begins at a column, where linked names begin and end."""
    done = 0
    for use in uses:
        start, stop = use.start - column, use.stop - column
        if start >= 0 and stop <= len(text):
            yield text[done:start], None
            yield text[start:stop], use
            done = stop
    yield text[done:], None


def _coloured(text: str, style: str, link: tuple[str, str] | None) -> str:
    """A piece of code as HTML, in the colour of its kind."""
    shown = html.escape(text)
    if link is not None:
        address, title = map(html.escape, link)
        shown = f'<a href="{address}" title="{title}">{shown}</a>'
    return f'<span class="{style}">{shown}</span>' if style and text.strip() else shown
