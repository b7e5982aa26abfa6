"""Pages in other languages: mark the language of each part, and index their words.

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

# What the theme and fbt_about put around a page's own text stays English.
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
FONTS = {"si": "noto-sans-sinhala", "ja": "noto-sans-jp", "zh": "noto-sans-sc"}
# A font that comes after the text would move it. Files on a disk come at once, and
# browsers refuse to load them ahead.
PRELOAD = """<script>
if (location.protocol !== "file:") {
  for (const href of [%s]) {
    const link = document.createElement("link");
    const font = { rel: "preload", as: "font", type: "font/woff", crossOrigin: "" };
    document.head.append(Object.assign(link, font, { href }));
  }
}
</script>
"""
# The page's own headings, inside one of these parts.
CONTENTS = '<nav id="pst-page-toc-nav"'
# Chinese characters and kana are written without spaces; Sinhala letters include
# vowel signs and joiners.
SINGLE, SINHALA = "\u3040-\u30ff\u3400-\u9fff", "\u0d80-\u0dff\u200d"


class SearchAll(SearchEnglish):
    """Split English and Sinhala into words, Chinese and Japanese into characters."""

    lang = "en"
    _word_re = re.compile(rf"[{SINGLE}]|[{SINHALA}]+|[^\W{SINGLE}{SINHALA}]+")
    # The same expression for the browser, where the query is split.
    js_splitter_code = (
        "var splitQuery = (query) => query.match("
        rf"/[{SINGLE}]|[{SINHALA}]+|(?:(?![{SINGLE}{SINHALA}])"
        r"[\p{Letter}\p{Number}_])+/gu) || [];"
    )

    def word_filter(self, word: str) -> bool:
        """Drop only English stop words; Sphinx's filter also drops single kana."""
        return word not in self.stopwords


def languages(env: BuildEnvironment) -> dict[str, str]:
    """Return the language of each page that names one."""
    return {
        page: about["lang"] for page, about in env.metadata.items() if "lang" in about
    }


def name_language(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: Any,
) -> None:
    """Set a page's language and link the versions of the start page."""
    versions = {app.config.root_doc: app.config.language} | languages(app.env)
    context["language"] = versions.get(pagename, app.config.language)
    if pagename in versions:
        uris = {page: _address(app, pagename, page) for page in versions}
        links = [(code, uris[page]) for page, code in versions.items()] + [
            ("x-default", uris[app.config.root_doc])
        ]
        context["metatags"] = context.get("metatags", "") + "".join(
            f'<link rel="alternate" hreflang="{code}" href="{uri}" />\n'
            for code, uri in links
        )
    if pagename in languages(app.env):
        name = FONTS[versions[pagename].partition("-")[0]]
        folder = "../" * pagename.count("/") + "_static/vendor"
        files = (f'"{folder}/{name}-{weight}.woff"' for weight in (400, 700))
        context["metatags"] += PRELOAD % ", ".join(files)


def _address(app: Sphinx, page: str, other: str) -> str:
    # Sphinx returns an empty address from a page to itself, which is not a valid
    # link.
    return app.builder.get_relative_uri(page, other) or f"{Path(other).name}.html"


def mark_around(text: str, language: str) -> str:
    """Mark what is English on a page in another language, and drop "Fig. 3"."""
    for part, code in [*((part, "en") for part in AROUND), (CONTENTS, language)]:
        if text.count(part) != 1:
            raise ExtensionError(
                f"the theme should write {part} once per page, "
                f"got {text.count(part)} times"
            )
        text = text.replace(part, f'{part} lang="{code}"')
    # In the sidebar a page links to itself by #, so `mark_links` does not find the
    # link.
    current = '<a class="current reference internal" href="#"'
    text = text.replace(current, f'{current} lang="{language}"')
    text = re.sub(r'(<div id="jb-print-toc">\s*<div>\s*<h2)', r'\1 lang="en"', text)
    text = text.replace('<a class="headerlink"', '<a class="headerlink" lang="en"')
    return re.sub('<span class="caption-number">.*?</span>', "", text)


def mark_links(text: str, page: str, language: str) -> str:
    """Mark links to a page with its language, for their text and for their target."""
    link = rf"(?:[\w./-]*/)?{re.escape(Path(page).name)}\.html"
    text = re.sub(
        rf'(<a class="reference internal" href="{link}")',
        rf'\1 hreflang="{language}" lang="{language}"',
        text,
    )
    return re.sub(
        rf'(<a class="(?:left-prev|right-next)"\s+href="{link}")'
        r'(.*?<p class="prev-next-title")',
        rf'\1 hreflang="{language}"\2 lang="{language}"',
        text,
        flags=re.DOTALL,
    )


def mark_languages(app: Sphinx, exception: Exception | None) -> None:
    """Mark the languages of the built pages.

    The theme's templates know only one language per book, so this runs after them.
    """
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
    # After fbt_book, which adds its description to the head.
    app.connect("html-page-context", name_language, priority=910)
    app.connect("build-finished", mark_languages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
