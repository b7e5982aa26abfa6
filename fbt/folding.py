"""Fold norms and scales into the weights of a body with shared keys and values.

Folding reads the weights of the layers without calling the layers. `why_not_folded`
finds whatever a module would do besides when called: hooks, another class, other
settings.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt.attention import Attention, Dropout, FeedForward, KeyValue, RelativeTerms
from fbt.feedback import FeedbackBody, FeedbackLayer, WeightedMemory
from fbt.sequence.layout import Weights

# The classes that folding assumes, by the last part of a module's name. Modules with
# other names are not called.
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
# The classes of a list's modules, by the name of the list.
ITEMS: dict[str, tuple[type[nn.Module], ...]] = {
    "key_values": (KeyValue,),
    "layers": (FeedbackLayer,),
    "relative": (RelativeTerms,),
}
WITHOUT_BIAS = ("key", "query", "value")
EPS = 1e-5  # of every layer norm

# What torch calls with a module's inputs, outputs or gradients.
HOOKS = {
    "_forward_hooks": "a forward hook",
    "_forward_pre_hooks": "a forward pre-hook",
    "_backward_hooks": "a backward hook",
    "_backward_pre_hooks": "a backward pre-hook",
}


def why_not_folded(body: FeedbackBody) -> str | None:
    """Return which module of a body does more than its weights tell, or None.

    Attributes that have no effect on the result may have any value.
    """
    if nn.modules.module._has_any_global_hook():
        return "all modules have a hook"
    dropout = active_dropout(body.layers[0].dropout)
    for name, module in body.named_modules():
        if name and (
            change := describe_override(module) or describe_change(body, name, module)
        ):
            return f"{name} has {change}"
        if isinstance(module, Dropout) and active_dropout(module) != dropout:
            p = active_dropout(module)
            return f"{name} has p={p} now, and layers.0.dropout has p={dropout}"
    return None


def active_dropout(dropout: Dropout) -> float:
    """Return the probability of a drop in the module's current mode."""
    return dropout.p if dropout.training else 0.0


def describe_override(module: nn.Module) -> str | None:
    """Return what calling a module does besides its class's forward, or None."""
    if "forward" in vars(module):
        return "a forward of its own"
    kinds = (kind for name, kind in HOOKS.items() if getattr(module, name))
    return next(kinds, None)


def describe_change(body: FeedbackBody, name: str, module: nn.Module) -> str | None:
    """Return how a module differs from the one the body was built with, or None."""
    *parents, last = name.split(".")
    in_list = last.isdecimal() and parents
    expected = ITEMS.get(parents[-1]) if in_list else CLASSES.get(last)
    if expected is None:
        return None
    if type(module) not in expected:
        return f"the class {type(module).__name__} and not {expected[0].__name__}"
    if isinstance(module, nn.LayerNorm):
        if module.eps != EPS or module.normalized_shape != (body.d_model,):
            return f"eps={module.eps} and normalized_shape={module.normalized_shape}"
        if module.weight is None or module.bias is None:
            return "no weight or no bias"
    without_bias = last in WITHOUT_BIAS
    if isinstance(module, nn.Linear) and (module.bias is None) != without_bias:
        return "a bias" if without_bias else "no bias"
    if isinstance(module, Attention | KeyValue) and module.n_heads != body.n_heads:
        return f"n_heads={module.n_heads}"
    if isinstance(module, FeedForward):
        first = body.layers[0].feed_forward.activation
        if (
            module.activation not in (F.relu, F.gelu)
            or module.activation is not first
        ):
            return "an activation of its own"
    return None


def fold(body: FeedbackBody, rows: int) -> Weights:
    """Fold norms and 1 / sqrt(D) into the weights, in plain autograd.

    Args:
        body: a body with one cache.
        rows: the number of rows of the relative tables to use, from the end.

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
        """Stack over layers. Folded one by one, autograd copies no weight."""
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
