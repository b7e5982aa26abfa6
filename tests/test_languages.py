"""Pages in other languages: marked, readable without system fonts, searchable."""

import json
import re
from functools import cache
from pathlib import Path

import build_book
import vendor
from bs4 import BeautifulSoup, NavigableString, Tag
from fbt_languages import SearchAll
from fontTools.ttLib import TTFont
from repo import ROOT

BOOK, STATIC = ROOT / "book", ROOT / "book" / "_static"
HTML = build_book.HTML / "book"
LANGUAGES = {"overview.si": "si", "overview.ja": "ja", "overview.zh": "zh-Hans"}
# The languages' names for themselves.
NAMES = {"si": "සිංහල", "ja": "日本語", "zh-Hans": "中文"}
WRITING = re.compile("[\u0d80-\u0dff\u3040-\u30ff\u3400-\u9fff]")


@cache
def soup(name: str) -> BeautifulSoup:
    return BeautifulSoup(
        (HTML / f"{name}.html").read_text(encoding="utf-8"), "html.parser"
    )


def source(name: str) -> str:
    return (BOOK / f"{name}.md").read_text(encoding="utf-8")


def spoken(text: NavigableString | Tag) -> str:
    """Return the language that a text is marked with."""
    marked = text.find_parent(lang=True)
    assert marked is not None
    return str(marked["lang"])


def shown(page: BeautifulSoup) -> list[NavigableString]:
    """Return the texts of a page without code, drawings and mathematics."""
    aside = ["script", "style", "noscript", "pre", "code", "svg", "kbd", "title"]
    texts = [
        text
        for text in page.body.find_all(string=str.strip)
        if type(text) is NavigableString
    ]
    return [text for text in texts if text.find_parent(aside) is None]


def test_every_page_with_a_language_is_tested():
    found = {
        path.stem: re.search(r"^lang: (\S+)$", source(path.stem), re.MULTILINE)
        for path in BOOK.glob("*.md")
    }
    assert {name: match[1] for name, match in found.items() if match} == LANGUAGES


def test_texts_are_marked_with_their_language():
    wrong = []
    for name, language in LANGUAGES.items():
        page = soup(name)
        article = page.select_one("article")
        for text in shown(page):
            foreign = WRITING.search(text)
            english = (
                not foreign
                and re.search("[A-Za-z]", text)
                and article not in text.parents
            )
            if (foreign and spoken(text) not in NAMES) or (
                english and spoken(text) != "en"
            ):
                wrong.append((name, text))
        used = {spoken(text) for text in shown(page) if article in text.parents}
        if page.html["lang"] != language or used != {language, "en"}:
            wrong.append((name, used))
    for name in ("index", "references"):
        marked = {
            (text, spoken(text)) for text in shown(soup(name)) if WRITING.search(text)
        }
        wrong += [(name, text) for text, language in marked if language not in NAMES]
        if not marked >= {(name, language) for language, name in NAMES.items()}:
            wrong.append((name, marked))
    assert not wrong


def test_versions_of_the_start_page_link_to_each_other():
    others = {language: f"{page}.html" for page, language in LANGUAGES.items()}
    for name in ("index", *LANGUAGES):
        found = soup(name).select('link[rel="alternate"][hreflang]')
        links = {link["hreflang"]: link["href"] for link in found}
        assert links == {"en": "index.html", "x-default": "index.html", **others}, (
            name
        )


def test_start_page_and_readme_link_to_every_language():
    readme = BeautifulSoup(
        (ROOT / "README.md").read_text(encoding="utf-8"), "html.parser"
    )
    for page, folder, ending in (
        (soup("index").select_one("article"), "", "html"),
        (readme, "book/", "md"),
    ):
        found = page.select("a[hreflang]")
        links = {(a["href"], a.get_text(), a["lang"], a["hreflang"]) for a in found}
        assert links == {
            (f"{folder}{name}.{ending}", NAMES[language], language, language)
            for name, language in LANGUAGES.items()
        }


def test_descriptions_and_figures_are_in_the_pages_language():
    for name in LANGUAGES:
        (description,) = soup(name).select('meta[name="description"]')
        (figure,) = soup(name).select("article figure")
        for text in (
            description["content"],
            figure.svg["aria-label"],
            figure.figcaption.get_text(),
        ):
            assert len(WRITING.findall(text)) > 50, (name, text)
        assert "Fig." not in figure.get_text(), name


# Fonts


def letters(text: str) -> set[str]:
    """Return the characters that fonts for Latin letters may lack."""
    return {character for character in text if ord(character) > 0xFF}


def test_fonts_have_exactly_the_characters_of_their_page():
    for row in (row for row in vendor.listed() if row["page"]):
        has = {chr(code) for code in TTFont(ROOT / row["file"]).getBestCmap()}
        needed = letters((ROOT / row["page"]).read_text(encoding="utf-8"))
        assert has == needed, f"{row['file']}: run `make vendor`"
        page = soup(Path(row["page"]).stem)
        shown_there = letters(page.select_one("article").get_text())
        assert shown_there | set(NAMES[page.html["lang"]]) <= has, row["file"]


def test_the_style_sheet_offers_every_font():
    offered = set(
        re.findall(
            r'url\("(vendor/[\w-]+\.woff)"\)',
            (STATIC / "fbt.css").read_text(encoding="utf-8"),
        )
    )
    assert offered == {
        path.relative_to(STATIC).as_posix() for path in STATIC.glob("vendor/*.woff")
    }
    assert len(offered) == 2 * len(LANGUAGES)


def test_reduced_fonts_keep_ligatures_and_licence():
    cut = TTFont(STATIC / "vendor" / "noto-sans-sinhala-400.woff")
    features = {
        record.FeatureTag for record in cut["GSUB"].table.FeatureList.FeatureRecord
    }
    assert {"akhn", "rphf", "vatu"} <= features
    assert "OFL" in cut["name"].getDebugName(14)


# Writing


def test_sinhala_letters_are_joined():
    # Yansaya and rakaransaya need a joiner after the virama, but not ya after ra.
    assert not re.findall(
        r"\w*(?<!\u0dbb)\u0dca[\u0dba\u0dbb]\w*", source("overview.si")
    )


def test_no_line_ends_inside_a_paragraph():
    # A browser would show a space there.
    texts = [
        text for name in ("overview.ja", "overview.zh") for text in shown(soup(name))
    ]
    assert not [
        text for text in texts if WRITING.search(text) and "\n" in text.strip()
    ]


# The search


def test_the_search_splits_words_of_all_languages():
    words = SearchAll({}).split(
        "残差连接 (residual connection), ප්‍රතිදාන දෛශිකය, 記憶の和 m_t 2020"
    )
    assert words == [
        *"残差连接",
        "residual",
        "connection",
        "ප්‍රතිදාන",
        "දෛශිකය",
        *"記憶の和",
        "m_t",
        "2020",
    ]


def test_the_search_finds_the_pages():
    text = (build_book.HTML / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    for word, name in (
        ("忆", "overview.zh"),
        ("憶", "overview.ja"),
        ("අනුක්‍රමයම", "overview.si"),
    ):
        found = index["terms"][word]
        assert f"book/{name}" in [
            index["docnames"][page]
            for page in ([found] if isinstance(found, int) else found)
        ]
