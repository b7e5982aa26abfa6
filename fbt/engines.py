"""Choose an engine for a body with shared keys and values, and run it.

An engine of `fbt.sequence` takes folded weights (see `fbt.folding`). It runs over a
block of steps, or one step at a time. Without gradients, weights are folded once and
used until they change, and a single step continues the cache of its state in place.
"""

import warnings
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt import native
from fbt._modes import autocast_dtype, without_autocast
from fbt.feedback import FeedbackBody
from fbt.folding import fold
from fbt.inspection import active_dropout, remembered, why_not_folded
from fbt.sequence.engine import Engine
from fbt.sequence.forward import Forward, prepare, results
from fbt.sequence.function import WholeSequence
from fbt.sequence.graphs import Recordings, Replayed
from fbt.sequence.layout import Sizes, Weights, round_matrices
from fbt.sequence.native_engine import NativeEngine
from fbt.sequence.python_engine import PythonEngine
from fbt.sequence.triton_engine import TritonEngine
from fbt.state import Cache, State, capacity_after
from fbt.visibility import oldest_steps, state_after

# The fastest first; the last one computes all tensors.
ENGINES: dict[str, type[Engine]] = {
    "native": NativeEngine,
    "triton": TritonEngine,
    "sequence": PythonEngine,
}


def build_native() -> Path:
    """Compile the native backend, if this version of torch has none yet.

    Takes seconds. From then on, in this and later processes, shared-KV models with
    backend="auto" use it on the CPU in float32 and float64, also to generate text. A
    damaged library is replaced. Before a new library is installed, another process
    loads it and compares its numbers with those of backend="sequence".

    With a CUDA device and Triton, the kernels of backend="triton" are checked and
    timed on the current device first, if they were not before. That takes minutes.
    "auto" uses them where they gave the numbers of "sequence" and were faster.

    Returns:
        The path of the library, in the folder `FBT_CACHE` or the user's cache folder.

    Raises:
        RuntimeError: if this is not Linux, there is no C++ compiler, the compiler
            fails, or the cache folder is relative or writable for others. The message
            says what to do.
        OSError: if the library cannot be written.
    """
    if torch.cuda.is_available():
        error = TritonEngine.why_not(torch.empty(0, 0, 1, device="cuda"))
        if error is not None:
            native.warn_if_refused(error)
    return native.build_native()


class Choice(NamedTuple):
    """What backend="auto" takes, and why."""

    engine: str | None  # None for the plain loop
    reason: str
    advice: str = ""  # how to make it faster
    warn: bool = False  # whether to say so without being asked


def choose(body: FeedbackBody, x: Tensor) -> Choice:
    """Return the engine that backend="auto" takes for embeddings x [B, T, d].

    It is the first one that can compute the body. For a single step with gradients
    the plain loop is faster. Under autocast, x is converted first, as in
    `run_sequence`.
    """
    if x.shape[1:2] == (1,) and torch.is_grad_enabled():
        return Choice(
            None,
            "one step with gradients is fastest in the loop",
            "without gradients, under torch.no_grad(), a step is faster",
        )
    if (reason := why_not_folded(body)) is not None:
        return Choice(
            None,
            f"{reason}, which the faster engines would skip: they read weights of "
            "modules without calling them",
            "remove it, or merge it into the weights, and training is several times "
            "as fast",
            warn=True,
        )
    if autocast_dtype(x.device.type) is not None:
        x = x[:0].to(body.relative[0].query_bias.dtype)
    return first_for(x)


def autocast_in(engine: str | None, x: Tensor) -> str:
    """Return what autocast changes in an engine's computation of x [B, T, d].

    Returns:
        A sentence; "" if autocast is off, or for the plain loop, whose operations it
        converts one by one.
    """
    autocast = autocast_dtype(x.device.type)
    if autocast is None or engine not in ENGINES:
        return ""
    if half := ENGINES[engine].half_for(x, autocast):
        return (
            f"Under autocast it multiplies by matrices in {half}; all else is in "
            f"{x.dtype}"
        )
    return f"It computes in {x.dtype} under autocast too"


