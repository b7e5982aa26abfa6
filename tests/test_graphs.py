"""Recordings of "sequence", replayed on the CPU: what a CUDA graph must get right.

The recordings here compute again into the memory of the first time, which is what the
replay of a graph does. Graphs themselves are tested in `test_cuda.py`.
"""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from exact import (
    BATCH,
    assert_same,
    body,
    config,
    everything,
    gradients,
    leaves,
    normal,
    some_state,
)
from small_runs import assert_same_run, small_run
from torch import Tensor

from fbt import engines
from fbt.sequence import graphs, proof
from fbt.sequence.layout import Sizes

CPU = torch.device("cpu")


def record_again(compute: graphs.Compute):
    """Record as a graph does: with the inputs and results of this time."""
    results = compute()

    def replay() -> None:
        for fixed, new in zip(results, compute(), strict=True):
            fixed.copy_(new)

    return results, replay


def record_once(compute: graphs.Compute):
    """A wrong recording, whose replay computes nothing."""
    return compute(), lambda: None


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch):
    """Record calls on the CPU."""
    monkeypatch.setattr(graphs, "_works", {})
    monkeypatch.setattr(graphs, "record_on_cuda", record_again)
    monkeypatch.setattr(graphs, "may_record", lambda x, sizes: not sizes.dropout)


def recordings(module: torch.nn.Module) -> list[graphs.Recording | None]:
    return list(engines._recordings[module].by_call.values())


def check(module, length: int, past: int = 0, seed: int = 2) -> None:
    """Compare outputs and every wanted gradient with the plain loop."""
    shape = config("shared-kv", span=5, n_heads=module.n_heads)
    x = normal(BATCH, length, 14, seed=seed)
    state = some_state(shape, past) if past else None
    named = {k: v for k, v in leaves(module, x, state).items() if v.requires_grad}
    found = []
    for backend in ("sequence", "reference"):
        outputs = everything(*module(x, state, backend=backend)[:2])
        only_top = gradients(outputs[:1], named, retain=True)
        found.append([outputs, only_top, gradients(outputs, named)])
    for ours, plain in zip(*found, strict=True):
        assert_same(ours, plain)


@pytest.mark.parametrize(
    "length, past, changes",
    [
        (1, 0, {}),
        (1, 3, {}),
        (9, 0, {"activation": "gelu"}),
        (9, 5, {"memory_norm": False}),
        (17, 2, {"relative": "shared", "n_heads": 7}),
    ],
)
def test_every_gradient_when_weights_and_inputs_change(record, length, past, changes):
    torch.use_deterministic_algorithms(True)  # also fills new tensors with NaN
    try:
        module = body("shared-kv", **{"span": 5} | changes)
        for seed in (2, 3, 4):
            check(module, length, past, seed)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter += 0.1 * torch.randn_like(parameter)
    finally:
        torch.use_deterministic_algorithms(False)
    (recording,) = recordings(module)
    assert recording is not None and recording.turn == 2  # the first call is not one


def test_frozen_parameters_and_recompute(record):
    module = body("shared-kv", span=5)
    module.recompute = True
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("relative" not in name)
    for seed in (2, 3, 4):
        check(module, 9, 2, seed)
    (recording,) = recordings(module)
    assert "table" not in recording.wanted and "w_q" in recording.wanted


def loss(y: Tensor) -> Tensor:
    return (y * normal(*y.shape, seed=9).detach()).sum()


def test_two_calls_before_backward(record):
    """Also out of order, and twice."""
    module, xs = (
        body("shared-kv", span=5),
        [normal(BATCH, 9, 14, seed=s) for s in (1, 2)],
    )
    everyone = [*xs, *module.parameters()]

    def found(backend: str) -> list[Tensor]:
        first, second = (module(x, backend=backend)[0] for x in xs)
        both = [loss(first).sin(), loss(second)]
        grads = [
            torch.autograd.grad(
                total, everyone, retain_graph=True, materialize_grads=True
            )
            for total in (both[0], both[1], both[0], sum(both))
        ]
        return [first, second, *(g for some in grads for g in some)]

    expected = found("reference")
    for _ in range(3):
        assert_same(found("sequence"), expected)


def test_gradients_and_outputs_are_not_overwritten(record):
    module, kept = body("shared-kv", span=5), []
    for seed in range(4):
        x = normal(BATCH, 9, 14, seed=seed)
        y, state, _ = module(x, backend="sequence")
        grads = torch.autograd.grad(loss(y), [x, *module.parameters()])
        tensors = [y.detach(), *state.keys, *state.values, *grads]
        kept.append((tensors, [t.clone() for t in tensors]))
    for tensors, copies in kept:
        assert_same(tensors, copies)


def test_inputs_may_be_overwritten_before_backward(record):
    module = body("shared-kv", span=5)
    for seed in (1, 2, 3):
        x = normal(BATCH, 9, 14, seed=seed)
        (expected,) = torch.autograd.grad(loss(module(x, backend="reference")[0]), x)
        scratch = x * 1.0
        y, _, _ = module(scratch, backend="sequence")
        module(normal(BATCH, 9, 14, seed=7), backend="sequence")  # takes the memory
        scratch.detach().zero_()
        assert_same(torch.autograd.grad(loss(y), x)[0], expected)


