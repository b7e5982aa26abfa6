"""Numbers at the ends of their range: finite wherever the plain loop is finite, and as near to the truth.

The truth is the reference in float64, one step at a time through `State`: nothing is
masked there.
"""

import contextlib
import copy
import random
import statistics
from collections.abc import Callable

import pytest
import torch
from conftest import LONG
from exact import (
    CASES,
    FEEDBACK,
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
LENGTH = 17  # beyond the span, and more than one chunk
pytestmark = pytest.mark.usefixtures("native")
each_case = pytest.mark.parametrize("variant, backend", CASES)
FLOAT = torch.finfo(torch.float32)
Change = Callable[[nn.Module], None]


def named(outputs: list[Tensor]) -> dict[str, Tensor]:
    return {f"output {i}": output for i, output in enumerate(outputs)}


def whole(
    module: nn.Module, x: Tensor, backend: str, autocast: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Outputs, state and gradients of one pass."""
    context = (
        torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext()
    )
    with context:
        outputs = everything(*module(x, backend=backend)[:2])
    return named(outputs) | gradients(
        [output.double() for output in outputs], leaves(module, x)
    )


def by_backend(module: nn.Module, x: Tensor) -> dict[str, dict[str, Tensor]]:
    """Outputs, state, gradients of all of these, and of the outputs alone.

    Dropout draws the same masks for each backend.
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
    """The same in float64, step by step."""
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
    """A body that went through `change`, and an input of this size, both in `dtype`."""
    module = body(variant, **SIZES | options).train()
    module.recompute = recompute
    x = scale * normal(2, LENGTH, module.d_model)
    with torch.no_grad():
        change(module)
    return module.to(dtype), x.detach().to(dtype).requires_grad_()


def times(factor: float, *kinds: str) -> Change:
    """Multiply all parameters, or those of these kinds."""

    def change(module: nn.Module) -> None:
        for name, parameter in module.named_parameters():
            if not kinds or any(kind in name for kind in kinds):
                parameter *= factor

    return change


def hide(module: nn.Module) -> None:
    """A window of two steps, made by biases of -inf: keys before a chunk are hidden all at once."""
    for table in module.relative:
        table.key_bias[:, :-2] = -torch.inf


def large_and_small(module: nn.Module) -> None:
    """Numbers whose squares are infinite, into the activation."""
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


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", EXTREMES)
def test_finite_and_as_near_to_the_truth_as_the_reference(variant, name, activation):
    """What the last bit of each weight can change counts too, and the last bits of the largest gradient."""
    change, scale = EXTREMES[name]
    module, x = made(variant, change, torch.float32, scale, activation=activation)
    results = {backend: whole(module, x, backend) for backend in module.backends}
    truth = stepwise(module, x)
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter *= 1 + FLOAT.eps * normal(*parameter.shape, seed=i).clamp(-1, 1)
    shaken = stepwise(module, x)
    inputs = leaves(module, x)
    largest = max(truth[part].abs().max() for part in inputs)
    for backend, result in results.items():
        errors = {
            part: (result[part].double() - exact).abs().max()
            for part, exact in truth.items()
        }
        for part, exact in truth.items():
            assert result[part].isfinite().all(), f"{backend}: {part} is not finite"
            rounding = [
                (found[part].double() - exact).abs().max()
                for found in (shaken, results["reference"])
            ]
            allowed = 1e-5 * exact.abs().max() + 20 * max(rounding) + FLOAT.tiny
            allowed += 10 * FLOAT.eps * largest if part in inputs else 0
            assert errors[part] <= allowed, (
                f"{backend}: {part} is off by {errors[part]}, allowed {allowed}"
            )
        # a ReLU has a kink, across which a last bit may push
        if activation == "gelu":
            assert (
                max(errors[part] for part in inputs) <= 1e-2 * largest + FLOAT.tiny
            ), backend


@pytest.mark.parametrize("options", EVERY_OPTION, ids=str)
@pytest.mark.parametrize("name", EXTREMES)
def test_finite_with_every_option_where_the_reference_is(name, options):
    change, scale = EXTREMES[name]
    module, x = made("shared-kv", change, torch.float32, scale, **options)
    results = by_backend(module, x)
    for backend, result in results.items():
        for part, expected in results["reference"].items():
            lost = expected.isfinite() & ~result[part].isfinite()
            assert not lost.any(), f"{backend}: {part} is not finite"


def switched_off(module: nn.Module) -> None:
    """A hidden unit that never fires."""
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
def test_infinities_and_nan_are_those_of_the_reference(name, options):
    """In outputs, state and every gradient, also of the outputs alone."""
    for dtype in (torch.float32, torch.float64):
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
                    f"{backend}, {dtype}: {part} is not as in the reference"
                )
            if dtype == torch.float64:
                finite = {n: t.nan_to_num(0, 0, 0) for n, t in result.items()}
                expected = {
                    n: t.nan_to_num(0, 0, 0) for n, t in results["reference"].items()
                }
                assert_same(finite, expected, backend, rtol=1e-8, atol=1e-9)


def test_a_relu_of_minus_infinity_is_zero():
    """Worked out by hand: with a single unit, the feed-forward block is its outer bias."""
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
    """A random model whose weights are times 30, so that nearly all attention weights are 0 or 1."""
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
    """How far the logits of each backend in float32 are from those of the reference in float64."""
    truth = copy.deepcopy(model).double()
    truth.backend = "reference"
    found = []
    for model.backend in backends:
        found.append(float((model(tokens) - truth(tokens)).abs().max()))
    return found


def test_a_saturated_softmax_costs_each_backend_the_same():
    """Errors grow from step to step there: one bit may decide which of two keys is read.

    So the error in a single configuration is a matter of luck, and a large ratio of
    two means nothing. What must agree is the typical error. And where a backend is
    much further off than the reference, the reference is as far off for weights that
    differ in their last bit.
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
                    shaken = copy.deepcopy(model)
                    for j, parameter in enumerate(shaken.parameters()):
                        noise = normal(*parameter.shape, seed=100 * i + j).clamp(
                            -1, 1
                        )
                        parameter *= 1 + FLOAT.eps * noise.float()
                reference = max(reference, *errors(shaken, tokens, "reference"))
            assert max(others) <= 4 * reference, (
                f"seed {seed}: {others}, reference {reference}"
            )
    for backend, found in ratios.items():
        assert statistics.median(found) < 1.5, (
            f"{backend}: {statistics.median(found)}"
        )


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "variant, backend, way",
    [
        *((*case, "autocast") for case in CASES),
        # that one refuses
        *((*case, "whole model") for case in CASES if case[1] != "native"),
    ],
)
def test_half_precision_costs_its_rounding_and_no_more(
    variant, backend, way, precision
):
    dtype = torch.float32 if way == "autocast" else precision
    module, x = made(variant, times(1), dtype, 1)
    result = whole(module, x, backend, precision if way == "autocast" else None)
    truth = stepwise(module, x)
    assert {tensor.dtype for tensor in result.values()} <= {dtype, precision}
    rounding = 20 * torch.finfo(precision).eps
    for kind in (
        list(leaves(module, x)),
        [part for part in truth if "output" in part[:6]],
    ):
        error, size = (
            torch.cat([tensor.flatten() for tensor in of]).norm()
            for of in (
                [result[part].double() - truth[part] for part in kind],
                [truth[part] for part in kind],
            )
        )
        assert error < rounding * size


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_a_model_of_half_precision_writes(variant, precision):
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
def test_a_model_that_predicts_no_number_says_so_instead_of_writing(temperature):
    lm = fbt.LanguageModel(fbt.Config(3, d_model=4), fbt.CharTokenizer("abc"))
    with torch.no_grad():
        lm.head.bias[1] = -torch.inf
        assert "b" not in lm.generate("a", 20, temperature=temperature, seed=0)
        for wrong in (torch.nan, torch.inf):
            lm.head.bias[1] = wrong
            with pytest.raises(
                FloatingPointError, match="logits must be numbers below infinity"
            ):
                lm.generate("a", 20, temperature=temperature, seed=0)


@each_case
def test_a_step_without_memory_learns_nothing_about_attention(variant, backend):
    """The one row that is masked throughout is step 0 of a feedback model, and it skips attention.

    A step of a parallel model sees itself, so that there is no such row; with one key
    its softmax is flat.
    """
    module, x = body(variant), normal(2, 1, 14)
    found = gradients([module(x, backend=backend)[0]], leaves(module, x))
    assert all(gradient.isfinite().all() for gradient in found.values())
    touched = {name for name, gradient in found.items() if gradient.any()}
    asking = {name for name in found if "relative" in name or "query" in name}
    answering = {
        name
        for name in found
        if "attention.output" in name or "value" in name or "memory" in name
    }
    assert not touched & asking
    assert (
        not touched & answering
        if variant in FEEDBACK
        else touched
        >= answering - {name for name in answering if "key.weight" in name}
    )
    assert "x" in touched


@each_case
def test_what_is_not_a_number_stays_none_and_reaches_no_other_sequence(
    variant, backend
):
    """Or a run would go on with a loss that means nothing; in a feedback model nor any earlier step."""
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


LONG_TEXT = {"d_model": 4, "n_heads": 1, "n_layers": 1, "d_ff": 5, "span": 7}


def in_blocks(
    module: nn.Module, x: Tensor, steps: int, backend: str
) -> dict[str, Tensor]:
    """What `whole` computes, with blocks of so many steps carried through `State`."""
    state, blocks = None, []
    for block in x.split(steps, dim=1):
        y, state, _ = module(block, state, backend=backend)
        blocks.append(y)
    outputs = everything(torch.cat(blocks, dim=1), state)
    return named(outputs) | gradients(
        [output.double() for output in outputs], leaves(module, x)
    )


def test_8192_steps():
    """Outputs as the reference's, gradients as in blocks; `make test-properties` has the reference's too."""
    module, x = body("shared-kv", **LONG_TEXT), normal(1, 8192, 4)
    found = whole(module, x, "native")
    assert_same(found, in_blocks(module, x, 512, "native"), "blocks")
    assert_same(found, whole(module, x, "sequence"), "sequence")
    if LONG:
        assert_same(found, whole(module, x, "reference"), "reference")
    else:
        with torch.no_grad():
            assert_same(found["output 0"], module(x, backend="reference")[0])


if LONG:

    def test_8192_steps_of_a_stack():
        module, x = body("feedback", **LONG_TEXT), normal(1, 8192, 4)
        assert_same(whole(module, x, "stack"), whole(module, x, "reference"))


def test_8192_steps_of_a_parallel_model_equal_blocks_of_256():
    module, x = (
        body("parallel", **LONG_TEXT).float(),
        normal(1, 8192, 4).float().detach().requires_grad_(),
    )
    expected = in_blocks(module, x, 256, "reference")
    assert_same(whole(module, x, "reference"), expected, rtol=1e-4, atol=1e-3)


@each_case
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_nan_inside_a_block_comes_out_of_it(variant, backend, activation):
    """Nothing takes it for a zero."""
    module, x = (
        body(variant, **SIZES | {"activation": activation}),
        normal(2, LENGTH, SIZES["d_model"]),
    )
    with torch.no_grad():
        module.layers[-1].feed_forward.inner.bias[0] = torch.nan
    assert module(x, backend=backend)[0].isnan().all()
