"""The loop in reverse: an engine's steps, then one product per matrix and chunk."""

import torch
from torch import Tensor

from fbt.sequence.engine import Engine
from fbt.sequence.layout import (
    Buffers,
    Chunk,
    ChunkGradients,
    Layout,
    MatrixInputs,
    Outputs,
    SequenceGradients,
    Sizes,
    Weights,
    contiguous,
)
from fbt.sequence.recompute import recompute_chunk


class Backward:
    """The loop in reverse; its buffers belong to one call.

    Args:
        engine: computes the steps of a chunk.
        sizes: as in `Forward`.
        weights: as in `Forward`.
        outputs: what `Forward` computed.
        chunks: what its `run` returned.
        wanted: names of the gradients that are needed: "x", "keys", "values" or
            fields of `Weights`.
    """

    def __init__(
        self,
        engine: type[Engine],
        sizes: Sizes,
        weights: Weights,
        outputs: Outputs,
        chunks: list[Chunk],
        wanted: set[str],
    ) -> None:
        self.weights = contiguous(weights)
        _, steps, batch, _ = outputs.x.shape
        self.layout = Layout(
            sizes,
            self.weights,
            steps,
            batch,
            engine.chunk_for(batch),
            engine.keeps_weights,
        )
        values = outputs.values
        self.outputs = outputs._replace(
            keys=outputs.keys.contiguous(),
            values=values.mT.contiguous().mT
            if engine.transposed
            else values.contiguous(),
        )
        self.saved, self.wanted = chunks, wanted
        self.engine = engine(self.layout, self.weights)
        self.buffers, self.recomputed = (Buffers(weights.b_q) for _ in range(2))
        self.gradients = {
            name: torch.zeros_like(tensor)
            for name, tensor in weights._asdict().items()
        }

    def run(
        self, d_top: Tensor | None, d_keys: Tensor | None, d_values: Tensor | None
    ) -> dict[str, Tensor]:
        """Return all gradients that are needed, and others, by name.

        Args:
            d_top: gradient of the top outputs [T, B, d]; None is zero.
            d_keys: gradient of the state's keys [B, H, J, D]; None is zero.
            d_values: gradient of the state's values [B, H, J, D]; None is zero.
        """
        total = self.sequence_gradients(d_top, d_keys, d_values)
        for steps, saved in zip(
            reversed(self.layout.chunks), reversed(self.saved), strict=True
        ):
            self.chunk(steps, saved, total)
        # du = dq - ds E, which needs no product with the keys.
        through_table = torch.einsum(
            "lhr,lhrd->lhd", self.gradients["s"], self.weights.table
        )
        return self.gradients | {
            "x": total.x,
            "keys": total.keys[:, : self.layout.past],
            "values": total.values[:, : self.layout.past],
            "u": self.gradients["b_q"].view_as(self.weights.u) - through_table,
        }

    def chunk(self, steps: range, saved: Chunk, total: SequenceGradients) -> None:
        """Differentiate a chunk: its steps, then the weights."""
        if self.layout.sizes.recompute:
            saved = recompute_chunk(
                self.layout, self.weights, self.outputs, steps, saved, self.recomputed
            )
        grads = self.chunk_gradients(steps, saved)
        inputs = self.engine.backward_chunk(steps, self.outputs, saved, grads, total)
        self.weight_gradients(steps, grads, inputs)

    def weight_gradients(
        self, steps: range, grads: ChunkGradients, inputs: MatrixInputs
    ) -> None:
        """Add a chunk's part of each matrix gradient: a product over all steps."""
        outputs = {"w_q": grads.q, "w_o": grads.y, "w_1": grads.a, "w_2": grads.f}
        for name, gradient in outputs.items():
            if name in self.wanted:
                rows, z = gradient.flatten(1, 2), getattr(inputs, name).flatten(1, 2)
                self.engine.add_products(self.gradients[name], rows, z)
        kv = grads.kv.flatten(0, 1)
        if "w_kv" in self.wanted:
            z = inputs.w_kv.flatten(0, 1)
            self.engine.add_products(self.gradients["w_kv"][None], kv[None], z[None])
        self.gradients["b_kv"] += kv.sum(0)
        if "mix" in self.wanted:
            x = self.outputs.x[:, steps.start : steps.stop].flatten(1)
            self.gradients["mix"] += torch.mv(x, grads.m.view(-1))

    def sequence_gradients(
        self, d_top: Tensor | None, d_keys: Tensor | None, d_values: Tensor | None
    ) -> SequenceGradients:
        """Return the sums that an engine adds to; `run` has the arguments."""
        x, keys = self.outputs.x[0], self.outputs.keys
        need_tables = bool(self.wanted & {"table", "s", "u"})
        total = SequenceGradients(
            top=torch.zeros_like(x) if d_top is None else d_top.contiguous(),
            x=self.layout.new(x.shape),
            keys=torch.zeros_like(keys),
            values=torch.zeros_like(keys),
            b_q=self.gradients["b_q"],
            b_o=self.gradients["b_o"],
            b_1=self.gradients["b_1"],
            b_2=self.gradients["b_2"],
            table=self.gradients["table"] if need_tables else None,
            s=self.gradients["s"] if need_tables else None,
        )
        for gradient, of_state in ((total.keys, d_keys), (total.values, d_values)):
            if of_state is not None:
                newest = of_state.transpose(0, 1).flatten(0, 1)
                gradient[:, -newest.shape[1] :] = newest
        return total

    def chunk_gradients(self, steps: range, saved: Chunk) -> ChunkGradients:
        """Allocate the gradients of a chunk; what no step will write is zero."""
        layout, new, p, m = self.layout, self.buffers.get, saved.p, len(steps)
        rows = p.shape[:2] if layout.keeps_weights else (0, 0)
        if layout.sizes.dropout and layout.keeps_weights:
            p = p * saved.attention_dropout
        grads = ChunkGradients(
            p=p,
            with_u=new("with_u", *rows, layout.D),
            scores=new("scores", *rows, p.shape[2]),
            attended=new("attended", *rows, layout.D),
            f=new("f", *saved.y.shape),
            y=new("y", *saved.y.shape),
            q=new("q", *saved.y.shape),
            a=new("a", *saved.a.shape),
            kv=new("kv", m, layout.B, 2 * layout.d),
            m=new("m", m, layout.B, layout.d),
        )
        if layout.slides(steps):
            grads.scores.zero_()
        if layout.sizes.oldest is not None:  # rows that begin attend to nothing
            for gradient in (grads.y, grads.q, grads.attended):
                gradient.zero_()
        if layout.starts_empty(steps):
            for gradient in (
                grads.y[:, 0],
                grads.q[:, 0],
                grads.attended[:, : layout.L],
            ):
                gradient.zero_()
        return grads
