"""A live model: it reads and writes in the page, without a kernel or a network."""

import html
import os
from typing import Any

import torch

from fbt._checks import check_instance, shorten
from fbt._modes import without_gradients
from fbt.config import Config
from fbt.evaluation_copy import uncompiled
from fbt.language_model import LanguageModel
from fbt.parallel import ParallelBody
from fbt.pretrained import PRETRAINED, WEIGHTS_FILE, find_weights
from fbt.views.packing import characters_of, checked, pack, weights_script
from fbt.views.trace import shares_in_memory
from fbt.views.view import View

TEXT = "ROMEO:\nWhat light is it? It is the "
LONGEST = 2000  # characters; live.js has these numbers too
MOST_SURPRISING = 5  # nats
WEIGHED = 128  # characters that a gradient goes back
# The folder of the scripts with the shipped weights, relative to the page. If it is
# not set, the page itself has the weights.
FOLDER_VARIABLE = "FBT_LIVE_WEIGHTS"


class LiveModel(View):
    """A model that a reader of the page makes read and write, in plain JavaScript.

    Each character is shaded by how much it surprised the model. The reader types,
    lets the model write on, and selects a character to see what was expected next,
    what every layer and head read, what the memory is made of and, for the kinds of
    models that the page can differentiate, how far back the prediction's gradient
    reaches. There is no kernel and no network: the weights are in the page, rounded
    to bytes (see `fbt.views.packing`).

    In the book, a page names the folder of the weights instead of carrying them. The
    environment variable `FBT_LIVE_WEIGHTS` gives this folder.

    Args:
        model: of any variant, with a `CharTokenizer` and at most 20 million
            parameters; or the name of a model that ships with the package.
        twin: a second model, or a name, with the same vocabulary. It can be loaded to
            compare, character by character.
        text: what the page shows first, 1 to 2,000 characters of the vocabulary. None
            means a line of a play, without characters that are not in the vocabulary.

    Raises:
        TypeError: if an argument has another type.
        ValueError: if a model has no `CharTokenizer`, is too large, computes
            something that its config does not tell, or has a weight that is not
            finite; if the vocabularies differ; or if `text` is empty, too long, or
            has a character that is not in the vocabulary.
        FileNotFoundError: if there is no model of a name.
    """

    worker = (
        "engine.js",
        "learn_kernels.js",
        "learn_model.js",
        "learn_transformer.js",
        "reach.js",
        "live_worker.js",
    )

    def __init__(
        self,
        model: LanguageModel | str,
        twin: LanguageModel | str | None = None,
        *,
        text: str | None = None,
    ) -> None:
        named = {"model": model} if twin is None else {"model": model, "twin": twin}
        models = [loaded(name, value) for name, value in named.items()]
        first, *others = models
        tokenizer = characters_of(first)
        for other in others:
            if other.tokenizer != tokenizer:
                raise ValueError(
                    "twin must have the vocabulary of model, got "
                    f"{shorten(other.tokenizer)}"
                )
        if text is None:
            known = set(tokenizer.vocabulary)
            text = "".join(c for c in TEXT if c in known) or tokenizer.vocabulary[0]
        check_instance("text", text, str)
        if not 1 <= len(text) <= LONGEST:
            raise ValueError(
                f"text must have 1 to {LONGEST} characters, got {len(text)}"
            )
        self.text = text
        self._seen = read(first, text)
        names = ["parallel" if is_parallel(each) else "feedback" for each in models]
        if len({*names}) < len(names):
            names[1] = "the twin"
        weights = [source_of(value) for value in named.values()]
        data = {
            "models": [
                {"name": name} | source
                for name, source in zip(names, weights, strict=True)
            ],
            "vocabulary": tokenizer.vocabulary,
            "mixture": None if is_parallel(first) else first.layer_weights().tolist(),
            "layers": min(each.config.n_layers for each in models),
            "heads": min(each.config.n_heads for each in models),
            "weighed": WEIGHED
            if all(has_reach(each.config) for each in models)
            else 0,
            "start": {"text": text} | self._seen,
        }
        super().__init__("live", data, {}, text)

    def __repr__(self) -> str:
        names = [each["name"] for each in self._data["models"]]
        return f"LiveModel({', '.join(names)})"

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> dict[str, Any]:
        """Return only HTML: a widget would put the weights into the output twice."""
        return {"text/plain": repr(self), "text/html": self.to_html()}

    def _still(self) -> str:
        surprises, last = self._seen["surprises"], self._seen["seen"][0]
        characters = "".join(
            "<br>"
            if character == "\n"
            else f'<span data-still style="--surprise: {heat_of(surprise):.3f}">'
            f"{html.escape(character)}</span>"
            for character, surprise in zip(self.text, surprises, strict=True)
        )
        vocabulary = self._data["vocabulary"]
        likely = sorted(enumerate(last["chances"]), key=lambda item: -item[1])[:3]
        guesses = ", ".join(
            f"“{html.escape(vocabulary[token].replace(chr(10), '⏎'))}” {share:.0%}"
            for token, share in likely
        )
        return (
            '<figure class="fbt-view-root fbt-live">'
            f'<div class="fbt-text">{characters}</div>'
            "<figcaption>What a model of characters makes of a text: the darker a "
            f"character, the more it surprised the model. Next it expects {guesses}. "
            "With scripts, the model runs in this page.</figcaption></figure>"
        )


