"""The engine "triton": the steps of a chunk in one launch on a GPU."""

import functools
import sys
from typing import Any

import torch
from torch import Tensor

from fbt.sequence.engine import Engine
from fbt.sequence.layout import (
    Chunk,
    ChunkGradients,
    MatrixInputs,
    Outputs,
    SequenceGradients,
)
from fbt.sequence.norm import plain_norm

BLOCKS = {"BJ": 16, "BK": 16, "BN": 256}  # keys, and rows and columns of a matrix
WARPS = 8  # per program


class TritonEngine(Engine):
    """Computes a chunk in a Triton kernel, one program per sequence."""

    chunk_steps = sys.maxsize
    keeps_weights = False

    def forward_chunk(self, steps: range, outputs: Outputs, chunk: Chunk) -> None:
        """Compute the steps of a chunk."""
        scratch = max(self.layout.F, 3 * self.layout.d)
        self.launch(
            "forward_kernel",
            *outputs,
            *self.activations(chunk),
            *self.weights,
            self.layout.new(self.programs, scratch),
            steps=steps,
            outputs=outputs,
            SCRATCH=scratch,
        )

    def backward_chunk(
        self,
        steps: range,
        outputs: Outputs,
        chunk: Chunk,
        grads: ChunkGradients,
        total: SequenceGradients,
    ) -> MatrixInputs:
        """Compute the gradients of the steps of a chunk, after all later chunks."""
        layout, w = self.layout, self.weights
        # Each program adds to a table of its own, so that sums have one order.
        tables: list[Tensor | None] = [
            None if sum is None else sum.new_zeros(self.programs, *sum.shape)
            for sum in (total.table, total.s)
        ]
        self.launch(
            "backward_kernel",
            *outputs,
            *self.activations(chunk),
            *(w.w_q, w.u, w.table, w.s, w.w_o, w.w_1, w.w_2, w.mix, w.w_kv),
            *(grads.f, grads.y, grads.q, grads.a, grads.kv, grads.m),
            *(total.top, total.x, total.keys, total.values),
            *tables,
            layout.new(self.programs, layout.d),
            steps=steps,
            outputs=outputs,
        )
        for sum, of_programs in zip((total.table, total.s), tables, strict=True):
            if sum is not None and of_programs is not None:
                sum += of_programs.sum(0)
        for bias, gradient in (
            (total.b_q, grads.q),
            (total.b_o, grads.y),
            (total.b_1, grads.a),
            (total.b_2, grads.f),
        ):
            bias += gradient.sum((1, 2))
        memories = outputs.m[steps.start : steps.stop]
        a = chunk.a
        return MatrixInputs(
            w_q=plain_norm(outputs.x[: layout.L, steps.start : steps.stop])[0],
            w_o=chunk.o,
            w_1=plain_norm(chunk.y)[0],
            w_2=torch.nn.functional.gelu(a) if layout.sizes.gelu else a,
            w_kv=plain_norm(memories)[0] if layout.sizes.norm_memory else memories,
        )

    @property
    def programs(self) -> int:
        """The number of programs, each with sequences of its own."""
        return min(self.layout.B, MAX_PROGRAMS)

    def activations(self, chunk: Chunk) -> tuple[Tensor | None, ...]:
        """Return a chunk's tensors; None for the masks without dropout."""
        masks = (chunk.attention_dropout, chunk.output_dropout)
        dropout = masks if self.layout.sizes.dropout else (None, None)
        return chunk.q, chunk.o, chunk.y, chunk.a, chunk.p, *dropout

    def launch(
        self, kernel: str, *tensors: Tensor | None, steps: range, outputs: Outputs,
        **constants: int,
    ) -> None:
        """Run a kernel over the steps of a chunk."""
        layout = self.layout
        low, high = layout.keys_of_chunk(steps)
        sizes = layout.T, layout.B, layout.past, layout.span, steps.start, steps.stop
        power = functools.cache(lambda count: 1 << max(0, count - 1).bit_length())
        compiled: Any = getattr(kernels(), kernel)
        compiled[(self.programs,)](
            *tensors,
            *sizes,
            layout.R,
            outputs.keys.shape[1],
            high - low,
            L=layout.L,
            H=layout.H,
            D=layout.D,
            F=layout.F,
            NORM_MEMORY=layout.sizes.norm_memory,
            GELU=layout.sizes.gelu,
            PD=power(layout.d),
            PH=power(layout.H),
            PW=power(layout.D),
            PF=power(layout.F),
            num_warps=WARPS,
            **constants,
            **BLOCKS,
        )


MAX_PROGRAMS = 512


def kernels() -> Any:
    """Import and return the module of the kernels."""
    from fbt.sequence import triton_kernels

    return triton_kernels
