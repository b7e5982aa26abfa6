"""Attention over a text, to be explored with the pointer or the keyboard."""

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
    entry_name,
    texts_of,
)

MAX_WEIGHTS = 20_000_000  # per panel, little more than a byte each in the page
# The characters of the levels of a weight: printable, and small ones, which are most,
# take a byte. explorer.js has these numbers too.
LEVELS = "".join(chr(61 + n if n < 66 else 256 + n) for n in range(256))


class AttentionExplorer(View):
    """Attention weights over a text: select a character to see what it attends to.

    Args:
        tokens: the T texts of the steps, usually characters.
        weights: attention weights [L, H, T, T], as returned by
            `LanguageModel.attention` for one sequence. Rows are queries. A mapping of
            names to such tensors, all of one shape, is shown side by side. Causal
            weights make pages about half as large as others.
        query: the step selected first; None means the last.
        layer: the layer shown first, from 0; None means the mean of all layers.
        head: the head shown first, from 0; None means the mean of all heads.

    In a live notebook, `query`, `layer` and `head` follow the reader's selection.

    Raises:
        TypeError: if `tokens` or `weights` has another type.
        ValueError: if `tokens` and `weights` do not match, a weight is not in [0, 1],
            or `query`, `layer` or `head` is out of range.
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
        if isinstance(weights, Mapping):
            panels = dict(weights)
            titles = {name: entry_name("weights", name) for name in panels}
        else:
            panels, titles = {"": weights}, {"": "weights"}
        check_count("weights", panels)
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
        data = [
            {"name": str(name)} | pack_weights(panel) | size
            for name, panel in panels.items()
        ]
        super().__init__(
            "explorer",
            {"tokens": self.tokens, "panels": data},
            start,
            "".join(self.tokens),
        )

    @property
    def query(self) -> int:
        """The selected step."""
        return self._now("query")

    @property
    def layer(self) -> int:
        """The selected layer, from 0; -1 means the mean of all layers."""
        return self._now("layer")

    @property
    def head(self) -> int:
        """The selected head, from 0; -1 means the mean of all heads."""
        return self._now("head")

    def __repr__(self) -> str:
        names = [panel["name"] for panel in self._data["panels"] if panel["name"]]
        items = [f"{len(self.tokens)} tokens", *names]
        return f"AttentionExplorer({', '.join(items)})"


def check_weights(name: str, weights: Any, length: int) -> None:
    """Raise unless `weights` [L, H, T, T] over `length` tokens are in [0, 1].

    Raises:
        TypeError: if `weights` is not a tensor of real numbers.
        ValueError: if `weights` has another shape, more numbers than fit in a page,
            or a number outside [0, 1].
    """
    check_shape(name, weights, ("L", "H", length, length), f" for {length} tokens")
    if weights.numel() > MAX_WEIGHTS:
        raise ValueError(
            f"{name} must have at most {MAX_WEIGHTS} numbers for a page, "
            f"got {weights.numel()} in shape {[*weights.shape]}"
        )
    shares = weights.detach().float()
    valid = (shares >= 0) & (shares <= 1.001)  # allow for rounding
    check_entries(name, shares, valid, "a share from 0 to 1")


def pack_weights(weights: Tensor) -> dict[str, Any]:
    """Encode weights [L, H, T, T] as a text, row by row.

    Each weight is a character, number round(255 sqrt(w)) of `LEVELS`. Only the lower
    triangle of causal weights is stored.
    """
    shares = weights.detach().float().cpu().clamp(0, 1)
    levels = (255 * shares.sqrt()).round().to(torch.uint8)
    causal = not levels.triu(1).any()
    if causal:
        rows, columns = torch.tril_indices(*weights.shape[2:])
        levels = levels[..., rows, columns]
    text = "".join(LEVELS[level] for level in levels.numpy().tobytes())
    return {"weights": text, "causal": causal}
