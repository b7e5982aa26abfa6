"""The engines that compute a body with shared keys and values, and which one can.

An engine of `fbt.sequence` takes tensors: weights stacked over layers, with norms and
scales folded in. This module folds them, runs the engine over a block of steps or one
step at a time, and says why an engine cannot compute a body. Folding reads the
weights of the layers without calling the layers, so whatever else a module does when
it is called (a hook, another class, another setting) must be found here.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt import native
from fbt._checks import check_float_tensor
from fbt._modes import without_autocast
from fbt.attention import Attention, Dropout, FeedForward, KeyValue, RelativeTerms
from fbt.feedback import FeedbackBody, FeedbackLayer, WeightedMemory
from fbt.sequence import WholeSequence
from fbt.sequence.forward import Forward
from fbt.sequence.native import NativeForward
from fbt.sequence.parts import Sizes, Weights
from fbt.state import State

ENGINES = ("native", "sequence")  # the fastest first

# The class of each module, by the last part of its name, and the settings that
# matter.
CLASSES: dict[str, tuple[type[nn.Module], ...]] = {
    "attention": (Attention,),
    "dropout": (Dropout,),
    "feed_forward": (FeedForward,),
    "inner": (nn.Linear,),
    "key": (nn.Linear,),
    "key_values": (nn.ModuleList,),
    "layers": (nn.ModuleList,),
    "memory": (WeightedMemory,),
    "norm": (nn.LayerNorm, nn.Identity),
    "norm1": (nn.LayerNorm,),
    "norm2": (nn.LayerNorm,),
    "outer": (nn.Linear,),
    "output": (nn.Linear,),
    "query": (nn.Linear,),
    "relative": (nn.ModuleList,),
    "value": (nn.Linear,),
}
ITEMS = {"key_values": KeyValue, "layers": FeedbackLayer, "relative": RelativeTerms}
WITHOUT_BIAS = ("key", "query", "value")
EPS = 1e-5  # of every layer norm

# What torch calls with a module's inputs, outputs or gradients.
HOOKS = {
    "_forward_hooks": "a forward hook",
    "_forward_pre_hooks": "a forward pre-hook",
    "_backward_hooks": "a backward hook",
    "_backward_pre_hooks": "a backward pre-hook",
}


def choose(body: FeedbackBody, x: Tensor) -> str | None:
    """Return the engine that backend="auto" takes for embeddings x [B, T, d].

    Returns:
        The first engine that can compute them; None where none can, and where the
        plain loop does better: for a single step, and inside what `torch.compile`
        compiles.
    """
    if x.shape[1:2] == (1,) or torch.compiler.is_compiling() or why_not_folded(body):
        return None
    return first_for(x)


def first_for(x: Tensor) -> str:
    """Return the first engine that computes tensors like x; "sequence" takes any."""
    reason = why_not("native", x)
    if reason is None:
        return "native"
    native.warn_if_refused(reason)
    return "sequence"


def check(body: FeedbackBody, engine: str, x: Tensor) -> None:
    """Raise the reason why an engine cannot compute a body on x, if there is one."""
    if (found := why_not_folded(body)) is not None:
        raise ValueError(
            f'backend="{engine}" reads the weights of the layers without calling them, but '
            f'{found}: use "reference", "stack" or "auto"'
        )
    if (reason := why_not(engine, x)) is not None:
        raise reason


def why_not(engine: str, x: Tensor) -> Exception | None:
    """Return the error of an engine that cannot compute tensors like x, or None."""
    return native.why_not(x) if engine == "native" else None


def why_not_folded(body: FeedbackBody) -> str | None:
    """Return which module of a body does more than its weights say, or None.

    Attributes that have no effect on the numbers may have any value.
    """
    if nn.modules.module._has_any_global_hook():
        return "all modules have a hook"
    drops = _drops(body.layers[0].dropout)
    for name, part in body.named_modules():
        if name and (found := hook_of(part) or _changed(body, name, part)):
            return f"{name} has {found}"
        if isinstance(part, Dropout) and _drops(part) != drops:
            return (
                f"{name} has p={_drops(part)} now, and layers.0.dropout has p={drops}"
            )
    return None


def _drops(dropout: Dropout) -> float:
    """The probability with which a module drops an entry in its present mode."""
    return dropout.p if dropout.training else 0.0


def hook_of(part: nn.Module) -> str | None:
    """Return what keeps a module from being bypassed: a hook or a forward of its own."""
    if "forward" in vars(part):
        return "a forward of its own"
    return next((kind for name, kind in HOOKS.items() if getattr(part, name)), None)


def _changed(body: FeedbackBody, name: str, part: nn.Module) -> str | None:
    """Return what a module has that the model it was built as has not, or None."""
    *above, last = name.split(".")
    allowed = (ITEMS[above[-1]],) if last.isdecimal() and above else CLASSES.get(last)
    if allowed is None:
        return None  # nothing calls it
    if type(part) not in allowed:
        return f"the class {type(part).__name__} and not {allowed[0].__name__}"
    if isinstance(part, nn.LayerNorm):
        if part.eps != EPS or part.normalized_shape != (body.d_model,):
            return f"eps={part.eps} and normalized_shape={part.normalized_shape}"
        if part.weight is None or part.bias is None:
            return "no weight or no bias"
    if isinstance(part, nn.Linear) and (part.bias is None) != (last in WITHOUT_BIAS):
        return "a bias" if last in WITHOUT_BIAS else "no bias"
    if isinstance(part, Attention | KeyValue) and part.n_heads != body.n_heads:
        return f"n_heads={part.n_heads}"
    if isinstance(part, FeedForward):
        first = body.layers[0].feed_forward.activation
        if part.activation not in (F.relu, F.gelu) or part.activation is not first:
            return "an activation of its own"
    return None


def run_sequence(
    body: FeedbackBody, x: Tensor, state: State | None, engine: str, recompute: bool
) -> tuple[Tensor, State]:
    """Run a body with one cache over x [B, T, d]: the same numbers as its plain loop.

    Returns:
        The top layer's outputs [B, T, d] and the state for the next block.
    """
    batch, length, _ = x.shape
    past = 0 if state is None else state.length
    dropout = _drops(body.layers[0].dropout)
    sizes = sizes_of(body, past, engine, dropout=dropout, recompute=recompute)
    none = x.new_empty(sizes.heads * batch, 0, body.d_model // sizes.heads)
    keys, values = (none, none) if state is None else _side_by_side(state)
    # The buffers of the loop have one dtype.
    with without_autocast(x.device.type) as autocast:
        check(body, engine, body.relative[0].query_bias if autocast else x)
        weights = fold(body, min(body.span, past + length - 1))
        given, dtype = [x.transpose(0, 1), keys, values], weights.b_q.dtype
        if autocast:
            given = [tensor.to(dtype) for tensor in given]
        if any(tensor.dtype != dtype for tensor in given):
            got = f"{x.dtype}, {keys.dtype} and {values.dtype}"
            raise TypeError(
                f"x, keys and values must be {dtype} like the weights, got {got}"
            )
        top, keys, values = WholeSequence.apply(sizes, *given, *weights)
    return top.transpose(0, 1), State((keys,), (values,))


class Decoder:
    """Steps of a body with one cache, one at a time, without gradients or dropout.

    The weights are folded once. Keys and values are written in place, into buffers
    for twice the span: a step copies nothing, and once per span the newest keys move
    to the front.

    Args:
        body: later changes of its weights are not seen.
        state: what a forward pass returned; it is not changed.
        engine: "sequence" or "native".
    """

    def __init__(self, body: FeedbackBody, state: State, engine: str) -> None:
        check(body, engine, state.keys[0])
        sizes = sizes_of(body, state.length, engine, dropout=0.0, recompute=False)
        sizes = sizes._replace(keep=False)
        keys, values = _side_by_side(state)
        x = keys.new_empty(1, state.batch_size, body.d_model)
        kind = NativeForward if sizes.native else Forward
        with torch.no_grad(), without_autocast(x.device.type):
            weights = fold(body, body.span)
            self.loop = kind(sizes, weights, x, keys, values, room=2 * body.span)

    @torch.no_grad()
    def step(self, x: Tensor) -> Tensor:
        """Return the top layer's output [B, d] for one more embedding x [B, d].

        Raises:
            TypeError: if x is not a floating-point tensor.
            ValueError: if x has another shape.
        """
        check_float_tensor("x", x)
        loop, span = self.loop, self.loop.sizes.span
        if x.shape != loop.x.shape[2:]:
            raise ValueError(
                f"x must have shape {list(loop.x.shape[2:])}, got {list(x.shape)}"
            )
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


def _side_by_side(state: State) -> tuple[Tensor, Tensor]:
    """Keys and values of a state as [HB, P, D]."""
    keys, values = (
        kept[0].transpose(0, 1).flatten(0, 1) for kept in (state.keys, state.values)
    )
    return keys, values


def sizes_of(
    body: FeedbackBody, past: int, engine: str, *, dropout: float, recompute: bool
) -> Sizes:
    """What an engine needs to know of a body besides its weights."""
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
        native=engine == "native",
        keep=torch.is_grad_enabled(),
    )


def fold(body: FeedbackBody, rows: int) -> Weights:
    """Fold norms and 1 / sqrt(D) into the weights, in plain autograd.

    Args:
        body: a body with one cache.
        rows: how many rows of the relative tables are used, the last ones.

    Returns:
        The weights, stacked over layers.
    """
    tables: list[RelativeTerms] = [
        body.relative[l % len(body.relative)] for l in range(len(body.layers))
    ]
    scale = tables[0].query_bias.shape[-1] ** -0.5
    first = tables[0].key_bias.shape[-1] - rows
    project: KeyValue = body.key_values[0]
    w_kv = torch.cat([project.key.weight, project.value.weight])
    b_kv = w_kv.new_zeros(w_kv.shape[0])
    if isinstance(body.memory.norm, nn.LayerNorm):
        w_kv, b_kv = w_kv * body.memory.norm.weight, w_kv @ body.memory.norm.bias

    def stacked(folded: Callable[[FeedbackLayer], Tensor]) -> Tensor:
        """Stack over layers, after folding one by one: autograd keeps no copy of a weight."""
        return torch.stack([folded(layer) for layer in body.layers])

    return Weights(
        w_q=stacked(
            lambda layer: layer.attention.query.weight * (layer.norm1.weight * scale)
        ),
        b_q=stacked(
            lambda layer: layer.attention.query.weight @ (layer.norm1.bias * scale)
        ),
        u=torch.stack([table.query_bias for table in tables]) * scale,
        table=torch.stack([table.key_embedding[:, first:] for table in tables]),
        s=torch.stack([table.key_bias[:, first:] for table in tables]) * scale,
        w_o=stacked(lambda layer: layer.attention.output.weight),
        b_o=stacked(lambda layer: layer.attention.output.bias),
        w_1=stacked(
            lambda layer: layer.feed_forward.inner.weight * layer.norm2.weight
        ),
        b_1=stacked(
            lambda layer: (
                layer.feed_forward.inner.bias
                + layer.feed_forward.inner.weight @ layer.norm2.bias
            )
        ),
        w_2=stacked(lambda layer: layer.feed_forward.outer.weight),
        b_2=stacked(lambda layer: layer.feed_forward.outer.bias),
        mix=body.layer_weights(),
        w_kv=w_kv,
        b_kv=b_kv,
    )
