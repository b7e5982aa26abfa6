"""All backends agree for random shapes and options, and whatever a user does.

`make test-properties` tries many more examples than `make test`.
"""

import copy
import pickle
import re
import warnings
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from conftest import LONG
from exact import (
    ON_CPU,
    VARIANTS,
    assert_same,
    config,
    everything,
    gradients,
    leaves,
    normal,
    perturbed,
    some_state,
    some_tokens,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

import fbt

pytestmark = pytest.mark.usefixtures("native")
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
FAST = {"rtol": 1e-8, "atol": 1e-9}


class Case(NamedTuple):
    """A configuration, a backend, a device and the sizes of the input."""

    config: fbt.Config
    backend: str
    device: str
    batch: int
    length: int
    carried: int

    def model(self, backend: str = "") -> fbt.LanguageModel:
        """Return a model; its weights are always the same."""
        torch.manual_seed(0)
        lm = perturbed(fbt.LanguageModel(self.config)).to(self.device)
        lm.backend = backend or self.backend
        return lm

    def tokens(self, seed: int = 3) -> Tensor:
        tokens = some_tokens(self.batch, self.length, seed) % self.config.vocab_size
        return tokens.to(self.device)

    def x(self) -> Tensor:
        x = normal(self.batch, self.length, self.config.d_model)
        return x.detach().to(self.device).requires_grad_()

    def state(self) -> fbt.State | None:
        """Return leaves as if carried from an earlier block, or None."""
        if not self.carried:
            return None
        state = some_state(self.config, self.carried, self.batch)
        return state.map(
            lambda cache: cache.detach().to(self.device).requires_grad_()
        )


@st.composite
def cases(draw: st.DrawFn, dropout: bool = False) -> Case:
    variant = draw(st.sampled_from(VARIANTS))
    device = draw(st.sampled_from(DEVICES))
    heads, span = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    c = config(
        variant,
        d_model=heads * draw(st.integers(1, 4)),
        n_heads=heads,
        n_layers=draw(st.integers(1, 3)),
        d_ff=draw(st.integers(1, 9)),
        span=span,
        dropout=draw(st.sampled_from([0.0, 0.3])) if dropout else 0.0,
        activation=draw(st.sampled_from(["relu", "gelu"])),
        memory=draw(st.sampled_from(["learned", "uniform", "top", "embedding"])),
        memory_norm=draw(st.booleans()),
        relative=draw(st.sampled_from(["per-layer", "shared"])),
    )
    backends = [
        b for b in ("auto", *ON_CPU[variant]) if device == "cpu" or b != "native"
    ]
    return Case(
        c,
        draw(st.sampled_from(backends)),
        device,
        batch=draw(st.integers(1, 4)),
        length=draw(st.integers(1, 12)),
        carried=draw(st.integers(0, span)),
    )


def strided(x: Tensor, how: str) -> Tensor:
    """Return a tensor of the same shape with other strides.

    It is a slice of a larger tensor, transposed, or its first row expanded.
    """
    if how == "slice":
        larger = torch.stack([x, torch.full_like(x, 7)], dim=-1)
        return larger[..., 0]
    if how == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "expanded":
        return x[:1].expand_as(x)
    return x


strides = st.sampled_from(["contiguous", "slice", "transposed", "expanded"])


def accumulated(module: nn.Module, x: Tensor | None = None) -> dict[str, Tensor]:
    """Return the `grad` of each tensor by name; None counts as zero."""
    return {
        name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        for name, tensor in leaves(module, x).items()
    }


def both(case: Case, run: Any) -> None:
    """Check that `run(model)` returns what it returns for the reference."""
    assert_same(run(case.model()), run(case.model("reference")), str(case), **FAST)


@given(cases(dropout=True), strides, strides, st.booleans())
def test_body_with_inputs_and_gradients_of_any_strides(
    case, of_input, of_gradient, training
):
    def run(lm: fbt.LanguageModel) -> dict[str, Tensor]:
        module, x, state = lm.body.train(training), case.x(), case.state()
        torch.manual_seed(5)
        outputs = everything(
            *module(strided(x, of_input), state, backend=lm.backend)[:2]
        )
        named = leaves(module, x, state)
        upstream = [
            strided(normal(*o.shape, seed=i).detach().to(o.device), of_gradient)
            for i, o in enumerate(outputs)
        ]
        computed = torch.autograd.grad(
            outputs,
            list(named.values()),
            upstream,
            allow_unused=True,
            materialize_grads=True,
        )
        return {f"output {i}": o for i, o in enumerate(outputs)} | dict(
            zip(named, computed, strict=True)
        )

    both(case, run)


@given(cases(), strides, st.sampled_from([torch.int64, torch.int32]))
def test_tokens_with_any_strides(case, how, dtype):
    def run(lm: fbt.LanguageModel) -> list[Tensor]:
        tokens = strided(case.tokens().to(dtype), how)
        logits, state = lm(tokens, case.state(), return_state=True)
        assert_same(lm(tokens.contiguous(), case.state()), logits, rtol=0, atol=0)
        return [*everything(logits, state), *gradients([logits], leaves(lm)).values()]

    both(case, run)


@given(cases(), st.data())
def test_any_subset_of_tensors_gets_gradients(case, data):
    """Any subset of weights, input and carried state."""
    names = list(leaves(case.model().body, case.x(), case.state()))
    wanted = data.draw(st.sets(st.sampled_from(names), min_size=1))

    def run(lm: fbt.LanguageModel) -> dict[str, Tensor]:
        module, x, state = lm.body, case.x(), case.state()
        named = leaves(module, x, state)
        for name, tensor in named.items():
            tensor.requires_grad_(name in wanted)
        outputs = everything(*module(x, state, backend=lm.backend)[:2])
        # A single step may have no graph, since it reads no table.
        if any(output.requires_grad for output in outputs):
            sum(
                ((i + 1) * output).square().sum() for i, output in enumerate(outputs)
            ).backward()
        assert all(
            tensor.grad is None
            for name, tensor in named.items()
            if name not in wanted
        )
        return {
            name: torch.zeros_like(named[name])
            if named[name].grad is None
            else named[name].grad
            for name in sorted(wanted)
        }

    both(case, run)


@given(
    cases(),
    st.sampled_from(
        [torch.no_grad, torch.inference_mode, partial(torch.set_grad_enabled, False)]
    ),
)
def test_numbers_without_gradients_are_the_same(case, context):
    lm, reference, state = case.model(), case.model("reference"), case.state()
    expected, after = reference(case.tokens(), state, return_state=True)
    with context():
        logits, new_state = lm(case.tokens(), state, return_state=True)
        assert_same(
            everything(logits, new_state), everything(expected, after), **FAST
        )
        step, _ = lm.step(case.tokens()[:, 0], new_state)
    assert not logits.requires_grad and not new_state.keys[0].requires_grad
    assert_same(step, reference.step(case.tokens()[:, 0], after)[0], **FAST)


@given(cases(dropout=True), st.booleans(), st.booleans())
def test_checkpointing_changes_no_number(case, use_reentrant, saved_on_cpu):
    """Backward recomputes the same numbers, dropout masks included."""

    def run(use_checkpoint: bool, lm: fbt.LanguageModel) -> dict[str, Tensor]:
        module, x, state = lm.body.train(), case.x(), case.state()
        torch.manual_seed(5)
        context = (
            torch.autograd.graph.save_on_cpu() if saved_on_cpu else nullcontext()
        )
        with context:
            step = lambda x: module(x, state, backend=lm.backend)[0]  # noqa: E731
            y = (
                checkpoint(step, x, use_reentrant=use_reentrant)
                if use_checkpoint
                else step(x)
            )
            logits = lm.head(lm.norm(y))
        logits.square().sum().backward()
        return accumulated(lm, x) | {"y": y}

    plain = run(False, case.model("reference"))
    assert_same(run(True, case.model()), plain, **FAST)


@given(cases(), st.integers(1, 3))
def test_gradients_accumulate_over_parts_of_a_batch(case, pieces):
    lm, whole = case.model(), case.model("reference")
    for tokens in case.tokens().chunk(pieces):
        lm(tokens).square().sum().backward()
    whole(case.tokens()).square().sum().backward()
    assert_same(accumulated(lm), accumulated(whole), **FAST)


@given(cases(), st.sampled_from(["pickle", "deepcopy", "state_dict"]))
def test_copy_computes_the_same_and_shares_nothing(case, method):
    lm = case.model()
    lm(case.tokens()).sum().backward()
    if method == "state_dict":
        twin = fbt.LanguageModel(case.config).double().to(case.device)
        twin.load_state_dict(lm.state_dict())
        twin.backend = case.backend
    else:
        twin = (
            copy.deepcopy(lm)
            if method == "deepcopy"
            else pickle.loads(pickle.dumps(lm))
        )
    other = case.tokens(seed=4)
    expected = lm(other)
    assert twin.backend == lm.backend
    assert_same(twin(other), expected, rtol=0, atol=0)
    assert_same(
        gradients([twin(other)], leaves(twin)),
        gradients([expected], leaves(lm)),
        rtol=0,
        atol=0,
    )
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert_same(lm(other), expected, rtol=0, atol=0)


@given(case=cases())
def test_tied_weight_gets_both_gradients_and_is_saved(case, tmp_path_factory):
    tied, untied = case.model(), case.model("reference")
    tied.head.weight = tied.token_embedding.weight
    with torch.no_grad():
        untied.head.weight.copy_(untied.token_embedding.weight)
    results = []
    for lm in (tied, untied, copy.deepcopy(tied)):
        lm.zero_grad()
        logits = lm(case.tokens())
        logits.square().sum().backward()
        grads = accumulated(lm)
        if lm is untied:
            grads["token_embedding.weight"] = grads[
                "token_embedding.weight"
            ] + grads.pop("head.weight")
        results.append(grads | {"logits": logits})
    assert_same(results[0], results[1], **FAST)
    assert_same(results[2], results[0], rtol=0, atol=0)
    folder = tmp_path_factory.mktemp("tied")
    tied.save_pretrained(folder)
    loaded = fbt.LanguageModel.from_pretrained(folder).to(case.device)
    assert_same(loaded(case.tokens()), tied(case.tokens()), **FAST)


@given(cases())
def test_functional_calls(case):
    """`functional_call`; `torch.func.grad` and `vmap` where they are supported."""
    lm = case.model()
    new_weights = {name: 1.1 * p.detach() for name, p in lm.named_parameters()}
    expected = case.model("reference")
    expected.load_state_dict(new_weights, strict=False)
    weights = {name: p.clone().requires_grad_() for name, p in new_weights.items()}
    logits = torch.func.functional_call(lm, weights, (case.tokens(),))
    expected_gradients = gradients([expected(case.tokens())], leaves(expected))
    assert_same(logits, expected(case.tokens()), **FAST)
    assert_same(gradients([logits], weights), expected_gradients, **FAST)

    upstream = normal(*logits.shape, seed=0).detach().to(logits.device)

    tokens = case.tokens()

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return (torch.func.functional_call(lm, weights, (tokens,)) * upstream).sum()

    both_weights = {name: torch.stack([p, p / 2]) for name, p in new_weights.items()}
    supported = case.config.variant == "parallel" or lm.backend == "reference"
    with (
        nullcontext()
        if supported
        else pytest.raises(RuntimeError, match="setup_context")
    ):
        assert_same(torch.func.grad(loss)(new_weights), expected_gradients, **FAST)
    with (
        nullcontext()
        if supported
        else pytest.raises(RuntimeError, match="setup_context")
    ):
        losses = torch.func.vmap(loss)(both_weights)
        halves = {name: p / 2 for name, p in new_weights.items()}
        assert_same(losses, torch.stack([loss(new_weights), loss(halves)]), **FAST)


# A module may have no inputs with gradients in a single step.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@given(
    cases(),
    st.sampled_from(["forward", "forward_pre", "full_backward", "full_backward_pre"]),
    st.data(),
)
def test_hooks_on_any_module_fire_or_raise(case, kind, data):
    """Hooks fire as often, and have the same effect, as with the reference."""
    parts = [name for name, _ in case.model().body.named_modules() if name]
    part = data.draw(st.sampled_from(parts))

    def run(lm: fbt.LanguageModel) -> dict[str, Tensor]:
        calls = []
        getattr(lm.body.get_submodule(part), f"register_{kind}_hook")(
            lambda *_: calls.append(1) and None
        )
        x = case.x()
        y = lm.body(x, case.state(), backend=lm.backend)[0]
        named = gradients([y], leaves(lm.body, x))
        return named | {"y": y, "calls": torch.tensor(len(calls))}

    if case.backend in ("sequence", "native"):
        hook = "has a (forward|backward) (pre-)?hook"
        reason = rf"without calling them, but {re.escape(part)} {hook}"
        with pytest.raises(ValueError, match=reason):
            run(case.model())
    else:
        both(case, run)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def old_weight_norm(linear: nn.Linear) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(linear)
    with torch.no_grad():
        linear.weight_g.mul_(2)


