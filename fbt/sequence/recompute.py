"""Compute a chunk's activations again: all steps of a layer at once."""

import torch

from fbt.attention import skew
from fbt.sequence.layout import Buffers, Chunk, Layout, Outputs, Weights
from fbt.sequence.norm import plain_norm
from fbt.visibility import hide_scores_


def recompute_chunk(
    layout: Layout,
    weights: Weights,
    outputs: Outputs,
    steps: range,
    saved: Chunk,
    buffers: Buffers,
) -> Chunk:
    """Return what the loop forward computed for a chunk.

    Given its inputs, keys and values, a chunk is a parallel function.

    Args:
        layout: sizes of the call.
        weights: folded weights, matrices as [out, in].
        outputs: what the loop computed.
        steps: the steps of the chunk.
        saved: the chunk with its dropout masks; the rest is not read.
        buffers: where to allocate the result.
    """
    w, m, (low, high) = weights, len(steps), layout.keys_of_chunk(steps)
    B, H, L, D = layout.B, layout.H, layout.L, layout.D
    rows = m * B
    chunk = layout.allocate_chunk(steps, buffers)._replace(
        attention_dropout=saved.attention_dropout, output_dropout=saved.output_dropout
    )
    keys, values = (
        kv[:, low:high].view(H, B, high - low, D)
        for kv in (outputs.keys, outputs.values)
    )
    by_row = (H, B, m, L, -1)
    hidden, without_keys = (
        layout.hidden_keys(steps, low, high),
        layout.without_keys(steps),
    )
    if hidden is not None:
        hidden = hidden.transpose(0, 1)  # [1, B, m, J]
    for l in range(L):
        x = outputs.x[l, steps.start : steps.stop]
        q, o, y, a = (
            tensor[l].view(rows, -1)
            for tensor in (chunk.q, chunk.o, chunk.y, chunk.a)
        )
        torch.addmm(w.b_q[l], plain_norm(x)[0].view(rows, -1), w.w_q[l].t(), out=q)
        by_head = q.view(m, B, H, D).permute(2, 1, 0, 3)  # [H, B, m, D]
        position = torch.baddbmm(
            w.s[l][:, None], by_head.flatten(1, 2), w.table[l].mT
        )
        scores = (by_head + w.u[l][:, None, None]) @ keys.mT
        scores += skew(position.unflatten(1, (B, m)))[..., low - high :]
        if hidden is not None:
            hide_scores_(scores, hidden)
        p = scores.softmax(-1)  # of no use where all are hidden, as y shows below
        if layout.starts_empty(steps):
            p[:, :, 0] = 0
        chunk.p.view(by_row)[:, :, :, l] = (
            p if layout.keeps_weights else scores.logsumexp(-1, keepdim=True)
        )
        if layout.sizes.dropout:
            p *= chunk.attention_dropout.view(by_row)[:, :, :, l]
        o.view(m, B, H, D).copy_((p @ values).permute(2, 1, 0, 3))
        torch.addmm(w.b_o[l], o, w.w_o[l].t(), out=y)
        if layout.sizes.dropout:
            chunk.y[l] *= chunk.output_dropout[0, l]
        if layout.starts_empty(steps):
            chunk.y[l, 0] = 0  # also its mask, which was never drawn
        if without_keys is not None:
            chunk.y[l].masked_fill_(without_keys[..., None], 0)
        chunk.y[l] += x
        z = plain_norm(chunk.y[l])[0]
        torch.addmm(w.b_1[l], z.view(rows, -1), w.w_1[l].t(), out=a)
        if not layout.sizes.gelu:
            a.relu_()
    return chunk
