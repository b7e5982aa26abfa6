"""The whole-sequence loop forward, unrecorded: it keeps what `Backward` needs, chunk by chunk."""

import torch
from torch import Tensor

from fbt.sequence.parts import Chunk, Loop, Sizes, Weights, noise_like, plain_norm


class Forward(Loop):
    """The loop forward; its buffers belong to one call."""

    def __init__(self, sizes: Sizes, weights: Weights, x: Tensor, keys: Tensor, values: Tensor) -> None:
        super().__init__(sizes, weights, x.shape[0], x.shape[1])
        self.new = x.new_empty
        total = sizes.past + self.T
        self.x = self.new(self.L + 1, self.T, self.B, self.d)
        self.x[0] = x
        self.m, self.m_stats = self.new(self.T, self.B, self.d), self.new(2, self.T, self.B, 1)
        self.keys_t = self.new(self.H * self.B, self.D, total)  # a step multiplies by the keys' transpose
        self.values = self.new(self.H * self.B, total, self.D)
        self.keys_t[:, :, : sizes.past], self.values[:, : sizes.past] = keys.mT, values
        self.table_t = weights.table.mT
        self.with_u = self.new(self.H, self.B, self.D)

    def run(self) -> list[Chunk]:
        """Run all steps; return what backward needs, chunk by chunk."""
        kept = []
        for first, stop in self.chunks:
            chunk = self.room(first, stop)
            z, chunk.stats[0, 0], chunk.stats[1, 0] = plain_norm(self.x[0, first:stop])
            rows = (stop - first) * self.B  # the first layer's queries need no loop
            torch.addmm(
                self.w.b_q[0], z.view(rows, self.d), self.w.w_q[0].t(), out=chunk.q[0].view(rows, self.d)
            )
            for t in range(first, stop):
                for l in range(self.L):
                    self.layer(chunk, first, t, l)
                self.remember(t)
            if self.sizes.recompute:
                empty = self.new(0)
                chunk = chunk._replace(q=empty, o=empty, y=empty, a=empty, stats=empty, p=empty)
            kept.append(chunk)
        return kept

    def room(self, first: int, stop: int) -> Chunk:
        """Buffers for the steps of a chunk."""
        m, (low, high) = stop - first, self.keys_of_chunk(first, stop)
        one = (self.L, m, self.B, self.d)
        p = self.new(self.H * self.B, m * self.L, high - low).zero_()
        dropout = self.sizes.dropout > 0
        return Chunk(
            q=self.new(one),
            o=self.new(one),
            y=self.new(one),
            a=self.new(*one[:3], self.w.b_1.shape[1]),
            stats=self.new(4, *one[:3], 1),
            p=p,
            noise=torch.zeros_like(p) if dropout else self.new(0),
            drops=self.new(2, *one) if dropout else self.new(0),
        )

    def layer(self, chunk: Chunk, first: int, t: int, l: int) -> None:
        """Layer l of step t: attention to the keys of earlier steps, then the feed-forward block."""
        w, i, h, y = self.w, t - first, self.x[l, t], chunk.y[l, t - first]
        if l:
            z, chunk.stats[0, l, i], chunk.stats[1, l, i] = plain_norm(h)
            torch.addmm(w.b_q[l], z, w.w_q[l].t(), out=chunk.q[l, i])
        low, high = self.keys_of_step(t)
        if low < high:
            self.attend(chunk, first, t, l)
            attended = torch.addmm(w.b_o[l], chunk.o[l, i], w.w_o[l].t())
            torch.add(self.drop(attended, chunk, 0, l, i), h, out=y)
        else:  # the first step of all has nothing to read
            y.copy_(h)
            chunk.o[l, i].zero_()
        z, chunk.stats[2, l, i], chunk.stats[3, l, i] = plain_norm(y)
        torch.addmm(w.b_1[l], z, w.w_1[l].t(), out=chunk.a[l, i])
        f = torch.addmm(w.b_2[l], self.activate(chunk.a[l, i]), w.w_2[l].t())
        torch.add(self.drop(f, chunk, 1, l, i), y, out=self.x[l + 1, t])

    def attend(self, chunk: Chunk, first: int, t: int, l: int) -> None:
        """Write weights and attended values of step t, layer l."""
        low, high = self.keys_of_step(t)
        count = high - low
        q = self.by_head(chunk.q[l, t - first])
        torch.add(q, self.w.u[l][:, None], out=self.with_u)
        scores = torch.baddbmm(self.w.s[l][:, None, -count:], q, self.table_t[l][:, :, -count:])
        scores = scores.view(self.H * self.B, 1, count)
        p = scores.baddbmm_(self.with_u.view(-1, 1, self.D), self.keys_t[:, :, low:high]).softmax(-1)
        row, window = self.place(first, t, l)
        chunk.p[:, row : row + 1, window] = p
        if self.sizes.dropout:
            noise = noise_like(p.view(self.B, self.H, 1, count), self.sizes.dropout)
            noise = noise.transpose(0, 1).reshape(p.shape)  # drawn in the order of the plain loop
            chunk.noise[:, row : row + 1, window] = noise
            p = p * noise
        o = torch.bmm(p, self.values[:, low:high])
        self.by_head(chunk.o[l, t - first]).copy_(o.view(self.H, self.B, self.D))

    def drop(self, x: Tensor, chunk: Chunk, which: int, l: int, i: int) -> Tensor:
        """Dropout on the attention's (0) or the feed-forward block's (1) output, the mask kept."""
        if not self.sizes.dropout:
            return x
        chunk.drops[which, l, i] = noise_like(x, self.sizes.dropout)
        return x * chunk.drops[which, l, i]

    def remember(self, t: int) -> None:
        """The memory of step t, its key and its value."""
        m = torch.mv(self.x[:, t].reshape(self.L + 1, -1).t(), self.w.mix).view(self.B, self.d)
        self.m[t] = m
        if self.sizes.norm_memory:
            m, self.m_stats[0, t], self.m_stats[1, t] = plain_norm(m)
        key, value = torch.addmm(self.w.b_kv, m, self.w.w_kv.t()).chunk(2, dim=1)
        now = self.sizes.past + t
        self.keys_t.view(self.H, self.B, self.D, -1)[..., now] = self.by_head(key.contiguous())
        self.values.view(self.H, self.B, -1, self.D)[:, :, now] = self.by_head(value.contiguous())
