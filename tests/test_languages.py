"""Pages in other languages: marked, readable without system fonts, searchable."""

import json
import re
from functools import cache
from pathlib import Path

import build_book
import vendor
from bs4 import BeautifulSoup, NavigableString, Tag
from fbt_languages import SearchAll
from fbt_search import INDEX
from fontTools.ttLib import TTFont
from repo import ROOT

BOOK, STATIC = ROOT / "book", ROOT / "book" / "_static"
HTML = build_book.HTML / "book"
LANGUAGES = {
    path.stem: match[1]
    for path in BOOK.glob("*.md")
    if (match := re.search(r"^lang: (\S+)$", path.read_text("utf-8"), re.MULTILINE))
}
# The languages' names for themselves.
NAMES = {"si": "සිංහල", "ja": "日本語", "zh-Hans": "中文"}
WRITING = re.compile("[\u0d80-\u0dff\u3040-\u30ff\u3400-\u9fff]")


@cache
def soup(name: str) -> BeautifulSoup:
    text = (HTML / f"{name}.html").read_text(encoding="utf-8")
    return BeautifulSoup(text, "html.parser")


def source(name: str) -> str:
    return (BOOK / f"{name}.md").read_text(encoding="utf-8")


def marked_language(text: NavigableString | Tag) -> str:
    """Return the language that a text is marked with."""
    marked = text.find_parent(lang=True)
    assert marked is not None
    return str(marked["lang"])


def shown(page: BeautifulSoup) -> list[NavigableString]:
    """Return the texts of a page without code, drawings and mathematics."""
    aside = [
        "script",
        "style",
        "noscript",
        "pre",
        "code",
        "svg",
        "kbd",
        "title",
        "math",
    ]
    texts = [
        text
        for text in page.body.find_all(string=str.strip)
        if type(text) is NavigableString
    ]
    return [text for text in texts if text.find_parent(aside) is None]


def test_texts_are_marked_with_their_language():
    wrong = []
    for name, language in LANGUAGES.items():
        page = soup(name)
        article = page.select_one("article")
        for text in shown(page):
            is_foreign = WRITING.search(text)
            is_around = article not in text.parents
            is_english = is_around and not is_foreign and re.search("[A-Za-z]", text)
            if is_foreign and marked_language(text) not in NAMES:
                wrong.append((name, text))
            if is_english and marked_language(text) != "en":
                wrong.append((name, text))
        inside = [text for text in shown(page) if article in text.parents]
        used = set(map(marked_language, inside))
        if page.html["lang"] != language or used != {language, "en"}:
            wrong.append((name, used))
    for name in ("index", "references"):
        texts = [text for text in shown(soup(name)) if WRITING.search(text)]
        marked = {(text, marked_language(text)) for text in texts}
        wrong += [(name, text) for text, language in marked if language not in NAMES]
        if not marked >= {(name, language) for language, name in NAMES.items()}:
            wrong.append((name, marked))
    assert not wrong


def test_versions_of_the_start_page_link_to_each_other():
    others = {language: f"{page}.html" for page, language in LANGUAGES.items()}
    for name in ("index", *LANGUAGES):
        alternates = soup(name).select('link[rel="alternate"][hreflang]')
        links = {link["hreflang"]: link["href"] for link in alternates}
        english = {"en": "index.html", "x-default": "index.html"}
        assert links == english | others, name


def test_start_page_and_readme_link_to_every_language():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = BeautifulSoup(text, "html.parser")
    start_page = soup("index").select_one("article")
    for page, folder, suffix in ((start_page, "", "html"), (readme, "book/", "md")):
        links = {
            (link["href"], link.get_text(), link["lang"], link["hreflang"])
            for link in page.select("a[hreflang]")
        }
        assert links == {
            (f"{folder}{name}.{suffix}", NAMES[language], language, language)
            for name, language in LANGUAGES.items()
        }


def test_descriptions_and_figures_are_in_the_pages_language():
    for name in LANGUAGES:
        (description,) = soup(name).select('meta[name="description"]')
        (figure,) = soup(name).select("article figure")
        caption = figure.figcaption.get_text()
        for text in (description["content"], figure.svg["aria-label"], caption):
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
        article = page.select_one("article")
        texts = [
            text
            for text in article.find_all(string=True)
            if not text.find_parent("math")
        ]
        shown_there = letters("".join(texts))
        assert shown_there | set(NAMES[page.html["lang"]]) <= has, row["file"]


def test_style_sheet_offers_every_font():
    text = (STATIC / "fbt.css").read_text(encoding="utf-8")
    offered = set(re.findall(r'url\("vendor/([\w-]+\.woff)"\)', text))
    assert offered == {path.name for path in STATIC.glob("vendor/*.woff")}
    assert len(offered) == 3 * len(LANGUAGES) + 1


def test_fonts_have_the_names_of_languages_and_the_characters_of_formulas():
    fonts = {
        row["file"]: {chr(code) for code in TTFont(ROOT / row["file"]).getBestCmap()}
        for row in vendor.listed()
        if row["ranges"]
    }
    formulas = fonts.pop("book/_static/vendor/noto-sans-math.woff")
    names = sorted(map(set, NAMES.values()), key=sorted)
    assert sorted(fonts.values(), key=sorted) == names
    for path in build_book.HTML.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        for markup in re.findall("<math.*?<annotation", text, re.DOTALL):
            shown = set(BeautifulSoup(markup, "html.parser").get_text())
            # Browsers draw nothing for the sign that applies a function, nor for the
            # one that chooses a form of the letter before it.
            assert shown - {"\u2061", "\ufe00", "\n"} <= formulas, path.name


def test_reduced_fonts_keep_ligatures_and_licence():
    font = TTFont(STATIC / "vendor" / "noto-sans-sinhala-400.woff")
    records = font["GSUB"].table.FeatureList.FeatureRecord
    features = {record.FeatureTag for record in records}
    assert {"akhn", "rphf", "vatu"} <= features
    assert "OFL" in font["name"].getDebugName(14)


# Writing


def test_sinhala_letters_are_joined():
    # Yansaya and rakaransaya need a joiner after the virama, but not ya after ra.
    assert not re.findall(
        r"\w*(?<!\u0dbb)\u0dca[\u0dba\u0dbb]\w*", source("overview.si")
    )


def test_paragraphs_have_no_line_breaks():
    # A browser would show a space there.
    texts = [
        text for name in ("overview.ja", "overview.zh") for text in shown(soup(name))
    ]
    broken = [text for text in texts if "\n" in text.strip()]
    assert not [text for text in broken if WRITING.search(text)]


# The search


def test_search_splits_words_of_all_languages():
    text = "残差连接 (residual connection), ප්‍රතිදාන දෛශිකය, "
    text += "記憶の和 m_t 2020"
    words = SearchAll({}).split(text)
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


def test_search_index_contains_words_of_all_languages():
    text = (build_book.HTML / "_static" / INDEX).read_text(encoding="utf-8")
    _, sections = json.loads(text.partition("fbtSections = ")[2].rstrip(";\n"))
    for word, name in (
        ("忆", "overview.zh"),
        ("憶", "overview.ja"),
        ("අනුක්‍රමයම", "overview.si"),
    ):
        assert f"book/{name}" in {page for page, *_, text in sections if word in text}
