"""The oldest step that each row may see: lengths, packed documents and resets.

Rows of a batch end at different steps, hold several documents, or start again while
others go on. All of it is one rule: at step t, row b sees no step before
`oldest[b, t]`, nor any beyond the span. Steps are counted from the oldest one in the
state, so the P steps carried in are 0 to P - 1, and step t of a block is P + t:

    steps                  0 1 2 3 4 5 6 7
    a document each        a a a b b b b c
    oldest, step by step   0 0 0 3 3 3 3 7

A hidden step counts for nothing. The first step of a document has no memory, like
the first step of a text, and no gradient crosses a border.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fbt._checks import check_integers, check_shape, describe, value_range
from fbt.state import State

# Keys and values of a window, or None if there are none yet.
Window = tuple[Tensor | None, Tensor | None]


def check_lengths(lengths: Tensor | None, x: Tensor) -> None:
    """Raise unless lengths are None or fit embeddings x [B, T, d].

    Raises:
        TypeError: if `lengths` is not a tensor of integers.
        ValueError: if its shape is not [B], or a length is not in [1, T].
    """
    if lengths is None:
        return
    batch, steps, _ = x.shape
    if isinstance(lengths, Tensor) and lengths.ndim == 2:
        raise ValueError(
            f"lengths must have shape [{batch}], the tokens of each row without the "
            f"padding at its end, got {list(lengths.shape)}. For a mask of the "
            "tokens pass mask.sum(1). Padding at the beginning is no part of it: "
            "mark the first token of each row in `starts` instead"
        )
    check_integers("lengths", lengths, "[B]")
    check_shape("lengths", lengths, (batch,))
    found = value_range(lengths)
    if found is not None and not 1 <= found[0] <= found[1] <= steps:
        wrong = found[0] if found[0] < 1 else found[1]
        raise ValueError(f"lengths must be in [1, {steps}], got {wrong}")


def check_starts(starts: Tensor | None, x: Tensor) -> None:
    """Raise unless starts are None or a bool tensor that fits x [B, T, d].

    Raises:
        TypeError: if `starts` is not a tensor of bool.
        ValueError: if its shape is not [B, T].
    """
    if starts is None:
        return
    if not isinstance(starts, Tensor) or starts.dtype != torch.bool:
        kind = starts.dtype if isinstance(starts, Tensor) else describe(starts)
        raise TypeError(
            "starts must be a bool tensor [B, T], True at the first step of each "
            f"document, got {kind}"
        )
    check_shape("starts", starts, tuple(x.shape[:2]))


def oldest_steps(
    x: Tensor, state: State | None, starts: Tensor | None
) -> Tensor | None:
    """Return the oldest step [B, T] that each step may see, whatever the span.

    Args:
        x: embeddings [B, T, d].
        state: carried in, or None.
        starts: True [B, T] at the first step of a document, or None.

    Returns:
        Numbers of steps in int64, contiguous; None if no step is hidden.
    """
    filled = None if state is None else state.filled
    if starts is None and filled is None:
        return None
    (batch, steps, _), past = x.shape, 0 if state is None else state.length
    oldest = torch.zeros(batch, 1, dtype=torch.int64, device=x.device)
    if filled is not None:
        # Within its range, since engines compute addresses from it.
        oldest = (past - filled.to(x.device, torch.int64)).clamp(0, past)[:, None]
    if starts is None:
        return oldest.expand(-1, steps).contiguous()
    numbers = torch.arange(past, past + steps, device=x.device)
    marked = torch.where(starts.to(x.device), numbers, oldest)
    return marked.cummax(dim=1).values


def hidden(oldest: Tensor, count: int) -> Tensor:
    """Return which of `count` keys are hidden from each query, [B, 1, T, count].

    Args:
        oldest: the first key [B, T] that each query may see, counted from the first
            of these keys.
        count: the number of keys J.
    """
    keys = torch.arange(count, device=oldest.device)
    return (keys < oldest[..., None])[:, None]


def hide_scores_(scores: Tensor, hidden: Tensor) -> Tensor:
    """Make scores [..., J] as low as possible where `hidden` is True; return them.

    They are not -inf, of which softmax makes NaN in a row in which all are hidden.
    """
    return scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)


def softmax_of_visible(scores: Tensor, hidden: Tensor) -> Tensor:
    """Return the softmax over the keys that are not hidden; zeros where all are.

    The scores [..., J] are overwritten.
    """
    return torch.softmax(hide_scores_(scores, hidden), dim=-1).masked_fill(hidden, 0)


def without_hidden(
    windows: list[Window], oldest: Tensor, now: int
) -> tuple[list[Window], Tensor]:
    """Return what a step sees of its windows.

    Args:
        windows: keys and values [B, H, J, D] of the last J steps, for each cache.
        oldest: the oldest step [B, 1] that each row may see.
        now: the number of the step.

    Returns:
        The windows with zeros for hidden steps, whose numbers then do not matter even
        if they are NaN; and the first key [B, 1] of a window that each row may see,
        or J if it may see none.
    """
    keys, _ = windows[0]
    if keys is None:
        return windows, oldest - now
    first = oldest - (now - keys.shape[2])
    unseen = hidden(first, keys.shape[2]).mT

    def visible(kv: Tensor | None) -> Tensor | None:
        return None if kv is None else kv.masked_fill(unseen, 0)

    return [(visible(keys), visible(values)) for keys, values in windows], first


def state_after(
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    span: int,
    past: int,
    steps: int,
    oldest: Tensor | None,
    lengths: Tensor | None,
) -> State:
    """Return the state of each row after its last step.

    Args:
        keys: [B, H, n, D] for each cache, the newest of all P + T steps; all of them
            if there are lengths.
        values: likewise.
        span: most steps in a state.
        past: P.
        steps: T.
        oldest: what `oldest_steps` returned.
        lengths: the number of steps of each row [B], or None for T.
    """
    total, count = past + steps, min(span, past + steps)
    if oldest is None and lengths is None:

        def newest(kv: Tensor) -> Tensor:
            # A clone: the state then keeps only its own memory alive, and writing to
            # it cannot change tensors that backward needs.
            return kv[:, :, -count:].clone()

        return State(tuple(map(newest, keys)), tuple(map(newest, values)))
    batch, _, _, _ = keys[0].shape
    device = keys[0].device
    if lengths is None:
        lengths = torch.full((batch,), steps, device=device)
    lengths = lengths.to(device, torch.int64)
    ends = past + lengths
    first = torch.zeros_like(ends)
    if oldest is not None:
        first = oldest.gather(1, lengths[:, None] - 1)[:, 0]
    numbers = ends[:, None] - count + torch.arange(count, device=device)
    unseen = (numbers < first[:, None])[:, None, :, None]

    def last(kv: Tensor) -> Tensor:
        index = (numbers - (total - kv.shape[2])).clamp(min=0)[:, None, :, None]
        rows = kv.gather(2, index.expand(-1, kv.shape[1], -1, kv.shape[3]))
        return rows.masked_fill(unseen, 0)

    return State(
        tuple(map(last, keys)),
        tuple(map(last, values)),
        (ends - first).clamp(max=count),
    )
