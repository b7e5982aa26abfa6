"""vmap, export, compile and TensorBoard's graph give the numbers of a plain call.

Token ids are checked on every device, but not in a graph or without values.
"""

import pytest
import torch
from exact import FEEDBACK, VARIANTS, assert_same, model, some_tokens
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import fbt
from fbt import _checks

TOKENS = some_tokens(3, 4)
# Tracing takes long with many steps and layers.
SMALL = {"n_layers": 1, "d_model": 6, "d_ff": 5}


def evaluation_model(
    variant: str, backend: str = "reference", **changes
) -> fbt.LanguageModel:
    lm = model(variant, **changes).eval()
    lm.backend = backend
    return lm


each_variant = pytest.mark.parametrize("variant", VARIANTS)


@each_variant
def test_vmap_over_tokens(variant):
    lm = evaluation_model(variant)
    assert_same(torch.vmap(lambda row: lm(row[None])[0])(TOKENS), lm(TOKENS))


@each_variant
def test_vmap_over_weights(variant):
    lm, other = evaluation_model(variant), evaluation_model(variant)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= 1.1
    both = torch.func.stack_module_state([lm, other])

    def logits(*weights):
        return torch.func.functional_call(lm, weights, (TOKENS,))

    expected = torch.stack([lm(TOKENS), other(TOKENS)])
    assert_same(torch.vmap(logits)(*both), expected)


@each_variant
def test_gradients_of_each_sequence(variant):
    lm = evaluation_model(variant)
    weights = dict(lm.named_parameters())

    def loss(weights, row):
        return torch.func.functional_call(lm, weights, (row[None],)).square().sum()

    gradients = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, TOKENS)
    for i, row in enumerate(TOKENS):
        expected = torch.autograd.grad(loss(weights, row), list(weights.values()))
        assert_same([g[i] for g in gradients.values()], expected)


@each_variant
def test_make_fx(variant):
    lm = evaluation_model(variant, **SMALL)
    other = some_tokens(3, 4, seed=8)
    assert_same(make_fx(lm)(TOKENS)(other), lm(other))


@pytest.mark.parametrize(
    "variant, strict", [*((name, False) for name in VARIANTS), ("shared-kv", True)]
)
def test_export(variant, strict):
    lm = evaluation_model(variant, **SMALL)
    exported = torch.export.export(lm, (TOKENS[:, :3],), strict=strict).module()
    other = some_tokens(3, 3, seed=8)
    assert_same(exported(other), lm(other))


@pytest.mark.parametrize(
    "variant, backend", [("parallel", "auto"), ("shared-kv", "reference")]
)
def test_compile_without_a_graph_break(variant, backend):
    """Compile without inductor, which would take minutes."""
    lm = evaluation_model(variant, backend, **SMALL)
    torch._dynamo.reset()
    compiled = torch.compile(lm, fullgraph=True, backend="aot_eager")
    tokens = TOKENS[:, :3]
    assert_same(compiled(tokens), lm(tokens))
    gradients = [
        torch.autograd.grad(call(tokens).square().sum(), lm.token_embedding.weight)
        for call in (compiled, lm)
    ]
    assert_same(*gradients)


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning"
)
@each_variant
def test_tensorboard_graph(variant):
    """Trace as add_graph does; a feedback model is traced as its plain loop.

    torch.jit computes 1 / sqrt(D) in float32, because D is a size.
    """
    graph = pytest.importorskip("torch.utils.tensorboard._pytorch_graph")
    lm = evaluation_model(variant, "auto", **SMALL)
    nodes = graph.graph(lm, (TOKENS,))[0].node
    assert any("key_value" in node.name for node in nodes)
    traced = torch.jit.trace(lm, (TOKENS,), check_trace=False)
    other = some_tokens(3, 4, seed=8)
    assert_same(traced(other), lm(other), rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning"
)
@pytest.mark.parametrize("variant", FEEDBACK)
def test_stack_cannot_be_traced_by_jit(variant):
    lm = evaluation_model(variant, "stack", **SMALL)
    with pytest.raises(
        ValueError, match=r"backend under torch\.jit\.trace must be one of 'auto'"
    ):
        torch.jit.trace(lm, (TOKENS,))


def test_tokens_without_values_are_checked_for_shape_and_type():
    for mode in (FakeTensorMode(), torch.device("meta")):
        with mode:
            lm = fbt.LanguageModel(
                fbt.Config(19, variant="parallel", d_model=6, n_heads=2, n_layers=1)
            )
            assert lm(torch.zeros(2, 3, dtype=torch.long)).shape == (2, 3, 19)
            with pytest.raises(ValueError, match=r"tokens must have shape \[B, T\]"):
                lm(torch.zeros(3, dtype=torch.long))


class OnGPU(torch.Tensor):
    """Token ids that seem to be on a GPU."""

    is_cuda = property(lambda _: True)


@pytest.mark.parametrize("capturing", [False, True])
def test_ids_on_a_gpu_are_checked_except_while_a_graph_is_captured(
    capturing, monkeypatch
):
    """Reading values would fail the capture; a bad id would crash the process."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    ids = torch.tensor([[3, 19]]).as_subclass(OnGPU)
    if capturing:
        _checks.check_tokens("tokens", ids, "[B, T]", 19)
        return
    with pytest.raises(ValueError, match=r"tokens must be in \[0, 18\], got 19"):
        _checks.check_tokens("tokens", ids, "[B, T]", 19)


def test_symbolic_sizes_count_as_ints():
    """A stack's capacity is symbolic in a graph for texts of several lengths."""
    types = []

    class Sized(torch.nn.Module):
        def forward(self, x):
            _checks.check_int("length", x.shape[0], low=1)
            types.append(type(x.shape[0]))
            return x + 1

    dynamic = {"x": {0: torch.export.Dim("length", min=2, max=64)}}
    exported = torch.export.export(
        Sized(), (torch.ones(5),), dynamic_shapes=dynamic, strict=False
    )
    assert types == [torch.SymInt]
    assert torch.equal(exported.module()(torch.ones(9)), torch.full((9,), 2.0))
