"""The views of memory, recurrence and choices in a real browser, and in a sandbox."""

import html

import nbconvert
import pytest
import torch
from exact import model, some_tokens
from front_ends import CELLS, run_by_a_program

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
def test_a_view_works_in_a_sandbox_and_shows_text_as_text(window, name):
    make, words = VIEWS[name]
    source = html.escape(make().to_html())
    window.page.set_content(
        f'<iframe sandbox="allow-scripts" width="700" height="700" srcdoc="{source}"></iframe>'
    )
    frame = window.page.frame_locator("iframe")
    assert words in frame.locator("[aria-live]").text_content()
    assert frame.locator("b, i, u, script").count() == 1  # the view's own script
    assert not window.complaints
    assert not window.outside("about:")


def test_views_of_a_notebook_that_a_program_ran_work_offline(window, tmp_path):
    """By nbclient, and exported by nbconvert, both as they come."""
    page, _ = nbconvert.HTMLExporter().from_notebook_node(run_by_a_program())
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    window.goto((tmp_path / "page.html").as_uri())
    views = window.page.locator(".fbt-view-root")
    assert views.count() == len(CELLS) - 1
    said = window.page.locator(".fbt-view-root [aria-live]")
    assert all(words.is_visible() for words in said.all())
    assert said.first.text_content().startswith("“c”, step 3 of 3")
    views.first.locator("[role=option]").first.click()
    window.page.mouse.move(0, 0)
    assert said.first.text_content().startswith("“a”, step 1 of 3")
    views.last.locator("input").press("End")
    assert said.last.text_content() == "a span of 4"


def shown(window, view: View):
    window.page.set_content(view.to_html())
    return window.page.locator(".fbt-view-root"), window.page.locator("[aria-live]")


def test_attention_to_later_steps_is_seen(window):
    weights = torch.tensor([[0.0, 0.25, 0.75], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]])[
        None, None
    ]
    panels = {"two-way": weights, "causal": torch.eye(3)[None, None]}
    view, words = shown(window, AttentionExplorer(list("abc"), panels, query=0))
    heat = "all => all.map((part) => part.style.getPropertyValue('--weight'))"
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


def test_the_memory_follows_its_slider(window):
    view, words = shown(window, memory())
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
        "all => all.map((part) => [part.getAttribute('y'), part.getAttribute('height')].map(Number))"
    )
    (first, second, below) = heights
    assert first[0] + first[1] == pytest.approx(44)  # upward from the base line
    assert second[0] + second[1] == pytest.approx(first[0])
    assert below[0] == pytest.approx(44)  # downward
    assert [height for _, height in heights] == pytest.approx(
        [44 * share for share in (0.7, 0.4, 0.1)]
    )


def test_the_recurrence_goes_moment_by_moment(window):
    view, words = shown(window, RecurrenceExplorer(TOKENS, READ))
    layers = READ.outputs.shape[1] - 1
    said = []
    for _ in range(2 * (layers + 3)):
        said.append(words.text_content())
        view.get_by_role("button", name="next").click()
    assert "its embedding arrives" in said[0]
    assert all(
        "There is no memory yet" in said[layer] for layer in range(1, layers + 1)
    )
    assert "the memory vector is mixed" in said[layers + 1]
    assert "its key and value are made" in said[layers + 2]
    assert "layer 1 attends" in said[layers + 4]
    assert "step 1 100 %" in said[layers + 4]  # there is no other to read
    shares = READ.weights.mean(1)[1, 2, :2]
    for _ in range(2):
        view.get_by_role("button", name="next").click()
    reads = [
        f"step {past + 1} {100 * float(share):.0f} %"
        for past, share in enumerate(shares)
    ]
    assert all(part in words.text_content() for part in reads)
    # from the layer below, and two memories
    assert view.locator(".fbt-links path").count() == 1 + 2
    view.get_by_role("button", name="back").click()
    assert "layer 1 attends" in words.text_content()


def test_choices_show_the_result_of_what_is_chosen(window):
    view, words = shown(window, choices())
    view.locator("input").press("End")
    view.locator("select").select_option(index=0)
    assert words.text_content() == "2.0 <i><u></i>"
    assert view.locator("output").text_content() == "2"
