"""Whether calling the modules of a body does just what their weights tell.

A faster form of a body reads the weights of its modules and does not call them.
`why_not_folded` finds whatever a module would do besides when called: hooks, another
class, other settings. What is computed from the weights is remembered until the body
changes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor, nn

from fbt.attention import Attention, Dropout, FeedForward, KeyValue, RelativeTerms

# The classes that every body expects, by the last part of a module's name. Modules
# with other names are not called.
CLASSES: dict[str, tuple[type[nn.Module], ...]] = {
    "attention": (Attention,),
    "dropout": (Dropout,),
    "feed_forward": (FeedForward,),
    "inner": (nn.Linear,),
    "key": (nn.Linear,),
    "key_value": (KeyValue,),
    "key_values": (nn.ModuleList,),
    "layers": (nn.ModuleList,),
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

T = TypeVar("T")


class Body(Protocol):
    """What an inspection needs of a body."""

    d_model: int
    n_heads: int
    layers: Sequence[Any]
    # The classes that only this kind of body has, by the name of a module or of a
    # list of modules.
    own_classes: Mapping[str, type[nn.Module]]

    @property
    def modules(self) -> Callable[[], Iterator[nn.Module]]: ...  # noqa: D102

    @property
    def named_modules(self) -> Callable[[], Iterator[tuple[str, nn.Module]]]: ...  # noqa: D102


def why_not_folded(body: Body) -> str | None:
    """Return which module of a body does more than its weights tell, or None.

    Attributes that have no effect on the result may have any value.
    """
    if nn.modules.module._has_any_global_hook():
        return "all modules have a hook"
    if (inspected := _inspected.get(body)) is not None and inspected.holds():
        return None
    inspection = Inspection(body)
    reason = _find_reason(body)
    if reason is None and not torch.compiler.is_compiling():
        _inspected[body] = inspection
    return reason


def _find_reason(body: Body) -> str | None:
    """Inspect the modules of a body for `why_not_folded`."""
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


class Inspection:
    """The modules of a body as they were when they were inspected, without hooks.

    To compare them takes a fraction of the time of an inspection.
    """

    def __init__(self, body: Body) -> None:
        parts = list(body.modules())
        self._children = [part._modules for part in parts]
        self._seen_children = [children.copy() for children in self._children]
        parts = parts[1:]  # not the body, which would then never be freed
        self._parts, self._types = parts, [*map(type, parts)]
        self._attributes = [vars(part) for part in parts]
        self._seen_attributes = [attributes.copy() for attributes in self._attributes]
        self._hooks = [getattr(part, name) for part in parts for name in HOOKS]
        self._parameters = [part._parameters for part in parts if part._parameters]
        self._seen_parameters = self._listed()
        self._results: dict[Any, tuple[list[Any], tuple[list[ndarray], Any]]] = {}

    def _listed(self) -> list[Tensor | None]:
        """Return the parameters that the modules have now."""
        return [*chain.from_iterable(map(dict.values, self._parameters))]

    def holds(self) -> bool:
        """Return whether the modules and parameters are still the same objects."""
        parameters = self._listed()
        try:
            return (
                not any(self._hooks)
                and self._children == self._seen_children
                and self._attributes == self._seen_attributes
                and [*map(type, self._parts)] == self._types
                and len(parameters) == len(self._seen_parameters)
                and all(map(is_, parameters, self._seen_parameters))
            )
        except (RuntimeError, ValueError):  # attributes that are tensors or arrays
            return False

    def remember(self, key: Any, compute: Callable[[], T]) -> T:
        """Return what `compute` returned last for this key, while the weights hold.

        In-place changes count up a tensor's version, and new memory has another
        address. An edit through `.data` shows in neither, so one entry of each weight
        on the CPU is compared too: optimisers and averages change all of them.
        """
        weights = [weight for weight in self._seen_parameters if weight is not None]
        try:
            now: list[Any] = [
                *map(attrgetter("_version"), weights),
                *map(Tensor.data_ptr, weights),
            ]
        except RuntimeError:  # tensors of a trace, a transform or inference mode
            return compute()
        before, (entries, result) = self._results.get(key, ([], ([], None)))
        if before == [*now, *map(ndarray.item, entries)]:
            return cast(T, result)
        entries = [entry for weight in weights for entry in _one_entry(weight)]
        before = [*now, *map(ndarray.item, entries)]
        result = compute()
        self._results[key] = before, (entries, result)
        return result


def _one_entry(weight: Tensor) -> list[ndarray]:
    """Return the entry in the middle of a weight, as an array that shares its memory.

    An empty list for tensors that NumPy cannot read.
    """
    if weight.device.type != "cpu" or weight.dtype not in (
        torch.float32,
        torch.float64,
    ):
        return []
    middle = tuple(size // 2 for size in weight.shape)
    return [weight.detach()[middle].numpy()]


def remembered(body: Body, key: Any, compute: Callable[[], T]) -> T:
    """Return `compute()`, or what it returned before if the body has not changed.

    Args:
        body: a body for which `why_not_folded` has just returned None.
        key: tells results of the same body apart.
        compute: computes something from the weights, without gradients.
    """
    inspection = _inspected.get(body)
    if inspection is None or torch.compiler.is_compiling():
        return compute()
    return inspection.remember(key, compute)


_inspected: WeakKeyDictionary[Any, Inspection] = WeakKeyDictionary()


def active_dropout(dropout: Dropout) -> float:
    """Return the probability of a drop in the module's current mode."""
    return dropout.p if dropout.training else 0.0


def describe_override(module: nn.Module) -> str | None:
    """Return what calling a module does besides its class's forward, or None."""
    if "forward" in vars(module):
        return "a forward of its own"
    kinds = (kind for name, kind in HOOKS.items() if getattr(module, name))
    return next(kinds, None)


def describe_change(body: Body, name: str, module: nn.Module) -> str | None:
    """Return how a module differs from the one the body was built with, or None."""
    *parents, last = name.split(".")
    in_list = last.isdecimal() and parents
    key, classes = (parents[-1], ITEMS) if in_list else (last, CLASSES)
    expected = classes.get(key)
    if expected is None and key in body.own_classes:
        expected = (body.own_classes[key],)
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
