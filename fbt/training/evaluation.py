"""How well a model predicts windows of a text."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fbt._checks import check_instance, check_int, check_tokens, check_values
from fbt._modes import without_gradients
from fbt.evaluation_copy import evaluation_copy, uncompiled
from fbt.language_model import LanguageModel


def evaluate(model: LanguageModel, windows: Tensor, batch_size: int = 128) -> float:
    """Mean cross-entropy over windows, without dropout and each from an empty memory.

    Args:
        model: predicts, in evaluation mode whatever its own mode is.
        windows: token ids [N, T + 1].
        batch_size: windows at a time.

    Returns:
        Nats per character, summed in float32 or more.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: there are no windows, or none of at least two tokens, or a token
            is outside the vocabulary.
    """
    check_instance("model", uncompiled(model), LanguageModel)
    check_tokens("windows", windows, "[N, T + 1]", model.config.vocab_size)
    if windows.shape[1] < 2:
        raise ValueError(
            f"windows must have shape [N, T + 1] with T >= 1, got {list(windows.shape)}"
        )
    check_values("windows", windows)
    check_int("batch_size", batch_size, low=1)
    return total_loss(model, windows, batch_size) / windows[:, 1:].numel()


def total_loss(model: LanguageModel, windows: Tensor, batch_size: int = 128) -> float:
    """The sum, over all characters of some windows [N, T + 1] or none, of what `evaluate` takes the mean."""
    if not len(windows):
        return 0.0
    total, model = 0.0, evaluation_copy(model)
    device = model.token_embedding.weight.device
    with without_gradients():
        for batch in torch.split(windows, batch_size):
            batch = batch.to(device)
            total += cross_entropy(
                model(batch[:, :-1]), batch[:, 1:], reduction="sum"
            ).item()
    return total


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of logits [B, T, V] and targets [B, T], computed in float32 or more.

    In half precision a sum of thousands of losses has three digits, or overflows.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(
        logits.flatten(0, 1).to(dtype), targets.flatten(), reduction=reduction
    )
