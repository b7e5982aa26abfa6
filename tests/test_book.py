"""The built pages (`make book`): complete, at home without a network, every link and picture in order."""

import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import build_book
import pytest
from bs4 import BeautifulSoup
from drawings import framed_svg
from repo import ROOT
from test_languages import LANGUAGES

HTML = build_book.HTML
# Attributes through which a page makes the browser fetch something; an anchor's href waits for a click.
FETCHED = [
    ("script", "src"),
    ("img", "src"),
    ("img", "srcset"),
    ("iframe", "src"),
    ("source", "src"),
    ("source", "srcset"),
]
FETCHED += [
    ("video", "src"),
    ("audio", "src"),
    ("embed", "src"),
    ("object", "data"),
    ("link", "href"),
    ("image", "href"),
]
NOT_FETCHED = {"canonical", "next", "prev", "index", "search", "genindex", "author", "license", "help"}
CHAPTER_PAGES = sorted((HTML / "book").glob("*.html"))
by_chapter = pytest.mark.parametrize("page", CHAPTER_PAGES, ids=lambda page: page.stem)


@cache
def soup(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(page: Path) -> frozenset[str]:
    return frozenset(element["id"] for element in soup(page).find_all(id=True))


def pages() -> list[Path]:
    """Every page of the book; _static holds the theme's templates, which are none."""
    return sorted(page for page in HTML.rglob("*.html") if "_static" not in page.parts)


# Names of kinds of elements, which look like addresses and which nothing fetches.
XML_NAMES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def outside(address: str) -> bool:
    return address.startswith(("http:", "https:", "//", "ws:", "wss:"))


def test_pages_are_built_and_up_to_date():
    assert CHAPTER_PAGES, "there is no book: run `make book` first"
    assert build_book.STAMP.exists(), "the last build did not finish: run `make book`"
    assert build_book.STAMP.read_text() == build_book.book_key(), (
        "the pages are older than their sources: run `make book`"
    )


def test_every_source_has_its_page():
    sources = {path.stem for kind in ("*.md", "*.ipynb") for path in (ROOT / "book").glob(kind)}
    assert {page.stem for page in CHAPTER_PAGES} == sources


def test_start_page_leads_into_the_book():
    assert "book/index.html" in (HTML / "index.html").read_text(encoding="utf-8")


def test_no_page_fetches_anything_from_outside():
    found = []
    for page in pages():
        for name, attribute in FETCHED:
            for element in soup(page).find_all(name):
                if name == "link" and NOT_FETCHED & set(element.get("rel", [])):
                    continue
                if outside(element.get(attribute, "")):
                    found.append((page.name, element[attribute]))
        for script in soup(page).find_all("script", src=False):
            addresses = set(re.findall(r"https?://[^\s\"'\\)]+", script.get_text())) - XML_NAMES
            found += [(page.name, url) for url in addresses]
        styles = [style.get_text() for style in soup(page).find_all("style")]
        styles += [element["style"] for element in soup(page).find_all(style=True)]
        found += [
            (page.name, url)
            for style in styles
            for url in re.findall(r"url\(\s*[\"']?((?:https?:)?//[^)]+)", style)
        ]
    assert not found


def test_no_style_sheet_fetches_anything_from_outside():
    found = []
    for sheet in HTML.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        found += [
            (sheet.name, url)
            for url in re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^)\s]+)", text)
        ]
    assert not found


def test_local_files_that_pages_fetch_exist():
    missing = set()
    for page in pages():
        for name, attribute in FETCHED:
            for element in soup(page).find_all(name):
                address = urlsplit(element.get(attribute, ""))
                if address.scheme or address.netloc or not address.path:
                    continue
                if not (page.parent / unquote(address.path)).exists():
                    missing.add((page.name, address.path))
    assert not missing


def test_links_inside_the_book_lead_somewhere():
    broken = set()
    for page in pages():
        for link in soup(page).find_all("a", href=True):
            address = urlsplit(link["href"])
            if address.scheme or address.netloc:
                continue
            target = page if not address.path else (page.parent / unquote(address.path)).resolve()
            if not target.exists() or (
                address.fragment
                and target.suffix == ".html"
                and unquote(address.fragment) not in anchors(target)
            ):
                broken.add((page.name, link["href"]))
    assert not broken


@by_chapter
def test_ids_are_unique(page):
    ids = [element["id"] for element in soup(page).find_all(id=True)]
    twice = {name for name in ids if ids.count(name) > 1}
    # The theme lays out its search field and its theme button for narrow and for wide windows.
    assert not {name for name in twice if name.startswith(("svg", "fig-"))}, twice


@by_chapter
def test_pictures_have_text_alternatives(page):
    for image in soup(page).find_all("img"):
        assert image.get("alt", "").strip(), image
    for drawing in soup(page).select(".fbt-figure > svg"):
        assert drawing["role"] == "img"
        assert drawing["aria-label"].strip()
        assert "#757575" not in str(drawing)


@by_chapter
def test_page_says_what_it_is_about(page):
    assert soup(page).title.get_text().strip()
    assert soup(page).html["lang"] == LANGUAGES.get(page.stem, "en")
    assert len(soup(page).select('meta[name="description"]')) == 1
    assert len(soup(page).select("article h1")) == 1


@by_chapter
def test_nothing_is_shown_as_raw_markup(page):
    text = soup(page).select_one("article").get_text()
    for leftover in ("```", "mystnb", "<details>", "{note}", "colab-badge"):
        assert leftover not in text


def test_mathematics_is_typeset_by_the_file_beside_the_page():
    with_mathematics = [page for page in CHAPTER_PAGES if soup(page).select(".math")]
    for page in with_mathematics:
        scripts = [script.get("src", "") for script in soup(page).find_all("script")]
        assert sum("vendor/tex-svg-full.js" in source for source in scripts) == 1, page.name


SVG = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
  width="10pt" viewBox="0 0 10 10" version="1.1">
 <metadata>about</metadata>
 <defs><style type="text/css">*{stroke-linejoin: round}</style><path id="glyph" d="M0 0"/></defs>
 <g clip-path="url(#clip)" style="fill: #757575; stroke: #0072b2">
  <use xlink:href="#glyph" fill="#757575"/></g>
 <clipPath id="clip"><rect width="3" height="5"/></clipPath>
</svg>"""


def test_figure_takes_the_pages_colour_and_keeps_its_parts_to_itself():
    figure = BeautifulSoup(framed_svg(SVG, "svg7", 'Two "lines" & a <dot>'), "html.parser").svg
    assert figure["role"] == "img"
    assert figure["aria-label"] == 'Two "lines" & a <dot>'
    assert figure.g["style"] == "fill: currentColor; stroke: #0072b2"
    assert figure.g["clip-path"] == "url(#svg7-clip)"
    assert figure.use["href"] == "#svg7-glyph"
    assert figure.use["fill"] == "currentColor"
    assert {element["id"] for element in figure.find_all(id=True)} == {"svg7-glyph", "svg7-clip"}
    assert figure.style.get_text() == "#svg7 *{stroke-linejoin: round}"
    assert figure.metadata is None
