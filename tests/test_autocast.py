"""Autocast to bfloat16: products with weights in the native loop."""

from collections.abc import Mapping

import pytest
import torch
from exact import assert_same, body, everything, gradients, leaves, model, normal
from torch import Tensor, nn

import fbt
from fbt import engines

BFLOAT16 = torch.bfloat16
WIDE = {"d_model": 160, "n_heads": 5, "d_ff": 131, "n_layers": 2}
CASES = {
    "two steps": {"length": 2, "batch": 11},
    "odd sizes": {"d_model": 15, "n_heads": 3},
    "longer than the span": {"length": 17},
    "several panels": WIDE,
    "several groups": {"batch": 67, "length": 5},
    "several groups, relu": {"batch": 67, "length": 5, "activation": "relu"},
    "carried state": {"carried": 6},
    "lengths": {"carried": 6, "lengths": (9, 1, 4, 9, 7)},
    "documents": {"starts": True},
    "dropout": {"dropout": 0.3},
    "no norm of memories": {"memory_norm": False},
    "recompute": {"recompute": True, "length": 17},
}
# With few rows, a ReLU that opens changes gradients by more than the bounds.
DEFAULTS = {
    "activation": "gelu",
    "length": 9,
    "batch": 5,
    "carried": 0,
    "lengths": None,
    "starts": False,
    "recompute": False,
}
# Errors of a tensor relative to its norm. The logits of the layers have the smallest
# gradients: differences of large sums that nearly cancel.
BOUNDS = {"output": 0.01, "memory.layer_logits": 0.1}
BOUND = 0.05


def autocast() -> torch.autocast:
    return torch.autocast("cpu", BFLOAT16)


@pytest.fixture
def bfloat16(native):
    """Skip a test where products in bfloat16 are not possible."""
    if not fbt.native.has_bfloat16():
        pytest.skip("needs a CPU with AVX512-BF16 or AMX")


def results(
    module: nn.Module,
    x: Tensor,
    state: fbt.State | None = None,
    autocast: torch.dtype | None = None,
    **options,
) -> dict[str, Tensor]:
    """Return outputs and all gradients by name, with the same dropout each time."""
    torch.manual_seed(0)
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        y, new, _ = module(x, state, **({"backend": "native"} | options))
    outputs = everything(y, new)
    named = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    return named | gradients(outputs, leaves(module, x, state))


