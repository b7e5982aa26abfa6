"""The recurrence step by step: what arrives when, and what later layers reach back to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fbt._checks import check_int
from fbt.views.trace import Trace
from fbt.views.view import View

LONGEST = 12  # steps that fit side by side
NUMBERS = 8  # of each vector that are shown


class RecurrenceExplorer(View):
    """The loop of a model with shared keys and values, one vector at a time, forward and back.

    Args:
        tokens: the T texts of the steps, at most 12.
        read: what the model computed, from `fbt.views.trace.trace`.
        moment: the moment that is shown first. A step has L + 3 of them: its embedding, its L layers, its
            memory vector, its key and value.

    In a live notebook `moment` follows what its reader looks at.

    Raises:
        ValueError: the sizes do not fit, there are several caches, or the moment is out of range.
    """

    def __init__(self, tokens: Sequence[str], read: Trace, *, moment: int = 0) -> None:
        self.tokens = [str(token) for token in tokens]
        steps, layers = read.outputs.shape[0], read.outputs.shape[1] - 1
        check_int("number of tokens", len(self.tokens), low=1, high=LONGEST)
        if len(self.tokens) != steps:
            raise ValueError(f"tokens must be {steps} like the steps read, got {len(self.tokens)}")
        if len(read.keys) != 1:
            raise ValueError(f"read must have one cache that all layers share, got {len(read.keys)}")
        check_int("moment", moment, low=0, high=steps * (layers + 3) - 1)
        data = {
            "tokens": self.tokens,
            "width": read.memory.shape[-1],
            "mixture": [round(share, 3) for share in read.mixture.tolist()],
            "outputs": [first_numbers(read.outputs[:, layer]) for layer in range(layers + 1)],
            "memory": first_numbers(read.memory),
            "keys": first_numbers(read.keys[0]),
            "values": first_numbers(read.values[0]),
            "weights": (1000 * read.weights.mean(1)).round().int().tolist(),
        }
        super().__init__("recurrence", data, {"moment": moment}, "".join(self.tokens))

    @property
    def moment(self) -> int:
        """The moment that is shown now, counted from 0."""
        return self._now("moment")

    def __repr__(self) -> str:
        return f"RecurrenceExplorer({len(self.tokens)} tokens, {len(self._data['outputs']) - 1} layers)"


def first_numbers(vectors: Tensor) -> list[list[int]]:
    """The first numbers of vectors [T, d], from -100 to 100 where the largest of them is 100."""
    shown = vectors[:, :NUMBERS].float()
    numbers: list[list[int]] = (
        (100 * shown / shown.abs().max().clamp_min(torch.finfo().tiny)).round().int().tolist()
    )
    return numbers
