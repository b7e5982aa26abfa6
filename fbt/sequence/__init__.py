r"""The whole sequence as one autograd Function: the loop of the shared-KV body without autograd inside it.

Plain autograd records every operation of every step and makes, at every step, a gradient of every weight:
an outer product of a few rows, $2 T L$ times. Here forward runs the loop unrecorded and keeps what backward
needs; backward runs the loop once more in reverse for the gradients of activations only, and each weight's
gradient is one matrix product per chunk of steps, over all the steps of the chunk.

Layer $l$ is counted from 0 here: $X[l]$ is its input, $X[L]$ the top. B sequences, H heads, and HB = H B of
them side by side, heads first. P steps are carried in, J = P + T is the number of keys, C the steps of a
chunk.

Forward, at step $t$ and layer $l$, from $x = X[l, t]$ to $x' = X[l + 1, t]$:

$$
q &= W_q \, n(x) + b_q \\
p &= \mathrm{softmax}((q + u) K^\top + q E^\top + s) \\
o &= p V \\
y &= x + W_o \, o + b_o \\
a &= W_1 \, n(y) + b_1 \\
x' &= y + W_2 \, \mathrm{act}(a) + b_2
$$

Backward, $t$ and $l$ descending, with $g$ the gradient of the loss by $x'$, and at the end by $x$:

$$
da &= (g W_2) \, \mathrm{act}'(a) \\
g &\leftarrow g + N(da \, W_1; y) \\
do &= g W_o \\
ds &= p \, (do \, V^\top - \textstyle\sum p \, do \, V^\top) \\
dq &= ds \, K + ds \, E \\
g &\leftarrow g + N(dq \, W_q; x) + w_l \, dm
$$

$n$ is the plain normalisation (no gain, no bias) and $N$ its backward; gains, biases and $1 / \sqrt D$ are
folded into the weights by `fold`, in plain autograd. $dm$ comes from the keys and values of the step: $dK_t$
and $dV_t$ gather $ds$ and $do$ of every later step that saw it, from later steps of the same chunk one by
one, from later chunks by one product for the chunk.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fbt._checks import check_float_tensor
from fbt.sequence.backward import Backward
from fbt.sequence.forward import Forward
from fbt.sequence.native import NativeBackward, NativeForward
from fbt.sequence.parts import Chunk, Sizes, Weights, fold
from fbt.state import State

if TYPE_CHECKING:
    from fbt.shared_kv import SharedKVBody


def run_sequence(body: "SharedKVBody", x: Tensor, state: State | None, native: bool) -> tuple[Tensor, State]:
    """Run a SharedKVBody over x [B, T, d], with the steps in C++ if `native`; the same numbers as its loop.

    Returns:
        The top layer's outputs [B, T, d] and the state for the next block.
    """
    batch, length, _ = x.shape
    past = 0 if state is None else state.length
    sizes = sizes_of(body, past, native, dropout=body.layers[0].dropout.p if body.training else 0.0)
    keys, values = carried(state, x.new_empty(sizes.heads * batch, 0, body.d_model // sizes.heads))
    with without_autocast(x.device.type) as autocast:  # the buffers of the loop have one dtype
        weights = fold(body, min(body.span, past + length - 1))
        given, dtype = [x.transpose(0, 1), keys, values], weights.b_q.dtype
        if autocast:
            given = [tensor.to(dtype) for tensor in given]
        if any(tensor.dtype != dtype for tensor in given):
            got = f"{x.dtype}, {keys.dtype} and {values.dtype}"
            raise TypeError(f"x, keys and values must be {dtype} like the weights, got {got}")
        top, keys, values = WholeSequence.apply(sizes, *given, *weights)
    return top.transpose(0, 1), State((keys,), (values,))


class Decoder:
    """Steps of a SharedKVBody one at a time, without gradients or dropout.

    The weights are folded once, and keys and values are written in place, into room for twice the span: a
    step copies nothing, and once per span the newest keys move to the front.

    Args:
        body: a SharedKVBody; later changes of its weights are not seen.
        state: what a forward pass returned; it stays as it is.
        native: run the steps in C++.
    """

    def __init__(self, body: "SharedKVBody", state: State, native: bool) -> None:
        sizes = sizes_of(body, state.length, native, dropout=0.0)._replace(keep=False)
        keys, values = carried(state, state.keys[0])
        x = keys.new_empty(1, state.batch_size, body.d_model)
        kind = NativeForward if native else Forward
        with torch.no_grad(), without_autocast(x.device.type):
            self.loop = kind(sizes, fold(body, body.span), x, keys, values, room=2 * body.span)

    @torch.no_grad()
    def step(self, x: Tensor) -> Tensor:
        """The top layer's output [B, d] for one more embedding x [B, d] per sequence.

        Raises:
            TypeError: x is not a floating-point tensor.
            ValueError: x has another shape.
        """
        check_float_tensor("x", x)
        loop, span = self.loop, self.loop.sizes.span
        if x.shape != loop.x.shape[2:]:
            raise ValueError(f"x must have shape {list(loop.x.shape[2:])}, got {list(x.shape)}")
        loop.x[0, 0] = x
        with without_autocast(x.device.type):
            loop.run()
        past = loop.sizes.past + 1
        if past == loop.values.shape[1]:
            loop.keys_t[:, :, :span] = loop.keys_t[:, :, span:].clone()
            loop.values[:, :span] = loop.values[:, span:].clone()
            past = span
        loop.sizes = loop.sizes._replace(past=past)
        return loop.x[-1, 0].clone()


@contextmanager
def without_autocast(device: str) -> Iterator[bool]:
    """A context in which operations keep the dtype of what they are given; yields whether they did not."""
    if not torch.amp.is_autocast_available(device):  # "meta", for one
        yield False
        return
    autocast = torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False):
        yield autocast


def carried(state: State | None, nothing: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a state as [HB, P, D], or twice `nothing`."""
    if state is None:
        return nothing, nothing
    keys, values = (kept[0].transpose(0, 1).flatten(0, 1) for kept in (state.keys, state.values))
    return keys, values


