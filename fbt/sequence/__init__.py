r"""The whole sequence as one autograd Function: the loop of the shared-KV body without autograd inside it.

Plain autograd records every operation of every step and makes, at every step, a
gradient of every weight: an outer product of a few rows, $2 T L$ times. Here forward
runs the loop unrecorded and keeps what backward needs; backward runs the loop once
more in reverse for the gradients of activations only, and each weight's gradient is
one matrix product per chunk of steps, over all the steps of the chunk.

Layer $l$ is counted from 0 here: $X[l]$ is its input, $X[L]$ the top. B sequences, H
heads, and HB = H B of them side by side, heads first. P steps are carried in, J = P +
T is the number of keys, C the steps of a chunk.

Forward, at step $t$ and layer $l$, from $x = X[l, t]$ to $x' = X[l + 1, t]$:

$$
q &= W_q \, n(x) + b_q \\
p &= \mathrm{softmax}((q + u) K^\top + q E^\top + s) \\
o &= p V \\
y &= x + W_o \, o + b_o \\
a &= W_1 \, n(y) + b_1 \\
x' &= y + W_2 \, \mathrm{act}(a) + b_2
$$

Backward, $t$ and $l$ descending, with $g$ the gradient of the loss by $x'$, and at
the end by $x$:

$$
da &= (g W_2) \, \mathrm{act}'(a) \\
g &\leftarrow g + N(da \, W_1; y) \\
do &= g W_o \\
ds &= p \, (do \, V^\top - \textstyle\sum p \, do \, V^\top) \\
dq &= ds \, K + ds \, E \\
g &\leftarrow g + N(dq \, W_q; x) + w_l \, dm
$$

$n$ is the plain normalisation (no gain, no bias) and $N$ its backward; gains, biases
and $1 / \sqrt D$ are folded into the weights by `fbt.engines.fold`, in plain
autograd. $dm$ comes from the keys and values of the step: $dK_t$ and $dV_t$ gather
$ds$ and $do$ of every later step that saw it, from later steps of the same chunk one
by one, from later chunks by one product for the chunk.
"""

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fbt.sequence.backward import Backward
from fbt.sequence.forward import Forward
from fbt.sequence.native import NativeBackward, NativeForward
from fbt.sequence.parts import Chunk, Sizes, Weights


class WholeSequence(torch.autograd.Function):
    """All steps and layers, from x [T, B, d] and carried keys and values [HB, P, D]."""

    @staticmethod
    def forward(
        ctx: Any, sizes: Sizes, x: Tensor, keys: Tensor, values: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        """Run the loop unrecorded and keep what backward needs."""
        loop = (NativeForward if sizes.native else Forward)(
            sizes, Weights(*rest), x, keys, values
        )
        chunks = loop.run()
        ctx.sizes, ctx.chunks = sizes, len(chunks)
        ctx.set_materialize_grads(False)
        kept = (tensor for chunk in chunks for tensor in chunk)
        ctx.save_for_backward(loop.x, loop.m, loop.keys_t, loop.values, *rest, *kept)
        state = [kept[:, -sizes.span :] for kept in (loop.keys_t.mT, loop.values)]
        state = [
            kept.unflatten(0, (sizes.heads, -1)).transpose(0, 1) for kept in state
        ]
        keys, values = (
            kept.clone(memory_format=torch.contiguous_format) for kept in state
        )
        return loop.x[-1].clone(), keys, values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Run the loop in reverse; a graph of it is refused."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                'backends "sequence" and "native" have no second derivative; set backend="reference" for that'
            )
        saved = iter(ctx.saved_tensors)
        outputs = list(islice(saved, 4))
        weights = Weights(*islice(saved, len(Weights._fields)))
        chunks = [
            Chunk(*islice(saved, len(Chunk._fields))) for _ in range(ctx.chunks)
        ]
        names = ("x", "keys", "values", *Weights._fields)
        want = {
            name
            for name, needed in zip(names, ctx.needs_input_grad[1:], strict=True)
            if needed
        }
        backward = NativeBackward if ctx.sizes.native else Backward
        found = backward(ctx.sizes, weights, outputs, chunks, want).run(*grads)
        return None, *(found[name] if name in want else None for name in names)
