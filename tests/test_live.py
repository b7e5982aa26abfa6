"""Tests of the live model: packed weights, arguments, and the view in a browser."""

import base64
import json
import re

import executor
import fbt_live
import pytest
import torch
from engines import NODE, node
from exact import VARIANTS, gradient_sizes
from watching import slowness, task_times

import fbt
from fbt.views.live import FOLDER_VARIABLE, LONGEST
from fbt.views.packing import SMALL, pack, rounded, weights_script

NAMES = ("tiny-shakespeare", "tiny-shakespeare-parallel")
TOKENIZER = fbt.CharTokenizer.from_vocabulary("abcdefghijklmno\n </>")
SIZES = {"d_model": 28, "d_ff": 73, "n_layers": 2, "span": 17}


def small(variant: str = "shared-kv", **changes) -> fbt.LanguageModel:
    config = fbt.Config(20, variant=variant, n_heads=2, **{**SIZES, **changes})
    torch.manual_seed(0)
    return fbt.LanguageModel(config, TOKENIZER).eval()


def state_of(view: fbt.LiveModel) -> dict:
    return json.loads(re.search(r"const state = (.*);\n", view.to_html())[1])["data"]


# Packed weights


@pytest.mark.skipif(not NODE.exists(), reason="playwright has no Node")
def test_unpacked_bytes_equal_rounded_weights():
    lm = small()
    with torch.no_grad():
        lm.body.layers[0].feed_forward.inner.weight[0] = 0  # a row without a scale
    unpacked = node(
        "(packed) => Object.fromEntries(Object.entries(unpack(packed))"
        ".map(([name, { data }]) => [name, [...data]]))",
        pack(lm),
    )
    expected = rounded(lm).state_dict()
    assert unpacked.keys() == expected.keys()
    some = lm.state_dict()
    sizes = [weight.numel() for weight in some.values() if weight.ndim > 1]
    assert min(sizes) <= SMALL < max(sizes)
    for name, numbers in unpacked.items():
        weight = expected[name]
        actual = torch.tensor(numbers, dtype=torch.float32)
        torch.testing.assert_close(actual, weight.flatten(), msg=name)
        step = some[name].abs().amax(-1, keepdim=True) / 127
        assert (weight - some[name]).abs().le(0.51 * step + 1e-7).all(), name


def test_packed_tensors_lie_at_multiples_of_four_and_fill_the_data():
    packed = pack(small())
    data = base64.b64decode(packed["data"])
    starts = [start for *_, start in packed["tensors"]]
    assert starts == sorted(starts) and not any(start % 4 for start in starts)
    assert starts[-1] < len(data)
    assert {kind for _, _, kind, _ in packed["tensors"]} == {"int8", "float32"}


@pytest.mark.parametrize("name", NAMES)
def test_script_of_a_shipped_model_is_small(name):
    assert len(weights_script(name)) < 3.9e6


def test_models_that_a_page_cannot_compute_are_refused():
    with_hook = small()
    with_hook.body.layers[1].register_forward_hook(lambda *_: None)
    replaced = small()
    replaced.body.layers[0].norm1 = torch.nn.RMSNorm(28)
    broken = small()
    broken.norm.bias.data[3] = torch.inf
    without = fbt.LanguageModel(fbt.Config(20, d_model=4, n_heads=2))
    for lm, words in (
        (with_hook, r"body\.layers\.1 has a forward hook"),
        (replaced, r"missing 'body\.layers\.0\.norm1\.bias'"),
        (broken, r"norm\.bias\[3\] must be finite, got inf"),
        (without, "must have a tokenizer"),
        (small(d_ff=400_000), "at most 20000000 parameters for a page"),
    ):
        with pytest.raises(ValueError, match=words):
            fbt.LiveModel(lm)


