"""Attention over a text, to be explored with a pointer or with the keyboard, with a kernel and without."""

import base64
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fbt._checks import check_int
from fbt.views.view import View

MOST = 20_000_000  # weights of a panel, a byte each in the page


class AttentionExplorer(View):
    """Attention weights over a text: choose a character to see what it reads, by layer and head.

    Args:
        tokens: the T texts of the steps, characters as a rule.
        weights: [L, H, T, T], row = query, as `LanguageModel.attention` returns for one sequence; or several
            such tensors of equal shape by name, to be shown side by side.
        query: the step that is chosen first; None is the last.
        layer: the layer that is shown first, from 0; None is the mean of all.
        head: the head that is shown first, from 0; None is the mean of all.

    In a live notebook `query`, `layer` and `head` follow what its reader looks at.

    Raises:
        TypeError, ValueError: tokens and weights do not fit, weights are no shares, or a number is out of
            range.
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
        self.tokens = [str(token) for token in tokens]
        panels = dict(weights) if isinstance(weights, Mapping) else {"": weights}
        if not self.tokens or not panels:
            found = f"{len(self.tokens)} tokens and {len(panels)} tensors of weights"
            raise ValueError(f"tokens and weights must not be empty, got {found}")
        shapes = {name: checked(name, panel, len(self.tokens)) for name, panel in panels.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"weights must have one shape, got {shapes}")
        layers, heads = next(iter(shapes.values()))
        chosen = {"query": (query, len(self.tokens)), "layer": (layer, layers), "head": (head, heads)}
        for name, (value, count) in chosen.items():
            if value is not None:
                check_int(name, value, low=0, high=count - 1)
        start = {
            "query": len(self.tokens) - 1 if query is None else query,
            "layer": -1 if layer is None else layer,
            "head": -1 if head is None else head,
        }
        size = {"layers": layers, "heads": heads}
        shown = [{"name": name, "weights": packed(panel)} | size for name, panel in panels.items()]
        super().__init__("explorer", {"tokens": self.tokens, "panels": shown}, start, "".join(self.tokens))

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
        return f"AttentionExplorer({', '.join([f'{len(self.tokens)} tokens', *names])})"


def checked(name: str, weights: Tensor, length: int) -> tuple[int, int]:
    """The layers and heads of weights [L, H, T, T] over T tokens.

    Raises:
        TypeError: they are no tensor.
        ValueError: they have another shape, are too many for a page, or no shares.
    """
    if not isinstance(weights, Tensor):
        raise TypeError(f"weights must be a tensor, got {type(weights).__name__} {name!r}")
    if weights.ndim != 4 or weights.shape[2:] != (length, length) or 0 in weights.shape:
        raise ValueError(
            f"weights must be [L, H, {length}, {length}] for {length} tokens, got {[*weights.shape]}"
        )
    if weights.numel() > MOST:
        raise ValueError(
            f"weights must be at most {MOST} numbers for a page, got {weights.numel()}, {[*weights.shape]}"
        )
    low, high = (v.item() for v in torch.aminmax(weights.float().nan_to_num(nan=-1.0)))
    if low < 0 or high > 1.001:
        raise ValueError(f"weights must be shares from 0 to 1, got numbers from {low:g} to {high:g}")
    return weights.shape[0], weights.shape[1]


def packed(weights: Tensor) -> str:
    """Weights [L, H, T, T] in base64, a byte each, round(255 sqrt(w)): the lower triangle, row after row."""
    rows, columns = torch.tril_indices(*weights.shape[2:])
    shares = weights.detach().float().cpu().clamp(0, 1)[..., rows, columns]
    return base64.b64encode((255 * shares.sqrt()).round().to(torch.uint8).numpy().tobytes()).decode()
