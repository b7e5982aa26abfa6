"""The recurrence, one vector at a time, and what each layer attends to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fbt._checks import check_instance, check_int
from fbt.views.trace import Trace
from fbt.views.view import View, check_finite, check_shape, texts_of

MAX_STEPS = 12  # that fit side by side
SHOWN_NUMBERS = 8  # per vector


class RecurrenceExplorer(View):
    """The loop of a model with shared keys and values, one vector at a time.

    Args:
        tokens: the T texts of the steps, at most 12.
        read: the values the model computed, from `fbt.views.trace.trace`.
        moment: the moment shown first. Each step has L + 3 moments: its embedding,
            its L layers, its memory vector, and its key and value.

    In a live notebook, `moment` follows the reader's selection.

    Raises:
        TypeError: if an argument, or a field of `read`, has another type.
        ValueError: if the shapes do not match, there are several caches, a number is
            not finite, or `moment` is out of range.
    """

    def __init__(
        self, tokens: Sequence[str], read: Trace, *, moment: int = 0
    ) -> None:
        self.tokens = texts_of(tokens)
        steps = len(self.tokens)
        check_int("number of tokens", steps, low=1, high=MAX_STEPS)
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
        """The selected moment, counted from 0."""
        return self._now("moment")

    def __repr__(self) -> str:
        layers = len(self._data["outputs"]) - 1
        return f"RecurrenceExplorer({len(self.tokens)} tokens, {layers} layers)"


def check_trace(read: Trace, steps: int) -> int:
    """Check a trace of `steps` steps with one cache, and return its number of layers.

    Raises:
        TypeError: if a field is not a tensor of real numbers.
        ValueError: if a field has another shape, or a number is not finite.
    """
    check_shape(
        "read.outputs", read.outputs, (steps, "L + 1", "d"), f" for {steps} tokens"
    )
    _, outputs, width = read.outputs.shape
    layers = outputs - 1
    one_cache = " (one cache that all layers share)"
    check_shape("read.memory", read.memory, (steps, width))
    check_shape("read.mixture", read.mixture, (outputs,))
    check_shape("read.keys", read.keys, (1, steps, width), one_cache)
    check_shape("read.values", read.values, (1, steps, width), one_cache)
    check_shape("read.weights", read.weights, (layers, "H", steps, steps))
    for name, values in read._asdict().items():
        check_finite(f"read.{name}", values)
    return layers


def first_numbers(vectors: Tensor) -> list[list[int]]:
    """Return the first numbers of vectors [T, d], scaled to ints from -100 to 100."""
    shown = vectors[:, :SHOWN_NUMBERS].float()
    largest = shown.abs().max().clamp_min(torch.finfo().tiny)
    numbers: list[list[int]] = (100 * shown / largest).round().int().tolist()
    return numbers
