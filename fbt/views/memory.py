"""The composition of the memory vectors during training."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fbt._checks import check_instance, check_int
from fbt.language_model import LanguageModel
from fbt.views.trace import memory_shares, trace
from fbt.views.view import (
    View,
    check_count,
    check_finite,
    check_shape,
    entry_name,
    texts_of,
)


class Snapshot(NamedTuple):
    """The memory of a model at one training step.

    Attributes:
        mixture: shares of the layers, [L + 1].
        shares: composition of the memory vectors, [T, L + 1]; see
            `fbt.views.trace.memory_shares`.
    """

    mixture: Tensor
    shares: Tensor


def snapshot(model: LanguageModel, tokens: Tensor) -> Snapshot:
    """Return the mixture and the memory shares of a model that reads tokens [T]."""
    read = trace(model, tokens)
    return Snapshot(read.mixture, memory_shares(read))


class MemoryExplorer(View):
    """The composition of each memory vector of a text, with a slider over training.

    It starts with the first snapshot.

    Args:
        tokens: the T texts of the steps, usually characters.
        snapshots: maps training steps, in order, to snapshots.
        query: the step of the text selected first; None means the last.

    In a live notebook, `query` and `moment` follow the reader's selection.

    Raises:
        TypeError: if an argument, or an entry of `snapshots`, has another type.
        ValueError: if `tokens` or `snapshots` is empty, the shapes do not match, a
            number is not finite, or `query` is out of range.
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
        size: int | str = "L + 1"  # any in the first snapshot, then the same
        for step, item in snapshots.items():
            check_int("each key of snapshots", step, low=0)
            name = entry_name("snapshots", step)
            if not isinstance(item, tuple) or len(item) != 2:
                kind = type(item).__name__
                raise TypeError(f"{name} must be a Snapshot, got {kind}")
            mixture, shares = item
            check_shape(f"{name}.mixture", mixture, (size,))
            size = len(mixture)
            check_shape(
                f"{name}.shares", shares, (length, size), f" for {length} tokens"
            )
            check_finite(f"{name}.mixture", mixture)
            check_finite(f"{name}.shares", shares)
        moments = [
            {"step": step, "mixture": per_mille(mixture), "shares": per_mille(shares)}
            for step, (mixture, shares) in snapshots.items()
        ]
        start = {"query": query, "moment": 0}
        super().__init__(
            "memory",
            {"tokens": self.tokens, "moments": moments},
            start,
            "\n".join(["".join(self.tokens), "", *mixtures(moments)]),
        )

    @property
    def query(self) -> int:
        """The selected step of the text."""
        return self._now("query")

    @property
    def moment(self) -> int:
        """The selected snapshot, counted from 0."""
        return self._now("moment")

    def __repr__(self) -> str:
        snapshots = len(self._data["moments"])
        return f"MemoryExplorer({len(self.tokens)} tokens, {snapshots} snapshots)"


def mixtures(moments: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return lines with the share of each layer in the memory during training."""
    layers = range(1, len(moments[0]["mixture"]))
    names = ["training step", "embedding", *(f"layer {layer}" for layer in layers)]
    lines = ["  ".join(names)]
    for moment in moments:
        shares = [f"{share / 10:.0f} %" for share in moment["mixture"]]
        cells = zip(names, [str(moment["step"]), *shares], strict=True)
        lines.append("  ".join(cell.rjust(len(name)) for name, cell in cells))
    return lines


def per_mille(shares: Tensor) -> list[int] | list[list[int]]:
    """Return shares in thousandths, as ints, which are short in JSON."""
    rounded = (1000 * shares.double()).round().long()
    numbers: list[int] | list[list[int]] = rounded.tolist()
    return numbers
