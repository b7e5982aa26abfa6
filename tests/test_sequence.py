"""The loop as one Function, with both engines, against the other backends."""

import copy
import sys
from itertools import product

import plain
import pytest
import torch
from exact import (
    BATCH,
    LENGTHS,
    OPTIONS,
    assert_same,
    body,
    config,
    everything,
    gradients,
    leaves,
    model,
    normal,
    some_state,
    some_tokens,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fbt import engines
from fbt.sequence.forward import Forward
from fbt.sequence.python_engine import PythonEngine

CHUNK = PythonEngine.chunk_steps
pytestmark = pytest.mark.usefixtures("native")
VARIANT = "shared-kv"
both = pytest.mark.parametrize("backend", ("sequence", "native"))


def check(backend, length, state=None, batch=BATCH, **changes):
    """Compare outputs, state and all gradients with a loop over steps and heads."""
    c = config(VARIANT, **changes)
    module, x = body(VARIANT, **changes), normal(batch, length, c.d_model)
    named = leaves(module, x, state)
    past = None if state is None else (state.keys, state.values)
    plain_y, (keys, values), _ = plain.feedback(
        dict(module.named_parameters()), c, x, past
    )
    expected = [plain_y, *keys, *values]
    y, after, _ = module(x, state, backend=backend)
    assert_same(everything(y, after), expected)
    assert_same(gradients(everything(y, after), named), gradients(expected, named))


@both
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_a_loop_over_steps(backend, length):
    check(backend, length)


@both
@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_every_option_equals_a_loop_over_steps(backend, changes):
    check(backend, 9, **changes)


@both
@pytest.mark.parametrize(
    "length, carried", [(1, 1), (1, 13), (2, 6), (9, 6), (17, 13)]
)
def test_carried_state_equals_a_loop_over_steps(backend, length, carried):
    check(backend, length, some_state(config(VARIANT), carried))


@both
@pytest.mark.parametrize("length", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
@pytest.mark.parametrize("span", [3, CHUNK, 2 * CHUNK + 1, 89])
def test_chunks_and_spans_of_all_lengths_agree(backend, length, span):
    module, x = body(VARIANT, span=span), normal(2, length, 14)
    named = leaves(module, x)
    results = [
        everything(*module(x, backend=name)[:2]) for name in ("stack", backend)
    ]
    assert_same(results[1], results[0])
    assert_same(gradients(results[1], named), gradients(results[0], named))


@both
@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    length=st.integers(1, 2 * CHUNK + 2),
    span=st.integers(1, 40),
    carried=st.integers(0, 40),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    width=st.integers(1, 4),
    layers=st.integers(1, 3),
    inner=st.integers(1, 9),
    activation=st.sampled_from(["relu", "gelu"]),
    memory=st.sampled_from(["learned", "uniform", "top", "embedding"]),
    memory_norm=st.booleans(),
    relative=st.sampled_from(["per-layer", "shared"]),
)
def test_random_configurations_agree(
    backend, length, span, carried, batch, heads, width, layers, inner, **options
):
    changes = {
        "span": span,
        "n_heads": heads,
        "d_model": 2 * heads * width,
        "n_layers": layers,
        "d_ff": inner,
    }
    carried = min(carried, span)
    c = config(VARIANT, **changes, **options)
    state = some_state(c, carried, batch) if carried else None
    module, x = body(VARIANT, **changes, **options), normal(batch, length, c.d_model)
    named = leaves(module, x, state)
    results = [
        everything(*module(x, state, backend=name)[:2]) for name in ("stack", backend)
    ]
    assert_same(results[1], results[0], rtol=1e-8, atol=1e-9)
    assert_same(
        gradients(results[1], named),
        gradients(results[0], named),
        rtol=1e-7,
        atol=1e-8,
    )


@both
@pytest.mark.parametrize("carried", [0, 6])
def test_dropout_masks_equal_those_of_the_loop(backend, carried):
    state = some_state(config(VARIANT), carried) if carried else None
    module, x = body(VARIANT, dropout=0.3).train(), normal(BATCH, 19, 14)
    named, results = leaves(module, x, state), []
    for name in ("reference", backend):
        torch.manual_seed(4)
        results.append(everything(*module(x, state, backend=name)[:2]))
    assert_same(results[1], results[0])
    assert_same(gradients(results[1], named), gradients(results[0], named))


@both
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_uninitialised_memory_is_never_read(monkeypatch, backend, dropout, recompute):
    module, x = body(VARIANT, span=5, dropout=dropout).train(), normal(BATCH, 19, 14)
    module.recompute = recompute
    named = leaves(module, x)
    torch.manual_seed(4)
    clean = everything(*module(x, backend=backend)[:2])
    clean_gradients = gradients(clean, named)
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(torch.nan)
    )
    empty_like = torch.empty_like
    monkeypatch.setattr(
        torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(torch.nan)
    )
    torch.manual_seed(4)
    poisoned = everything(*module(x, backend=backend)[:2])
    assert_same(poisoned, clean)
    assert_same(gradients(poisoned, named), clean_gradients)


