"""Single steps without gradients: states as values, and weights folded once."""

import copy
import pickle
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from exact import BATCH, VARIANTS, assert_same, everything, model, some_tokens
from torch import Tensor

import fbt
from fbt import engines, parallel

SPAN = 5
# Shared keys and values with each engine, the loop, and the other variants.
CASES = [
    *((variant, "auto") for variant in VARIANTS),
    *(("shared-kv", backend) for backend in ("reference", "sequence", "native")),
]


@pytest.fixture(params=CASES, ids=" ".join)
def lm(request: pytest.FixtureRequest, native: object) -> fbt.LanguageModel:
    variant, backend = request.param
    made = model(variant, span=SPAN, dropout=0.3).eval()
    made.backend = backend
    return made


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def read(
    lm: fbt.LanguageModel, tokens: Tensor, state: fbt.State | None = None
) -> tuple[Tensor, fbt.State | None]:
    """Return the logits [B, T, V] of single steps, and the last state."""
    logits = []
    for token in tokens.T:
        one, state = lm.step(token, state)
        logits.append(one)
    return torch.stack(logits, dim=1), state


@pytest.mark.parametrize("prompt", [0, 1, SPAN, 2 * SPAN + 1])
def test_steps_equal_one_pass(lm: fbt.LanguageModel, prompt: int) -> None:
    """Beyond the span, and beyond the rows of the first cache."""
    tokens = some_tokens(BATCH, 4 * SPAN + 1)
    expected, after = lm(tokens, return_state=True)
    state = lm(tokens[:, :prompt], return_state=True)[1] if prompt else None
    logits, state = read(lm, tokens[:, prompt:], state)
    assert_same(logits, expected[:, prompt:])
    assert_same(everything(logits, state)[1:], everything(logits, after)[1:])


def test_a_state_stays_as_it_is(lm: fbt.LanguageModel) -> None:
    """Several continuations of one state, in any order, and of their states."""
    tokens = some_tokens(BATCH, 3 * SPAN)
    _, state = read(lm, tokens[:, : SPAN - 1])
    before = [tensor.clone() for tensor in state.keys + state.values]
    other = (tokens + 1) % 19
    first, _ = read(lm, tokens, state)
    second, _ = read(lm, other, state)
    again, _ = read(lm, tokens, state)
    assert_same(again, first, rtol=0, atol=0)
    assert not torch.equal(first, second)
    assert_same([*state.keys, *state.values], before, rtol=0, atol=0)
    assert_same(second, lm(other, state), "forward")


def test_beams_reorder_by_select(lm: fbt.LanguageModel) -> None:
    tokens, rows = some_tokens(BATCH, 2 * SPAN), torch.tensor([3, 0, 3])
    _, state = read(lm, tokens)
    more = some_tokens(len(rows), 4, seed=9)
    found, _ = read(lm, more, state.select(rows))
    history = torch.cat([tokens[rows], more], dim=1)
    assert_same(found, lm(history)[:, 2 * SPAN :])
    assert_same(read(lm, more, state.select([3, 0, 3]))[0], found, rtol=0, atol=0)
    for wrong in ([BATCH], [-1], []):
        with pytest.raises(ValueError, match=r"rows must be .* in \[0, 4\], got "):
            state.select(wrong)


