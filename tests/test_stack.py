"""Tests of the two stacks: equal, exact to second order and safe."""

import pytest
import torch
from exact import assert_same, gradients, normal
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from fbt import MemoryStack, TorchStack

B, H, D = 2, 3, 5


def steps(count: int) -> list[torch.Tensor]:
    return [normal(B, H, 1, D, seed=i) for i in range(count)]


def windows(stack, items):
    """Push item after item, and return the window after each push."""
    seen = []
    for item in items:
        stack.push(item)
        seen.append(stack.window())
    return seen


@pytest.mark.parametrize("past", [0, 1, 3])
@pytest.mark.parametrize("span", [3, 4, 7, 11])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_memory_stack_equals_torch_stack(count, span, past):
    items = steps(count)
    initial = normal(B, H, past, D, seed=99) if past else None
    named = {f"item {i}": item for i, item in enumerate(items)} | (
        {"initial": initial} if past else {}
    )
    seen = windows(MemoryStack(span, count, initial), items)
    expected = windows(TorchStack(span, initial), items)
    assert [w.shape[2] for w in seen] == [
        min(span, past + t + 1) for t in range(count)
    ]
    assert_same(seen, expected)
    assert_same(gradients(seen, named), gradients(expected, named))


@pytest.mark.parametrize(
    "make",
    [
        lambda initial: TorchStack(4, initial),
        lambda initial: MemoryStack(4, 3, initial),
    ],
)
def test_new_stack_shows_initial_items(make):
    assert make(None).window() is None
    initial = normal(B, H, 4, D)
    assert torch.equal(make(initial).window(), initial)


@pytest.mark.parametrize("past, span", [(0, 7), (2, 7), (0, 2), (2, 2)])
def test_gradcheck_to_second_order(past, span):
    """Each window goes through a function with a second derivative."""
    inputs = steps(3) + ([normal(B, H, past, D, seed=99)] if past else [])

    def through_stack(*tensors):
        initial = tensors[3] if past else None
        return tuple(
            w.tanh().sum(dim=2)
            for w in windows(MemoryStack(span, 3, initial), tensors[:3])
        )

    assert gradcheck(through_stack, inputs)
    assert gradgradcheck(through_stack, inputs)


# raised inside torch
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")
def test_forward_mode_raises():
    (item,) = steps(1)
    with (
        forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match=r"jvp|forward mode"),
    ):
        MemoryStack(3, 1).push(
            forward_ad.make_dual(item.detach(), torch.ones_like(item))
        )


def test_only_some_inputs_need_a_gradient():
    items = steps(5)
    frozen = [item.detach() if i in (0, 3) else item for i, item in enumerate(items)]
    named = {f"item {i}": frozen[i] for i in (1, 2, 4)}
    seen, expected = (
        windows(stack, frozen) for stack in (MemoryStack(2, 5), TorchStack(2))
    )
    assert [w.requires_grad for w in seen] == [w.requires_grad for w in expected]
    assert_same(
        gradients([w for w in seen if w.requires_grad], named),
        gradients([w for w in expected if w.requires_grad], named),
    )


def test_unused_window_gets_no_gradient():
    items = steps(4)
    seen = windows(MemoryStack(3, 4), items)
    grads = torch.autograd.grad(seen[1].sum(), items, allow_unused=True)
    assert [None if g is None else g.unique().tolist() for g in grads] == [
        [1.0],
        [1.0],
        None,
        None,
    ]


def test_windows_share_one_buffer():
    seen = windows(MemoryStack(3, 7), steps(7))
    assert len({w.untyped_storage().data_ptr() for w in seen}) == 1
    assert seen[-1].untyped_storage().nbytes() == B * H * 7 * D * 8


def test_torch_stack_copies_at_every_step():
    seen = windows(TorchStack(3), steps(7))
    assert len({w.untyped_storage().data_ptr() for w in seen}) == 7


def test_push_to_full_stack_raises_and_keeps_window():
    stack = MemoryStack(3, 2)
    windows(stack, steps(2))
    before = stack.window().clone()
    with pytest.raises(IndexError, match="capacity 2 cannot hold 3"):
        stack.push(steps(3)[2])
    assert torch.equal(stack.window(), before)


def test_capacity_does_not_count_initial_items():
    stack = MemoryStack(3, 2, normal(B, H, 3, D))
    windows(stack, steps(2))
    with pytest.raises(IndexError, match="capacity 5 cannot hold 6"):
        stack.push(steps(3)[2])


def test_wider_dtype_raises():
    stack = MemoryStack(3, 2, torch.zeros(B, H, 1, D))
    with pytest.raises(
        TypeError,
        match=r"must fit in the stack's dtype torch.float32, got torch.float64",
    ):
        stack.push(normal(B, H, 1, D))


def test_narrower_dtype_is_promoted_like_torch_stack():
    initial, items = (
        normal(B, H, 2, D),
        [item.float().detach().requires_grad_() for item in steps(4)],
    )
    named = {f"item {i}": item for i, item in enumerate(items)} | {"initial": initial}
    seen, expected = (
        windows(stack, items)
        for stack in (MemoryStack(3, 4, initial), TorchStack(3, initial))
    )
    # While an initial item is in view; later windows of TorchStack are narrow again.
    assert (
        [w.dtype for w in expected[:2]]
        == [w.dtype for w in seen[:2]]
        == [torch.float64] * 2
    )
    assert_same(
        [w.double() for w in seen],
        [w.double() for w in expected],
        "window",
        rtol=0,
        atol=0,
    )
    grads, expected_grads = (
        gradients([w.double() for w in ws], named) for ws in (seen, expected)
    )
    assert {name: g.dtype for name, g in grads.items()} == {
        name: t.dtype for name, t in named.items()
    }
    assert_same(grads, expected_grads, rtol=1e-6, atol=1e-6)


def test_push_of_more_items_than_span_raises():
    with pytest.raises(ValueError, match="items must be at most span=3 steps, got 4"):
        MemoryStack(3, 2, normal(B, H, 4, D))


@pytest.mark.parametrize(
    "write",
    [lambda w: w.zero_(), lambda w: w[:, :, 0].fill_(1.0), lambda w: w.mul_(2)],
)
def test_writing_to_window_raises(write):
    seen = windows(MemoryStack(3, 4), steps(4))
    with pytest.raises(RuntimeError, match="modified inplace"):
        write(seen[2])


def test_writing_to_detached_window_makes_backward_raise():
    """`detach` shares the version counter, so backward notices the write."""
    seen = windows(MemoryStack(3, 4), steps(4))
    loss = sum((w**2).sum() for w in seen)
    seen[2].detach().zero_()
    with pytest.raises(RuntimeError, match=r"modified (in-?place|by an inplace)"):
        loss.backward()


@pytest.mark.parametrize("past", [0, 3])
def test_initial_content_of_buffer_does_not_matter(monkeypatch, past):
    """Fill new buffers with NaN: no row may be read before it is written."""
    items, initial = steps(7), normal(B, H, past, D, seed=99) if past else None
    expected = windows(TorchStack(4, initial), items)
    original, poisoned = torch.Tensor.new_empty, []

    def new_empty(self, *args, **kwargs):
        poisoned.append(args)
        return original(self, *args, **kwargs).fill_(torch.nan)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    seen = windows(MemoryStack(4, 7, initial), items)
    assert len(poisoned) == 1
    assert_same(seen, expected)
    named = {f"item {i}": item for i, item in enumerate(items)}
    assert_same(gradients(seen, named), gradients(expected, named))
