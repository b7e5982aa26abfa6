"""What a feedback model computes while it reads a text, step by step, for views to show."""

from typing import NamedTuple

import torch
from torch import Tensor

from fbt._checks import check_instance, check_tokens
from fbt._modes import without_gradients
from fbt.evaluation_copy import evaluation_copy, uncompiled
from fbt.feedback import FeedbackBody
from fbt.language_model import LanguageModel


class Trace(NamedTuple):
    """A text of T tokens as a model of L layers, H heads and width d has read it.

    Attributes:
        outputs: [T, L + 1, d], the embedding and the outputs of all layers.
        memory: [T, d], the memory vectors m_t before they are normalised.
        mixture: [L + 1], the share of each layer in them.
        keys: [C, T, d], of each of the C caches: one, or one a layer.
        values: [C, T, d].
        weights: [L, H, T, T], row = query.
    """

    outputs: Tensor
    memory: Tensor
    mixture: Tensor
    keys: Tensor
    values: Tensor
    weights: Tensor


def trace(model: LanguageModel, tokens: Tensor) -> Trace:
    """Read tokens [T] by the plain loop, without dropout, and keep everything.

    Raises:
        TypeError: `model` is not a `LanguageModel` with a memory to look at, or
            `tokens` not a tensor of ids.
        ValueError: `tokens` has another shape or an id outside the vocabulary, or is
            longer than the span, so that the state has lost its first steps.
    """
    check_instance("model", uncompiled(model), LanguageModel)
    model = evaluation_copy(model)
    body = model.body
    if not isinstance(body, FeedbackBody):
        raise TypeError(
            f"model must have a memory, got the variant {model.config.variant!r}"
        )
    check_tokens("tokens", tokens, "[T]", model.config.vocab_size)
    if len(tokens) > model.config.span:
        raise ValueError(
            f"tokens must be 1 to {model.config.span} like the span, got {len(tokens)}"
        )
    kept: list[Tensor] = []
    body.memory.register_forward_pre_hook(
        lambda _, given: kept.append(torch.cat(given[0], dim=1)[0])
    )
    with without_gradients():
        x = model.token_embedding(tokens[None])
        _, state, weights = body(x, backend="stack", need_weights=True)
        outputs, mixture = torch.stack(kept), body.layer_weights()
        keys, values = (
            torch.stack([part[0].transpose(0, 1).flatten(1) for part in kind])
            for kind in (state.keys, state.values)
        )
        assert weights is not None  # asked for
        return Trace(outputs, mixture @ outputs, mixture, keys, values, weights[:, 0])


def memory_shares(read: Trace) -> Tensor:
    """What each memory vector is made of: shares [T, L + 1] of the embedding and of what each layer added.

    With x^l = x^(l-1) + delta^l, m = x^0 + sum_k c_k delta^k, where c_k is the sum of
    the shares of layer k and of those above. The norm that follows drops the mean of
    a vector, so it is taken off first; a part's share is then its projection on m,
    relative to m. Shares of a step sum to 1; one that points away from m is negative.

    Raises:
        TypeError: `read` is not a `Trace`.
    """
    check_instance("read", read, Trace)
    added = torch.diff(
        read.outputs, dim=1, prepend=torch.zeros_like(read.outputs[:, :1])
    )
    parts = read.mixture.flip(0).cumsum(0).flip(0)[:, None] * added
    parts = parts - parts.mean(-1, keepdim=True)
    memory = parts.sum(1, keepdim=True)
    return (parts * memory).sum(-1) / memory.square().sum(-1)
