"""The values a feedback model computes on a text, for the views."""

from typing import NamedTuple

import torch
from torch import Tensor

from fbt._checks import check_instance, check_tokens
from fbt._modes import without_gradients
from fbt.evaluation_copy import evaluation_copy, uncompiled
from fbt.feedback import FeedbackBody
from fbt.language_model import LanguageModel


class Trace(NamedTuple):
    """The values computed on T tokens by a model of L layers, H heads and width d.

    Attributes:
        outputs: embeddings and outputs of all layers, [T, L + 1, d].
        memory: memory vectors m_t before the norm, [T, d].
        mixture: share of each layer in the memory vectors, [L + 1].
        keys: keys of the C caches, [C, T, d]; C is 1 or L.
        values: values of the C caches, [C, T, d].
        weights: attention weights, [L, H, T, T]; rows are queries.
    """

    outputs: Tensor
    memory: Tensor
    mixture: Tensor
    keys: Tensor
    values: Tensor
    weights: Tensor


def trace(model: LanguageModel, tokens: Tensor) -> Trace:
    """Run a model on tokens [T], without dropout, and return all its values.

    Raises:
        TypeError: if `model` is not a `LanguageModel` with a feedback memory, or
            `tokens` is not a tensor of ids.
        ValueError: if `tokens` has another shape, an id outside the vocabulary or
            more steps than the span, whose first keys and values the state no longer
            has.
    """
    check_instance("model", uncompiled(model), LanguageModel)
    model = evaluation_copy(model)
    body = model.body
    if not isinstance(body, FeedbackBody):
        raise TypeError(
            f"model must have a feedback memory, "
            f"got the variant {model.config.variant!r}"
        )
    check_tokens("tokens", tokens, "[T]", model.config.vocab_size)
    if len(tokens) > model.config.span:
        raise ValueError(
            f"tokens must be 1 to {model.config.span} (the span), got {len(tokens)}"
        )
    outputs = model.layer_outputs(tokens[None])[:, 0].transpose(0, 1)
    with without_gradients():
        x = model.token_embedding(tokens[None])
        _, state, weights = body(x, backend="stack", need_weights=True)
        mixture = body.layer_weights()
        keys, values = (
            torch.stack([cache[0].transpose(0, 1).flatten(1) for cache in kind])
            for kind in (state.keys, state.values)
        )
        assert weights is not None  # need_weights=True
        return Trace(outputs, mixture @ outputs, mixture, keys, values, weights[:, 0])


def memory_shares(read: Trace) -> Tensor:
    """Return the shares of the embedding and of each layer in the memory vectors.

    Layer l adds delta^l = x^l - x^(l-1). So m = x^0 + sum_l c_l delta^l, where c_l is
    the sum of the mixture w over layer l and all layers above. The share of a term is
    the length of its projection on m, relative to m. Means are subtracted first,
    because the norm that follows removes them. A term that points away from m has a
    negative share.

    Returns:
        Shares [T, L + 1]; each row sums to 1.

    Raises:
        TypeError: if `read` is not a `Trace`.
    """
    check_instance("read", read, Trace)
    return shares_in_memory(read.outputs, read.mixture)


def shares_in_memory(outputs: Tensor, mixture: Tensor) -> Tensor:
    """Compute `memory_shares` from outputs [T, L + 1, d] and a mixture [L + 1]."""
    added = torch.diff(outputs, dim=1, prepend=torch.zeros_like(outputs[:, :1]))
    terms = mixture.flip(0).cumsum(0).flip(0)[:, None] * added
    terms = terms - terms.mean(-1, keepdim=True)
    memory = terms.sum(1, keepdim=True)
    return (terms * memory).sum(-1) / memory.square().sum(-1)
