r"""A character language model around any of the bodies: embed, run the body, normalise, predict.

Symbols used across the package (code name in brackets):

- B, T, L, H: sequences [batch], steps [seq_len], layers [n_layers], heads [n_heads]
- d, D, F: model width [d_model], head width d / H [d_head], feed-forward width [d_ff]
- S: span, how many earlier steps a query may see [span]
- $x_t^l$: output of layer $l$ at step $t$; $x_t^0$ is the embedding
- $m_t$: memory vector, $\sum_l w_l \, x_t^l$ with $w = \mathrm{softmax}(\text{layer
  logits})$
- $K_t$, $V_t$: key and value that step $t$ leaves, $W_k \, \mathrm{LN}(m_t)$ and $W_v
  \, \mathrm{LN}(m_t)$
- $E$, $s$, $u$: relative key embedding, relative key bias, query bias [RelativeTerms]
"""

import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from fbt._checks import (
    check_bool,
    check_choice,
    check_instance,
    check_path,
    check_tokens,
)
from fbt._files import quoted_path, write_file
from fbt._modes import without_gradients
from fbt._text import dataclass_from, parse_json
from fbt._weights import Shape, TensorFile, check_weights, reading_tensors, serialise
from fbt.attention import Dropout
from fbt.config import Config
from fbt.data import CharTokenizer
from fbt.engines import Decoder
from fbt.evaluation_copy import evaluation_copy
from fbt.feedback import FeedbackBody
from fbt.folding import describe_override, why_not_folded
from fbt.generation import Reader, check_sampling, sample
from fbt.initialisation import initialising
from fbt.parallel import ParallelBody
from fbt.shared_kv import SharedKVBody
from fbt.state import State
from fbt.warm_start import copy_parallel_body

Body = ParallelBody | FeedbackBody | SharedKVBody
BODIES: dict[str, type[Body]] = {
    "parallel": ParallelBody,
    "feedback": FeedbackBody,
    "shared-kv": SharedKVBody,
}
WEIGHTS_FILE = "model.safetensors"
CHECKPOINT_FILE = "checkpoint.safetensors"  # of a run: see fbt/training/checkpoint.py
CHECKPOINT_PART = "model."  # what the names of the weights begin with there
PRETRAINED = files("fbt") / "weights"


