"""The book's figures: one style for all, made for light and dark pages, as SVG.

Ink is a grey that reads on white and on black; the built book swaps it for the page's
own text colour. Line colours keep a contrast of 3:1 on both, and every line also has
a dash of its own.
"""

from collections.abc import Mapping, Sequence
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
CHARACTER = 0.11  # inches that a character needs on an axis to be read

STYLE: dict[Any, Any] = {
    # on a phone it shrinks by a fifth, and can still be read
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
    """Give every figure made from here on the book's style, and show figures as SVG in a notebook."""
    mpl.rcParams.update(STYLE)
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # not in a notebook
        return
    set_matplotlib_formats("svg")


def style_of(model: str) -> dict[str, str]:
    """Return the colour and the dash of a kind of model, as arguments for `Axes.plot`.

    Raises:
        ValueError: if `model` is not one of `MODELS`.
    """
    check_choice("model", model, MODELS)
    index = MODELS.index(model)
    return {"color": COLOURS[index], "linestyle": DASHES[index]}


def svg_of(figure: Figure) -> bytes:
    """A figure as an SVG document, without a note of who made it and when; closes it."""
    check_instance("figure", figure, Figure)
    buffer = BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(
            buffer,
            format="svg",
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    plt.close(figure)
    return buffer.getvalue()


def save_svg(figure: Figure, path: str | Path) -> None:
    """Write a figure as SVG, whole or not at all, and close it."""
    check_path("path", path)
    if not Path(path).name:
        raise ValueError(f"path must be that of a file, got {shorten(path)}")
    write_file(path, svg_of(figure))


def loss_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], *, over: str = "step"
) -> Figure:
    """Validation losses of runs, with the smoothed training losses behind them.

    Args:
        runs: the `metrics` of `fbt.train` by the name the legend shows.
        over: what the horizontal axis counts, "step" or "seconds".

    Raises:
        TypeError: `runs` is something else.
        ValueError: `over` is something else, or a metric has no such number.
    """
    check_choice("over", over, ("step", "seconds"))
    check_instance("runs", runs, Mapping)
    for name, metrics in runs.items():
        check_items(f"runs[{shorten(name)}]", metrics, Mapping)
        missing = [metric for metric in metrics if over not in metric]
        if missing:
            raise ValueError(
                f"runs[{shorten(name)}] must have {over!r} in each metric, got {shorten(missing[0])}"
            )
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots()
        looks = cycle(zip(COLOURS, DASHES, strict=True))
        for (name, metrics), (colour, dash) in zip(runs.items(), looks, strict=False):
            training = [(m[over], m["loss"]) for m in metrics if "loss" in m]
            validation = [
                (m[over], m["val_loss"]) for m in metrics if "val_loss" in m
            ]
            if training:
                x, y = np.array(training).T
                width = max(1, len(y) // 50)
                smooth = np.convolve(y, np.ones(width) / width, mode="valid")
                axes.plot(
                    x[width - 1 :], smooth, color=colour, linewidth=0.7, linestyle="-"
                )
            if validation:
                x, y = np.array(validation).T
                marker = "o" if len(x) < 30 else ""
                axes.plot(
                    x,
                    y,
                    color=colour,
                    linestyle=dash,
                    marker=marker,
                    markersize=4,
                    label=name,
                )
        axes.set_xlabel({"step": "optimiser step", "seconds": "seconds"}[over])
        axes.set_ylabel("loss, nats a character")
        _add_legend(axes)
    return figure


def _add_legend(axes: Axes) -> None:
    """Name the lines, if there are any; matplotlib warns of an empty legend."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def attention_maps(weights: Tensor, tokens: Sequence[str]) -> Figure:
    """Attention weights over a text, a row of maps for each layer and a map for each head.

    The axes show the characters where there is room for them; the space and the line
    end get a sign. A single map has no heading.

    Args:
        weights: [L, H, T, T], row = query, as `LanguageModel.attention` returns for
            one sequence.
        tokens: the T characters.

    Raises:
        TypeError: `weights` is not a floating-point tensor, or `tokens` not a
            sequence of texts.
        ValueError: their shapes do not fit.
    """
    check_float_tensor("weights", weights)
    tokens = texts_in("tokens", tokens)
    check_values("weights", weights)
    if (
        weights.ndim != 4
        or weights.shape[2:] != (len(tokens),) * 2
        or not weights.numel()
    ):
        wanted = f"[L, H, {len(tokens)}, {len(tokens)}] for {len(tokens)} tokens"
        raise ValueError(f"weights must be {wanted}, got {list(weights.shape)}")
    layers, heads, length = weights.shape[:3]
    size, several = min(4.8, 5.2 / heads), layers * heads > 1
    unseen = np.triu(np.ones((length, length), dtype=bool), 1)
    with mpl.rc_context(STYLE):
        figure, grid = plt.subplots(
            layers, heads, figsize=(size * heads, size * layers), squeeze=False
        )
        for layer in range(layers):
            for head in range(heads):
                axes = grid[layer, head]
                seen = np.ma.masked_where(
                    unseen, weights[layer, head].float().cpu().numpy()
                )
                axes.imshow(seen, cmap=HEAT, vmin=0, interpolation="nearest")
                if layer == 0 and several:
                    axes.set_title(f"head {head + 1}")
                if head == 0 and several:
                    axes.set_ylabel(f"layer {layer + 1}")
                _character_ticks(axes, tokens if size / length > CHARACTER else None)
    return figure


def _sign(character: str) -> str:
    """A sign in the place of a blank, a control, or another character that no SVG may hold."""
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
    """Label both axes with the characters, or with nothing where they would not be readable."""
    if tokens is None:
        axes.set_xticks([])
        axes.set_yticks([])
        return
    names = ["".join(map(_sign, token)) for token in tokens]
    for put in (axes.set_xticks, axes.set_yticks):
        put(
            range(len(names)), names, fontsize=9, family="monospace", parse_math=False
        )
    axes.tick_params(length=0)


def layer_weights_over_time(
    steps: Sequence[int], weights: Sequence[Tensor] | Tensor
) -> Figure:
    """How the mixture of layers in the memory vector moved during training.

    Args:
        steps: optimiser steps, N of them.
        weights: N vectors w [L + 1], or [N, L + 1].

    Raises:
        TypeError: `steps` or `weights` is of another type.
        ValueError: their shapes do not fit.
    """
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
        found = shorten([list(row.shape) for row in rows])
        raise ValueError(
            f"weights must be a vector for each of {len(steps)} steps, got {found}"
        )
    for row in rows:
        check_values("weights", row)
    values = torch.stack(rows).float().cpu().numpy()
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots()
        looks = cycle(zip((INK, *COLOURS), ("-", *DASHES), strict=True))
        for l, (colour, dash) in zip(range(values.shape[1]), looks, strict=False):
            marker = "" if l <= len(COLOURS) else "o"
            name = "embedding" if l == 0 else f"layer {l}"
            axes.plot(
                steps,
                values[:, l],
                color=colour,
                linestyle=dash,
                marker=marker,
                markersize=3,
                label=name,
            )
        axes.axhline(1 / values.shape[1], color=INK, linewidth=0.8, linestyle=":")
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("share in the memory, $w_l$")
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
        # in the order in which they end
        lines = np.array(axes.get_lines()[:-1])[np.argsort(-values[-1])]
        axes.legend(handles=list(lines), loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def cost_against_length(
    lengths: Sequence[int],
    costs: Mapping[str, Sequence[float]],
    *,
    unit: str = "seconds",
    ylabel: str = "time a step",
) -> Figure:
    """A measured cost against sequence length, both axes logarithmic, a line each.

    Args:
        lengths: sequence lengths T.
        costs: one value a length, by the name the legend shows.
        unit: of the costs.
        ylabel: what was measured.

    Raises:
        TypeError: an argument is of another type.
        ValueError: there is not one cost to each length.
    """
    check_items("lengths", lengths, Real)
    check_instance("costs", costs, Mapping)
    check_instance("unit", unit, str)
    check_instance("ylabel", ylabel, str)
    for name, values in costs.items():
        check_items(f"costs[{shorten(name)}]", values, Real)
        if len(values) != len(lengths):
            found = f"got {len(values)}"
            raise ValueError(
                f"costs[{shorten(name)}] must have {len(lengths)} values like lengths, {found}"
            )
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots()
        looks = cycle(zip(COLOURS, DASHES, "os^D", strict=True))
        for (name, values), (colour, dash, marker) in zip(
            costs.items(), looks, strict=False
        ):
            axes.plot(
                lengths,
                values,
                color=colour,
                linestyle=dash,
                marker=marker,
                markersize=5,
                label=name,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(list(lengths), [str(n) for n in lengths])
        axes.minorticks_off()
        axes.set_xlabel("sequence length T, characters")
        axes.set_ylabel(f"{ylabel}, {unit}")
        _add_legend(axes)
    return figure
