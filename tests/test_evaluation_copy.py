"""A copy in evaluation mode: the same results, without effects on the model."""

import functools
import threading
from collections.abc import Callable

import pytest
import torch
from exact import BATCH, VARIANTS, assert_same, model, some_tokens
from torch import nn
from torch.nn.utils import parametrizations, prune

import fbt
from fbt._modes import without_gradients
from fbt.evaluation_copy import evaluation_copy
from fbt.inspection import why_not_folded
from fbt.training import evaluate
from fbt.views.trace import trace

TOKENIZER = fbt.CharTokenizer("\n abcdefghijklmnopq")
TOKENS = some_tokens(BATCH, 9)


@pytest.fixture(params=VARIANTS)
def lm(request: pytest.FixtureRequest) -> fbt.LanguageModel:
    """In training mode, with dropout."""
    return model(request.param, TOKENIZER, dropout=0.5).train()


def evaluated(lm: fbt.LanguageModel) -> torch.Tensor:
    """Return the logits of the model in evaluation mode."""
    return lm.eval()(TOKENS)


def test_only_tensors_are_shared(lm: fbt.LanguageModel) -> None:
    lm.register_buffer("kept", torch.ones(2))
    copied = evaluation_copy(lm)
    assert type(copied) is type(lm)
    for mine, theirs in zip(copied.modules(), lm.modules(), strict=True):
        assert mine is not theirs
        assert (mine.training, theirs.training) == (False, True)
    names = dict(lm.named_parameters()) | dict(lm.named_buffers())
    for name, tensor in [*copied.named_parameters(), *copied.named_buffers()]:
        assert tensor is names[name]
    copied.extra = copied.head
    copied.register_buffer("more", torch.ones(2))
    copied.body.layers.append(nn.Linear(2, 3))
    assert (
        not hasattr(lm, "extra")
        and not hasattr(lm, "more")
        and len(lm.body.layers) == 3
    )


def test_the_copy_equals_the_model_in_evaluation_mode(
    lm: fbt.LanguageModel,
) -> None:
    actual = evaluation_copy(lm)(TOKENS)
    assert not torch.equal(actual, lm(TOKENS))
    assert torch.equal(actual, evaluated(lm))


def test_a_shared_module_stays_shared(lm: fbt.LanguageModel) -> None:
    lm.body.layers[1] = lm.body.layers[0]
    copied = evaluation_copy(lm)
    assert copied.body.layers[1] is copied.body.layers[0]


def test_the_copy_sees_in_place_updates(lm: fbt.LanguageModel) -> None:
    copied = evaluation_copy(lm)
    with torch.no_grad():
        lm.head.weight.mul_(2)
    assert torch.equal(copied(TOKENS), evaluated(lm))


def test_hooks_fire_and_hooks_of_the_copy_do_not_affect_the_model(
    lm: fbt.LanguageModel,
) -> None:
    fired = []
    lm.head.register_forward_hook(lambda *_: fired.append("hook"))
    lm.head.register_forward_pre_hook(lambda *_: fired.append("pre"))
    lm.body.register_forward_hook(
        lambda *_, **__: fired.append("body"), with_kwargs=True
    )
    copied = evaluation_copy(lm)
    copied(TOKENS)
    assert fired == ["body", "pre", "hook"]
    copied.head.register_forward_hook(
        lambda *_: fired.append("copy"), always_call=True
    )
    lm(TOKENS)
    assert fired == ["body", "pre", "hook"] * 2


@pytest.mark.parametrize("read", ["generate", "attention", "evaluate", "trace"])
def test_all_readers_of_a_model_call_its_hooks_and_keep_its_mode(read: str) -> None:
    """Dropout of the model itself stays on, for a thread that trains it."""
    lm, modes = model("shared-kv", TOKENIZER, dropout=0.5).train(), []

    def look(part: nn.Module, *_: object) -> None:
        modes.append((part.training, {part.training for part in lm.modules()}))

    lm.body.register_forward_hook(look)
    lm.token_embedding.register_forward_hook(look)
    results = []
    for _ in range(2):
        if read == "generate":
            results.append(lm.generate("abc", 5, seed=1))
        elif read == "attention":
            results.append(lm.attention(TOKENS).tolist())
        elif read == "evaluate":
            results.append(evaluate(lm, TOKENS))
        else:
            results.append(trace(lm, TOKENS[0]).memory.tolist())
    assert results[0] == results[1]
    assert set(map(str, modes)) == {str((False, {True}))}


