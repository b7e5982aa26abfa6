"""Compare both feedback bodies with their equations, on every backend."""

import plain
import pytest
import torch
from exact import (
    BACKENDS,
    BATCH,
    FEEDBACK,
    LENGTHS,
    OPTIONS,
    assert_same,
    body,
    config,
    everything,
    gradients,
    leaves,
    normal,
    some_state,
)

pytestmark = pytest.mark.parametrize("variant", FEEDBACK)


each_backend = pytest.mark.parametrize("backend", BACKENDS)


def check(variant, length, state=None, **changes):
    c = config(variant, **changes)
    module, x = body(variant, **changes), normal(BATCH, length, c.d_model)
    named = leaves(module, x, state)
    past = None if state is None else (state.keys, state.values)
    plain_y, (keys, values), plain_weights = plain.feedback(
        dict(module.named_parameters()), c, x, past
    )
    expected = [plain_y, *keys, *values]
    expected_gradients = gradients(expected, named)
    for backend in BACKENDS:
        y, after, weights = module(x, state, backend=backend, need_weights=True)
        assert_same(everything(y, after), expected, f"{backend} output")
        assert_same(weights, plain_weights, f"{backend} weights")
        assert_same(
            gradients(everything(y, after), named), expected_gradients, backend
        )


@pytest.mark.parametrize("length", LENGTHS)
def test_equals_loop_over_steps(variant, length):
    check(variant, length)


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_every_option_equals_loop_over_steps(variant, changes):
    check(variant, 9, **changes)


@pytest.mark.parametrize("length, past", [(1, 1), (1, 13), (2, 6), (9, 6), (17, 13)])
def test_continuing_from_state_equals_loop_over_steps(variant, length, past):
    check(variant, length, some_state(config(variant), past))


@each_backend
@pytest.mark.parametrize(
    "blocks, span", [((8, 9), 3), ((1, 2, 3, 11), 13), ((1,) * 17, 3)], ids=str
)
def test_block_by_block_equals_one_pass(variant, backend, blocks, span):
    """A step sees `span` earlier steps, in whichever block they were computed."""
    module, x = body(variant, span=span), normal(BATCH, 17, 14)
    y, after, _ = module(x, backend=backend)
    state, outputs = None, []
    for block in x.split(blocks, dim=1):
        output, state, _ = module(block, state, backend=backend)
        outputs.append(output)
    in_blocks = everything(torch.cat(outputs, dim=1), state)
    assert_same(in_blocks, everything(y, after))
    named = leaves(module, x)
    assert_same(gradients(in_blocks, named), gradients(everything(y, after), named))


@pytest.mark.parametrize("span", [1, 5, 9, 31])
@pytest.mark.parametrize("past", [0, 5])
def test_backends_agree(variant, span, past):
    """Also if the span is shorter or longer than the block."""
    c = config(variant, span=span)
    state = some_state(c, min(past, span)) if past else None
    module, x = body(variant, span=span), normal(BATCH, 9, 14)
    named = leaves(module, x, state)
    (y, after, weights), (other_y, other_after, other_weights) = (
        module(x, state, backend=backend, need_weights=True) for backend in BACKENDS
    )
    assert_same(everything(y, after), everything(other_y, other_after))
    assert_same(weights, other_weights, "weights")
    assert_same(
        gradients(everything(y, after), named),
        gradients(everything(other_y, other_after), named),
    )


@each_backend
def test_step_reads_all_layers_of_previous_step(variant, backend):
    """With span 1, step 0 reaches step 9 through a single layer."""
    module, x = body(variant, n_layers=1, span=1), normal(1, 11, 14)
    (reach,) = torch.autograd.grad(module(x, backend=backend)[0][0, 9].sum(), x)
    assert reach[0].abs().sum(-1).nonzero().flatten().tolist() == list(range(10))


@each_backend
def test_memory_of_embedding_does_not_carry_information_on(variant, backend):
    module, x = (
        body(variant, n_layers=1, span=1, memory="embedding"),
        normal(1, 11, 14),
    )
    (reach,) = torch.autograd.grad(module(x, backend=backend)[0][0, 9].sum(), x)
    assert reach[0].abs().sum(-1).nonzero().flatten().tolist() == [8, 9]


@each_backend
def test_given_state_is_not_modified(variant, backend):
    state = some_state(config(variant), 6)
    before = [t.detach().clone() for t in state.keys + state.values]
    body(variant)(normal(BATCH, 9, 14), state, backend=backend)
    assert all(
        torch.equal(a, b)
        for a, b in zip(state.keys + state.values, before, strict=True)
    )


@each_backend
def test_returned_state_shares_no_memory(variant, backend):
    """It keeps no larger tensor alive, and writing to it does not affect backward."""
    module, x = body(variant, span=3), normal(BATCH, 9, 14)
    y, state, _ = module(x, backend=backend)
    for tensor in state.keys + state.values:
        assert (
            tensor.untyped_storage().nbytes()
            == tensor.numel() * tensor.element_size()
        )
    expected = gradients([y], leaves(module, x), retain=True)
    for tensor in state.detach().keys:
        tensor.zero_()
    assert_same(gradients([y], leaves(module, x)), expected)


@each_backend
def test_memory_of_embedding_equals_strict_parallel_layer(variant, backend):
    """With memory="embedding", m_t = x_t^0 and LN(m_t) acts as LN1(x_t^0)."""
    changes = {"n_layers": 1, "memory": "embedding"}
    module, x = body(variant, **changes), normal(BATCH, 17, 14)
    p = dict(module.named_parameters())
    with torch.no_grad():
        p["layers.0.norm1.weight"].copy_(p["memory.norm.weight"])
        p["layers.0.norm1.bias"].copy_(p["memory.norm.bias"])
    renamed = {
        name.replace("key_values.0", "layers.0.key_value"): tensor
        for name, tensor in p.items()
    }
    # A parallel layer has one more row, for distance 0, which the strict mask hides.
    for table in ("key_embedding", "key_bias"):
        rows = renamed[f"relative.0.{table}"]
        renamed[f"relative.0.{table}"] = torch.cat(
            [rows, torch.full_like(rows[:, :1], 9.0)], dim=1
        )
    y, after, weights = module(x, backend=backend, need_weights=True)
    expected, (keys, values), plain_weights = plain.parallel(
        renamed, config(variant, **changes), x, strict=True
    )
    assert_same(everything(y, after), [expected, *keys, *values])
    assert_same(weights, plain_weights, "weights")

    grads = gradients(everything(y, after), leaves(module, x))
    expected_grads = gradients([expected, *keys, *values], leaves(module, x))
    # The parallel layer has one norm for queries, keys and values, the feedback layer
    # two. The sums of their gradients agree.
    for kind in ("weight", "bias"):
        memory, layer = f"memory.norm.{kind}", f"layers.0.norm1.{kind}"
        total = grads.pop(memory) + grads.pop(layer)
        expected_total = expected_grads.pop(memory) + expected_grads.pop(layer)
        assert_same(total, expected_total, f"norm.{kind}")
    assert_same(grads, expected_grads)
