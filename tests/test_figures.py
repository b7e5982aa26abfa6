"""Tests of the book's figures and of their contrast on light and dark pages."""

import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from fbt.views import figures

PAGES = {"light": "#ffffff", "dark": "#15181c"}  # as in book/_static/fbt.css
METRICS = [
    {"step": i, "seconds": 2.0 * i, "loss": 4.0 - i / 100} for i in range(1, 101)
]
METRICS += [
    {"step": i, "seconds": 2.0 * i, "val_loss": 4.1 - i / 100} for i in (50, 100)
]


@pytest.fixture(autouse=True)
def close_figures():
    plt.close("all")
    yield
    plt.close("all")


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2."""

    def luminance(colour: str) -> float:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in to_rgb(colour)
        ]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("colour", (*figures.LAYERS, *figures.COLOURS))
def test_colours_have_enough_contrast(colour, page):
    assert contrast(colour, PAGES[page]) >= 3


def test_each_model_and_layer_has_a_colour_of_its_own():
    models = [figures.style_of(model)["color"] for model in figures.MODELS]
    layers = [figures.style_of_layer(layer)["color"] for layer in range(5)]
    assert len({*models, *layers}) == 9
    runs = {"usual": METRICS, "feedback": METRICS}  # the second has its own colour
    lines = figures.loss_curves(runs).axes[0].get_lines()
    assert [line.get_color() for line in lines[2:]] == [models[1]] * 2
    assert models[1] not in [line.get_color() for line in lines[:2]]
    css = (Path(figures.__file__).parent / "common.css").read_text()
    assert re.findall(r"--fbt-layer-\d: (#\w+);", css) == [c.lower() for c in layers]


def some_figures():
    torch.manual_seed(0)
    weights = torch.softmax(torch.randn(2, 3, 5, 5), -1).tril()
    return {
        "losses": figures.loss_curves({"parallel": METRICS, "feedback": METRICS}),
        "maps": figures.attention_maps(weights, list("a b\nc")),
        "mixture": figures.layer_weights_over_time([0, 10], torch.full((2, 5), 0.2)),
        "cost": figures.cost_against_length(
            [8, 16], {"stack": [1.0, 2.0], "list": [1.0, 4.0]}
        ),
    }


@pytest.mark.parametrize("name", ["losses", "maps", "mixture", "cost"])
def test_text_is_readable_and_background_transparent(name):
    figure = some_figures()[name]
    assert figure.get_facecolor()[3] == 0
    for axes in figure.axes:
        texts = [
            axes.title,
            axes.xaxis.label,
            axes.yaxis.label,
            *axes.get_xticklabels(),
            *axes.get_yticklabels(),
        ]
        assert min(text.get_fontsize() for text in texts) >= 9


@pytest.mark.parametrize("over", ["step", "seconds"])
def test_loss_curves_show_all_runs(over):
    axes = figures.loss_curves({"one": METRICS, "two": METRICS}, over=over).axes[0]
    labelled = {
        line.get_label(): line
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
    }
    assert list(labelled) == ["one", "two"]
    assert labelled["one"].get_xdata().tolist() == [
        m[over] for m in METRICS if "val_loss" in m
    ]
    assert labelled["one"].get_ydata().tolist() == [
        m["val_loss"] for m in METRICS if "val_loss" in m
    ]
    assert labelled["one"].get_linestyle() != labelled["two"].get_linestyle()


def test_attention_maps_hide_the_future():
    weights = torch.rand(2, 3, 4, 4).bfloat16()  # which numpy does not know
    figure = figures.attention_maps(weights, list("ab c"))
    assert [axes.get_title() for axes in figure.axes[:2]] == ["head 1", "head 2"]
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["layer 1", "layer 2"]
    shown = figure.axes[4].images[0].get_array()  # layer 2, head 2
    assert (shown.mask == np.triu(np.ones((4, 4)), 1)).all()
    assert np.allclose(shown.compressed(), weights.float()[1, 1][np.tril_indices(4)])
    assert [t.get_text() for t in figure.axes[4].get_xticklabels()] == [
        "a",
        "b",
        "␣",
        "c",
    ]


def test_attention_maps_omit_characters_without_space():
    figure = figures.attention_maps(torch.rand(1, 4, 64, 64), ["x"] * 64)
    assert not figure.axes[0].get_xticklabels()


# matplotlib's fonts lack some glyphs that browsers have
@pytest.mark.filterwarnings("ignore:Glyph")
def test_svg_contains_characters_as_text():
    odd = [
        "<b>",
        "&",
        "]]>",
        "$x^$",
        "\0",
        "\x1b",
        "\ufffe",
        "\ud800",
        "\u202e",
        "🎭",
    ]
    svg = figures.svg_of(figures.attention_maps(torch.rand(1, 1, 10, 10), odd))
    elements = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    texts = [element.text for element in elements]
    expected = [
        "<b>",
        "&",
        "]]>",
        "$x^$",
        "␀",
        "␛",
        "\ufffd",
        "\ufffd",
        "\u202e",
        "🎭",
    ]
    assert texts == 2 * expected


def test_layer_weights_legend_is_in_order_of_last_values():
    figure = figures.layer_weights_over_time(
        [0, 5], [torch.tensor([0.3, 0.7]), torch.tensor([0.6, 0.4])]
    )
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "embedding",
        "layer 1",
    ]


def test_svg_is_reproducible_and_leaves_no_temporary_files(tmp_path):
    for name in ("one.svg", "two.svg"):
        figures.save_svg(figures.loss_curves({"run": METRICS}), tmp_path / name)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.svg", "two.svg"))
    assert one == two
    assert ElementTree.fromstring(one).tag.endswith("svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.svg", "two.svg"]
    assert not plt.get_fignums()
