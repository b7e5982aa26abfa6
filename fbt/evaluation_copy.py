"""Copy a model in evaluation mode, sharing its weights, for sampling and evaluation.

Switching the model itself to evaluation mode and back would affect all threads that
use it: a training thread would lose dropout, and a sampling thread would get dropout
back too early.
"""

import inspect
from functools import partial
from types import MethodType
from typing import Any, TypeVar, cast

from torch import nn

M = TypeVar("M", bound=nn.Module)


def evaluation_copy(module: M) -> M:
    """Return a shallow copy of a module and all its submodules, in evaluation mode.

    Parameters and buffers are the same tensors, so the copy sees in-place updates.
    Hooks are copied: registering one on the copy does not affect the original.
    Compiled modules are copied uncompiled.

    Args:
        module: the module to copy; it is not changed.

    Raises:
        ValueError: if dropout is on, and the `forward` of a module was replaced by a
            function that refers to an original module.
    """
    copies = {original: _empty_copy(original) for original in module.modules()}
    has_dropout = any(m.training and m.p for m in copies if isinstance(m, nn.Dropout))
    for original, copy in copies.items():
        if has_dropout and _refers_to_original(vars(original).get("forward"), copies):
            raise ValueError(
                f"the forward of a {type(original).__name__} was replaced by a "
                "function that refers to modules of the model, and dropout is on: "
                "call eval() on the model first"
            )
        for name, value in vars(original).items():
            if name == "_modules":
                value = {key: _copied(child, copies) for key, child in value.items()}
            # parameters, buffers, hooks
            elif name.startswith("_") and isinstance(value, dict | set):
                value = value.copy()
            else:
                value = _copied(value, copies)
            copy.__dict__[name] = value
        copy.__dict__ |= {"training": False, "_compiled_call_impl": None}
    return cast(M, _copied(module, copies))


def uncompiled(value: Any) -> Any:
    """Return the module that `torch.compile` wrapped; any other value unchanged."""
    while isinstance(value, nn.Module) and "_orig_mod" in value._modules:
        value = value._modules["_orig_mod"]
    return value


def _empty_copy(module: nn.Module) -> nn.Module:
    """Return an empty module of the same class."""
    # copy.copy fails for modules with parametrisations.
    return object.__new__(type(module))


def _copied(value: Any, copies: dict[nn.Module, nn.Module]) -> Any:
    """Return a value with modules replaced by their copies, and uncompiled."""
    if not callable(value):
        return value
    if isinstance(value, nn.Module):
        value = uncompiled(value)
        return copies.get(value, value)
    if (original := getattr(value, "_torchdynamo_orig_callable", None)) is not None:
        return _copied(original, copies)
    if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
        return MethodType(value.__func__, _copied(value.__self__, copies))
    if isinstance(value, partial):
        arguments = [_copied(argument, copies) for argument in value.args]
        options = {
            name: _copied(option, copies) for name, option in value.keywords.items()
        }
        return partial(_copied(value.func, copies), *arguments, **options)
    return value


def _refers_to_original(function: Any, copies: dict[nn.Module, nn.Module]) -> bool:
    """Return whether a function that cannot be copied refers to a copied module."""
    if not inspect.isfunction(function) or _copied(function, copies) is not function:
        return False
    variables = inspect.getclosurevars(function)
    values = [*variables.nonlocals.values(), *variables.globals.values()]
    return any(_copied(value, copies) is not value for value in values)