@both
def test_input_with_any_strides(backend):
    module = body(VARIANT)
    x = normal(14, 9, BATCH).transpose(0, 2)
    assert not x.is_contiguous()
    assert_same(
        module(x, backend=backend)[0], module(x.contiguous(), backend=backend)[0]
    )


@both
def test_frozen_parameters_do_not_change_other_gradients(backend):
    module, x = body(VARIANT), normal(BATCH, 19, 14)
    all_leaves = leaves(module, x)
    expected = gradients(module(x, backend=backend)[:1], all_leaves)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("query" in name or "layer_logits" in name)
    wanted = {
        name: tensor for name, tensor in all_leaves.items() if tensor.requires_grad
    }
    assert 0 < len(wanted) < len(all_leaves)
    actual = gradients(module(x, backend=backend)[:1], wanted)
    assert_same(actual, {name: expected[name] for name in wanted})


@both
@pytest.mark.parametrize("output", ["y", "keys", "values"])
def test_gradients_of_a_single_output(backend, output):
    module, x, state = (
        body(VARIANT),
        normal(BATCH, 19, 14),
        some_state(config(VARIANT), 6),
    )
    named, results = leaves(module, x, state), []
    for name in ("stack", backend):
        y, after, _ = module(x, state, backend=name)
        results.append(
            gradients(
                [{"y": y, "keys": after.keys[0], "values": after.values[0]}[output]],
                named,
            )
        )
    assert_same(results[1], results[0])


@both
def test_calls_are_independent(backend):
    """With two models, two forwards, an evaluation, a second backward and a copy."""
    one, two = body(VARIANT), body(VARIANT, n_layers=2)
    x = normal(BATCH, 19, 14)
    expected = [
        gradients(m(x, backend="stack")[:1], leaves(m, x)) for m in (one, two)
    ]
    y1, y2 = one(x, backend=backend)[0], two(x, backend=backend)[0]
    with torch.no_grad():
        one(normal(2, 3, 14, seed=8), backend=backend)
    for _ in range(2):
        assert_same(gradients([y1], leaves(one, x), retain=True), expected[0])
    assert_same(gradients([y2], leaves(two, x)), expected[1])
    twin = copy.deepcopy(one)
    assert_same(gradients(twin(x, backend=backend)[:1], leaves(twin, x)), expected[0])
    single = one.float()(x.float(), backend=backend)[0]
    assert_same(single.double(), y1, rtol=1e-4, atol=1e-4)


@both
def test_no_chunk_is_saved_without_gradients(backend, monkeypatch):
    module, x, saved = body(VARIANT), normal(BATCH, 2 * CHUNK + 3, 14), []
    run = Forward.run
    monkeypatch.setattr(
        Forward, "run", lambda loop: saved.append(run(loop)) or saved[-1]
    )
    expected = module(x, backend=backend)[0]
    with torch.no_grad():
        assert_same(module(x, backend=backend)[0], expected, rtol=0, atol=0)
    assert [len(chunks) for chunks in saved] == [3 if backend == "sequence" else 2, 0]


@both
def test_second_derivative_raises(backend):
    module, x = body(VARIANT), normal(2, 5, 14)
    y = module(x, backend=backend)[0]
    with pytest.raises(
        RuntimeError, match='no second derivative; set backend="reference"'
    ):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@both
