"""The whole-sequence loop forward, unrecorded: it keeps what `Backward` needs, chunk by chunk."""

import torch
from torch import Tensor

from fbt.sequence.parts import Chunk, Loop, Sizes, Weights, noise_, plain_norm


class Forward(Loop):
    """The loop forward; its buffers belong to one call."""

    def __init__(
        self, sizes: Sizes, weights: Weights, x: Tensor, keys: Tensor, values: Tensor, room: int = 0
    ) -> None:
        super().__init__(sizes, weights, x.shape[0], x.shape[1])
        total = max(room, sizes.past + self.T)
        self.x = self.new(self.L + 1, self.T, self.B, self.d)
        self.x[0] = x
        self.m, self.m_stats = self.new(self.T, self.B, self.d), self.new(2, self.T, self.B, 1)
        self.values = self.new(self.H * self.B, total, self.D)
        self.keys_t = self.turn(torch.empty_like(self.values))  # a step multiplies by the keys' transpose
        self.keys_t[:, :, : sizes.past], self.values[:, : sizes.past] = keys.mT, values
        # A product with few rows is up to twice as fast where the matrix lies as [in, out].
        turned = ("w_q", "w_o", "w_1", "w_2", "w_kv")
        self.turned = self.w._replace(**{name: getattr(weights, name).mT.contiguous() for name in turned})
        self.table_t = weights.table.mT
        self.with_u = self.new(self.H, self.B, self.D)

    def run(self) -> list[Chunk]:
        """Run all steps; return what backward needs, chunk by chunk, if there may be one."""
        kept = []
        for first, stop in self.chunks:
            # The next chunk may write over one that no backward will see.
            chunk = self.room(first, stop, again=self.sizes.recompute or not self.sizes.keep)
            z, chunk.stats[0, 0], chunk.stats[1, 0] = plain_norm(self.x[0, first:stop])
            rows = (stop - first) * self.B  # the first layer's queries need no loop
            torch.addmm(
                self.w.b_q[0], z.view(rows, self.d), self.turned.w_q[0], out=chunk.q[0].view(rows, self.d)
            )
            if self.sizes.dropout:
                chunk = self.draw(chunk, first, stop)
            self.steps(chunk, first, stop)
            if self.sizes.recompute:
                empty = self.new(0)
                chunk = chunk._replace(q=empty, o=empty, y=empty, a=empty, stats=empty, p=empty)
            if self.sizes.keep:
                kept.append(chunk)
        return kept

    def draw(self, chunk: Chunk, first: int, stop: int) -> Chunk:
        """Draw all masks of a chunk, in the order of the plain loop: step by step, layer by layer."""
        chunk = chunk._replace(noise=torch.zeros_like(chunk.p), drops=self.new(2, *chunk.y.shape))
        for t in range(first, stop):
            low, high = self.keys_of_step(t)
            for l in range(self.L):
                if low < high:
                    row, window = self.place(first, t, l)
                    noise = self.new(self.B, self.H, high - low)
                    noise = noise_(noise, self.sizes.dropout).transpose(0, 1).flatten(0, 1)
                    chunk.noise[:, row, window] = noise
                    noise_(chunk.drops[0, l, t - first], self.sizes.dropout)
                noise_(chunk.drops[1, l, t - first], self.sizes.dropout)
        return chunk

    def steps(self, chunk: Chunk, first: int, stop: int) -> None:
        """Run the steps of a chunk, one after another."""
        for t in range(first, stop):
            for l in range(self.L):
                self.layer(chunk, first, t, l)
            self.remember(t)

    def layer(self, chunk: Chunk, first: int, t: int, l: int) -> None:
        """Layer l of step t: attention to the keys of earlier steps, then the feed-forward block."""
        w, i, h, y = self.turned, t - first, self.x[l, t], chunk.y[l, t - first]
        if l:
            z, chunk.stats[0, l, i], chunk.stats[1, l, i] = plain_norm(h)
            torch.addmm(w.b_q[l], z, w.w_q[l], out=chunk.q[l, i])
        low, high = self.keys_of_step(t)
        if low < high:
            self.attend(chunk, first, t, l)
            attended = torch.addmm(w.b_o[l], chunk.o[l, i], w.w_o[l])
            torch.add(self.drop(attended, chunk, 0, l, i), h, out=y)
        else:  # the first step of all has nothing to read
            y.copy_(h)
            chunk.o[l, i].zero_()
        z, chunk.stats[2, l, i], chunk.stats[3, l, i] = plain_norm(y)
        torch.addmm(w.b_1[l], z, w.w_1[l], out=chunk.a[l, i])
        f = torch.addmm(w.b_2[l], self.activate(chunk.a[l, i]), w.w_2[l])
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
            p = p * chunk.noise[:, row : row + 1, window]
        o = torch.bmm(p, self.values[:, low:high])
        self.by_head(chunk.o[l, t - first]).copy_(o.view(self.H, self.B, self.D))

    def drop(self, x: Tensor, chunk: Chunk, which: int, l: int, i: int) -> Tensor:
        """Dropout on the attention's (0) or the feed-forward block's (1) output."""
        return x * chunk.drops[which, l, i] if self.sizes.dropout else x

    def remember(self, t: int) -> None:
        """The memory of step t, its key and its value."""
        m = torch.mv(self.x[:, t].reshape(self.L + 1, -1).t(), self.w.mix).view(self.B, self.d)
        self.m[t] = m
        if self.sizes.norm_memory:
            m, self.m_stats[0, t], self.m_stats[1, t] = plain_norm(m)
        key, value = torch.addmm(self.w.b_kv, m, self.turned.w_kv).chunk(2, dim=1)
        now = self.sizes.past + t
        self.keys_t.view(self.H, self.B, self.D, -1)[..., now] = self.by_head(key.contiguous())
        self.values.view(self.H, self.B, -1, self.D)[:, :, now] = self.by_head(value.contiguous())
