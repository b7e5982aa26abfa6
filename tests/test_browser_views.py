"""Tests of the memory, recurrence and choices views in a browser."""

import html

import nbconvert
import pytest
import torch
from exact import model, some_tokens
from front_ends import CELLS, run_by_program

from fbt import AttentionExplorer
from fbt.views.choices import Choices
from fbt.views.memory import MemoryExplorer, Snapshot
from fbt.views.recurrence import RecurrenceExplorer
from fbt.views.trace import trace
from fbt.views.view import View

TOKENS = ["<b>", "</script>", "&amp;", "🎭", "אב", "e\u0301", "\n"]
T = len(TOKENS)
READ = trace(model("shared-kv", span=T, dropout=0.0), some_tokens(1, T)[0])


def memory() -> MemoryExplorer:
    even = Snapshot(
        torch.tensor([0.5, 0.3, 0.2]), torch.tensor([[0.7, 0.4, -0.1]]).expand(T, 3)
    )
    late = Snapshot(
        torch.tensor([0.1, 0.2, 0.7]), torch.tensor([[0.2, 0.2, 0.6]]).expand(T, 3)
    )
    return MemoryExplorer(TOKENS, {0: even, 500: late}, query=1)


def choices() -> Choices:
    return Choices(
        lambda heat, mood: f"{heat} <i>{mood}</i>",
        heat=[0.5, 1.0, 2.0],
        mood=["<u>", "b"],
    )


VIEWS = {
    "memory": (memory, "“</script>”, step 2 of 7, after 500 training steps"),
    "recurrence": (
        lambda: RecurrenceExplorer(TOKENS, READ, moment=6),
        "Step 2, “</script>”: its embedding",
    ),
    "choices": (choices, "1.0 <i>b</i>"),
}


@pytest.mark.parametrize("name", VIEWS)
def test_view_works_in_sandbox_and_shows_text_as_text(window, name):
    make, text = VIEWS[name]
    source = html.escape(make().to_html())
    window.page.set_content(
        '<iframe sandbox="allow-scripts" width="700" height="700" '
        f'srcdoc="{source}"></iframe>'
    )
    frame = window.page.frame_locator("iframe")
    assert text in frame.locator("[aria-live]").text_content()
    assert frame.locator("b, i, u, script").count() == 1  # the view's own script
    assert not window.complaints
    assert not window.outside("about:")


def test_views_exported_by_nbconvert_work_offline(window, tmp_path):
    """nbclient runs the notebook and nbconvert exports it, both with defaults."""
    page, _ = nbconvert.HTMLExporter().from_notebook_node(run_by_program())
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    window.goto((tmp_path / "page.html").as_uri())
    views = window.page.locator(".fbt-view-root")
    assert views.count() == len(CELLS) - 1
    texts = window.page.locator(".fbt-view-root [aria-live]")
    assert all(text.is_visible() for text in texts.all())
    assert texts.first.text_content().startswith("“c”, step 3 of 3")
    views.first.locator("[role=option]").first.click()
    window.page.mouse.move(0, 0)
    assert texts.first.text_content().startswith("“a”, step 1 of 3")
    views.last.locator("input").press("End")
    assert texts.last.text_content() == "a span of 4"


def show(window, view: View):
    """Show a view in a page, and return locators of its root and its description."""
    window.page.set_content(view.to_html())
    return window.page.locator(".fbt-view-root"), window.page.locator("[aria-live]")


def test_explorer_shows_attention_to_later_steps(window):
    weights = torch.tensor([[0.0, 0.25, 0.75], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]])[
        None, None
    ]
    panels = {"two-way": weights, "causal": torch.eye(3)[None, None]}
    view, words = show(window, AttentionExplorer(list("abc"), panels, query=0))
    heat = "all => all.map((option) => option.style.getPropertyValue('--weight'))"
    two_way, causal = view.locator(".fbt-explorer-panel").all()
    assert two_way.locator("[role=option]").evaluate_all(heat) == [
        "0.000",
        "0.502",
        "0.867",
    ]
    assert two_way.locator(".fbt-later").count() == 0
    assert causal.locator("[role=option]").evaluate_all(heat) == [
        "1.000",
        "0.000",
        "0.000",
    ]
    assert causal.locator(".fbt-later").count() == 2
    assert words.first.text_content().endswith(
        "1.7 steps away on average, most at “c” 2 ahead, 75 %; “b” 1 ahead, 25 %."
    )
    assert words.last.text_content().endswith(
        "0.0 steps back on average, most at “a” itself, 100 %."
    )
    two_way.locator("[role=option]").last.click()
    window.page.mouse.move(0, 0)
    assert words.first.text_content().endswith(
        "1.5 steps away on average, most at “a” 2 back, 50 %; “b” 1 back, 50 %."
    )


def test_memory_explorer_follows_slider(window):
    view, words = show(window, memory())
    assert "the embedding 20 %, layer 1 20 %, layer 2 60 %" in words.text_content()
    assert view.locator(".fbt-legend li").all_text_contents() == [
        "embedding: 10 %",
        "layer 1: 20 %",
        "layer 2: 70 %",
    ]
    options = view.locator("[role=option]")
    options.nth(4).click()
    window.page.mouse.move(0, 0)
    assert "“אב”, step 5 of 7" in words.text_content()
    view.locator("input").press("Home")
    assert "after 0 training steps" in words.text_content()
    assert "the embedding 70 %, layer 1 40 %, layer 2 −10 %" in words.text_content()
    heights = options.first.locator("rect").evaluate_all(
        "all => all.map((rect) => "
        "[rect.getAttribute('y'), rect.getAttribute('height')].map(Number))"
    )
    (first, second, below) = heights
    assert first[0] + first[1] == pytest.approx(44)  # upward from the base line
    assert second[0] + second[1] == pytest.approx(first[0])
    assert below[0] == pytest.approx(44)  # downward
    assert [height for _, height in heights] == pytest.approx(
        [44 * share for share in (0.7, 0.4, 0.1)]
    )


def test_recurrence_explorer_steps_through_moments(window):
    view, words = show(window, RecurrenceExplorer(TOKENS, READ))
    layers = READ.outputs.shape[1] - 1
    descriptions = []
    for _ in range(2 * (layers + 3)):
        descriptions.append(words.text_content())
        view.get_by_role("button", name="next").click()
    assert "its embedding arrives" in descriptions[0]
    assert all(
        "There is no memory yet" in descriptions[layer]
        for layer in range(1, layers + 1)
    )
    assert "the memory vector is mixed" in descriptions[layers + 1]
    assert "its key and value are made" in descriptions[layers + 2]
    assert "layer 1 attends" in descriptions[layers + 4]
    assert "step 1 100 %" in descriptions[layers + 4]  # the only earlier step
    shares = READ.weights.mean(1)[1, 2, :2]
    for _ in range(2):
        view.get_by_role("button", name="next").click()
    reads = [
        f"step {past + 1} {100 * float(share):.0f} %"
        for past, share in enumerate(shares)
    ]
    assert all(read in words.text_content() for read in reads)
    # one link from the layer below, two from memories
    assert view.locator(".fbt-links path").count() == 1 + 2
    view.get_by_role("button", name="back").click()
    assert "layer 1 attends" in words.text_content()


def test_choices_show_selected_result(window):
    view, words = show(window, choices())
    view.locator("input").press("End")
    view.locator("select").select_option(index=0)
    assert words.text_content() == "2.0 <i><u></i>"
    assert view.locator("output").text_content() == "2"
