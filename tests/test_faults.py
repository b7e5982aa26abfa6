"""Faults of other implementations, tested for all variants and backends.

Most have one cause: buffers of values and gradients that are reused by a later call.
"""

import copy
import io
import pickle

import pytest
import torch
from exact import (
    BACKENDS,
    FEEDBACK,
    assert_same,
    gradients,
    leaves,
    model,
    normal,
    some_tokens,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fbt

pytestmark = [
    pytest.mark.parametrize("variant", FEEDBACK),
    pytest.mark.parametrize("backend", BACKENDS),
]

ONE_TEXT, OTHER_TEXT = some_tokens(5, 9, seed=3), some_tokens(5, 9, seed=4)


@pytest.fixture
def lm(variant, backend) -> fbt.LanguageModel:
    """Return a model whose span is shorter than the texts."""
    built = model(variant, span=7)
    built.backend = backend
    return built


def gradients_of(lm: fbt.LanguageModel, tokens: Tensor) -> dict[str, Tensor]:
    """Return the gradients of one forward and one backward pass."""
    return gradients([lm(tokens)], leaves(lm))


def gradients_alone(lm: fbt.LanguageModel, tokens: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a new copy of the model, with torch.stack."""
    fresh = copy.deepcopy(lm)
    fresh.backend = "reference"
    return gradients_of(fresh, tokens)


def test_two_forwards_then_one_backward(lm):
    one, other = lm(ONE_TEXT), lm(OTHER_TEXT)
    actual = gradients([torch.cat([one, other])], leaves(lm))
    assert_same(actual, gradients_alone(lm, torch.cat([ONE_TEXT, OTHER_TEXT])))


def test_two_forwards_then_two_backwards_in_either_order(lm):
    one, other = lm(ONE_TEXT), lm(OTHER_TEXT)
    assert_same(gradients([one], leaves(lm)), gradients_alone(lm, ONE_TEXT))
    assert_same(gradients([other], leaves(lm)), gradients_alone(lm, OTHER_TEXT))
    one, other = lm(ONE_TEXT), lm(OTHER_TEXT)
    assert_same(gradients([other], leaves(lm)), gradients_alone(lm, OTHER_TEXT))
    assert_same(gradients([one], leaves(lm)), gradients_alone(lm, ONE_TEXT))


def test_evaluation_between_forward_and_backward(lm):
    logits = lm(ONE_TEXT)
    lm.eval()
    with torch.no_grad():
        lm(OTHER_TEXT)
    lm.attention(OTHER_TEXT)
    lm.train()
    assert_same(gradients([logits], leaves(lm)), gradients_alone(lm, ONE_TEXT))


def test_second_backward_on_a_retained_graph(lm):
    logits = lm(ONE_TEXT)
    first = gradients([logits], leaves(lm), retain=True)
    assert_same(gradients([logits], leaves(lm)), first, atol=0, rtol=0)
    assert_same(first, gradients_alone(lm, ONE_TEXT))


def test_gradients_accumulate(lm):
    for _ in range(2):
        lm(ONE_TEXT).sum().backward()
    twice = {name: p.grad.clone() for name, p in lm.named_parameters()}
    lm.zero_grad()
    lm(ONE_TEXT).sum().backward()
    assert_same(twice, {name: 2 * p.grad for name, p in lm.named_parameters()})


def test_513_steps(variant, backend):
    """The best known implementation has a limit of 512 steps."""
    torch.manual_seed(0)
    c = fbt.Config(19, variant=variant, d_model=6, n_heads=2, n_layers=1, span=600)
    lm = fbt.LanguageModel(c)
    lm.backend = backend
    logits, state = lm(some_tokens(1, 513), return_state=True)
    assert (logits.shape, state.length) == ((1, 513, 19), 513)
    logits[0, -1].sum().backward()
    assert all(p.grad.isfinite().all() for p in lm.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "first, second", [(torch.float32, torch.float64), (torch.float64, torch.float32)]
)
def test_dtype_changed_between_calls(lm, first, second):
    lm.to(first)
    lm(ONE_TEXT).sum().backward()
    lm.to(second)
    lm.zero_grad()
    logits = lm(ONE_TEXT)
    assert logits.dtype == second
    assert_same(
        gradients([logits.double()], leaves(lm)),
        gradients_alone(lm, ONE_TEXT),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_inference_before_training(lm, context):
    with context():
        lm(ONE_TEXT)
        _, state = lm(OTHER_TEXT, return_state=True)
    assert_same(gradients_of(lm, ONE_TEXT), gradients_alone(lm, ONE_TEXT))
    # A state of no_grad equals a detached one.
    continued = gradients([lm(ONE_TEXT, state)], leaves(lm))
    _, attached = lm(OTHER_TEXT, return_state=True)
    assert_same(continued, gradients([lm(ONE_TEXT, attached.detach())], leaves(lm)))


def test_deepcopy_after_use_is_independent(lm):
    logits = lm(ONE_TEXT)
    twin = copy.deepcopy(lm)
    assert twin.backend == lm.backend
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin(OTHER_TEXT).sum().backward()
    assert_same(gradients([logits], leaves(lm)), gradients_alone(lm, ONE_TEXT))
    assert all(p.grad is None for p in lm.parameters())


@pytest.mark.parametrize("way", ["pickle", "torch.save"])
def test_pickling_after_use(lm, way):
    lm(ONE_TEXT).sum().backward()
    if way == "pickle":
        twin = pickle.loads(pickle.dumps(lm))
    else:
        file = io.BytesIO()
        torch.save(lm, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert (twin.config, twin.backend) == (lm.config, lm.backend)
    assert torch.equal(twin(OTHER_TEXT), lm(OTHER_TEXT))
    assert_same(
        gradients_of(twin, OTHER_TEXT), gradients_of(lm, OTHER_TEXT), atol=0, rtol=0
    )


def test_state_can_be_copied_and_pickled(lm):
    state = lm(ONE_TEXT, return_state=True)[1].detach()
    expected = lm(OTHER_TEXT, state)
    for twin in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert torch.equal(lm(OTHER_TEXT, twin), expected)


def test_two_models_alive_at_once(lm, variant, backend):
    other = model(variant, span=7)
    other.backend = backend
    with torch.no_grad():
        other.head.weight.mul_(3)
    logits, other_logits = lm(ONE_TEXT), other(OTHER_TEXT)
    assert_same(gradients([logits], leaves(lm)), gradients_alone(lm, ONE_TEXT))
    assert_same(
        gradients([other_logits], leaves(other)), gradients_alone(other, OTHER_TEXT)
    )


def test_changing_batch_sizes(lm):
    for batch, length in ((5, 9), (2, 9), (7, 3), (1, 17), (5, 9)):
        tokens = some_tokens(batch, length)
        assert_same(gradients_of(lm, tokens), gradients_alone(lm, tokens))


def test_sequences_of_a_batch_are_independent(lm):
    logits = lm(ONE_TEXT)
    for i, text in enumerate(ONE_TEXT):
        assert_same(lm(text[None])[0], logits[i])


def test_autocast_to_bfloat16(lm):
    lm.float()
    expected = lm(ONE_TEXT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, state = lm(ONE_TEXT, return_state=True)
        more = lm(OTHER_TEXT, state)
    assert_same(logits.float(), expected, rtol=0, atol=0.1)
    assert more.isfinite().all()
    actual, exact = (
        gradients([logits.double()], leaves(lm)),
        gradients_alone(lm, ONE_TEXT),
    )
    assert {g.dtype for g in actual.values()} == {torch.float32}
    difference, size = (
        torch.cat([g.flatten() for g in of]).norm()
        for of in ([actual[name] - exact[name] for name in actual], exact.values())
    )
    assert difference < 0.1 * size


def test_float32_state_is_read_under_autocast(lm):
    lm.float()
    state = lm(ONE_TEXT, return_state=True)[1]
    expected = lm(OTHER_TEXT, state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(lm(OTHER_TEXT, state).float(), expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("carried", [False, True])
def test_gradcheck_and_gradgradcheck_of_the_whole_body(variant, backend, carried):
    """Checks second derivatives through all steps, layers and the sliding window.

    The second ones are of all inputs, and of the first layer's and the shared
    parameters without biases: each further parameter makes the check longer.
    """
    lm = model(
        variant, d_model=2, n_heads=1, d_ff=2, n_layers=2, span=2, activation="gelu"
    )
    names = [name for name, _ in lm.body.named_parameters()]
    x = normal(1, 4, 2)
    state = (
        [
            normal(1, 1, 2, 2, seed=i)
            for i in range(2 if variant == "shared-kv" else 4)
        ]
        if carried
        else []
    )
    half = len(state) // 2

    def run(x, *rest):
        past = fbt.State(rest[:half], rest[half : len(state)]) if state else None
        parameters = dict(zip(names, rest[len(state) :], strict=True))
        return torch.func.functional_call(
            lm.body, parameters, (x, past), {"backend": backend}
        )[0]

    inputs = (x, *state, *lm.body.parameters())
    assert gradcheck(run, inputs, fast_mode=True)
    parameters = [
        parameter.detach()
        if name.startswith("layers.1.") or name.endswith(".bias")
        else parameter
        for name, parameter in lm.body.named_parameters()
    ]
    assert gradgradcheck(run, (x, *state, *parameters), fast_mode=True)


def test_uninitialised_memory_is_not_read(lm, monkeypatch):
    """NaN in uninitialised memory does not reach outputs or gradients."""
    logits, expected = lm(ONE_TEXT).detach(), gradients_alone(lm, ONE_TEXT)
    for owner, name in (
        (torch.Tensor, "new_empty"),
        (torch, "empty"),
        (torch, "empty_like"),
    ):
        original = getattr(owner, name)

        def poisoned(*args, original=original, **kwargs):
            made = original(*args, **kwargs)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        monkeypatch.setattr(owner, name, poisoned)
    assert_same(lm(ONE_TEXT), logits, atol=0, rtol=0)
    assert_same(gradients_of(lm, ONE_TEXT), expected)
