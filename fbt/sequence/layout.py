"""The layout of the loop's tensors: what each one contains, and which keys are seen.

B sequences, H heads of width D, and HB = H B of them side by side, heads first. P
steps are carried in, T are computed, J is a number of keys, and m is the number of
steps in a chunk.

`loop.cpp` has structs with the names and fields of `Weights`, `Outputs`, `Chunk`,
`ChunkGradients` and `SequenceGradients`, in the same order.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fbt.visibility import hidden


class Sizes(NamedTuple):
    """Sizes and options of a call that its tensors do not tell."""

    heads: int
    span: int
    past: int
    norm_memory: bool
    gelu: bool
    dropout: float
    generator: torch.Generator | None  # of dropout
    recompute: bool
    needs_backward: bool
    kept: int  # how many of the newest keys and values to return, at most
    # [B, T], the oldest key that each step may see, in int64 and contiguous; None if
    # the span alone decides
    oldest: Tensor | None
    # The half precision in which the engine multiplies by matrices, which have been
    # rounded to it; None for the dtype of everything else
    matrices: torch.dtype | None = None


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


MATRICES = ("w_q", "w_o", "w_1", "w_2", "w_kv")


class Outputs(NamedTuple):
    """What the loop computes; keys and values include those carried in."""

    x: Tensor  # [L + 1, T, B, d], inputs of the layers, and the top
    m: Tensor  # [T, B, d], memories
    keys: Tensor  # [HB, J, D]
    values: Tensor  # [HB, J, D]


class Chunk(NamedTuple):
    """Activations of m steps that backward needs besides the outputs."""

    q: Tensor  # [L, m, B, d], queries
    o: Tensor  # [L, m, B, d], attended values
    y: Tensor  # [L, m, B, d], after attention
    a: Tensor  # [L, m, B, F], before a GELU, but after a ReLU
    # [HB, m L, J], attention weights; zero for keys that are not seen. For an engine
    # that computes them again: [HB, m L, 1], the logarithm of their denominator.
    p: Tensor
    attention_dropout: (
        Tensor  # like p, the mask of the weights; empty without dropout
    )
    # [2, L, m, B, d], the masks of attention and feed-forward; empty without dropout
    output_dropout: Tensor


class ChunkGradients(NamedTuple):
    """What the weight gradients of m steps, and those of earlier keys, are made of.

    The first two are activations, the others gradients.
    """

    p: Tensor  # [HB, m L, J], attention weights after dropout
    with_u: Tensor  # [HB, m L, D], q + u
    scores: Tensor  # [HB, m L, J]
    attended: Tensor  # [HB, m L, D], of p V
    f: Tensor  # [L, m, B, d], of the feed-forward output
    y: Tensor  # [L, m, B, d], of the attention output
    q: Tensor  # [L, m, B, d]
    a: Tensor  # [L, m, B, F]
    kv: Tensor  # [m, B, 2 d], of a key and a value
    m: Tensor  # [m, B, d], of memories


class SequenceGradients(NamedTuple):
    """Gradients of the whole sequence.

    An engine reads `top`, fills in `x` and adds to the others. The gradients of
    matrices are not among them: they are products of a chunk.
    """

    top: Tensor  # [T, B, d]
    x: Tensor  # [T, B, d]
    keys: Tensor  # [HB, J, D]
    values: Tensor  # [HB, J, D]
    b_q: Tensor  # [L, d]
    b_o: Tensor  # [L, d]
    b_1: Tensor  # [L, F]
    b_2: Tensor  # [L, d]
    table: Tensor | None  # [L, H, R, D]; None if not needed
    s: Tensor | None  # [L, H, R]; None if not needed

    def add_biases(self, grads: ChunkGradients) -> None:
        """Add the gradients of the biases in a chunk, the sums over its rows."""
        for bias, gradient in (
            (self.b_q, grads.q),
            (self.b_o, grads.y),
            (self.b_1, grads.a),
            (self.b_2, grads.f),
        ):
            bias += gradient.sum((1, 2))


class MatrixInputs(NamedTuple):
    """What each matrix was multiplied by in a chunk."""

    w_q: Tensor  # [L, m, B, d]
    w_o: Tensor  # [L, m, B, d]
    w_1: Tensor  # [L, m, B, d]
    w_2: Tensor  # [L, m, B, F]
    w_kv: Tensor  # [m, B, d]


RECOMPUTED_STEPS = 64  # at most, in a chunk that backward computes again


class Buffers:
    """Uninitialised tensors by name, in memory that every chunk uses again."""

    def __init__(self, like: Tensor) -> None:
        self._new, self._flat = like.new_empty, dict[str, Tensor]()

    def get(self, name: str, *shape: int) -> Tensor:
        """Return a tensor; the one last returned for this name is overwritten."""
        count = math.prod(shape)
        if name not in self._flat or self._flat[name].numel() < count:
            self._flat[name] = self._new(count)
        return self._flat[name][:count].view(shape)


class Layout:
    """Sizes of a call, its chunks, and which keys a chunk and a step see.

    Step t writes key `past` + t, after the keys that were carried in. Some rows may
    see fewer keys than the span allows: see `Sizes.oldest`.

    Args:
        sizes: sizes and options.
        weights: folded weights.
        steps: T.
        batch: B.
        chunk_steps: the number of steps per chunk; the last chunk may have fewer.
        keeps_weights: see `Engine`.

    Attributes:
        chunks: the steps of each chunk.
    """

    def __init__(
        self,
        sizes: Sizes,
        weights: Weights,
        steps: int,
        batch: int,
        chunk_steps: int,
        keeps_weights: bool = True,
    ) -> None:
        self.sizes, self.past, self.span = sizes, sizes.past, sizes.span
        self.keeps_weights = keeps_weights
        if sizes.recompute:  # a chunk is the most that is in memory at once
            chunk_steps = min(chunk_steps, RECOMPUTED_STEPS)
        self.T, self.B, self.H = steps, batch, sizes.heads
        self.L, self.d = weights.b_q.shape
        self.D, self.F, self.R = (
            self.d // self.H,
            weights.b_1.shape[1],
            weights.s.shape[2],
        )
        self.chunks = [
            range(first, min(steps, first + chunk_steps))
            for first in range(0, steps, chunk_steps)
        ]
        self.new = weights.b_q.new_empty

    def oldest_key(self, t: int) -> int:
        """Return the first key that step t sees."""
        return max(0, self.past + t - self.span)

    def keys_of_step(self, t: int) -> tuple[int, int]:
        """Return the keys [low, high) that step t sees."""
        return self.oldest_key(t), self.past + t

    def keys_of_chunk(self, steps: range) -> tuple[int, int]:
        """Return the keys [low, high) that some step of a chunk sees."""
        return self.oldest_key(steps.start), self.past + steps.stop - 1

    def slides(self, steps: range) -> bool:
        """Return whether some step of a chunk may not see all keys of the chunk."""
        slides = self.oldest_key(steps.start) < self.oldest_key(steps.stop - 1)
        return slides or self.sizes.oldest is not None

    def starts_empty(self, steps: range) -> bool:
        """Return whether the first step of a chunk has no key to attend to."""
        return self.past + steps.start == 0

    def hidden_keys(self, steps: range, low: int, high: int) -> Tensor | None:
        """Return which of the keys [low, high) are hidden from rows by their borders.

        Returns:
            [B, 1, m, high - low], or None if no border hides a key.
        """
        if self.sizes.oldest is None:
            return None
        return hidden(
            self.sizes.oldest[:, steps.start : steps.stop] - low, high - low
        )

    def without_keys(self, steps: range) -> Tensor | None:
        """Return which rows begin, and so have no key to attend to.

        Returns:
            [m, B], or None if there are no borders.
        """
        if self.sizes.oldest is None:
            return None
        oldest = self.sizes.oldest[:, steps.start : steps.stop]
        numbers = torch.arange(
            self.past + steps.start, self.past + steps.stop, device=oldest.device
        )
        return (oldest == numbers).t()

    def scores_of_step(
        self, scores: Tensor, steps: range, t: int
    ) -> tuple[Tensor, ...]:
        """Return the entries of step t in a tensor [HB, m L, J] of its chunk.

        Returns:
            L views [HB, 1, keys of the step].
        """
        low, high = self.keys_of_step(t)
        oldest, rows = (
            self.oldest_key(steps.start),
            scores.unflatten(1, (-1, self.L, 1)),
        )
        return rows[:, t - steps.start, :, :, low - oldest : high - oldest].unbind(1)

    def allocate_chunk(self, steps: range, buffers: Buffers | None = None) -> Chunk:
        """Return an uninitialised chunk, without dropout masks.

        Args:
            steps: the steps of the chunk.
            buffers: where to allocate it; None for memory of its own.
        """
        m, (low, high) = len(steps), self.keys_of_chunk(steps)
        kept = self.keeps_weights

        def new(name: str, *shape: int) -> Tensor:
            return buffers.get(name, *shape) if buffers else self.new(shape)

        chunk = Chunk(
            q=new("q", self.L, m, self.B, self.d),
            o=new("o", self.L, m, self.B, self.d),
            y=new("y", self.L, m, self.B, self.d),
            a=new("a", self.L, m, self.B, self.F),
            p=new("p", self.H * self.B, m * self.L, high - low if kept else 1),
            attention_dropout=self.new(0),
            output_dropout=self.new(0),
        )
        if self.slides(steps):
            chunk.p.zero_()
        return chunk


def contiguous(weights: Weights) -> Weights:
    """Return the weights, each contiguous."""
    return Weights(*(weight.contiguous() for weight in weights))


def map_matrices(weights: Weights, function: Callable[[Tensor], Tensor]) -> Weights:
    """Replace each matrix by what a function returns for it."""
    return weights._replace(
        **{name: function(getattr(weights, name)) for name in MATRICES}
    )


def round_matrices(weights: Weights, dtype: torch.dtype | None) -> Weights:
    """Round the matrices to numbers of another dtype, None for no rounding.

    They keep their own dtype: half precision has no sums of its own here.
    """
    if dtype is None:
        return weights
    return map_matrices(weights, lambda matrix: matrix.to(dtype).to(matrix.dtype))
