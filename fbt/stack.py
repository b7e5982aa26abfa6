"""Stacks of keys or values, which grow step by step: a plain one and a fast one.

Both store the items of all steps, and show a query the last `span` of them.

- `TorchStack` keeps a list and calls `torch.stack` at every step. Step t copies t
  items, and backward unbinds t gradients. A sequence of T steps makes $T^2 / 2$
  copies and keeps all of them until backward.
- `MemoryStack` writes each item once into a preallocated buffer. A step sees a window
  of that buffer, returned by a custom autograd Function. Its backward passes the
  gradient along the chain of windows.

A stack belongs to one forward pass, and its gradients to the graph. Two forwards
before a backward, a second backward or a copy of the model therefore do not
interfere.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fbt._checks import check_float_tensor, check_int


def check_item(name: str, items: Tensor, like: Tensor | None) -> None:
    """Raise unless items [B, H, n, D] of one or more steps fit on a stack.

    Args:
        name: name of the argument, for the message.
        items: the items to be pushed.
        like: items [B, H, ..., D] already on the stack, or None.

    Raises:
        TypeError: if `items` is not a floating-point tensor.
        ValueError: if `items` has another shape.
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
            f"{name} must have shape [{batch}, {heads}, n, {width}], "
            f"got {list(items.shape)}"
        )


class TorchStack:
    """A list of items, joined by `torch.stack`: the reference for `MemoryStack`.

    Args:
        span: largest number of items in a window.
        initial: items of an earlier block, [B, H, P, D], or None.
    """

    def __init__(self, span: int, initial: Tensor | None = None) -> None:
        check_int("span", span, low=1)
        if initial is not None:
            check_item("initial", initial, None)
        self.span = span
        self.items = [] if initial is None else list(initial.unbind(dim=2))

    def push(self, item: Tensor) -> None:
        """Append the item of one step, [B, H, 1, D].

        Raises:
            TypeError, ValueError: if `item` is not a floating-point tensor of this
                shape.
        """
        check_item("item", item, self.items[0] if self.items else None)
        if item.shape[2] != 1:
            raise ValueError(
                f"item must be of one step, [B, H, 1, D], got {list(item.shape)}"
            )
        self.items.append(item.squeeze(2))

    def window(self) -> Tensor | None:
        """Return the last `span` items, oldest first, [B, H, J, D]; None if empty."""
        return torch.stack(self.items[-self.span :], dim=2) if self.items else None


class MemoryStack:
    """A preallocated buffer that is written in place, with differentiable windows.

    Args:
        span: largest number of items in a window.
        capacity: how many items will be pushed, not counting `initial`.
        initial: items of an earlier block, [B, H, P, D], or None.
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
            IndexError: if the stack has not enough capacity left.
            TypeError: if `items` is not a floating-point tensor, or has a wider dtype
                than the items on the stack.
            ValueError: if `items` has another shape than the items on the stack, or
                more than `span` steps.
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
                f"items must fit in the stack's dtype {self._buffer.dtype}, "
                f"got {items.dtype}"
            )
        self._window = _Push.apply(
            self._window, items, self._buffer, start, max(0, stop - self.span)
        )
        self.length = stop

    def window(self) -> Tensor | None:
        """Return the last `span` items, oldest first, [B, H, J, D]; None if empty."""
        return self._window


class _Push(torch.autograd.Function):
    """Write items after a window, and return the window that includes them.

    As a function of its inputs this is a concatenation: window' = [window; items],
    without the rows that leave the span. Backward therefore only splits the gradient.
    Both directions consist of differentiable operations and save no tensors, so
    second derivatives are exact too.
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
        # Layers save their windows for backward, and autograd would reject them after
        # the next write to the buffer. That write is safe, because a row is written
        # once, before any window shows it. So `.data` gives each window a version
        # counter of its own.
        return buffer.data[:, :, oldest:stop]

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor, None, None, None]:
        grad_window = grad[:, :, : ctx.kept] if ctx.needs_input_grad[0] else None
        if grad_window is not None and ctx.dropped:
            grad_window = F.pad(grad_window, (0, 0, ctx.dropped, 0))
        return grad_window, grad[:, :, ctx.kept :], None, None, None
