"""The book's figures, as SVG, in one style for light and dark pages.

The ink is a grey that is readable on white and on black; the built book replaces it
with the page's text colour. Line colours have a contrast of at least 3:1 on both, and
lines also differ in their dashes.
"""

from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from itertools import cycle
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fbt._checks import (
    check_choice,
    check_float_tensor,
    check_instance,
    check_int,
    check_items,
    check_path,
    check_values,
    shorten,
    texts_in,
)
from fbt._files import write_file
from fbt._text import replace_surrogates

try:
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    from cycler import cycler
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(
        "fbt.views.figures needs the package matplotlib: pip install matplotlib"
    ) from error

INK = "#757575"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
DASHES = ("-", "--", "-.", ":")
HEAT = "cividis"
# One colour and one dash for each kind of model, in every figure of the book.
MODELS = ("parallel", "feedback", "shared-kv", "LSTM")
# What comes from the layer below, and from the memory: as the models that do it.
BELOW, MEMORY = COLOURS[:2]
# The embedding and layers 1 to 4; deeper layers begin again. common.css has the same.
LAYERS = (INK, "#8F6FD0", "#9A7B1F", "#0E8C96", "#C7517A")
CHARACTER = 0.11  # inches per readable character on an axis

STYLE: dict[Any, Any] = {
    # still readable on a phone, where it shrinks by a fifth
    "figure.figsize": (4.4, 2.9),
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "savefig.bbox": "tight",
    "figure.constrained_layout.use": True,
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS) + cycler(linestyle=DASHES),
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "fbt",
}


def use_book_style() -> None:
    """Use the book's style for all new figures, and SVG in notebooks."""
    mpl.rcParams.update(STYLE)
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # not in a notebook
        return
    set_matplotlib_formats("svg")


def style_of(model: str) -> dict[str, Any]:
    """Return the colour and the dash of a kind of model, for `Axes.plot`.

    Raises:
        ValueError: if `model` is not one of `MODELS`.
    """
    check_choice("model", model, MODELS)
    index = MODELS.index(model)
    return {"color": COLOURS[index], "linestyle": DASHES[index]}


def style_of_layer(layer: int) -> dict[str, Any]:
    """Return the colour and the dash of a layer, for `Axes.plot`; 0 is the embedding.

    Raises:
        TypeError: if `layer` is not an int.
        ValueError: if `layer` is negative.
    """
    check_int("layer", layer, low=0)
    index = layer % len(LAYERS)
    return {"color": LAYERS[index], "linestyle": ("-", *DASHES)[index]}


def _styles_of(names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return a style for each name: a model's own, or one that no model here has."""
    free = cycle([model for model in MODELS if model not in names] or MODELS)
    return {name: style_of(name if name in MODELS else next(free)) for name in names}


def svg_of(figure: Figure) -> bytes:
    """Close a figure, and return it as SVG without its date and creator."""
    check_instance("figure", figure, Figure)
    buffer = BytesIO()
    try:
        with mpl.rc_context(STYLE):
            figure.savefig(
                buffer,
                format="svg",
                metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
            )
    finally:
        plt.close(figure)
    return buffer.getvalue()


def save_svg(figure: Figure, path: str | Path) -> None:
    """Write a figure as SVG, completely or not at all, and close it."""
    check_path("path", path)
    if not Path(path).name:
        raise ValueError(f"path must be the path of a file, got {shorten(path)}")
    write_file(path, svg_of(figure))


def loss_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], *, over: str = "step"
) -> Figure:
    """Plot the validation losses of runs, with smoothed training losses behind them.

    Args:
        runs: maps names for the legend to the `metrics` of runs of `fbt.train`. The
            names in `MODELS` have their own colours.
        over: the horizontal axis, "step" or "seconds".

    Raises:
        TypeError: if `runs` is not such a mapping.
        ValueError: if `over` is neither of these, or missing from a metric.
    """
    check_choice("over", over, ("step", "seconds"))
    _check_metrics(runs, over)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots()
        for name, style in _styles_of(runs).items():
            metrics = runs[name]
            training = [(m[over], m["loss"]) for m in metrics if "loss" in m]
            validation = [
                (m[over], m["val_loss"]) for m in metrics if "val_loss" in m
            ]
            if training:
                x, y = np.array(training).T
                width = max(1, len(y) // 50)
                smooth = np.convolve(y, np.ones(width) / width, mode="valid")
                thin = style | {"linestyle": "-"}
                axes.plot(x[width - 1 :], smooth, **thin, linewidth=0.7)
            if validation:
                x, y = np.array(validation).T
                marker = "o" if len(x) < 30 else ""
                axes.plot(x, y, **style, marker=marker, markersize=4, label=name)
        axes.set_xlabel({"step": "optimiser step", "seconds": "seconds"}[over])
        axes.set_ylabel("loss, nats per character")
        _add_legend(axes)
    return figure


def _check_metrics(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], over: str
) -> None:
    """Raise unless every metric of every run has the number `over`."""
    check_instance("runs", runs, Mapping)
    for name, metrics in runs.items():
        check_items(f"runs[{shorten(name)}]", metrics, Mapping)
        missing = [metric for metric in metrics if over not in metric]
        if missing:
            raise ValueError(
                f"runs[{shorten(name)}] must have {over!r} in each metric, "
                f"got {shorten(missing[0])}"
            )


