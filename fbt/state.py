"""What one block of text leaves for the next: the cached keys and values of at most `span` steps."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fbt._checks import check_callable, check_items, describe, is_traced, shorten


@dataclass(frozen=True, eq=False)  # tensors have no == that is true or false
class State:
    """Cached keys and values, oldest step first, never written in place: continuations may share one.

    Attributes:
        keys, values: one [B, H, J, D] tensor per cache, 1 <= J <= span. A parallel or
            feedback model has a cache per layer, a shared-KV model has one.

    Raises:
        TypeError: keys or values are not sequences of tensors.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        """Check the types of the fields."""
        if not is_traced():
            check_items("keys", self.keys, Tensor)
            check_items("values", self.values, Tensor)

    def detach(self) -> "State":
        """The same numbers, cut from the graph: gradients stop at the border of the block."""
        return self.map(Tensor.detach)

    def map(self, function: Callable[[Tensor], Tensor]) -> "State":
        """What a function makes of each cache [B, H, J, D]."""
        check_callable("function", function)
        return State(
            tuple(map(function, self.keys)), tuple(map(function, self.values))
        )

    @property
    def batch_size(self) -> int:
        """B, the number of sequences."""
        return self.keys[0].shape[0]

    @property
    def length(self) -> int:
        """J, the number of steps the caches hold."""
        return self.keys[0].shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all cached keys and values."""
        return sum(t.numel() * t.element_size() for t in self.keys + self.values)


def check_state(
    state: State | None, x: Tensor, *, caches: int, heads: int, span: int
) -> None:
    """Raise unless a state is None or what sequences like x [B, T, d] leave in a body.

    Args:
        state: to be continued by x.
        x: embeddings.
        caches: how many keys and values a step leaves in this body.
        heads: heads H of each.
        span: the most steps that a state holds.

    Raises:
        TypeError: it is no state, or of another dtype than x, where autocast does not
            see to that.
        ValueError: it is of another batch or body, or on another device.
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
            f"state must hold {caches} keys and values [{batch}, {heads}, 1..{span}, {width // heads}] for "
            f"these tokens and this model, got keys "
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
