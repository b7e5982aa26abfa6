"""Cached keys and values, passed from one block of a text to the next."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fbt._checks import check_callable, check_items, describe, is_traced, shorten


@dataclass(frozen=True, eq=False)  # == of tensors is not a bool
class State:
    """Cached keys and values of at most `span` steps, the oldest first.

    A state is never changed in place, so several continuations may start from it.

    Attributes:
        keys, values: one tensor [B, H, J, D] per cache, 1 <= J <= span. A parallel or
            feedback model has one cache per layer, a shared-KV model has one in all.

    Raises:
        TypeError: if `keys` or `values` is not a sequence of tensors.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        """Check the types of the fields."""
        if not is_traced():
            check_items("keys", self.keys, Tensor)
            check_items("values", self.values, Tensor)

    def __repr__(self) -> str:
        shape = [*self.keys[0].shape] if self.keys else []
        return f"State({len(self.keys)} keys and values {shape})"

    def detach(self) -> "State":
        """Return a detached state: gradients stop at the border of the block."""
        return self.map(Tensor.detach)

    def map(self, function: Callable[[Tensor], Tensor]) -> "State":
        """Return a state with a function applied to each tensor [B, H, J, D]."""
        check_callable("function", function)
        return State(
            tuple(map(function, self.keys)), tuple(map(function, self.values))
        )

    @property
    def batch_size(self) -> int:
        """The number of sequences, B."""
        return self.keys[0].shape[0]

    @property
    def length(self) -> int:
        """The number of cached steps, J."""
        return self.keys[0].shape[2]

    @property
    def nbytes(self) -> int:
        """The size of all keys and values in bytes."""
        return sum(t.numel() * t.element_size() for t in self.keys + self.values)


def check_state(
    state: State | None, x: Tensor, *, caches: int, heads: int, span: int
) -> None:
    """Raise unless a state is None or fits embeddings x [B, T, d] and a body.

    Args:
        state: to be continued by x.
        x: embeddings.
        caches: number of caches of the body.
        heads: number of heads H.
        span: largest number of steps in a state.

    Raises:
        TypeError: if `state` is not a State or, without autocast, has another dtype
            than x.
        ValueError: if the state belongs to another batch or body, or is on another
            device.
    """
    if state is None:
        return
    if not isinstance(state, State):
        raise TypeError(f"state must be a State or None, got {describe(state)}")
    tensors = [*state.keys, *state.values]
    batch, _, width = x.shape
    shapes = {tuple(tensor.shape) for tensor in tensors}
    shape = shapes.pop() if len(shapes) == 1 else ()
    sizes_fit = len(shape) == 4 and shape == (batch, heads, shape[2], width // heads)
    if (
        not sizes_fit
        or not 1 <= shape[2] <= span
        or {len(state.keys), len(state.values)} != {caches}
    ):
        raise ValueError(
            f"state must have {caches} keys and values "
            f"[{batch}, {heads}, 1..{span}, {width // heads}] for these tokens and "
            "this model, got keys "
            f"{shorten([list(k.shape) for k in state.keys])} and values "
            f"{shorten([list(v.shape) for v in state.values])}"
        )
    for tensor in tensors:
        if tensor.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(
                f"state must be {x.dtype} like the model, got {tensor.dtype}"
            )
        if tensor.device != x.device:
            raise ValueError(
                f"state must be on {x.device} like the model, got {tensor.device}"
            )
