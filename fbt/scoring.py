"""Losses and log-probabilities of given tokens."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fbt._checks import check_instance, check_int, check_integers, is_traced
from fbt._modes import without_gradients
from fbt.state import State

IGNORE_INDEX = -100  # torch's default: a target that does not count
SCORED = 1024  # tokens that are read at once

Reader = Callable[[Tensor, State | None], tuple[Tensor, State]]


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    reduction: str = "mean",
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Return the cross-entropy of logits [B, T, V] and targets [B, T], in nats.

    It is computed in float32 or a wider type. In half precision, a sum of thousands
    of losses would overflow or keep only three digits.

    Args:
        logits: of a model.
        targets: the ids of the next tokens.
        reduction: "mean", "sum", or "none" for a loss per target [B, T].
        ignore_index: targets of this value do not count.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    loss = F.cross_entropy(
        logits.flatten(0, 1).to(dtype),
        targets.flatten().long(),
        reduction=reduction,
        ignore_index=ignore_index,
    )
    return loss.view_as(targets) if reduction == "none" else loss


def check_targets(
    targets: Tensor, tokens: Tensor, vocab_size: int, ignore_index: int
) -> None:
    """Raise unless targets fit tokens [B, T].

    Raises:
        TypeError: if `targets` is not a tensor of integers.
        ValueError: if its shape differs, a target is neither in [0, V - 1] nor
            `ignore_index`, or all are ignored.
    """
    check_int("ignore_index", ignore_index, low=-(2**62))
    check_instance("targets", targets, Tensor)
    if is_traced():
        return
    check_integers("targets", targets)
    if targets.shape != tokens.shape:
        raise ValueError(
            f"targets must have the shape of tokens, {list(tokens.shape)}, "
            f"got {list(targets.shape)}"
        )
    counted = targets[targets != ignore_index]
    if not len(counted):
        raise ValueError(f"not all targets may be ignore_index={ignore_index}")
    low, high = int(counted.min()), int(counted.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"targets must be in [0, {vocab_size - 1}] or ignore_index="
            f"{ignore_index}, got {low if low < 0 else high}"
        )


def block_scores(read: Reader, tokens: Tensor) -> Tensor:
    """Return the log-probabilities [B, T - 1] of tokens [B, T] but the first.

    Args:
        read: maps the next tokens [B, n] and a state to logits [B, n, V] and the next
            state. It is called for `SCORED` tokens at a time, without gradients.
        tokens: token ids, T >= 1.
    """
    scores, state = [tokens.new_zeros(len(tokens), 0)], None
    with without_gradients():
        for start in range(0, tokens.shape[1] - 1, SCORED):
            block = tokens[:, start : start + SCORED + 1]
            logits, state = read(block[:, :-1], state)
            scores.append(-cross_entropy(logits, block[:, 1:], "none"))
    return torch.cat(scores[1:] or scores, dim=1)
