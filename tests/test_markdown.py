"""The chapters' prose, rendered: nothing is left over as raw markup where a notebook is opened."""

import re

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from notebooks import chapters, read

# CommonMark with tables and mathematics between dollars is what Jupyter, Colab and GitHub have in common.
PARSER = MarkdownIt("commonmark").enable("table")
PARSER.use(dollarmath_plugin, allow_space=False, allow_digits=False)
# Escaped characters stay apart: \( is a parenthesis here, and mathematics to some viewers.
PARSER.disable("text_join")
TAGS = re.compile(r"</?(?:details|summary|br|sub|sup|kbd)>")
# What text must not hold once it is rendered: it would have become something else if it were right.
LEFT = re.compile(
    r"\*\*|__|~~"  # emphasis that did not close, or that CommonMark does not have
    r"|\$|\\[a-zA-Z]"  # mathematics that did not close, or without dollars
    r"|`|\]\(|\]\[|!\[|\[\^"  # code, links, pictures and footnotes
    r"|^:::|^%|^\+\+\+|\{|\}|^\([\w-]+\)="  # directives, roles, comments and targets of MyST
    r"|^\||^#|<",  # tables without a heading, headings without a space, other HTML
    re.MULTILINE,
)


def leftovers(source: str) -> list[str]:
    """The parts of a markdown cell that would be seen as they are written."""
    found = []
    for token in tokens(PARSER.parse(source)):
        if token.type in ("text", "html_inline", "html_block"):
            text = TAGS.sub("", token.content)
            found += [text[max(0, m.start() - 30) : m.end() + 30] for m in LEFT.finditer(text)]
        if token.markup in ("\\(", "\\["):
            found.append(token.markup)
        if token.type == "fence" and not re.fullmatch(r"\w*", token.info):
            found.append(f"```{token.info}")
        if token.type == "math_inline" and "\n" in token.content:
            found.append(f"${token.content}$")
    return found + uneven_rows(source)


def tokens(nested: list[Token]) -> list[Token]:
    return [inner for token in nested for inner in (token, *tokens(token.children or []))]


def uneven_rows(source: str) -> list[str]:
    """Rows of tables with other columns than their heading: a bar inside mathematics cuts a cell in two."""
    lines, found = source.splitlines(), []
    for token in PARSER.parse(source):
        if token.type == "table_open":
            rows = [re.sub(r"\\\|", "", line).strip().strip("|") for line in lines[slice(*token.map)]]
            found += [row for row in rows if row.count("|") != rows[0].count("|")]
    return found


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_markdown_is_what_every_viewer_renders(path):
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            assert not leftovers(cell.source), cell.source[:80]


@pytest.mark.parametrize(
    "source",
    [
        "```{note}\nText.\n```",
        ":::{note}\nText.\n:::",
        "See {ref}`there`.",
        "(target)=\n# Title",
        "% a comment",
        "+++",
        "A **bold word.",
        "It costs $5, or $x_1.",
        "An equation \\(x\\) inline.",
        "\\begin{align}\nx\n\\end{align}",
        '<div class="note">Text</div>',
        "<details>\n<summary>Solution</summary>\n**bold**\n</details>",
        "A footnote[^1].",
        "| a | b |\n| 1 | 2 |",
        "| a | b |\n|---|---|\n| $|x|$ | 2 |",
        "##Title",
        "A [link](two words).",
        "~~struck~~",
    ],
)
def test_raw_markup_is_noticed(source):
    assert leftovers(source)


@pytest.mark.parametrize(
    "source",
    [
        "# Title\n\n**Bold** and `{code}`, $\\frac{a}{b}$, [link](a.ipynb).\n\n$$\nx = \\{1\\}\n$$",
        "<details>\n<summary>Solution</summary>\n\n```python\nx = {1: '$'}\n```\n\n</details>",
        "| a | b |\n|---|---|\n| $\\lvert x \\rvert$ | 2 |",
    ],
)
def test_good_markdown_passes(source):
    assert not leftovers(source)
