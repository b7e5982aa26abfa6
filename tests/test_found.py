"""What book/_ext adds to pages, so that they can be found, cited and printed."""

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import fbt_about
import fbt_status
import pdf
import yaml
from bs4 import BeautifulSoup
from chapters import chapters, pages, read
from fbt_citation import bibtex
from fbt_search import INDEX, sections
from repo import ROOT
from runs import executed

from fbt._repository import BRANCH, PLACEHOLDER, URL

HAS_ADDRESS = f"/{PLACEHOLDER}/" not in URL
SLUG = URL.removeprefix("https://github.com/")
COLAB = "https://colab.research.google.com/github"
NAMES = pages()
soup = cache(pdf.soup)


def source(name: str) -> str:
    return next(ROOT.glob(f"{name}.*")).relative_to(ROOT).as_posix()


def test_pages_state_their_minutes_and_link_to_source_and_notebook():
    wrong = []
    for name in NAMES:
        page, file = soup(name), source(name)
        (line,) = page.select(".fbt-about")
        stated = re.match(r"\d+ minutes? to read", line.get_text(" ", strip=True))
        if line.find_previous_sibling().name != "h1" or not stated:
            wrong.append((name, line.get_text()))
        links = {link.get_text(): link["href"] for link in line.select("a")}
        # The theme's own buttons have the same addresses.
        edit = f"{URL}/edit/{BRANCH}/{file}"
        colab = f"{COLAB}/{SLUG}/blob/{BRANCH}/{file}"
        remote = {"Edit this page": edit}
        if file.endswith(".ipynb"):
            remote["Open in Colab"] = colab
            copied = read((pdf.HTML / "book" / links["Notebook"]).resolve())
            if copied.cells[0].source != read(ROOT / file).cells[0].source:
                wrong.append((name, links["Notebook"]))
        for text, address in remote.items():
            buttons = page.select(f'a[href="{address}"].btn')
            expected = address if HAS_ADDRESS else None
            if links.get(text) != expected or bool(buttons) != HAS_ADDRESS:
                wrong.append((name, text, links))
    assert not wrong


def test_pages_link_to_the_previous_and_the_next_one():
    contents = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    files = re.findall(r"(?:file|root): ([^\s,}]+)", contents)
    order = [re.sub(r"\.(py|cpp)$", "", file) for file in files]
    wrong = []
    for name in NAMES:
        index = order.index(name)
        previous, following = order[:index][-1:], order[index + 1 :][:1]
        for kind, other in (("left-prev", previous), ("right-next", following)):
            links = soup(name).select(f"a.{kind}")
            stems = [Path(link["href"]).stem for link in links]
            if stems != [Path(one).name for one in other]:
                wrong.append((name, kind, stems))
    assert not wrong


def test_descriptions_differ():
    texts = [
        soup(name).select_one('meta[name="description"]')["content"] for name in NAMES
    ]
    assert len(set(texts)) == len(texts)


def test_minutes_do_not_count_the_text_of_figures():
    page = soup("book/index")
    line = page.select_one(".fbt-about").get_text(" ", strip=True)
    stated = int(re.match(r"\d+", line)[0])
    for drawing in page.select("article svg"):
        drawing.decompose()
    assert abs(stated - fbt_about.minutes(page.article.get_text(" "))[0]) <= 1


def test_minutes_are_as_stated_or_counted():
    stated = "Reading takes about 40 minutes, the exercises about 65; running it"
    assert fbt_about.minutes(stated) == (40, 65)
    assert fbt_about.minutes("word " * 401) == (3, 0)
    assert fbt_about.minutes("") == (1, 0)
    # Two characters count as a word, and so does the comma.
    assert fbt_about.minutes("本书由七章组成，" * 100) == (3, 0)


def test_search_index_has_the_sections_of_every_page_as_plain_text():
    text = (pdf.HTML / "_static" / INDEX).read_text(encoding="utf-8")
    _, found = json.loads(text.partition("fbtSections = ")[2].rstrip(";\n"))
    pages = {page for page, *_ in found}
    assert set(NAMES) <= pages
    ids = {
        page: {*re.findall(r' id="([^"]+)"', (pdf.HTML / f"{page}.html").read_text())}
        for page in pages
    }
    for page, anchor, *_ in found:
        assert anchor in ids[page], (page, anchor)
    texts = [text for *_, text in found]
    assert any("m_t = ∑_(l = 0)^L" in text for text in texts)
    assert not [text for text in texts if "\\frac" in text or "<math" in text]


