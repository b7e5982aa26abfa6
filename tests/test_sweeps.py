"""Sweeps over guessed memories agree with the loop."""

from itertools import islice

import pytest
import torch
from sweeps import after_sweeps, first_guess, one_sweep, sweeps, with_adjoint

import fbt
from fbt.feedback import FeedbackBody
from fbt.shared_kv import SharedKVBody

D = 14
sizes = pytest.mark.parametrize(
    ("length", "span", "groups"),
    [
        (1, 3, 1),
        (2, 13, 1),
        (11, 13, 1),
        (17, 3, 1),
        (1, 3, 2),
        (11, 3, 4),
        (5, 13, 7),
    ],
)
bodies = pytest.mark.parametrize("kind", [SharedKVBody, FeedbackBody])


def body_and_inputs(kind, length, span):
    torch.manual_seed(0)
    config = fbt.Config(1, d_model=D, n_heads=2, n_layers=3, d_ff=11, span=span)
    body = kind(config).double()
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    x = torch.randn(3, length, D, dtype=torch.float64, requires_grad=True)
    return body, x


def assert_same_gradients(body, x, mine, exact):
    weights = torch.randn_like(exact)
    leaves = {"x": x, **dict(body.named_parameters())}
    gradients = [
        torch.autograd.grad(
            (top * weights).sum(),
            list(leaves.values()),
            retain_graph=True,
            materialize_grads=True,
        )
        for top in (mine, exact)
    ]
    for name, a, b in zip(leaves, *gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=name)


@bodies
@sizes
def test_all_sweeps_equal_the_loop(kind, length, span, groups):
    """Each sweep makes as many more steps exact as it has groups."""
    body, x = body_and_inputs(kind, length, span)
    exact = body(x, backend="reference")[0]
    needed = -(-length // groups)
    for k, top in enumerate(islice(sweeps(body, x, groups), needed), start=1):
        known = min(length, k * groups)
        torch.testing.assert_close(top[:, :known], exact[:, :known])
        if k == 1 and known < length:
            assert not torch.allclose(top[:, known], exact[:, known])
    assert_same_gradients(body, x, top, exact)


@bodies
@pytest.mark.parametrize(("length", "span"), [(1, 3), (2, 13), (11, 13), (17, 3)])
def test_adjoint_equals_the_loop(kind, length, span):
    body, x = body_and_inputs(kind, length, span)
    exact = body(x, backend="reference")[0]
    memory = first_guess(body, x)
    for _ in range(length):
        memory = one_sweep(body, x, memory)[1]
    enough = max(0, length - 2)
    mine = with_adjoint(body, x, memory, enough)
    torch.testing.assert_close(mine, exact)
    assert_same_gradients(body, x, mine, exact)
    if enough:
        none = with_adjoint(body, x, memory, 0)
        with pytest.raises(AssertionError):
            assert_same_gradients(body, x, none, exact)


def test_k_sweeps_follow_k_links():
    """With a span of one, what lies more than k steps back has no influence."""
    body, x = body_and_inputs(SharedKVBody, length=11, span=1)
    for k in (1, 2, 5):
        last = after_sweeps(body, x, k)[:, -1].square().sum()
        (gradient,) = torch.autograd.grad(last, x)
        reached = gradient.abs().amax((0, 2)) > 0
        assert reached.tolist() == [step >= 10 - k for step in range(11)]
