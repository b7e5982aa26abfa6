"""Models of text: feedback, parallel twins, and what lies between them."""

from typing import cast

import torch
from models import Build, Shape, feedback, parallel
from sweeps import logits_after
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fbt


def as_large_as_parallel(shape: Shape) -> nn.Module:
    """Build a feedback model with wider feed-forward blocks.

    One key and value projection instead of L saves 2 (L - 1) d^2 numbers; a unit of
    the feed-forward block has 2 d numbers in each of L layers.
    """
    width, layers = shape.d_model, shape.n_layers
    return feedback(d_ff=4 * width + width * (layers - 1) // layers)(shape)


class Swept(nn.Module):
    """A feedback model that follows at most k links of the chain, all steps at once.

    Args:
        model: the feedback model.
        count: k, the number of sweeps, in training as in evaluation.
    """

    def __init__(self, model: fbt.LanguageModel, count: int) -> None:
        super().__init__()
        self.model, self.count = model, count

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, T, V] for tokens [B, T]."""
        return logits_after(self.model, tokens, self.count)


def swept(count: int) -> Build:
    """Return what builds a feedback model with sweeps in place of the loop."""
    return lambda shape: Swept(cast(fbt.LanguageModel, feedback()(shape)), count)


class InBfloat16(nn.Module):
    """A model whose matrix products are in bfloat16, by autocast.

    Attention is computed by plain matrix products then. The backward pass of torch's
    fused kernel for CPUs is slower than these in bfloat16, though not in float32.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, T, V] in float32 for tokens [B, T]."""
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            return cast(Tensor, self.model(tokens)).float()


MAIN: dict[str, Build] = {
    "feedback": feedback(),
    "feedback, as many parameters": as_large_as_parallel,
    "parallel": parallel("relative"),
    "parallel, absolute positions": parallel("absolute"),
    "parallel, rotary positions": parallel("rotary"),
}
CONTROLS: dict[str, Build] = {
    "memory: embedding": feedback(memory="embedding"),
    "memory: top": feedback(memory="top"),
    "memory not normalised": feedback(memory_norm=False),
    "feedback, no last norm": feedback(final_norm=False),
    "parallel, no last norm": feedback(variant="parallel", final_norm=False),
    "rotary positions, layers run twice": parallel("rotary", loops=2),
    "2 sweeps": swept(2),
    "4 sweeps": swept(4),
    "keys and values per layer": feedback(variant="feedback"),
}
MODELS = MAIN | CONTROLS
