r"""A language model around any of the bodies: embed, run the body, predict.

Symbols used across the package (code name in brackets):

- B, T, L, H: sequences [batch], steps [seq_len], layers [n_layers], heads [n_heads]
- d, D, F: model width [d_model], head width d / H [d_head], feed-forward width [d_ff]
- S: span, how many earlier steps a query may see [span]
- $x_t^l$: output of layer $l$ at step $t$; $x_t^0$ is the embedding
- $m_t$: memory vector, $\sum_l w_l \, x_t^l$ with $w = \mathrm{softmax}(\text{layer
  logits})$
- $K_t$, $V_t$: key and value of step $t$, $W_k \, \mathrm{LN}(m_t)$ and $W_v
  \, \mathrm{LN}(m_t)$
- $E$, $s$, $u$: relative key embedding, relative key bias, query bias [RelativeTerms]
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

import torch
from torch import Tensor, nn

from fbt import engines
from fbt._checks import (
    check_bool,
    check_choice,
    check_device,
    check_instance,
    check_path,
    check_tokens,
    shorten,
)
from fbt._files import write_file
from fbt._modes import without_gradients
from fbt._weights import Shape
from fbt.attention import Dropout
from fbt.config import Backend, Config, Variant
from fbt.evaluation_copy import evaluation_copy
from fbt.feedback import FeedbackBody, WeightedMemory
from fbt.generation import (
    Reader,
    Sampling,
    TextReader,
    collect,
    continue_prompts,
)
from fbt.generation.prompts import Prompt, read_prompts
from fbt.initialisation import initialising, shapes_only
from fbt.parallel import ParallelBody
from fbt.pretrained import (
    WEIGHTS_FILE,
    find_weights,
    open_saved,
    serialise_model,
)
from fbt.scoring import IGNORE_INDEX, block_scores, check_targets, cross_entropy
from fbt.shared_kv import SharedKVBody
from fbt.state import State
from fbt.tokenizer import Tokenizer, check_tokenizer
from fbt.warm_start import config_from_parallel, copy_parallel_body

Body = ParallelBody | FeedbackBody | SharedKVBody
BODIES: dict[str, type[Body]] = {
    "parallel": ParallelBody,
    "feedback": FeedbackBody,
    "shared-kv": SharedKVBody,
}


class LanguageModel(nn.Module):
    """A language model over tokens, which are characters in this book.

    Args:
        config: sizes, variant and options.
        tokenizer: with `config.vocab_size` tokens; see `fbt.tokenizer.Tokenizer`.
            Only texts need it, token ids do not.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        check_instance("config", config, Config)
        self.config = config
        self.tokenizer = tokenizer
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.dropout = Dropout(config.dropout)
        self.body = BODIES[config.variant](config)
        self.norm = (
            nn.LayerNorm(config.d_model) if config.final_norm else nn.Identity()
        )
        self.head = nn.Linear(config.d_model, config.vocab_size)
        self._backend: Backend = "auto"

    @property
    def backend(self) -> Backend:
        """The way the body computes, "auto" or one of `body.backends`.

        All compute the same numbers.
        """
        return self._backend

    @backend.setter
    def backend(self, name: Backend) -> None:
        check_choice(
            f"backend of a {self.config.variant!r} model",
            name,
            ("auto", *self.body.backends),
        )
        self._backend = name

    def explain_backend(self, tokens: Tensor) -> str:
        """Return which backend computes these tokens now, and why, as a text.

        Gradients, hooks, changed modules, the dtype, the device and autocast matter,
        so call it where the model is called: under the same `torch.no_grad()`, for
        example.

        Args:
            tokens: token ids [B, T].

        Returns:
            Such as '"native": it is the fastest for torch.float32 on cpu'.

        Raises:
            TypeError, ValueError: as in `forward`.
        """
        check_tokens("tokens", tokens, "[B, T]", self.config.vocab_size)
        size = (*tokens.shape, self.config.d_model)
        x = self.token_embedding.weight.new_empty(size)
        if self._backend != "auto":
            parts = [f'"{self._backend}": model.backend names it']
            parts += [engines.autocast_in(self._backend, x)]
            return ". ".join(part.rstrip(".") for part in parts if part)
        if not isinstance(self.body, SharedKVBody):
            reason = f"it is the fastest for {self.config.variant!r}"
            return f'"{self.body.plain}": {reason}'
        choice = engines.choose(self.body, x)
        parts = [f'"{choice.engine or self.body.plain}": {choice.reason}']
        parts += [choice.advice and f"To change that: {choice.advice}"]
        parts += [engines.autocast_in(choice.engine, x)]
        return ". ".join(part.rstrip(".") for part in parts if part)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, with as many tokens as the config, or None."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer | None) -> None:
        if tokenizer is not None:
            check_tokenizer(tokenizer, self.config.vocab_size)
        self._tokenizer = tokenizer

    if TYPE_CHECKING:  # nn.Module declares that a call may return anything

        @overload
        def __call__(
            self,
            tokens: Tensor,
            state: State | None = ...,
            return_state: Literal[False] = ...,
            *,
            lengths: Tensor | None = ...,
            starts: Tensor | None = ...,
        ) -> Tensor: ...

        @overload
        def __call__(
            self,
            tokens: Tensor,
            state: State | None = ...,
            *,
            return_state: Literal[True],
            lengths: Tensor | None = ...,
            starts: Tensor | None = ...,
        ) -> tuple[Tensor, State]: ...

        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...  # noqa: D102

    @overload
    def forward(
        self,
        tokens: Tensor,
        state: State | None = ...,
        return_state: Literal[False] = ...,
        *,
        lengths: Tensor | None = ...,
        starts: Tensor | None = ...,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        tokens: Tensor,
        state: State | None = ...,
        *,
        return_state: Literal[True],
        lengths: Tensor | None = ...,
        starts: Tensor | None = ...,
    ) -> tuple[Tensor, State]: ...

    def forward(
        self,
        tokens: Tensor,
        state: State | None = None,
        return_state: bool = False,
        *,
        lengths: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, State]:
        """Predict the next token at every step.

        Args:
            tokens: token ids [B, T], T >= 1.
            state: returned for the previous block of the same sequences; None at the
                start.
            return_state: also return the state for the next block. Call `.detach()`
                on it to confine gradients to a block.
            lengths: the number of tokens of each row [B], 1 to T, where shorter rows
                are padded at their end. The state is then that of each row after its
                own last token. Logits of real tokens do not depend on the padding,
                with or without lengths.
            starts: bool [B, T], True at the first token of each document in a row.
                A document sees nothing before it, neither in the row nor in the
                state, as if it were read alone. Where rows are padded at their
                beginning, mark their first real token.

        Returns:
            Logits [B, T, V], or (logits, state).

        Raises:
            TypeError: if tokens or lengths are not integers, or starts are not bool.
            ValueError: if tokens are empty, of the wrong shape or outside the
                vocabulary, the state belongs to another batch or model, or lengths or
                starts do not fit the tokens. Values are checked on a GPU too, which
                waits for it, but not in a captured or traced graph.
        """
        check_tokens("tokens", tokens, "[B, T]", self.config.vocab_size)
        check_bool("return_state", return_state)
        x = self.dropout(self.token_embedding(tokens))
        y, state, _ = self.body(
            x, state, lengths=lengths, starts=starts, backend=self._backend
        )
        logits = self.head(self.norm(y))
        return (logits, state) if return_state else logits

    def step(
        self, tokens: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Predict from one more token per sequence, in O(span) operations.

        Fastest under `torch.no_grad()` and in evaluation mode: it then continues the
        memory of the state in place, and a second step from the same state copies it.

        Args:
            tokens: token ids [B].
            state: returned by the previous step; None at the first.

        Returns:
            Logits [B, V] and the state for the next step. `state` is not changed.

        Raises:
            TypeError, ValueError: as in `forward`.
        """
        check_tokens("tokens", tokens, "[B]", self.config.vocab_size)
        logits, state = self(tokens[:, None], state, return_state=True)
        return logits[:, 0], state

    def attention(self, tokens: Tensor) -> Tensor:
        """Return the attention weights of every layer and head, without dropout.

        Args:
            tokens: token ids [B, T].

        Returns:
            Weights [L, B, H, T, T]; rows are queries, columns keys. Rows sum to 1,
            except row 0 of a feedback model, which has no memory yet and is zero.

        Raises:
            TypeError, ValueError: as in `forward`.
        """
        check_tokens("tokens", tokens, "[B, T]", self.config.vocab_size)
        model = evaluation_copy(self)
        with without_gradients():
            x = model.token_embedding(tokens)
            _, _, weights = model.body(x, backend=self._backend, need_weights=True)
        assert weights is not None  # for mypy
        return weights

    def layer_weights(self) -> Tensor:
        """Return w [L + 1], the layer weights of the memory vector, detached.

        Entry 0 is the weight of the embedding.

        Raises:
            ValueError: if the model is parallel, and so has no memory vector.
        """
        if isinstance(self.body, ParallelBody):
            raise ValueError(
                "layer_weights needs variant 'feedback' or 'shared-kv', "
                "got 'parallel'"
            )
        return self.body.layer_weights().detach()

    def layer_outputs(self, tokens: Tensor) -> Tensor:
        """Return the embeddings x^0 and the outputs x^l of all layers.

        Dropout is off.

        Args:
            tokens: token ids [B, T].

        Returns:
            [L + 1, B, T, d]; entry 0 is the embedding.

        Raises:
            TypeError, ValueError: as in `forward`.
        """
        check_tokens("tokens", tokens, "[B, T]", self.config.vocab_size)
        model = evaluation_copy(self)
        outputs: list[list[Tensor]] = [[] for _ in model.body.layers]
        for layer, steps in zip(model.body.layers, outputs, strict=True):
            layer.register_forward_hook(
                lambda _, args, output, steps=steps: steps.append(output[0])
            )
        with without_gradients():
            x = model.token_embedding(tokens)
            # a loop over steps, because the layers have hooks
            model.body(x, backend=model.body.plain)
        return torch.stack([x, *(torch.cat(steps, dim=1) for steps in outputs)])

    def memory(self, tokens: Tensor) -> Tensor:
        """Return the memory vectors m_t = sum_l w_l x_t^l, before their norm.

        Dropout is off.

        Args:
            tokens: token ids [B, T].

        Returns:
            [B, T, d].

        Raises:
            TypeError: as in `forward`.
            ValueError: as in `forward`, or if the model is parallel.
        """
        mixture = self.layer_weights()
        return torch.einsum("l,lbtd->btd", mixture, self.layer_outputs(tokens))

    def num_parameters(self) -> int:
        """Return the number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        *,
        starts: Tensor | None = None,
        ignore_index: int = IGNORE_INDEX,
    ) -> Tensor:
        """Return the mean cross-entropy of the next tokens, for `backward`.

        Args:
            tokens: token ids [B, T].
            targets: the ids [B, T] of the next tokens, or `ignore_index` where there
                is none, such as padding, a prompt, or the last token of a document.
            starts: bool [B, T], True where documents begin; see `forward`.
            ignore_index: the value of targets that do not count.

        Returns:
            A scalar in nats per token, in float32 or a wider type.

        Raises:
            TypeError, ValueError: as in `forward`; if targets are of another shape or
                out of range, or all are ignored.
        """
        check_tokens("tokens", tokens, "[B, T]", self.config.vocab_size)
        check_targets(targets, tokens, self.config.vocab_size, ignore_index)
        logits = self(tokens, starts=starts)
        return cross_entropy(logits, targets, ignore_index=ignore_index)

    @overload
    def score(self, text: str | Tensor) -> Tensor: ...

    @overload
    def score(self, text: list[str] | Sequence[Sequence[int]]) -> list[Tensor]: ...

    def score(self, text: Prompt) -> Tensor | list[Tensor]:
        """Return the log-probability of each token but the first, without gradients.

        Texts are read from an empty memory, without dropout.

        Args:
            text: a text, a list of texts, token ids as an integer tensor [T] or
                [B, T], or a list of lists of ids.

        Returns:
            For a text or a tensor [T] a tensor [T - 1] in nats: entry t is that of
            token t + 1 given the tokens 0..t. Their mean is minus the loss. For
            [B, T] a tensor [B, T - 1], for a list a list of tensors.

        Raises:
            TypeError, ValueError: if there is no text, an id is out of range, or a
                text needs a tokenizer.
        """
        prompts = read_prompts("text", text, self.tokenizer, self.config.vocab_size)
        # The end of a shorter row is filled with a token that no score depends on.
        tokens = nn.utils.rnn.pad_sequence(prompts.ids, batch_first=True)
        tokens = tokens.to(self.token_embedding.weight.device)
        model = evaluation_copy(self)
        rows = block_scores(
            lambda t, state: model(t, state, return_state=True), tokens
        )
        if prompts.form == "batch":
            return rows
        each = [
            row[: len(ids) - 1] for row, ids in zip(rows, prompts.ids, strict=True)
        ]
        return each[0] if prompts.form == "one" else each

    @overload
    def generate(
        self,
        prompt: str = ...,
        max_new_tokens: int = ...,
        *,
        return_log_probs: Literal[False] = ...,
        **options: Unpack[Sampling],
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: list[str],
        max_new_tokens: int = ...,
        *,
        return_log_probs: Literal[False] = ...,
        **options: Unpack[Sampling],
    ) -> list[str]: ...

    @overload
    def generate(
        self,
        prompt: Tensor,
        max_new_tokens: int = ...,
        *,
        return_log_probs: Literal[False] = ...,
        **options: Unpack[Sampling],
    ) -> Tensor: ...

    @overload
    def generate(
        self,
        prompt: Sequence[Sequence[int]],
        max_new_tokens: int = ...,
        *,
        return_log_probs: Literal[False] = ...,
        **options: Unpack[Sampling],
    ) -> list[list[int]]: ...

    @overload
    def generate(
        self,
        prompt: Prompt = ...,
        max_new_tokens: int = ...,
        *,
        return_log_probs: Literal[True],
        **options: Unpack[Sampling],
    ) -> tuple[Any, Tensor]: ...

    def generate(
        self,
        prompt: Prompt = "\n",
        max_new_tokens: int = 200,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: str | int | Collection[str | int] | None = None,
        seed: int | None = None,
        return_log_probs: bool = False,
    ) -> Any:
        """Continue a text or token ids, or each of several.

        Args:
            prompt: a text of at least one character, a list of texts, token ids as an
                integer tensor [T] or [B, T], or a list of lists of ids. Several are
                decoded as one batch. Ids need no tokenizer.
            max_new_tokens: tokens to add to each prompt.
            temperature: divides the logits; 0 always takes the most likely token.
            top_k: sample from the k most likely tokens; None samples from all.
            top_p: sample from the fewest most likely tokens that together have this
                probability, in (0, 1]; None samples from all.
            stop: texts and ids, or one of them. A sequence ends with the token that
                completes such a text within the new text, or is such an id.
            seed: makes the result reproducible. Prompt i of several draws from
                seed + i, independent of the other prompts.
            return_log_probs: also return the log-probability of each drawn token
                under the model, whatever the temperature, top_k and top_p.

        Returns:
            The prompt with its continuation, in the form of the prompt: a text, a
            list of texts, a tensor [T + n] or [B, T + n], or a list of lists. Where
            rows of a tensor have ended earlier, -100 follows. With
            `return_log_probs`, a pair of this and a float64 tensor [n] or [B, n] on
            the CPU, with 0 after the end of a row.

        Raises:
            TypeError, ValueError: if an argument is out of range, or a text needs a
                tokenizer.
            FloatingPointError: if the model predicts NaN or infinity.
        """
        check_bool("return_log_probs", return_log_probs)
        vocab_size = self.config.vocab_size
        prompts = read_prompts("prompt", prompt, self.tokenizer, vocab_size)
        steps = continue_prompts(
            self._reader,
            prompts,
            self.tokenizer,
            vocab_size,
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop=stop,
            seed=seed,
            log_probs=return_log_probs,
        )
        results, log_probs = collect(prompts, steps)
        return (results, log_probs) if return_log_probs else results

    @overload
    def stream(
        self,
        prompt: str = ...,
        max_new_tokens: int = ...,
        **options: Unpack[Sampling],
    ) -> Iterator[str]: ...

    @overload
    def stream(
        self,
        prompt: list[str],
        max_new_tokens: int = ...,
        **options: Unpack[Sampling],
    ) -> Iterator[list[str]]: ...

    @overload
    def stream(
        self,
        prompt: Tensor | Sequence[Sequence[int]],
        max_new_tokens: int = ...,
        **options: Unpack[Sampling],
    ) -> Iterator[Any]: ...

    def stream(
        self,
        prompt: Prompt = "\n",
        max_new_tokens: int = 200,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: str | int | Collection[str | int] | None = None,
        seed: int | None = None,
    ) -> Iterator[Any]:
        """Like `generate`, but yield what each new token adds once it is drawn.

        For a text, each item is the new text; it is "" while a character of several
        tokens is incomplete. For a tensor [T], it is the new id.

        For several prompts, each item is a list with the next text or id of each, and
        "" or None for one that has ended.

        Raises:
            TypeError, ValueError: as in `generate`, when `stream` is called rather
                than at the first token.
        """
        vocab_size = self.config.vocab_size
        prompts = read_prompts("prompt", prompt, self.tokenizer, vocab_size)
        steps = continue_prompts(
            self._reader,
            prompts,
            self.tokenizer,
            vocab_size,
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop=stop,
            seed=seed,
        )
        items: Iterator[list[Any]]
        if prompts.texts is None:
            items = ([piece and piece.token for piece in step] for step in steps)
        else:
            items = (
                [piece.text if piece else "" for piece in step] for step in steps
            )
        return (item[0] for item in items) if prompts.form == "one" else items

    def _reader(self) -> Reader:
        """Return a function that reads a text in pieces, in evaluation mode."""
        model = evaluation_copy(self)
        return TextReader(
            lambda tokens, **rows: model(tokens, return_state=True, **rows),
            model.step,
            model.token_embedding.weight,
        )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write weights, config and tokenizer to `model.safetensors` in a folder.

        The file is written completely or not at all. A weight that two modules share
        is written twice, and loaded as two weights. A tokenizer that is neither a
        `CharTokenizer` nor a `SubwordTokenizer` is not written.

        Args:
            folder: created if it does not exist.

        Returns:
            The path of the file.

        Raises:
            ValueError: if `from_pretrained` would refuse the file: it would be too
                large, the weights have different dtypes or do not match the config,
                or the tokenizer does not.
            OSError: if the file cannot be written.
        """
        check_path("folder", folder)
        path = Path(folder) / WEIGHTS_FILE
        write_file(path, model_bytes(self, path))
        return path

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        tokenizer: Tokenizer | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Load a model that `save_pretrained` wrote, in evaluation mode.

        Args:
            name: a folder, the path of a file, or the name of weights that ship with
                the package: "tiny-shakespeare" or "tiny-shakespeare-parallel". A
                folder takes precedence over a name. The folder of an unfinished run
                has no `model.safetensors` yet: its last checkpoint is loaded, with a
                warning. Pass the path of `checkpoint.safetensors` to load it without
                a warning.
            tokenizer: the tokenizer of the model; None takes the one in the file. A
                file contains a `CharTokenizer` or a `SubwordTokenizer`. Any other has
                to be passed, since no code from a file is ever run.
            device: where the weights are; None means torch's default device.
            dtype: the floating-point type of the weights. None keeps the type in the
                file, except that float16 and bfloat16, which save space there, become
                float32.

        Raises:
            TypeError: if an argument has the wrong type.
            ImportError: if the file has a tokenizer whose library is not installed.
            FileNotFoundError: if there is no such folder, file or name.
            ValueError: if the file is damaged, not a model of this package or larger
                than 4 GiB, changes while it is read, or its tensors do not match its
                config. This is checked before memory is allocated for them.
        """
        check_path("name", name)
        check_device(device)
        if tokenizer is not None:
            check_tokenizer(tokenizer)
        if dtype is not None and not (
            isinstance(dtype, torch.dtype) and dtype.is_floating_point
        ):
            raise TypeError(
                f"dtype must be a floating-point torch.dtype, got {shorten(dtype)}"
            )
        source = find_weights(name)
        with open_saved(source, tokenizer) as saved:
            saved.check(weight_shapes(saved.config))
            with initialising():
                model = cls(saved.config, saved.tokenizer)
            if dtype is None:
                dtype = torch.promote_types(saved.dtype, torch.float32)
            model.to(device=device, dtype=dtype)
            saved.copy_into(model.state_dict())
        return model.eval()

    @classmethod
    def from_parallel(
        cls, parallel: "LanguageModel", variant: Variant = "shared-kv", **changes: Any
    ) -> Self:
        """Initialise a feedback model from a trained parallel model.

        Copied unchanged: token embedding, final norm and head; in each layer both
        norms, W_q, W_o, the feed-forward block, u, and the rows of E and s for
        distances 1..S (a step does not see itself, at distance 0).

        Mapped: a parallel layer computes K and V from LN1(x) = g * z + beta, where z
        is x normalised without gain and bias. The memory's norm starts without them
        too, so each layer's W_k, W_v become W_k diag(g), W_v diag(g). The key bias
        W_k beta is the same for all keys and cancels in the softmax. The value bias
        W_v beta passes through it and is added to the output bias: b_o + W_o W_v
        beta. With variant "shared-kv" the layers' W_k, W_v and value biases are
        averaged.

        New: the layer weights start uniform. With one layer and memory="embedding"
        the result equals the parallel layer under a strict mask. With more layers it
        is a starting point, not a copy.

        Args:
            parallel: the model to start from; it is not changed.
            variant: "shared-kv" or "feedback".
            **changes: new values for the fields dropout, memory and memory_norm of
                the config.

        Returns:
            A new model on the same device and in the same dtype, in training mode.

        Raises:
            TypeError: if `parallel` is not a `LanguageModel`.
            ValueError: if its variant is not "parallel", `variant` is not a feedback
                variant, or another field is changed.
        """
        check_instance("parallel", parallel, cls)
        config = config_from_parallel(parallel.config, variant, **changes)
        with initialising():
            model = cls(config, parallel.tokenizer)
        model.to(parallel.token_embedding.weight)
        for name in ("token_embedding", "norm", "head"):
            getattr(model, name).load_state_dict(getattr(parallel, name).state_dict())
        assert isinstance(parallel.body, ParallelBody) and isinstance(
            model.body, FeedbackBody
        )  # checked above
        copy_parallel_body(parallel.body, model.body)
        return model


def weight_shapes(config: Config) -> Iterator[tuple[str, Shape]]:
    """Yield the names and shapes of a model's weights, for a config of any size.

    No memory is taken for the weights. Only two layers are built, since a file may
    claim to have any number of them: the others have the shapes of the second.
    """
    with shapes_only():
        model = LanguageModel(replace(config, n_layers=min(config.n_layers, 2)))
        if isinstance(model.body, FeedbackBody):
            model.body.memory = WeightedMemory(config)  # has a weight per layer
    for name, tensor in model.state_dict().items():
        layers = range(1, config.n_layers) if ".1." in name else range(1)
        for layer in layers:
            yield name.replace(".1.", f".{layer}."), tuple(tensor.shape)


def model_bytes(model: LanguageModel, path: Path) -> bytes:
    """Return the bytes of the file that `save_pretrained` writes.

    Args:
        model: the model to save.
        path: where the file will be, for messages.

    Raises:
        ValueError: as in `save_pretrained`.
    """
    return serialise_model(
        path,
        model.config,
        model.tokenizer,
        model.state_dict(),
        weight_shapes(model.config),
    )
