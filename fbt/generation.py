"""Generate text token by token: `LanguageModel.generate` and `stream`."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fbt._checks import check_instance, check_int, check_real
from fbt._modes import without_gradients
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
        weight: tokens are moved to its device.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], tuple[Tensor, State]],
        step: Callable[[Tensor, State], tuple[Tensor, State]],
        weight: Tensor,
    ) -> None:
        self._forward, self._step, self._weight = forward, step, weight
        self._state: State | None = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """Read the next tokens [B, n] and return the logits [B, V] after them."""
        tokens = tokens.to(self._weight.device)
        with without_gradients():
            if self._state is None:
                logits, self._state = self._forward(tokens)
                return logits[:, -1]
            logits, self._state = self._step(tokens[:, 0], self._state)
            return logits
