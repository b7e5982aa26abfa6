"""Views of what one step of the Python engine reads and writes, layer by layer."""

from typing import NamedTuple

from torch import Tensor

from fbt.sequence.layout import (
    Chunk,
    ChunkGradients,
    Layout,
    Outputs,
    SequenceGradients,
    Weights,
)
from fbt.sequence.norm import Norm

# One view for each layer. The views of a step are made at once: to make a view takes
# as long as to add two small tensors.
Views = tuple[Tensor, ...]


class ForwardStep(NamedTuple):
    """What a step reads and writes, layer by layer."""

    x: Views  # L + 1 times [B, d], the inputs of the layers and the top
    q: Views  # [B, d]
    q_heads: Views  # the same as [H, B, D]
    o: Views  # [B, d]
    o_heads: Views  # the same as [H, B, D]
    y: Views  # [B, d]
    a: Views  # [B, F]
    p: Views  # [HB, 1, keys]
    attention_dropout: Views  # like p; empty without dropout
    output_dropout: tuple[Views, ...]  # [B, d] after attention and after feed-forward
    s: Views  # [H, 1, keys]
    table: Views  # [H, D, keys]
    keys: Tensor  # [HB, D, keys]
    values: Tensor  # [HB, keys, D]
    hidden: Tensor | None  # [HB, 1, keys], see `Layout.hidden_keys`
    without_keys: Tensor | None  # [B, 1], see `Layout.without_keys`


class BackwardStep(NamedTuple):
    """What a step in reverse reads and writes, layer by layer."""

    x: Views  # [B, d]
    norm_x: tuple[Views, Views]  # [B, 1], mean and 1 / standard deviation
    y: Views  # [B, d]
    norm_y: tuple[Views, Views]
    a: Views  # [B, F]
    p: Views  # [HB, 1, keys]
    attention_dropout: Views  # like p; empty without dropout
    output_dropout: tuple[Views, ...]  # [B, d] after attention and after feed-forward
    table: Views  # [H, keys, D]
    keys: Tensor  # [HB, keys, D]
    values: Tensor  # [HB, D, keys]
    d_scores: Views  # [HB, 1, keys]
    d_attended: Views  # [HB, 1, D]
    d_f: Views  # [B, d]
    d_y: Views  # [B, d]
    d_q: Views  # [B, d]
    d_a: Views  # [B, F]
    without_keys: Tensor | None  # [B, 1], see `Layout.without_keys`


class BackwardChunk(NamedTuple):
    """What a chunk in reverse reads and writes."""

    steps: range
    outputs: Outputs
    saved: Chunk
    grads: ChunkGradients
    total: SequenceGradients
    norm_x: Norm  # of the inputs of the layers
    norm_y: Norm
    norm_m: Norm | None  # of the memories, where they are normalised


def forward_step(
    layout: Layout,
    weights: Weights,
    chunk: Chunk,
    steps: range,
    t: int,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
) -> ForwardStep:
    """Return the views of step t; keys are [HB, D, J], values [HB, J, D]."""
    i, (low, high) = t - steps.start, layout.keys_of_step(t)
    newest = layout.R + low - high
    q, o = chunk.q[:, i], chunk.o[:, i]
    by_head = (layout.L, layout.B, layout.H, layout.D)
    weights_mask, output_masks = dropout_of_step(layout, chunk, steps, t)
    keys, values = keys[:, :, low:high], values[:, low:high]
    hidden = layout.hidden_keys(range(t, t + 1), low, high)
    if hidden is not None:
        hidden = hidden[:, 0].repeat(layout.H, 1, 1)
        # Zeros, because a weight of zero times NaN is NaN.
        keys, values = keys.masked_fill(hidden, 0), values.masked_fill(hidden.mT, 0)
    return ForwardStep(
        x=x[:, t].unbind(),
        q=q.unbind(),
        q_heads=q.view(by_head).transpose(1, 2).unbind(),
        o=o.unbind(),
        o_heads=o.view(by_head).transpose(1, 2).unbind(),
        y=chunk.y[:, i].unbind(),
        a=chunk.a[:, i].unbind(),
        p=layout.scores_of_step(chunk.p, steps, t),
        attention_dropout=weights_mask,
        output_dropout=output_masks,
        s=weights.s[:, :, None, newest:].unbind(),
        table=weights.table[:, :, newest:].mT.unbind(),
        keys=keys,
        values=values,
        hidden=hidden,
        without_keys=without_keys(layout, t),
    )


def backward_step(
    layout: Layout, weights: Weights, c: BackwardChunk, t: int
) -> BackwardStep:
    """Return the views of step t in reverse."""
    steps, saved, grads = c.steps, c.saved, c.grads
    i, (low, high) = t - steps.start, layout.keys_of_step(t)
    attended = grads.attended.unflatten(1, (-1, layout.L, 1))
    weights_mask, output_masks = dropout_of_step(layout, saved, steps, t)
    return BackwardStep(
        x=c.outputs.x[: layout.L, t].unbind(),
        norm_x=(c.norm_x[1][:, i].unbind(), c.norm_x[2][:, i].unbind()),
        y=saved.y[:, i].unbind(),
        norm_y=(c.norm_y[1][:, i].unbind(), c.norm_y[2][:, i].unbind()),
        a=saved.a[:, i].unbind(),
        p=layout.scores_of_step(saved.p, steps, t),
        attention_dropout=weights_mask,
        output_dropout=output_masks,
        table=weights.table[:, :, layout.R + low - high :].unbind(),
        keys=c.outputs.keys[:, low:high],
        values=c.outputs.values[:, low:high].mT,
        d_scores=layout.scores_of_step(grads.scores, steps, t),
        d_attended=attended[:, i].unbind(1),
        d_f=grads.f[:, i].unbind(),
        d_y=grads.y[:, i].unbind(),
        d_q=grads.q[:, i].unbind(),
        d_a=grads.a[:, i].unbind(),
        without_keys=without_keys(layout, t),
    )


def without_keys(layout: Layout, t: int) -> Tensor | None:
    """Return which rows [B, 1] begin at step t; None if there are no borders."""
    rows = layout.without_keys(range(t, t + 1))
    return None if rows is None else rows.t()


def dropout_of_step(
    layout: Layout, chunk: Chunk, steps: range, t: int
) -> tuple[Views, tuple[Views, ...]]:
    """Return the masks of step t, of attention weights and of outputs."""
    if not layout.sizes.dropout:
        return (), ()
    masks = chunk.output_dropout[:, :, t - steps.start].unbind()
    return (
        layout.scores_of_step(chunk.attention_dropout, steps, t),
        tuple(mask.unbind() for mask in masks),
    )
