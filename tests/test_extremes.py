"""Extreme numbers: results are finite and accurate wherever the plain loop's are.

Errors are differences to the reference in float64, one step at a time through
`State`, where nothing is masked.
"""

import contextlib
import copy
import random
import statistics
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from conftest import LONG
from exact import (
    CASES,
    FEEDBACK,
    ON_CPU,
    OPTIONS,
    VARIANTS,
    assert_same,
    body,
    everything,
    gradients,
    leaves,
    normal,
)
from torch import Tensor, nn

import fbt

SIZES = {"d_model": 6, "n_heads": 2, "n_layers": 2, "d_ff": 5, "span": 11}
# Every option of a shared-KV body; `recompute` is an attribute of the body.
EVERY_OPTION = (
    *OPTIONS,
    {"dropout": 0.3},
    {"recompute": True},
    {"recompute": True, "activation": "gelu"},
)
LENGTH = 17  # beyond the span, with more than one chunk
pytestmark = pytest.mark.usefixtures("native")
each_case = pytest.mark.parametrize("variant, backend", CASES)
FLOAT = torch.finfo(torch.float32)
Change = Callable[[nn.Module], None]


def named(outputs: list[Tensor]) -> dict[str, Tensor]:
    return {f"output {i}": output for i, output in enumerate(outputs)}


