"""Choose an engine for a body with shared keys and values, and run it.

An engine of `fbt.sequence` takes folded weights (see `fbt.folding`). It runs over a
block of steps, or one step at a time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt import native
from fbt._checks import check_float_tensor
from fbt._modes import without_autocast
from fbt.feedback import FeedbackBody
from fbt.folding import active_dropout, fold, why_not_folded
from fbt.sequence.engine import Engine
from fbt.sequence.forward import Forward
from fbt.sequence.function import WholeSequence
from fbt.sequence.layout import Sizes
from fbt.sequence.native_engine import NativeEngine
from fbt.sequence.python_engine import PythonEngine
from fbt.sequence.triton_engine import TritonEngine
from fbt.state import State

# The fastest first; the last one computes all tensors.
ENGINES: dict[str, type[Engine]] = {
    "native": NativeEngine,
    "triton": TritonEngine,
    "sequence": PythonEngine,
}


def choose(body: FeedbackBody, x: Tensor) -> str | None:
    """Return the engine that backend="auto" takes for embeddings x [B, T, d].

    Returns:
        The first engine that can compute the body. None if there is none, or if the
        plain loop is faster: for a single step, and inside `torch.compile`.
    """
    if x.shape[1:2] == (1,) or torch.compiler.is_compiling() or why_not_folded(body):
        return None
    return first_for(x)


def first_for(x: Tensor) -> str:
    """Return the first engine that computes tensors like x.

    Warns, once per reason, if the native library is there but cannot be used.
    """
    *fast, last = ENGINES
    for name in fast:
        if (reason := ENGINES[name].why_not(x)) is None:
            return name
        native.warn_if_refused(reason)
    return last


def check(body: FeedbackBody, engine: str, x: Tensor) -> None:
    """Raise unless an engine can compute a body for tensors like x."""
    check_folded(body, engine)
    check_tensor(engine, x)


def check_folded(body: FeedbackBody, engine: str) -> None:
    """Raise a ValueError if a module of a body does more than its weights tell."""
    if (reason := why_not_folded(body)) is not None:
        raise ValueError(
            f'backend="{engine}" reads the weights of the layers without calling '
            f'them, but {reason}: use "reference", "stack" or "auto"'
        )


def check_tensor(engine: str, x: Tensor) -> None:
    """Raise unless an engine can compute tensors like x."""
    if (reason := ENGINES[engine].why_not(x)) is not None:
        raise reason


def run_sequence(
    body: FeedbackBody,
    x: Tensor,
    state: State | None,
    engine: str,
    recompute: bool,
    checked: bool = False,
) -> tuple[Tensor, State]:
    """Compute a body with one cache, with the numbers of its plain loop.

    Args:
        body: the body.
        x: embeddings [B, T, d].
        state: carried in, or None.
        engine: a key of `ENGINES`.
        recompute: keep only what cannot be recomputed in backward.
        checked: whether `why_not_folded` has returned None for this body.

    Returns:
        The top layer's outputs [B, T, d] and the state for the next block.

    Raises:
        ValueError: if a module of the body has hooks or was changed, or the engine
            does not compute on this device.
        TypeError: if x or the state do not have the dtype of the weights, or the
            engine does not compute in this dtype.
        RuntimeError: if the native library is not built or cannot be used.
    """
    batch, length, _ = x.shape
    past = 0 if state is None else state.length
    dropout = active_dropout(body.layers[0].dropout)
    sizes = sizes_of(body, past, dropout=dropout, recompute=recompute)
    none = x.new_empty(sizes.heads * batch, 0, body.d_model // sizes.heads)
    keys, values = (none, none) if state is None else keys_and_values(state)
    # The buffers of the loop have one dtype.
    with without_autocast(x.device.type) as autocast:
        if not checked:
            check_folded(body, engine)
        check_tensor(engine, body.relative[0].query_bias if autocast else x)
        weights = fold(body, min(body.span, past + length - 1))
        inputs, dtype = [x.transpose(0, 1), keys, values], weights.b_q.dtype
        if autocast:
            inputs = [tensor.to(dtype) for tensor in inputs]
        if any(tensor.dtype != dtype for tensor in inputs):
            got = f"{x.dtype}, {keys.dtype} and {values.dtype}"
            raise TypeError(
                f"x, keys and values must be {dtype} like the weights, got {got}"
            )
        top, keys, values = WholeSequence.apply(
            ENGINES[engine], sizes, *inputs, *weights
        )
    return top.transpose(0, 1), State((keys,), (values,))


class Decoder:
    """Computes a body with one cache step by step, without gradients or dropout.

    The weights are folded once. Keys and values are written in place, into buffers
    for twice the span: a step copies nothing, and once per span the newest keys move
    to the front.

    Args:
        body: the body; later changes of its weights have no effect.
        state: returned by a forward pass; it is not changed.
        engine: "sequence" or "native".

    Raises:
        ValueError: if a module of the body has hooks or was changed, or the engine
            does not compute on this device.
        TypeError: if the engine does not compute in this dtype.
        RuntimeError: if the native library is not built or cannot be used.
    """

    def __init__(self, body: FeedbackBody, state: State, engine: str) -> None:
        check(body, engine, state.keys[0])
        sizes = sizes_of(body, state.length, dropout=0.0, recompute=False)
        sizes = sizes._replace(needs_backward=False)
        keys, values = keys_and_values(state)
        x = keys.new_empty(1, state.batch_size, body.d_model)
        with torch.no_grad(), without_autocast(x.device.type):
            weights = fold(body, body.span)
            self.loop = Forward(
                ENGINES[engine], sizes, weights, x, keys, values, 2 * body.span
            )

    @torch.no_grad()
    def step(self, x: Tensor) -> Tensor:
        """Return the top layer's output [B, d] for one more embedding x [B, d].

        Raises:
            TypeError: if x is not a floating-point tensor.
            ValueError: if x has another shape.
        """
        check_float_tensor("x", x)
        layout, outputs = self.loop.layout, self.loop.outputs
        if x.shape != outputs.x.shape[2:]:
            raise ValueError(
                f"x must have shape {list(outputs.x.shape[2:])}, got {list(x.shape)}"
            )
        outputs.x[0, 0] = x
        with without_autocast(x.device.type):
            self.loop.run()
        layout.past += 1
        if layout.past == outputs.values.shape[1]:
            span = layout.past = layout.span
            for kv in (outputs.keys, outputs.values):
                kv[:, :span] = kv[:, span:].clone()
        return outputs.x[-1, 0].clone()


def keys_and_values(state: State) -> tuple[Tensor, Tensor]:
    """Return the keys and values of a state as [HB, P, D]."""
    keys, values = (
        cache[0].transpose(0, 1).flatten(0, 1) for cache in (state.keys, state.values)
    )
    return keys, values


def sizes_of(
    body: FeedbackBody, past: int, *, dropout: float, recompute: bool
) -> Sizes:
    """Return what an engine needs to know of a body besides its weights."""
    layer = body.layers[0]
    return Sizes(
        heads=body.n_heads,
        span=body.span,
        past=past,
        norm_memory=isinstance(body.memory.norm, nn.LayerNorm),
        gelu=layer.feed_forward.activation is F.gelu,
        dropout=dropout,
        generator=layer.dropout._generator,
        recompute=recompute,
        needs_backward=torch.is_grad_enabled(),
    )