def with_bias(layer: nn.Module) -> None:
    layer.attention.query.bias = nn.Parameter(
        torch.ones_like(layer.attention.query.weight[0])
    )


CHANGES = {
    "parametrized": lambda layer: parametrize.register_parametrization(
        layer.feed_forward.inner, "weight", Doubled()
    ),
    "weight norm": lambda layer: parametrizations.weight_norm(layer.attention.output),
    "weight norm by a hook": lambda layer: old_weight_norm(layer.attention.output),
    "pruned": lambda layer: prune.l1_unstructured(
        layer.feed_forward.inner, "weight", amount=0.5
    ),
    "another activation": lambda layer: setattr(
        layer.feed_forward, "activation", torch.tanh
    ),
    "another epsilon": lambda layer: setattr(layer.norm2, "eps", 0.1),
    "another forward": lambda layer: setattr(
        layer.feed_forward, "forward", lambda z: 2 * z
    ),
    "one more bias": with_bias,
    "no norm": lambda layer: setattr(layer, "norm2", nn.Identity()),
    "a norm without gain": lambda layer: setattr(
        layer,
        "norm2",
        nn.LayerNorm(layer.norm2.normalized_shape, elementwise_affine=False),
    ),
    "another dropout": lambda layer: setattr(layer.dropout, "p", 0.5),
    "evaluated alone": lambda layer: layer.eval(),
}


