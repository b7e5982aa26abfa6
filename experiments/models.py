"""The models that experiments compare, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from baselines import LSTM, POSITIONS, LSTMWithAttention, Transformer
from recurrences import BlockRecurrent, LinearRecurrence
from torch import Tensor, nn

import fbt

SCHEMES = ("relative", *POSITIONS)


@dataclass(frozen=True)
class Shape:
    """What all models of an experiment have in common.

    Args:
        vocab_size: the number of tokens.
        n_layers: the number of layers.
        d_model: the width.
        span: how many steps back fbt's models see.
        longest: the length of the longest sequence.
        n_heads: the number of heads, where there are heads.
    """

    vocab_size: int
    n_layers: int
    d_model: int
    span: int
    longest: int
    n_heads: int = 4

    @property
    def heads(self) -> dict[str, int]:
        """The width and the number of heads."""
        return {"d_model": self.d_model, "n_heads": self.n_heads}

    @property
    def sizes(self) -> dict[str, int]:
        """The width, the number of heads and the number of layers."""
        return self.heads | {"n_layers": self.n_layers}


Build = Callable[[Shape], nn.Module]


def feedback(**options: Any) -> Build:
    """Return what builds fbt's feedback model with some options."""

    def build(shape: Shape) -> nn.Module:
        settings: dict[str, Any] = shape.sizes | {"span": shape.span} | options
        return fbt.LanguageModel(fbt.Config(shape.vocab_size, **settings))

    return build


def parallel(positions: str, loops: int = 1) -> Build:
    """Return what builds a parallel transformer with a kind of positions."""
    if positions == "relative":
        return feedback(variant="parallel")
    return lambda shape: Transformer(
        shape.vocab_size,
        **shape.sizes,
        positions=positions,
        longest=shape.longest,
        loops=loops,
    )


def linear(writes: int) -> Build:
    """Return what builds a linear recurrence."""
    return lambda shape: LinearRecurrence(
        shape.vocab_size, **shape.sizes, writes=writes
    )


def lstm(shape: Shape) -> nn.Module:
    """Build an LSTM."""
    return LSTM(shape.vocab_size, shape.d_model, shape.n_layers)


def lstm_with_attention(shape: Shape) -> nn.Module:
    """Build an LSTM below one layer of attention."""
    return LSTMWithAttention(shape.vocab_size, **shape.heads)


def block_recurrent(shape: Shape) -> nn.Module:
    """Build a block-recurrent transformer."""
    return BlockRecurrent(shape.vocab_size, **shape.sizes)


def without_last_norm(build: Build) -> Build:
    """Return what builds the same model without the norm before its head."""

    def changed(shape: Shape) -> nn.Module:
        model = build(shape)
        model.norm = nn.Identity()
        return model

    return changed


class Rescaled(nn.Module):
    """What may stand in place of the last norm.

    Args:
        d_model: the width.
        norm: whether each step is normed. If not, all outputs of a batch are divided
            by the same number, the root of their mean square. Later steps count in
            it, too: this is for finding out what matters, not for a model to use.
        factor: multiplies all outputs.
        per_step: whether each step is also multiplied by a number of its own, the
            exponential of a learned linear map, which starts at 1.
    """

    def __init__(
        self, d_model: int, norm: bool, factor: float = 1.0, per_step: bool = False
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model) if norm else None
        self.factor, self.scale = factor, nn.Linear(d_model, 1) if per_step else None
        if self.scale is not None:
            nn.init.zeros_(self.scale.weight)
            nn.init.zeros_(self.scale.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, d] to [B, T, d]."""
        if self.norm is None:
            x = x / x.square().mean().sqrt().detach()
        else:
            x = self.norm(x)
        if self.scale is not None:
            x = x * self.scale(x).exp()
        return self.factor * x


class FixedSizes(nn.Module):
    """Changes no output, but lets no gradient through that would change its size."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, d] to [B, T, d]."""
        size = x.square().mean(-1, keepdim=True).sqrt()
        return x / size * size.detach()


PARALLEL = {f"parallel, {kind}": parallel(kind) for kind in SCHEMES}
MODELS: dict[str, Build] = {
    "feedback": feedback(),
    "LSTM": lstm,
    "LSTM and attention": lstm_with_attention,
    "DeltaNet": linear(writes=1),
    "DeltaProduct": linear(writes=2),
    "scalar SSM": linear(writes=0),
    "block-recurrent": block_recurrent,
    "looped": parallel("rotary", loops=2),
    **PARALLEL,
}
LAST_NORM = ", no last norm"
HYBRID = "LSTM and attention" + LAST_NORM


def build(name: str, shape: Shape) -> nn.Module:
    """Build a model by its name, which may end in `LAST_NORM`."""
    builder = MODELS[name.removesuffix(LAST_NORM)]
    if name.endswith(LAST_NORM):
        builder = without_last_norm(builder)
    return builder(shape)