def prepared(changes: Mapping) -> tuple[nn.Module, Tensor, fbt.State | None, dict]:
    """Return a body in float32, inputs, a state and options of a call."""
    case = DEFAULTS | changes
    architecture = {k: v for k, v in case.items() if k not in DEFAULTS}
    module = body("shared-kv", activation=case["activation"], **architecture).float()
    module.recompute = case["recompute"]
    batch, length, d, heads = (
        case["batch"],
        case["length"],
        module.d_model,
        module.n_heads,
    )
    state, options = None, {}
    if past := case["carried"]:
        key, value = (
            single(normal(batch, heads, past, d // heads, seed=s)) for s in (3, 4)
        )
        state = fbt.State((key,), (value,))
    if case["lengths"]:
        options["lengths"] = torch.tensor(case["lengths"])
    if case["starts"]:
        options["starts"] = torch.zeros(batch, length, dtype=torch.bool)
        options["starts"][::2, 4] = options["starts"][1, 7] = True
    return module, single(normal(batch, length, d)), state, options


def single(tensor: Tensor) -> Tensor:
    """Return a leaf in float32."""
    return tensor.detach().float().requires_grad_()


def errors(
    rounded: Mapping[str, Tensor], exact: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return the error of each tensor relative to its norm, by name."""
    return {
        name: float((rounded[name] - tensor).norm() / tensor.norm().clamp(min=1e-6))
        for name, tensor in exact.items()
    }


def assert_bounded(found: Mapping[str, float]) -> None:
    for name, error in found.items():
        bound = BOUNDS.get(name.split()[0], BOUND)
        assert error < bound, f"{name} differs by {error:.3f} of its norm"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_and_gradients_are_close_to_float32(bfloat16, case):
    module, x, state, options = prepared(case)
    rounded = results(module, x, state, BFLOAT16, **options)
    found = errors(rounded, results(module, x, state, **options))
    assert_bounded(found)
    assert found["output 0"] > 1e-4  # it does round
    assert all(tensor.dtype == torch.float32 for tensor in rounded.values())


@pytest.mark.parametrize("case", ["odd sizes", "longer than the span"])
def test_errors_are_below_those_of_the_plain_loop(bfloat16, case):
    """Under autocast, torch also rounds what a product returns, and attention."""
    module, x, _, _ = prepared(CASES[case])
    exact = results(module, x)
    ours = errors(results(module, x, None, BFLOAT16), exact)
    plain = errors(results(module, x, None, BFLOAT16, backend="reference"), exact)
    assert ours["output 0"] < plain["output 0"]
    assert sum(ours.values()) < sum(plain.values())


@pytest.mark.parametrize("batch", [1, 3])
def test_threads_do_not_change_the_rounding(bfloat16, batch):
    """With fewer sequences than threads, several of them share a product.

    They may sum in another order, so that here and there a number rounds to the other
    side. Rounding as a whole moves a tensor by up to 8 % of its largest entry.
    """
    module, x, _, _ = prepared(
        {"d_model": 256, "d_ff": 261, "batch": batch, "length": 17}
    )
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(results(module, x, None, BFLOAT16))
    torch.set_num_threads(1)
    for (name, one), two in zip(found[0].items(), found[1].values(), strict=True):
        assert (one - two).abs().max() <= 1e-4 * one.abs().max(), name


def test_a_step_has_the_same_bits_in_every_run(bfloat16):
    module, x, _, _ = prepared(WIDE)
    runs = (results(module, x, None, BFLOAT16) for _ in range(2))
    assert_same(*runs, rtol=0, atol=0)


def test_backward_may_run_inside_or_outside(bfloat16):
    module, x, _, _ = prepared({})
    with autocast():
        y = module(x, backend="native")[0]
        inside = torch.autograd.grad(y.sum(), x, retain_graph=True)
    assert_same(inside, torch.autograd.grad(y.sum(), x), rtol=0, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_stay_in_their_row(bfloat16, value):
    module, x, _, _ = prepared({})
    poisoned = x.detach().clone()
    poisoned[1, 3, 2] = value
    with autocast():
        y = module(poisoned, backend="native")[0]
        expected = module(x, backend="native")[0]
    assert not y[1, 3:].isfinite().any()
    rest = torch.ones(5, 9, dtype=torch.bool)
    rest[1, 3:] = False
    assert_same(y[rest], expected[rest], rtol=0, atol=0)


def test_without_gradients_the_numbers_are_the_same(bfloat16):
    module, x, _, _ = prepared({})
    with autocast():
        y = module(x, backend="native")[0]
        with torch.no_grad():
            assert_same(module(x, backend="native")[0], y, rtol=0, atol=0)


def test_all_else_stays_in_the_dtype_of_the_weights(bfloat16):
    module, x, _, _ = prepared({})
    exact = results(module, x)
    assert_same(results(module, x, None, torch.float16), exact, rtol=0, atol=0)
    for few in x[:3, :5], torch.cat([x] * 4)[:, :1]:
        rounded = results(module, few, None, BFLOAT16)
        assert_same(rounded, results(module, few), rtol=0, atol=0)
    backend = {"backend": "sequence"}
    exact = results(module, x, **backend)
    assert_same(results(module, x, None, BFLOAT16, **backend), exact, rtol=0, atol=0)
    module, x = module.double(), x.detach().double().requires_grad_()
    exact = results(module, x)
    assert_same(results(module, x, None, BFLOAT16), exact, rtol=0, atol=0)


def test_a_cpu_without_bfloat16_says_so_once(native, monkeypatch):
    monkeypatch.setattr(fbt.native, "has_bfloat16", lambda: False)
    monkeypatch.setattr(engines, "_warned", set())
    module, x, _, _ = prepared({})
    exact = results(module, x)
    with pytest.warns(RuntimeWarning, match="stays in float32 under autocast"):
        found = results(module, x, None, BFLOAT16)
    results(module, x, None, BFLOAT16)  # a warning is an error in tests
    assert_same(found, exact, rtol=0, atol=0)


def test_onednn_may_be_turned_off(bfloat16, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not fbt.native.has_bfloat16()


def test_explain_backend_tells_what_autocast_does(bfloat16, monkeypatch):
    lm, tokens = model("shared-kv").float(), torch.zeros(2, 9, dtype=torch.long)
    rounds = (
        ". Under autocast it multiplies by matrices in torch.bfloat16; "
        "all else is in torch.float32"
    )
    stays = ". It computes in torch.float32 under autocast too"
    assert "autocast" not in lm.explain_backend(tokens)
    with autocast():
        assert lm.explain_backend(tokens).endswith(rounds)
        assert lm.explain_backend(tokens[:1]).endswith(stays)
        with torch.no_grad():
            assert lm.explain_backend(tokens).endswith(rounds)
            assert lm.explain_backend(tokens.view(-1, 1)).endswith(stays)
        for backend, text in {
            "native": rounds,
            "sequence": stays,
            "stack": "",
        }.items():
            lm.backend = backend
            explained = f'"{backend}": model.backend names it{text}'
            assert lm.explain_backend(tokens) == explained
        lm.backend = "native"
        monkeypatch.setattr(fbt.native, "has_bfloat16", lambda: False)
        assert lm.explain_backend(tokens).endswith(stays)
