"""What the memory is made of, and how training settles it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fbt._checks import check_int
from fbt.language_model import LanguageModel
from fbt.views.trace import made_of, trace
from fbt.views.view import View


class Snapshot(NamedTuple):
    """A model's memory at a time: its mixture [L + 1], and what its vectors are made of, [T, L + 1]."""

    mixture: Tensor
    shares: Tensor


def snapshot(model: LanguageModel, tokens: Tensor) -> Snapshot:
    """Look into the memory of a model that reads tokens [T]; see `fbt.views.trace.made_of`."""
    read = trace(model, tokens)
    return Snapshot(read.mixture, made_of(read))


class MemoryExplorer(View):
    """The memory of a text while a model learns: a slider over its training, and the parts of each vector.

    Args:
        tokens: the T texts of the steps, characters as a rule.
        snapshots: by the training step at which each was taken, in order.
        query: the step of the text that is chosen first; None is the last.

    In a live notebook `query` and `moment` follow what its reader looks at.

    Raises:
        TypeError, ValueError: there is nothing to show, the sizes do not fit, or a number is out of range.
    """

    def __init__(
        self, tokens: Sequence[str], snapshots: Mapping[int, Snapshot], *, query: int | None = None
    ) -> None:
        self.tokens = [str(token) for token in tokens]
        if not self.tokens or not snapshots:
            found = f"{len(self.tokens)} tokens and {len(snapshots)} snapshots"
            raise ValueError(f"tokens and snapshots must not be empty, got {found}")
        for step, (mixture, shares) in snapshots.items():
            expected = (len(self.tokens), *mixture.shape)
            if mixture.ndim != 1 or shares.shape != expected or not torch.isfinite(shares).all():
                found = f"{[*shares.shape]} for a mixture {[*mixture.shape]}"
                raise ValueError(f"shares must be finite, {[*expected]} at step {step}, got {found}")
        query = len(self.tokens) - 1 if query is None else query
        check_int("query", query, low=0, high=len(self.tokens) - 1)
        shown = [
            {"step": int(step), "mixture": per_mille(mixture), "shares": per_mille(shares)}
            for step, (mixture, shares) in snapshots.items()
        ]
        start = {"query": query, "moment": len(shown) - 1}
        super().__init__("memory", {"tokens": self.tokens, "moments": shown}, start, "".join(self.tokens))

    @property
    def query(self) -> int:
        """The step of the text that is chosen now."""
        return self._now("query")

    @property
    def moment(self) -> int:
        """Which snapshot is shown now, counted from 0."""
        return self._now("moment")

    def __repr__(self) -> str:
        return f"MemoryExplorer({len(self.tokens)} tokens, {len(self._data['moments'])} snapshots)"


def per_mille(shares: Tensor) -> list[int] | list[list[int]]:
    """Shares as whole numbers, which are short to write down."""
    numbers: list[int] | list[list[int]] = (1000 * shares).round().int().tolist()
    return numbers