def sizes_of(body: "SharedKVBody", past: int, native: bool, dropout: float) -> Sizes:
    """What the loop needs to know of a body."""
    layer = body.layers[0]
    return Sizes(
        heads=layer.attention.n_heads,
        span=body.span,
        past=past,
        norm_memory=isinstance(body.memory.norm, torch.nn.LayerNorm),
        gelu=layer.feed_forward.activation is F.gelu,
        dropout=dropout,
        generator=layer.dropout._generator,
        recompute=body.recompute,
        native=native,
        keep=torch.is_grad_enabled(),
    )


class WholeSequence(torch.autograd.Function):
    """All steps and layers, from x [T, B, d] and carried keys and values [HB, P, D]."""

    @staticmethod
    def forward(
        ctx: Any, sizes: Sizes, x: Tensor, keys: Tensor, values: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        """Run the loop unrecorded and keep what backward needs."""
        loop = (NativeForward if sizes.native else Forward)(sizes, Weights(*rest), x, keys, values)
        chunks = loop.run()
        ctx.sizes, ctx.chunks = sizes, len(chunks)
        ctx.set_materialize_grads(False)
        kept = (tensor for chunk in chunks for tensor in chunk)
        ctx.save_for_backward(loop.x, loop.m, loop.keys_t, loop.values, *rest, *kept)
        state = [kept[:, -sizes.span :] for kept in (loop.keys_t.mT, loop.values)]
        state = [kept.unflatten(0, (sizes.heads, -1)).transpose(0, 1) for kept in state]
        keys, values = (kept.clone(memory_format=torch.contiguous_format) for kept in state)
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
        chunks = [Chunk(*islice(saved, len(Chunk._fields))) for _ in range(ctx.chunks)]
        names = ("x", "keys", "values", *Weights._fields)
        want = {name for name, needed in zip(names, ctx.needs_input_grad[1:], strict=True) if needed}
        backward = NativeBackward if ctx.sizes.native else Backward
        found = backward(ctx.sizes, weights, outputs, chunks, want).run(*grads)
        return None, *(found[name] if name in want else None for name in names)
