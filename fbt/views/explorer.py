"""Attention over a text, to be explored with a pointer or with the keyboard, with a kernel and without."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fbt._checks import check_int
from fbt.views.view import (
    View,
    check_count,
    check_entries,
    check_shape,
    entry,
    texts_of,
)

MOST = 20_000_000  # weights of a panel, a byte each in the page


class AttentionExplorer(View):
    """Attention weights over a text: choose a character to see what it reads, by layer and head.

    Args:
        tokens: the T texts of the steps, characters as a rule.
        weights: [L, H, T, T], row = query, as `LanguageModel.attention` returns for
            one sequence; or several such tensors of equal shape by name, to be shown
            side by side. Causal weights take about half the room of others.
        query: the step that is chosen first; None is the last.
        layer: the layer that is shown first, from 0; None is the mean of all.
        head: the head that is shown first, from 0; None is the mean of all.

    In a live notebook `query`, `layer` and `head` follow what its reader looks at.

    Raises:
        TypeError: `tokens` or `weights` is of a wrong type.
        ValueError: tokens and weights do not fit, a weight is not in [0, 1], or a
            choice is out of range.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        weights: Tensor | Mapping[str, Tensor],
        *,
        query: int | None = None,
        layer: int | None = None,
        head: int | None = None,
    ) -> None:
        self.tokens = texts_of(tokens)
        length = check_count("tokens", self.tokens)
        named = isinstance(weights, Mapping)
        panels = dict(weights) if isinstance(weights, Mapping) else {"": weights}
        check_count("weights", panels)
        titles = {
            name: entry("weights", name) if named else "weights" for name in panels
        }
        for name, panel in panels.items():
            check_weights(titles[name], panel, length)
        first = next(iter(panels))
        layers, heads = panels[first].shape[:2]
        for name, panel in panels.items():
            check_shape(
                titles[name], panel, panels[first].shape, f" like {titles[first]}"
            )
        chosen = {
            "query": (query, length),
            "layer": (layer, layers),
            "head": (head, heads),
        }
        for name, (value, count) in chosen.items():
            if value is not None:
                check_int(name, value, low=0, high=count - 1)
        start = {
            "query": length - 1 if query is None else query,
            "layer": -1 if layer is None else layer,
            "head": -1 if head is None else head,
        }
        size = {"layers": layers, "heads": heads}
        shown = [
            {"name": str(name)} | packed(panel) | size
            for name, panel in panels.items()
        ]
        super().__init__(
            "explorer",
            {"tokens": self.tokens, "panels": shown},
            start,
            "".join(self.tokens),
        )

    @property
    def query(self) -> int:
        """The step that is chosen now."""
        return self._now("query")

    @property
    def layer(self) -> int:
        """The layer that is shown now, from 0; -1 is the mean of all."""
        return self._now("layer")

    @property
    def head(self) -> int:
        """The head that is shown now, from 0; -1 is the mean of all."""
        return self._now("head")

    def __repr__(self) -> str:
        names = [panel["name"] for panel in self._data["panels"] if panel["name"]]
        return (
            f"AttentionExplorer({', '.join([f'{len(self.tokens)} tokens', *names])})"
        )


def check_weights(name: str, weights: Any, length: int) -> None:
    """Raise unless `weights` [L, H, T, T] over `length` tokens are numbers in [0, 1].

    Raises:
        TypeError: `weights` is not a tensor of real numbers.
        ValueError: they have another shape, are too many for a page, or out of range.
    """
    check_shape(name, weights, ("L", "H", length, length), f" for {length} tokens")
    if weights.numel() > MOST:
        found = f"{weights.numel()}, {[*weights.shape]}"
        raise ValueError(
            f"{name} must be at most {MOST} numbers for a page, got {found}"
        )
    numbers = weights.detach().float()
    check_entries(
        name, numbers, (numbers >= 0) & (numbers <= 1.001), "a share from 0 to 1"
    )


def packed(weights: Tensor) -> dict[str, Any]:
    """Weights [L, H, T, T] in base64, a byte each, round(255 sqrt(w)), row after row.

    Of causal weights only the lower triangle is kept.
    """
    shares = weights.detach().float().cpu().clamp(0, 1)
    levels = (255 * shares.sqrt()).round().to(torch.uint8)
    causal = not levels.triu(1).any()
    if causal:
        rows, columns = torch.tril_indices(*weights.shape[2:])
        levels = levels[..., rows, columns]
    text = base64.b64encode(levels.numpy().tobytes()).decode()
    return {"weights": text, "causal": causal}