def test_autocast_computes_in_the_dtype_of_the_weights(backend):
    module, x = (
        body(VARIANT).float(),
        normal(2, 5, 14).float().detach().requires_grad_(),
    )
    with torch.autocast("cpu", torch.bfloat16):
        y, state, _ = module(x, backend=backend)
        rounded = module(
            x.bfloat16(), module(x, backend="stack")[1], backend=backend
        )[0]
    assert y.dtype == state.keys[0].dtype == rounded.dtype == torch.float32
    assert_same(y, module(x, backend=backend)[0], rtol=0, atol=0)
    assert_same(rounded, module(x, state, backend=backend)[0], rtol=0, atol=0.1)


def test_fake_tensors_have_the_right_shapes():
    """Fake tensors have no values: whatever needs one, such as `.item()`, raises."""
    for carried, dropout in product((0, 6), (0.0, 0.3)):
        module = body(VARIANT, dropout=dropout)
        state = some_state(config(VARIANT), carried) if carried else None
        with FakeTensorMode(allow_non_fake_inputs=True):
            x = torch.randn(BATCH, 19, 14, dtype=torch.float64, requires_grad=True)
            y, _, _ = module(x, state, backend="sequence")
            (gradient,) = torch.autograd.grad(y.sum(), x)
        assert isinstance(gradient, FakeTensor) and gradient.shape == (BATCH, 19, 14)


@both
def test_attention_weights_equal_those_of_the_loop(backend):
    module, x = body(VARIANT), normal(BATCH, 9, 14)
    y, state, weights = module(x, backend=backend, need_weights=True)
    expected_y, expected_state, expected_weights = module(
        x, backend="stack", need_weights=True
    )
    assert_same(
        [*everything(y, state), weights],
        [*everything(expected_y, expected_state), expected_weights],
    )


@both
def test_language_model_computes_the_same(backend):
    by_stack, tokens = model(VARIANT), some_tokens(3, 19)
    by_sequence = copy.deepcopy(by_stack)
    by_sequence.backend = backend
    results = [
        gradients([m(tokens)], dict(m.named_parameters()))
        for m in (by_stack, by_sequence)
    ]
    assert_same(results[1], results[0])
    assert_same(by_sequence.attention(tokens), by_stack.attention(tokens))
    state, steps = None, []
    for token in tokens.T:
        logits, state = by_sequence.step(token, state)
        steps.append(logits)
    assert_same(torch.stack(steps, dim=1), by_stack(tokens))


@both
@pytest.mark.parametrize(
    "carried, dropout, span", [(0, 0.0, 13), (6, 0.0, 13), (0, 0.3, 5), (3, 0.3, 40)]
)
def test_recompute_saves_memory_and_changes_no_number(
    backend, carried, dropout, span
):
    state = some_state(config(VARIANT, span=span), carried) if carried else None
    module, x = (
        body(VARIANT, dropout=dropout, span=span).train(),
        normal(BATCH, 2 * CHUNK + 3, 14),
    )
    named, results, saved_bytes = leaves(module, x, state), [], []
    for recompute in (False, True):
        module.recompute = recompute
        torch.manual_seed(4)
        results.append(everything(*module(x, state, backend=backend)[:2]))
        saved_bytes.append(
            sum(
                tensor.nbytes
                for tensor in results[-1][0]
                .grad_fn.next_functions[0][0]
                .saved_tensors
            )
        )
    limit = saved_bytes[0] if dropout else 0.7 * saved_bytes[0]
    assert saved_bytes[1] < limit
    assert_same(results[1], results[0])
    assert_same(gradients(results[1], named), gradients(results[0], named))


class WholeSequenceEngine(PythonEngine):
    """One chunk for all steps, as a GPU kernel may need, and the other layouts."""

    chunk_steps = sys.maxsize
    transposed = False
    copies_matrices = False


@pytest.mark.parametrize("recompute", [False, True])
def test_an_engine_chooses_its_chunk_and_its_layout(monkeypatch, recompute):
    state = some_state(config(VARIANT), 6)
    module, x = body(VARIANT), normal(BATCH, 2 * CHUNK + 3, 14)
    module.recompute = recompute
    named, results = leaves(module, x, state), []
    for engine in (PythonEngine, WholeSequenceEngine):
        monkeypatch.setitem(engines.ENGINES, "sequence", engine)
        outputs = everything(*module(x, state, backend="sequence")[:2])
        results.append(outputs + list(gradients(outputs, named).values()))
    assert_same(results[1], results[0])
