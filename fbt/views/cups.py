"""The shell game of chapters 1 and 2: a figure, and a view in which models play."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from importlib.resources import as_file
from itertools import combinations
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fbt._checks import check_int
from fbt._modes import without_gradients
from fbt.language_model import LanguageModel
from fbt.tasks import ShellGame
from fbt.views.figures import INK, MODELS, STYLE, style_of, svg_of
from fbt.views.packing import pack
from fbt.views.view import HERE, View

CUPS = 5
# The vocabulary of the players, in the order of `fbt.tasks.ShellGame`: places, swaps.
WORDS = "ABCDEabcdefghij"
PAIRS = [*combinations(range(CUPS), 2)]
PLAYERS = ("feedback", "parallel")
# The game that a page begins with: the pairs of places, from the ten of them.
GAME = (1, 6, 7, 0, 9, 5, 8, 2, 4, 7, 3, 1, 9, 6, 0, 8, 2, 5, 7, 4, 9, 1, 6, 3)
DRAWN = 12  # swaps in the figure for paper
OTHERS, LENGTH = 200, 24  # games from which the directions of the map are computed
POINTS = 30  # of each place in the map
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
    curve, ease = (CURVE, EASE) if before != after else (CURVE[::24], EASE[::24])
    heights = before + (after - before) * ease
    axes.plot(step + curve, heights, color=colour, linewidth=width, linestyle="-")


class Cups(View):
    """A shell game: the reader follows the ball, then two small models follow it.

    The cups change places, and the reader chooses the one with the ball. Then a model
    of one layer with feedback and a parallel one of four layers read the same swaps,
    computed in the page. Below each cup stands what both give it. Beside the cups a
    dot shows the memory vector of the feedback model among those of other games. Both
    models were trained by `experiments/shell_game.py`.
    """

    worker = ("engine.js", "guesses_worker.js")

    def __init__(self) -> None:
        models = {name: player(name) for name in PLAYERS}
        projection, clouds = map_of(models["feedback"])
        data = {
            "players": [
                {"name": name, "layers": model.config.n_layers, "packed": pack(model)}
                for name, model in models.items()
            ],
            "game": GAME,
            "projection": projection,
            "clouds": clouds,
        }
        swaps = torch.tensor([GAME[:DRAWN]]) + CUPS
        with without_gradients():
            self._guesses = {
                name: model(swaps)[0, :, :CUPS].argmax(-1).tolist()
                for name, model in models.items()
            }
        super().__init__("cups", data, {}, described(self._guesses))

    def __repr__(self) -> str:
        return "Cups()"

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> dict[str, Any]:
        """Return only HTML: a widget would put the weights into the output twice."""
        return {"text/plain": repr(self), "text/html": self.to_html()}

    def _still(self) -> str:
        """Return a figure of the first swaps, which is also what is printed."""
        pairs = [PAIRS[pair] for pair in GAME[:DRAWN]]
        with plt.rc_context(STYLE):
            drawing = svg_of(shell_game(pairs, self._guesses))
        return (
            '<figure class="fbt-still"><img alt="'
            f'{html.escape(self._text)}" src="data:image/svg+xml;base64,'
            f'{base64.b64encode(drawing).decode()}"><figcaption>Each crossing is a '
            "swap of two cups; the thick line is the ball. Dots and squares are the "
            "places that two small models name.</figcaption></figure>"
        )


def player(name: str) -> LanguageModel:
    """Return a trained player: "feedback" or "parallel"."""
    with as_file(HERE / "players" / f"{name}.safetensors") as path:
        return LanguageModel.from_pretrained(path)


def read_memory(model: LanguageModel, swaps: Tensor) -> Tensor:
    """Return the memory vectors [B, T, d] of a player, after their norm."""
    with without_gradients():
        norm = model.get_submodule("body.memory.norm")
        normed: Tensor = norm(model.memory(swaps))
    return normed


def map_of(model: LanguageModel) -> tuple[list[list[float]], list[Any]]:
    """Return the directions of the map of memory vectors, and points in it.

    The directions are found by least squares, such that the memories of each place,
    after their norm, lie as near as possible to a corner of a pentagon of radius 1.

    Args:
        model: a player with feedback, of width d.

    Returns:
        The map [d + 1, 2], whose last row is added; and for each place its points.
    """
    generator = torch.Generator().manual_seed(0)
    swaps, places = ShellGame(CUPS).sample(OTHERS, LENGTH, generator)
    memory = read_memory(model, swaps).double().flatten(0, 1)
    memory = torch.cat([memory, torch.ones(len(memory), 1).double()], dim=1)
    angles = 2 * math.pi * torch.arange(CUPS).double() / CUPS
    corners = torch.stack([angles.sin(), angles.cos()], dim=1)  # place 1 at the top
    # The norm fixes the sum of a memory. This direction, which is only noise, has no
    # weight; else it would have large ones, which cancel badly in float32.
    wanted = corners[places.flatten()]
    found = torch.linalg.lstsq(memory, wanted, rcond=1e-5, driver="gelsd").solution
    points = memory @ found
    clouds = [points[places.flatten() == place][:POINTS] for place in range(CUPS)]
    return (
        [[round(number, 4) for number in row] for row in found.tolist()],
        [[[round(x, 3), round(y, 3)] for x, y in cloud.tolist()] for cloud in clouds],
    )


def described(guesses: Mapping[str, Sequence[int]]) -> str:
    """Return a text about the first swaps of the game and the guesses of players."""
    ball, lines = 0, ["Five cups; the ball is in place 1."]
    for step, pair in enumerate(GAME[:DRAWN]):
        first, second = PAIRS[pair]
        ball = _after(ball, (first, second))
        said = ", ".join(f"{name} {guesses[name][step] + 1}" for name in guesses)
        lines.append(
            f"Swap {step + 1}: {first + 1} and {second + 1}. The ball is in place "
            f"{ball + 1}; the models say {said}."
        )
    return "\n".join(lines)
