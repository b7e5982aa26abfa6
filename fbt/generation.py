"""Generate text token by token: `LanguageModel.generate` and `stream`."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt._checks import check_instance, check_int, check_real
from fbt._modes import without_gradients
from fbt.engines import Decoder
from fbt.folding import describe_override, why_not_folded
from fbt.shared_kv import SharedKVBody
from fbt.state import State
from fbt.tokenizer import CharTokenizer

Reader = Callable[[Tensor], Tensor]


def stream_texts(
    make_reader: Callable[[], Reader],
    tokenizer: CharTokenizer | None,
    prompt: str | list[str],
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int | None,
) -> Iterator[list[str]]:
    """Check the arguments of `LanguageModel.stream`, and yield the next characters.

    Args:
        make_reader: returns the function that `sample` reads with.
        tokenizer: of the model.
        prompt: one text or a list of texts.
        max_new_tokens: characters to add to each prompt.
        temperature: divides the logits.
        top_k: number of most likely tokens to draw from, or None for all.
        seed: of the first prompt, or None.

    Returns:
        An iterator over lists with the next character of each prompt, or "".

    Raises:
        TypeError, ValueError: as in `LanguageModel.generate`.
    """
    if tokenizer is None:
        raise ValueError(
            "generate needs a tokenizer: LanguageModel(config, tokenizer), "
            "got tokenizer=None"
        )
    check_instance("prompt", prompt, str, list)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not prompts:
        raise ValueError("prompt must be a text or a list of at least one, got []")
    for text in prompts:
        check_instance("a prompt of the list", text, str)
        if not text:
            raise ValueError("prompt must have at least 1 character, got ''")
    check_sampling(max_new_tokens, temperature, top_k, seed, tokenizer.vocab_size)
    try:
        encoded = [tokenizer.encode(text) for text in prompts]
    except ValueError as error:
        raise ValueError(f"prompt cannot be encoded: {error}") from error
    vocabulary = tokenizer.vocabulary
    return (
        ["" if token is None else vocabulary[token] for token in tokens]
        for tokens in sample(
            make_reader(), encoded, max_new_tokens, temperature, top_k, seed
        )
    )


def check_sampling(
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int | None,
    vocab_size: int,
) -> None:
    """Raise a TypeError or ValueError if an argument is out of range."""
    check_int("max_new_tokens", max_new_tokens, low=0)
    check_real("temperature", temperature, low=0.0)
    if top_k is not None:
        check_int("top_k", top_k, low=1, high=vocab_size)
    if seed is not None:
        check_int("seed", seed, low=0, high=2**62)


def sample(
    read: Reader,
    prompts: list[Tensor],
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int | None,
) -> Iterator[list[int | None]]:
    """Continue each prompt, reading prompts of unequal length side by side.

    One forward pass reads as many tokens as the shortest prompt has. Every later step
    feeds each sequence the next token of its prompt, or the token just drawn for it.
    So there is no padding, and sequences do not depend on each other.

    Args:
        read: maps the next tokens [B, n] of each sequence to the logits [B, V] after
            the last of them. Each call continues where the previous one ended.
        prompts: token ids, one tensor [n] per prompt.
        max_new_tokens: tokens to add to each prompt.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: number of most likely tokens to draw from, or None for all.
        seed: prompt i draws from seed + i. None is a new seed each time.

    Yields:
        Per step, one entry per sequence: the token drawn, or None within the prompt
        and after the last token.
    """
    shortest, longest = min(map(len, prompts)), max(map(len, prompts))
    first_seed = torch.Generator().seed() % 2**62 if seed is None else seed
    generators = [
        torch.Generator().manual_seed(first_seed + i) for i in range(len(prompts))
    ]
    tokens = torch.stack([prompt[:shortest] for prompt in prompts])
    for t in range(shortest, longest + max_new_tokens):
        logits = read(tokens)
        rows = probabilities(logits.cpu(), temperature, top_k)
        drawn: list[int | None] = [
            int(torch.multinomial(row, 1, generator=generator))
            if len(prompt) <= t < len(prompt) + max_new_tokens
            else None
            for prompt, row, generator in zip(prompts, rows, generators, strict=True)
        ]
        yield drawn
        in_prompt = [int(prompt[min(t, len(prompt) - 1)]) for prompt in prompts]
        tokens = torch.tensor(
            [
                [token if new is None else new]
                for token, new in zip(in_prompt, drawn, strict=True)
            ],
            device="cpu",
        )


def probabilities(logits: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """Return the probabilities [B, V] of logits [B, V], in float64.

    Raises:
        FloatingPointError: if a logit is NaN or infinite. -inf is allowed, for a
            token that must not be drawn.
    """
    logits, temperature = logits.double(), float(temperature)
    if not (logits < torch.inf).all():
        raise FloatingPointError(
            "logits must be below infinity, got NaN or inf: check the weights"
        )
    if temperature == 0.0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    if top_k is not None:
        largest, indices = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, indices, largest)
    # Subtract the largest logit before the division, which could overflow.
    return torch.softmax(
        (logits - logits.amax(-1, keepdim=True)) / temperature, dim=-1
    )


class TextReader:
    """A function for `sample` that remembers the text read so far.

    Args:
        forward: maps the first tokens [B, n] to logits [B, n, V] and a state.
        step: maps tokens [B] and a state to logits [B, V] and the next state.
        make_decoder: maps a state to a function from tokens [B] to logits [B, V],
            which computes the same as `step` and keeps its own copy of the state, or
            to None if `step` must be called.
        weight: tokens are moved to its device.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], tuple[Tensor, State]],
        step: Callable[[Tensor, State], tuple[Tensor, State]],
        make_decoder: Callable[[State], Reader | None],
        weight: Tensor,
    ) -> None:
        self._forward, self._step = forward, step
        self._make_decoder, self._weight = make_decoder, weight
        self._decoder: Reader | None = None
        self._state: State | None = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """Read the next tokens [B, n] and return the logits [B, V] after them."""
        tokens = tokens.to(self._weight.device)
        with without_gradients():
            if self._decoder is not None:
                return self._decoder(tokens[:, 0])
            if self._state is not None:
                logits, self._state = self._step(tokens[:, 0], self._state)
                return logits
            logits, state = self._forward(tokens)
            self._decoder = self._make_decoder(state)
            if self._decoder is None:
                self._state = state
            return logits[:, -1]


def decoder_of(
    body: nn.Module, backend: str, state: State, dtype: torch.dtype
) -> Decoder | None:
    """Return a decoder that continues a state as the body would, if there is one.

    Args:
        body: of the model.
        backend: of the model.
        state: what the body returned.
        dtype: of the weights. A state of another dtype was computed under autocast,
            which a decoder ignores.
    """
    if not isinstance(body, SharedKVBody) or backend not in body.decoders:
        return None
    if describe_override(body) or type(body).forward is not SharedKVBody.forward:
        return None
    if state.keys[0].dtype != dtype:
        return None
    if backend == "auto" and why_not_folded(body):
        return None
    return body.decoder(state, backend)
