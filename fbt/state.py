"""Cached keys and values, passed from one block of a text to the next.

A state is a value: it never changes. Copying it at every step would cost more than
the step itself, so states that follow each other share a `Cache`. Step by step it is
filled with rows, each of which is written once:

    rows of the cache    0 1 2 3 4 5 6 7 . . . .
    a state (span 5)         [2 3 4 5 6]
    the newest one             [3 4 5 6 7]

The newest state continues in the next row. Any other one is copied first, into a
cache of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from fbt._checks import (
    check_callable,
    check_integers,
    check_items,
    check_shape,
    describe,
    is_traced,
    shorten,
    value_range,
)


@dataclass(frozen=True, eq=False)  # == of tensors is not a bool
class State:
    """Cached keys and values of at most `span` steps, the oldest first.

    A state is never changed in place, so several continuations may start from it.
    States returned by single steps without gradients share memory with each other.

    Attributes:
        keys, values: one tensor [B, H, J, D] per cache, 1 <= J <= span. A parallel or
            feedback model has one cache per layer, a shared-KV model has one in all.
        filled: how many of the newest steps each sequence may see [B], 0 to J, where
            some began later than others; None if all may see all J.

    Raises:
        TypeError: if `keys` or `values` is not a sequence of tensors, or `filled` is
            not a tensor of integers.
        ValueError: if `filled` does not have shape [B].
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    filled: Tensor | None = None
    # The cache that the keys and values are rows of, and the row after the last one.
    _place: "tuple[Cache, int] | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Check the types of the fields."""
        if not is_traced():
            check_items("keys", self.keys, Tensor)
            check_items("values", self.values, Tensor)
            if self.filled is not None:
                check_integers("filled", self.filled, "[B]")

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy or pickle the rows that the state shows, not the cache around them."""
        rows = self if self._place is None else self.map(Tensor.clone)
        return State, (rows.keys, rows.values, rows.filled)

    def __repr__(self) -> str:
        """Return the shapes."""
        shapes = sorted({str(list(t.shape)) for t in (*self.keys, *self.values)})
        return f"State({len(self.keys)} keys and values {' '.join(shapes)})"

    def detach(self) -> "State":
        """Return a detached state: gradients stop at the border of the block."""
        if self._place is not None:  # computed without gradients
            return self
        return self.map(Tensor.detach)

    def select(self, rows: Tensor | Sequence[int]) -> "State":
        """Return the state of some of the sequences, in any order, also repeatedly.

        Beam search continues the best beams with it: `state.select(parents)`.

        Args:
            rows: indices [N] of sequences, 0 to B - 1.

        Raises:
            TypeError: if `rows` are not integers.
            ValueError: if `rows` has another shape or an index is out of range.
        """
        indices = self._indices(rows)
        if not is_traced() and len(indices) == 0:
            raise ValueError(
                f"rows must be at least one index in [0, {self.batch_size - 1}], "
                "got []"
            )
        selected = self.map(lambda kv: kv.index_select(0, indices))
        if self.filled is None:
            return selected
        filled = self.filled.to(indices.device).index_select(0, indices)
        return State(selected.keys, selected.values, filled)

    def clear(self, rows: Tensor | Sequence[int]) -> "State":
        """Return a state in which some sequences have an empty memory.

        Their next steps are computed as if they were the first ones, and the others
        go on: for the slots of a server that gets a new request, or for environments
        whose episodes have ended.

        Args:
            rows: indices [N] of sequences, 0 to B - 1; there may be none.

        Raises:
            TypeError: if `rows` are not integers.
            ValueError: if `rows` has another shape or an index is out of range.
        """
        indices = self._indices(rows)
        kept = torch.ones(self.batch_size, dtype=torch.bool, device=indices.device)
        kept = kept.index_fill(0, indices, False)
        hidden = ~kept[:, None, None, None]
        cleared = self.map(lambda kv: kv.masked_fill(hidden, 0))
        filled = kept * self.length
        if self.filled is not None:
            filled = kept * self.filled.to(kept.device)
        return State(cleared.keys, cleared.values, filled)

    def map(self, function: Callable[[Tensor], Tensor]) -> "State":
        """Return a state with a function applied to each tensor.

        Args:
            function: from a tensor [B, H, J, D] to a tensor, of the same shape if
                sequences began at different steps (`filled` is not None).

        Returns:
            A new state; this one is not changed.

        Raises:
            TypeError: if `function` cannot be called.
        """
        check_callable("function", function)
        return State(
            tuple(map(function, self.keys)),
            tuple(map(function, self.values)),
            self.filled,
        )

    def _indices(self, rows: Tensor | Sequence[int]) -> Tensor:
        """Return indices of sequences as int64 on the device of the state."""
        if not isinstance(rows, Tensor):
            check_items("rows", rows, int)
            rows = torch.tensor(list(rows), dtype=torch.int64, device="cpu")
        check_integers("rows", rows, "[N]")
        found = value_range(rows) if len(rows) else None
        if found is not None and not 0 <= found[0] <= found[1] < self.batch_size:
            raise ValueError(
                f"rows must be indices in [0, {self.batch_size - 1}], "
                f"got {shorten(rows.tolist())}"
            )
        return rows.to(self.keys[0].device, torch.int64)

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


class Cache:
    """Keys and values of consecutive steps, in memory that states share.

    Args:
        keys, values: a buffer [B, H, capacity, D] for each cache of the body.
        rows: the number of rows that are filled.
        oldest: the first row [B] that each sequence may see; None for all rows.
    """

    def __init__(
        self,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        rows: int,
        oldest: Tensor | None,
    ) -> None:
        # `.data` has a version counter of its own: autograd accepts the rows that
        # states show after later rows have been written.
        self._keys = tuple(key.data for key in keys)
        self._values = tuple(value.data for value in values)
        self._rows, self._capacity, self.oldest = rows, keys[0].shape[2], oldest
        self._lock = Lock()

    @classmethod
    def starting(
        cls,
        state: State | None,
        like: Tensor,
        count: int,
        span: int,
        oldest: Tensor | None,
    ) -> "Cache":
        """Return a cache with a copy of a state's rows, and space for more.

        Args:
            state: the state, or None for an empty cache.
            like: [B, H, 1, D], with the dtype and device of the rows.
            count: the number of keys, and of values, of a state.
            span: of the body.
            oldest: the first row [B] that each sequence may see; None for all rows.
        """
        rows = 0 if state is None else state.length
        batch, heads, _, width = like.shape
        with torch.inference_mode(False), torch.no_grad():
            keys, values = (
                [
                    like.new_empty(batch, heads, capacity_after(rows, span), width)
                    for _ in range(count)
                ]
                for _ in range(2)
            )
            if state is not None:
                for buffers, own in ((keys, state.keys), (values, state.values)):
                    for buffer, tensor in zip(buffers, own, strict=True):
                        buffer[:, :, :rows] = tensor
        return cls(keys, values, rows, oldest)

    def append(
        self, index: int, row: int, span: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write one step [B, H, D] into a claimed row.

        Args:
            index: which keys and values of the state.
            row: the row.
            span: how many rows before it to return, too.
            keys: of the step.
            values: of the step.

        Returns:
            Keys and values [B, H, J, D] up to this row.
        """
        low = max(0, row - span)
        windows = []
        for buffer, new in ((self._keys[index], keys), (self._values[index], values)):
            buffer.select(2, row).copy_(new)
            windows.append(buffer.narrow(2, low, row + 1 - low))
        return windows[0], windows[1]

    def claim(self, row: int) -> bool:
        """Reserve a row for the caller; False if it is taken or does not exist."""
        with self._lock:
            if row != self._rows or row == self._capacity:
                return False
            self._rows += 1
            return True

    def state(self, stop: int, span: int) -> State:
        """Return the state with the last `span` rows before row `stop`."""
        low = max(0, stop - span)
        filled = None
        if self.oldest is not None:
            filled = (stop - self.oldest).clamp(max=stop - low)
        state = State(
            tuple(key.narrow(2, low, stop - low) for key in self._keys),
            tuple(value.narrow(2, low, stop - low) for value in self._values),
            filled,
        )
        object.__setattr__(state, "_place", (self, stop))  # a state is frozen
        return state


def capacity_after(length: int, span: int) -> int:
    """Return the number of rows of a new cache that begins with `length` rows.

    Growing by a factor copies each row a few times at most. A step sees `span` rows,
    so with twice as many, the rows are moved once per span.
    """
    return min(2 * span, max(2 * length, length + 64))


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
    shape: tuple[int, ...] = tuple(tensors[0].shape) if tensors else ()
    # Compared, not hashed: symbolic sizes of a graph have no hash.
    equal = all(tensor.shape == shape for tensor in tensors)
    sizes_fit = (
        equal
        and len(shape) == 4
        and shape == (batch, heads, shape[2], width // heads)
    )
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
    if state.filled is not None:
        check_shape("state.filled", state.filled, (batch,))
    for tensor in tensors:
        if tensor.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(
                f"state must be {x.dtype} like the model, got {tensor.dtype}"
            )
        if tensor.device != x.device:
            raise ValueError(
                f"state must be on {x.device} like the model, got {tensor.device}"
            )
