"""The interface of an engine, which computes the steps of a chunk."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from fbt.sequence.layout import (
    Chunk,
    ChunkGradients,
    Layout,
    MatrixInputs,
    Outputs,
    SequenceGradients,
    Weights,
)


class Engine(ABC):
    """Computes the steps of a chunk; `Forward` and `Backward` do everything else.

    They make one engine per call, allocate all tensors, compute the first layer's
    queries of a chunk, draw dropout masks, and multiply the gradients of matrices.

    Args:
        layout: sizes of the call, and which keys a step sees.
        weights: contiguous folded weights. In forward, matrices are [in, out] (see
            `copies_matrices`), in backward [out, in].
    """

    # Steps per chunk; `sys.maxsize` for the whole sequence at once. 4 is as fast as
    # 8; with 16 and more, the buffers of a chunk leave the cache.
    chunk_steps: ClassVar[int] = 8
    # Whether keys in forward, and values in backward, are stored as [HB, D, J]: the
    # operands that are multiplied transposed. Their shape is [HB, J, D] either way.
    transposed: ClassVar[bool] = False
    # Whether [in, out] matrices are contiguous, or views of [out, in].
    copies_matrices: ClassVar[bool] = True
    # Whether attention weights are kept for backward, or computed again from the
    # logarithm of their sum.
    keeps_weights: ClassVar[bool] = True

    def __init__(self, layout: Layout, weights: Weights) -> None:
        self.layout, self.weights = layout, weights

    @classmethod
    def chunk_for(cls, batch: int) -> int:
        """Return the number of steps per chunk for so many sequences."""
        return cls.chunk_steps

    @classmethod
    def why_not(cls, x: Tensor) -> Exception | None:
        """Return why tensors like x cannot be computed, as an error, or None."""
        return None

    @classmethod
    def why_not_chosen(cls, x: Tensor) -> Exception | None:
        """Return why backend="auto" does not take this engine, or None."""
        return cls.why_not(x)

    @classmethod
    def half_for(cls, x: Tensor, autocast: torch.dtype) -> torch.dtype | None:
        """Return in which half precision it multiplies by matrices under autocast.

        Args:
            x: embeddings [B, T, d], in the dtype of everything else.
            autocast: the dtype of autocast.

        Returns:
            The dtype, for `Sizes.matrices`; None if autocast changes nothing.
        """
        return None

    @classmethod
    def why_no_half(cls, x: Tensor, autocast: torch.dtype) -> str:
        """Return what `half_for` lacks on this machine; "" if it lacks nothing."""
        return ""

    @abstractmethod
    def forward_chunk(self, steps: range, outputs: Outputs, chunk: Chunk) -> None:
        """Compute the steps of a chunk.

        Args:
            steps: the steps.
            outputs: everything before these steps is filled in, and the inputs of the
                first layer. To be filled in for these steps.
            chunk: to be filled in, except for the first layer's `q`, the dropout
                masks and `p` beyond the span.
        """

    @abstractmethod
    def backward_chunk(
        self,
        steps: range,
        outputs: Outputs,
        chunk: Chunk,
        grads: ChunkGradients,
        total: SequenceGradients,
    ) -> MatrixInputs:
        """Compute the gradients of the steps of a chunk, after all later chunks.

        Args:
            steps: the steps.
            outputs: what the loop computed.
            chunk: what `forward_chunk` filled in.
            grads: to be filled in, except for `p`, `scores` beyond the span, and what
                belongs to the attention of a step without keys, which is zero.
            total: gradients of biases, relative tables, keys and values are added to.
                Keys and values are complete for later steps, and get what these steps
                contribute to earlier ones. `x` is filled in for these steps.

        Returns:
            What the matrices were multiplied by; valid until the next call.
        """

    def add_products(self, total: Tensor, grads: Tensor, inputs: Tensor) -> None:
        """Add to the gradients of matrices [n, out, in] those of a chunk.

        Args:
            total: the gradients.
            grads: of what the matrices computed, [n, rows, out].
            inputs: what they were multiplied by, [n, rows, in].
        """
        total.baddbmm_(grads.mT, inputs)
