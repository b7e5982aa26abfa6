"""Argument checks shared by the package: each raises an error that quotes name, value and allowed range."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

from torch import Tensor


def check_int(name: str, value: Any, *, low: int, high: int | None = None) -> None:
    """Raise unless `value` is a whole number in [low, high] (no upper limit if `high` is None).

    Raises:
        TypeError: `value` is not an int (a bool is not one either).
        ValueError: `value` is outside the range.
    """
    allowed = f"an int >= {low}" if high is None else f"an int in [{low}, {high}]"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be {allowed}, got {value!r} of type {type(value).__name__}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} must be {allowed}, got {value}")


def check_real(
    name: str, value: Any, *, low: float, high: float = float("inf"), open_high: bool = False
) -> None:
    """Raise unless `value` is a real number in [low, high], or in [low, high) if `open_high`.

    Raises:
        TypeError: `value` is not a real number.
        ValueError: `value` is outside the range or not a number.
    """
    allowed = f"a number in [{low}, {high}{')' if open_high or high == float('inf') else ']'}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {allowed}, got {value!r} of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an int beyond all floats
        number = float("inf")
    if not low <= number <= high or (open_high and number == high) or number == float("inf"):
        raise ValueError(f"{name} must be {allowed}, got {value}")


def check_instance(name: str, value: Any, *types: type) -> None:
    """Raise a TypeError unless `value` is of one of `types`."""
    if not isinstance(value, types):
        allowed = " or ".join(t.__name__ for t in types)
        raise TypeError(f"{name} must be of type {allowed}, got {value!r} of type {type(value).__name__}")


def check_embeddings(x: Tensor, width: int) -> None:
    """Raise a ValueError unless x is [B, T, width] with at least one sequence and one step."""
    if x.ndim != 3 or x.shape[-1] != width or x.numel() == 0:
        raise ValueError(f"x must have shape [B, T, {width}] with B, T >= 1, got {list(x.shape)}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_bool(name: str, value: Any) -> None:
    """Raise a TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")
