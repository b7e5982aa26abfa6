"""The engine "native": the steps of a chunk in C++ (`fbt.native`)."""

import math
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fbt import native
from fbt.sequence.engine import Engine
from fbt.sequence.layout import (
    MATRICES,
    Buffers,
    Chunk,
    ChunkGradients,
    Layout,
    MatrixInputs,
    Outputs,
    SequenceGradients,
    Weights,
)
from fbt.sequence.norm import plain_norm

GROUP = 64  # sequences that a thread takes through a chunk at once
# Fields of `SequenceGradients` of which each thread has its own.
SUMS = ("b_q", "b_o", "b_1", "b_2", "table", "s")


class ChunkLayout(NamedTuple):
    """The struct `ChunkLayout` of loop.cpp, which explains the fields."""

    T: int
    B: int
    H: int
    D: int
    L: int
    F: int
    R: int
    capacity: int
    past: int
    span: int
    norm_memory: int
    gelu: int
    bfloat16: int
    first: int
    stop: int
    low: int
    width: int
    group: int
    threads: int
    border: int


class MatrixLayout(NamedTuple):
    """The struct `MatrixLayout` of loop.cpp."""

    matrices: int
    rows: int
    height: int
    width: int
    threads: int


class LayerInputs(NamedTuple):
    """The struct `LayerInputs` of loop.cpp: `MatrixInputs` that C++ fills in."""

    w_q: Tensor
    w_1: Tensor
    w_2: Tensor


class ForwardTensors(NamedTuple):
    """The struct `Forward` of loop.cpp."""

    w: Weights
    out: Outputs
    chunk: Chunk


class BackwardTensors(NamedTuple):
    """The struct `Backward` of loop.cpp."""

    w: Weights
    out: Outputs
    chunk: Chunk
    grads: ChunkGradients
    inputs: LayerInputs
    total: SequenceGradients


