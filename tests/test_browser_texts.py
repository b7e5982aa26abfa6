"""Pages show all texts of views as text, completely, and never run them."""

import matplotlib.pyplot as plt
import pytest
import torch
from exact import model, some_tokens
from odd_texts import LONG, MARKUP, ODD

import fbt
from fbt.views import figures
from fbt.views.choices import Choices
from fbt.views.memory import MemoryExplorer, Snapshot
from fbt.views.recurrence import MAX_STEPS, RecurrenceExplorer
from fbt.views.trace import trace
from fbt.views.view import View

CHUNKS = [
    list(ODD)[start : start + MAX_STEPS] for start in range(0, len(ODD), MAX_STEPS)
]
TEXTS = "all => all.map((element) => element.textContent)"


def show(window, view: View) -> None:
    """Show a view in a page between two paragraphs."""
    window.page.set_content(
        f"<p id=above>above</p>{view.to_html()}<p id=below>below</p>"
    )


def check_nothing_ran(window) -> None:
    page = window.page
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 1  # the script of the view
    assert page.locator("img, b, i, [onload], [onerror]").count() == 0
    assert page.locator("p:text-is('above'), p:text-is('below')").count() == 2
    assert not window.complaints
    assert not window.outside("about:")


def even(length: int) -> torch.Tensor:
    """Return attention weights [1, 1, T, T], equal for all steps up to the query."""
    weights = torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]
    return weights[None, None]


def test_attention_explorer_shows_odd_texts(window):
    show(
        window,
        fbt.AttentionExplorer(list(ODD), dict.fromkeys(MARKUP[:3], even(len(ODD)))),
    )
    panel = window.page.locator(".fbt-explorer-panel")
    assert panel.locator(".fbt-name").evaluate_all(TEXTS) == MARKUP[:3]
    options = panel.first.locator("[role=option]")
    assert options.evaluate_all(TEXTS) == list(ODD.values())
    words = panel.first.locator(".fbt-words")
    for i, visible in enumerate(ODD.values()):
        options.nth(i).dispatch_event("click")
        text = words.evaluate("element => element.textContent")
        assert text.startswith(f"“{visible}”, step {i + 1} of ")
    check_nothing_ran(window)
    # The longest text does not make the page scroll sideways.
    assert window.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(
    "tokens", [list(ODD), list(LONG)], ids=["odd", "ten thousand"]
)
def test_memory_explorer_shows_odd_texts(window, tokens):
    snapshot = Snapshot(
        torch.tensor([0.5, 0.5]), torch.tensor([[0.7, 0.3]]).expand(len(tokens), 2)
    )
    show(window, MemoryExplorer(tokens, {0: snapshot}, query=len(tokens) - 1))
    options = window.page.locator("[role=option]")
    visible = [ODD.get(token, token) for token in tokens]
    assert options.evaluate_all(TEXTS) == visible
    last = f"“{visible[-1]}”, step {len(tokens)} of {len(tokens)}"
    assert last in description(window)
    options.first.dispatch_event("click")
    assert f"“{visible[0]}”, step 1 of {len(tokens)}" in description(window)
    check_nothing_ran(window)


def description(window) -> str:
    return window.page.locator("[aria-live]").first.evaluate(
        "element => element.textContent"
    )


@pytest.mark.parametrize("tokens", CHUNKS, ids=lambda tokens: ascii(tokens[0])[:20])
def test_recurrence_explorer_shows_odd_texts(window, tokens):
    steps = len(tokens)
    read = trace(
        model("shared-kv", span=steps, dropout=0.0), some_tokens(1, steps)[0]
    )
    show(window, RecurrenceExplorer(tokens, read, moment=0))
    visible = [ODD[token] for token in tokens]
    heads = window.page.locator("[role=columnheader]").evaluate_all(TEXTS)
    assert heads == ["text", *visible]
    assert description(window).startswith(f"Step 1, “{visible[0]}”")
    check_nothing_ran(window)


def test_choices_show_odd_texts(window):
    texts = list(ODD)[::2]
    show(window, Choices(lambda text: f"chosen: {text}", text=texts))
    options = window.page.locator("option")
    assert options.evaluate_all(TEXTS) == [ODD[text] for text in texts]
    lists, result = window.page.locator("select"), window.page.locator(".fbt-result")
    for i, text in enumerate(texts):
        lists.select_option(index=i)
        valid = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert result.evaluate("element => element.textContent") == f"chosen: {valid}"
    check_nothing_ran(window)


# matplotlib's fonts lack some glyphs that browsers have
@pytest.mark.filterwarnings("ignore:Glyph")
def test_figure_of_choices_shows_odd_texts(window):
    odd = [text for text in ODD if text != LONG]

    def drawing(half: str):
        tokens = odd[::2] if half == "even" else odd[1::2]
        return figures.attention_maps(even(len(tokens)), tokens), "".join(tokens)

    old, figures.CHARACTER = figures.CHARACTER, 0.0  # show all characters
    try:
        view = Choices(drawing, half=["even", "odd"])
    finally:
        figures.CHARACTER = old
        plt.close("all")
    show(window, view)
    for index, tokens in enumerate((odd[::2], odd[1::2])):
        window.page.locator("select").select_option(index=index)
        texts = window.page.locator(".fbt-figure svg text").evaluate_all(TEXTS)
        expected = ["".join(map(figures._sign, token)) for token in tokens]
        assert texts == [*filter(None, expected)] * 2
    check_nothing_ran(window)
