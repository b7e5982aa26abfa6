"""The built pages are complete and need no network."""

import re
from collections import Counter
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import build_book
import pytest
from bs4 import BeautifulSoup
from drawings import framed_svg
from fbt_math import mathml
from fbt_weight import in_use, looks_first
from repo import ROOT
from sphinx.errors import ExtensionError
from test_languages import LANGUAGES

HTML = build_book.HTML
# Attributes that make a browser fetch something; a link waits for a click.
FETCHED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src",),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "link": ("href",),
    "image": ("href",),
}
NOT_FETCHED = {
    "canonical",
    "next",
    "prev",
    "index",
    "search",
    "genindex",
    "author",
    "license",
    "help",
}
CHAPTER_PAGES = sorted((HTML / "book").glob("*.html"))


@cache
def soup(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(page: Path) -> frozenset[str]:
    return frozenset(element["id"] for element in soup(page).find_all(id=True))


def pages() -> list[Path]:
    """Return every page of the book; _static has the theme's templates."""
    return sorted(
        page for page in HTML.rglob("*.html") if "_static" not in page.parts
    )


# Names of XML namespaces, which are not fetched.
XML_NAMES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def fetched(page: Path) -> list[str]:
    """Return the addresses that a page's elements fetch."""
    return [
        element[attribute]
        for name, attributes in FETCHED.items()
        for element in soup(page).find_all(name)
        for attribute in attributes
        if element.get(attribute)
        and not (name == "link" and NOT_FETCHED & set(element.get("rel", [])))
    ]


def test_pages_are_built_and_up_to_date():
    assert CHAPTER_PAGES, "there is no book: run `make book` first"
    assert build_book.STAMP.exists(), "the last build did not finish: run `make book`"
    assert build_book.STAMP.read_text() == build_book.book_key(), (
        "the pages are older than their sources: run `make book`"
    )


def test_every_source_has_its_page():
    sources = {
        path.stem
        for kind in ("*.md", "*.ipynb")
        for path in (ROOT / "book").glob(kind)
    }
    assert {page.stem for page in CHAPTER_PAGES} == sources


def test_root_page_links_to_the_start_page():
    assert "book/index.html" in (HTML / "index.html").read_text(encoding="utf-8")


def test_pages_fetch_nothing_from_the_network():
    outside = re.compile("(?:https?:|wss?:)?//|https?:|wss?:")
    imported = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^)\s]+)")
    remote = []
    for page in pages():
        urls = list(filter(outside.match, fetched(page)))
        for script in soup(page).find_all("script", src=False):
            in_script = re.findall(r"https?://[^\s\"'\\)]+", script.get_text())
            urls += set(in_script) - XML_NAMES
        styles = [style.get_text() for style in soup(page).find_all("style")]
        styles += [element["style"] for element in soup(page).find_all(style=True)]
        urls += imported.findall("\n".join(styles))
        remote += [(page.name, url) for url in urls]
    for sheet in HTML.rglob("*.css"):
        urls = imported.findall(sheet.read_text(encoding="utf-8"))
        remote += [(sheet.name, url) for url in urls]
    assert not remote


def test_local_files_that_pages_fetch_exist():
    missing = set()
    for page in pages():
        for address in map(urlsplit, fetched(page)):
            local = address.path and not address.scheme and not address.netloc
            if local and not (page.parent / unquote(address.path)).exists():
                missing.add((page.name, address.path))
    assert not missing


def test_links_inside_the_book_have_targets():
    broken = set()
    for page in pages():
        for link in soup(page).find_all("a", href=True):
            address = urlsplit(link["href"])
            if address.scheme or address.netloc:
                continue
            path, anchor = unquote(address.path), unquote(address.fragment)
            target = (page.parent / path).resolve() if path else page
            is_page = target.suffix == ".html" and target.exists()
            if not target.exists() or (
                anchor and is_page and anchor not in anchors(target)
            ):
                broken.add((page.name, link["href"]))
    assert not broken


def test_ids_of_figures_are_unique():
    # The theme repeats its search field and its theme button for narrow windows.
    for page in CHAPTER_PAGES:
        ids = Counter(element["id"] for element in soup(page).find_all(id=True))
        repeated = [name for name, count in ids.items() if count > 1]
        figures = [name for name in repeated if name.startswith(("svg", "fig-"))]
        assert not figures, page.stem


def test_pictures_have_alt_text():
    wrong = []
    for page in CHAPTER_PAGES:
        images = soup(page).find_all("img")
        wrong += [
            (page.stem, str(image))
            for image in images
            if not image.get("alt", "").strip()
        ]
        for drawing in soup(page).select(".fbt-figure > svg"):
            labelled = drawing["role"] == "img" and drawing["aria-label"].strip()
            if not labelled or "#757575" in str(drawing):
                wrong.append((page.stem, drawing.get("id")))
    assert not wrong


