"""Compare shared keys and values with per-layer ones of equal weights."""

import pytest
import torch
from exact import (
    BACKENDS,
    BATCH,
    LENGTHS,
    assert_same,
    body,
    config,
    everything,
    gradients,
    leaves,
    normal,
    some_state,
)
from torch._subclasses import FakeTensorMode

import fbt


def twins() -> tuple[fbt.SharedKVBody, fbt.FeedbackBody]:
    """Return a shared-KV body, and a feedback body with the same weights."""
    shared, separate = body("shared-kv"), body("feedback")
    weights = shared.state_dict()
    for l in range(3):
        for kind in ("key", "value"):
            weights[f"key_values.{l}.{kind}.weight"] = weights[
                f"key_values.0.{kind}.weight"
            ]
    separate.load_state_dict(weights)
    return shared, separate


def summed_over_layers(separate: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sum the per-layer gradients of each weight that the shared body has once."""
    total = dict(separate)
    for l in (1, 2):
        for kind in ("key", "value"):
            total[f"key_values.0.{kind}.weight"] = total[
                f"key_values.0.{kind}.weight"
            ] + total.pop(f"key_values.{l}.{kind}.weight")
            if f"state.{kind}s[{l}]" in total:
                total[f"state.{kind}s[0]"] = total[f"state.{kind}s[0]"] + total.pop(
                    f"state.{kind}s[{l}]"
                )
    return total


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("past", [0, 6])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_per_layer_keys_and_values_with_equal_weights(length, past, backend):
    shared, separate = twins()
    x = normal(BATCH, length, 14)
    state = some_state(config("shared-kv"), past) if past else None
    copies = (
        fbt.State(
            *(
                tuple(t.detach().clone().requires_grad_() for t in c * 3)
                for c in (state.keys, state.values)
            )
        )
        if state
        else None
    )
    y, _, weights = shared(x, state, backend=backend, need_weights=True)
    other_y, _, other_weights = separate(
        x, copies, backend=backend, need_weights=True
    )
    assert_same(y, other_y)
    assert_same(weights, other_weights, "weights")
    grads = gradients([y], leaves(shared, x, state))
    assert_same(
        grads, summed_over_layers(gradients([other_y], leaves(separate, x, copies)))
    )


def test_state_has_one_cache():
    shared, separate = twins()
    x = normal(BATCH, 9, 14)
    small, large = shared(x)[1], separate(x)[1]
    assert (len(small.keys), len(large.keys)) == (1, 3)
    assert large.nbytes == 3 * small.nbytes == 3 * 2 * BATCH * 9 * 14 * 8
    for l in range(3):
        assert_same(large.keys[l], small.keys[0], "keys")
        assert_same(large.values[l], small.values[0], "values")


def test_step_projects_memory_once():
    shared, calls = body("shared-kv"), []
    shared.key_values[0].register_forward_hook(lambda *_: calls.append(1))
    everything(*shared(normal(BATCH, 9, 14), backend="stack")[:2])
    assert len(shared.key_values) == 1
    assert len(calls) == 9


@pytest.mark.parametrize("backend", ["auto", "reference", "stack", "sequence"])
@pytest.mark.parametrize(
    "context", [lambda: torch.device("meta"), FakeTensorMode], ids=["meta", "fake"]
)
def test_forward_works_on_meta_and_fake_tensors(native, context, backend):
    """Also with the native library built, which cannot run them."""
    with context():
        body = fbt.SharedKVBody(
            fbt.Config(19, d_model=6, n_heads=2, n_layers=2, span=9)
        )
        y, state, _ = body(torch.empty(3, 12, 6), backend=backend)
        y, state, _ = body(torch.empty(3, 12, 6), state, backend=backend)
        y.sum().backward()
    assert (y.shape, state.keys[0].shape) == ((3, 12, 6), (3, 2, 9, 3))
    assert {name for name, p in body.named_parameters() if p.grad is None} == set()


def test_native_backend_refuses_fake_tensors(native):
    with FakeTensorMode():
        body = fbt.SharedKVBody(
            fbt.Config(19, d_model=6, n_heads=2, n_layers=2, span=9)
        )
        with pytest.raises(TypeError, match="reads plain tensors, got a FakeTensor"):
            body(torch.empty(3, 12, 6), backend="native")