def test_second_derivative_is_refused(record):
    module, x = body("shared-kv", span=5), normal(BATCH, 9, 14)
    for _ in range(2):
        y = module(x, backend="sequence")[0]
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(loss(y), x, create_graph=True)


def test_recordings_are_few_and_freed_with_the_body(record, monkeypatch):
    monkeypatch.setattr(graphs, "LARGEST_COUNT", 2)
    module = body("shared-kv", span=5)
    for length in (3, 4, 3, 5, 3):  # the second evicts that of length 4
        module(normal(BATCH, length, 14), backend="sequence")
    assert [r and r.turn for r in recordings(module)] == [None, 2]
    module(normal(BATCH, 3, 14), backend="native")
    assert [r and r.turn for r in recordings(module)] == [None, 2]
    ref = weakref.ref(recordings(module)[1])
    del module
    gc.collect()
    assert ref() is None


def test_other_settings_are_other_calls(record, monkeypatch):
    monkeypatch.setattr(graphs, "LARGEST_COUNT", 9)
    module, x = body("shared-kv", span=5), normal(BATCH, 9, 14)
    for changed in (x, x.detach(), normal(2, 9, 14)):
        module(changed, backend="sequence")
    torch.use_deterministic_algorithms(True)
    try:
        module(x, backend="sequence")
    finally:
        torch.use_deterministic_algorithms(False)
    assert recordings(module) == [None] * 4
    with torch.no_grad():
        module(x, backend="sequence")
    assert len(recordings(module)) == 4
    with_dropout = body("shared-kv", span=5, dropout=0.2).train()
    with_dropout(x, backend="sequence")
    assert not recordings(with_dropout)


@pytest.mark.parametrize("changes", [{"carry": True}, {"curriculum": 3}])
def test_a_run_trains_as_without_recordings(monkeypatch, request, changes):
    options = {"backend": "sequence", "steps": 9} | changes
    plain = small_run(**options)
    request.getfixturevalue("record")
    made, recording = [], graphs.Recording
    monkeypatch.setattr(
        graphs, "Recording", lambda *given: made.append(1) or recording(*given)
    )
    assert_same_run(small_run(**options), plain)
    assert len(made) > 1  # one of them is the small one


# Proof


def test_a_recording_that_does_not_compute_again_is_refused(record, monkeypatch):
    assert graphs.difference(CPU, record_again) == ""
    assert "is off by" in graphs.difference(CPU, record_once)
    monkeypatch.setattr(graphs, "record_on_cuda", record_once)
    module = body("shared-kv", span=5)
    module(normal(BATCH, 9, 14), backend="sequence")
    with pytest.warns(RuntimeWarning, match="without CUDA graphs .* off by"):
        check(module, 9)
    check(module, 9)
    assert graphs._works == {CPU: False}


def test_without_memory_the_loop_runs_as_before(record, monkeypatch):
    module = body("shared-kv", span=5)
    check(module, 8)

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs, "Recording", out_of_memory)
    with pytest.warns(RuntimeWarning, match="without CUDA graphs .* out of memory"):
        check(module, 8)
    assert not recordings(module)


def test_triton_is_timed_against_a_recording(record, monkeypatch):
    monkeypatch.setattr(proof, "TIMED_STEPS", 5)
    seen, timed = [], proof.fastest
    monkeypatch.setattr(
        proof, "fastest", lambda run: seen.append(run()) or timed(run)
    )
    times = [graphs.best_time(32, CPU)]
    monkeypatch.setattr(graphs, "_works", {CPU: False})
    times.append(graphs.best_time(32, CPU))
    assert min(times) > 0
    assert len({d_x.shape for d_x in seen}) == 1


def test_compiled_models_record_nothing(record):
    module, x = body("shared-kv", span=5), normal(BATCH, 9, 14)
    compiled = torch.compile(module, backend="eager")
    for _ in range(3):
        compiled(x, backend="sequence")
    assert module not in engines._recordings


# Which calls

SIZES = Sizes(2, 5, 0, True, False, 0.0, None, False, True, kept=5, oldest=None)
STREAMS = {"current_stream": 1, "default_stream": 1}


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, True),
        ({"is_cuda": False}, False),
        ({"sizes": SIZES._replace(dropout=0.1)}, False),
        ({"sizes": SIZES._replace(oldest=torch.zeros(2))}, False),
        ({"current_stream": 2}, False),
        ({"traced": True}, False),
        ({"plain": False}, False),
        ({"current_device": 3}, False),
        ({"works": False}, False),
        ({"count": 0}, False),
    ],
)
def test_which_calls_are_recorded(monkeypatch, change, expected):
    case = {"is_cuda": True, "sizes": SIZES, "traced": False, "plain": True}
    case |= STREAMS | {"works": True, "count": 4, "current_device": 2} | change
    card = torch.device("cuda", 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: case["current_device"])
    for name in STREAMS:
        monkeypatch.setattr(torch.cuda, name, lambda _, n=case[name]: n)
    monkeypatch.setattr(graphs, "is_traced", lambda: case["traced"])
    monkeypatch.setattr(graphs, "is_plain", lambda x: case["plain"])
    monkeypatch.setattr(graphs, "LARGEST_COUNT", case["count"])
    monkeypatch.setattr(graphs, "_works", {card: case["works"]})
    x = SimpleNamespace(is_cuda=case["is_cuda"], device=card)
    assert graphs.may_record(x, case["sizes"]) is expected
