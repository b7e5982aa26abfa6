"""What both directions of the loop are made of: folded weights, saved chunks, the plain norm."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Views = tuple[Tensor, ...]

CHUNK = 8  # steps; 4 is as fast, 16 and more leave the cache and take longer


class Sizes(NamedTuple):
    """What the Function needs to know beside its tensors."""

    heads: int
    span: int
    past: int
    norm_memory: bool
    gelu: bool
    dropout: float
    generator: torch.Generator | None  # of dropout
    recompute: bool
    native: bool
    keep: bool  # whether a backward may follow


class Weights(NamedTuple):
    """Folded weights, stacked over layers."""

    w_q: Tensor  # [L, d, d]
    b_q: Tensor  # [L, d]
    u: Tensor  # [L, H, D]
    table: Tensor  # [L, H, R, D], the last R rows of E
    s: Tensor  # [L, H, R]
    w_o: Tensor  # [L, d, d]
    b_o: Tensor  # [L, d]
    w_1: Tensor  # [L, F, d]
    b_1: Tensor  # [L, F]
    w_2: Tensor  # [L, d, F]
    b_2: Tensor  # [L, d]
    mix: Tensor  # [L + 1]
    w_kv: Tensor  # [2 d, d]
    b_kv: Tensor  # [2 d]


class Chunk(NamedTuple):
    """What backward needs of m steps, beside the outputs of the layers and the keys and values."""

    q: Tensor  # [L, m, B, d], queries
    o: Tensor  # [L, m, B, d], attended values
    y: Tensor  # [L, m, B, d], after attention
    # [L, m, B, F], before a GELU, but after a ReLU, whose backward needs no more
    a: Tensor
    # [HB, m L, J], attention weights to the chunk's keys; zero beyond the span, unset
    # ahead
    p: Tensor
    # like p, what dropout multiplied the weights by; empty without dropout
    noise: Tensor
    # [2, L, m, B, d], what dropout multiplied a layer's two outputs by; empty without
    # dropout
    drops: Tensor


class Loop:
    """What both directions share: sizes, and which keys a chunk and a step see."""

    def __init__(
        self, sizes: Sizes, weights: Weights, steps: int, batch: int
    ) -> None:
        self.sizes, self.w = (
            sizes,
            Weights(*(weight.contiguous() for weight in weights)),
        )
        self.T, self.B, self.H = steps, batch, sizes.heads
        self.L, self.d = weights.b_q.shape
        self.D = self.d // self.H
        self.chunks = [
            (first, min(steps, first + CHUNK)) for first in range(0, steps, CHUNK)
        ]
        self.new, self.work = weights.b_q.new_empty, dict[str, Tensor]()

    def buffer(self, name: str, *shape: int) -> Tensor:
        """Uninitialised numbers for one chunk, in the memory of the chunk before if that is large enough."""
        count = math.prod(shape)
        if name not in self.work or self.work[name].numel() < count:
            self.work[name] = self.new(count)
        return self.work[name][:count].view(shape)

    def oldest_key(self, t: int) -> int:
        """The first key that step t sees."""
        return max(0, self.sizes.past + t - self.sizes.span)

    def keys_of_step(self, t: int) -> tuple[int, int]:
        """The keys [from, to) that step t sees."""
        return self.oldest_key(t), self.sizes.past + t

    def keys_of_chunk(self, first: int, stop: int) -> tuple[int, int]:
        """The keys [from, to) that some step of a chunk sees."""
        return self.oldest_key(first), self.sizes.past + stop - 1

    def room(self, first: int, stop: int, again: bool) -> Chunk:
        """Memory for what is saved of a chunk, without dropout's masks: that of another chunk if `again`."""
        m, (low, high) = stop - first, self.keys_of_chunk(first, stop)

        def new(name: str, *shape: int) -> Tensor:
            return self.buffer(f"chunk {name}", *shape) if again else self.new(shape)

        chunk = Chunk(
            q=new("q", self.L, m, self.B, self.d),
            o=new("o", self.L, m, self.B, self.d),
            y=new("y", self.L, m, self.B, self.d),
            a=new("a", self.L, m, self.B, self.w.b_1.shape[1]),
            p=new("p", self.H * self.B, m * self.L, high - low),
            noise=self.new(0),
            drops=self.new(0),
        )
        if self.slides(first, stop):
            chunk.p.zero_()
        return chunk

    def slides(self, first: int, stop: int) -> bool:
        """Whether some step of a chunk no longer sees a key that the first one saw."""
        return self.oldest_key(first) < self.oldest_key(stop - 1)

    def step_of_scores(
        self, scores: Tensor, first: int, t: int
    ) -> tuple[Tensor, ...]:
        """What a chunk's tensor [HB, m L, J] holds of step t, by layer: L views [HB, 1, keys of the step]."""
        low, high = self.keys_of_step(t)
        oldest, rows = self.oldest_key(first), scores.unflatten(1, (-1, self.L, 1))
        return rows[:, t - first, :, :, low - oldest : high - oldest].unbind(1)

    def turn(self, x: Tensor) -> Tensor:
        """Transpose keys or values [HB, J, D] into [HB, D, J], laid out as a step reads them."""
        return x.mT.contiguous()

    def by_head(self, x: Tensor) -> Tensor:
        """View [B, d] as [H, B, D]."""
        return x.view(self.B, self.H, self.D).transpose(0, 1)

    def activate(self, a: Tensor) -> Tensor:
        """GELU, or ReLU in place."""
        return F.gelu(a) if self.sizes.gelu else a.relu_()

    def activate_backward(self, grad: Tensor, a: Tensor, out: Tensor) -> None:
        """Gradient with respect to a of `activate`, into `out`."""
        if self.sizes.gelu:
            torch.ops.aten.gelu_backward.grad_input(grad, a, grad_input=out)
        else:
            torch.ops.aten.threshold_backward.grad_input(grad, a, 0, grad_input=out)


def of_layers(weights: Weights) -> list[Weights]:
    """The weights of each layer, beside those that all layers share."""
    *stacked, mix, w_kv, b_kv = weights
    layers = zip(*(weight.unbind() for weight in stacked), strict=True)
    # Not by _make, through which torch 2.6 cannot compile.
    return [Weights(*own, mix, w_kv, b_kv) for own in layers]  # type: ignore[call-arg]


def turned(weight: Tensor) -> Tensor:
    """Matrices [..., out, in] as [..., in, out] in memory, one by one: a fifth of the time of all at once."""
    result = weight.new_empty(weight.mT.shape)
    size = weight.shape[-2:]
    for into, matrix in zip(
        result.view(-1, *size[::-1]), weight.view(-1, *size), strict=True
    ):
        into.copy_(matrix.t())
    return result


def plain_norm(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise over the last axis without gain and bias; also mean and 1 / standard deviation."""
    return torch.native_layer_norm(x, (x.shape[-1],), None, None, 1e-5)


def plain_norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor
) -> Tensor:
    """Gradient with respect to x of `plain_norm`."""
    only_x = [True, False, False]
    result: Tensor = torch.ops.aten.native_layer_norm_backward.default(
        grad, x, (x.shape[-1],), mean, rstd, None, None, only_x
    )[0]
    return result
