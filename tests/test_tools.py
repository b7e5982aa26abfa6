"""Standard tools of torch: vmap, export, compile and TensorBoard's graph, with the numbers of a plain call.

Also where token ids are checked: on every device, but not in a graph, nor where there
are no values.
"""

import pytest
import torch
from exact import FEEDBACK, VARIANTS, assert_same, model, some_tokens
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import fbt
from fbt import _checks

TOKENS = some_tokens(3, 4)
# what takes long grows with steps and layers
SMALL = {"n_layers": 1, "d_model": 6, "d_ff": 5}


def reader(variant: str, backend: str = "reference", **changes) -> fbt.LanguageModel:
    lm = model(variant, **changes).eval()
    lm.backend = backend
    return lm


each_variant = pytest.mark.parametrize("variant", VARIANTS)


@each_variant
def test_vmap_over_tokens(variant):
    lm = reader(variant)
    assert_same(torch.vmap(lambda row: lm(row[None])[0])(TOKENS), lm(TOKENS))


@each_variant
def test_vmap_over_weights(variant):
    lm, other = reader(variant), reader(variant)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= 1.1
    both = torch.func.stack_module_state([lm, other])
    found = torch.vmap(
        lambda *given: torch.func.functional_call(lm, given, (TOKENS,))
    )(*both)
    assert_same(found, torch.stack([lm(TOKENS), other(TOKENS)]))


@each_variant
def test_gradients_of_each_sequence(variant):
    lm = reader(variant)
    weights = dict(lm.named_parameters())

    def loss(given, row):
        return torch.func.functional_call(lm, given, (row[None],)).square().sum()

    found = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, TOKENS)
    for i, row in enumerate(TOKENS):
        expected = torch.autograd.grad(loss(weights, row), list(weights.values()))
        assert_same([g[i] for g in found.values()], expected)


@each_variant
def test_make_fx(variant):
    lm = reader(variant, **SMALL)
    other = some_tokens(3, 4, seed=8)
    assert_same(make_fx(lm)(TOKENS)(other), lm(other))


@pytest.mark.parametrize("strict", [False, True])
@each_variant
def test_export(variant, strict):
    lm = reader(variant, **SMALL)
    exported = torch.export.export(lm, (TOKENS[:, :3],), strict=strict).module()
    other = some_tokens(3, 3, seed=8)
    assert_same(exported(other), lm(other))


@pytest.mark.parametrize(
    "variant, backend", [("parallel", "auto"), ("shared-kv", "reference")]
)
def test_compile_without_a_graph_break(variant, backend):
    """By the tracers alone: what inductor makes of their graph is its own affair, and takes minutes."""
    lm = reader(variant, backend, **SMALL)
    torch._dynamo.reset()
    compiled = torch.compile(lm, fullgraph=True, backend="aot_eager")
    tokens = TOKENS[:, :3]
    assert_same(compiled(tokens), lm(tokens))
    assert_same(
        torch.autograd.grad(
            compiled(tokens).square().sum(), lm.token_embedding.weight
        ),
        torch.autograd.grad(lm(tokens).square().sum(), lm.token_embedding.weight),
    )


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning"
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@each_variant
def test_the_graph_of_tensorboard(variant, backend):
    """What add_graph calls; a feedback model is traced as its plain loop.

    torch.jit computes 1 / sqrt(D) in float32, being of a size.
    """
    graph = pytest.importorskip("torch.utils.tensorboard._pytorch_graph")
    lm = reader(variant, backend, **SMALL)
    nodes = graph.graph(lm, (TOKENS,))[0].node
    assert any("key_value" in node.name for node in nodes)
    traced = torch.jit.trace(lm, (TOKENS,), check_trace=False)
    other = some_tokens(3, 4, seed=8)
    assert_same(traced(other), lm(other), rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning"
)
@pytest.mark.parametrize("variant", FEEDBACK)
def test_the_stack_cannot_be_traced_by_jit(variant):
    lm = reader(variant, "stack", **SMALL)
    with pytest.raises(
        ValueError, match=r"backend under torch\.jit\.trace must be one of 'auto'"
    ):
        torch.jit.trace(lm, (TOKENS,))


def test_tokens_without_values_are_checked_for_shape_and_type():
    for where in ("meta", "fake"):
        with FakeTensorMode() if where == "fake" else torch.device("meta"):
            lm = fbt.LanguageModel(
                fbt.Config(19, variant="parallel", d_model=6, n_heads=2, n_layers=1)
            )
            assert lm(torch.zeros(2, 3, dtype=torch.long)).shape == (2, 3, 19)
            with pytest.raises(ValueError, match=r"tokens must have shape \[B, T\]"):
                lm(torch.zeros(3, dtype=torch.long))


class OnGPU(torch.Tensor):
    """Ids that say they are on a GPU, as far as a check can tell."""

    is_cuda = property(lambda _: True)


@pytest.mark.parametrize("capturing", [False, True])
def test_ids_on_a_gpu_are_checked_except_while_a_graph_is_captured(
    capturing, monkeypatch
):
    """Reading values would end the capture; an id out of range would end the process."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    ids = torch.tensor([[3, 19]]).as_subclass(OnGPU)
    if capturing:
        _checks.check_tokens("tokens", ids, "[B, T]", 19)
        return
    with pytest.raises(ValueError, match=r"tokens must be in \[0, 18\], got 19"):
        _checks.check_tokens("tokens", ids, "[B, T]", 19)


def test_a_size_that_is_a_symbol_passes_for_an_int():
    """As the capacity of a stack does, where a graph is made for texts of several lengths."""
    found = []

    class Sized(torch.nn.Module):
        def forward(self, x):
            _checks.check_int("length", x.shape[0], low=1)
            found.append(type(x.shape[0]))
            return x + 1

    dynamic = {"x": {0: torch.export.Dim("length", min=2, max=64)}}
    exported = torch.export.export(
        Sized(), (torch.ones(5),), dynamic_shapes=dynamic, strict=False
    )
    assert found == [torch.SymInt]
    assert torch.equal(exported.module()(torch.ones(9)), torch.full((9,), 2.0))
