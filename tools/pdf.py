"""Print the built book as one PDF with links and bookmarks, _build/book.pdf."""

from __future__ import annotations

import posixpath
from html import escape
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from browser import WIDTHS, chromium, show, window
from bs4 import BeautifulSoup, Tag
from chapters import pages
from repo import BUILD, ROOT

HTML = BUILD / "html"
PDF = BUILD / "book.pdf"
# Attributes that refer to another element by its id.
REFERENCES = ("for", "aria-labelledby", "aria-describedby")


def soup(name: str) -> BeautifulSoup:
    """Parse a built page."""
    text = (HTML / f"{name}.html").read_text(encoding="utf-8")
    return BeautifulSoup(text, "html.parser")


def key(name: str, anchor: str = "") -> str:
    """Return the id of a page in the PDF, or of an anchor on it."""
    return f"{Path(name).name}--{anchor}" if anchor else Path(name).name


def article_of(name: str, inside: set[str]) -> Tag:
    """Return a page's unfolded article, with ids and links for the whole book."""
    page = soup(name)
    (html,), (article,) = page.select("html"), page.select("article")
    article["lang"] = html["lang"]
    unwanted = "details.hide > summary, a.headerlink, .fbt-about a"
    for element in article.select(unwanted):
        element.decompose()
    for code in article.select("details.hide"):
        code.name = "div"
    for fold in article.select("details"):
        fold["open"] = ""
    for drawing in article.select("svg[id]"):
        for style in drawing.select("style"):
            own = str(drawing["id"])
            style.string = style.get_text().replace(f"#{own}", f"#{key(name, own)}")
    for element in article.find_all(True):
        for attribute, value in list(element.attrs.items()):
            if attribute == "id" or attribute in REFERENCES:
                ids = (key(name, one) for one in str(value).split())
                element[attribute] = " ".join(ids)
            elif isinstance(value, str):
                element[attribute] = value.replace("url(#", f"url(#{key(name)}--")
        if "href" in element.attrs:
            target = address(name, str(element["href"]), inside)
            if target is None:
                element.unwrap()
            else:
                element["href"] = target
    article["id"] = key(name)
    return article


def address(name: str, href: str, inside: set[str]) -> str | None:
    """Return a link's target in the PDF: a web page, an anchor, or None."""
    parts = urlsplit(href)
    if parts.scheme:
        return href
    path = name
    if parts.path:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), parts.path))
    target = path.removesuffix(".html")
    return f"#{key(target, parts.fragment)}" if target in inside else None


def book() -> str:
    """Join all pages behind a title page; their links stay relative."""
    names = pages()
    articles = {name: article_of(name, set(names)) for name in names}
    settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    title, author, year = (
        escape(settings[name]) for name in ("title", "author", "copyright")
    )
    titles = {
        name: text.select("h1")[0].get_text() for name, text in articles.items()
    }
    contents = "".join(
        f'<li><a href="#{key(name)}">{escape(text)}</a></li>'
        for name, text in titles.items()
    )
    front = (
        f'<article class="bd-article"><h1>{title}</h1><p>{author}, {year}</p>'
        f"<ul>{contents}</ul></article>"
    )
    loaded = soup(names[1]).select('link[rel="stylesheet"]')  # a chapter has them all
    return (
        '<!DOCTYPE html><html lang="en" data-theme="light" data-mode="light">'
        f'<head><meta charset="utf-8"><title>{title}</title>'
        f"{''.join(map(str, loaded))}</head><body><main class='bd-main'>"
        '<div class="bd-content"><div class="bd-article-container">'
        f"{front}{''.join(map(str, articles.values()))}"
        "</div></div></main></body></html>"
    )


def main() -> None:
    """Join the pages and print them with Chromium."""
    page = HTML / "book" / "print.html"
    try:
        page.write_text(book(), encoding="utf-8")
        with chromium() as browser:
            opened = window(browser, "light", WIDTHS[0])
            show(opened, page.as_uri())
            opened.pdf(
                path=PDF,
                outline=True,
                tagged=True,
                print_background=True,
                prefer_css_page_size=True,
            )
    finally:
        page.unlink(missing_ok=True)
    print(f"The book as one file, {PDF.stat().st_size / 1e6:.1f} MB: {PDF}")


if __name__ == "__main__":
    main()
