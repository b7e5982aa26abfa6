"""Test what readers do in a browser: explore, switch themes, search, unfold."""

import html
import itertools
from pathlib import Path

import build_book
import pytest
import torch
from watching import built_pages

import fbt

HTML = build_book.HTML


def article(page: Path) -> str:
    return (
        page.read_text(encoding="utf-8")
        .partition("<article")[2]
        .partition("</article>")[0]
    )


TRAINING = HTML / "book" / "05-training.html"
WITH_VIEWS = [page for page in built_pages() if 'class="fbt-view"' in article(page)]
WITH_FOLDS = [page for page in built_pages() if "<details" in article(page)]
MODELS = {"feedback": "tiny-shakespeare", "parallel": "tiny-shakespeare-parallel"}
# Weights are stored as round(255 sqrt(w)), and displayed as sqrt(w) with 3 decimals.
TOLERANCE = {"atol": 1 / 255 + 0.001, "rtol": 0.0}
SHARES = (
    "spans => spans.map("
    "(span) => Number(span.style.getPropertyValue('--weight')) ** 2)"
)
by_stem = {"ids": lambda page: page.stem}


# The attention explorer


def test_explorer_shows_weights_of_models(window):
    window.goto(TRAINING.as_uri())
    explorer = window.page.locator(".fbt-explorer")
    panels = explorer.locator(".fbt-explorer-panel")
    names = panels.locator(".fbt-name").all_text_contents()
    assert names == list(MODELS)
    signs = str.maketrans("␣⏎", " \n")
    text = "".join(
        panels.first.locator("[role=option]").all_text_contents()
    ).translate(signs)
    weights = {}
    for name in names:
        model = fbt.LanguageModel.from_pretrained(MODELS[name])
        weights[name] = model.attention(model.tokenizer.encode(text)[None])[:, 0]
    layer, head = (
        explorer.locator(f"select[data-name={name}]") for name in ("layer", "head")
    )

    def expect(query: int, l: int | None = None, h: int | None = None) -> None:
        for panel, all_maps in zip(panels.all(), weights.values(), strict=True):
            maps = all_maps if l is None else all_maps[l : l + 1]
            maps = maps if h is None else maps[:, h : h + 1]
            shown = torch.tensor(
                panel.locator("[role=option]").evaluate_all(SHARES),
                dtype=torch.float32,
            )
            torch.testing.assert_close(shown, maps.mean((0, 1))[query], **TOLERANCE)
            assert (
                f"step {query + 1} of {len(shown)}"
                in panel.locator(".fbt-words").text_content()
            )
            assert panel.locator("[aria-selected=true]").get_attribute(
                "data-i"
            ) == str(query)

    listbox = panels.first.locator("[role=listbox]")
    start = int(panels.first.locator("[aria-selected=true]").get_attribute("data-i"))
    layer.select_option(index=0)
    expect(start)
    listbox.locator("[data-i='60']").hover()
    expect(60)
    window.page.mouse.move(0, 0)
    expect(start)
    layer.select_option(index=1 + 3)  # after "mean of all"
    head.select_option(index=1 + 2)
    expect(start, 3, 2)

    listbox.focus()
    chosen = start
    for key, change in (("ArrowLeft", -1), ("ArrowLeft", -1), ("ArrowRight", 1)):
        window.page.keyboard.press(key)
        expect(chosen := chosen + change, 3, 2)
    assert listbox.get_attribute("aria-activedescendant") == listbox.locator(
        f"[data-i='{chosen}']"
    ).get_attribute("id")
    window.page.keyboard.press("ArrowUp")
    above = int(panels.first.locator("[aria-selected=true]").get_attribute("data-i"))
    assert above < chosen
    expect(above, 3, 2)
    for key, query in (("Home", 0), ("ArrowLeft", 0), ("End", len(text) - 1)):
        window.page.keyboard.press(key)
        expect(query, 3, 2)
    assert not window.complaints


def test_explorer_has_visible_focus(window):
    window.goto(TRAINING.as_uri())
    window.page.locator(".fbt-explorer select").last.focus()
    window.page.keyboard.press("Tab")
    outline = (
        "[document.activeElement.getAttribute('role'), "
        "getComputedStyle(document.activeElement).outlineStyle]"
    )
    assert window.page.evaluate(outline) == ["listbox", "solid"]


@pytest.mark.parametrize("page", WITH_VIEWS, **by_stem)
def test_every_view_and_control_works(window, page):
    window.goto(page.as_uri())
    views = window.page.locator(".fbt-view-root")
    assert views.count() == article(page).count('class="fbt-view"')
    # What computes in the page is driven by test_live.py and test_playground.py.
    computing = ".fbt-live, .fbt-playground"
    for view in window.page.locator(f".fbt-view-root:not({computing})").all():
        controls = "[type=range], select, [role=listbox], [tabindex='0'][data-at]"
        for control in view.locator(controls).all():
            seen = {view.evaluate("view => view.textContent + view.outerHTML")}
            control.focus()
            for key in ("Home", "End"):
                window.page.keyboard.press(key)
                seen.add(view.evaluate("view => view.textContent + view.outerHTML"))
            assert len(seen) > 1
    assert not window.complaints
    assert not window.unreadable()