def first_for(x: Tensor) -> Choice:
    """Return the first engine that computes tensors like x.

    Warns, once per reason, if the native library is there but cannot be used, or if
    the Triton kernels gave wrong numbers.
    """
    *fast, last = ENGINES
    errors = {}
    for name in fast:
        error = ENGINES[name].why_not_chosen(x)
        if error is None:
            return Choice(name, f"it is the fastest for {x.dtype} on {x.device}")
        native.warn_if_refused(error)
        errors[name] = error
    if x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16):
        return Choice(
            last,
            f"the model is in {x.dtype}, and the native loop computes in float32 or "
            "float64",
            "model.float() is faster on a CPU",
            warn=True,
        )
    if x.device.type == "cuda":
        return Choice(last, str(errors["triton"]))
    if isinstance(errors["native"], native.NotBuilt):
        return Choice(
            last,
            "the native library is not built",
            "call fbt.build_native() once, and it is about twice as fast",
        )
    return Choice(last, str(errors["native"]))


_warned: set[str] = set()  # the engines, and the reasons, it has warned about


def warn_once(choice: Choice) -> None:
    """Warn if the user has left the fast engines, once per process and engine."""
    name = choice.engine or "stack"
    if choice.warn and name not in _warned:
        _warned.add(name)
        warnings.warn(
            f'backend="auto" takes the slower {name!r}: '
            f"{choice.reason}. To change that: {choice.advice}. "
            "model.explain_backend(tokens) says what is used.",
            RuntimeWarning,
            stacklevel=9,  # the caller of a LanguageModel
        )


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
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    may_replay: bool = True,
) -> tuple[Tensor, State]:
    """Compute a body with one cache, with the numbers of its plain loop.

    Args:
        body: the body.
        x: embeddings [B, T, d].
        state: carried in, or None.
        engine: a key of `ENGINES`.
        recompute: keep only what cannot be recomputed in backward.
        checked: whether `why_not_folded` has returned None for this body.
        lengths: of the rows [B], or None; see `FeedbackBody.forward`.
        starts: of documents [B, T], or None.
        may_replay: whether to train as a CUDA graph where that is possible.

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
    oldest = oldest_steps(x, state, starts)
    sizes = sizes_of(body, past, oldest=oldest, dropout=dropout, recompute=recompute)
    if lengths is not None:  # the last steps of some rows may be far back
        sizes = sizes._replace(kept=past + length)
    # The buffers of the loop have one dtype.
    with without_autocast(x.device.type) as autocast:
        if not checked:
            check_folded(body, engine)
        dtype = body.relative[0].query_bias.dtype
        if autocast is not None:
            x = x.to(dtype)
            state = None if state is None else state.map(lambda kv: kv.to(dtype))
        check_tensor(engine, x)
        if autocast is not None:
            half = ENGINES[engine].half_for(x, autocast)
            sizes = sizes._replace(matrices=half)
            if half is None:
                warn_of_full_precision(ENGINES[engine].why_no_half(x, autocast))
        tensors = (x,) if state is None else (x, *state.keys, *state.values)
        if any(tensor.dtype != dtype for tensor in tensors):
            got = ", ".join(str(tensor.dtype) for tensor in tensors)
            raise TypeError(
                f"x, keys and values must be {dtype} like the weights, got {got}"
            )
        if not sizes.needs_backward:
            prepared = folded_weights(body, engine, sizes.matrices)
            if length == 1 and starts is None and not dropout:
                return step(body, x, state, engine, prepared, sizes)
        none = x.new_empty(sizes.heads * batch, 0, body.d_model // sizes.heads)
        keys, values = (none, none) if state is None else keys_and_values(state)
        inputs = x.transpose(0, 1), keys, values
        if sizes.needs_backward:
            weights = fold(body, min(body.span, past + length - 1))
            tensors, recording = (*inputs, *weights), None
            if engine == "sequence" and may_replay:
                recording = _recordings.setdefault(body, Recordings()).find(
                    sizes, tensors
                )
            if recording is not None:
                top, keys, values = Replayed.apply(recording, *tensors)
            else:
                top, keys, values = WholeSequence.apply(
                    ENGINES[engine], sizes, *tensors
                )
        else:
            loop = Forward(ENGINES[engine], sizes, prepared, *inputs)
            loop.run()
            top, keys, values = results(loop.outputs, sizes)
    if oldest is None and lengths is None:
        return top.transpose(0, 1), State((keys,), (values,))
    return top.transpose(0, 1), state_after(
        (keys,),
        (values,),
        span=body.span,
        past=past,
        steps=length,
        oldest=oldest,
        lengths=lengths,
    )


def warn_of_full_precision(reason: str) -> None:
    """Warn, once for each reason, that autocast has no effect; "" is no reason."""
    if reason and reason not in _warned:
        _warned.add(reason)
        warnings.warn(reason, RuntimeWarning, stacklevel=9)  # who calls the model


_recordings: WeakKeyDictionary[nn.Module, Recordings] = WeakKeyDictionary()


def folded_weights(
    body: FeedbackBody, engine: str, matrices: torch.dtype | None
) -> Weights:
    """Return the weights of a body for an engine's `Forward`, without gradients."""

    def compute() -> Weights:
        with torch.inference_mode(False), torch.no_grad():
            rounded = round_matrices(fold(body, body.span), matrices)
            return prepare(ENGINES[engine], rounded)

    return remembered(body, (engine, matrices), compute)