# The view in Python


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"model": 3}, TypeError, "model must be of type LanguageModel, got 3"),
        ({"model": "none"}, FileNotFoundError, "names that ship with fbt"),
        ({"twin": NAMES[1]}, ValueError, "twin must have the vocabulary of model"),
        ({"text": 3}, TypeError, "text must be of type str, got 3"),
        ({"text": ""}, ValueError, "text must have 1 to 2000 characters, got 0"),
        ({"text": "a" * 2001}, ValueError, "got 2001"),
        ({"text": "aQ"}, ValueError, r"got 'Q' \(U\+0051\) at position 1"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        fbt.LiveModel(**({"model": small()} | arguments))


@pytest.mark.parametrize("variant", VARIANTS)
def test_page_begins_with_what_the_model_computes(variant):
    """On a text longer than the span."""
    lm, text = small(variant), "abc\nd </ef" * 3
    data = state_of(fbt.LiveModel(lm, text=text))
    tokens = TOKENIZER.encode(text)[None]
    logs = lm(tokens)[0].log_softmax(-1).detach()
    surprises = -logs[range(29), tokens[0, 1:]]
    start = data["start"]
    assert start["surprises"][0] is None
    assert start["surprises"][1:] == pytest.approx(surprises.tolist(), rel=1e-4)
    (seen,) = start["seen"]
    assert seen["chances"] == pytest.approx(logs[-1].exp().tolist(), rel=1e-4)
    weights = lm.attention(tokens)[:, 0, :, -1].mean((0, 1))
    own = variant == "parallel"
    assert seen["own"] == own and len(seen["weights"]) == 17 + own
    assert sum(seen["weights"]) == pytest.approx(1, abs=1e-5)
    first = 30 - 1 + own - len(seen["weights"])
    assert seen["weights"] == pytest.approx(
        weights[first : first + len(seen["weights"])].tolist()
    )
    if own:
        assert seen["shares"] is None and data["mixture"] is None
    else:
        assert sum(seen["shares"]) == pytest.approx(1, abs=1e-5)
        assert data["mixture"] == pytest.approx([1 / 3] * 3)


def test_output_has_the_weights_once_or_names_their_script(monkeypatch):
    lm = small()
    bundle = fbt.LiveModel(lm)._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    assert bundle["text/html"].count(pack(lm)["data"]) == 1
    assert bundle["text/plain"] == "LiveModel(feedback)"
    monkeypatch.setenv(FOLDER_VARIABLE, fbt_live.FOLDER)
    page = fbt.LiveModel(*NAMES).to_html()
    assert len(page) < 120_000
    assert all(f'"{fbt_live.FOLDER}/{name}.js"' in page for name in NAMES)
    assert executor.ENVIRONMENT == {FOLDER_VARIABLE: fbt_live.FOLDER}


def test_text_is_shown_without_scripts_and_as_text():
    page = fbt.LiveModel(small(), text="a</b>\nc").to_html()
    still = re.search(r"<figure.*?</figure>", page)[0]
    assert "&lt;</span>" in still and "<b>" not in still
    assert "Next it expects" in still


# The view in a browser

MOST_BLOCKED = 50  # milliseconds of processor time at 3 GHz
PASSAGE = "KATHARINA:\nIt is my fashion, when I see a crab."


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return a page on disk with the shipped models beside it, as in the book."""
    folder = tmp_path_factory.mktemp("live")
    (folder / "weights").mkdir()
    for name in NAMES:
        script = folder / "weights" / f"{name}.js"
        script.write_text(weights_script(name), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, "weights")
        view = fbt.LiveModel(*NAMES).to_html()
    path = folder / "page.html"
    path.write_text(f'<!doctype html><meta charset="utf-8">{view}', encoding="utf-8")
    return path


SHADES = """all => all.map((one) =>
  Number(one.style.getPropertyValue('--surprise')))"""


def surprises_in(view) -> list[float]:
    """Return how dark the characters of the first row are."""
    return view.locator("section").first.locator("[role=option]").evaluate_all(SHADES)


def test_reader_types_writes_pauses_and_looks(window, page):
    """With the weights of a page, whose loss is that of `rounded`."""
    opened, view = window.page, window.page.locator(".fbt-live")
    opened.emulate_media(reduced_motion="no-preference")  # written slowly
    window.goto(page.as_uri())
    field, words = view.locator("textarea"), view.locator("[aria-live]")
    name = re.compile(r"Load the model \(3\.\d MB\)")
    assert len(window.requests) == 1  # nothing before the click
    view.get_by_role("button", name=name).click()
    write = view.get_by_role("button", name="Write on")
    write.wait_for()

    # Reading: unknown characters are said, and shades are the package's.
    field.fill(PASSAGE.replace("crab", "crab\u00e9 7"))
    missing = view.locator(".fbt-missing")
    assert "“é”, “7”" in missing.text_content()
    field.fill(PASSAGE)
    assert missing.text_content() == ""
    lm = rounded(fbt.LanguageModel.from_pretrained(NAMES[0]))
    tokens = lm.tokenizer.encode(PASSAGE)[None]
    logs = lm(tokens)[0].log_softmax(-1).detach()
    surprises = -logs[range(len(PASSAGE) - 1), tokens[0, 1:]]
    opened.wait_for_function(
        "(text) => document.querySelector('.fbt-measure').textContent === text",
        arg=f"{surprises.mean():.2f} nats per character",
    )
    wanted = (surprises / 5).clamp(max=1).tolist()
    assert surprises_in(view) == pytest.approx([0, *wanted], abs=1e-3)

    # Looking: a character by keys, a layer and a head.
    row = view.get_by_role("listbox").first
    row.focus()
    row.press("Home")
    row.press("ArrowRight")
    opened.wait_for_function(
        "(text) => document.querySelector('[aria-live]').textContent.includes(text)",
        arg=f"Character 2 of {len(PASSAGE)}, “A”",
    )
    assert f"a surprise of {surprises[0]:.2f} nats" in words.text_content()
    row.press("End")
    view.get_by_role("combobox", name="layer").select_option(label="3")
    view.get_by_role("combobox", name="head").select_option(label="2")
    weights = lm.attention(tokens)[2, 0, 1, -1]
    best = int(weights.argmax())
    opened.wait_for_function(
        "(text) => document.querySelector('.fbt-panels').textContent.includes(text)",
        arg=f"{len(PASSAGE) - 1 - best} back, {100 * weights[best]:.0f} %",
    )

    # Writing: pausing and going on writes what one go would have written.
    view.get_by_role("button", name="One character").click()
    opened.wait_for_function(
        "(length) => document.querySelector('textarea').value.length > length",
        arg=len(PASSAGE),
    )
    write.click()
    view.get_by_role("button", name="Pause").click()
    write.wait_for()
    paused = field.input_value()
    opened.wait_for_timeout(100)
    assert field.input_value() == paused  # at once
    field.press("Control+Enter")
    opened.wait_for_function(
        "(length) => document.querySelector('textarea').value.length >= length",
        arg=len(paused) + 20,
    )
    field.press("Escape")
    write.wait_for()
    in_parts = field.input_value()
    field.fill(PASSAGE)
    write.click()
    length = len(paused) + 20
    opened.wait_for_function(
        "(length) => document.querySelector('textarea').value.length >= length",
        arg=length,
    )
    field.press("Escape")
    write.wait_for()
    assert field.input_value()[:length] == in_parts[:length]

    # The twin, and the difference.
    view.get_by_role(
        "button", name=re.compile(r"Compare with parallel \(3\.")
    ).click()
    difference = view.locator("section", has_text="which of the two")
    difference.get_by_text(re.compile(r"(feedback|parallel) is ahead by")).wait_for()
    assert not window.complaints
    local = page.parent.as_uri()
    assert not window.outside(local)
    assert len(window.requests) == 1 + len(NAMES) + 1  # page, weights, worker


def test_bars_show_what_a_guess_depends_on(window):
    """The gradient of the next character, of a chosen one, in both models."""
    text = "abcd efgh"
    models = [small(), small("parallel")]
    window.page.set_content(fbt.LiveModel(*models, text=text).to_html())
    view = window.page.locator(".fbt-live")
    view.get_by_role("button", name="Compare with parallel").click()
    view.get_by_text(re.compile("ahead by")).wait_for()
    view.get_by_label("bars below the text").select_option("gradient")
    view.get_by_role("listbox").first.press("ArrowLeft")
    reads = view.get_by_text(re.compile(r"How much log p\(“h”\) depends"))
    reads.wait_for()
    tokens = TOKENIZER.encode(text)
    rows = view.locator("section:has([role=listbox])").all()[:2]
    for lm, row in zip(models, rows, strict=True):
        sizes = gradient_sizes(lm, tokens[:-1], int(tokens[-1]))
        bars = row.locator("[role=option]").evaluate_all(
            "all => all.map((one) => Number(one.style.getPropertyValue('--read')))"
        )
        wanted = (sizes / sizes.max()).sqrt().tolist()
        assert bars == pytest.approx([*wanted, 0], abs=2e-3)
        back = (sizes / sizes.sum()) @ torch.arange(len(text) - 2, -1, -1.0)
        assert f" {back:.1f}" in reads.text_content()
    view.get_by_label("bars below the text").select_option("attention")
    view.get_by_text("The bars below the text show it").wait_for()
    assert not window.complaints


def test_question_for_the_gradient_loads_the_model(window, page):
    window.goto(page.as_uri())
    view = window.page.locator(".fbt-live")
    view.get_by_label("bars below the text").select_option("gradient")
    reads = view.get_by_text(re.compile("How much log p"))
    reads.wait_for()
    view.get_by_role("button", name="One character").click()  # and once more
    view.get_by_text("Computing the gradient").wait_for()
    reads.wait_for()
    assert not window.complaints


def test_full_text_stops_writing_and_old_texts_do_not_come_back(window):
    """For a reader who prefers less motion: the text appears at once."""
    window.page.set_content(fbt.LiveModel(small(), text="abc").to_html())
    view = window.page.locator(".fbt-live")
    field = view.locator("textarea")
    write = view.get_by_role("button", name="Write on")
    write.wait_for()  # no click: the weights are in the page
    field.fill("ab " * 655)
    write.click()
    window.page.wait_for_function(
        "(length) => document.querySelector('textarea').value.length === length",
        arg=LONGEST,
    )
    view.get_by_text("The text is full").wait_for()
    assert write.get_attribute("aria-disabled") == "true"
    field.fill("")
    view.get_by_text("Type something").wait_for()
    field.fill("ba")
    window.page.wait_for_function(
        "() => document.querySelector('[aria-live]').textContent"
        ".startsWith('Character 2 of 2, “a”')"
    )
    view.locator("[role=option]").nth(1).wait_for()  # drawn with the next frame
    assert view.locator("[role=option]").all_text_contents() == ["b", "a"]
    assert not window.complaints


def test_long_text_of_two_models_does_not_block_the_page(chromium, window):
    """No task takes as long as a reader notices, while 2,000 characters appear."""
    view = fbt.LiveModel(small(), small("parallel"), text="abc")
    page = window.page
    page.set_content(view.to_html())
    page.get_by_role("button", name="Compare with parallel").click()
    page.get_by_text(re.compile("ahead by .* over 2 characters")).wait_for()
    page.mouse.move(0, 0)
    chromium.start_tracing(page=page, categories=["toplevel"])
    page.locator("textarea").evaluate(
        """(field, text) => {
          field.value = text;
          field.dispatchEvent(new Event("input", { bubbles: true }));
        }""",
        "abcd efgh\n" * (LONGEST // 10),
    )
    page.get_by_text(f"Character {LONGEST} of {LONGEST}").wait_for()
    page.get_by_text(f"over {LONGEST - 1} characters").wait_for()
    page.wait_for_function(
        "(all) => document.querySelectorAll('[role=option][style]').length === all",
        arg=3 * LONGEST,  # in three rows
    )
    assert max(task_times(chromium.stop_tracing())) < MOST_BLOCKED * slowness(page)


def test_finger_finds_a_character(chromium):
    """By drawing it along a line, or with the buttons."""
    size = {"width": 390, "height": 820}
    with chromium.new_context(
        viewport=size, has_touch=True, is_mobile=True
    ) as opened:
        page = opened.new_page()
        page.set_content(
            '<meta name="viewport" content="width=device-width">'
            + fbt.LiveModel(small(), text="abcdefghij").to_html()
        )
        chosen = page.locator("[aria-selected=true]")
        page.get_by_text("Character 10 of 10").wait_for()
        boxes = [one.bounding_box() for one in page.locator("[role=option]").all()]
        for text, letter in (("◂ previous", "i"), ("◂ previous", "h"), ("next", "i")):
            button = page.get_by_role("button", name=text)
            assert button.bounding_box()["height"] >= 44
            button.tap()
            assert chosen.text_content() == letter
        # Beside the text, the nearest one.
        page.touchscreen.tap(boxes[-1]["x"] + 60, boxes[-1]["y"] + 9)
        chosen.filter(has_text="j").wait_for()
        touch = opened.new_cdp_session(page)
        points = [{"x": box["x"] + 4, "y": box["y"] + 9} for box in boxes]
        for kind, touched in (
            ("touchStart", points[1:2]),
            *(("touchMove", [point]) for point in points[2:6]),
            ("touchEnd", []),
        ):
            touch.send(
                "Input.dispatchTouchEvent", {"type": kind, "touchPoints": touched}
            )
        assert chosen.text_content() == "f"