def test_threads_may_step_the_same_state(lm: fbt.LanguageModel) -> None:
    tokens = some_tokens(BATCH, 3 * SPAN)
    _, state = read(lm, tokens[:, :2])
    expected, results = read(lm, tokens, state)[0], []

    def work() -> None:
        with torch.no_grad():
            results.append(read(lm, tokens, state)[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        assert_same(result, expected)


def test_a_state_is_copied_without_its_cache(lm: fbt.LanguageModel) -> None:
    tokens = some_tokens(BATCH, 2 * SPAN)
    _, state = read(lm, tokens)
    expected, _ = read(lm, tokens, state)
    for copied in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert_same(read(lm, tokens, copied)[0], expected)
        for kv in copied.keys + copied.values:
            assert kv.untyped_storage().nbytes() == kv.nbytes
    assert "[5, 2, 5, 7]" in repr(state) and len(repr(state)) < 100


def test_states_of_inference_mode_continue_outside(lm: fbt.LanguageModel) -> None:
    tokens = some_tokens(BATCH, 8)
    with torch.inference_mode():
        _, state = read(lm, tokens[:, :4])
    assert_same(read(lm, tokens[:, 4:], state)[0], lm(tokens)[:, 4:])


def test_a_recorded_step_continues_a_state_without_gradients(
    lm: fbt.LanguageModel,
) -> None:
    tokens = some_tokens(BATCH, 8)
    _, state = read(lm, tokens[:, :4])
    with torch.enable_grad():
        logits, after = lm.step(tokens[:, 4], state)
        lm.step(tokens[:, 5], after)[0].sum().backward()
    assert_same(logits.detach(), lm(tokens[:, :5])[:, -1])
    assert lm.head.weight.grad is not None


# Ways to change the weights of a model.
def _optimiser(lm: fbt.LanguageModel) -> None:
    with torch.enable_grad():
        lm(some_tokens(2, 3)).sum().backward()
    torch.optim.AdamW(lm.parameters(), lr=0.1).step()


def _replaced(lm: fbt.LanguageModel) -> None:
    inner = lm.body.layers[0].feed_forward.inner
    inner.weight = torch.nn.Parameter(2 * inner.weight)


CHANGES: dict[str, Callable[[fbt.LanguageModel], object]] = {
    "optimiser": _optimiser,
    "load_state_dict": lambda lm: lm.load_state_dict(
        {name: 2 * value for name, value in lm.state_dict().items()}
    ),
    "in place": lambda lm: lm.body.layers[1].attention.query.weight[0].mul_(-3),
    "through data": lambda lm: lm.body.layers[1].attention.query.weight.data.mul_(3),
    "other data": lambda lm: setattr(
        lm.body.layers[0].norm1.weight, "data", torch.randn(14).double()
    ),
    "another parameter": _replaced,
    "another dtype": lambda lm: lm.float(),
    "an activation": lambda lm: setattr(
        lm.body.layers[0].feed_forward, "activation", torch.tanh
    ),
    "a hook": lambda lm: lm.body.layers[1].norm2.register_forward_hook(
        lambda _, __, z: 2 * z
    ),
    "a forward": lambda lm: setattr(
        lm.body.layers[0].norm1, "forward", lambda z: 2 * z
    ),
    "another module": lambda lm: setattr(
        lm.body.layers[0], "norm2", torch.nn.Identity()
    ),
    "training": lambda lm: lm.body.layers[0].attention.dropout.train(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("variant", ["shared-kv", "parallel"])
def test_every_change_of_the_weights_is_seen(
    variant: str, change: str, native: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, tokens = model(variant, span=SPAN, dropout=0.1).eval(), some_tokens(2, 9)
    before, (_, state) = lm(tokens), read(lm, tokens[:, :4])
    CHANGES[change](lm)
    if change == "another dtype":
        state = state.map(Tensor.float)
    torch.manual_seed(0)
    fast = [lm(tokens), lm.step(tokens[:, 4], state)[0]]
    if variant == "parallel":
        monkeypatch.setattr(fbt.ParallelBody, "_folds", lambda self, x: False)
    else:
        lm.backend = "stack"
    torch.manual_seed(0)
    plain = [lm(tokens), lm.step(tokens[:, 4], state)[0]]
    tolerance = 1e-4 if change == "another dtype" else 1e-10
    assert_same(fast, plain, rtol=tolerance, atol=tolerance)
    assert not torch.equal(before, plain[0])


def test_weights_of_a_parallel_body_are_folded_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm, folds = model("parallel", span=SPAN), []
    fold = parallel.fold
    monkeypatch.setattr(
        parallel, "fold", lambda *args: folds.append(1) or fold(*args)
    )
    read(lm, some_tokens(2, 9))
    assert len(folds) == len(lm.body.layers)


def test_weights_are_folded_once(
    native: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, tokens, folds = model("shared-kv", span=SPAN), some_tokens(2, 9), []
    fold = engines.fold
    monkeypatch.setattr(engines, "fold", lambda *args: folds.append(1) or fold(*args))
    for lm.backend in ("native", "auto", "sequence"):
        lm(tokens)
        read(lm, tokens)
    assert len(folds) == 2  # once per engine
    twin = copy.deepcopy(lm)
    twin.body.layers[0].norm1.weight += 1
    assert not torch.equal(twin(tokens), lm(tokens))
    assert len(folds) == 3
