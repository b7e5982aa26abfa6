"""The shell game of chapters 1 and 2 as a figure: cups that change places."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fbt._checks import check_int
from fbt.views.figures import INK, MODELS, style_of

CURVE = np.linspace(0, 1, 25)
EASE = CURVE * CURVE * (3 - 2 * CURVE)  # from 0 to 1, level at both ends


def shell_game(
    swaps: Sequence[tuple[int, int]],
    paths: Mapping[str, Sequence[int]] | None = None,
    *,
    cups: int = 5,
    known: int | None = None,
) -> Figure:
    """Draw swaps of cups as crossing lines, and where the ball is thought to be.

    Args:
        swaps: the two places that change cups at each swap, counted from 0.
        paths: for each name the place of the ball after each swap: the name of a kind
            of model, whose guesses are drawn as dots in its colour.
        cups: the number of cups.
        known: the number of swaps over which the path of the ball is drawn; None
            draws all of it. The ball starts at place 0.

    Returns:
        The figure.
    """
    check_int("cups", cups, low=2)
    known = len(swaps) if known is None else known
    check_int("known", known, low=0, high=len(swaps))
    paths = paths or {}
    width = min(4.4, 1.2 + 0.4 * len(swaps))
    figure, axes = plt.subplots(figsize=(width, 2.1 + 0.25 * bool(paths)))
    ball = 0
    for step, pair in enumerate(swaps):
        for place in range(cups):
            _draw_cup(axes, step, place, _after(place, pair), INK, 0.8)
        if step < known:
            _draw_cup(axes, step, ball, _after(ball, pair), INK, 3.2)
        ball = _after(ball, pair)
    axes.plot(0, 0, "o", color=INK, markersize=9)
    for number, (name, places) in enumerate(paths.items()):
        colour = style_of(name)["color"]
        offset = 0.2 * (number - (len(paths) - 1) / 2)
        steps = np.arange(1, len(places) + 1) + offset
        marker = "os^D"[MODELS.index(name)]
        axes.plot(steps, places, marker, color=colour, markersize=6, label=name)
    if paths:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.22), ncols=len(paths))
    axes.set(ylim=(cups - 0.6, -0.4), xlim=(-0.3, len(swaps) + 0.3), xlabel="swaps")
    axes.set_yticks(range(cups), [f"place {place + 1}" for place in range(cups)])
    axes.set_xticks(range(0, len(swaps) + 1, 1 if len(swaps) <= 12 else 4))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _after(place: int, pair: tuple[int, int]) -> int:
    """Return where the cup at a place is after a swap."""
    first, second = pair
    return {first: second, second: first}.get(place, place)


def _draw_cup(
    axes: Axes, step: int, before: int, after: int, colour: str, width: float
) -> None:
    heights = before + (after - before) * EASE
    axes.plot(step + CURVE, heights, color=colour, linewidth=width, linestyle="-")