def loaded(name: str, model: Any) -> LanguageModel:
    """Return a model that a page can compute, loaded if it is a name.

    Raises:
        TypeError, ValueError, FileNotFoundError: as in `LiveModel`.
    """
    if isinstance(model, str):
        model = LanguageModel.from_pretrained(model)
    check_instance(name, uncompiled(model), LanguageModel)
    return checked(model)


def has_reach(config: Config) -> bool:
    """Return whether reach.js computes the gradients of models with this config."""
    if config.activation != "relu" or config.relative != "per-layer":
        return False
    if config.variant == "parallel":
        return True
    has_one_cache = config.variant == "shared-kv" or config.n_layers == 1
    return has_one_cache and config.memory_norm and config.memory != "uniform"


def is_parallel(model: LanguageModel) -> bool:
    """Return whether a model has no memory vectors."""
    return isinstance(model.body, ParallelBody)


def source_of(model: LanguageModel | str) -> dict[str, Any]:
    """Return the weights of a model, or where its script is and its size in bytes."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not isinstance(model, str):
        return {"packed": pack(model)}
    if not folder or find_weights(model) != PRETRAINED / model / WEIGHTS_FILE:
        return {"packed": pack(LanguageModel.from_pretrained(model))}
    return {
        "key": model,
        "source": f"{folder}/{model}.js",
        "size": len(weights_script(model)),
    }


def read(model: LanguageModel, text: str) -> dict[str, Any]:
    """Return the surprises of a text in nats, and what the model saw at its end."""
    tokens = characters_of(model).encode(text)[None]
    device = model.token_embedding.weight.device
    tokens = tokens.to(device)
    with without_gradients():
        logs = torch.log_softmax(model(tokens)[0].double(), dim=-1)
    surprises = -logs[:-1].gather(1, tokens[0, 1:, None])[:, 0]
    own = int(is_parallel(model))  # a parallel step sees itself
    seen = min(len(text) - 1, model.config.span) + own
    weights = model.attention(tokens)[:, 0, :, -1].mean((0, 1))
    weights = weights[len(text) - 1 + own - seen :][:seen]
    shares = None
    if not is_parallel(model):
        outputs = model.layer_outputs(tokens)[:, 0].transpose(0, 1)
        shares = shares_in_memory(outputs, model.layer_weights())[-1].tolist()
    last = {
        "chances": logs[-1].exp().tolist(),
        "weights": weights.tolist(),
        "own": own,
        "shares": shares,
    }
    return {"surprises": [None, *surprises.tolist()], "seen": [last]}


def heat_of(surprise: float | None) -> float:
    """Return how dark a character is shown, from 0 to 1, as live.js does."""
    return min(1.0, (surprise or 0.0) / MOST_SURPRISING)
