"""Links into the repository: left out while it has no address, otherwise on pages."""

import re
from types import SimpleNamespace

import fbt_about
import fbt_repository
import pytest
from docutils import nodes
from docutils.utils import new_document
from watching import built_pages

from fbt._repository import PLACEHOLDER, URL

CHAPTER = "book/02-weighted-memory"
REAL = "https://github.com/someone/fbt"
FAKE = f"https://github.com/{PLACEHOLDER}/fbt"
COLAB = "https://colab.research.google.com"


def app_with(url: str) -> SimpleNamespace:
    """Return what the extensions use of Sphinx, for a book at an address."""
    theme = {
        "repository_url": url,
        "repository_branch": "main",
        "launch_buttons": {"colab_url": COLAB},
        **dict.fromkeys(fbt_repository.BUTTONS, True),
    }
    suffixes = {CHAPTER: ".ipynb", "fbt/stack": ".py", "book/api": ".md"}
    documents = {f"{name}{suffix}": name for name, suffix in suffixes.items()}
    env = SimpleNamespace(
        found_docs=suffixes,
        path2doc=documents.get,
        doc2path=lambda name, base: name + suffixes[name],
    )
    builder = SimpleNamespace(get_relative_uri=lambda _, to: f"../{to}.html")
    config = SimpleNamespace(html_theme_options=theme)
    return SimpleNamespace(config=config, env=env, builder=builder)


def page_of_links(*uris: str) -> nodes.document:
    page = new_document("page")
    page += [nodes.reference("", "text", refuri=uri) for uri in uris]
    return page


@pytest.mark.parametrize("url, expected", [(FAKE, False), (REAL, True)])
def test_address_decides_about_the_buttons(url, expected):
    app = app_with(url)
    fbt_repository.drop_buttons(app, app.config)
    theme = app.config.html_theme_options
    assert ("launch_buttons" in theme) is expected
    assert {theme[name] for name in fbt_repository.BUTTONS} == {expected}


def test_without_an_address_links_lead_to_pages_or_become_text():
    blob = f"{FAKE}/blob/main"
    page = page_of_links(
        f"{blob}/fbt/stack.py#L3", f"{blob}/tests/plain.py", FAKE, "https://arxiv.org"
    )
    fbt_repository.drop_links(app_with(FAKE), page, CHAPTER)
    links = [link["refuri"] for link in page.findall(nodes.reference)]
    assert links == ["../fbt/stack.html#L3", "https://arxiv.org"]
    assert page.astext().split() == ["text"] * 4


def test_with_an_address_all_links_stay():
    uris = [f"{REAL}/blob/main/fbt/stack.py", f"{REAL}/issues", REAL]
    page = page_of_links(*uris)
    fbt_repository.drop_links(app_with(REAL), page, CHAPTER)
    assert [link["refuri"] for link in page.findall(nodes.reference)] == uris


def test_line_under_the_title_offers_files_without_an_address():
    notebook = ("Notebook", f"../_sources/{CHAPTER}.ipynb")
    without, with_address = app_with(FAKE), app_with(REAL)
    assert fbt_about.links(without, CHAPTER) == []
    assert fbt_about.downloads(without, CHAPTER) == [
        notebook,
        ("Package for Colab", fbt_about.WHEEL),
    ]
    assert fbt_about.downloads(with_address, CHAPTER) == [notebook]
    assert fbt_about.links(with_address, CHAPTER) == [
        (
            "Open in Colab",
            f"{COLAB}/github/someone/fbt/blob/main/{CHAPTER}.ipynb",
        ),
        ("Edit this page", f"{REAL}/edit/main/{CHAPTER}.ipynb"),
    ]
    assert fbt_about.downloads(with_address, "book/api") == []


@pytest.mark.skipif(f"/{PLACEHOLDER}/" not in URL, reason="the address is set")
def test_no_page_links_to_the_placeholder():
    link = re.compile(rf'(?:href|src)="[^"]*\b{PLACEHOLDER}\b[^"]*"')
    assert built_pages(), "there is no book: run `make book` first"
    dead = {
        page.name: link.findall(page.read_text(encoding="utf-8"))
        for page in built_pages()
    }
    assert not {page: links for page, links in dead.items() if links}