def whole(
    module: nn.Module, x: Tensor, backend: str, autocast: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Return outputs, state and gradients of one pass."""
    context = (
        torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext()
    )
    with context:
        outputs = everything(*module(x, backend=backend)[:2])
    return named(outputs) | gradients(
        [output.double() for output in outputs], leaves(module, x)
    )


def by_backend(module: nn.Module, x: Tensor) -> dict[str, dict[str, Tensor]]:
    """Return outputs, state and gradients of each backend.

    The gradients are those of outputs and state, and those of the outputs alone. The
    dropout masks of all backends are the same.
    """
    results, x = {}, x[:, :11].detach().requires_grad_()  # two chunks
    for backend in ("reference", "sequence", "native"):
        torch.manual_seed(4)
        outputs = everything(*module(x, backend=backend)[:2])
        inputs = leaves(module, x)
        result = named(outputs) | gradients(
            [output.double() for output in outputs], inputs, retain=True
        )
        of_outputs = gradients([outputs[0].double()], inputs)
        results[backend] = result | {
            f"{part}, of outputs": g for part, g in of_outputs.items()
        }
    return results


def stepwise(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return outputs, state and gradients in float64, computed step by step."""
    module, x = module.double(), x.detach().double().requires_grad_()
    steps, state = [], None
    for step in x.split(1, dim=1):
        y, state, _ = module(step, state, backend="reference")
        steps.append(y)
    outputs = everything(torch.cat(steps, dim=1), state)
    return named(outputs) | gradients(outputs, leaves(module, x))


def made(
    variant: str,
    change: Change,
    dtype: torch.dtype,
    scale: float,
    recompute: bool = False,
    **options,
) -> tuple[nn.Module, Tensor]:
    """Return a changed body, and an input of this scale, both in `dtype`."""
    module = body(variant, **SIZES | options).train()
    module.recompute = recompute
    x = scale * normal(2, LENGTH, module.d_model)
    with torch.no_grad():
        change(module)
    return module.to(dtype), x.detach().to(dtype).requires_grad_()


def times(factor: float, *kinds: str) -> Change:
    """Return a change that multiplies all parameters, or some kinds of them."""

    def change(module: nn.Module) -> None:
        for name, parameter in module.named_parameters():
            if not kinds or any(kind in name for kind in kinds):
                parameter *= factor

    return change


def hide(module: nn.Module) -> None:
    """Hide all keys but the newest two with biases of -inf.

    All keys before a chunk are then hidden.
    """
    for table in module.relative:
        table.key_bias[:, :-2] = -torch.inf


def large_and_small(module: nn.Module) -> None:
    """Give the activation inputs whose squares are infinite."""
    for layer in module.layers:
        layer.feed_forward.inner.bias.copy_(
            torch.tensor([1e37, -1e37, 1e20, -1e20, 0.0])
        )
        layer.feed_forward.outer.weight *= 1e-30


MATRICES = (
    "query.weight",
    "output.weight",
    "inner.weight",
    "outer.weight",
    "key.weight",
    "value.weight",
)
EXTREMES: dict[str, tuple[Change, float]] = {
    "as it is": (times(1), 1),
    "everything times 1e3": (times(1e3), 1),
    "matrices times 1e3": (times(1e3, *MATRICES), 1),
    "queries times 1e4": (times(1e4, "query.weight"), 1),
    "key biases times 1e5": (times(1e5, "key_bias"), 1),
    "key embeddings times 1e5": (times(1e5, "key_embedding"), 1),
    "query biases times 1e5": (times(1e5, "query_bias"), 1),
    "layer logits times 1e6": (times(1e6, "layer_logits"), 1),
    "keys hidden by their biases": (hide, 1),
    "activations of 1e37": (large_and_small, 1),
    "everything times 1e-15": (times(1e-15), 1),
    "everything times 1e-30": (times(1e-30), 1),
    "everything subnormal": (times(1e-42), 1),
    "everything zero": (times(0), 1),
    "input zero": (times(1), 0),
    "input 1e-30": (times(1), 1e-30),
    "input 1e18": (times(1), 1e18),
}


class RoundedSoftmax(torch.autograd.Function):
    """A softmax whose result is off by the last bit of a float32.

    Some CPUs multiply by the reciprocal of the sum, so that a weight that should be 1
    is not, and the gradient of its score not 0.
    """

    @staticmethod
    def forward(ctx, scores: Tensor, dim: int) -> Tensor:
        weights = scores.softmax(dim)
        weights = weights * (1 - FLOAT.eps / 2)
        ctx.save_for_backward(weights)
        ctx.dim = dim
        return weights

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        grad = grad * weights
        return grad - weights * grad.sum(ctx.dim, keepdim=True), None


def rounded_softmax(scores: Tensor, dim: int) -> Tensor:
    return RoundedSoftmax.apply(scores, dim)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", EXTREMES)
def test_errors_are_as_small_as_those_of_the_reference(variant, name, activation):
    """The allowed error includes the effect of a last bit in weights and softmax."""
    change, scale = EXTREMES[name]
    module, x = made(variant, change, torch.float32, scale, activation=activation)
    results = {backend: whole(module, x, backend) for backend in ON_CPU[variant]}
    exact_results = stepwise(module, x)
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter *= 1 + FLOAT.eps * normal(*parameter.shape, seed=i).clamp(-1, 1)
    with mock.patch.object(torch, "softmax", rounded_softmax):
        perturbed_results = stepwise(module, x)
    inputs = leaves(module, x)
    largest = max(exact_results[part].abs().max() for part in inputs)
    for backend, result in results.items():
        errors = {
            part: (result[part].double() - exact).abs().max()
            for part, exact in exact_results.items()
        }
        for part, exact in exact_results.items():
            assert result[part].isfinite().all(), f"{backend}: {part} is not finite"
            rounding = [
                (other[part].double() - exact).abs().max()
                for other in (perturbed_results, results["reference"])
            ]
            allowed = 1e-5 * exact.abs().max() + 20 * max(rounding) + FLOAT.tiny
            allowed += 10 * FLOAT.eps * largest if part in inputs else 0
            assert errors[part] <= allowed, (
                f"{backend}: {part} is off by {errors[part]}, allowed {allowed}"
            )
        # With a ReLU, a last bit may decide on which side of zero an input is.
        if activation == "gelu":
            unavoidable = max(
                (perturbed_results[part] - exact_results[part]).abs().max()
                for part in inputs
            )
            allowed = 1e-2 * largest + 2 * unavoidable + FLOAT.tiny
            assert max(errors[part] for part in inputs) <= allowed, backend


@pytest.mark.parametrize("number", range(len(EVERY_OPTION) if LONG else 4))
@pytest.mark.parametrize("name", EXTREMES)
def test_finite_with_every_option_where_the_reference_is_finite(name, number):
    """Four options for each extreme; `make test-properties` takes all of them."""
    first = 4 * list(EXTREMES).index(name)
    options = EVERY_OPTION[(first + number) % len(EVERY_OPTION)]
    change, scale = EXTREMES[name]
    module, x = made("shared-kv", change, torch.float32, scale, **options)
    results = by_backend(module, x)
    for backend, result in results.items():
        for part, expected in results["reference"].items():
            wrong = expected.isfinite() & ~result[part].isfinite()
            assert not wrong.any(), f"{backend}: {part} is not finite"


def switched_off(module: nn.Module) -> None:
    """Switch off a hidden unit."""
    module.layers[0].feed_forward.inner.bias[1] = -torch.inf


def always_on(module: nn.Module) -> None:
    module.layers[0].feed_forward.inner.bias[1] = torch.inf


def newest_key_hidden(module: nn.Module) -> None:
    module.relative[0].key_bias[0, -1] = -torch.inf


def all_keys_hidden(module: nn.Module) -> None:
    module.relative[0].key_bias.fill_(-torch.inf)


def one_key_only(module: nn.Module) -> None:
    module.relative[0].key_bias[:, -1] = torch.inf


def memory_without_embeddings(module: nn.Module) -> None:
    if module.memory.layer_logits is not None:
        module.memory.layer_logits[0] = -torch.inf


def infinite_query(module: nn.Module) -> None:
    module.relative[0].query_bias[0, 1] = torch.inf


def infinite_output(module: nn.Module) -> None:
    module.layers[-1].feed_forward.outer.bias[1] = -torch.inf


def nan_unit(module: nn.Module) -> None:
    module.layers[0].feed_forward.inner.bias[1] = torch.nan


INFINITE = {
    change.__name__: change
    for change in (
        switched_off,
        always_on,
        newest_key_hidden,
        all_keys_hidden,
        one_key_only,
        memory_without_embeddings,
        infinite_query,
        infinite_output,
        nan_unit,
    )
}


@pytest.mark.parametrize("options", ({}, *EVERY_OPTION), ids=str)
@pytest.mark.parametrize("name", INFINITE)
def test_infinities_and_nan_equal_those_of_the_reference(name, options):
    """In outputs, state and all gradients, also those of the outputs alone."""
    dtypes = (torch.float32, torch.float64)
    for dtype in dtypes if LONG or not options else dtypes[1:]:
        module, x = made("shared-kv", INFINITE[name], dtype, 1, **options)
        results = by_backend(module, x)
        for backend, result in results.items():
            for part, expected in results["reference"].items():
                same = result[part].isnan() == expected.isnan()
                same &= (
                    (result[part] == expected)
                    | expected.isfinite()
                    | expected.isnan()
                )
                same &= result[part].isfinite() | ~expected.isfinite()
                assert same.all(), (
                    f"{backend}, {dtype}: {part} differs from the reference"
                )
            if dtype == torch.float64:
                finite = {n: t.nan_to_num(0, 0, 0) for n, t in result.items()}
                expected = {
                    n: t.nan_to_num(0, 0, 0) for n, t in results["reference"].items()
                }
                assert_same(finite, expected, backend, rtol=1e-8, atol=1e-9)


def test_relu_of_minus_infinity_is_zero():
    """With a single unit, the feed-forward block returns its outer bias."""
    for backend in ("reference", "stack", "sequence", "native"):
        module = body(
            "shared-kv",
            d_model=4,
            n_heads=1,
            n_layers=1,
            d_ff=1,
            span=3,
            activation="relu",
        )
        with torch.no_grad():
            module.layers[0].feed_forward.inner.bias[0] = -torch.inf
            module.layers[0].attention.output.weight.zero_()
            module.layers[0].attention.output.bias.zero_()
            module.layers[0].feed_forward.outer.bias.copy_(
                torch.tensor([1.0, 2.0, 3.0, 4.0])
            )
        x = normal(2, 9, 4)
        y = module(x, backend=backend)[0]
        assert_same(
            y, x + torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64), backend
        )
        assert_same(torch.autograd.grad(y.sum(), x)[0], torch.ones_like(x), backend)


