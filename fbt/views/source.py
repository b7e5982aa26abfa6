"""Display the source of installed definitions, so that pages need no copies."""

import ast
import html
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

from fbt._checks import check_bool, describe
from fbt._repository import BRANCH, PLACEHOLDER, URL

PACKAGE = Path(__file__).parents[1]
# JupyterLab would break lines inside words; its colours fit its theme.
LOOK = """<style>
.fbt-source [class^="k"], .fbt-source .ow {
  color: var(--jp-mirror-editor-keyword-color, inherit); font-weight: bold }
.fbt-source [class^="s"] { color: var(--jp-mirror-editor-string-color, inherit) }
.fbt-source [class^="c"] {
  color: var(--jp-mirror-editor-comment-color, inherit); font-style: italic }
.fbt-source [class^="m"] { color: var(--jp-mirror-editor-number-color, inherit) }
</style>"""
SCROLLING = "overflow-x: auto; white-space: pre; word-break: normal"


def _without_docstring(code: str, module: bool) -> str:
    """Return the code without the docstring of its module or outermost definition."""
    tree = ast.parse(code)
    body = tree if module else tree.body[0]
    if (
        not isinstance(body, ast.Module | ast.ClassDef | ast.FunctionDef)
        or ast.get_docstring(body) is None
    ):
        return code
    first, lines = body.body[0], code.splitlines()
    return "\n".join(lines[: first.lineno - 1] + lines[first.end_lineno :])


class Source:
    """The source of a definition; notebooks display it with a link to its lines.

    Attributes:
        code: the text of the definition.
        where: its location in the repository, such as "fbt/stack.py, lines 20 to 41".
    """

    def __init__(self, obj: Any, docstring: bool = True) -> None:
        lines, first = inspect.getsourcelines(obj)
        first = max(first, 1)  # a module starts at line 0
        code = textwrap.dedent("".join(lines)).rstrip()
        self.code = (
            code
            if docstring
            else _without_docstring(code, inspect.ismodule(obj)).strip()
        )
        path = Path(inspect.getsourcefile(obj) or "").resolve()
        is_inside = path.is_relative_to(PACKAGE)
        name = (
            path.relative_to(PACKAGE.parent) if is_inside else Path(path.name)
        ).as_posix()
        last = first + len(lines) - 1
        self.where = f"{name}, lines {first} to {last}"
        link = f"{URL}/blob/{BRANCH}/{name}#L{first}-L{last}"
        self.link = link if is_inside else None

    def _repr_markdown_(self) -> str:
        location = (
            f"[{self.where}]({self.link})"
            if self.link
            else re.sub(r"([][<>&()`*\\])", r"\\\1", self.where)
        )
        # Longer than any run of backticks in the code, which would end it.
        fence = max([*re.findall("`{3,}", self.code), "``"], key=len) + "`"
        return f"{location}\n\n{fence}python\n{self.code}\n{fence}"

    def _repr_html_(self) -> str:
        # IPython, which calls this, needs the package too.
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer

        where = html.escape(self.where)
        # The book leads links without an address to its own pages; a notebook cannot.
        if self.link and f"/{PLACEHOLDER}/" not in self.link:
            where = f'<a href="{html.escape(self.link)}">{where}</a>'
        code = highlight(self.code, PythonLexer(), HtmlFormatter(nowrap=True))
        block = f'<pre style="{SCROLLING}">{code}</pre>'
        return f'{LOOK}<div class="fbt-source"><p>{where}</p>{block}</div>'

    def __repr__(self) -> str:
        return f"# {self.where}\n{self.code}"


def show(obj: Any, *, docstring: bool = True) -> Source:
    """Display the source of a class, function, method or module.

    Args:
        obj: the object to show; a property shows its getter.
        docstring: whether to include the docstring.

    Returns:
        A `Source`, which is displayed as the last expression of a cell; `.code` is
        the text.

    Raises:
        TypeError: if `obj` has no Python source, such as a number or a built-in.
    """
    check_bool("docstring", docstring)
    if isinstance(obj, property):
        obj = obj.fget
    try:
        return Source(inspect.unwrap(obj) if callable(obj) else obj, docstring)
    except (TypeError, OSError) as error:
        raise TypeError(
            "obj must be a class, function, method or module written in Python, "
            f"got {describe(obj)}"
        ) from error
