"""The pages in other languages: marked as such, readable without fonts of the system, found by the search."""

import json
import re
from functools import cache
from pathlib import Path

import build_book
import pytest
import vendor
from bs4 import BeautifulSoup, NavigableString, Tag
from fbt_languages import SearchAll
from fontTools.ttLib import TTFont
from repo import ROOT

BOOK, STATIC = ROOT / "book", ROOT / "book" / "_static"
HTML = build_book.HTML / "book"
LANGUAGES = {"overview.si": "si", "overview.ja": "ja", "overview.zh": "zh-Hans"}
# What a page says about itself in its own writing, and how it is named elsewhere.
NAMES = {"si": "සිංහල", "ja": "日本語", "zh-Hans": "中文"}
WRITING = re.compile("[\u0d80-\u0dff\u3040-\u30ff\u3400-\u9fff]")
by_page = pytest.mark.parametrize("name, language", LANGUAGES.items(), ids=LANGUAGES)


@cache
def soup(name: str) -> BeautifulSoup:
    return BeautifulSoup((HTML / f"{name}.html").read_text(encoding="utf-8"), "html.parser")


def source(name: str) -> str:
    return (BOOK / f"{name}.md").read_text(encoding="utf-8")


def spoken(text: NavigableString | Tag) -> str:
    """The language that a browser takes a text to be in."""
    marked = text.find_parent(lang=True)
    assert marked is not None
    return str(marked["lang"])


def shown(page: BeautifulSoup) -> list[NavigableString]:
    """The texts of a page that a reader meets, without code, drawings and mathematics."""
    aside = ["script", "style", "noscript", "pre", "code", "svg", "kbd", "title"]
    texts = [text for text in page.body.find_all(string=str.strip) if type(text) is NavigableString]
    return [text for text in texts if text.find_parent(aside) is None]


def test_every_page_with_a_language_is_here():
    found = {
        path.stem: re.search(r"^lang: (\S+)$", source(path.stem), re.MULTILINE) for path in BOOK.glob("*.md")
    }
    assert {name: match[1] for name, match in found.items() if match} == LANGUAGES


@by_page
def test_each_text_of_a_page_is_in_the_language_it_is_said_to_be_in(name, language):
    page = soup(name)
    assert page.html["lang"] == language
    article = page.select_one("article")
    for text in shown(page):
        if WRITING.search(text):
            assert spoken(text) in NAMES, text
        elif re.search("[A-Za-z]", text) and article not in text.parents:
            assert spoken(text) == "en", text
    assert {spoken(text) for text in shown(page) if article in text.parents} == {language, "en"}


@pytest.mark.parametrize("name", ["index", "references"])
def test_an_english_page_marks_the_names_of_the_others(name):
    marked = {(text, spoken(text)) for text in shown(soup(name)) if WRITING.search(text)}
    assert marked >= {(name, language) for language, name in NAMES.items()}
    for text, language in marked:
        assert language in NAMES, text


@pytest.mark.parametrize("name", ["index", *LANGUAGES])
def test_the_versions_of_the_start_page_name_each_other(name):
    links = {link["hreflang"]: link["href"] for link in soup(name).select('link[rel="alternate"][hreflang]')}
    others = {language: f"{page}.html" for page, language in LANGUAGES.items()}
    assert links == {"en": "index.html", "x-default": "index.html", **others}


def test_the_start_page_and_the_readme_link_to_every_language():
    readme = BeautifulSoup((ROOT / "README.md").read_text(encoding="utf-8"), "html.parser")
    for page, folder, ending in ((soup("index").select_one("article"), "", "html"), (readme, "book/", "md")):
        links = {link["href"]: link for link in page.select("a[hreflang]")}
        assert set(links) == {f"{folder}{name}.{ending}" for name in LANGUAGES}
        for name, language in LANGUAGES.items():
            link = links[f"{folder}{name}.{ending}"]
            assert (link.get_text(), link["lang"], link["hreflang"]) == (NAMES[language], language, language)


@by_page
def test_a_page_describes_itself_and_its_figure_in_its_language(name, language):
    page = soup(name)
    (description,) = page.select('meta[name="description"]')
    (figure,) = page.select("article figure")
    for text in (description["content"], figure.svg["aria-label"], figure.figcaption.get_text()):
        assert len(WRITING.findall(text)) > 50
    assert "Fig." not in figure.get_text()


# Fonts


def letters(text: str) -> set[str]:
    """The characters that fonts for Latin letters may lack."""
    return {character for character in text if ord(character) > 0xFF}


@pytest.mark.parametrize(
    "row", [row for row in vendor.listed() if row["page"]], ids=lambda row: Path(row["file"]).stem
)
def test_a_font_holds_every_character_of_its_page_and_no_more(row):
    held = {chr(code) for code in TTFont(ROOT / row["file"]).getBestCmap()}
    assert held == letters((ROOT / row["page"]).read_text(encoding="utf-8")), "run `make vendor`"
    page = soup(Path(row["page"]).stem)
    assert letters(page.select_one("article").get_text()) <= held
    assert set(NAMES[page.html["lang"]]) <= held


def test_the_style_sheet_offers_every_font():
    offered = set(
        re.findall(r'url\("(vendor/[\w-]+\.woff)"\)', (STATIC / "fbt.css").read_text(encoding="utf-8"))
    )
    assert offered == {path.relative_to(STATIC).as_posix() for path in STATIC.glob("vendor/*.woff")}
    assert len(offered) == 2 * len(LANGUAGES)


def test_a_font_that_is_cut_keeps_what_joins_letters_and_its_licence():
    cut = TTFont(STATIC / "vendor" / "noto-sans-sinhala-400.woff")
    features = {record.FeatureTag for record in cut["GSUB"].table.FeatureList.FeatureRecord}
    assert {"akhn", "rphf", "vatu"} <= features
    assert "OFL" in cut["name"].getDebugName(14)


# Writing


def test_sinhala_letters_are_joined():
    # Yansaya and rakaransaya need a joiner after the virama; after ra the letter ya stands on its own.
    assert not re.findall(r"\w*(?<!\u0dbb)\u0dca[\u0dba\u0dbb]\w*", source("overview.si"))


@pytest.mark.parametrize("name", ["overview.ja", "overview.zh"])
def test_no_line_ends_inside_a_paragraph(name):
    # A browser would show a space there.
    for text in shown(soup(name)):
        if WRITING.search(text):
            assert "\n" not in text.strip()


# The search


def test_the_search_splits_words_of_all_languages():
    words = SearchAll({}).split("残差连接 (residual connection), ප්‍රතිදාන දෛශිකය, 記憶の和 m_t 2020")
    assert words == [*"残差连接", "residual", "connection", "ප්‍රතිදාන", "දෛශිකය", *"記憶の和", "m_t", "2020"]


def test_the_search_finds_the_pages():
    text = (build_book.HTML / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    for word, name in (("忆", "overview.zh"), ("憶", "overview.ja"), ("අනුක්‍රමයම", "overview.si")):
        found = index["terms"][word]
        assert f"book/{name}" in [
            index["docnames"][page] for page in ([found] if isinstance(found, int) else found)
        ]