def saturated(seed: int) -> tuple[fbt.LanguageModel, Tensor]:
    """Return a random model with weights times 30, and tokens.

    Nearly all attention weights are 0 or 1.
    """
    draw = random.Random(seed)
    heads = draw.choice([1, 2, 4])
    config = fbt.Config(
        11,
        d_model=heads * draw.choice([4, 8, 16]),
        n_heads=heads,
        n_layers=draw.choice([1, 2, 3]),
        d_ff=draw.choice([8, 16, 33]),
        span=draw.choice([5, 13, 40]),
        activation=draw.choice(["relu", "gelu"]),
    )
    torch.manual_seed(seed)
    model = fbt.LanguageModel(config)
    with torch.no_grad():
        times(30)(model)
    return model, torch.randint(11, (1, draw.choice([16, 32])))


@torch.no_grad()
def errors(model: fbt.LanguageModel, tokens: Tensor, *backends: str) -> list[float]:
    """Return the largest error of the logits of each backend in float32.

    Errors are differences to the reference in float64.
    """
    exact = copy.deepcopy(model).double()
    exact.backend = "reference"
    largest = []
    for model.backend in backends:
        largest.append(float((model(tokens) - exact(tokens)).abs().max()))
    return largest


def test_saturated_softmax_gives_each_backend_the_same_error():
    """Errors grow from step to step: one bit may decide which of two keys is read.

    So errors of a single configuration are random, and only medians are compared. If
    the error of a backend is much larger than that of the reference, the reference
    must have a similar error for weights that differ in their last bit.
    """
    ratios: dict[str, list[float]] = {"sequence": [], "native": []}
    for seed in range(1000 if LONG else 40):
        model, tokens = saturated(seed)
        reference, *others = errors(model, tokens, "reference", *ratios)
        for backend, error in zip(ratios, others, strict=True):
            ratios[backend].append(error / reference)
        if max(others) > 4 * reference:
            for i in range(24):
                with torch.no_grad():
                    perturbed = copy.deepcopy(model)
                    for j, parameter in enumerate(perturbed.parameters()):
                        noise = normal(*parameter.shape, seed=100 * i + j).clamp(
                            -1, 1
                        )
                        parameter *= 1 + FLOAT.eps * noise.float()
                reference = max(reference, *errors(perturbed, tokens, "reference"))
            assert max(others) <= 4 * reference, (
                f"seed {seed}: {others}, reference {reference}"
            )
    for backend, values in ratios.items():
        assert statistics.median(values) < 1.5, backend


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "variant, backend, method",
    [
        *((*case, "autocast") for case in CASES),
        # "native" raises
        *((*case, "whole model") for case in CASES if case[1] != "native"),
    ],
)
def test_half_precision_errors_are_those_of_rounding(
    variant, backend, method, precision
):
    dtype = torch.float32 if method == "autocast" else precision
    module, x = made(variant, times(1), dtype, 1)
    result = whole(module, x, backend, precision if method == "autocast" else None)
    exact = stepwise(module, x)
    assert {tensor.dtype for tensor in result.values()} <= {dtype, precision}
    rounding = 20 * torch.finfo(precision).eps
    for kind in (
        list(leaves(module, x)),
        [part for part in exact if "output" in part[:6]],
    ):
        error, size = (
            torch.cat([tensor.flatten() for tensor in of]).norm()
            for of in (
                [result[part].double() - exact[part] for part in kind],
                [exact[part] for part in kind],
            )
        )
        assert error < rounding * size


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_model_in_half_precision_generates(variant, precision):
    torch.manual_seed(0)
    lm = fbt.LanguageModel(
        fbt.Config(3, variant=variant, d_model=6, n_heads=2, n_layers=2),
        fbt.CharTokenizer("abc"),
    ).to(precision)
    assert len(lm.generate(["a", "bc"], 20, seed=0)[0]) == 21
    logits, state = lm(torch.tensor([[0, 1, 2]]), return_state=True)
    step, _ = lm.step(torch.tensor([1]), state)
    assert_same(step, lm(torch.tensor([[0, 1, 2, 1]]))[:, -1], rtol=0, atol=0.05)
    assert logits.dtype == step.dtype == precision


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5e-324, 1e300])
def test_logits_that_are_not_finite_raise(temperature):
    lm = fbt.LanguageModel(fbt.Config(3, d_model=4), fbt.CharTokenizer("abc"))
    with torch.no_grad():
        lm.head.bias[1] = -torch.inf
        assert "b" not in lm.generate("a", 20, temperature=temperature, seed=0)
        for wrong in (torch.nan, torch.inf):
            lm.head.bias[1] = wrong
            with pytest.raises(
                FloatingPointError, match="logits must be below infinity"
            ):
                lm.generate("a", 20, temperature=temperature, seed=0)


