"""The annotated source is complete, and its links work in both directions."""

import ast
import re
from copy import copy
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import pytest
from bs4 import BeautifulSoup, Tag
from build_book import HTML
from chapters import chapters, read
from docutils.core import publish_from_doctree
from docutils.frontend import get_default_settings
from docutils.parsers.rst import Parser
from docutils.utils import new_document
from fbt_imports import drawing
from fbt_modules import Definition, Module, Package
from fbt_notes import note
from fbt_rows import code_lines, rows
from fbt_search import INDEX
from repo import ROOT

PACKAGE = Package(ROOT)
API = HTML / "book" / "api.html"
MODULES = list(PACKAGE.modules.values())
words = partial(re.findall, r"[A-Za-z0-9]+")


@cache
def soup(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def article(module: Module) -> Tag:
    return soup(HTML / f"{module.docname}.html").select_one("article")


def follow(link: Tag, page: Path) -> tuple[Path, Tag]:
    """Return the page and the element that a link leads to."""
    address, _, anchor = link["href"].partition("#")
    to = (page.parent / address).resolve() if address else page
    element = soup(to).find(id=anchor)
    assert element is not None, link["href"]
    return to, element


# Completeness


def note_lines(page: Tag) -> list[int]:
    """Return the line numbers of a page's notes."""
    return [
        int(mark["id"].removeprefix("L"))
        for mark in page.select(".fbt-note > span[id]")
    ]


def test_every_line_appears_once_and_in_order():
    wrong = []
    for module in MODULES:
        lines = article(module).select(".fbt-line")
        code = [int(line["id"].removeprefix("L")) for line in lines]
        notes = note_lines(article(module))
        is_ordered = code == sorted(code) and notes == sorted(notes)
        is_complete = sorted(code + notes) == list(range(1, len(module.lines) + 1))
        is_exact = [line.get_text() for line in lines] == [
            f"{module.lines[number - 1]}\n" for number in code
        ]
        if not (is_ordered and is_complete and is_exact):
            wrong.append(module.name)
    assert not wrong


def test_notes_have_all_words_of_docstrings_and_comments():
    wrong = []
    for module in MODULES:
        # A ruled line of a C++ file is shown as the heading of its part.
        selector = ".fbt-note, h2" if module.path.suffix == ".cpp" else ".fbt-note"
        shown = [copy(part) for part in article(module).select(selector)]
        for part in shown:
            for extra in part.select(".fbt-ways-back, .fbt-neighbours, .headerlink"):
                extra.decompose()
            for formula in part.select("math"):
                formula.replace_with(formula.select_one("annotation").get_text())
            for block in part.select("dt, dd, p, li"):
                block.append(" ")
        texts = [
            re.sub(r"\\(begin|end)\{aligned\}", "", part.get_text()) for part in shown
        ]
        lines = [
            re.sub(r'^\s*r?"""', "", module.lines[number - 1])
            for number in note_lines(article(module))
        ]
        # The theme shortens addresses on GitHub.
        written = re.sub(
            r"https://github\.com/(?=[\w-]+/[\w-]+)", "", " ".join(lines)
        )
        if words(" ".join(texts)) != words(written):
            wrong.append(module.name)
    assert not wrong


def test_modules_have_title_description_headings_and_navigation():
    wrong = []
    for module in MODULES:
        page, path = soup(HTML / f"{module.docname}.html"), module.path.as_posix()
        about = words(page.select_one('meta[name="description"]')["content"])
        titles = [
            heading.get_text().rstrip("#") for heading in page.select("article h1")
        ]
        levels = [
            int(heading.name[1])
            for heading in article(module).select("h1, h2, h3, h4")
        ]
        checks = {
            "title": page.title.get_text().startswith(path) and titles == [path],
            "description": about[:5] == words(module.docstring)[:5],
            "levels": all(below <= above + 1 for above, below in pairwise(levels)),
            "navigation": page.select("a.left-prev")
            and page.select(".bd-sidebar-primary a.current")[-1].get_text() == path,
        }
        wrong += [
            (module.name, name) for name, passed in checks.items() if not passed
        ]
    assert not wrong


def test_search_index_contains_every_module():
    index = (HTML / "_static" / INDEX).read_text(encoding="utf-8")
    assert not [
        module.docname
        for module in PACKAGE.modules.values()
        if f'["{module.docname}"' not in index
    ]


# Links


def test_api_entries_and_definitions_link_to_each_other():
    entries = soup(API).select("dl:not(.attribute) > dt.sig[id]")
    assert len(entries) > 60
    for entry in entries:
        page, place = follow(entry.select_one("a.viewcode-link"), API)
        name = entry["id"].rpartition(".")[2]
        assert re.search(
            rf"\b(def|class) {name}\b", place.select_one("pre").get_text()
        ), entry["id"]
        back = [
            follow(link, page)[1]
            for link in place.select_one(".fbt-note").select(
                ".fbt-ways-back a[href*='#']"
            )
        ]
        assert any(to.get("id") == entry["id"] for to in back), entry["id"]


def shown_in(path: Path) -> list[str]:
    """Return the last part of the names that a chapter shows with fbt.show."""
    names = []
    for cell in read(path).cells:
        if cell.cell_type == "code" and "fbt.show(" in cell.source:
            last = ast.parse(cell.source).body[-1]
            call = last.value if isinstance(last, ast.Expr) else None
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "fbt.show":
                names.append(ast.unparse(call.args[0]).rpartition(".")[2])
    return names


def test_definitions_shown_in_chapters_and_annotated_lines_link_to_each_other():
    wrong = []
    for path in chapters():
        page = HTML / "book" / f"{path.stem}.html"
        links = [
            link
            for link in soup(page).select("article a")
            if link.get_text().endswith(", annotated")
        ]
        if [link["href"].rpartition(".")[2] for link in links] != shown_in(path):
            wrong.append((path.stem, shown_in(path)))
        for link in links:
            to, place = follow(link, page)
            first = re.search(r"lines (\d+) to", link.get_text())[1]
            back = place.select_one(".fbt-note").select(".fbt-ways-back a[href*='#']")
            is_mutual = page in [follow(link, to)[0] for link in back]
            if place.select_one(".fbt-line")["id"] != f"L{first}" or not is_mutual:
                wrong.append((path.stem, link["href"]))
    assert not wrong


def test_map_of_equations_links_to_definitions():
    page = HTML / "book" / "differences.html"
    table = soup(page).select("#from-equation-to-code-to-test tbody tr")
    assert len(table) >= 15
    for row in table:
        for link in row.select("td")[1].select("a"):
            heading = follow(link, page)[1].select_one("h2, h3").get_text()
            assert heading.rstrip("#") == link.get_text()


# Names

HIGH = """from typing import TYPE_CHECKING

import fbt
from fbt import aid

if TYPE_CHECKING:
    from fbt.low import Base


class Own(fbt.Base):
    # What it takes.
    @property
    def run(self) -> "Base":
        return super().run() + aid(self.field)
"""
LOW = '''LIMIT = 3


class Base:
    field: int = 0

    def __init__(self) -> None:
        self.run()

    def run(self) -> int:
        def inner() -> int:
            """About the inner one."""
            return LIMIT
        return inner()


def helper(LIMIT: int) -> int:
    return LIMIT
'''


@pytest.fixture
def small(tmp_path):
    """A package of three modules, one importing the next."""
    (tmp_path / "fbt").mkdir()
    for name, text in {
        "__init__": "from fbt.low import Base, helper as aid\n",
        "low": LOW,
        "high": HIGH,
    }.items():
        (tmp_path / "fbt" / f"{name}.py").write_text(text)
    return Package(tmp_path)


def link_targets(package: Package, name: str) -> dict[tuple[int, str], str]:
    """Return what the names in a module's code link to, by line."""
    module = package.modules[name]
    targets = {}
    for use in module.uses(package):
        text = module.lines[use.line - 1][use.start : use.stop]
        targets[use.line, text] = package.resolve(use.dotted).name
    return targets


def test_names_link_through_imports_bases_and_quoted_types(small):
    assert link_targets(small, "fbt.high") == {
        (4, "fbt"): "fbt",
        (4, "aid"): "helper",
        (7, "low"): "fbt.low",
        (7, "Base"): "Base",
        (10, "fbt"): "fbt",
        (10, "Base"): "Base",
        (13, "Base"): "Base",
        (14, "run"): "Base.run",
        (14, "aid"): "helper",
        (14, "field"): "Base.field",
    }


def test_local_names_are_not_linked(small):
    assert link_targets(small, "fbt.low") == {
        (8, "run"): "Base.run",
        (13, "LIMIT"): "LIMIT",
    }


def test_imports_for_type_checking_are_listed(small):
    imports = small.imports(small.modules["fbt.high"])
    assert [module.name for module in imports] == ["fbt", "fbt.low"]


def test_users_of_a_definition_exclude_reexports(small):
    assert [module.name for module in small.users("fbt.low.helper")] == ["fbt.high"]
    assert [module.name for module in small.users("fbt.low.helper")] == ["fbt.high"]


def test_rows_begin_at_definitions_and_at_comments_after_code(small):
    low = rows(small.modules["fbt.low"])
    headings = [
        row.heading.name if isinstance(row.heading, Definition) else None
        for row in low
    ]
    assert headings == [None, "Base", "Base.run", None, "helper"]
    assert [row.code[0] for row in low] == [1, 4, 10, 11, 17]
    (*_, last) = rows(small.modules["fbt.high"])
    assert (last.heading.name, last.notes[0].text) == ("Own.run", "What it takes.")


def test_picture_has_an_arc_per_import_that_no_other_implies(small):
    modules = [small.modules[name] for name in ("fbt.high", "fbt", "fbt.low")]
    picture = BeautifulSoup(drawing(small, modules), "html.parser")
    assert [text.get_text() for text in picture.select("text")] == [
        module.path.as_posix() for module in modules
    ]
    assert [len(group.select("path")) for group in picture.select("g")] == [1, 1, 0]


# Hostile text

HOSTILE = r"""<script>alert(1)</script> & <b>bold</b> <!-- hidden

[link](javascript:alert(1)) ![picture](https://example.org/x.png)
`<img src=x onerror=alert(1)>` {raw}`<i>`

    <script>alert(2)</script>

```{raw} html
<i>raw</i>
```

# No heading

$\text{</span><script>alert(3)</script>}$

Args:
    name: <i>not slanted</i>.
"""


def test_markup_in_notes_is_shown_as_text():
    document = new_document("evil.py", get_default_settings(Parser()))
    document += note(HOSTILE, document, lambda name: None)
    settings = {"math_output": "mathjax", "output_encoding": "unicode"}
    written = publish_from_doctree(
        document, writer_name="html5", settings_overrides=settings
    )
    page = BeautifulSoup(written, "html.parser").main
    assert not page.select("script, b, i, img, h1, h2, h3, a[href^=javascript]")
    for text in (
        "<script>alert(1)</script>",
        "<b>bold</b>",
        "<!-- hidden",
        "# No heading",
        "<i>not slanted</i>",
    ):
        assert text in page.get_text()


def test_markup_in_code_is_shown_as_text():
    text = (
        "TITLE = '<script>alert(1)</script>&amp;'\n\n\ndef f():\n    return TITLE\n"
    )
    module = Module(Path("fbt/evil.py"), text)
    package = Package(Path("nowhere"))
    package.modules = {"fbt.evil": module}
    lines = code_lines(
        module, module.uses(package), lambda dotted: ('"><script>', '"><script>')
    )
    page = BeautifulSoup(f"<pre>{''.join(lines.values())}</pre>", "html.parser")
    assert not page.select("script")
    assert page.get_text() == text
    assert page.select_one("#L5 a[title]")["href"] == '"><script>'
