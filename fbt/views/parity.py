"""The machine of chapter 7: four numbers that follow the parity of bits."""

import html
from typing import Any

from fbt._checks import check_choice, check_instance, check_int
from fbt._modes import without_gradients
from fbt.evaluation_copy import evaluation_copy, uncompiled
from fbt.language_model import LanguageModel
from fbt.tokenizer import CharTokenizer
from fbt.views.packing import pack
from fbt.views.view import View

BITS = "1011010"  # as many as fit in a phone
NUMBERS = ("b", "−b", "p", "−p")


class ParityMachine(View):
    """Bits that a reader flips, and the memory of a model of four numbers after each.

    The page computes the model anew for each flip.

    Args:
        model: a feedback model of two tokens, four wide. The numbers of its memory
            vector are the bit and its negative, the parity so far and its negative,
            each -1 or 1.

    Raises:
        TypeError: if `model` is not a `LanguageModel`.
        ValueError: if it has another width or number of tokens or is parallel, or a
            page cannot compute it (see `fbt.LiveModel`).
    """

    worker = ("engine.js", "guesses_worker.js")

    def __init__(self, model: LanguageModel) -> None:
        model = uncompiled(model)
        check_instance("model", model, LanguageModel)
        config = model.config
        check_choice(
            "the variant of model", config.variant, ["feedback", "shared-kv"]
        )
        check_int("d_model of model", config.d_model, low=4, high=4)
        check_int("vocab_size of model", config.vocab_size, low=2, high=2)
        tokenizer = CharTokenizer.from_vocabulary("01")
        reader = evaluation_copy(model)
        reader.tokenizer = tokenizer
        tokens = tokenizer.encode(BITS)[None]
        with without_gradients():
            memory = reader.memory(tokens)[0]
            shares = reader(tokens)[0].softmax(-1)
        self._rows = {"bit": [*BITS]}
        self._rows |= {
            name: [f"{number:.0f}".replace("-", "−") for number in column]
            for name, column in zip(NUMBERS, memory.T.tolist(), strict=True)
        }
        self._rows["odd?"] = [
            "yes" if odd > even else "no" for even, odd in shares.tolist()
        ]
        start = [
            {"memory": numbers, "shares": both}
            for numbers, both in zip(memory.tolist(), shares.tolist(), strict=True)
        ]
        data = {
            "packed": pack(reader),
            "bits": BITS,
            "names": NUMBERS,
            "start": start,
        }
        text = "\n".join(
            f"{name}: {', '.join(row)}" for name, row in self._rows.items()
        )
        super().__init__("parity", data, {}, text)

    def __repr__(self) -> str:
        return "ParityMachine()"

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> dict[str, Any]:
        """Return only HTML: a widget would put the weights into the output twice."""
        return {"text/plain": repr(self), "text/html": self.to_html()}

    def _still(self) -> str:
        rows = "".join(
            f'<tr><th scope="row">{html.escape(name)}</th>'
            + "".join(f"<td>{value}</td>" for value in row)
            + "</tr>"
            for name, row in self._rows.items()
        )
        return f'<table class="fbt-parity-table">{rows}</table>'
