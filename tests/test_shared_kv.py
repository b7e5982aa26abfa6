"""Shared keys and values against keys and values per layer whose layers hold equal weights."""

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
    """A shared-KV body, and a feedback body that holds the same weights, those of K and V once per layer."""
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
    """Gradients of the per-layer body as those of the shared one: what was used three times adds up."""
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
@pytest.mark.parametrize("carried", [0, 6])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_per_layer_keys_and_values_of_equal_weights(length, carried, backend):
    shared, separate = twins()
    x = normal(BATCH, length, 14)
    state = some_state(config("shared-kv"), carried) if carried else None
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
    found = gradients([y], leaves(shared, x, state))
    assert_same(
        found, summed_over_layers(gradients([other_y], leaves(separate, x, copies)))
    )


def test_the_state_is_one_cache_instead_of_one_per_layer():
    shared, separate = twins()
    x = normal(BATCH, 9, 14)
    small, large = shared(x)[1], separate(x)[1]
    assert (len(small.keys), len(large.keys)) == (1, 3)
    assert large.nbytes == 3 * small.nbytes == 3 * 2 * BATCH * 9 * 14 * 8
    for l in range(3):
        assert_same(large.keys[l], small.keys[0], "keys")
        assert_same(large.values[l], small.values[0], "values")


def test_a_step_projects_its_memory_once():
    shared, calls = body("shared-kv"), []
    shared.key_values[0].register_forward_hook(lambda *_: calls.append(1))
    everything(*shared(normal(BATCH, 9, 14), backend="stack")[:2])
    assert len(shared.key_values) == 1
    assert len(calls) == 9


@pytest.mark.parametrize("backend", ["auto", "reference", "stack", "sequence"])
@pytest.mark.parametrize(
    "place", [lambda: torch.device("meta"), FakeTensorMode], ids=["meta", "fake"]
)
def test_shapes_are_found_out_without_numbers(native, place, backend):
    """Built or not, the native loop is not for them."""
    with place():
        body = fbt.SharedKVBody(
            fbt.Config(19, d_model=6, n_heads=2, n_layers=2, span=9)
        )
        y, state, _ = body(torch.empty(3, 12, 6), backend=backend)
        y, state, _ = body(torch.empty(3, 12, 6), state, backend=backend)
        y.sum().backward()
    assert (y.shape, state.keys[0].shape) == ((3, 12, 6), (3, 2, 9, 3))
    assert {name for name, p in body.named_parameters() if p.grad is None} == set()


def test_the_native_loop_refuses_what_has_no_numbers(native):
    with FakeTensorMode():
        body = fbt.SharedKVBody(
            fbt.Config(19, d_model=6, n_heads=2, n_layers=2, span=9)
        )
        with pytest.raises(TypeError, match="reads plain tensors, got a FakeTensor"):
            body(torch.empty(3, 12, 6), backend="native")
