"""Sampling token by token: the loop behind `LanguageModel.generate` and `stream`."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fbt._checks import check_int, check_real
from fbt.evaluation_copy import evaluation_copy, without_gradients
from fbt.shared_kv import SharedKVBody
from fbt.state import State

if TYPE_CHECKING:
    from fbt.language_model import LanguageModel


def check_sampling(
    max_new_tokens: int, temperature: float, top_k: int | None, seed: int | None, vocab_size: int
) -> None:
    """Raise a TypeError or ValueError that names the first argument out of range."""
    check_int("max_new_tokens", max_new_tokens, low=0)
    check_real("temperature", temperature, low=0.0)
    if top_k is not None:
        check_int("top_k", top_k, low=1, high=vocab_size)
    if seed is not None:
        check_int("seed", seed, low=0, high=2**62)


def sample(
    model: "LanguageModel",
    prompts: list[Tensor],
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int | None,
) -> Iterator[list[int | None]]:
    """Continue each prompt, reading prompts of unequal length side by side.

    The shortest prompt is read by one forward pass; from there on, every step feeds each sequence either
    the next token of its prompt or the token just drawn for it. So no padding is needed, and a sequence
    never depends on its neighbours.

    Args:
        model: predicts, in evaluation mode whatever its own mode is.
        prompts: token ids, one [n] tensor each.
        max_new_tokens: tokens to add to each prompt.
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: how many tokens to draw among, or None for all.
        seed: prompt i draws from seed + i; None is a new seed each time.

    Yields:
        One item per sequence and step: the token drawn, or None while the prompt is being read and after
        the last token.
    """
    model = evaluation_copy(model)
    device = model.token_embedding.weight.device
    shortest, longest = min(map(len, prompts)), max(map(len, prompts))
    first = torch.Generator().seed() % 2**62 if seed is None else seed
    generators = [torch.Generator().manual_seed(first + i) for i in range(len(prompts))]
    tokens = torch.stack([prompt[:shortest] for prompt in prompts])
    step: Callable[[Tensor], Tensor] | None = None
    for t in range(shortest, longest + max_new_tokens):
        with without_gradients():
            if step is None:
                logits, state = model(tokens.to(device), return_state=True)
                logits, step = logits[:, -1], stepper(model, state)
            else:
                logits = step(tokens[:, 0].to(device))
        rows = probabilities(logits.cpu(), temperature, top_k)
        drawn: list[int | None] = [
            int(torch.multinomial(row, 1, generator=generator))
            if len(p) <= t < len(p) + max_new_tokens
            else None
            for p, row, generator in zip(prompts, rows, generators, strict=True)
        ]
        yield drawn
        read = [int(p[min(t, len(p) - 1)]) for p in prompts]
        following = [[r if d is None else d] for r, d in zip(read, drawn, strict=True)]
        tokens = torch.tensor(following, device="cpu")


def stepper(model: "LanguageModel", state: State) -> Callable[[Tensor], Tensor]:
    """A function that reads one token more per sequence [B] and returns the logits [B, V], from a state on.

    It keeps what it has read: in a cache written in place where the body has a decoder, else as a state.
    """
    body, weight = model.body, model.token_embedding.weight
    if (
        isinstance(body, SharedKVBody)
        and model.is_as_made()
        and model.backend in body.decoders
        and (model.backend != "auto" or body.is_as_made())
        and state.keys[0].dtype == weight.dtype
    ):
        decoder = body.decoder(state, model.backend)
        return lambda tokens: model.head(
            model.norm(decoder.step(model.token_embedding(tokens[:, None])[:, 0]))
        )

    def step(tokens: Tensor) -> Tensor:
        nonlocal state
        logits, state = model.step(tokens, state)
        return logits

    return step


def probabilities(logits: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """Turn logits [B, V] into the probabilities [B, V] to draw from, in float64.

    Raises:
        FloatingPointError: a logit is NaN or infinite; -inf is allowed, for a token never to be drawn.
    """
    logits, temperature = logits.double(), float(temperature)
    if not (logits < torch.inf).all():
        raise FloatingPointError("logits must be numbers below infinity, got NaN or inf: look at the weights")
    if temperature == 0.0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    if top_k is not None:
        kept, where = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, where, kept)
    # The largest becomes 0 before the division, so that no temperature is too small for it.
    return torch.softmax((logits - logits.amax(-1, keepdim=True)) / temperature, dim=-1)
