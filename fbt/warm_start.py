"""Initialise a feedback body with the weights of a parallel body."""

from dataclasses import replace
from typing import Any

import torch

from fbt._checks import check_choice
from fbt._modes import without_autocast
from fbt.config import Config, Variant
from fbt.feedback import FeedbackBody
from fbt.parallel import ParallelBody


def config_from_parallel(config: Config, variant: Variant, **changes: Any) -> Config:
    """Return the config of `LanguageModel.from_parallel`'s result.

    Args:
        config: of the parallel model.
        variant: as in `LanguageModel.from_parallel`.
        **changes: as in `LanguageModel.from_parallel`.

    Raises:
        ValueError: as in `LanguageModel.from_parallel`.
    """
    check_choice("variant of the model to start from", config.variant, ("parallel",))
    check_choice("variant", variant, ("shared-kv", "feedback"))
    for name in changes:
        check_choice("a changed field", name, ("dropout", "memory", "memory_norm"))
    return replace(config, variant=variant, **changes)


def copy_parallel_body(source: ParallelBody, target: FeedbackBody) -> None:
    """Copy the weights of `source` to `target` as `LanguageModel.from_parallel` says.

    Args:
        source: L parallel layers.
        target: a feedback body of the same sizes, whose memory norm has gain 1 and
            bias 0.
    """
    # Autocast would round the products of weights, and cache their casts.
    with torch.no_grad(), without_autocast(source.relative[0].query_bias.device.type):
        _copy(source, target)


def _copy(source: ParallelBody, target: FeedbackBody) -> None:
    for old_terms, new_terms in zip(source.relative, target.relative, strict=True):
        new_terms.query_bias.copy_(old_terms.query_bias)
        # The last row is for distance 0.
        new_terms.key_embedding.copy_(old_terms.key_embedding[:, :-1])
        new_terms.key_bias.copy_(old_terms.key_bias[:, :-1])
    gains = torch.stack([layer.norm1.weight for layer in source.layers])[:, None]
    keys = (
        torch.stack([layer.key_value.key.weight for layer in source.layers]) * gains
    )
    values = (
        torch.stack([layer.key_value.value.weight for layer in source.layers]) * gains
    )
    value_biases = torch.stack(
        [layer.key_value.value(layer.norm1.bias) for layer in source.layers]
    )
    if len(target.key_values) == 1:
        keys, values = keys.mean(0, keepdim=True), values.mean(0, keepdim=True)
        value_biases = value_biases.mean(0, keepdim=True).expand_as(value_biases)
    for project, key, value in zip(target.key_values, keys, values, strict=True):
        project.key.weight.copy_(key)
        project.value.weight.copy_(value)
    for old_layer, new_layer, bias in zip(
        source.layers, target.layers, value_biases, strict=True
    ):
        for name in ("norm1", "attention", "norm2", "feed_forward"):
            weights = getattr(old_layer, name).state_dict()
            getattr(new_layer, name).load_state_dict(weights)
        output = new_layer.attention.output
        output.bias.add_(output.weight @ bias)
