"""Sampling token by token: the loop behind `LanguageModel.generate` and `stream`."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fbt._checks import check_int, check_real

Reader = Callable[[Tensor], Tensor]


def check_sampling(
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int | None,
    vocab_size: int,
) -> None:
    """Raise a TypeError or ValueError that names the first argument out of range."""
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

    The shortest prompt is read by one forward pass; from there on, every step feeds
    each sequence either the next token of its prompt or the token just drawn for it.
    So no padding is needed, and a sequence never depends on its neighbours.

    Args:
        read: takes the next tokens [B, n] of each sequence, and returns the logits
            [B, V] after the last of them. Each call goes on where the one before
            ended.
        prompts: token ids, one [n] tensor each.
        max_new_tokens: tokens to add to each prompt.
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: how many tokens to draw among, or None for all.
        seed: prompt i draws from seed + i; None is a new seed each time.

    Yields:
        One item per sequence and step: the token drawn, or None while the prompt is
        being read and after the last token.
    """
    shortest, longest = min(map(len, prompts)), max(map(len, prompts))
    first = torch.Generator().seed() % 2**62 if seed is None else seed
    generators = [
        torch.Generator().manual_seed(first + i) for i in range(len(prompts))
    ]
    tokens = torch.stack([prompt[:shortest] for prompt in prompts])
    for t in range(shortest, longest + max_new_tokens):
        logits = read(tokens)
        rows = probabilities(logits.cpu(), temperature, top_k)
        drawn: list[int | None] = [
            int(torch.multinomial(row, 1, generator=generator))
            if len(p) <= t < len(p) + max_new_tokens
            else None
            for p, row, generator in zip(prompts, rows, generators, strict=True)
        ]
        yield drawn
        given = [int(p[min(t, len(p) - 1)]) for p in prompts]
        following = [
            [g if d is None else d] for g, d in zip(given, drawn, strict=True)
        ]
        tokens = torch.tensor(following, device="cpu")


def probabilities(logits: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """Turn logits [B, V] into the probabilities [B, V] to draw from, in float64.

    Raises:
        FloatingPointError: a logit is NaN or infinite; -inf is allowed, for a token
            never to be drawn.
    """
    logits, temperature = logits.double(), float(temperature)
    if not (logits < torch.inf).all():
        raise FloatingPointError(
            "logits must be numbers below infinity, got NaN or inf: look at the weights"
        )
    if temperature == 0.0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    if top_k is not None:
        kept, where = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, where, kept)
    # The largest becomes 0 before the division, so that no temperature is too small
    # for it.
    return torch.softmax(
        (logits - logits.amax(-1, keepdim=True)) / temperature, dim=-1
    )