def test_sections_end_where_the_next_begins():
    page = """<h1>no</h1><article><section id="a"><h1>Top<a class="headerlink">#
    </a></h1><p>One <code>two</code></p><script>no</script>
    <section id="b"><h2>Sub</h2>
    <pre><span>x</span> <b>y</b></pre><dl><dt class="sig" id="f.g">g()</dt>
    <dd>It <math><msup><mi>x</mi><mn>2</mn></msup></math>.</dd></dl>
    </section></section>
    </article>"""
    assert sections("p", page) == [
        ["p", "a", "Top", "Top", "One two"],
        ["p", "b", "Top", "Sub", "x y"],
        ["p", "f.g", "Top", "f.g", "g() It x^2."],
    ]


# The status page


def test_status_page_lists_every_run():
    text = soup("book/status").select_one("article").get_text(" ")
    for path in chapters():
        run = executed(path).metadata.fbt_run
        cells = [str(run.cells), f"{run.seconds:.0f}", f"{max(run.cell_seconds):.1f}"]
        row = r"\s+".join([*cells, run.finished[:10]])
        assert re.search(row, text), path.name
        assert f"torch {run.versions.torch}" in text


def test_runs_on_two_machines_are_listed_separately():
    here = {
        "machine": {"system": "Linux", "processor": "x86_64", "cores": 2},
        "versions": {"torch": "2.13"},
    }
    there = here | {"versions": {"torch": "2.11"}}
    assert fbt_status.places({"01-a": here, "02-b": here}) == [
        "All chapters ran on Linux, x86_64, 2 cores, with torch 2.13."
    ]
    assert fbt_status.places({"01-a": here, "02-b": there, "03-c": here}) == [
        "- Chapters 1, 3 ran on Linux, x86_64, 2 cores, with torch 2.13.",
        "- Chapters 2 ran on Linux, x86_64, 2 cores, with torch 2.11.",
    ]


# How to cite


def test_citation_is_from_citation_cff():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    shown = soup("book/references").select_one(".highlight-bibtex").get_text()
    entries = [cited["preferred-citation"], *cited["references"]]
    assert shown.strip() == "\n\n".join(map(bibtex, entries))
    assert [entry["type"] for entry in entries] == ["book", "article"]
    authors = "author = {Fan, Angela and Lavril, Thibaut and Grave, Edouard"
    assert authors in " ".join(shown.split())
    assert "  author = {{The fbt authors}}," in shown


# The book as one file


def test_joined_pages_keep_their_links_and_have_unique_ids():
    whole = BeautifulSoup(pdf.book(), "html.parser")
    ids = Counter(element["id"] for element in whole.find_all(id=True))
    assert set(map(pdf.key, NAMES)) <= set(ids)
    assert not [name for name, times in ids.items() if times > 1]
    links = [link["href"] for link in whole.find_all(href=True)]
    inner = {link[1:] for link in links if link.startswith("#")}
    assert inner <= set(ids)
    assert len(inner) > 100
    allowed = re.compile(r"#|https?://|mailto:|data:|\.\./_static/")
    assert not [link for link in links if not allowed.match(link)]
    assert all("open" in fold.attrs for fold in whole.find_all("details"))
    for script in whole.find_all("script"):  # views name their figures themselves
        script.decompose()
    assert not set(re.findall(r"url\(#([^)\"']+)\)", str(whole))) - set(ids)


def test_links_have_targets_in_the_file_or_the_web_or_are_removed():
    targets = {
        "https://arxiv.org/abs/2002.09402": "https://arxiv.org/abs/2002.09402",
        "#the-loss": "#05-training--the-loss",
        "02-weighted-memory.html": "#02-weighted-memory",
        "api.html#fbt.Config": "#api--fbt.Config",
        "../fbt/stack.html#fbt.stack.MemoryStack": None,
    }
    found = {
        href: pdf.address("book/05-training", href, set(NAMES)) for href in targets
    }
    assert found == targets