CHANGES: dict[str, Callable[[fbt.LanguageModel], object]] = {
    "nothing": lambda lm: None,
    "a hook of the model": lambda lm: lm.register_forward_hook(lambda *_: None),
    "a hook of a layer": lambda lm: lm.body.layers[1].register_forward_pre_hook(
        lambda *_: None
    ),
    "a hook of a part": lambda lm: lm.body.layers[
        1
    ].attention.dropout.register_forward_hook(lambda *_: None),
    "an activation": lambda lm: setattr(
        lm.body.layers[0].feed_forward, "activation", torch.tanh
    ),
    "a forward": lambda lm: setattr(
        lm.body.layers[0].norm1, "forward", lambda z: 2 * z
    ),
    "a forward of the model": lambda lm: setattr(
        lm, "forward", lambda *_, **__: TOKENS
    ),
    "a bound forward": lambda lm: setattr(lm, "forward", lm.forward),
    "weight norm": lambda lm: parametrizations.weight_norm(
        lm.body.layers[0].attention.output
    ),
    "pruned": lambda lm: prune.l1_unstructured(
        lm.body.layers[0].feed_forward.inner, "weight", amount=0.5
    ),
    "another module": lambda lm: setattr(lm.body.layers[0], "norm2", nn.Identity()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_a_model_are_noticed_in_its_copy(change: str) -> None:
    lm = model("shared-kv", TOKENIZER)
    CHANGES[change](lm)
    copied = evaluation_copy(lm)
    assert why_not_folded(copied.body) == why_not_folded(lm.body)
    lm.eval()
    assert torch.equal(copied(TOKENS), evaluated(lm))


@pytest.mark.parametrize("kind", ["bound", "partial", "compiled"])
def test_a_method_that_replaces_forward_is_bound_to_the_copy(
    lm: fbt.LanguageModel, kind: str
) -> None:
    wrappers = {
        "bound": lambda f: f,
        "partial": functools.partial,
        "compiled": torch.compile(backend="eager"),
    }
    for part in (lm, lm.body.layers[0]):
        part.forward = wrappers[kind](part.forward)
    expected = evaluation_copy(model(lm.config.variant, TOKENIZER, dropout=0.5))(
        TOKENS
    )
    # with another backend
    torch.testing.assert_close(evaluation_copy(lm)(TOKENS), expected)


def test_a_function_that_refers_to_the_model_is_refused_with_dropout(
    lm: fbt.LanguageModel,
) -> None:
    lm.forward = lambda *args, **kwargs: (
        -fbt.LanguageModel.forward(lm, *args, **kwargs)
    )
    with pytest.raises(
        ValueError,
        match=r"the forward of a LanguageModel was "
        r"replaced .* call eval",
    ):
        evaluation_copy(lm)
    lm.eval()
    assert torch.equal(evaluation_copy(lm)(TOKENS), lm(TOKENS))


def test_compiled_models_are_copied_in_evaluation_mode(lm: fbt.LanguageModel) -> None:
    windows = some_tokens(BATCH, 8)
    expected = evaluate(lm, windows)
    assert evaluate(torch.compile(lm, backend="eager"), windows) == expected
    lm.compile(backend="eager")
    assert evaluate(lm, windows) == expected
    lm.body = torch.compile(lm.body, backend="eager")
    assert evaluate(lm, windows) == expected


def test_threads_sample_while_another_trains() -> None:
    """Texts without dropout, and training steps with dropout, at the same time."""
    lm, threads = model("shared-kv", TOKENIZER, dropout=0.5).train(), 4
    expected = [lm.generate("ab", 12, seed=seed) for seed in range(threads)]
    quiet = evaluated(lm)
    lm.train()
    start, texts, undropped, stop = (
        threading.Barrier(threads + 1),
        [],
        [],
        threading.Event(),
    )

    def sample(seed: int) -> None:
        start.wait()
        texts.extend((seed, lm.generate("ab", 12, seed=seed)) for _ in range(6))

    def train() -> None:
        start.wait()
        while not stop.is_set():
            undropped.append(torch.equal(lm(TOKENS), quiet))

    samplers = [
        threading.Thread(target=sample, args=(seed,)) for seed in range(threads)
    ]
    trainer = threading.Thread(target=train)
    for thread in (*samplers, trainer):
        thread.start()
    for thread in samplers:
        thread.join()
    stop.set()
    trainer.join()
    assert len(texts) == 6 * threads and all(
        text == expected[seed] for seed, text in texts
    )
    assert undropped and not any(undropped)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_autocast_cache_is_off_while_reading_and_then_restored(
    enabled: bool,
) -> None:
    with (
        torch.autocast("cpu", torch.bfloat16, cache_enabled=enabled),
        pytest.raises(RuntimeError),
    ):
        with without_gradients():
            assert (
                not torch.is_autocast_cache_enabled() and not torch.is_grad_enabled()
            )
            raise RuntimeError
        assert (
            torch.is_autocast_cache_enabled() == enabled and torch.is_grad_enabled()
        )


def test_reading_under_autocast_uses_current_weights() -> None:
    lm, windows = model("parallel", TOKENIZER).float(), some_tokens(BATCH, 8)
    with torch.autocast("cpu", torch.bfloat16):
        lm(windows)  # caches its casts until the context ends
        with torch.no_grad():
            for parameter in lm.parameters():
                parameter.mul_(1.5)
        inside = evaluate(lm, windows)
    with torch.autocast("cpu", torch.bfloat16):
        assert inside == evaluate(lm, windows)
        lm(windows).sum().backward()
    gradients = {name: parameter.grad for name, parameter in lm.named_parameters()}
    lm.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        lm(windows).sum().backward()
    assert_same(
        {n: p.grad for n, p in lm.named_parameters()}, gradients, rtol=0, atol=0
    )
