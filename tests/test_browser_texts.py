"""Whatever text a view is given, a page shows it as text, whole, and runs none of it."""

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

PARTS = [
    list(ODD)[start : start + MAX_STEPS] for start in range(0, len(ODD), MAX_STEPS)
]
TEXTS = "all => all.map((part) => part.textContent)"


def shown(window, view: View) -> None:
    """Put a view into a page between two paragraphs."""
    window.page.set_content(
        f"<p id=above>above</p>{view.to_html()}<p id=below>below</p>"
    )


def check_nothing_ran(window) -> None:
    page = window.page
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 1  # the view's own
    assert page.locator("img, b, i, [onload], [onerror]").count() == 0
    assert page.locator("p:text-is('above'), p:text-is('below')").count() == 2
    assert not window.complaints
    assert not window.outside("about:")


def even(length: int) -> torch.Tensor:
    """The attention weights [1, 1, T, T] of steps that look at all before them alike."""
    return (torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None])[
        None, None
    ]


def test_in_the_explorer(window):
    shown(
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
        assert words.evaluate("part => part.textContent").startswith(
            f"“{visible}”, step {i + 1} of "
        )
    check_nothing_ran(window)
    # Not even the longest text makes the page wider than it is.
    assert window.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(
    "tokens", [list(ODD), list(LONG)], ids=["odd", "ten thousand"]
)
def test_in_the_memory(window, tokens):
    snapshot = Snapshot(
        torch.tensor([0.5, 0.5]), torch.tensor([[0.7, 0.3]]).expand(len(tokens), 2)
    )
    shown(window, MemoryExplorer(tokens, {0: snapshot}, query=len(tokens) - 1))
    options = window.page.locator("[role=option]")
    visible = [ODD.get(token, token) for token in tokens]
    assert options.evaluate_all(TEXTS) == visible
    assert f"“{visible[-1]}”, step {len(tokens)} of {len(tokens)}" in words_of(window)
    options.first.dispatch_event("click")
    assert f"“{visible[0]}”, step 1 of {len(tokens)}" in words_of(window)
    check_nothing_ran(window)


def words_of(window) -> str:
    return window.page.locator("[aria-live]").evaluate("part => part.textContent")


@pytest.mark.parametrize("tokens", PARTS, ids=lambda tokens: ascii(tokens[0])[:20])
def test_in_the_recurrence(window, tokens):
    steps = len(tokens)
    read = trace(
        model("shared-kv", span=steps, dropout=0.0), some_tokens(1, steps)[0]
    )
    shown(window, RecurrenceExplorer(tokens, read, moment=0))
    visible = [ODD[token] for token in tokens]
    assert window.page.locator("svg .fbt-token").evaluate_all(TEXTS) == visible
    assert words_of(window).startswith(f"Step 1, “{visible[0]}”")
    check_nothing_ran(window)


def test_in_choices(window):
    texts = list(ODD)[::2]
    shown(window, Choices(lambda text: f"chosen: {text}", text=texts))
    options = window.page.locator("option")
    assert options.evaluate_all(TEXTS) == [ODD[text] for text in texts]
    lists, result = window.page.locator("select"), window.page.locator(".fbt-result")
    for i, text in enumerate(texts):
        lists.select_option(index=i)
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert result.evaluate("part => part.textContent") == f"chosen: {whole}"
    check_nothing_ran(window)


# the browser has other fonts than matplotlib
@pytest.mark.filterwarnings("ignore:Glyph")
def test_in_a_figure_of_choices(window):
    odd = [text for text in ODD if text != LONG]

    def drawing(part: str):
        tokens = odd[::2] if part == "even" else odd[1::2]
        return figures.attention_maps(even(len(tokens)), tokens), "".join(tokens)

    old, figures.CHARACTER = figures.CHARACTER, 0.0  # however little room there is
    try:
        view = Choices(drawing, part=["even", "odd"])
    finally:
        figures.CHARACTER = old
        plt.close("all")
    shown(window, view)
    for index, tokens in enumerate((odd[::2], odd[1::2])):
        window.page.locator("select").select_option(index=index)
        texts = window.page.locator(".fbt-figure svg text").evaluate_all(TEXTS)
        expected = ["".join(map(figures._sign, token)) for token in tokens]
        assert texts == [*filter(None, expected)] * 2
    check_nothing_ran(window)
