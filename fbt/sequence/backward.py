"""The whole-sequence loop in reverse: gradients of activations step by step, of weights chunk by chunk."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fbt.attention import skew
from fbt.sequence.parts import (
    Chunk,
    Loop,
    Sizes,
    Views,
    Weights,
    of_layers,
    plain_norm,
    plain_norm_backward,
)


class ChunkGradients(NamedTuple):
    """Gradients of what happens inside a chunk, gathered for the products at its end."""

    p: Tensor  # attention weights as they were used, [HB, m L, J]
    with_u: Tensor  # q + u, [HB, m L, D]
    scores: Tensor  # [HB, m L, J]
    attended: Tensor  # of p V, [HB, m L, D]
    f: Tensor  # of the feed-forward output, [L, m, B, d]
    y: Tensor  # of the attention output, [L, m, B, d]
    q: Tensor  # [L, m, B, d]
    a: Tensor  # [L, m, B, F]
    kv: Tensor  # of keys and values, [m, B, 2 d]
    m: Tensor  # of memories, [m, B, d]


class Step(NamedTuple):
    """What a step reads and writes, layer by layer: views made at once, since each one costs like a sum."""

    x: Views  # [B, d]
    norm_x: tuple[Views, Views]  # [B, 1], mean and 1 / standard deviation
    y: Views  # [B, d]
    norm_y: tuple[Views, Views]
    a: Views  # [B, F]
    p: Views  # [HB, 1, keys]
    noise: Views  # like p, with dropout
    drops: tuple[Views, ...]  # [B, d] of both outputs of a layer, with dropout
    table: Views  # [H, keys, D]
    keys: Tensor  # [HB, keys, D]
    values: Tensor  # [HB, D, keys]
    d_scores: Views  # [HB, 1, keys]
    d_attended: Views  # [HB, 1, D]
    d_f: Views  # [B, d]
    d_y: Views  # [B, d]
    d_q: Views  # [B, d]
    d_a: Views  # [B, F]


class Backward(Loop):
    """The loop in reverse; its buffers belong to one call."""

    def __init__(
        self,
        sizes: Sizes,
        weights: Weights,
        outputs: list[Tensor],
        chunks: list[Chunk],
        want: set[str],
    ) -> None:
        self.x, self.m, keys_t, values = outputs
        super().__init__(sizes, weights, self.x.shape[1], self.x.shape[2])
        self.kept, self.want, self.layers = chunks, want, of_layers(self.w)
        self.keys, self.values_t = keys_t.mT.contiguous(), self.turn(values)
        self.d_keys, self.d_values = (
            torch.zeros_like(self.keys),
            torch.zeros_like(self.keys),
        )
        self.d_x = self.new(self.T, self.B, self.d)
        self.found = {
            name: torch.zeros_like(tensor)
            for name, tensor in weights._asdict().items()
        }

    def run(
        self, d_top: Tensor | None, d_keys: Tensor | None, d_values: Tensor | None
    ) -> dict[str, Tensor]:
        """All gradients by name, from those of the top outputs [T, B, d] and of the state [B, H, J, D]."""
        for total, given in ((self.d_keys, d_keys), (self.d_values, d_values)):
            if given is not None:
                total[:, -given.shape[2] :] = given.transpose(0, 1).flatten(0, 1)
        d_top = torch.zeros_like(self.d_x) if d_top is None else d_top.contiguous()
        for (first, stop), chunk in zip(
            reversed(self.chunks), reversed(self.kept), strict=True
        ):
            self.chunk(
                first,
                stop,
                self.recompute(first, stop, chunk) if self.sizes.recompute else chunk,
                d_top,
            )
        through_table = torch.einsum("lhr,lhrd->lhd", self.found["s"], self.w.table)
        return self.found | {
            "x": self.d_x,
            "keys": self.d_keys[:, : self.sizes.past],
            "values": self.d_values[:, : self.sizes.past],
            "u": self.found["b_q"].view_as(self.w.u) - through_table,
        }

    def chunk(self, first: int, stop: int, chunk: Chunk, d_top: Tensor) -> None:
        """One chunk: its steps in reverse, then what they owe to earlier keys and to the weights."""
        m = stop - first
        p = chunk.p * chunk.noise if self.sizes.dropout else chunk.p
        self.norm_m = (
            plain_norm(self.m[first:stop]) if self.sizes.norm_memory else None
        )
        grads = ChunkGradients(
            p=p,
            with_u=self.queries(chunk),
            scores=self.buffer("scores", *p.shape),
            attended=self.buffer("attended", p.shape[0], m * self.L, self.D),
            f=self.buffer("f", *chunk.y.shape),
            y=self.buffer("y", *chunk.y.shape),
            q=self.buffer("q", *chunk.y.shape),
            a=self.buffer("a", *chunk.a.shape),
            kv=self.buffer("kv", m, self.B, 2 * self.d),
            m=self.buffer("m", m, self.B, self.d),
        )
        if self.slides(first, stop):
            grads.scores.zero_()
        # the first step of all has no attention to have a gradient
        if self.sizes.past + first == 0:
            for gradient in (
                grads.y[:, 0],
                grads.q[:, 0],
                grads.attended[:, : self.L],
            ):
                gradient.zero_()
        self.steps(first, stop, chunk, grads, d_top)
        self.weights(first, stop, chunk, grads)

    def queries(self, chunk: Chunk) -> Tensor:
        """What met the keys in a chunk: q + u, [HB, m L, D]."""
        with_u = chunk.q.unflatten(-1, (self.H, self.D)) + self.w.u[:, None, None]
        return with_u.permute(3, 2, 1, 0, 4).flatten(2, 3).flatten(0, 1).contiguous()

    def steps(
        self,
        first: int,
        stop: int,
        chunk: Chunk,
        grads: ChunkGradients,
        d_top: Tensor,
    ) -> None:
        """The steps of a chunk in reverse, then what they owe to the keys and values before the chunk."""
        self.norm_x, self.norm_y = (
            plain_norm(self.x[: self.L, first:stop]),
            plain_norm(chunk.y),
        )
        for t in reversed(range(first, stop)):
            dm = self.remembered(first, t, grads)
            step, g = (
                self.step(first, t, chunk, grads),
                torch.addcmul(d_top[t], self.w.mix[self.L], dm),
            )
            for l in reversed(range(self.L)):
                g = torch.addcmul(self.layer(step, l, g), self.w.mix[l], dm)
            self.d_x[t] = g
            self.tables(first, t, chunk, grads)
        low = self.oldest_key(first)
        earlier = self.sizes.past + first - low
        if earlier:
            self.d_keys[:, low : low + earlier] += torch.bmm(
                grads.scores[:, :, :earlier].mT, grads.with_u
            )
            self.d_values[:, low : low + earlier] += torch.bmm(
                grads.p[:, :, :earlier].mT, grads.attended
            )

    def remembered(self, first: int, t: int, grads: ChunkGradients) -> Tensor:
        """The gradient of the memory of step t, from those of its key and value."""
        now = self.sizes.past + t
        column_of_key, later = now - self.oldest_key(first), (t - first + 1) * self.L
        d_key, d_value = self.d_keys[:, now], self.d_values[:, now]
        if later < grads.p.shape[1]:  # later steps of this chunk read this key too
            column = grads.scores[:, None, later:, column_of_key].contiguous()
            d_key = d_key + torch.bmm(column, grads.with_u[:, later:])[:, 0]
            column = grads.p[:, None, later:, column_of_key].contiguous()
            d_value = d_value + torch.bmm(column, grads.attended[:, later:])[:, 0]
        i, kv, dm = t - first, grads.kv[t - first], grads.m[t - first]
        for half, gradient in zip(kv.chunk(2, dim=1), (d_key, d_value), strict=True):
            self.by_head(half).copy_(gradient.view(self.H, self.B, self.D))
        torch.mm(kv, self.w.w_kv, out=dm)
        if self.norm_m:
            dm.copy_(
                plain_norm_backward(
                    dm, self.m[t], self.norm_m[1][i], self.norm_m[2][i]
                )
            )
        return dm

    def step(self, first: int, t: int, chunk: Chunk, grads: ChunkGradients) -> Step:
        """Views of what step t reads and writes."""
        i, (low, high), dropout = (
            t - first,
            self.keys_of_step(t),
            self.sizes.dropout > 0,
        )
        attended = grads.attended.unflatten(1, (-1, self.L, 1))
        return Step(
            x=self.x[: self.L, t].unbind(),
            norm_x=(self.norm_x[1][:, i].unbind(), self.norm_x[2][:, i].unbind()),
            y=chunk.y[:, i].unbind(),
            norm_y=(self.norm_y[1][:, i].unbind(), self.norm_y[2][:, i].unbind()),
            a=chunk.a[:, i].unbind(),
            p=self.step_of_scores(chunk.p, first, t),
            noise=self.step_of_scores(chunk.noise, first, t) if dropout else (),
            drops=tuple(drops.unbind() for drops in chunk.drops[:, :, i].unbind())
            if dropout
            else (),
            table=self.w.table[:, :, self.w.s.shape[2] + low - high :].unbind(),
            keys=self.keys[:, low:high],
            values=self.values_t[:, :, low:high],
            d_scores=self.step_of_scores(grads.scores, first, t),
            d_attended=attended[:, i].unbind(1),
            d_f=grads.f[:, i].unbind(),
            d_y=grads.y[:, i].unbind(),
            d_q=grads.q[:, i].unbind(),
            d_a=grads.a[:, i].unbind(),
        )

    def layer(self, step: Step, l: int, g: Tensor) -> Tensor:
        """From the gradient of layer l's output to that of its input."""
        w = self.layers[l]
        df = step.d_f[l].copy_(g * step.drops[1][l] if step.drops else g)
        self.activate_backward(torch.mm(df, w.w_2), step.a[l], out=step.d_a[l])
        mean, rstd = step.norm_y
        g = g + plain_norm_backward(
            torch.mm(step.d_a[l], w.w_1), step.y[l], mean[l], rstd[l]
        )
        if not step.keys.shape[1]:
            return g
        step.d_y[l].copy_(g * step.drops[0][l] if step.drops else g)
        self.attend(step, l)
        mean, rstd = step.norm_x
        return g + plain_norm_backward(
            torch.mm(step.d_q[l], w.w_q), step.x[l], mean[l], rstd[l]
        )

    def attend(self, step: Step, l: int) -> None:
        """From the gradient of the attention's output to those of its scores and of its query."""
        d_o = self.by_head(torch.mm(step.d_y[l], self.layers[l].w_o))
        step.d_attended[l].view(self.H, self.B, self.D).copy_(d_o)
        dp = torch.bmm(step.d_attended[l], step.values)
        if step.noise:
            dp = dp * step.noise[l]
        ds = torch.ops.aten._softmax_backward_data.default(
            dp, step.p[l], -1, dp.dtype
        )
        step.d_scores[l].copy_(ds)
        dq = torch.bmm(ds, step.keys).view(self.H, self.B, self.D)
        dq = torch.baddbmm(dq, ds.view(self.H, self.B, -1), step.table[l])
        self.by_head(step.d_q[l]).copy_(dq)

    def tables(self, first: int, t: int, chunk: Chunk, grads: ChunkGradients) -> None:
        """What step t adds to the gradients of the relative tables; that of u is made from them."""
        low, high = self.keys_of_step(t)
        if low == high or not self.want & {"table", "s", "u"}:
            return
        count = high - low
        ds = torch.stack(self.step_of_scores(grads.scores, first, t)).view(
            self.L * self.H, self.B, count
        )
        q = chunk.q[:, t - first].view(self.L, self.B, self.H, self.D).transpose(1, 2)
        product = torch.bmm(ds.mT, q.reshape(self.L * self.H, self.B, self.D))
        self.found["table"][:, :, -count:] += product.view(
            self.L, self.H, count, self.D
        )
        self.found["s"][:, :, -count:] += ds.sum(1).view(self.L, self.H, count)

    def weights(
        self, first: int, stop: int, chunk: Chunk, grads: ChunkGradients
    ) -> None:
        """Add the chunk's share of every weight gradient: one product a weight, over all its steps."""
        gradients = {"w_2": grads.f, "w_1": grads.a, "w_o": grads.y, "w_q": grads.q}
        for name, gradient in gradients.items():
            rows = gradient.view(self.L, -1, gradient.shape[-1])
            if name in self.want:
                self.found[name].baddbmm_(
                    rows.mT,
                    self.input(name, first, stop, chunk).reshape(
                        self.L, rows.shape[1], -1
                    ),
                )

        self.biases(gradients)
        kv, normed = (
            grads.kv.view(-1, 2 * self.d),
            self.norm_m[0] if self.norm_m else self.m[first:stop],
        )
        if "w_kv" in self.want:
            self.found["w_kv"].addmm_(kv.t(), normed.view(-1, self.d))
        self.found["b_kv"] += kv.sum(0)
        if "mix" in self.want:
            self.found["mix"] += torch.mv(
                self.x[:, first:stop].flatten(1), grads.m.view(-1)
            )

    def biases(self, gradients: dict[str, Tensor]) -> None:
        """Add the chunk's share of the gradients of biases."""
        for name, gradient in gradients.items():
            self.found[name.replace("w", "b")] += gradient.sum((1, 2))

    def input(self, name: str, first: int, stop: int, chunk: Chunk) -> Tensor:
        """What a weight of each layer multiplied in a chunk."""
        if name == "w_o":
            return chunk.o
        if name == "w_2":
            return F.gelu(chunk.a) if self.sizes.gelu else chunk.a
        return self.norm_y[0] if name == "w_1" else self.norm_x[0]

    def recompute(self, first: int, stop: int, kept: Chunk) -> Chunk:
        """What `Forward` computed for a chunk, from the layers' outputs: all steps of a layer at once."""
        w, m, (low, high) = self.w, stop - first, self.keys_of_chunk(first, stop)
        rows = m * self.B
        chunk = self.room(first, stop, again=True)._replace(
            noise=kept.noise, drops=kept.drops
        )
        keys = self.keys[:, low:high].view(self.H, self.B, high - low, self.D)
        values = self.values_t[:, :, low:high].mT.view(keys.shape)
        by_row = (self.H, self.B, m, self.L, high - low)
        for l in range(self.L):
            q, o, y, a = (
                kept[l].view(rows, -1)
                for kept in (chunk.q, chunk.o, chunk.y, chunk.a)
            )
            z = plain_norm(self.x[l, first:stop])[0]
            torch.addmm(w.b_q[l], z.view(rows, self.d), w.w_q[l].t(), out=q)
            # [H, B, m, D]
            by_head = q.view(m, self.B, self.H, self.D).permute(2, 1, 0, 3)
            position = torch.baddbmm(
                w.s[l][:, None], by_head.flatten(1, 2), w.table[l].mT
            )
            scores = (by_head + w.u[l][:, None, None]) @ keys.mT
            scores += skew(position.unflatten(1, (self.B, m)))[..., low - high :]
            p = scores.softmax(-1)
            if self.sizes.past + first == 0:
                p[:, :, 0] = 0  # the first step of all reads nothing
            chunk.p.view(by_row)[:, :, :, l] = p
            if self.sizes.dropout:
                p *= chunk.noise.view(by_row)[:, :, :, l]
            o.view(m, self.B, self.H, self.D).copy_((p @ values).permute(2, 1, 0, 3))
            torch.addmm(w.b_o[l], o, w.w_o[l].t(), out=y)
            if self.sizes.dropout:
                chunk.y[l] *= chunk.drops[0, l]
            if self.sizes.past + first == 0:
                chunk.y[l, 0] = 0  # nor was a mask ever drawn for it
            chunk.y[l] += self.x[l, first:stop]
            z = plain_norm(chunk.y[l])[0]
            torch.addmm(w.b_1[l], z.view(rows, self.d), w.w_1[l].t(), out=a)
            if not self.sizes.gelu:
                self.activate(a)
        return chunk
