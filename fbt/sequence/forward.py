"""The whole-sequence loop forward, unrecorded: it keeps what `Backward` needs, chunk by chunk."""

from typing import NamedTuple

import torch
from torch import Tensor

from fbt.attention import dropout_mask_
from fbt.sequence.parts import (
    Chunk,
    Loop,
    Sizes,
    Views,
    Weights,
    of_layers,
    plain_norm,
    turned,
)


class Step(NamedTuple):
    """What a step reads and writes, layer by layer: views made at once, since each one costs like a sum."""

    x: Views  # L + 1 times [B, d], the inputs of the layers and the top
    q: Views  # [B, d]
    q_heads: Views  # the same as [H, B, D]
    o: Views  # [B, d]
    o_heads: Views  # [H, B, D]
    y: Views  # [B, d]
    a: Views  # [B, F]
    p: Views  # [HB, 1, keys]
    noise: Views  # like p, with dropout
    drops: tuple[Views, ...]  # [B, d] of both outputs of a layer, with dropout
    s: Views  # [H, 1, keys], the terms of the relative distances
    table: Views  # [H, D, keys]
    keys: Tensor  # [HB, D, keys]
    values: Tensor  # [HB, keys, D]


class Forward(Loop):
    """The loop forward; its buffers belong to one call."""

    def __init__(
        self,
        sizes: Sizes,
        weights: Weights,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        room: int = 0,
    ) -> None:
        super().__init__(sizes, weights, x.shape[0], x.shape[1])
        total = max(room, sizes.past + self.T)
        self.x = self.new(self.L + 1, self.T, self.B, self.d)
        self.x[0] = x
        self.m = self.new(self.T, self.B, self.d)
        self.values = self.new(self.H * self.B, total, self.D)
        # a step multiplies by the keys' transpose
        self.keys_t = self.turn(torch.empty_like(self.values))
        self.keys_t[:, :, : sizes.past], self.values[:, : sizes.past] = (
            keys.mT,
            values,
        )
        # A product with few rows is up to twice as fast where the matrix lies as [in,
        # out].
        names = ("w_q", "w_o", "w_1", "w_2", "w_kv")
        self.turned = self.w._replace(
            **{name: turned(getattr(self.w, name)) for name in names}
        )
        self.layers = of_layers(self.turned)
        self.u = self.w.u[:, :, None].unbind()  # [H, 1, D]
        self.with_u = self.new(self.H, self.B, self.D)
        self.with_u_rows = self.with_u.view(-1, 1, self.D)

    def run(self) -> list[Chunk]:
        """Run all steps; return what backward needs, chunk by chunk, if there may be one."""
        kept = []
        for first, stop in self.chunks:
            # The next chunk may write over one that no backward will see.
            chunk = self.room(
                first, stop, again=self.sizes.recompute or not self.sizes.keep
            )
            # the first layer's queries need no loop
            rows = ((stop - first) * self.B, self.d)
            z = plain_norm(self.x[0, first:stop])[0]
            torch.addmm(
                self.w.b_q[0],
                z.view(rows),
                self.turned.w_q[0],
                out=chunk.q[0].view(rows),
            )
            if self.sizes.dropout:
                chunk = self.draw(chunk, first, stop)
            self.steps(chunk, first, stop)
            if self.sizes.recompute:
                empty = self.new(0)
                chunk = chunk._replace(q=empty, o=empty, y=empty, a=empty, p=empty)
            if self.sizes.keep:
                kept.append(chunk)
        return kept

    def draw(self, chunk: Chunk, first: int, stop: int) -> Chunk:
        """Draw all masks of a chunk, in the order of the plain loop: step by step, layer by layer."""
        chunk = chunk._replace(
            noise=torch.zeros_like(chunk.p), drops=self.new(2, *chunk.y.shape)
        )
        dropout = self.sizes.dropout, self.sizes.generator
        for t in range(first, stop):
            for l, noise in enumerate(self.step_of_scores(chunk.noise, first, t)):
                if noise.shape[2]:
                    drawn = dropout_mask_(
                        self.new(self.B, self.H, 1, noise.shape[2]), *dropout
                    )
                    noise.copy_(drawn.transpose(0, 1).flatten(0, 1))
                    dropout_mask_(chunk.drops[0, l, t - first], *dropout)
                dropout_mask_(chunk.drops[1, l, t - first], *dropout)
        return chunk

    def steps(self, chunk: Chunk, first: int, stop: int) -> None:
        """Run the steps of a chunk, one after another."""
        for t in range(first, stop):
            step = self.step(chunk, first, t)
            for l in range(self.L):
                self.layer(step, l)
            self.remember(t)

    def step(self, chunk: Chunk, first: int, t: int) -> Step:
        """Views of what step t reads and writes."""
        i, (low, high) = t - first, self.keys_of_step(t)
        newest = self.w.s.shape[2] + low - high
        q, o = (x[:, i] for x in (chunk.q, chunk.o))
        by_head = (self.L, self.B, self.H, self.D)
        dropout = self.sizes.dropout > 0
        return Step(
            x=self.x[:, t].unbind(),
            q=q.unbind(),
            q_heads=q.view(by_head).transpose(1, 2).unbind(),
            o=o.unbind(),
            o_heads=o.view(by_head).transpose(1, 2).unbind(),
            y=chunk.y[:, i].unbind(),
            a=chunk.a[:, i].unbind(),
            p=self.step_of_scores(chunk.p, first, t),
            noise=self.step_of_scores(chunk.noise, first, t) if dropout else (),
            drops=tuple(drops.unbind() for drops in chunk.drops[:, :, i].unbind())
            if dropout
            else (),
            s=self.w.s[:, :, None, newest:].unbind(),
            table=self.w.table[:, :, newest:].mT.unbind(),
            keys=self.keys_t[:, :, low:high],
            values=self.values[:, low:high],
        )

    def layer(self, step: Step, l: int) -> None:
        """Layer l: attention to the keys of earlier steps, then the feed-forward block."""
        w, x, y = self.layers[l], step.x[l], step.y[l]
        if l:
            torch.addmm(w.b_q, plain_norm(x)[0], w.w_q, out=step.q[l])
        if step.keys.shape[2]:
            self.attend(step, l)
            attended = torch.addmm(w.b_o, step.o[l], w.w_o)
            torch.add(
                attended * step.drops[0][l] if step.drops else attended, x, out=y
            )
        else:  # the first step of all has nothing to read
            y.copy_(x)
            step.o[l].zero_()
        torch.addmm(w.b_1, plain_norm(y)[0], w.w_1, out=step.a[l])
        f = torch.addmm(w.b_2, self.activate(step.a[l]), w.w_2)
        torch.add(f * step.drops[1][l] if step.drops else f, y, out=step.x[l + 1])

    def attend(self, step: Step, l: int) -> None:
        """Write weights and attended values of layer l."""
        torch.add(step.q_heads[l], self.u[l], out=self.with_u)
        scores = torch.baddbmm(step.s[l], step.q_heads[l], step.table[l]).view(
            step.p[l].shape
        )
        p = scores.baddbmm_(self.with_u_rows, step.keys).softmax(-1)
        step.p[l].copy_(p)
        o = torch.bmm(p * step.noise[l] if step.noise else p, step.values)
        step.o_heads[l].copy_(o.view(self.H, self.B, self.D))

    def remember(self, t: int) -> None:
        """The memory of step t, its key and its value."""
        m = torch.mv(self.x[:, t].reshape(self.L + 1, -1).t(), self.w.mix).view(
            self.B, self.d
        )
        self.m[t] = m
        if self.sizes.norm_memory:
            m = plain_norm(m)[0]
        both = torch.addmm(self.w.b_kv, m, self.turned.w_kv).view(
            self.B, 2, self.H, self.D
        )
        now = self.sizes.past + t
        self.keys_t[:, :, now], self.values[:, now] = both.permute(
            1, 2, 0, 3
        ).flatten(1, 2)