def test_axes_of_the_reach_stay_where_they_are(window):
    """The slopes of chapter 2's curves can be compared between all settings."""
    window.goto((HTML / "book" / "02-weighted-memory.html").as_uri())
    view = window.page.locator(".fbt-choices")
    span, layers = view.locator("[type=range]").all()
    ticks = set()
    for first, second in itertools.product(range(4), range(3)):
        span.fill(str(first))
        layers.fill(str(second))
        ticks.add(
            view.evaluate(
                "view => [...view.querySelectorAll('[id*=ytick] text')].map((text) =>"
                " [text.textContent.trim(), text.getBoundingClientRect().y"
                " - view.getBoundingClientRect().y]).join()"
            )
        )
    assert len(ticks) == 1 and ticks != {""}


def an_explorer(tokens: list[str]) -> fbt.AttentionExplorer:
    length = len(tokens)
    scores = torch.randn(
        2, 3, length, length, generator=torch.Generator().manual_seed(0)
    )
    seen = torch.ones(length, length).tril().bool()
    return fbt.AttentionExplorer(
        tokens, scores.masked_fill(~seen, -torch.inf).softmax(-1)
    )


def test_explorer_works_in_sandbox(window):
    """An output in Colab is a separate page that may run scripts only."""
    source = html.escape(an_explorer(list("ROMEO:\n")).to_html())
    window.page.set_content(
        '<iframe sandbox="allow-scripts" width="600" height="400" '
        f'srcdoc="{source}"></iframe>'
    )
    explorer = window.page.frame_locator("iframe").locator(".fbt-explorer")
    options = explorer.locator("[role=option]")
    assert options.all_text_contents() == list("ROMEO:⏎")
    options.nth(2).hover()
    assert "“M”, step 3 of 7" in explorer.locator(".fbt-words").text_content()
    explorer.locator("[role=listbox]").press("Home")
    assert "step 1 of 7" in explorer.locator(".fbt-words").text_content()
    assert not window.complaints
    assert not window.outside("about:")


# The pages


def test_code_in_a_fold_scrolls_with_the_keys_once_it_opens(window):
    window.page.set_viewport_size({"width": 700, "height": 900})
    window.goto(TRAINING.as_uri())
    folds = window.page.locator("details:not([open]):has(pre)")
    folds.evaluate_all("folds => folds.forEach((fold) => { fold.open = true; })")
    window.page.wait_for_timeout(600)  # the theme waits for 300
    stops = window.page.locator("details[open] pre").evaluate_all(
        """all => all.map((code) =>
        [code.tabIndex, code.scrollWidth > code.clientWidth ? 0 : -1])"""
    )
    assert [0, 0] in stops
    assert all(found == wanted for found, wanted in stops)


def test_index_redirects_to_book(window):
    window.page.goto((HTML / "index.html").as_uri())
    window.page.wait_for_url("**/book/index.html")


def test_theme_button_changes_figures_and_views(window):
    window.goto(TRAINING.as_uri())
    colour = "all => all.map((element) => getComputedStyle(element).color)"
    elements = window.page.locator(
        ".fbt-figure > svg, .fbt-view-root, .highlight pre span:first-child"
    )
    seen = {
        window.page.evaluate(
            "document.documentElement.dataset.theme"
        ): elements.evaluate_all(colour)
    }
    button = window.page.locator(".theme-switch-button:visible")
    for _ in range(2):
        button.click()
        assert not window.unreadable()
        seen[window.page.evaluate("document.documentElement.dataset.theme")] = (
            elements.evaluate_all(colour)
        )
    assert seen.keys() == {"light", "dark"}
    assert all(
        light != dark for light, dark in zip(seen["light"], seen["dark"], strict=True)
    )
    assert not window.complaints


@pytest.mark.parametrize("way", ["http", "file"])
def test_search_finds_sections_and_marks_words_there(window, site, way):
    home = {"http": site, "file": HTML.as_uri()}[way]
    # The book has the abbreviation nowhere.
    window.goto(f"{home}/search.html?q=BPTT")
    result = window.page.locator("#search-results li").first
    phrase = "backpropagation through time"
    assert result.locator("mark").first.text_content() == phrase
    link = result.locator("a")
    title = link.text_content()
    link.click()
    window.page.wait_for_load_state()
    section = window.page.locator(":target")
    heading = section.locator("h2, h3").first
    assert heading.evaluate("heading => heading.firstChild.data") == title
    assert 0 <= heading.bounding_box()["y"] < 200
    marked = "[...CSS.highlights.get('fbt-found')].map(String)"
    words = window.page.evaluate(
        marked.replace(
            "String",
            "({ startContainer: node, "
            "startOffset: from, endOffset: to }) => node.data.slice(from, to)",
        )
    )
    assert words and {word.lower() for word in words} == {phrase}
    window.page.keyboard.press("Escape")
    assert not window.page.evaluate("CSS.highlights.size")
    assert not window.complaints
    assert not window.outside(home)


