"""The recurrence, one vector at a time, and what each layer attends to."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fbt._checks import check_choice, check_instance, check_int
from fbt.language_model import LanguageModel
from fbt.views.live import loaded, source_of
from fbt.views.packing import characters_of
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
        model: reads the texts that a reader types, at most 12 characters, in the page
            (see `fbt.views.live.LiveModel`); or the name of a model that ships with
            the package. None means that readers cannot type.

    A reader plays the moments or moves between them, and selects vectors to see their
    numbers. In a live notebook, `moment` follows the reader's selection.

    Raises:
        TypeError: if an argument, or a field of `read`, has another type.
        ValueError: if the shapes do not match, there are several caches, a number is
            not finite, `moment` is out of range, or `model` has another variant or
            cannot run in a page.
        FileNotFoundError: if there is no model of a name.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        read: Trace,
        *,
        moment: int = 0,
        model: LanguageModel | str | None = None,
    ) -> None:
        self.tokens = texts_of(tokens)
        steps = len(self.tokens)
        check_int("number of tokens", steps, low=1, high=MAX_STEPS)
        check_instance("read", read, Trace)
        layers = check_trace(read, steps)
        check_int("moment", moment, low=0, high=steps * (layers + 3) - 1)
        data: dict[str, Any] = {
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
        if model is not None:
            data["model"] = reader_of(model)
            self.worker = ("engine.js", "recurrence_worker.js")
        start = {"moment": moment, "cell": -1}  # no cell is selected
        super().__init__("recurrence", data, start, last_step(self.tokens, data))

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> dict[str, Any]:
        """Return only HTML if there are weights, which a widget would repeat."""
        if "model" not in self._data:
            return super()._repr_mimebundle_(include, exclude)
        return {"text/plain": repr(self), "text/html": self.to_html()}

    @property
    def moment(self) -> int:
        """The selected moment, counted from 0."""
        return self._now("moment")

    def __repr__(self) -> str:
        layers = len(self._data["outputs"]) - 1
        return f"RecurrenceExplorer({len(self.tokens)} tokens, {layers} layers)"


def reader_of(model: LanguageModel | str) -> dict[str, Any]:
    """Return what a page needs to read texts: a model's weights and vocabulary.

    Raises:
        TypeError, ValueError, FileNotFoundError: as in `RecurrenceExplorer`.
    """
    reader = loaded("model", model)
    check_choice("the variant of model", reader.config.variant, ["shared-kv"])
    longest = min(MAX_STEPS, reader.config.span)
    vocabulary = characters_of(reader).vocabulary
    return source_of(model) | {"vocabulary": vocabulary, "longest": longest}


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


def last_step(tokens: Sequence[str], data: dict[str, Any]) -> str:
    """Return a text with the shares of the memory and what the last step reads."""
    shares = [f"{100 * share:3.0f} %" for share in data["mixture"]]
    lines = [
        f"The text: {''.join(tokens)}",
        "Shares in each memory vector:",
        f"  embedding {shares[0]}",
        *(f"  layer {layer}   {share}" for layer, share in enumerate(shares[1:], 1)),
    ]
    if len(tokens) > 1:
        lines.append(
            f"What step {len(tokens)} reads of steps 1 to {len(tokens) - 1}:"
        )
    for layer, weights in enumerate(data["weights"], 1):
        reads = (f"{weight / 10:3.0f} %" for weight in weights[-1][:-1])
        lines += [f"  layer {layer}   {' '.join(reads)}"] * (len(tokens) > 1)
    return "\n".join(lines)


def first_numbers(vectors: Tensor) -> list[list[float]]:
    """Return the first numbers of vectors [T, d], in hundredths."""
    shown = vectors[:, :SHOWN_NUMBERS].double()
    return [[round(number, 2) for number in row] for row in shown.tolist()]
