"""Stacks that grow by one step at a time: the plain one, and the custom function of chapter 4.

Both hold what steps leave for later steps (keys, or values) and show a query the last
`span` of them.

- `TorchStack` keeps a list and calls `torch.stack` at every step. Step t copies t
  items, and backward unbinds t gradients: a sequence of T steps makes $T^2 / 2$
  copies and keeps all of them until backward.
- `MemoryStack` writes each item once into a preallocated buffer. What a step sees is
  a window on that buffer, returned by an autograd Function whose backward passes the
  gradient along the chain of windows.

Nothing here outlives the call that made it: a stack belongs to one forward pass, and
its gradients live in the graph. Two forwards before a backward, a second backward or
a copy of the model cannot disturb it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fbt._checks import check_float_tensor, check_int


def check_item(name: str, items: Tensor, like: Tensor | None) -> None:
    """Raise unless items [B, H, n, D] of one or more steps fit on a stack.

    Args:
        name: of the argument.
        items: what is to be pushed.
        like: items [B, H, ..., D] that are there already, or None.

    Raises:
        TypeError: they are not a floating-point tensor.
        ValueError: they have another shape.
    """
    check_float_tensor(name, items)
    if items.ndim != 4 or (
        like is not None
        and (*items.shape[:2], items.shape[3]) != (*like.shape[:2], like.shape[-1])
    ):
        batch, heads, width = (
            ("B", "H", "D") if like is None else (*like.shape[:2], like.shape[-1])
        )
        raise ValueError(
            f"{name} must have shape [{batch}, {heads}, n, {width}], got {list(items.shape)}"
        )


class TorchStack:
    """A list of items and `torch.stack`: the definition that `MemoryStack` must agree with.

    Args:
        span: the most items a window shows.
        initial: items carried in from an earlier block, [B, H, P, D], or None.
    """

    def __init__(self, span: int, initial: Tensor | None = None) -> None:
        check_int("span", span, low=1)
        if initial is not None:
            check_item("initial", initial, None)
        self.span = span
        self.items = [] if initial is None else list(initial.unbind(dim=2))

    def push(self, item: Tensor) -> None:
        """Append one step's item, [B, H, 1, D].

        Raises:
            TypeError, ValueError: the item is not a floating-point tensor of this
                shape.
        """
        check_item("item", item, self.items[0] if self.items else None)
        if item.shape[2] != 1:
            raise ValueError(
                f"item must be of one step, [B, H, 1, D], got {list(item.shape)}"
            )
        self.items.append(item.squeeze(2))

    def window(self) -> Tensor | None:
        """The last `span` items, oldest first, as [B, H, J, D]; None while there are none."""
        return torch.stack(self.items[-self.span :], dim=2) if self.items else None


class MemoryStack:
    """A preallocated buffer, written in place, whose windows come from an autograd Function.

    Args:
        span: the most items a window shows.
        capacity: how many items will be pushed, those of `initial` not counted.
        initial: items carried in from an earlier block, [B, H, P, D], or None.
    """

    def __init__(
        self, span: int, capacity: int, initial: Tensor | None = None
    ) -> None:
        check_int("span", span, low=1)
        check_int("capacity", capacity, low=0)
        if initial is not None:
            check_item("initial", initial, None)
        self.span = span
        self.capacity = capacity + (0 if initial is None else initial.shape[2])
        self.length = 0
        self._buffer: Tensor | None = None
        self._window: Tensor | None = None
        if initial is not None:
            self.push(initial)

    def push(self, items: Tensor) -> None:
        """Append the items of one or more steps, [B, H, n, D] with n <= span.

        Raises:
            IndexError: the stack is full.
            TypeError: the items are not floating-point numbers, or of a wider dtype
                than those before.
            ValueError: the items have another shape than those before, or are more
                than the span shows.
        """
        check_item("items", items, self._buffer)
        start, stop = self.length, self.length + items.shape[2]
        if stop > self.capacity:
            raise IndexError(
                f"a MemoryStack of capacity {self.capacity} cannot hold {stop} items"
            )
        if items.shape[2] > self.span:
            raise ValueError(
                f"items must be at most span={self.span} steps, got {items.shape[2]}"
            )
        if self._buffer is None:
            batch, heads, _, width = items.shape
            self._buffer = items.new_empty(batch, heads, self.capacity, width)
        elif (
            torch.promote_types(items.dtype, self._buffer.dtype) != self._buffer.dtype
        ):
            raise TypeError(
                f"items must fit in {self._buffer.dtype} like those before, got {items.dtype}"
            )
        self._window = _Push.apply(
            self._window, items, self._buffer, start, max(0, stop - self.span)
        )
        self.length = stop

    def window(self) -> Tensor | None:
        """The last `span` items, oldest first, as [B, H, J, D]; None while there are none."""
        return self._window


class _Push(torch.autograd.Function):
    """Write items behind a window, and return the window that includes them.

    As a function of its inputs this is concatenation: window' = [window; items], less
    what slid out of the span. So backward only cuts the gradient in two. Both
    directions are made of differentiable operations on their inputs, and nothing is
    saved, so a second derivative is exact as well.
    """

    @staticmethod
    def forward(
        ctx: Any,
        window: Tensor | None,
        items: Tensor,
        buffer: Tensor,
        start: int,
        oldest: int,
    ) -> Tensor:
        stop = start + items.shape[2]
        ctx.kept = start - oldest  # rows of the earlier window that stay in view
        ctx.dropped = 0 if window is None else window.shape[2] - ctx.kept
        buffer[:, :, start:stop] = items
        # Layers keep their windows for backward, and autograd would refuse them once
        # the buffer is written again. Rows are written once, before anyone sees them,
        # so there is nothing to refuse: `.data` gives every window a version counter
        # of its own.
        return buffer.data[:, :, oldest:stop]

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor, None, None, None]:
        grad_window = grad[:, :, : ctx.kept] if ctx.needs_input_grad[0] else None
        if grad_window is not None and ctx.dropped:
            grad_window = F.pad(grad_window, (0, 0, ctx.dropped, 0))
        return grad_window, grad[:, :, ctx.kept :], None, None, None
