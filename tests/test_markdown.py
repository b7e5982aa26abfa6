"""The chapters' prose renders without raw markup in Jupyter, Colab and on GitHub."""

import re

from chapters import chapters, read
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin

# All three render CommonMark, tables, and mathematics between dollars.
PARSER = MarkdownIt("commonmark").enable("table")
PARSER.use(dollarmath_plugin, allow_space=False, allow_digits=False)
# Keep escaped characters apart: \( is a parenthesis here, but mathematics elsewhere.
PARSER.disable("text_join")
TAGS = re.compile(r"</?(?:details|summary|br|sub|sup|kbd)>")
# Markup that is still there after rendering is wrong.
LEFT = re.compile(
    r"\*\*|__|~~"  # emphasis that is not closed
    r"|\$|\\[a-zA-Z]"  # mathematics without dollars
    r"|`|\]\(|\]\[|!\[|\[\^"  # code, links, pictures and footnotes
    # directives, roles, comments and targets of MyST
    r"|^:::|^%|^\+\+\+|\{|\}|^\([\w-]+\)="
    r"|^\||^#|<",  # tables without a heading, headings without a space, other HTML
    re.MULTILINE,
)


def leftovers(source: str) -> list[str]:
    """Return the parts of a markdown cell that would be shown as raw markup."""
    found = []
    for token in tokens(PARSER.parse(source)):
        if token.type in ("text", "html_inline", "html_block"):
            text = TAGS.sub("", token.content)
            found += [
                text[max(0, m.start() - 30) : m.end() + 30]
                for m in LEFT.finditer(text)
            ]
        if token.markup in ("\\(", "\\["):
            found.append(token.markup)
        if token.type == "fence" and not re.fullmatch(r"\w*", token.info):
            found.append(f"```{token.info}")
        if token.type == "math_inline" and "\n" in token.content:
            found.append(f"${token.content}$")
    return found + uneven_rows(source)


def tokens(nested: list[Token]) -> list[Token]:
    return [
        inner for token in nested for inner in (token, *tokens(token.children or []))
    ]


def uneven_rows(source: str) -> list[str]:
    """Return rows whose columns differ in number from their heading."""
    lines, found = source.splitlines(), []
    for token in PARSER.parse(source):
        if token.type == "table_open":
            rows = [
                re.sub(r"\\\|", "", line).strip().strip("|")
                for line in lines[slice(*token.map)]
            ]
            found += [row for row in rows if row.count("|") != rows[0].count("|")]
    return found


def test_chapters_have_no_raw_markup():
    found = {}
    for path in chapters():
        for cell in read(path).cells:
            if cell.cell_type == "markdown" and (left := leftovers(cell.source)):
                found[path.stem, cell.source[:60]] = left
    assert not found


RAW = [
    "```{note}\nText.\n```",
    ":::{note}\nText.\n:::",
    "See {ref}`there`.",
    "A number: {{ gain }}.",
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
]
GOOD = [
    "# Title\n\n**Bold** and `{code}`, $\\frac{a}{b}$, [link](a.ipynb).\n\n$$\nx = \\{1\\}\n$$",
    "<details>\n<summary>Solution</summary>\n\n```python\nx = {1: '$'}\n```\n\n</details>",
    "| a | b |\n|---|---|\n| $\\lvert x \\rvert$ | 2 |",
]


def test_raw_markup_is_found_and_good_markup_is_not():
    assert not [source for source in RAW if not leftovers(source)]
    assert not [source for source in GOOD if leftovers(source)]
