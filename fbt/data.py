"""Split a text, and cut windows from it for training and evaluation."""

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fbt._checks import check_instance, check_int, check_integers, describe, shorten

Array = np.ndarray[Any, np.dtype[Any]]
Tokens = Tensor | Array
Text = TypeVar("Text", str, Tensor, Array, Tokens)


def split(data: Text, validation: float = 0.1) -> tuple[Text, Text]:
    """Split a text or its tokens into a training part and a validation part.

    Args:
        data: a str of N characters, or a tensor or array [N], whose parts are views.
        validation: the fraction at the end that is for validation, in (0, 1).

    Returns:
        The first int(N (1 - validation)) entries and the rest. For Tiny Shakespeare
        and the default these are 1,003,854 and 111,540 characters.

    Raises:
        TypeError: if `data` is neither a str nor a tensor or array, or `validation`
            is not a number.
        ValueError: if `validation` is out of range, `data` is not one-dimensional, or
            a part would be empty.
    """
    if not isinstance(data, str | Tensor | np.ndarray):
        raise TypeError(f"data must be a str or a tensor, got {describe(data)}")
    if not isinstance(data, str) and data.ndim != 1:
        raise ValueError(f"data must have shape [N], got {list(data.shape)}")
    if isinstance(validation, bool) or not isinstance(validation, int | float):
        raise TypeError(
            f"validation must be a number in (0, 1), got {describe(validation)}"
        )
    if not 0 < validation < 1:
        raise ValueError(
            f"validation must be a number in (0, 1), got {shorten(validation)}"
        )
    cut = int(len(data) * (1 - validation))
    if not 0 < cut < len(data):
        raise ValueError(
            "data must be long enough to split, got "
            f"length {len(data)} with validation={validation}"
        )
    return data[:cut], data[cut:]


def random_windows(
    tokens: Tokens, *, length: int, batch_size: int, generator: torch.Generator
) -> Tensor:
    """Draw windows uniformly, with replacement: a batch for training.

    Args:
        tokens: integer tensor or array [N], such as a NumPy memory map.
        length: T, the steps to predict per window, from 1 to N-1.
        batch_size: B, the number of windows, at least 1.
        generator: the source of randomness; the same state gives the same windows.

    Returns:
        Tensor [B, T+1], a copy; int64 for an array. All columns but the last are
        inputs, all columns but the first are targets.

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.
    """
    _check_windows(tokens, length)
    check_int("batch_size", batch_size, low=1)
    check_instance("generator", generator, torch.Generator)
    starts = torch.randint(
        len(tokens) - length,
        (batch_size,),
        generator=generator,
        device=generator.device,
    )
    return windows_at(tokens, starts, length)


def even_windows(tokens: Tokens, *, length: int, count: int | None = None) -> Tensor:
    """Return evenly spaced windows, the same in every evaluation.

    Args:
        tokens: integer tensor or array [N].
        length: T, the steps to predict per window, from 1 to N-1.
        count: W, the number of windows, from 1 to N-T. The first starts at the
            beginning and the last ends at the end; they may overlap. None means
            (N-1) // T windows, each of which starts with the last token of the one
            before. Every token but the first is then predicted once, except for a
            tail shorter than T.

    Returns:
        Tensor [W, T+1], a copy; int64 for an array.

    Raises:
        TypeError, ValueError: if an argument has the wrong type or is out of range.
    """
    _check_windows(tokens, length)
    last = len(tokens) - length - 1
    if count is None:
        starts = torch.arange(0, last + 1, length, device="cpu")
    else:
        check_int("count", count, low=1, high=last + 1)
        starts = torch.arange(count, device="cpu") * last // max(count - 1, 1)
    return windows_at(tokens, starts, length)


def _check_windows(tokens: Tokens, length: int) -> None:
    if isinstance(tokens, np.ndarray):
        if tokens.dtype.kind not in "iu" or tokens.ndim != 1:
            raise TypeError(
                f"tokens must be an array of integers [N], got {describe(tokens)}"
            )
    else:
        check_integers("tokens", tokens, "[N]")
    if len(tokens) < 2:
        raise ValueError(f"tokens must have at least 2 entries, got {len(tokens)}")
    check_int("length", length, low=1, high=len(tokens) - 1)


def windows_at(tokens: Tokens, starts: Tensor, length: int) -> Tensor:
    """Return the windows [B, T+1] that begin at `starts` [B]."""
    positions = starts[:, None] + torch.arange(length + 1, device=starts.device)
    if isinstance(tokens, np.ndarray):  # of any integer type, perhaps in a file
        return torch.from_numpy(tokens[positions.cpu().numpy()].astype(np.int64))
    return tokens[positions.to(tokens.device)]
