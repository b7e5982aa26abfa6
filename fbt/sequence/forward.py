"""The loop forward, unrecorded: it keeps what `Backward` needs, chunk by chunk."""

import torch
from torch import Tensor

from fbt.attention import dropout_mask_
from fbt.sequence.engine import Engine
from fbt.sequence.layout import (
    Buffers,
    Chunk,
    Layout,
    Outputs,
    Sizes,
    Weights,
    contiguous,
    map_matrices,
)
from fbt.sequence.norm import plain_norm


class Forward:
    """The loop forward; its buffers belong to one call.

    Args:
        engine: computes the steps of a chunk.
        sizes: sizes and options.
        weights: what `prepare` returned.
        x: the inputs [T, B, d].
        keys: carried in, [HB, P, D].
        values: carried in, [HB, P, D].
        capacity: allocate at least so many keys.

    Attributes:
        layout: sizes and chunks of the call.
        outputs: filled in by `run`.
    """

    def __init__(
        self,
        engine: type[Engine],
        sizes: Sizes,
        weights: Weights,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        capacity: int = 0,
    ) -> None:
        steps, batch, d = x.shape
        self.layout = Layout(
            sizes,
            weights,
            steps,
            batch,
            engine.chunk_for(batch),
            engine.keeps_weights,
        )
        new, L, D = self.layout.new, self.layout.L, self.layout.D
        rows, count = sizes.heads * batch, max(capacity, sizes.past + steps)
        self.outputs = Outputs(
            x=new(L + 1, steps, batch, d),
            m=new(steps, batch, d),
            keys=new(rows, D, count).mT if engine.transposed else new(rows, count, D),
            values=new(rows, count, D),
        )
        self.outputs.x[0] = x
        self.outputs.keys[:, : sizes.past] = keys
        self.outputs.values[:, : sizes.past] = values
        self.weights = weights
        self.engine = engine(self.layout, self.weights)
        self.buffers = Buffers(weights.b_q)

    def run(self) -> list[Chunk]:
        """Run all steps; return the chunks if a backward may follow."""
        sizes, saved = self.layout.sizes, []
        # A chunk that is not saved may be overwritten by the next one.
        reuse = sizes.recompute or not sizes.needs_backward
        for steps in self.layout.chunks:
            chunk = self.layout.allocate_chunk(steps, self.buffers if reuse else None)
            self.first_queries(steps, chunk)
            if sizes.dropout:
                chunk = self.draw_dropout(steps, chunk)
            self.engine.forward_chunk(steps, self.outputs, chunk)
            if sizes.recompute:
                empty = self.layout.new(0)
                chunk = chunk._replace(q=empty, o=empty, y=empty, a=empty, p=empty)
            if sizes.needs_backward:
                saved.append(chunk)
        return saved

    def first_queries(self, steps: range, chunk: Chunk) -> None:
        """Compute the first layer's queries of a chunk, which depend on no step."""
        rows = (len(steps) * self.layout.B, self.layout.d)
        z = plain_norm(self.outputs.x[0, steps.start : steps.stop])[0].view(rows)
        w_q, b_q = self.weights.w_q[0], self.weights.b_q[0]
        torch.addmm(b_q, z, w_q, out=chunk.q[0].view(rows))

    def draw_dropout(self, steps: range, chunk: Chunk) -> Chunk:
        """Draw the masks of a chunk in the plain loop's order, step by step."""
        layout, sizes = self.layout, self.layout.sizes
        low, high = layout.keys_of_chunk(steps)
        chunk = chunk._replace(
            attention_dropout=chunk.p.new_zeros(*chunk.p.shape[:2], high - low),
            output_dropout=layout.new(2, *chunk.y.shape),
        )
        after_attention, after_feed_forward = chunk.output_dropout
        for i, t in enumerate(steps):
            masks = layout.scores_of_step(chunk.attention_dropout, steps, t)
            for l, mask in enumerate(masks):
                if keys := mask.shape[2]:
                    drawn = layout.new(layout.B, layout.H, 1, keys)
                    dropout_mask_(drawn, sizes.dropout, sizes.generator)
                    mask.copy_(drawn.transpose(0, 1).flatten(0, 1))
                    dropout_mask_(
                        after_attention[l, i], sizes.dropout, sizes.generator
                    )
                dropout_mask_(
                    after_feed_forward[l, i], sizes.dropout, sizes.generator
                )
        return chunk


def prepare(engine: type[Engine], weights: Weights) -> Weights:
    """Return folded weights as `Forward` takes them, with matrices [in, out]."""
    return map_matrices(
        contiguous(weights),
        input_first if engine.copies_matrices else lambda matrix: matrix.mT,
    )


def results(outputs: Outputs, sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Return copies: the top [T, B, d], and the state's keys and values."""
    keys, values = (
        newest(kv, sizes.heads, sizes.kept) for kv in (outputs.keys, outputs.values)
    )
    return outputs.x[-1].clone(), keys, values


def newest(keys_or_values: Tensor, heads: int, span: int) -> Tensor:
    """Copy the newest `span` rows of [HB, J, D] to a state's [B, H, J, D]."""
    return (
        keys_or_values[:, -span:]
        .unflatten(0, (heads, -1))
        .transpose(0, 1)
        .clone(memory_format=torch.contiguous_format)
    )


def input_first(weight: Tensor) -> Tensor:
    """Copy matrices [..., out, in] to [..., in, out], one by one.

    A product with few rows is up to twice as fast with [in, out]. All matrices at
    once would take five times as long to copy.
    """
    result = weight.new_empty(weight.mT.shape)
    size = weight.shape[-2:]
    for copy, matrix in zip(
        result.view(-1, *size[::-1]), weight.view(-1, *size), strict=True
    ):
        copy.copy_(matrix.t())
    return result
