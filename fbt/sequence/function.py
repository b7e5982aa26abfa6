r"""The loop of the shared-KV body as one autograd Function.

Plain autograd records every operation of every step, and at every step computes a
gradient of every weight: a product with few rows. Here forward runs the loop
unrecorded and keeps what backward needs. Backward runs the loop in reverse for the
gradients of activations only; a weight's gradient is one matrix product over all
steps of a chunk.

Layers are counted from 0: $X[l]$ is the input of layer $l$, $X[L]$ the top. Forward,
at step $t$ and layer $l$, from $x = X[l, t]$ to $x' = X[l + 1, t]$:

$$
q &= W_q \, n(x) + b_q \\
p &= \mathrm{softmax}((q + u) K^\top + q E^\top + s) \\
o &= p V \\
y &= x + W_o \, o + b_o \\
a &= W_1 \, n(y) + b_1 \\
x' &= y + W_2 \, \mathrm{act}(a) + b_2
$$

Backward, with $t$ and $l$ descending; $g$ is the gradient of the loss with respect to
$x'$ and becomes that of $x$:

$$
da &= (g W_2) \, \mathrm{act}'(a) \\
g &\leftarrow g + N(da \, W_1; y) \\
do &= g W_o \\
ds &= p \, (do \, V^\top - \textstyle\sum p \, do \, V^\top) \\
dq &= ds \, K + ds \, E \\
g &\leftarrow g + N(dq \, W_q; x) + w_l \, dm
$$

$n$ is the normalisation without gain and bias, $N$ its backward. Gains, biases and
$1 / \sqrt D$ are folded into the weights by `fbt.folding.fold`, in plain autograd.
$dm$ comes from the key and the value of the step. $dK_t$ and $dV_t$ sum what all
later steps contribute that read them: step by step for those of the same chunk, and
in one product for each later chunk.
"""

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fbt._modes import without_autocast
from fbt.sequence.backward import Backward
from fbt.sequence.engine import Engine
from fbt.sequence.forward import Forward, prepare, results
from fbt.sequence.layout import Chunk, Outputs, Sizes, Weights, round_matrices


class WholeSequence(torch.autograd.Function):
    """All steps and layers of a body, computed by an engine."""

    @staticmethod
    def forward(
        ctx: Any,
        engine: type[Engine],
        sizes: Sizes,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        """Run the loop unrecorded and save what backward needs.

        Args:
            ctx: autograd's context.
            engine: computes the steps.
            sizes: sizes and options.
            x: the inputs [T, B, d].
            keys: carried in, [HB, P, D].
            values: carried in, [HB, P, D].
            weights: the fields of `Weights`.

        Returns:
            The top [T, B, d], and the newest keys and values [B, H, J, D].
        """
        # Backward treats rounding as the identity.
        rounded = round_matrices(Weights(*weights), sizes.matrices)
        prepared = prepare(engine, rounded)
        loop = Forward(engine, sizes, prepared, x, keys, values)
        chunks, outputs = loop.run(), loop.outputs
        ctx.engine, ctx.sizes, ctx.n_chunks = engine, sizes, len(chunks)
        ctx.set_materialize_grads(False)
        saved = (tensor for chunk in chunks for tensor in chunk)
        ctx.save_for_backward(*outputs, *rounded, *saved)
        return results(outputs, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Run the loop in reverse; a second derivative raises a RuntimeError."""
        refuse_second_derivative()
        saved = iter(ctx.saved_tensors)
        outputs = Outputs(*islice(saved, len(Outputs._fields)))
        weights = Weights(*islice(saved, len(Weights._fields)))
        chunks = [
            Chunk(*islice(saved, len(Chunk._fields))) for _ in range(ctx.n_chunks)
        ]
        names = ("x", "keys", "values", *Weights._fields)
        needed = zip(names, ctx.needs_input_grad[2:], strict=True)
        wanted = {name for name, is_needed in needed if is_needed}
        loop = Backward(ctx.engine, ctx.sizes, weights, outputs, chunks, wanted)
        with without_autocast(outputs.x.device.type):
            gradients = loop.run(*grads)
        return (
            None,
            None,
            *(gradients[name] if name in wanted else None for name in names),
        )


def refuse_second_derivative() -> None:
    """Raise a RuntimeError in a backward that is to be differentiated itself."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            'backends "sequence", "native" and "triton" have no second '
            'derivative; set backend="reference" for that'
        )
