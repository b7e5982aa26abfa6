"""The recurrence step by step: what arrives when, and what later layers reach back to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fbt._checks import check_instance, check_int
from fbt.views.trace import Trace
from fbt.views.view import View, check_finite, check_shape, texts_of

LONGEST = 12  # steps that fit side by side
NUMBERS = 8  # of each vector that are shown


class RecurrenceExplorer(View):
    """The loop of a model with shared keys and values, one vector at a time, forward and back.

    Args:
        tokens: the T texts of the steps, at most 12.
        read: what the model computed, from `fbt.views.trace.trace`.
        moment: the moment that is shown first. A step has L + 3 of them: its
            embedding, its L layers, its memory vector, its key and value.

    In a live notebook `moment` follows what its reader looks at.

    Raises:
        TypeError: an argument, or a field of `read`, is of a wrong type.
        ValueError: the sizes do not fit, there are several caches, a number is not
            finite, or `moment` is out of range.
    """

    def __init__(
        self, tokens: Sequence[str], read: Trace, *, moment: int = 0
    ) -> None:
        self.tokens = texts_of(tokens)
        steps = len(self.tokens)
        check_int("number of tokens", steps, low=1, high=LONGEST)
        check_instance("read", read, Trace)
        layers = check_trace(read, steps)
        check_int("moment", moment, low=0, high=steps * (layers + 3) - 1)
        data = {
            "tokens": self.tokens,
            "width": read.memory.shape[-1],
            "mixture": [round(share, 3) for share in read.mixture.tolist()],
            "outputs": [
                first_numbers(read.outputs[:, layer]) for layer in range(layers + 1)
            ],
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


def check_trace(read: Trace, steps: int) -> int:
    """Return the number of layers in a trace of `steps` steps with one cache.

    Raises:
        TypeError: a field is not a tensor of real numbers.
        ValueError: a field has another shape, or a number is not finite.
    """
    check_shape(
        "read.outputs", read.outputs, (steps, "L + 1", "d"), f" for {steps} tokens"
    )
    _, outputs, width = read.outputs.shape
    layers = outputs - 1
    one = " (one cache that all layers share)"
    check_shape("read.memory", read.memory, (steps, width))
    check_shape("read.mixture", read.mixture, (outputs,))
    check_shape("read.keys", read.keys, (1, steps, width), one)
    check_shape("read.values", read.values, (1, steps, width), one)
    check_shape("read.weights", read.weights, (layers, "H", steps, steps))
    for name, numbers in read._asdict().items():
        check_finite(f"read.{name}", numbers)
    return layers


def first_numbers(vectors: Tensor) -> list[list[int]]:
    """The first numbers of vectors [T, d], from -100 to 100 where the largest of them is 100."""
    shown = vectors[:, :NUMBERS].float()
    numbers: list[list[int]] = (
        (100 * shown / shown.abs().max().clamp_min(torch.finfo().tiny))
        .round()
        .int()
        .tolist()
    )
    return numbers
