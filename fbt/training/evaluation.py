"""The loss of a model on windows of a text."""

import torch
from torch import Tensor

from fbt._checks import check_instance, check_int, check_tokens, check_values
from fbt._modes import without_gradients
from fbt.evaluation_copy import evaluation_copy, uncompiled
from fbt.language_model import LanguageModel
from fbt.scoring import cross_entropy


def evaluate(model: LanguageModel, windows: Tensor, batch_size: int = 128) -> float:
    """Return the mean cross-entropy over windows, each read from an empty memory.

    Args:
        model: the model. It is evaluated without dropout, whatever its mode is.
        windows: token ids [N, T + 1].
        batch_size: windows per forward pass.

    Returns:
        The loss in nats per token, summed in float32 or a wider type.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if there are no windows, if they have fewer than two tokens, or if
            a token is outside the vocabulary.
    """
    check_instance("model", uncompiled(model), LanguageModel)
    check_tokens("windows", windows, "[N, T + 1]", model.config.vocab_size)
    if windows.shape[1] < 2:
        got = list(windows.shape)
        raise ValueError(f"windows must have shape [N, T + 1] with T >= 1, got {got}")
    check_values("windows", windows)
    check_int("batch_size", batch_size, low=1)
    total = total_loss(evaluation_copy(model), windows, batch_size)
    return total / windows[:, 1:].numel()


def total_loss(model: LanguageModel, windows: Tensor, batch_size: int = 128) -> float:
    """Return the sum of the cross-entropy over windows [N, T + 1], N >= 0.

    Args:
        model: a model in evaluation mode.
        windows: token ids [N, T + 1].
        batch_size: windows per forward pass.
    """
    total = 0.0
    device = model.token_embedding.weight.device
    with without_gradients():
        for batch in torch.split(windows, batch_size) if len(windows) else ():
            batch = batch.to(device)
            logits = model(batch[:, :-1])
            total += cross_entropy(logits, batch[:, 1:], reduction="sum").item()
    return total
