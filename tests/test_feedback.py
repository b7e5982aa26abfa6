"""Weighted memory, with keys and values per layer and shared, against its equations, on every backend."""

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
def test_equals_a_loop_over_steps(variant, length):
    check(variant, length)


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_every_option_equals_a_loop_over_steps(variant, changes):
    check(variant, 9, **changes)


@pytest.mark.parametrize(
    "length, carried", [(1, 1), (1, 13), (2, 6), (9, 6), (17, 13)]
)
def test_a_carried_state_equals_a_loop_over_steps(variant, length, carried):
    check(variant, length, some_state(config(variant), carried))


@each_backend
@pytest.mark.parametrize(
    "blocks, span", [((8, 9), 3), ((1, 2, 3, 11), 13), ((1,) * 17, 3)], ids=str
)
def test_block_by_block_equals_one_pass(variant, backend, blocks, span):
    """For every span: a step sees `span` earlier ones whether they were computed in this block or carried."""
    module, x = body(variant, span=span), normal(BATCH, 17, 14)
    y, after, _ = module(x, backend=backend)
    state, parts = None, []
    for block in x.split(blocks, dim=1):
        part, state, _ = module(block, state, backend=backend)
        parts.append(part)
    in_blocks = everything(torch.cat(parts, dim=1), state)
    assert_same(in_blocks, everything(y, after))
    named = leaves(module, x)
    assert_same(gradients(in_blocks, named), gradients(everything(y, after), named))


@pytest.mark.parametrize("span", [1, 5, 9, 31])
@pytest.mark.parametrize("carried", [0, 5])
def test_backends_agree(variant, span, carried):
    """Also where the span is shorter or longer than the block."""
    state = (
        some_state(config(variant, span=span), min(carried, span))
        if carried
        else None
    )
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
def test_every_step_reads_every_layer_of_the_step_before(variant, backend):
    """The missing arrow of the parallel model: with span 1, step 0 reaches step 9 through one layer."""
    module, x = body(variant, n_layers=1, span=1), normal(1, 11, 14)
    (reach,) = torch.autograd.grad(module(x, backend=backend)[0][0, 9].sum(), x)
    assert reach[0].abs().sum(-1).nonzero().flatten().tolist() == list(range(10))


@each_backend
def test_memory_of_the_embedding_alone_has_no_such_arrow(variant, backend):
    module, x = (
        body(variant, n_layers=1, span=1, memory="embedding"),
        normal(1, 11, 14),
    )
    (reach,) = torch.autograd.grad(module(x, backend=backend)[0][0, 9].sum(), x)
    assert reach[0].abs().sum(-1).nonzero().flatten().tolist() == [8, 9]


@each_backend
def test_the_given_state_is_left_as_it_was(variant, backend):
    state = some_state(config(variant), 6)
    before = [t.detach().clone() for t in state.keys + state.values]
    body(variant)(normal(BATCH, 9, 14), state, backend=backend)
    assert all(
        torch.equal(a, b)
        for a, b in zip(state.keys + state.values, before, strict=True)
    )


@each_backend
def test_the_returned_state_is_its_own_memory(variant, backend):
    """It keeps no more than it shows, and writing to it cannot reach what backward still needs."""
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
def test_one_layer_on_the_embedding_equals_a_parallel_layer_that_does_not_see_its_own_step(
    variant, backend
):
    """memory="embedding": m_t is x_t^0, so LN(m_t) plays the part of LN1(x_t^0)."""
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
    # The tables of a parallel layer have one more row, for distance 0, which the
    # strict mask hides.
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

    found = gradients(everything(y, after), leaves(module, x))
    wanted = gradients([expected, *keys, *values], leaves(module, x))
    # There, one norm makes queries as well as keys and values; here, each its own.
    # The sums agree.
    for kind in ("weight", "bias"):
        total = found.pop(f"memory.norm.{kind}") + found.pop(f"layers.0.norm1.{kind}")
        other = wanted.pop(f"memory.norm.{kind}") + wanted.pop(
            f"layers.0.norm1.{kind}"
        )
        assert_same(total, other, f"norm.{kind}")
    assert_same(found, wanted)