@each_case
def test_single_step_has_no_attention_gradients(variant, backend):
    """Step 0 of a feedback model skips attention.

    A step of a parallel model sees itself; with one key its softmax is constant.
    """
    module, x = body(variant), normal(2, 1, 14)
    named = gradients([module(x, backend=backend)[0]], leaves(module, x))
    assert all(gradient.isfinite().all() for gradient in named.values())
    touched = {name for name, gradient in named.items() if gradient.any()}
    query_side = {name for name in named if "relative" in name or "query" in name}
    value_side = {
        name
        for name in named
        if "attention.output" in name or "value" in name or "memory" in name
    }
    assert not touched & query_side
    assert (
        not touched & value_side
        if variant in FEEDBACK
        else touched
        >= value_side - {name for name in value_side if "key.weight" in name}
    )
    assert "x" in touched


@each_case
def test_nan_spreads_to_later_steps_only(variant, backend):
    """Not to other sequences; in a parallel model, earlier steps are not checked."""
    for dtype in (torch.float32, torch.float64):
        module, x = (
            body(variant, activation="relu").to(dtype),
            normal(2, LENGTH, 14).detach().to(dtype),
        )
        for wrong in (torch.nan, torch.inf):
            x[0, 9, 3] = wrong
            y = module(x, backend=backend)[0]
            assert y[0, 9:].isnan().all()
            assert y[1].isfinite().all()
            assert variant == "parallel" or y[0, :9].isfinite().all()


