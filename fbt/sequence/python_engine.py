"""The engine "sequence": the equations as tensor operations."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fbt.sequence.engine import Engine
from fbt.sequence.layout import (
    Chunk,
    ChunkGradients,
    Layout,
    MatrixInputs,
    Outputs,
    SequenceGradients,
    Weights,
)
from fbt.sequence.norm import plain_norm, plain_norm_backward
from fbt.sequence.step import (
    BackwardChunk,
    BackwardStep,
    ForwardStep,
    backward_step,
    forward_step,
)
from fbt.visibility import softmax_of_visible


class PythonEngine(Engine):
    """Computes a chunk with tensor operations, on any device and in any dtype."""

    transposed = True

    def __init__(self, layout: Layout, weights: Weights) -> None:
        super().__init__(layout, weights)
        self.layers, self.mix = weights_by_layer(weights), weights.mix
        self.L, self.heads = layout.L, (layout.H, layout.B, layout.D)
        self.u = weights.u[:, :, None].unbind()  # [H, 1, D]
        self.with_u = layout.new(self.heads)
        self.with_u_rows = self.with_u.view(-1, 1, layout.D)

    # Forward

    def forward_chunk(self, steps: range, outputs: Outputs, chunk: Chunk) -> None:
        """Compute the steps of a chunk, one after another."""
        keys, values = outputs.keys.mT, outputs.values
        for t in steps:
            step = forward_step(
                self.layout, self.weights, chunk, steps, t, outputs.x, keys, values
            )
            for l in range(self.L):
                self.layer(step, l)
            self.remember(t, outputs)

    def layer(self, step: ForwardStep, l: int) -> None:
        """Compute layer l: attention to earlier steps, then feed-forward."""
        w, x, y = self.layers[l], step.x[l], step.y[l]
        if l:  # the queries of the first layer are known
            torch.addmm(w.b_q, plain_norm(x)[0], w.w_q, out=step.q[l])
        if step.keys.shape[2]:
            self.attend(step, l)
            attended = torch.addmm(w.b_o, step.o[l], w.w_o)
            if step.output_dropout:
                attended = attended * step.output_dropout[0][l]
            if step.without_keys is not None:
                attended.masked_fill_(step.without_keys, 0)
            torch.add(attended, x, out=y)
        else:  # the very first step has no keys
            y.copy_(x)
            step.o[l].zero_()
        torch.addmm(w.b_1, plain_norm(y)[0], w.w_1, out=step.a[l])
        f = torch.addmm(w.b_2, self.activate(step.a[l]), w.w_2)
        if step.output_dropout:
            f = f * step.output_dropout[1][l]
        torch.add(f, y, out=step.x[l + 1])

    def attend(self, step: ForwardStep, l: int) -> None:
        """Compute attention weights and attended values of layer l."""
        torch.add(step.q_heads[l], self.u[l], out=self.with_u)
        scores = torch.baddbmm(step.s[l], step.q_heads[l], step.table[l])
        scores = scores.view(step.p[l].shape)
        scores.baddbmm_(self.with_u_rows, step.keys)
        if step.hidden is None:
            p = scores.softmax(-1)
        else:
            p = softmax_of_visible(scores, step.hidden)
        step.p[l].copy_(p)
        if step.attention_dropout:
            p = p * step.attention_dropout[l]
        step.o_heads[l].copy_(torch.bmm(p, step.values).view(self.heads))

    def activate(self, a: Tensor) -> Tensor:
        """Return GELU(a), or ReLU(a) in place."""
        return F.gelu(a) if self.layout.sizes.gelu else a.relu_()

    def remember(self, t: int, outputs: Outputs) -> None:
        """Compute the memory of step t, its key and its value."""
        H, B, D = self.heads
        m = torch.mv(outputs.x[:, t].reshape(self.L + 1, -1).t(), self.mix)
        m = outputs.m[t].copy_(m.view(B, -1))
        if self.layout.sizes.norm_memory:
            m = plain_norm(m)[0]
        kv = torch.addmm(self.weights.b_kv, m, self.weights.w_kv).view(B, 2, H, D)
        now = self.layout.past + t
        outputs.keys[:, now], outputs.values[:, now] = kv.permute(1, 2, 0, 3).flatten(
            1, 2
        )

    # Backward

    def backward_chunk(
        self,
        steps: range,
        outputs: Outputs,
        chunk: Chunk,
        grads: ChunkGradients,
        total: SequenceGradients,
    ) -> MatrixInputs:
        """Run the steps of a chunk in reverse, then push to the keys before them."""
        memories = outputs.m[steps.start : steps.stop]
        norm_x = plain_norm(outputs.x[: self.L, steps.start : steps.stop])
        norm_y = plain_norm(chunk.y)
        norm_m = plain_norm(memories) if self.layout.sizes.norm_memory else None
        c = BackwardChunk(steps, outputs, chunk, grads, total, norm_x, norm_y, norm_m)
        self.add_query_bias(c)
        for t in reversed(steps):
            dm = self.remember_backward(c, t)
            step = backward_step(self.layout, self.weights, c, t)
            g = torch.addcmul(total.top[t], self.mix[self.L], dm)
            for l in reversed(range(self.L)):
                g = torch.addcmul(self.layer_backward(step, l, g), self.mix[l], dm)
            total.x[t] = g
            self.add_table_gradients(c, t)
        self.push(c)
        total.add_biases(grads)
        return MatrixInputs(
            w_q=norm_x[0],
            w_o=chunk.o,
            w_1=norm_y[0],
            w_2=F.gelu(chunk.a) if self.layout.sizes.gelu else chunk.a,
            w_kv=norm_m[0] if norm_m else memories,
        )

    def layer_backward(self, step: BackwardStep, l: int, g: Tensor) -> Tensor:
        """Return the gradient of layer l's input, from that of its output."""
        w = self.layers[l]
        df = g * step.output_dropout[1][l] if step.output_dropout else g
        df = step.d_f[l].copy_(df)
        self.activate_backward(torch.mm(df, w.w_2), step.a[l], out=step.d_a[l])
        mean, rstd = step.norm_y
        dz = torch.mm(step.d_a[l], w.w_1)
        g = g + plain_norm_backward(dz, step.y[l], mean[l], rstd[l])
        if not step.keys.shape[1]:
            return g
        dy = g * step.output_dropout[0][l] if step.output_dropout else g
        step.d_y[l].copy_(dy)
        self.attend_backward(step, l)
        mean, rstd = step.norm_x
        dz = torch.mm(step.d_q[l], w.w_q)
        return g + plain_norm_backward(dz, step.x[l], mean[l], rstd[l])

    def attend_backward(self, step: BackwardStep, l: int) -> None:
        """Compute the gradients of layer l's scores and of its query."""
        if step.without_keys is not None:
            step.d_y[l].masked_fill_(step.without_keys, 0)
        d_o = self.by_head(torch.mm(step.d_y[l], self.layers[l].w_o))
        step.d_attended[l].view(self.heads).copy_(d_o)
        dp = torch.bmm(step.d_attended[l], step.values)
        if step.attention_dropout:
            dp = dp * step.attention_dropout[l]
        ds = torch.ops.aten._softmax_backward_data.default(
            dp, step.p[l], -1, dp.dtype
        )
        step.d_scores[l].copy_(ds)
        dq = torch.bmm(ds, step.keys).view(self.heads)
        dq = torch.baddbmm(dq, ds.view(*self.heads[:2], -1), step.table[l])
        self.by_head(step.d_q[l]).copy_(dq)

    def activate_backward(self, grad: Tensor, a: Tensor, out: Tensor) -> None:
        """Compute the gradient of a, from that of `activate(a)`, into `out`."""
        if self.layout.sizes.gelu:
            torch.ops.aten.gelu_backward.grad_input(grad, a, grad_input=out)
        else:
            torch.ops.aten.threshold_backward.grad_input(grad, a, 0, grad_input=out)

    def remember_backward(self, c: BackwardChunk, t: int) -> Tensor:
        """Return the gradient of step t's memory, from those of its key and value."""
        now, i, grads = self.layout.past + t, t - c.steps.start, c.grads
        column, later = now - self.layout.oldest_key(c.steps.start), (i + 1) * self.L
        d_key, d_value = c.total.keys[:, now], c.total.values[:, now]
        if later < grads.p.shape[1]:  # pull from later steps of this chunk
            ds = grads.scores[:, None, later:, column].contiguous()
            d_key = d_key + torch.bmm(ds, grads.with_u[:, later:])[:, 0]
            p = grads.p[:, None, later:, column].contiguous()
            d_value = d_value + torch.bmm(p, grads.attended[:, later:])[:, 0]
        kv, dm = grads.kv[i], grads.m[i]
        for half, gradient in zip(kv.chunk(2, dim=1), (d_key, d_value), strict=True):
            self.by_head(half).copy_(gradient.view(self.heads))
        torch.mm(kv, self.weights.w_kv, out=dm)
        if c.norm_m:
            _, mean, rstd = c.norm_m
            dm.copy_(plain_norm_backward(dm, c.outputs.m[t], mean[i], rstd[i]))
        return dm

    def push(self, c: BackwardChunk) -> None:
        """Add a chunk's part of the gradients of the keys and values before it."""
        low, high = self.layout.keys_of_step(c.steps.start)
        if count := high - low:
            ds, p = c.grads.scores[:, :, :count], c.grads.p[:, :, :count]
            c.total.keys[:, low:high] += torch.bmm(ds.mT, c.grads.with_u)
            c.total.values[:, low:high] += torch.bmm(p.mT, c.grads.attended)

    def add_table_gradients(self, c: BackwardChunk, t: int) -> None:
        """Add the contribution of step t to the gradients of the relative tables."""
        low, high = self.layout.keys_of_step(t)
        if c.total.table is None or c.total.s is None or low == high:
            return
        H, B, D = self.heads
        ds = torch.stack(self.layout.scores_of_step(c.grads.scores, c.steps, t))
        ds = ds.view(self.L * H, B, high - low)
        q = c.saved.q[:, t - c.steps.start].view(self.L, B, H, D).transpose(1, 2)
        d_table = torch.bmm(ds.mT, q.reshape(self.L * H, B, D))
        c.total.table[:, :, low - high :] += d_table.view(self.L, H, high - low, D)
        c.total.s[:, :, low - high :] += ds.sum(1).view(self.L, H, high - low)

    def add_query_bias(self, c: BackwardChunk) -> None:
        """Compute q + u, in the order of the rows of the scores."""
        H, B, D = self.heads
        q = c.saved.q.view(self.L, -1, B, H, D).permute(3, 2, 1, 0, 4)
        u = self.weights.u.transpose(0, 1)[:, None, None]
        torch.add(q, u, out=c.grads.with_u.view(q.shape))

    def by_head(self, x: Tensor) -> Tensor:
        """View [B, d] as [H, B, D]."""
        H, B, D = self.heads
        return x.view(B, H, D).transpose(0, 1)


def weights_by_layer(weights: Weights) -> list[Weights]:
    """Return the weights of each layer, with those that all layers share."""
    *stacked, mix, w_kv, b_kv = weights
    layers = zip(*(weight.unbind() for weight in stacked), strict=True)
    # Not by _make, which torch 2.6 cannot compile.
    return [
        Weights(*own, mix, w_kv, b_kv)  # type: ignore[call-arg]
        for own in layers
    ]
