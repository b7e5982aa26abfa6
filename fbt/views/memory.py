"""What the memory is made of, and how training settles it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from fbt._checks import check_instance, check_int
from fbt.language_model import LanguageModel
from fbt.views.trace import memory_shares, trace
from fbt.views.view import (
    View,
    check_count,
    check_finite,
    check_shape,
    entry,
    texts_of,
)


class Snapshot(NamedTuple):
    """A model's memory at a time: its mixture [L + 1], and what its vectors are made of, [T, L + 1]."""

    mixture: Tensor
    shares: Tensor


def snapshot(model: LanguageModel, tokens: Tensor) -> Snapshot:
    """Look into the memory of a model that reads tokens [T]; see `fbt.views.trace.memory_shares`."""
    read = trace(model, tokens)
    return Snapshot(read.mixture, memory_shares(read))


class MemoryExplorer(View):
    """The memory of a text while a model learns: a slider over its training, and the parts of each vector.

    Args:
        tokens: the T texts of the steps, characters as a rule.
        snapshots: by the training step at which each was taken, in order.
        query: the step of the text that is chosen first; None is the last.

    In a live notebook `query` and `moment` follow what its reader looks at.

    Raises:
        TypeError: an argument, or an entry of `snapshots`, is of a wrong type.
        ValueError: there is nothing to show, the sizes do not fit, a number is not
            finite, or `query` is out of range.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        snapshots: Mapping[int, Snapshot],
        *,
        query: int | None = None,
    ) -> None:
        self.tokens = texts_of(tokens)
        length = check_count("tokens", self.tokens)
        check_instance("snapshots", snapshots, Mapping)
        check_count("snapshots", snapshots)
        query = length - 1 if query is None else query
        check_int("query", query, low=0, high=length - 1)
        size: int | str = "L + 1"  # that of the first snapshot
        for step, found in snapshots.items():
            check_int("each key of snapshots", step, low=0)
            name = entry("snapshots", step)
            if not isinstance(found, tuple) or len(found) != 2:
                raise TypeError(
                    f"{name} must be a Snapshot, got {type(found).__name__}"
                )
            mixture, shares = found
            check_shape(f"{name}.mixture", mixture, (size,))
            size = len(mixture)
            check_shape(
                f"{name}.shares", shares, (length, size), f" for {length} tokens"
            )
            check_finite(f"{name}.mixture", mixture)
            check_finite(f"{name}.shares", shares)
        shown = [
            {"step": step, "mixture": per_mille(mixture), "shares": per_mille(shares)}
            for step, (mixture, shares) in snapshots.items()
        ]
        start = {"query": query, "moment": len(shown) - 1}
        super().__init__(
            "memory",
            {"tokens": self.tokens, "moments": shown},
            start,
            "".join(self.tokens),
        )

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
    rounded = (1000 * shares.double()).round().long()
    numbers: list[int] | list[list[int]] = rounded.tolist()
    return numbers