STEPS = 8192 if LONG else 1500
LONG_TEXT = {"d_model": 4, "n_heads": 1, "n_layers": 1, "d_ff": 5, "span": 7}


def in_blocks(
    module: nn.Module, x: Tensor, steps: int, backend: str
) -> dict[str, Tensor]:
    """Return what `whole` returns, computed in blocks of so many steps."""
    state, blocks = None, []
    for block in x.split(steps, dim=1):
        y, state, _ = module(block, state, backend=backend)
        blocks.append(y)
    outputs = everything(torch.cat(blocks, dim=1), state)
    return named(outputs) | gradients(
        [output.double() for output in outputs], leaves(module, x)
    )


def test_many_steps():
    """Outputs equal the reference's, gradients those in blocks.

    `make test-properties` takes 8192 steps, and compares gradients with the
    reference, too.
    """
    module, x = body("shared-kv", **LONG_TEXT), normal(1, STEPS, 4)
    actual = whole(module, x, "native")
    assert_same(actual, in_blocks(module, x, 512, "native"), "blocks")
    assert_same(actual, whole(module, x, "sequence"), "sequence")
    if LONG:
        assert_same(actual, whole(module, x, "reference"), "reference")
    else:
        with torch.no_grad():
            assert_same(actual["output 0"], module(x, backend="reference")[0])


if LONG:

    def test_many_steps_of_a_stack():
        module, x = body("feedback", **LONG_TEXT), normal(1, STEPS, 4)
        assert_same(whole(module, x, "stack"), whole(module, x, "reference"))


def test_many_steps_of_a_parallel_model_equal_blocks_of_256():
    module, x = (
        body("parallel", **LONG_TEXT).float(),
        normal(1, STEPS, 4).float().detach().requires_grad_(),
    )
    expected = in_blocks(module, x, 256, "reference")
    assert_same(whole(module, x, "reference"), expected, rtol=1e-4, atol=1e-3)


@each_case
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_nan_in_feed_forward_reaches_the_output(variant, backend, activation):
    module, x = (
        body(variant, **SIZES | {"activation": activation}),
        normal(2, LENGTH, SIZES["d_model"]),
    )
    with torch.no_grad():
        module.layers[-1].feed_forward.inner.bias[0] = torch.nan
    assert module(x, backend=backend)[0].isnan().all()
