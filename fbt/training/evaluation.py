"""How well a model predicts windows of a text."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fbt._checks import check_instance, check_int, check_tokens, check_values
from fbt.generation import evaluating
from fbt.language_model import LanguageModel


def evaluate(model: LanguageModel, windows: Tensor, batch_size: int = 128) -> float:
    """Mean cross-entropy over windows, without dropout and each from an empty memory.

    Args:
        model: predicts; its mode is left as it is.
        windows: token ids [N, T + 1].
        batch_size: windows at a time.

    Returns:
        Nats a character.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: there are no windows, or none of at least two tokens, or a token is outside the
            vocabulary.
    """
    check_instance("model", model, LanguageModel)
    check_tokens("windows", windows, "[N, T + 1]", model.config.vocab_size)
    if windows.shape[1] < 2:
        raise ValueError(f"windows must have shape [N, T + 1] with T >= 1, got {list(windows.shape)}")
    check_values("windows", windows)
    check_int("batch_size", batch_size, low=1)
    return total_loss(model, windows, batch_size) / windows[:, 1:].numel()


def total_loss(model: LanguageModel, windows: Tensor, batch_size: int = 128) -> float:
    """The sum, over all characters of some windows [N, T + 1] or none, of what `evaluate` takes the mean."""
    if not len(windows):
        return 0.0
    total = 0.0
    device = model.token_embedding.weight.device
    with torch.no_grad(), evaluating(model):
        for batch in torch.split(windows, batch_size):
            batch = batch.to(device)
            logits = model(batch[:, :-1])
            total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    return total
