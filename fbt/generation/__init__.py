"""Generate text token by token: `LanguageModel.generate` and `stream`."""

import math
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt._checks import check_int, check_real
from fbt._modes import without_gradients
from fbt.generation.prompts import (
    NO_TOKEN,
    Continuation,
    Piece,
    Prompts,
    read_stop,
)
from fbt.state import State
from fbt.tokenizer import Tokenizer

Reader = Callable[[Tensor, Tensor], Tensor]


class Sampling(TypedDict, total=False):
    """Options of `LanguageModel.generate` and `stream`, which describe them."""

    temperature: float
    top_k: int | None
    top_p: float | None
    stop: str | int | Collection[str | int] | None
    seed: int | None


def continue_prompts(
    make_reader: Callable[[], Reader],
    prompts: Prompts,
    tokenizer: Tokenizer | None,
    vocab_size: int,
    max_new_tokens: int,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    stop: Any,
    seed: int | None,
    log_probs: bool = False,
) -> Iterator[list[Piece | None]]:
    """Check the options of `LanguageModel.generate`, and yield the next tokens.

    Args:
        make_reader: returns the function that `sample` reads with.
        prompts: the prompts.
        tokenizer: of the model.
        vocab_size: of the model, V.
        max_new_tokens: tokens to add to each prompt.
        temperature: divides the logits.
        top_k: number of most likely tokens to draw from, or None for all.
        top_p: probability of the most likely tokens to draw from, or None for all.
        stop: texts and ids that end a sequence, or None.
        seed: of the first prompt, or None.
        log_probs: also compute log-probabilities.

    Returns:
        As `sample` yields.

    Raises:
        TypeError, ValueError: if an option is of the wrong type or out of range.
    """
    check_sampling(max_new_tokens, temperature, top_k, seed, vocab_size)
    if top_p is not None:
        check_real("top_p", top_p, low=0.0, high=1.0)
        if top_p == 0:
            raise ValueError(f"top_p must be a number in (0, 1], got {top_p}")
    ends = read_stop(stop, tokenizer, vocab_size)
    if prompts.texts is None and not ends.texts:
        tokenizer = None
    rows = [Continuation(ids, tokenizer, ends, max_new_tokens) for ids in prompts.ids]
    return sample(
        make_reader(), prompts.ids, rows, temperature, top_k, top_p, seed, log_probs
    )


def collect(
    prompts: Prompts, steps: Iterator[list[Piece | None]]
) -> tuple[Any, Tensor]:
    """Return what `LanguageModel.generate` does: all results, and log-probabilities.

    Returns:
        The prompts with their continuations, in the form of the prompts, and the
        log-probabilities [n] or [B, n] of the drawn tokens, in float64 on the CPU.
    """
    rows: list[list[Piece]] = [[] for _ in prompts.ids]
    for step in steps:
        for row, piece in zip(rows, step, strict=True):
            if piece is not None:
                row.append(piece)
    probs = _padded([[piece.log_prob for piece in row] for row in rows], 0.0)
    if prompts.texts is not None:
        results: list[Any] = [
            text + "".join(piece.text for piece in row)
            for text, row in zip(prompts.texts, rows, strict=True)
        ]
    else:
        results = [
            [*ids.tolist(), *(piece.token for piece in row)]
            for ids, row in zip(prompts.ids, rows, strict=True)
        ]
    if isinstance(prompts.given, Tensor):
        given = prompts.given
        ids = _padded(results, NO_TOKEN).to(given.device)
        return (ids, probs) if prompts.form == "batch" else (ids[0], probs[0])
    if prompts.form == "one":
        return results[0], probs[0]
    return results, probs


