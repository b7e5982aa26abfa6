"""Tests of the memory, recurrence and choices views in a browser."""

import html
import itertools
import re

import matplotlib.pyplot as plt
import nbconvert
import pytest
import torch
from exact import model, some_tokens
from front_ends import CELLS, run_by_program

import fbt
from fbt import AttentionExplorer
from fbt.views.arrows import LAYERS, STEPS, MissingArrows
from fbt.views.choices import Choices
from fbt.views.figures import STYLE, style_of
from fbt.views.memory import MemoryExplorer, Snapshot
from fbt.views.recurrence import MAX_STEPS, RecurrenceExplorer
from fbt.views.stacks import STEPS as PUSHES
from fbt.views.stacks import StackSteps, copies
from fbt.views.trace import trace
from fbt.views.view import View, style

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
    "memory": (memory, "“</script>”, step 2 of 7, after 0 training steps"),
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
    assert text in frame.locator("[aria-live]").first.text_content()
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
    words = window.page.locator("[aria-live]:not(.fbt-numbers)")
    return window.page.locator(".fbt-view-root"), words


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
    view.locator("input").press("End")
    assert "20 % the embedding, 20 % layer 1, 60 % layer 2" in words.text_content()
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
    assert "70 % the embedding, 40 % layer 1, −10 % layer 2" in words.text_content()
    heights = options.first.locator("rect").evaluate_all(
        "all => all.map((rect) => "
        "[rect.getAttribute('y'), rect.getAttribute('height')].map(Number))"
    )
    (first, second, below) = heights
    assert first[0] + first[1] == pytest.approx(60)  # upward from the base line
    assert second[0] + second[1] == pytest.approx(first[0])
    assert below[0] == pytest.approx(60)  # downward
    assert [height for _, height in heights] == pytest.approx(
        [60 * share for share in (0.7, 0.4, 0.1)]
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
    # one ribbon from the layer below, lines from two memories
    assert view.locator(".fbt-ribbon").count() == 1
    assert view.locator(".fbt-line").count() == 2
    view.get_by_role("button", name="back").click()
    assert "layer 1 attends" in words.text_content()


def test_ribbons_are_as_wide_as_shares(window):
    layers = READ.outputs.shape[1] - 1
    view, words = show(window, RecurrenceExplorer(TOKENS, READ, moment=layers + 1))
    ribbons = view.locator(".fbt-ribbon")
    places = ribbons.evaluate_all(
        "all => all.map((ribbon) => "
        "['x', 'width'].map((name) => Number(ribbon.getAttribute(name))))"
    )
    widths = [width for _, width in places]
    shares = torch.tensor(widths, dtype=torch.float64) / sum(widths)
    torch.testing.assert_close(shares, READ.mixture, atol=2e-3, rtol=0)
    for (x, width), (following, _) in itertools.pairwise(places):
        assert x + width == pytest.approx(following)  # side by side
    view.get_by_role("button", name="next").click()
    assert "its key and value are made" in words.text_content()
    assert ribbons.count() == 2


def test_every_cell_of_the_recurrence_shows_its_numbers(window):
    view, _ = show(window, RecurrenceExplorer(TOKENS, READ, moment=12))
    numbers = view.locator(".fbt-numbers")
    assert numbers.text_content() == "No cell is chosen."
    cells = view.locator("[role=gridcell]")
    cells.nth(2 * T + 1).click()  # the memory vector of the second step
    expected = ", ".join(f"{number:.2f}" for number in READ.memory[1, :8].tolist())
    assert numbers.text_content().endswith(
        f"step 2, “</script>” (the first of {READ.memory.shape[1]}): "
        + expected.replace("-", "−")
        + "."
    )
    window.page.keyboard.press("ArrowUp")
    assert numbers.text_content().startswith("key K of step 2")
    window.page.keyboard.press("End")
    assert numbers.text_content() == "key K of step 7, “⏎”: not computed yet."
    assert cells.and_(view.locator("[tabindex='0']")).count() == 1
    assert view.locator("[aria-selected=true]").count() == 1


def test_recurrence_reads_a_text_of_the_reader_in_the_page(window):
    tokenizer = fbt.CharTokenizer("abcde")
    config = fbt.Config(5, d_model=14, n_heads=2, n_layers=3, span=7)
    net = fbt.LanguageModel(config, tokenizer)
    read = trace(net, tokenizer.encode("ab"))
    view, words = show(window, RecurrenceExplorer(list("ab"), read, model=net))
    field, status = view.get_by_label("your own text, up to 7"), view.locator("form")
    field.fill("za")
    field.press("Enter")
    assert "The model does not know z." in status.text_content()
    field.fill("cab")
    field.press("Enter")
    heads = view.locator("[role=columnheader]")
    heads.nth(3).wait_for()
    assert heads.all_text_contents() == ["text", "c", "a", "b"]
    expected = trace(net, tokenizer.encode("cab"))
    view.locator("input[type=range]").press("End")
    rows = [expected.values[0], expected.keys[0], expected.memory]
    rows += reversed(expected.outputs.unbind(1))
    for row, vectors in enumerate(rows):
        for step, vector in enumerate(vectors):
            view.locator("[role=gridcell]").nth(3 * row + step).click()
            text = view.locator(".fbt-numbers").text_content().replace("−", "-")
            numbers = [float(number) for number in re.findall(r"-?\d+\.\d\d", text)]
            torch.testing.assert_close(
                torch.tensor(numbers), vector[:8], atol=0.0101, rtol=0
            )
    for _ in range(2):  # back to layer 3 of the last step
        view.get_by_role("button", name="back").click()
    reads = re.findall(r"step (\d) (\d+) %", words.text_content())
    shares = expected.weights[2].mean(0)[2, :2].tolist()
    assert [int(step) for step, _ in reads] == [1, 2]
    # The page computes in double precision, which may round a percent otherwise.
    for (_, percent), share in zip(reads, shares, strict=True):
        assert int(percent) == pytest.approx(100 * share, abs=0.51)
    assert not window.complaints


def test_buttons_keep_the_focus_at_the_ends(window):
    layers = READ.outputs.shape[1] - 1
    last = T * (layers + 3) - 1
    view, _ = show(window, RecurrenceExplorer(TOKENS, READ, moment=last - 1))
    for name, presses, moment in (("next", 2, last), ("back", last + 2, 0)):
        button = view.get_by_role("button", name=name)
        button.focus()
        for _ in range(presses):
            window.page.keyboard.press("Enter")
        assert button.evaluate("button => button === document.activeElement")
        assert button.get_attribute("aria-disabled") == "true"
        total = f"{moment + 1} of {last + 1}"
        assert view.locator("output").text_content() == total


def playing(page, view: View):
    """Show a view to a reader who does not mind motion, with a clock that stands."""
    page.emulate_media(reduced_motion="no-preference")
    page.clock.install()
    page.set_content(view.to_html())
    page.get_by_role("button", name="play").click()
    return page.locator(".fbt-view-root"), page.get_by_role("button", name="pause")


def test_recurrence_plays_until_it_is_stopped_or_ends(window):
    short = trace(model("shared-kv", span=T, dropout=0.0), some_tokens(1, 1)[0])
    view, pause = playing(window.page, RecurrenceExplorer(["a"], short))
    output = view.locator("output")
    total = short.outputs.shape[1] + 2
    assert output.text_content() == f"2 of {total}"
    window.page.clock.run_for(1000)
    assert output.text_content() == f"3 of {total}"
    pause.click()
    window.page.clock.run_for(5000)
    assert output.text_content() == f"3 of {total}"
    view.get_by_role("button", name="play").click()
    window.page.clock.run_for(1000 * total)
    assert output.text_content() == f"{total} of {total}"
    assert pause.count() == 0


def needed(kind: str, layer: int, step: int) -> set[str]:
    """Return the vectors that a gradient of the package's model reaches."""
    config = fbt.Config(5, variant=kind, d_model=8, n_heads=2, n_layers=LAYERS)
    body = fbt.LanguageModel(config).eval().body
    vectors = torch.randn(1, STEPS, 8, requires_grad=True)
    outputs: list = []  # of each step and layer
    if kind == "feedback":
        body.memory.register_forward_pre_hook(
            lambda _, args: outputs.append([*args[0]])
        )
        body(vectors, backend="reference")
        columns = outputs
    else:
        for module in body.layers:
            module.register_forward_hook(
                lambda _, __, output: outputs.append(
                    output[0] if isinstance(output, tuple) else output
                )
            )
        body(vectors, backend="reference")
        columns = [[vectors, *outputs]] * STEPS
    at = 0 if kind == "feedback" else step
    (wanted,) = [columns[step][layer][:, at].sum()]
    used = set()
    for t, l in itertools.product(range(STEPS), range(LAYERS + 1)):
        if (l, t) == (layer, step):
            continue
        (gradient,) = torch.autograd.grad(
            wanted, columns[t][l], retain_graph=True, allow_unused=True
        )
        own = 0 if kind == "feedback" else t
        if gradient is not None and gradient[:, own].any():
            used.add(f"{l} {t}")
    return used


@pytest.mark.parametrize("kind", ["parallel", "feedback"])
def test_arrows_light_what_a_vector_builds_on(window, kind):
    view, words = show(window, MissingArrows())
    view.get_by_label(kind, exact=True).check()
    cells = view.locator("[role=gridcell]")
    for layer, step in ((1, 5), (3, 2)):
        cells.nth((LAYERS - layer) * STEPS + step).click()
        window.page.mouse.move(0, 0)
        lit = view.locator("[data-look='builds on it'], [data-look^='on the']")
        places = lit.evaluate_all("all => all.map((cell) => cell.dataset.at)")
        rows = [place.split() for place in places]
        expected = needed(kind, layer, step)
        assert {f"{LAYERS - int(row)} {t}" for row, t in rows} == expected
        length = layer if kind == "parallel" else step * LAYERS + layer
        assert f"builds on {len(expected)} other vectors" in words.text_content()
        assert f"The longest chain to it has {length} layer" in words.text_content()
        assert view.locator(".fbt-chain").count() == length


def test_arrows_are_played_by_rows_or_by_columns(window):
    view, _ = playing(window.page, MissingArrows())
    now = view.locator("[data-look=now]")
    for kind, rounds, width in (("parallel", 4, STEPS), ("feedback", 24, 1)):
        view.get_by_label(kind, exact=True).check()
        view.locator("input[type=range]").press("Home")
        assert now.count() == STEPS  # the embeddings
        view.get_by_role("button", name="play").click()
        assert now.count() == width
        window.page.clock.run_for(30_000)
        assert view.locator("output").text_content() == f"{rounds} of {rounds}"
        assert view.locator("[data-look='not yet']").count() == 0
    assert "4 rounds for a known text" in view.locator(".fbt-words").text_content()


def test_arrows_move_by_single_rounds_for_readers_who_want_no_motion(window):
    view, words = show(window, MissingArrows("feedback", played=True))
    for step in range(1, 4):
        view.get_by_role("button", name="next round").click()
        assert f"Round {step} of 24: layer {step} at step 0" in words.text_content()
    view.get_by_role("gridcell").first.press("ArrowRight")
    assert words.text_content().startswith("Layer 4 at step 1 builds on")


def kept_items(stack) -> int:
    """Return how many items autograd keeps after each step has read its window."""
    items, query = (torch.randn(2, 3, n, 5, requires_grad=True) for n in (PUSHES, 1))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    known = query.untyped_storage().data_ptr()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = []
        for item in items.split(1, dim=2):
            if (window := stack.window()) is not None:
                scores.append(query @ window.mT)
            stack.push(item)
    return sum(n for at, n in kept.items() if at != known) // items[:, :, :1].nbytes


def test_stacks_keep_what_the_package_keeps_and_go_back(window):
    view, _ = playing(window.page, StackSteps())
    counts = view.locator(".fbt-kept")
    output, arrows = view.locator("output"), view.locator(".fbt-back")
    view.locator("input").press("Home")
    for step in range(PUSHES):
        assert output.text_content() == f"step {step}"
        assert counts.first.text_content().startswith(f"{copies(step)} key")
        assert arrows.count() == 0
        view.locator("input").press("ArrowRight")
    assert output.text_content() == f"backward, step {PUSHES - 1}"
    whole = [int(text.split()[0]) for text in counts.all_text_contents()]
    assert whole == [
        kept_items(fbt.TorchStack(99)),
        kept_items(fbt.MemoryStack(99, PUSHES)),
    ]
    assert arrows.count() == PUSHES - 1 + 2  # pieces; a row, and the rest
    view.locator("input").press("Home")
    view.get_by_role("button", name="play").click()
    window.page.clock.run_for(30_000)
    assert output.text_content() == "backward, step 1"
    assert counts.first.text_content() == "1 key, 128 bytes"
    assert arrows.count() == 2


def test_choices_show_selected_result(window):
    view, words = show(window, choices())
    view.locator("input").press("End")
    view.locator("select").select_option(index=0)
    assert words.text_content() == "2.0 <i><u></i>"
    assert view.locator("output").text_content() == "2"


# How views look, and how they are used


@pytest.fixture
def phone(chromium):
    """Yield a window of a phone, whose pointer is a finger."""
    size = {"width": 390, "height": 820}
    with chromium.new_context(
        viewport=size, has_touch=True, is_mobile=True
    ) as opened:
        yield opened.new_page()


MOBILE = """<meta name="viewport" content="width=device-width">
<style>body { margin: 16px; }</style>"""
LONG = "PETRUCHIO:\nWhy, here's no crab; and therefore look not sour.\n\n" * 2


def long_explorer() -> AttentionExplorer:
    weights = torch.rand(
        1, 2, len(LONG), len(LONG), generator=torch.Generator().manual_seed(0)
    ).tril()
    weights = weights / weights.sum(-1, keepdim=True)
    panels = {"feedback": weights, "parallel": weights.flip(1)}
    return AttentionExplorer(list(LONG), panels, query=9)


def luminance(colour: str) -> float:
    levels = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
    linear = [
        level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4
        for level in levels
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


BACK = {
    "light": ("", "rgb(255, 255, 255)"),
    "the book, dark": ('<html data-theme="dark">', "rgb(21, 24, 28)"),
    "Colab, dark": ('<html theme="dark">', "rgb(56, 56, 56)"),
    "JupyterLab, dark": ('<body data-jp-theme-light="false">', "rgb(17, 17, 17)"),
    "forced": ("", "rgb(0, 0, 0)"),
}


@pytest.mark.parametrize("theme", BACK)
def test_weights_can_be_seen_in_every_theme(window, theme):
    """A weight of 38 % is a bar of at least 6 pixels with a contrast of 3:1."""
    if theme == "forced":
        window.page.emulate_media(forced_colors="active", color_scheme="dark")
    start, back = BACK[theme]
    weights = torch.tensor([[1.0, 0.0], [0.38, 0.62]])[None, None]
    view = AttentionExplorer(
        list("ab"), {"feedback": weights, "parallel": weights}, query=1
    )
    window.page.set_content(start + view.to_html())
    bars = window.page.locator("[role=option]:first-child").evaluate_all(
        "all => all.map((option) => getComputedStyle(option, '::after'))"
        ".map((bar) => [bar.backgroundColor, parseFloat(bar.height)])"
    )
    assert len(bars) == 2
    for colour, height in bars:
        assert height >= 6
        assert contrast(colour, back) >= 3


def test_colours_of_models_are_those_of_figures():
    sheet = style("explorer")
    for kind, name in (("parallel", "blue"), ("feedback", "orange")):
        colour = style_of(kind)["color"].lstrip("#")
        levels = ", ".join(str(level) for level in bytes.fromhex(colour))
        assert f"--fbt-{name}: {levels};" in sheet
        assert f'[data-kind="{kind}"] {{\n  --fbt-heat: var(--fbt-{name});' in sheet


def test_layers_keep_their_colours_in_forced_colours(window):
    window.page.emulate_media(forced_colors="active")
    view, _ = show(window, memory())
    for parts in (".fbt-mixture span", ".fbt-swatch"):
        colours = view.locator(parts).evaluate_all(
            "all => all.map((part) => getComputedStyle(part).backgroundColor)"
        )
        assert len(set(colours)) == 3


def test_lines_of_a_text_are_lines_of_the_page(window):
    """A new line begins after each line feed, at the left."""
    window.page.set_viewport_size({"width": 1300, "height": 900})
    view, _ = show(
        window, AttentionExplorer(list("a\nb c\n\nd"), torch.eye(8)[None, None])
    )
    boxes = view.locator("[role=option]").evaluate_all(
        """all => all.map((one) => one.getBoundingClientRect())
        .map(({ x, y }) => [x, y])"""
    )
    lines = [boxes[:2], boxes[2:6], boxes[6:7], boxes[7:]]
    tops = [{top for _, top in line} for line in lines]
    assert all(len(each) == 1 for each in tops)
    assert [*map(min, tops)] == sorted({min(each) for each in tops})
    assert len({line[0][0] for line in lines}) == 1


def test_fingers_hit_characters_and_controls(phone):
    longest = trace(
        model("shared-kv", span=MAX_STEPS, dropout=0.0), some_tokens(1, MAX_STEPS)[0]
    )
    recurrence = RecurrenceExplorer(list("To be, or no"), longest)
    for view in (
        long_explorer(),
        memory(),
        MissingArrows(),
        StackSteps(),
        recurrence,
    ):
        phone.set_content(MOBILE + view.to_html())
        small, large = "[role=option], [role=gridcell]", "button, select"
        for target, least in ((small, 24), (large, 44)):
            boxes = phone.locator(target).evaluate_all(
                "all => all.map((node) => node.getBoundingClientRect())"
                ".map(({ width, height }) => [width, height])"
            )
            for wide, high in boxes:
                assert wide >= least and high >= max(least, 32)
        assert phone.evaluate("document.documentElement.scrollWidth") == 390


def test_effect_of_a_tap_is_on_the_screen(phone):
    phone.set_content(MOBILE + long_explorer().to_html())
    panel = phone.locator(".fbt-explorer-panel").last
    for option in (0, 60, len(LONG) - 1):
        panel.locator("[role=option]").nth(option).scroll_into_view_if_needed()
        panel.locator("[role=option]").nth(option).tap()
        assert f"step {option + 1} of" in panel.locator("p.fbt-words").text_content()
        box = panel.locator("p.fbt-words").bounding_box()
        assert 0 <= box["y"] <= 820 - box["height"]


def drawing_choices() -> Choices:
    def drawing(words, wide):
        with plt.rc_context(STYLE):
            figure, axes = plt.subplots(figsize=(3, 1 + wide))
        axes.plot([0, 1])
        return figure, "word " * words

    return Choices(drawing, words=[1, 30, 90], wide=[1, 2])


@pytest.mark.parametrize("width", [390, 1300])
@pytest.mark.parametrize(
    "make",
    [
        long_explorer,
        memory,
        drawing_choices,
        MissingArrows,
        StackSteps,
        lambda: RecurrenceExplorer(TOKENS, READ),
    ],
    ids=["explorer", "memory", "choices", "arrows", "stacks", "recurrence"],
)
def test_what_follows_a_view_does_not_move(window, make, width):
    window.page.set_viewport_size({"width": width, "height": 900})
    view, _ = show(window, make())
    heights = set()
    controls = "input, [role=listbox], [role=gridcell][tabindex='0']"
    for control in view.locator(controls).all():
        control.press("Home")
        for _ in range(12):
            heights.add(view.bounding_box()["height"])
            control.press("ArrowRight")
    assert len(heights) == 1


def test_shares_that_round_to_zero_have_no_sign(window):
    little = Snapshot(torch.tensor([1.0, 0.0]), torch.tensor([[1.004, -0.004]]))
    _, words = show(window, MemoryExplorer(["a"], {0: little}))
    assert "100 % the embedding, 0 % layer 1" in words.text_content()
