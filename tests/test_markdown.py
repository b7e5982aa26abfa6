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
# Markup that rendering has left.
RAW = re.compile(
    r"\*\*|__|~~"  # emphasis that is not closed
    r"|\$|\\[a-zA-Z]"  # mathematics without dollars
    r"|`|\]\(|\]\[|!\[|\[\^"  # code, links, pictures and footnotes
    # directives, roles, comments and targets of MyST
    r"|^:::|^%|^\+\+\+|\{|\}|^\([\w-]+\)="
    r"|^\||^#|<",  # tables without a heading, headings without a space, other HTML
    re.MULTILINE,
)


def raw_markup(source: str) -> list[str]:
    """Return the parts of a markdown cell that would be shown as raw markup."""
    raw = []
    for token in tokens(PARSER.parse(source)):
        if token.type in ("text", "html_inline", "html_block"):
            text = TAGS.sub("", token.content)
            raw += [
                text[max(0, match.start() - 30) : match.end() + 30]
                for match in RAW.finditer(text)
            ]
        if token.markup in ("\\(", "\\["):
            raw.append(token.markup)
        if token.type == "fence" and not re.fullmatch(r"\w*", token.info):
            raw.append(f"```{token.info}")
        if token.type == "math_inline" and "\n" in token.content:
            raw.append(f"${token.content}$")
    return raw + uneven_rows(source)


def tokens(nested: list[Token]) -> list[Token]:
    return [
        inner for token in nested for inner in (token, *tokens(token.children or []))
    ]


def uneven_rows(source: str) -> list[str]:
    """Return rows whose columns differ in number from their heading."""
    lines, uneven = source.splitlines(), []
    for token in PARSER.parse(source):
        if token.type == "table_open":
            rows = [
                re.sub(r"\\\|", "", line).strip().strip("|")
                for line in lines[slice(*token.map)]
            ]
            uneven += [row for row in rows if row.count("|") != rows[0].count("|")]
    return uneven


def test_chapters_have_no_raw_markup():
    raw = {}
    for path in chapters():
        for cell in read(path).cells:
            if cell.cell_type == "markdown" and (parts := raw_markup(cell.source)):
                raw[path.stem, cell.source[:60]] = parts
    assert not raw