def test_pages_have_a_title_a_language_and_a_description():
    wrong = []
    for page in CHAPTER_PAGES:
        parsed = soup(page)
        counts = [
            len(parsed.select(selector))
            for selector in ('meta[name="description"]', "article h1")
        ]
        language, title = parsed.html["lang"], parsed.title.get_text().strip()
        if (
            counts != [1, 1]
            or language != LANGUAGES.get(page.stem, "en")
            or not title
        ):
            wrong.append(page.stem)
    assert not wrong


def test_pages_show_no_raw_markup_or_substitutions():
    raw = re.compile(r"```|mystnb|<details>|\{note\}|colab-badge|\{\{ [\w.]+ \}\}")
    matches = {
        page.stem: raw.findall(soup(page).select_one("article").get_text())
        for page in CHAPTER_PAGES
    }
    assert not {page: raw for page, raw in matches.items() if raw}


def test_mathematics_is_mathml_with_its_tex():
    formulas = {page.stem: soup(page).select(".math") for page in CHAPTER_PAGES}
    assert sum(map(len, formulas.values())) > 500
    for page, found in formulas.items():
        for formula in found:
            (tex,) = formula.select("math > semantics > annotation")
            assert tex["encoding"] == "application/x-tex" and tex.get_text(), page
            assert not formula.select("merror, [mathcolor]"), (page, tex.get_text())


def test_formulas_keep_primes_brackets_numbers_and_references():
    (prime,) = mathml([(r"s'_{t'}", False)])
    letter = "<mrow><mi>s</mi><mo>′</mo></mrow>"
    assert f"<msub>{letter}<mrow>" in prime.replace("<mrow><mrow>", "<mrow>")
    (bracket,) = mathml([(r"\big( x", False)])
    assert 'style="font-size: 1.2em">(' in bracket
    reference, equation = mathml(
        [
            (r"\eqref{eq:loss}", False),
            (r"\begin{align}a &= b\label{eq:loss}\end{align}", True),
        ],
        "equation-",
    )
    assert 'href="#equation-eq:loss">(1)' in reference
    assert 'id="equation-eq:loss"' in equation
    with pytest.raises(ValueError, match=r"'x\^' must be a formula in TeX"):
        mathml([("y", False), ("x^", False)])


def test_style_sheets_keep_rules_for_classes_in_use():
    style = (
        '@charset "UTF-8";.a,.b{x:1}.b .c{y:2}p:not(.z){w:3}'
        '@media print{.a{content:"}"}.c{v:4}}@font-face{src:url(Awesome)}'
    )
    assert in_use(style, {"a"}) == (
        '@charset "UTF-8";.a{x:1}p:not(.z){w:3}@media print{.a{content:"}"}}'
    )


def test_script_that_looks_first_must_have_a_place_for_it():
    script = (
        'document.querySelectorAll(["pre",".b"].join(", "))'
        ".forEach(e=>{e.tabIndex=e.scrollWidth>e.clientWidth?0:-1})"
    )
    assert "[e,e.scrollWidth>e.clientWidth?0:-1]" in looks_first(script)
    for wrong in ("", 2 * script):
        with pytest.raises(ExtensionError, match=r"tab stops in [02] places"):
            looks_first(wrong)


SVG = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
  width="10pt" viewBox="0 0 10 10" version="1.1">
 <metadata>about</metadata>
 <defs><style type="text/css">*{stroke-linejoin: round}</style>
 <path id="glyph" d="M0 0"/></defs>
 <g clip-path="url(#clip)" style="fill: #757575; stroke: #0072b2">
  <use xlink:href="#glyph" fill="#757575"/></g>
 <clipPath id="clip"><rect width="3" height="5"/></clipPath>
</svg>"""


def test_figures_have_the_text_colour_and_unique_ids():
    figure = BeautifulSoup(
        framed_svg(SVG, "svg7", 'Two "lines" & a <dot>'), "html.parser"
    ).svg
    assert figure["role"] == "img"
    assert figure["aria-label"] == 'Two "lines" & a <dot>'
    assert figure.g["style"] == "fill: currentColor; stroke: #0072b2"
    assert figure.g["clip-path"] == "url(#svg7-clip)"
    assert figure.use["href"] == "#svg7-glyph"
    assert figure.use["fill"] == "currentColor"
    assert {element["id"] for element in figure.find_all(id=True)} == {
        "svg7-glyph",
        "svg7-clip",
    }
    assert figure.style.get_text() == "#svg7 *{stroke-linejoin: round}"
    assert figure.metadata is None