def _padded(rows: list[list[Any]], filler: float) -> Tensor:
    """Return rows of unequal length as one tensor, with a filler at their ends."""
    longest = max(map(len, rows))
    dtype = torch.long if isinstance(filler, int) else torch.float64
    return torch.tensor(
        [row + [filler] * (longest - len(row)) for row in rows],
        dtype=dtype,
        device="cpu",
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
    rows: list[Continuation],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    log_probs: bool,
) -> Iterator[list[Piece | None]]:
    """Continue each prompt; none depends on the others.

    Args:
        read: maps the next tokens [B, n] of each sequence, and how many they are [B],
            to the logits [B, V] after the last of them. Each call continues where the
            previous one ended.
        prompts: token ids, one tensor [n] per prompt.
        rows: the continuation of each prompt, which says when it has ended.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: number of most likely tokens to draw from, or None for all.
        top_p: probability of the most likely tokens to draw from, or None for all.
        seed: prompt i draws from seed + i. None is a new seed each time.
        log_probs: compute the log-probability of each token drawn.

    Yields:
        Per step, one entry per sequence: the token drawn, or None after the last one.
    """
    first_seed = torch.Generator().seed() % 2**62 if seed is None else int(seed)
    generators = [
        torch.Generator().manual_seed(first_seed + i) for i in range(len(prompts))
    ]
    tokens = nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device="cpu")
    while not all(row.ended for row in rows):
        logits = read(tokens, lengths).cpu()
        chances = probabilities(logits, temperature, top_k, top_p)
        logs = torch.log_softmax(logits.double(), dim=-1) if log_probs else None
        drawn: list[Piece | None] = []
        following = [0] * len(rows)  # a token that does not matter
        for i, row in enumerate(rows):
            if row.ended:
                drawn.append(None)
                continue
            token = int(torch.multinomial(chances[i], 1, generator=generators[i]))
            log_prob = math.nan if logs is None else float(logs[i, token])
            drawn.append(row.add(token, log_prob))
            following[i] = token
        yield drawn
        tokens = torch.tensor(following, device="cpu")[:, None]
        lengths = torch.ones_like(lengths)


def probabilities(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None = None,
) -> Tensor:
    """Return the probabilities [B, V] of logits [B, V], in float64.

    With `top_p`, they are those of the fewest most likely tokens that together have
    at least this probability, after the temperature and `top_k` (nucleus sampling,
    Holtzman et al. 2020, arXiv 1904.09751).

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
        largest, indices = logits.topk(int(top_k), dim=-1)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, indices, largest)
    # Subtract the largest logit before the division, which could overflow.
    chances = torch.softmax(
        (logits - logits.amax(-1, keepdim=True)) / temperature, dim=-1
    )
    if top_p is None or top_p == 1:
        return chances
    ordered, indices = chances.sort(dim=-1, descending=True)
    # A token is dropped if those before it already have the probability.
    ordered[ordered.cumsum(-1) - ordered >= top_p] = 0.0
    chances = torch.zeros_like(chances).scatter(-1, indices, ordered)
    return chances / chances.sum(-1, keepdim=True)


class TextReader:
    """A function for `sample` that remembers the texts read so far.

    Args:
        read: maps tokens [B, n], and `lengths` [B] if rows are padded, to logits
            [B, n, V] and a state.
        step: maps tokens [B] and a state to logits [B, V] and the next state.
        weight: tokens are moved to its device.
    """

    def __init__(
        self,
        read: Callable[..., tuple[Tensor, State]],
        step: Callable[[Tensor, State], tuple[Tensor, State]],
        weight: Tensor,
    ) -> None:
        self._read, self._step, self._weight = read, step, weight
        self._state: State | None = None

    def __call__(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Read the next tokens of each text, and return the logits after them.

        Args:
            tokens: [B, n].
            lengths: how many they are [B], with padding after them.

        Returns:
            [B, V].
        """
        tokens = tokens.to(self._weight.device)
        with without_gradients():
            if self._state is not None:
                logits, self._state = self._step(tokens[:, 0], self._state)
                return logits
            padded = {"lengths": lengths} if lengths.min() < tokens.shape[1] else {}
            logits, self._state = self._read(tokens, **padded)
            return logits[torch.arange(len(tokens), device="cpu"), lengths - 1]