class RunningCache(Cache):
    """The cache of a sequence of single steps, with the loop that fills it.

    Args:
        body: the body.
        state: copied into the cache; None for an empty one.
        engine: a key of `ENGINES`.
        weights: what `folded_weights` returned.
        batch: the number of sequences B.
        sizes: of its next step.
    """

    def __init__(
        self,
        body: FeedbackBody,
        state: State | None,
        engine: str,
        weights: Weights,
        batch: int,
        sizes: Sizes,
    ) -> None:
        past, oldest = sizes.past, sizes.oldest
        sizes = sizes._replace(recompute=False)  # which nothing will follow
        with torch.inference_mode(False), torch.no_grad():
            x = weights.b_q.new_empty(1, batch, body.d_model)
            none = x.new_empty(sizes.heads * batch, 0, body.d_model // sizes.heads)
            keys, values = (none, none) if state is None else keys_and_values(state)
            capacity = capacity_after(past, body.span)
            self.loop = Forward(
                ENGINES[engine], sizes, weights, x, keys, values, capacity
            )
        outputs = self.loop.outputs
        keys, values = (
            kv.unflatten(0, (sizes.heads, -1)).transpose(0, 1)
            for kv in (outputs.keys, outputs.values)
        )
        super().__init__(
            (keys,), (values,), past, None if oldest is None else oldest[:, 0]
        )


def step(
    body: FeedbackBody,
    x: Tensor,
    state: State | None,
    engine: str,
    weights: Weights,
    sizes: Sizes,
) -> tuple[Tensor, State]:
    """Compute one step without gradients or dropout, in the cache of its state.

    Args:
        body: the body.
        x: embeddings [B, 1, d].
        state: carried in, or None.
        engine: a key of `ENGINES`.
        weights: what `folded_weights` returned.
        sizes: of this step.

    Returns:
        The top layer's output [B, 1, d] and the state for the next step.
    """
    cache, row = (state and state._place) or (None, 0)
    if not (
        isinstance(cache, RunningCache)
        and cache.loop.weights is weights
        and cache.claim(row)
    ):
        cache = RunningCache(body, state, engine, weights, x.shape[0], sizes)
        row = 0 if state is None else state.length
        cache.claim(row)
    outputs = cache.loop.outputs
    outputs.x[0, 0] = x[:, 0]
    cache.loop.layout.past = row
    # The next step, in whatever mode, writes to the loop's tensors again.
    with torch.inference_mode(False), torch.no_grad():
        cache.loop.run()
    return outputs.x[-1, 0].clone()[:, None], cache.state(row + 1, body.span)


def keys_and_values(state: State) -> tuple[Tensor, Tensor]:
    """Return the keys and values of a state as [HB, P, D]."""
    keys, values = (
        cache[0].transpose(0, 1).flatten(0, 1) for cache in (state.keys, state.values)
    )
    return keys, values


def sizes_of(
    body: FeedbackBody,
    past: int,
    *,
    oldest: Tensor | None,
    dropout: float,
    recompute: bool,
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
        kept=body.span,
        oldest=oldest,
    )
