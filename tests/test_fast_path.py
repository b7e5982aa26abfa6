"""How "auto" chooses, and says so; compiled and exported models."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact import BATCH, assert_same, gradients, leaves, model, some_tokens
from small_runs import small_run
from torch import Tensor, nn
from torch.export import Dim

import fbt
from fbt import engines
from fbt import native as library


@pytest.fixture(autouse=True)
def _fresh_process(monkeypatch: pytest.MonkeyPatch, native: object) -> None:
    """A process that has not warned yet."""
    monkeypatch.setattr(engines, "_warned", set())


def hooked(lm: fbt.LanguageModel) -> None:
    lm.body.layers[1].attention.query.register_forward_hook(lambda *_: None)


class LowRank(nn.Module):
    """A projection with an adapter."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear, self.low_rank = linear, nn.Linear(14, 14).double()

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z) + self.low_rank(z)


def adapted(lm: fbt.LanguageModel) -> None:
    attention = lm.body.layers[0].attention
    attention.output = LowRank(attention.output)


CHANGES: dict[str, tuple[Callable[[fbt.LanguageModel], object], str, str]] = {
    "a hook": (hooked, "stack", r"layers\.1\.attention\.query has a forward hook"),
    "an adapter": (adapted, "stack", r"attention\.output has the class LowRank"),
    "half precision": (lambda lm: lm.bfloat16(), "sequence", r"model\.float\(\)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_leaving_the_fast_engines_warns_once(change: str) -> None:
    apply, name, reason = CHANGES[change]
    lm, tokens = model("shared-kv"), some_tokens(2, 9)
    apply(lm)
    with pytest.warns(
        RuntimeWarning, match=f"(?s)slower '{name}': .*{reason}"
    ) as all:
        lm(tokens)
        lm(tokens)
        lm.generate  # noqa: B018
    assert [warning.filename for warning in all] == [__file__]
    explained = lm.explain_backend(tokens)
    assert explained.startswith(f'"{name}": ') and ". To change that: " in explained
    lm.backend = "stack"
    assert lm.explain_backend(tokens) == '"stack": model.backend names it'


def test_under_autocast_an_input_in_half_precision_is_no_half_precision_model():
    """It is converted to the dtype of the weights before an engine gets it."""
    lm, tokens = model("shared-kv").float(), some_tokens(2, 9)
    x = torch.zeros(2, 9, 14)
    expected = engines.choose(lm.body, x)
    with torch.autocast("cpu", torch.float16):
        assert engines.choose(lm.body, x.half()) == expected
        explained = lm.explain_backend(tokens)
        assert explained.endswith(". It computes in torch.float32 under autocast too")
    assert engines.choose(lm.body, x.half()) != expected


def test_a_run_that_leaves_the_fast_engines_warns() -> None:
    lm = fbt.LanguageModel(fbt.Config(5, d_model=6, n_heads=2, n_layers=1))
    lm.body.layers[0].register_forward_hook(lambda *_: None)
    from fbt.training.backend import resolve_auto

    with pytest.warns(RuntimeWarning, match=r"layers\.0 has a forward hook"):
        assert resolve_auto(lm) == "stack"


def test_explained_backend_is_the_one_that_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used, run = [], engines.run_sequence
    monkeypatch.setattr(
        engines,
        "run_sequence",
        lambda *args: used.append(args[3]) or run(*args),
    )
    lm = model("shared-kv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for built in (True, False):
            if not built:
                monkeypatch.setattr(library, "why_not", lambda x: library.NotBuilt())
            for length in (1, 9):
                for recorded in (True, False):
                    tokens = some_tokens(2, length)
                    with torch.set_grad_enabled(recorded):
                        lm(tokens)
                        name = used.pop() if used else "stack"
                        assert lm.explain_backend(tokens).startswith(f'"{name}": ')
                    assert (name == "stack") == (recorded and length == 1)
    assert "fbt.build_native()" in lm.explain_backend(tokens)
    assert model("feedback").explain_backend(tokens).startswith('"stack": ')
    assert model("parallel").explain_backend(tokens).startswith('"reference": ')


def test_a_run_without_the_library_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_run(steps=1, progress=True)
    assert "build_native" not in capsys.readouterr().err
    monkeypatch.setattr(library, "why_not", lambda x: library.NotBuilt())
    small_run(steps=1, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert (
        len([line for line in lines if "call fbt.build_native() once" in line]) == 1
    )


# torch looks at the inputs of a graph after a break; without -W error it is silent.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("change", [None, hooked], ids=["plain", "with a hook"])
def test_a_compiled_model_does_not_unroll_its_loop(change: Any) -> None:
    """Sixteen steps used to take minutes to compile."""
    lm, tokens, nodes = model("shared-kv"), some_tokens(BATCH, 40), []
    if change is not None:
        change(lm)
        engines._warned.add("stack")
    expected = lm(tokens)
    grads = gradients([expected], leaves(lm))

    def counting(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        nodes.append(len(graph.graph.nodes))
        return graph.forward

    torch.compiler.reset()
    start = time.perf_counter()
    logits = torch.compile(lm, backend=counting)(tokens)
    assert time.perf_counter() - start < 60
    torch.compiler.reset()
    assert 0 < sum(nodes) < 60
    assert_same(logits, expected)
    assert_same(gradients([logits], leaves(lm)), grads)


def test_exported_models_take_any_batch_and_a_parallel_one_any_length() -> None:
    lm = model("parallel", n_layers=1, span=3).eval()
    sizes = {0: Dim("B"), 1: Dim("T", min=5, max=512)}
    exported = torch.export.export(
        lm, (some_tokens(3, 9),), dynamic_shapes={"tokens": sizes}
    ).module()
    for tokens in (some_tokens(5, 17), some_tokens(2, 5)):
        assert_same(exported(tokens), lm(tokens))


@pytest.mark.parametrize("variant", ["parallel", "shared-kv"])
def test_a_single_step_is_exported(variant: str) -> None:
    class Step(nn.Module):
        def __init__(self, lm: fbt.LanguageModel) -> None:
            super().__init__()
            self.lm = lm

        def forward(self, tokens: Tensor, keys: Any, values: Any) -> Any:
            logits, state = self.lm.step(tokens, fbt.State(keys, values))
            return logits, state.keys, state.values

    lm, tokens = model(variant, n_layers=2, span=3).eval(), some_tokens(3, 6)
    with torch.no_grad():
        _, state = lm(tokens, return_state=True)
        caches = tuple({0: Dim.AUTO} for _ in state.keys)
        shapes = {"tokens": {0: Dim.AUTO}, "keys": caches, "values": caches}
        exported = torch.export.export(
            Step(lm), (tokens[:, 0], state.keys, state.values), dynamic_shapes=shapes
        ).module()
        rows = torch.tensor([2, 0])
        state, token = state.select(rows), tokens[rows, 0]
        logits, after = lm.step(token, state)
        found = exported(token, state.keys, state.values)
    assert_same(found[0], logits)
    assert_same([*found[1], *found[2]], [*after.keys, *after.values])