class NativeEngine(Engine):
    """Computes a chunk in C++, on the CPU, in float32 or float64.

    With `Sizes.matrices`, which is bfloat16, both factors of products with matrices
    are rounded to it; sums stay in float32.
    """

    def __init__(self, layout: Layout, weights: Weights) -> None:
        self.bfloat16 = layout.sizes.matrices is not None
        super().__init__(layout, packed(weights) if self.bfloat16 else weights)
        self.buffers = Buffers(weights.b_q)

    @classmethod
    def chunk_for(cls, batch: int) -> int:
        """Return the steps per chunk; those of few sequences are small in memory."""
        return cls.chunk_steps * (2 if batch <= FEW else 1)

    @classmethod
    def why_not(cls, x: Tensor) -> Exception | None:
        """Return why tensors like x cannot be computed, as an error, or None."""
        return native.why_not(x)

    @classmethod
    def half_for(cls, x: Tensor, autocast: torch.dtype) -> torch.dtype | None:
        """Return in which half precision it multiplies by matrices under autocast."""
        usable = pays(x, autocast) and native.why_not(x) is None
        return autocast if usable and native.has_bfloat16() else None

    @classmethod
    def why_no_half(cls, x: Tensor, autocast: torch.dtype) -> str:
        """Return what `half_for` lacks on this machine; "" if it lacks nothing."""
        if not pays(x, autocast) or native.has_bfloat16():
            return ""
        return (
            'backend="native" stays in float32 under autocast: for products in '
            "bfloat16 it needs a CPU with AVX512-BF16 or AMX, and oneDNN in torch"
        )

    def forward_chunk(self, steps: range, outputs: Outputs, chunk: Chunk) -> None:
        """Compute the steps of a chunk."""
        tensors = ForwardTensors(self.weights, outputs, chunk)
        layout = self.chunk_layout(steps, outputs, chunk, torch.get_num_threads())
        native.run("forward", outputs.x.dtype, layout, chain(*tensors))

    def backward_chunk(
        self,
        steps: range,
        outputs: Outputs,
        chunk: Chunk,
        grads: ChunkGradients,
        total: SequenceGradients,
    ) -> MatrixInputs:
        """Compute the gradients of the steps of a chunk, after all later chunks."""
        # Each thread adds to sums of its own, so there is one for each group at most.
        groups = -(-self.layout.B // self.group)
        layout = self.chunk_layout(
            steps, outputs, chunk, min(torch.get_num_threads(), groups)
        )
        inputs = LayerInputs(
            w_q=self.buffers.get("w_q", *chunk.y.shape),
            w_1=self.buffers.get("w_1", *chunk.y.shape),
            w_2=self.buffers.get("w_2", *chunk.a.shape) if layout.gelu else chunk.a,
        )
        sums: dict[str, Any] = {
            name: None if sum is None else sum.new_zeros(layout.threads, *sum.shape)
            for name, sum in total._asdict().items()
            if name in SUMS
        }
        tensors = BackwardTensors(
            self.weights, outputs, chunk, grads, inputs, total._replace(**sums)
        )
        native.run("backward", outputs.x.dtype, layout, chain(*tensors))
        for name, of_threads in sums.items():
            if of_threads is not None:
                getattr(total, name).add_(of_threads.sum(0))
        memories = outputs.m[steps.start : steps.stop]
        return MatrixInputs(
            w_o=chunk.o,
            w_kv=plain_norm(memories)[0] if layout.norm_memory else memories,
            **inputs._asdict(),
        )

    def add_products(self, total: Tensor, grads: Tensor, inputs: Tensor) -> None:
        """Add to the gradients of matrices [n, out, in] those of a chunk."""
        if not self.bfloat16:
            super().add_products(total, grads, inputs)
            return
        matrices, rows, height = grads.shape
        width, threads = inputs.shape[2], torch.get_num_threads()
        layout = MatrixLayout(matrices, rows, height, width, threads)
        native.run("products", total.dtype, layout, (grads, inputs, total))

    @property
    def group(self) -> int:
        """The number of sequences that a thread takes at once."""
        return min(GROUP, -(-self.layout.B // torch.get_num_threads()))

    def chunk_layout(
        self, steps: range, outputs: Outputs, chunk: Chunk, threads: int
    ) -> ChunkLayout:
        """Return the sizes of a chunk."""
        layout, border = self.layout, self.layout.sizes.oldest
        return ChunkLayout(
            T=layout.T,
            B=layout.B,
            H=layout.H,
            D=layout.D,
            L=layout.L,
            F=layout.F,
            R=layout.R,
            capacity=outputs.keys.shape[1],
            past=layout.past,
            span=layout.span,
            norm_memory=int(layout.sizes.norm_memory),
            gelu=int(layout.sizes.gelu),
            bfloat16=int(self.bfloat16),
            first=steps.start,
            stop=steps.stop,
            low=layout.oldest_key(steps.start),
            width=chunk.p.shape[2],
            group=self.group,
            threads=threads,
            border=0 if border is None else native.address(border, torch.int64),
        )


FEW = 16  # sequences with which longer chunks are faster
ROUNDED_ROWS = 16  # with fewer, rounding the weights takes longer than it saves


def pays(x: Tensor, autocast: torch.dtype) -> bool:
    """Return whether products in bfloat16 are wanted for x [B, T, d], and are faster.

    A single step never has them, as it continues a loop that keeps its weights.
    """
    batch, length, _ = x.shape
    large = length > 1 and batch * length >= ROUNDED_ROWS
    return large and (x.dtype, autocast) == (torch.float32, torch.bfloat16)


def packed(weights: Weights) -> Weights:
    """Return weights whose matrices are rounded to bfloat16, in the order of oneDNN.

    They keep their shapes and dtype, so `loop.cpp` finds each matrix at its place.
    """
    results = {}
    for name in MATRICES:
        matrices = getattr(weights, name)
        *count, rows, width = matrices.shape
        results[name] = torch.empty_like(matrices)
        layout = MatrixLayout(
            math.prod(count), rows, 0, width, torch.get_num_threads()
        )
        native.run("pack", matrices.dtype, layout, (matrices, results[name]))
    return weights._replace(**results)