def _add_legend(axes: Axes) -> None:
    """Add a legend, unless there are no lines, which matplotlib would warn about."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def attention_maps(weights: Tensor, tokens: Sequence[str]) -> Figure:
    """Plot attention weights over a text: a row of maps per layer, a map per head.

    The axes show the characters if they are readable there; spaces and line ends are
    shown as signs. A single map has no heading.

    Args:
        weights: attention weights [L, H, T, T], as returned by
            `LanguageModel.attention` for one sequence. Rows are queries.
        tokens: the T characters.

    Raises:
        TypeError: if `weights` is not a floating-point tensor, or `tokens` is not a
            sequence of texts.
        ValueError: if their shapes do not match.
    """
    check_float_tensor("weights", weights)
    tokens = texts_in("tokens", tokens)
    check_values("weights", weights)
    if (
        weights.ndim != 4
        or weights.shape[2:] != (len(tokens),) * 2
        or not weights.numel()
    ):
        expected = f"[L, H, {len(tokens)}, {len(tokens)}] for {len(tokens)} tokens"
        raise ValueError(f"weights must be {expected}, got {list(weights.shape)}")
    layers, heads, length = weights.shape[:3]
    size, has_titles = min(4.8, 5.2 / heads), layers * heads > 1
    future = np.triu(np.ones((length, length), dtype=bool), 1)
    with mpl.rc_context(STYLE):
        figure, grid = plt.subplots(
            layers, heads, figsize=(size * heads, size * layers), squeeze=False
        )
        for layer in range(layers):
            for head in range(heads):
                axes = grid[layer, head]
                seen = np.ma.masked_where(
                    future, weights[layer, head].float().cpu().numpy()
                )
                axes.imshow(seen, cmap=HEAT, vmin=0, interpolation="nearest")
                if layer == 0 and has_titles:
                    axes.set_title(f"head {head + 1}")
                if head == 0 and has_titles:
                    axes.set_ylabel(f"layer {layer + 1}")
                _character_ticks(axes, tokens if size / length > CHARACTER else None)
    return figure


def _sign(character: str) -> str:
    """Return a visible sign for a blank, or a character that SVG does not allow."""
    signs = {
        " ": "␣",
        "\n": "⏎",
        "\t": "⇥",
        "\x7f": "␡",
        "\ufffe": "\ufffd",
        "\uffff": "\ufffd",
    }
    return signs.get(
        character,
        chr(0x2400 + ord(character))
        if character < " "
        else replace_surrogates(character),
    )


def _character_ticks(axes: Axes, tokens: Sequence[str] | None) -> None:
    """Label both axes with the characters; None removes the ticks."""
    if tokens is None:
        axes.set_xticks([])
        axes.set_yticks([])
        return
    names = ["".join(map(_sign, token)) for token in tokens]
    for set_ticks in (axes.set_xticks, axes.set_yticks):
        set_ticks(
            range(len(names)), names, fontsize=9, family="monospace", parse_math=False
        )
    axes.tick_params(length=0)


def layer_weights_over_time(
    steps: Sequence[int], weights: Sequence[Tensor] | Tensor
) -> Figure:
    """Plot the mixture of layers in the memory vector during training.

    Args:
        steps: N optimiser steps.
        weights: N vectors w [L + 1], or a tensor [N, L + 1].

    Raises:
        TypeError: if `steps` or `weights` has another type.
        ValueError: if their shapes do not match.
    """
    values = _weight_rows(steps, weights)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots()
        for l in range(values.shape[1]):
            axes.plot(
                steps,
                values[:, l],
                **style_of_layer(l),
                marker="" if l < len(LAYERS) else "o",
                markersize=3,
                label="embedding" if l == 0 else f"layer {l}",
            )
        axes.axhline(1 / values.shape[1], color=INK, linewidth=0.8, linestyle=":")
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("share in the memory, $w_l$")
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
        # List the lines in the order of their right ends, the highest first.
        lines = np.array(axes.get_lines()[:-1])[np.argsort(-values[-1])]
        axes.legend(handles=list(lines), loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _weight_rows(
    steps: Sequence[int], weights: Sequence[Tensor] | Tensor
) -> np.ndarray:
    """Check the mixtures at N steps, and return them as an array [N, L + 1]."""
    check_items("steps", steps, Real)
    if not isinstance(weights, Tensor):
        check_items("weights", weights, Tensor)
    rows = [] if isinstance(weights, Tensor) and not weights.ndim else list(weights)
    shapes = {tuple(row.shape) for row in rows}
    if (
        len(rows) != len(steps)
        or len(shapes) != 1
        or len(min(shapes)) != 1
        or not rows[0].numel()
    ):
        raise ValueError(
            f"weights must be a vector for each of {len(steps)} steps, "
            f"got {shorten([list(row.shape) for row in rows])}"
        )
    for row in rows:
        check_values("weights", row)
    return torch.stack(rows).float().cpu().numpy()


def cost_against_length(
    lengths: Sequence[int],
    costs: Mapping[str, Sequence[float]],
    *,
    unit: str = "seconds",
    ylabel: str = "time per step",
) -> Figure:
    """Plot measured costs against sequence length, on logarithmic axes.

    Args:
        lengths: sequence lengths T.
        costs: maps names for the legend to values, one per length.
        unit: the unit of the costs.
        ylabel: the quantity that was measured.

    Raises:
        TypeError: if an argument has another type.
        ValueError: if there is not one cost per length.
    """
    check_items("lengths", lengths, Real)
    check_instance("unit", unit, str)
    check_instance("ylabel", ylabel, str)
    _check_costs(lengths, costs)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots()
        styles = zip(_styles_of(costs).items(), cycle("os^D"), strict=False)
        for (name, style), marker in styles:
            look = style | {"marker": marker}
            axes.plot(lengths, costs[name], **look, markersize=5, label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(list(lengths), [str(n) for n in lengths])
        axes.minorticks_off()
        axes.set_xlabel("sequence length T, characters")
        axes.set_ylabel(f"{ylabel}, {unit}")
        _add_legend(axes)
    return figure


def _check_costs(
    lengths: Sequence[int], costs: Mapping[str, Sequence[float]]
) -> None:
    """Raise unless there is one cost per length."""
    check_instance("costs", costs, Mapping)
    for name, values in costs.items():
        check_items(f"costs[{shorten(name)}]", values, Real)
        if len(values) != len(lengths):
            raise ValueError(
                f"costs[{shorten(name)}] must have one value for each of "
                f"{len(lengths)} lengths, got {len(values)}"
            )
