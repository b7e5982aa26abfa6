"""Checks of arguments: each error gives the name, the value and the allowed range.

All checks quote values with `shorten` and `describe`, so that messages stay short.
"""

import os
import reprlib
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LONGEST_VALUE = 80  # characters of a value in a message
LARGEST_INT = 2**63 - 1  # what torch takes as a size


class _Short(reprlib.Repr):
    """A short `repr`, with type and shape of tensors, also inside containers."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = LONGEST_VALUE
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 10

    def repr1(self, x: Any, level: int) -> str:
        """Return the text of a value inside `level` containers."""
        if isinstance(x, nn.Module):
            return f"{type(x).__name__} module"
        shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
        # A tensor or an array of another library, but not a NumPy scalar.
        if isinstance(x, Tensor) or (
            isinstance(shape, tuple) and shape and dtype is not None
        ):
            return f"{type(x).__name__} {list(x.shape)} of {dtype}"
        # Python refuses to print very large ints.
        if isinstance(x, int) and x.bit_length() > 4 * LONGEST_VALUE:
            return f"an int of {x.bit_length()} bits"
        if isinstance(x, bytes | bytearray):
            x = x[:LONGEST_VALUE]
        return super().repr1(x, level)


def shorten(value: Any) -> str:
    """Return a value as text for a message: one line of at most 80 characters."""
    text = " ".join(line.strip() for line in _Short().repr(value).splitlines())
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def describe(value: Any) -> str:
    """Return a value as by `shorten`, and its type unless the text begins with it."""
    text, kind = shorten(value), type(value).__name__
    return text if text.startswith(kind) else f"{text} of type {kind}"


def is_traced() -> bool:
    """Return whether torch is tracing a graph, where values may be unknown."""
    is_tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]
    return torch.compiler.is_compiling() or is_tracing


def is_exported() -> bool:
    """Return whether `torch.export` is tracing a graph; False before torch 2.7."""
    exporting = getattr(torch.compiler, "is_exporting", None)
    return exporting is not None and exporting()


def check_int(name: str, value: Any, *, low: int, high: int | None = None) -> None:
    """Raise unless `value` is an int in [low, high]; None means up to 2^63 - 1.

    Integers of NumPy and symbolic sizes of a graph pass.

    Raises:
        TypeError: if `value` is not an int, or is a bool.
        ValueError: if `value` is out of range.
    """
    if isinstance(value, torch.SymInt):
        return
    allowed = f"an int >= {low}" if high is None else f"an int in [{low}, {high}]"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be {allowed}, got {describe(value)}")
    if not low <= int(value) <= (LARGEST_INT if high is None else high):
        raise ValueError(f"{name} must be {allowed}, got {shorten(value)}")


def check_real(
    name: str,
    value: Any,
    *,
    low: float,
    high: float = float("inf"),
    open_high: bool = False,
) -> None:
    """Raise unless `value` is a number in [low, high], or [low, high) if `open_high`.

    Raises:
        TypeError: if `value` is not a real number.
        ValueError: if `value` is out of range or NaN.
    """
    bracket = ")" if open_high or high == float("inf") else "]"
    allowed = f"a number in [{low}, {high}{bracket}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {allowed}, got {describe(value)}")
    try:
        number = float(value)
    except OverflowError:  # an int that is too large for a float
        number = float("inf")
    if (
        not low <= number <= high
        or (open_high and number == high)
        or number == float("inf")
    ):
        raise ValueError(f"{name} must be {allowed}, got {shorten(value)}")


def check_instance(name: str, value: Any, *types: type) -> None:
    """Raise a TypeError unless `value` is an instance of one of `types`."""
    if not isinstance(value, types):
        allowed = " or ".join(
            "None" if t is type(None) else t.__name__ for t in types
        )
        raise TypeError(f"{name} must be of type {allowed}, got {describe(value)}")


def check_path(name: str, value: Any) -> None:
    """Raise unless `value` is a valid path.

    Raises:
        TypeError: if `value` is neither a str nor a Path.
        ValueError: if `value` cannot be encoded or contains NUL.
    """
    check_instance(name, value, str, Path)
    try:
        encoded = os.fsencode(value)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} must be a path in UTF-8, got {shorten(value)}"
        ) from error
    if b"\0" in encoded:
        raise ValueError(
            f"{name} must be a path without the character NUL, got {shorten(value)}"
        )


def check_items(name: str, values: Any, kind: type) -> None:
    """Raise a TypeError unless `values` is a sequence of `kind`, and not a str."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise TypeError(
            f"{name} must be a sequence of {kind.__name__}, got {describe(values)}"
        )
    for position, value in enumerate(values):
        if not isinstance(value, kind):
            got = f"{describe(value)} at position {position}"
            raise TypeError(
                f"{name} must be a sequence of {kind.__name__}, got {got}"
            )


