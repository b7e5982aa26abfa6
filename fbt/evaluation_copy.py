"""A copy of a model in evaluation mode that shares its weights: what sampling and evaluation read.

Switching the model itself to evaluation mode and back would change it for every
thread that uses it. A thread that trains it would lose its dropout, and a thread that
samples would get dropout back too early.
"""

import inspect
from functools import partial
from types import MethodType
from typing import Any, TypeVar, cast

from torch import nn

M = TypeVar("M", bound=nn.Module)


def evaluation_copy(module: M) -> M:
    """Return a shallow copy of a module, and of all modules inside it, in evaluation mode.

    Parameters and buffers are the same tensors, so a later update in place is seen.
    Hooks are copied: one registered on the copy does not fire on the original.
    Compiled modules are copied uncompiled.

    Args:
        module: it is left as it is.

    Raises:
        ValueError: dropout is on, and the `forward` of a module was replaced by a
            function that refers to a module itself rather than to its copy.
    """
    twins = {part: _twin(part) for part in module.modules()}
    dropping = any(
        part.training and part.p for part in twins if isinstance(part, nn.Dropout)
    )
    for part, twin in twins.items():
        if dropping and _refers(vars(part).get("forward"), twins):
            raise ValueError(
                f"the forward of a {type(part).__name__} was replaced by a function "
                "that refers to "
                "modules of the model, where dropout is on: call eval() on the model "
                "first"
            )
        for name, value in vars(part).items():
            if name == "_modules":
                value = {key: _copied(child, twins) for key, child in value.items()}
            # parameters, buffers, hooks
            elif name.startswith("_") and isinstance(value, dict | set):
                value = value.copy()
            else:
                value = _copied(value, twins)
            twin.__dict__[name] = value
        twin.__dict__ |= {"training": False, "_compiled_call_impl": None}
    return cast(M, _copied(module, twins))


def uncompiled(value: Any) -> Any:
    """Return the module that `torch.compile` wrapped; anything else as it is."""
    while isinstance(value, nn.Module) and "_orig_mod" in value._modules:
        value = value._modules["_orig_mod"]
    return value


def _twin(part: nn.Module) -> nn.Module:
    """An empty module of the same class; not by `copy.copy`, which parametrised modules refuse."""
    return object.__new__(type(part))


def _copied(value: Any, twins: dict[nn.Module, nn.Module]) -> Any:
    """The value, with copies in place of modules; what `torch.compile` returned is undone on the way."""
    if not callable(value):
        return value
    if isinstance(value, nn.Module):
        value = uncompiled(value)
        return twins.get(value, value)
    if (original := getattr(value, "_torchdynamo_orig_callable", None)) is not None:
        return _copied(original, twins)
    if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
        return MethodType(value.__func__, _copied(value.__self__, twins))
    if isinstance(value, partial):
        arguments = [_copied(argument, twins) for argument in value.args]
        options = {
            name: _copied(option, twins) for name, option in value.keywords.items()
        }
        return partial(_copied(value.func, twins), *arguments, **options)
    return value


def _refers(function: Any, twins: dict[nn.Module, nn.Module]) -> bool:
    """Whether a function holds a module that was copied, and cannot be copied itself."""
    if not inspect.isfunction(function) or _copied(function, twins) is not function:
        return False
    found = inspect.getclosurevars(function)
    held = [*found.nonlocals.values(), *found.globals.values()]
    return any(_copied(value, twins) is not value for value in held)