@pytest.mark.parametrize(
    ("query", "page", "excerpt"),
    [
        ("gradcheck", "04-the-custom-function", "gradcheck"),
        ("weighted memories", "02-weighted-memory", "memory"),
        ("LanguageModel.generate", "api", "generate"),
        ("残差", "overview.zh", "残差"),
        ("softm", "01-parallel-attention", "softmax"),
    ],
)
def test_search_finds_words_in_all_forms_and_languages(window, query, page, excerpt):
    window.goto(f"{HTML.as_uri()}/search.html?q={query}")
    results = window.page.locator("#search-results li")
    links = results.locator("a").evaluate_all("all => all.map(({ href }) => href)")
    assert any(f"{page}.html" in link for link in links)
    assert excerpt in " ".join(results.locator("mark").all_text_contents()).lower()
    assert not window.complaints


def test_search_without_results_says_so(window):
    window.goto(f"{HTML.as_uri()}/search.html?q=xylophone")
    status = window.page.locator("#search-results [role=status]")
    assert status.text_content() == "No section has this word."


def test_search_shortcut_opens_results(window, site):
    window.goto(f"{site}/book/index.html")
    window.page.keyboard.press("Control+k")
    window.page.keyboard.type("gradcheck")
    window.page.keyboard.press("Enter")
    window.page.locator("#search-results li a").first.wait_for()
    assert not window.complaints


@pytest.mark.parametrize("width", [390, 1200, 1600])
def test_search_is_one_click_away(window, width):
    window.page.set_viewport_size({"width": width, "height": 900})
    window.goto(TRAINING.as_uri())
    window.page.locator(".search-button__button:visible").click()
    assert window.page.locator("#pst-search-dialog input").is_visible()


def test_contents_mark_the_last_section_at_the_end_of_a_page(window):
    window.goto(TRAINING.as_uri())
    current = window.page.locator("#pst-page-toc-nav a[aria-current]")
    links = window.page.locator("#pst-page-toc-nav a")
    for where, index in ((10**6, links.count() - 1), (0, 0)):
        window.page.evaluate(f"scrollTo(0, {where})")
        window.page.wait_for_timeout(500)
        assert current.all_text_contents() == [links.nth(index).text_content()]


def test_names_in_the_contents_are_not_cut(window):
    window.goto((HTML / "book" / "api.html").as_uri())
    names = window.page.locator("#pst-page-toc-nav a:visible")
    cut = "all => all.filter((one) => one.scrollWidth > one.clientWidth).length"
    assert names.count() > 20 and names.evaluate_all(cut) == 0


def test_formulas_are_copied_as_tex(window):
    window.goto((HTML / "book" / "02-weighted-memory.html").as_uri())
    copied = window.page.evaluate("""() => {
      const formula = document.querySelector("article p math");
      getSelection().selectAllChildren(formula.closest("p"));
      let text;
      addEventListener("copy", ({ clipboardData }) => {
        text = clipboardData.getData("text/plain");
      });
      document.execCommand("copy");
      return [text, formula.querySelector("annotation").textContent];
    }""")
    assert f"${copied[1]}$" in copied[0]


def test_formulas_have_a_tab_stop_only_where_they_scroll(window):
    stops = "document.querySelectorAll('article .math[tabindex=\"0\"]').length"
    for width, is_narrow in ((1300, False), (390, True)):
        window.page.set_viewport_size({"width": width, "height": 900})
        window.goto((HTML / "book" / "01-parallel-attention.html").as_uri())
        window.page.wait_for_timeout(500)
        assert bool(window.page.evaluate(stops)) == is_narrow


def test_copy_buttons_cover_no_code(window):
    window.goto(TRAINING.as_uri())
    covered = window.page.evaluate("""() =>
      [...document.querySelectorAll(".highlight:has(> .copybtn)")].filter((box) => {
        const pre = box.querySelector("pre"), button = box.querySelector(".copybtn");
        const range = document.createRange();
        range.selectNodeContents(pre);
        const top = Math.min(...[...range.getClientRects()]
          .filter(({ width }) => width).map(({ top }) => top));
        return button.getBoundingClientRect().bottom > top + 2;
      }).length""")
    assert covered == 0


@pytest.mark.parametrize("page", WITH_FOLDS, **by_stem)
def test_folds_open_by_keyboard(window, page):
    window.goto(page.as_uri())
    folds = window.page.locator("article details:not([open])")
    assert folds.count()
    for fold in folds.element_handles():
        fold.query_selector("summary").focus()
        window.page.keyboard.press("Enter")
        assert fold.evaluate(
            "fold => fold.open && fold.lastElementChild.getClientRects().length > 0"
        )
    assert not window.complaints