def texts_in(name: str, values: Any) -> list[str]:
    """Return a sequence of str as a list; a str becomes a list of its characters.

    Raises:
        TypeError: if `values` is anything else.
    """
    if not isinstance(values, str):
        check_items(name, values, str)
    return list(values)


def check_callable(name: str, value: Any) -> None:
    """Raise a TypeError unless `value` is callable."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {describe(value)}")


def check_float_tensor(name: str, value: Any) -> None:
    """Raise a TypeError unless `value` is a floating-point tensor."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(
            f"{name} must be a floating-point tensor, got {describe(value)}"
        )


def check_integers(name: str, value: Any, shape: str | None = None) -> None:
    """Raise unless `value` is a tensor of integers, of any dtype.

    Args:
        name: of the argument.
        value: the tensor.
        shape: names of its axes, such as "[N]"; None allows any shape.

    Raises:
        TypeError: if `value` is not a tensor of integers.
        ValueError: if `value` has another number of axes, or is on the meta device.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor of integers, got {describe(value)}")
    if shape is not None and value.ndim != shape.count(",") + 1:
        raise ValueError(f"{name} must have shape {shape}, got {list(value.shape)}")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must be a tensor of integers, got {shorten(value)}")
    check_values(name, value)


def check_values(name: str, value: Tensor) -> None:
    """Raise a ValueError if a tensor is on the meta device, and so has no values."""
    if value.is_meta:
        raise ValueError(
            f"{name} must have values, got {shorten(value)} on the meta device"
        )


def check_embeddings(x: Tensor, width: int) -> None:
    """Raise unless x is a floating-point tensor [B, T, width] with B, T >= 1.

    Raises:
        TypeError: if x is not a floating-point tensor.
        ValueError: if x has another shape.
    """
    check_float_tensor("x", x)
    if x.ndim != 3 or x.shape[-1] != width or x.numel() == 0:
        raise ValueError(
            f"x must have shape [B, T, {width}] with B, T >= 1, got {list(x.shape)}"
        )


def check_tokens(name: str, tokens: Any, shape: str, vocab_size: int) -> None:
    """Raise unless `tokens` are token ids, on any device.

    On a GPU this waits for the device. That is cheaper than an id out of range, after
    which the process could not use the GPU any more. Only type and shape are checked
    for tokens without values: on the meta device, fake tensors, within `vmap`, and
    while a graph is traced or captured.

    Args:
        name: of the argument.
        tokens: the ids.
        shape: names of the axes, such as "[B, T]"; each size is at least 1.
        vocab_size: V; ids are 0 to V - 1.

    Raises:
        TypeError: if `tokens` is not an int64 or int32 tensor.
        ValueError: if `tokens` has another shape, or an id is out of range.
    """
    if not isinstance(tokens, Tensor) or tokens.dtype not in (
        torch.int64,
        torch.int32,
    ):
        kind = tokens.dtype if isinstance(tokens, Tensor) else describe(tokens)
        raise TypeError(
            f"{name} must be an int64 or int32 tensor {shape}, got {kind}"
        )
    if tokens.ndim != shape.count(",") + 1 or tokens.numel() == 0:
        raise ValueError(
            f"{name} must have shape {shape} with every size >= 1, "
            f"got {list(tokens.shape)}"
        )
    found = value_range(tokens)
    if found is not None and (found[0] < 0 or found[1] >= vocab_size):
        invalid = found[0] if found[0] < 0 else found[1]
        raise ValueError(f"{name} must be in [0, {vocab_size - 1}], got {invalid}")


def check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless a tensor has this shape."""
    if tuple(value.shape) != shape:
        raise ValueError(
            f"{name} must have shape {list(shape)}, got {list(value.shape)}"
        )


def value_range(tensor: Tensor) -> tuple[int, int] | None:
    """Return the smallest and the largest of some integers, or None if unknown.

    They are unknown on the meta device, in fake tensors, within `vmap`, and while a
    graph is traced or captured.
    """
    if is_traced() or (tensor.is_cuda and torch.cuda.is_current_stream_capturing()):
        return None
    try:
        low, high = torch.stack(torch.aminmax(tensor)).tolist()
    except RuntimeError:  # no values, or an error that the caller will see too
        return None
    return low, high


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, choices))}, "
            f"got {shorten(value)}"
        )


def check_device(device: Any) -> None:
    """Raise unless `device` is None, a torch.device or the name of one.

    Raises:
        TypeError, ValueError: if it is anything else.
    """
    check_instance("device", device, str, torch.device, type(None))
    try:
        torch.device("cpu" if device is None else device)
    except RuntimeError as error:
        raise ValueError(
            f"device must be a name like 'cpu', got {shorten(device)}"
        ) from error


def check_bool(name: str, value: Any) -> None:
    """Raise a TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {describe(value)}")