class LanguageModel(nn.Module):
    """A language model over single tokens, characters in this book.

    Args:
        config: sizes, variant and options.
        tokenizer: needed only to generate text; its vocabulary must have
            `config.vocab_size` characters.
    """

    def __init__(
        self, config: Config, tokenizer: CharTokenizer | None = None
    ) -> None:
        super().__init__()
        check_instance("config", config, Config)
        self.config = config
        self.tokenizer = tokenizer
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.dropout = Dropout(config.dropout)
        self.body = BODIES[config.variant](config)
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocab_size)
        self._backend = "auto"

    @property
    def backend(self) -> str:
        """How the body computes, "auto" or one of `body.backends`; the numbers are the same."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        check_choice(
            f"backend of a {self.config.variant!r} model",
            name,
            ("auto", *self.body.backends),
        )
        self._backend = name

    @property
    def tokenizer(self) -> CharTokenizer | None:
        """The tokenizer, with a character for each token of the config, or None."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: CharTokenizer | None) -> None:
        if tokenizer is not None:
            check_tokenizer(tokenizer, self.config)
        self._tokenizer = tokenizer

    @overload
    def forward(
        self,
        tokens: Tensor,
        state: State | None = ...,
        return_state: Literal[False] = ...,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        tokens: Tensor,
        state: State | None = ...,
        *,
        return_state: Literal[True],
    ) -> tuple[Tensor, State]: ...

    def forward(
        self, tokens: Tensor, state: State | None = None, return_state: bool = False
    ) -> Tensor | tuple[Tensor, State]:
        """Predict the next token at every step.

        Args:
            tokens: token ids [B, T], T >= 1.
            state: what an earlier block of the same sequences returned; None starts
                afresh.
            return_state: also return the state for the next block. Call `.detach()`
                on it to keep gradients inside a block.

        Returns:
            Logits [B, T, V], or (logits, state).

        Raises:
            TypeError: tokens are not integers.
            ValueError: tokens are empty, of the wrong shape or outside the vocabulary
                (on a GPU too, which costs a wait for it; not in a captured or traced
                graph), or the state belongs to another batch or model.
        """
        check_tokens("tokens", tokens, "[B, T]", self.config.vocab_size)
        check_bool("return_state", return_state)
        x = self.dropout(self.token_embedding(tokens))
        y, state, _ = self.body(x, state, backend=self._backend)
        logits = self.head(self.norm(y))
        return (logits, state) if return_state else logits

    def step(
        self, tokens: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Predict from one token more per sequence, reading the cache: O(span) work, nothing recomputed.

        Args:
            tokens: token ids [B].
            state: what the step before returned; None at the first.

        Returns:
            Logits [B, V] and the state for the next step. The given state stays as it
            is.

        Raises:
            TypeError, ValueError: as in `forward`.
        """
        check_tokens("tokens", tokens, "[B]", self.config.vocab_size)
        logits, state = self(tokens[:, None], state, return_state=True)
        return logits[:, 0], state

    def attention(self, tokens: Tensor) -> Tensor:
        """The attention weights of every layer and head over a text, without dropout.

        Args:
            tokens: token ids [B, T].

        Returns:
            Weights [L, B, H, T, T], row = query, column = key. Rows sum to 1, but for
            row 0 of a feedback model, which has no memory yet and is zero.

        Raises:
            TypeError, ValueError: as in `forward`.
        """
        check_tokens("tokens", tokens, "[B, T]", self.config.vocab_size)
        model = evaluation_copy(self)
        with without_gradients():
            x = model.token_embedding(tokens)
            weights: Tensor = model.body(x, backend=self._backend, need_weights=True)[
                2
            ]
        return weights

    def layer_weights(self) -> Tensor:
        """w, [L + 1]: the share of the embedding and of each layer in the memory vector, detached.

        Raises:
            ValueError: a parallel model has no memory vector.
        """
        if isinstance(self.body, ParallelBody):
            raise ValueError(
                "layer_weights needs variant 'feedback' or 'shared-kv', got 'parallel'"
            )
        return self.body.layer_weights().detach()

    def num_parameters(self) -> int:
        """Return how many numbers are trained: those of all parameters that require a gradient."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @overload
    def generate(
        self,
        prompt: str = ...,
        max_new_tokens: int = ...,
        *,
        temperature: float = ...,
        top_k: int | None = ...,
        seed: int | None = ...,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: list[str],
        max_new_tokens: int = ...,
        *,
        temperature: float = ...,
        top_k: int | None = ...,
        seed: int | None = ...,
    ) -> list[str]: ...

    def generate(
        self,
        prompt: str | list[str] = "\n",
        max_new_tokens: int = 200,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
    ) -> str | list[str]:
        """Continue one text, or each of a list of texts.

        Args:
            prompt: what to continue, at least one character; a list is decoded as one
                batch.
            max_new_tokens: characters to add to each prompt.
            temperature: logits are divided by it; 0 always takes the most likely
                character.
            top_k: sample among the k most likely characters only; None samples among
                all.
            seed: makes the text repeatable. Prompt i of a list draws from seed + i,
                whatever its neighbours.

        Returns:
            The prompt with its continuation, or a list of them.

        Raises:
            TypeError, ValueError: an argument is out of range, or the model has no
                tokenizer.
            FloatingPointError: the model predicts NaN or infinity.
        """
        pieces = self.stream(
            prompt, max_new_tokens, temperature=temperature, top_k=top_k, seed=seed
        )
        if isinstance(prompt, str):
            return prompt + "".join(pieces)  # type: ignore[arg-type]
        return [
            start + "".join(new) for start, *new in zip(prompt, *pieces, strict=True)
        ]

    def stream(
        self,
        prompt: str | list[str] = "\n",
        max_new_tokens: int = 200,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
    ) -> Iterator[str] | Iterator[list[str]]:
        """Like `generate`, yielding each new character as it comes.

        For a list of prompts every item is a list with the next character of each.
        Prompts of unequal length are read side by side: the shortest starts first,
        and "" stands for a text that is still reading its prompt or has ended.

        Raises:
            TypeError, ValueError: as in `generate`, at the call rather than at the
                first character.
        """
        if self.tokenizer is None:
            raise ValueError(
                "generate needs a tokenizer: LanguageModel(config, tokenizer), got tokenizer=None"
            )
        check_instance("prompt", prompt, str, list)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not prompts:
            raise ValueError(
                "prompt must be a text or a list of at least one, got []"
            )
        for text in prompts:
            check_instance("a prompt of the list", text, str)
            if not text:
                raise ValueError("prompt must have at least 1 character, got ''")
        check_sampling(
            max_new_tokens, temperature, top_k, seed, self.config.vocab_size
        )
        try:
            encoded = [self.tokenizer.encode(text) for text in prompts]
        except ValueError as error:
            raise ValueError(f"prompt cannot be encoded: {error}") from error
        vocabulary = self.tokenizer.vocabulary
        drawn = sample(
            reader(self), encoded, max_new_tokens, temperature, top_k, seed
        )
        characters = (
            ["" if token is None else vocabulary[token] for token in tokens]
            for tokens in drawn
        )
        return (
            (batch[0] for batch in characters)
            if isinstance(prompt, str)
            else characters
        )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `model.safetensors` into a folder: weights, and config and vocabulary in its metadata.

        One file, so that it is there whole or not at all. A weight that two parts
        share is written for each of them, and loads as two.

        Args:
            folder: created if it does not exist.

        Returns:
            The path of the file.

        Raises:
            ValueError: `from_pretrained` would not read it: it would be too large,
                the weights are of several types or not those of the config, as where
                a part was changed, or the tokenizer does not fit a config that was
                changed.
            OSError: it cannot be written.
        """
        check_path("folder", folder)
        path = Path(folder) / WEIGHTS_FILE
        write_file(path, model_bytes(self, path))
        return path

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "LanguageModel":
        """Load a model that `save_pretrained` wrote, in evaluation mode.

        Weights of half precision, float16 or bfloat16, become float32: they are
        stored so for their size, and a CPU computes in float32. Others keep their
        precision.

        Args:
            name: a folder; or the name of weights that ship with the package:
                "tiny-shakespeare" or its parallel twin, "tiny-shakespeare-parallel";
                or the path of a file. A folder of yours comes first. Of a run that
                has not ended, whose folder has no `model.safetensors` yet, the
                weights of the last checkpoint are loaded, and a warning says so;
                there is none where the path of `checkpoint.safetensors` itself is
                given.

        Raises:
            FileNotFoundError: there is no such folder, name or file.
            ValueError: the file is damaged or no model of this package, is larger
                than 4 GiB, was changed while it was read, or its tensors are not
                those of its config. Sizes and tensors are checked before memory is
                taken for them.
        """
        check_path("name", name)
        path = _weights_path(name)
        is_checkpoint = path.name == CHECKPOINT_FILE
        if is_checkpoint and Path(name).is_dir():
            warnings.warn(
                f"no {WEIGHTS_FILE} in {quoted_path(name)}, of a run that has not ended: its last "
                "checkpoint is loaded. To go on with the run, call "
                f"fbt.training.resume({str(name)!r})",
                stacklevel=2,
            )
        # Files are opened by their paths, and a package in a zip file has none.
        with (
            as_file(path) as place,
            reading_tensors(
                place, "checkpoint" if is_checkpoint else "model"
            ) as file,
        ):
            config, tokenizer = _config_of(file, is_checkpoint), None
            if "vocabulary" in file.metadata:
                tokenizer = CharTokenizer.from_vocabulary(
                    parse_json("vocabulary", file.text("vocabulary"))
                )
            part = CHECKPOINT_PART if is_checkpoint else ""
            check_weights(file.tensors, weight_shapes(config), part)
            stored = file.tensors[f"{part}token_embedding.weight"].dtype
            with initialising():
                model = cls(config, tokenizer)
            model.to(torch.promote_types(stored, torch.float32))
            weights = model.state_dict()
            for key, tensor in file.read(part):
                weights[key].copy_(tensor)  # one by one, to hold them in memory once
        return model.eval()

    @classmethod
    def from_parallel(
        cls, parallel: "LanguageModel", variant: str = "shared-kv", **changes: Any
    ) -> "LanguageModel":
        """Turn a trained parallel model into the starting point of a feedback model.

        What is copied as it is: token embedding, final norm and head; in each layer
        both norms, W_q, W_o, the feed-forward block, u, and the rows of E and s for
        distances 1..S (distance 0 is dropped: a step does not see itself).

        What is mapped: a parallel layer makes K and V from LN1(x) = g * z + beta with
        z the plain normalisation. The memory's norm starts plain, so each layer's
        W_k, W_v become W_k diag(g), W_v diag(g). The key bias W_k beta is the same
        for all keys and cancels in the softmax; the value bias W_v beta passes
        through it unchanged and goes into the output bias, b_o + W_o W_v beta. With
        variant "shared-kv" the layers' W_k, W_v and value biases are averaged.

        What is new: the layer weights start uniform. With one layer and
        memory="embedding" the result computes exactly the parallel layer under a
        strict mask; with more layers it is a start, not a copy.

        Args:
            parallel: the model to start from; it is left as it is.
            variant: "shared-kv" or "feedback".
            **changes: fields of `Config` that shall differ: dropout, memory,
                memory_norm.

        Returns:
            A new model on the same device and in the same dtype, in training mode.

        Raises:
            ValueError: the model is not parallel, the variant is no feedback one, or
                a change is another.
        """
        check_instance("parallel", parallel, cls)
        config = config_from_parallel(parallel.config, variant, **changes)
        with initialising():
            model = cls(config, parallel.tokenizer)
        model.to(parallel.token_embedding.weight)
        for part in ("token_embedding", "norm", "head"):
            getattr(model, part).load_state_dict(getattr(parallel, part).state_dict())
        assert isinstance(parallel.body, ParallelBody) and isinstance(
            model.body, FeedbackBody
        )  # checked above
        copy_parallel_body(parallel.body, model.body)
        return model


def reader(model: LanguageModel) -> Reader:
    """Return a function that reads a text in pieces, for `fbt.generation.sample`.

    It keeps what it has read: in a cache written in place if the body has a decoder
    that computes what `LanguageModel.step` would, and as a state otherwise.

    Args:
        model: read in evaluation mode, without gradients.
    """
    model = evaluation_copy(model)
    state: State | None = None
    decoder: Decoder | None = None

    def read(tokens: Tensor) -> Tensor:
        nonlocal state, decoder
        tokens = tokens.to(model.token_embedding.weight.device)
        with without_gradients():
            if decoder is not None:
                x = model.token_embedding(tokens)[:, 0]
                return model.head(model.norm(decoder.step(x)))
            if state is not None:
                logits, state = model.step(tokens[:, 0], state)
                return logits
            logits, state = model(tokens, return_state=True)
            decoder = decoder_of(model, state)
            return logits[:, -1]

    return read


def decoder_of(model: LanguageModel, state: State) -> Decoder | None:
    """Return a decoder of the body, unless it would pass over something that `step` does."""
    body = model.body
    if not isinstance(body, SharedKVBody) or model.backend not in body.decoders:
        return None
    bypassed = any(
        describe_override(module) for module in (model, body, model.dropout)
    )
    made = (type(model).step, type(model).forward, type(body).forward)
    own = (LanguageModel.step, LanguageModel.forward, SharedKVBody.forward)
    if bypassed or "step" in vars(model) or made != own:
        return None
    if state.keys[0].dtype != model.token_embedding.weight.dtype:  # of autocast
        return None
    if model.backend == "auto" and why_not_folded(body):
        return None
    return body.decoder(state, model.backend)


def weight_shapes(config: Config) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the tensors that a model of this config saves, however large; none of them is made.

    They are read off a model of two layers with sizes that all differ, so that an
    axis tells which size it has; layers after the second are like the second.
    """
    with initialising():
        small = LanguageModel(
            replace(
                config,
                vocab_size=13,
                d_model=10,
                n_heads=2,
                n_layers=2,
                d_ff=11,
                span=17,
            )
        )
    sizes = {
        13: config.vocab_size,
        10: config.d_model,
        2: config.n_heads,
        5: config.d_head,
        11: config.d_ff,
    }
    sizes |= {3: config.n_layers + 1, 17: config.span, 18: config.span + 1}
    for name, tensor in small.state_dict().items():
        layers = range(1, config.n_layers) if ".1." in name else range(1)
        for layer in layers:
            yield (
                name.replace(".1.", f".{layer}."),
                tuple(sizes[size] for size in tensor.shape),
            )


def model_bytes(model: LanguageModel, path: Path) -> bytes:
    """Return the bytes of the file that `save_pretrained` writes.

    Args:
        model: the model to save.
        path: where the file is going to be, for messages.

    Raises:
        ValueError: as in `save_pretrained`.
    """
    metadata = {"format": "pt", "config": json.dumps(asdict(model.config))}
    if model.tokenizer is not None:
        check_tokenizer(model.tokenizer, model.config)  # either may have changed
        metadata["vocabulary"] = json.dumps(model.tokenizer.vocabulary)
    weights = model.state_dict()
    check_weights(weights, weight_shapes(model.config))
    return serialise(path, weights, metadata)


def config_from_parallel(config: Config, variant: str, **changes: Any) -> Config:
    """Return the config of what `LanguageModel.from_parallel` makes of a model of this config.

    Raises:
        ValueError: as in `LanguageModel.from_parallel`.
    """
    check_choice("variant of the model to start from", config.variant, ("parallel",))
    check_choice("variant", variant, ("shared-kv", "feedback"))
    for name in changes:
        check_choice("a changed field", name, ("dropout", "memory", "memory_norm"))
    return replace(config, variant=variant, **changes)


def check_tokenizer(tokenizer: CharTokenizer, config: Config) -> None:
    """Raise unless it is a tokenizer with a character for each of the config's tokens."""
    check_instance("tokenizer", tokenizer, CharTokenizer)
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(
            f"tokenizer must have vocab_size={config.vocab_size} characters, got {tokenizer.vocab_size}"
        )


def _weights_path(name: str | Path) -> Traversable:
    """Where the weights are that `from_pretrained` is asked for."""
    for file in (WEIGHTS_FILE, CHECKPOINT_FILE):
        if (Path(name) / file).exists():
            return Path(name) / file
    shipped = PRETRAINED / str(name) / WEIGHTS_FILE
    if shipped.is_file():
        return shipped
    if Path(name).is_file():
        return Path(name)
    names = sorted(folder.name for folder in PRETRAINED.iterdir() if folder.is_dir())
    raise FileNotFoundError(
        f"no {WEIGHTS_FILE} in {str(name)!r}; names that ship with fbt: {names}"
    )


def _config_of(file: TensorFile, is_checkpoint: bool) -> Config:
    """The config of a file of weights, of a checkpoint that in the run's settings."""
    if not is_checkpoint:
        return dataclass_from(
            "config", Config, parse_json("config", file.text("config"))
        )
    settings = parse_json("settings", file.text("settings"))
    check_instance("settings", settings, dict)
    return dataclass_from("config", Config, settings.get("config"))
