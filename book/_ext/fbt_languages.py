"""Pages in other languages: each part says which language it is in, and the search splits the words of all.

A page names its language in its front matter::

    ---
    lang: ja
    ---
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.search.en import SearchEnglish

# What the theme and fbt_about put around a page's own text: its words stay English.
AROUND = (
    'class="fbt-about docutils container"',
    'id="pst-skip-link"',
    'id="pst-back-to-top"',
    'id="pst-search-dialog"',
    'id="pst-primary-sidebar"',
    'class="bd-header-article d-print-none"',
    'class="prev-next-footer d-print-none"',
    'id="pst-secondary-sidebar"',
    'class="bd-footer-content"',
)
# The page's own headings, within what is around the article.
CONTENTS = '<nav id="pst-page-toc-nav"'
# Chinese characters and kana, written without spaces; Sinhala letters with vowel signs and joiners.
SINGLE, SINHALA = "\u3040-\u30ff\u3400-\u9fff", "\u0d80-\u0dff\u200d"


class SearchAll(SearchEnglish):
    """English words as before, whole Sinhala words, and Chinese and Japanese by the character."""

    lang = "en"
    _word_re = re.compile(rf"[{SINGLE}]|[{SINHALA}]+|[^\W{SINGLE}{SINHALA}]+")
    # The same in a browser, where the query is split.
    js_splitter_code = (
        "var splitQuery = (query) => query.match("
        rf"/[{SINGLE}]|[{SINHALA}]+|(?:(?![{SINGLE}{SINHALA}])[\p{{Letter}}\p{{Number}}_])+/gu) || [];"
    )

    def word_filter(self, word: str) -> bool:
        """Keep all but the English stop words; Sphinx's own filter also drops single kana."""
        return word not in self.stopwords


def languages(env: BuildEnvironment) -> dict[str, str]:
    """The pages that name a language, each with its language."""
    return {page: about["lang"] for page, about in env.metadata.items() if "lang" in about}


def name_language(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Give a page its language, and the head of each version of the start page the way to the others."""
    versions = {app.config.root_doc: app.config.language} | languages(app.env)
    context["language"] = versions.get(pagename, app.config.language)
    if pagename in versions:
        uris = {page: _address(app, pagename, page) for page in versions}
        links = [(code, uris[page]) for page, code in versions.items()] + [
            ("x-default", uris[app.config.root_doc])
        ]
        context["metatags"] = context.get("metatags", "") + "".join(
            f'<link rel="alternate" hreflang="{code}" href="{uri}" />\n' for code, uri in links
        )


def _address(app: Sphinx, page: str, other: str) -> str:
    # Sphinx's way from a page to itself is empty, which a link must not be.
    return app.builder.get_relative_uri(page, other) or f"{Path(other).name}.html"


def mark_around(text: str, language: str) -> str:
    """Say what is English on a page in another language, and leave out "Fig. 3"."""
    for part, spoken in [*((part, "en") for part in AROUND), (CONTENTS, language)]:
        if text.count(part) != 1:
            raise ExtensionError(
                f"the theme should write {part} once on a page, not {text.count(part)} times"
            )
        text = text.replace(part, f'{part} lang="{spoken}"')
    # In the sidebar a page does not link to itself by its address, as `mark_links` expects.
    current = '<a class="current reference internal" href="#"'
    text = text.replace(current, f'{current} lang="{language}"')
    text = re.sub(r'(<div id="jb-print-toc">\s*<div>\s*<h2)', r'\1 lang="en"', text)
    text = text.replace('<a class="headerlink"', '<a class="headerlink" lang="en"')
    return re.sub('<span class="caption-number">.*?</span>', "", text)


def mark_links(text: str, page: str, language: str) -> str:
    """Say in which language the links to a page are written, and in which language the page is."""
    link = rf"(?:[\w./-]*/)?{re.escape(Path(page).name)}\.html"
    text = re.sub(
        rf'(<a class="reference internal" href="{link}")',
        rf'\1 hreflang="{language}" lang="{language}"',
        text,
    )
    return re.sub(
        rf'(<a class="(?:left-prev|right-next)"\s+href="{link}")(.*?<p class="prev-next-title")',
        rf'\1 hreflang="{language}"\2 lang="{language}"',
        text,
        flags=re.DOTALL,
    )


def mark_languages(app: Sphinx, exception: Exception | None) -> None:
    """Mark the built pages. The theme's templates know one language a book, so this comes after them."""
    if exception is not None or app.builder.format != "html":
        return
    others = languages(app.env)
    for path in Path(app.outdir).rglob("*.html"):
        if "_static" in path.parts:
            continue
        text = before = path.read_text(encoding="utf-8")
        page = path.relative_to(app.outdir).with_suffix("").as_posix()
        if page in others:
            text = mark_around(text, others[page])
        for other, language in others.items():
            text = mark_links(text, other, language)
        if text != before:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.add_search_language(SearchAll)
    # After fbt_book, whose description also goes into the head.
    app.connect("html-page-context", name_language, priority=910)
    app.connect("build-finished", mark_languages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
