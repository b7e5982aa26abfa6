"""Start a run from a trained model, of the same variant or of another one."""

import re
from typing import Any

import torch

from fbt._checks import check_choice
from fbt.config import VARIANTS, Config, Variant
from fbt.initialisation import initialising
from fbt.language_model import LanguageModel
from fbt.warm_start import config_from_parallel


def config_from(config: Config, variant: Variant | None, **changes: Any) -> Config:
    """Return the config of a run that starts from a model.

    Args:
        config: of the model to start from.
        variant: of the run. None is the variant of the model, or "shared-kv" if that
            is parallel.
        **changes: new values of fields: dropout, and also memory and memory_norm if
            the model is parallel and the run is not.

    Raises:
        ValueError: if another field is changed, or if a model with feedback is to
            become parallel.
    """
    if variant is None:
        variant = "shared-kv" if config.variant == "parallel" else config.variant
    check_choice("variant", variant, VARIANTS)
    if config.variant == "parallel" != variant:
        return config_from_parallel(config, variant, **changes)
    if variant == "parallel" != config.variant:
        raise ValueError(
            "variant of a run that starts from a model with feedback must be "
            f"'feedback' or 'shared-kv', got 'parallel' for {config.variant!r}"
        )
    for name in changes:
        check_choice("a changed field", name, ("dropout",))
    return config.replace(variant=variant, **changes)


def start_from(initial: LanguageModel, config: Config) -> LanguageModel:
    """Return a new model with the weights of another one, which is not changed.

    A model of the same variant is copied. From "shared-kv" to "feedback", every layer
    gets the shared keys and values, so the model computes the same. From "feedback"
    to "shared-kv", their weights are averaged. From "parallel", see
    `LanguageModel.from_parallel`.

    Args:
        initial: the model to start from.
        config: as returned by `config_from`.
    """
    if initial.config.variant == "parallel" != config.variant:
        return LanguageModel.from_parallel(
            initial,
            config.variant,
            dropout=config.dropout,
            memory=config.memory,
            memory_norm=config.memory_norm,
        )
    with initialising():
        model = LanguageModel(config, initial.tokenizer)
    model.to(initial.token_embedding.weight)
    weights = initial.state_dict()
    if initial.config.variant != config.variant:
        for kind in ("key", "value"):
            name = re.compile(rf"body\.key_values\.\d+\.{kind}\.weight")
            old = [weights.pop(key) for key in [*weights] if name.fullmatch(key)]
            mean = torch.stack(old).mean(0)
            weights |= {k: mean for k in model.state_dict() if name.fullmatch(k)}
    model.load_state_dict(weights)
    return model
