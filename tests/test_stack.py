"""The two stacks: equal in values and gradients, exact to second order, and safe."""

import pytest
import torch
from exact import assert_same, gradients, normal
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from fbt import MemoryStack, TorchStack

B, H, D = 2, 3, 5


def steps(count: int) -> list[torch.Tensor]:
    return [normal(B, H, 1, D, seed=i) for i in range(count)]


def windows(stack, items):
    """Push item after item; every window seen on the way."""
    seen = []
    for item in items:
        stack.push(item)
        seen.append(stack.window())
    return seen


@pytest.mark.parametrize("carried", [0, 1, 3])
@pytest.mark.parametrize("span", [3, 4, 7, 11])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_memory_stack_equals_torch_stack(count, span, carried):
    items = steps(count)
    initial = normal(B, H, carried, D, seed=99) if carried else None
    named = {f"item {i}": item for i, item in enumerate(items)} | (
        {"initial": initial} if carried else {}
    )
    seen = windows(MemoryStack(span, count, initial), items)
    expected = windows(TorchStack(span, initial), items)
    assert [w.shape[2] for w in seen] == [
        min(span, carried + t + 1) for t in range(count)
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
def test_a_new_stack_shows_what_it_was_given(make):
    assert make(None).window() is None
    initial = normal(B, H, 4, D)
    assert torch.equal(make(initial).window(), initial)


@pytest.mark.parametrize("carried, span", [(0, 7), (2, 7), (0, 2), (2, 2)])
def test_gradcheck_to_second_order(carried, span):
    """Through windows that are used in a way with a second derivative, as attention uses them."""
    inputs = steps(3) + ([normal(B, H, carried, D, seed=99)] if carried else [])

    def through_stack(*tensors):
        initial = tensors[3] if carried else None
        return tuple(
            w.tanh().sum(dim=2)
            for w in windows(MemoryStack(span, 3, initial), tensors[:3])
        )

    assert gradcheck(through_stack, inputs)
    assert gradgradcheck(through_stack, inputs)


# raised inside torch
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")
def test_forward_mode_is_not_offered_and_says_so():
    (item,) = steps(1)
    with (
        forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match=r"jvp|forward mode"),
    ):
        MemoryStack(3, 1).push(
            forward_ad.make_dual(item.detach(), torch.ones_like(item))
        )


def test_only_some_of_the_inputs_need_a_gradient():
    items = steps(5)
    frozen = [item.detach() if i in (0, 3) else item for i, item in enumerate(items)]
    named = {f"item {i}": frozen[i] for i in (1, 2, 4)}
    seen, expected = (
        windows(stack, frozen) for stack in (MemoryStack(2, 5), TorchStack(2))
    )
    wanted = [w for w in expected if w.requires_grad]
    assert [w.requires_grad for w in seen] == [w.requires_grad for w in expected]
    assert_same(
        gradients([w for w in seen if w.requires_grad], named),
        gradients(wanted, named),
    )


def test_an_unused_window_takes_no_part():
    items = steps(4)
    seen = windows(MemoryStack(3, 4), items)
    found = torch.autograd.grad(seen[1].sum(), items, allow_unused=True)
    assert [None if g is None else g.unique().tolist() for g in found] == [
        [1.0],
        [1.0],
        None,
        None,
    ]


def test_each_row_is_written_once_and_windows_share_them():
    seen = windows(MemoryStack(3, 7), steps(7))
    assert len({w.untyped_storage().data_ptr() for w in seen}) == 1
    assert seen[-1].untyped_storage().nbytes() == B * H * 7 * D * 8


def test_torch_stack_copies_at_every_step():
    seen = windows(TorchStack(3), steps(7))
    assert len({w.untyped_storage().data_ptr() for w in seen}) == 7


def test_a_full_stack_refuses_more_and_stays_as_it_was():
    stack = MemoryStack(3, 2)
    windows(stack, steps(2))
    before = stack.window().clone()
    with pytest.raises(IndexError, match="capacity 2 cannot hold 3"):
        stack.push(steps(3)[2])
    assert torch.equal(stack.window(), before)


def test_capacity_does_not_count_what_was_carried_in():
    stack = MemoryStack(3, 2, normal(B, H, 3, D))
    windows(stack, steps(2))
    with pytest.raises(IndexError, match="capacity 5 cannot hold 6"):
        stack.push(steps(3)[2])


def test_a_wider_dtype_is_refused():
    stack = MemoryStack(3, 2, torch.zeros(B, H, 1, D))
    with pytest.raises(
        TypeError, match=r"items must fit in torch.float32 .* got torch.float64"
    ):
        stack.push(normal(B, H, 1, D))


def test_a_narrower_dtype_is_widened_as_torch_stack_does():
    initial, items = (
        normal(B, H, 2, D),
        [item.float().detach().requires_grad_() for item in steps(4)],
    )
    named = {f"item {i}": item for i, item in enumerate(items)} | {"initial": initial}
    seen, expected = (
        windows(stack, items)
        for stack in (MemoryStack(3, 4, initial), TorchStack(3, initial))
    )
    # For as long as a carried item is in view; TorchStack then goes back to the
    # narrow dtype.
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
    found, wanted = (
        gradients([w.double() for w in of], named) for of in (seen, expected)
    )
    assert {name: g.dtype for name, g in found.items()} == {
        name: t.dtype for name, t in named.items()
    }
    assert_same(found, wanted, rtol=1e-6, atol=1e-6)


def test_more_items_at_once_than_the_span_are_refused():
    with pytest.raises(ValueError, match="items must be at most span=3 steps, got 4"):
        MemoryStack(3, 2, normal(B, H, 4, D))


@pytest.mark.parametrize(
    "write",
    [lambda w: w.zero_(), lambda w: w[:, :, 0].fill_(1.0), lambda w: w.mul_(2)],
)
def test_writing_to_a_window_raises_instead_of_corrupting_the_others(write):
    seen = windows(MemoryStack(3, 4), steps(4))
    with pytest.raises(RuntimeError, match="modified inplace"):
        write(seen[2])


def test_writing_behind_autograd_s_back_is_noticed_by_whoever_saved_that_window():
    """`detach` shares the version counter, so that backward refuses what was saved and then overwritten."""
    seen = windows(MemoryStack(3, 4), steps(4))
    loss = sum((w**2).sum() for w in seen)
    seen[2].detach().zero_()
    with pytest.raises(RuntimeError, match=r"modified (in-?place|by an inplace)"):
        loss.backward()


@pytest.mark.parametrize("carried", [0, 3])
def test_what_the_buffer_held_before_does_not_matter(monkeypatch, carried):
    """`new_empty` returns whatever was in memory; here, NaN. Nothing may read a row before it is written."""
    items, initial = steps(7), normal(B, H, carried, D, seed=99) if carried else None
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