@given(cases(dropout=True), st.sampled_from(list(CHANGES)), st.data())
def test_changed_module_has_its_effect_or_raises(case, change, data):
    l = data.draw(st.integers(0, case.config.n_layers - 1))

    def run(lm: fbt.LanguageModel) -> dict[str, Tensor]:
        CHANGES[change](lm.body.train().layers[l])
        torch.manual_seed(5)
        x = case.x()
        y = lm.body(x, case.state(), backend=lm.backend)[0]
        return gradients([y], leaves(lm.body, x)) | {"y": y}

    harmless = change == "evaluated alone" and not case.config.dropout
    if case.backend in ("sequence", "native") and not harmless:
        with pytest.raises(
            ValueError, match=r"without calling them, but layers\.\d+\.[\w.]+ has "
        ):
            run(case.model())
    else:
        both(case, run)


COMPILERS = ("eager", "aot_eager", "inductor") if LONG else ("eager",)


# Warnings of torch about its own compiler.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings(
    "ignore:Guards may run slower on Python 3.13.0:RuntimeWarning"
)
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not:UserWarning"
)
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_compiled_model_computes_the_same(variant, compiler):
    """The loop is compiled; the faster backends run outside of the graph."""
    # Without LONG: "auto", and "sequence" where it is supported.
    for backend in ("auto", *ON_CPU[variant])[:: 1 if LONG else 3]:
        torch.compiler.reset()
        c = config(variant, n_layers=1, d_model=6, d_ff=5, span=2)
        case = Case(c, backend, "cpu", batch=2, length=3, carried=0)
        lm = case.model()
        logits = torch.compile(lm, backend=compiler)(case.tokens())
        expected = case.model("reference")
        assert_same(logits, expected(case.tokens()), backend, **FAST)
        assert_same(
            gradients([logits], leaves(lm)),
            gradients([expected(case.tokens())], leaves(expected)),
            backend,
            **FAST,
        )
    torch.compiler.reset()


@pytest.mark.filterwarnings(
    "ignore:Guards may run slower on Python 3.13.0:RuntimeWarning"
)
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not:UserWarning"
)
def test_compiled_model_with_hooks_raises():
    torch.compiler.reset()
    case = Case(config("shared-kv"), "sequence", "cpu", batch=2, length=3, carried=0)
    lm = case.model()
    lm.body.layers[0].attention.query.register_forward_hook(
        lambda part, given, out: 2 * out
    )
    with pytest.raises(
        ValueError, match=r"but layers\.0\.attention\.query has a forward hook"
    ):
        torch.compile(lm, backend="eager")(case.tokens())
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("memory", ["learned", "uniform", "top", "embedding"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_model_has_the_default_dtype(variant, memory, dtype):
    torch.set_default_dtype(dtype)
    try:
        lm = fbt.LanguageModel(config(variant, memory=memory))
        logits = lm(some_tokens(2, 3))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in [logits, *lm.state_dict().values()]} == {dtype}
    lm.double()
    assert_same(
        logits.double(),
        lm(some_tokens(2, 3)),
        rtol=0,
        atol=30 * torch.finfo(dtype).eps,
    )


@pytest.mark.parametrize("backend", ON_CPU["shared-kv"])
@pytest.mark.parametrize("part", ["input", "a weight"])
def test_mismatched_dtypes_raise(backend, part):
    lm = Case(config("shared-kv"), backend, "cpu", 2, 9, 0).model()
    x = normal(2, 9, 14)
    if part == "input":
        x = x.float()
    else:
        lm.body.memory.float()
    with pytest.raises(
        (TypeError, RuntimeError),
        match=r"dtype|scalar type|must be torch\.float64 like",
    ):
        lm.body(x, backend=backend)[0].sum().backward()


@given(cases(), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_casting_to_another_dtype_and_back(case, dtype):
    """A model that was in another dtype computes in float64, with rounded weights."""
    lm = case.model()
    lm.to(dtype)
    if not (case.backend == "native" and dtype != torch.float32):
        assert lm(case.tokens()).dtype == dtype
    lm.double()
    reference = case.model("reference").to(dtype).double()
    assert_same(lm(case.tokens()), reference(case.tokens()), **FAST)
