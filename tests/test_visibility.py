"""Lengths, packed documents and resets, against each row and document run alone."""

import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from exact import (
    CASES,
    ON_CPU,
    OPTIONS,
    VARIANTS,
    assert_same,
    body,
    config,
    everything,
    gradients,
    leaves,
    model,
    normal,
    some_state,
    some_tokens,
)
from torch import Tensor

import fbt
from fbt.attention import LONG

pytestmark = pytest.mark.usefixtures("native")
SPAN, STEPS, BATCH = 5, 19, 4
# A document in each row; documents of one step, also at both ends; one that begins
# with the block; and none.
STARTS = ((7,), (1, 2, 3, 18), (0, 9), ())
LENGTHS = (8, 19, 1, 13)
every_case = pytest.mark.parametrize("variant, backend", CASES)
# Carried steps, whether there are lengths, and whether there are documents.
BLOCKS = [(0, 0, 1), (SPAN, 0, 1), (0, 1, 0), (3, 1, 0), (3, 1, 1)]


def some_starts() -> Tensor:
    starts = torch.zeros(BATCH, STEPS, dtype=torch.bool)
    for row, steps in zip(starts, STARTS, strict=True):
        row[list(steps)] = True
    return starts


def rows_of(state: fbt.State, b: int) -> fbt.State | None:
    """Return what row b may see of a state, as a state of its own."""
    seen = state.length if state.filled is None else int(state.filled[b])
    return state.map(lambda kv: kv[b : b + 1, :, -seen:]) if seen else None


def alone(
    module: torch.nn.Module,
    x: Tensor,
    state: fbt.State | None,
    lengths: Tensor | None,
    starts: Tensor | None,
) -> list[Tensor]:
    """Return outputs, zero in the padding, and states of documents run alone."""
    batch, steps, _ = x.shape
    count = min(module.span, steps + (state.length if state else 0))
    rows = []
    for b in range(batch):
        length = steps if lengths is None else int(lengths[b])
        plain = rows_of(state, b) if state else None
        borders = (
            [] if starts is None else starts[b, :length].nonzero()[:, 0].tolist()
        )
        outputs = []
        for low, high in itertools.pairwise([0, *borders, length]):
            if low in borders:
                plain = None
            if low < high:
                part = x[b : b + 1, low:high]
                y, plain, _ = module(part, plain, backend="reference")
                outputs.append(y)
        hidden = count - plain.length
        kept = [F.pad(kv, (0, 0, hidden, 0)) for kv in plain.keys + plain.values]
        y = F.pad(torch.cat(outputs, dim=1), (0, 0, 0, steps - length))
        rows.append([y, *kept])
    return [torch.cat(parts) for parts in zip(*rows, strict=True)]


def valid(y: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return y
    padding = torch.arange(y.shape[1]) >= lengths[:, None]
    return y.masked_fill(padding[..., None], 0)


def check(variant: str, past: int, lengths: bool, starts: bool, **changes) -> None:
    """Compare outputs, states and every gradient of all backends."""
    changes = {"span": SPAN, **changes}
    shape, module = config(variant, **changes), body(variant, **changes)
    x = normal(BATCH, STEPS, shape.d_model)
    past = min(past, shape.span)
    state = some_state(shape, past, BATCH) if past else None
    named = leaves(module, x, state)
    rows = {
        "lengths": torch.tensor(LENGTHS) if lengths else None,
        "starts": some_starts() if starts else None,
    }
    expected = alone(module, x, state, **rows)
    expected_gradients = gradients(expected, named)
    for backend in ON_CPU[variant]:
        for module.recompute in {False, backend in ("sequence", "native")}:
            y, after, _ = module(x, state, **rows, backend=backend)
            found = everything(valid(y, rows["lengths"]), after)
            assert_same(found, expected, backend)
            assert_same(gradients(found, named), expected_gradients, backend)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("past, lengths, starts", BLOCKS)
def test_rows_and_documents_equal_those_run_alone(variant, past, lengths, starts):
    check(variant, past, lengths, starts)


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_every_option_keeps_to_the_borders(changes):
    check("shared-kv", 3, True, True, **changes)


def test_uninitialised_memory_is_never_read(monkeypatch):
    """Also by several threads, which share the work on a group of sequences."""
    new_empty, threads = torch.Tensor.new_empty, torch.get_num_threads()
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(torch.nan)
    )
    torch.set_num_threads(3)
    try:
        # With a span that hides nothing in the first chunk.
        check("shared-kv", 3, True, True, activation="gelu", span=13)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", ["stack", "sequence", "native"])
@pytest.mark.parametrize("recompute", [False, True])
def test_dropout_masks_equal_those_of_the_loop(backend, recompute):
    module, x = body("shared-kv", span=SPAN, dropout=0.3).train(), normal(4, 19, 14)
    module.recompute = recompute
    state, results = some_state(config("shared-kv"), 3, BATCH), []
    named = leaves(module, x, state)
    rows = {"lengths": torch.tensor(LENGTHS), "starts": some_starts()}
    for name in ("reference", backend):
        torch.manual_seed(4)
        y, after, _ = module(x, state, **rows, backend=name)
        results.append(everything(y, after))
    assert_same(results[1], results[0])
    assert_same(gradients(results[1], named), gradients(results[0], named))


@every_case
def test_no_number_and_no_gradient_crosses_a_border(variant, backend):
    """With feedback not even NaN does; and no padding enters a state."""
    module, x = body(variant, span=SPAN), normal(BATCH, STEPS, 14)
    starts, lengths = (
        torch.zeros(BATCH, STEPS, dtype=torch.bool),
        torch.tensor(LENGTHS),
    )
    starts[:, 7] = True
    y, _, _ = module(x, starts=starts, backend=backend)
    (gradient,) = torch.autograd.grad(y[:, 7:].sum(), x)
    assert not gradient[:, :7].any() and gradient[:, 7:].all()
    if variant == "parallel":  # its products multiply NaN by a weight of zero
        return
    with torch.no_grad():
        poisoned = torch.where(torch.arange(STEPS)[:, None] < 7, torch.nan, x)
        found, after, _ = module(poisoned, starts=starts, backend=backend)
        assert_same(found[:, 7:], y[:, 7:])
        assert all(kv.isfinite().all() for kv in after.keys + after.values)
        padding = torch.arange(STEPS) >= lengths[:, None]
        poisoned = x.masked_fill(padding[..., None], torch.nan)
        _, after, _ = module(poisoned, lengths=lengths, backend=backend)
        _, expected, _ = module(x, lengths=lengths, backend=backend)
        assert_same(after.keys + after.values, expected.keys + expected.values)


@every_case
@pytest.mark.parametrize("recorded", [False, True])
def test_steps_continue_rows_of_unequal_length(variant, backend, recorded):
    """Beyond the rows of a cache, with a row that is cleared on the way."""
    lm, tokens = model(variant, span=SPAN), some_tokens(BATCH, STEPS)
    lm.backend, lengths, cleared = backend, torch.tensor(LENGTHS), torch.tensor([2])
    more, rows = some_tokens(BATCH, 4 * SPAN, seed=9), [[] for _ in range(BATCH)]
    histories = [tokens[b, :n] for b, n in enumerate(LENGTHS)]
    with torch.set_grad_enabled(recorded):
        _, state = lm(tokens, return_state=True, lengths=lengths)
        for t, token in enumerate(more.T):
            if t == SPAN + 1:
                before, state = state, state.clear(cleared)
                assert before.filled.tolist() == [SPAN] * BATCH
                histories[2], rows[2] = more[2, t:t], []
            logits, state = lm.step(token, state)
            for b in range(BATCH):
                histories[b] = torch.cat([histories[b], token[b : b + 1]])
                rows[b].append(logits[b])
        lm.backend = "reference"
        for history, found in zip(histories, rows, strict=True):
            expected = lm(history[None])[0, -len(found) :]
            assert_same(torch.stack(found), expected)


@every_case
def test_a_state_stays_as_it_is(variant, backend):
    lm, tokens = model(variant, span=SPAN), some_tokens(BATCH, 3)
    lm.backend = backend
    with torch.no_grad():
        _, state = lm(tokens, return_state=True)
        _, state = lm.step(tokens[:, 0], state)
        kept = [kv.clone() for kv in state.keys + state.values]
        cleared = state.clear([0, 2]).clear([])
        assert cleared.filled.tolist() == [0, 4, 0, 4] and state.filled is None
        new = lm.step(tokens[:, 1], cleared)[0]
        for copied in (pickle.loads(pickle.dumps(cleared)), cleared.detach()):
            assert_same(lm.step(tokens[:, 1], copied)[0], new)
        starts = torch.tensor([[True], [False]] * 2)
        assert_same(lm(tokens[:, 1:2], state, starts=starts)[:, 0], new)
        chosen = cleared.select([3, 2])
        assert chosen.filled.tolist() == [4, 0]
        assert_same(lm.step(tokens[[3, 2], 1], chosen)[0], new[[3, 2]])
        assert_same(new[[0, 2]], lm.step(tokens[[0, 2], 1])[0])
        assert_same(new[[1, 3]], lm.step(tokens[:, 1], state)[0][[1, 3]])
        assert_same([*state.keys, *state.values], kept, rtol=0, atol=0)


def test_long_texts_in_blocks_keep_to_the_borders():
    module = body("parallel", span=150, n_layers=1)
    x, state = (
        normal(2, LONG + 7, 14),
        some_state(config("parallel", n_layers=1), 130, 2),
    )
    starts = torch.zeros(2, LONG + 7, dtype=torch.bool)
    starts[0, [5, 300, 301]] = starts[1, 1030] = True
    blocks, _, _ = module(x, state, starts=starts)
    whole, _, weights = module(x, state, starts=starts, need_weights=True)
    assert_same(blocks, whole)
    assert not weights[0, 0, :, 300:, : 130 + 300].any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_weights_of_documents(variant):
    module, x = body(variant), normal(2, 9, 14)
    starts = torch.zeros(2, 9, dtype=torch.bool)
    starts[0, [4, 8]] = True
    weights = module(x, starts=starts, need_weights=True)[2]
    assert not weights[:, 0, :, 4:, :4].any() and weights[:, 1, :, 5:, :4].any()
    alone = module(x[:1, 4:8], need_weights=True)[2]
    assert_same(weights[:, :1, :, 4:8, 4:8], alone)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_at_the_beginning_is_hidden_by_starts(variant):
    lm, tokens = model(variant, span=SPAN), some_tokens(2, 9)
    starts = torch.zeros(2, 9, dtype=torch.bool)
    starts[0, 4] = True
    logits, state = lm(tokens, return_state=True, starts=starts)
    expected, after = lm(tokens[:1, 4:], return_state=True)
    assert_same(logits[:1, 4:], expected)
    assert_same(lm.step(tokens[:, 0], state)[0][:1], lm.step(tokens[:1, 0], after)[0])
    targets = some_tokens(2, 9, seed=8)
    loss = torch.nn.functional.cross_entropy(logits.mT, targets)
    assert_same(lm.loss(tokens, targets, starts=starts), loss)


@pytest.mark.parametrize("variant", ["parallel", "shared-kv"])
def test_lengths_and_starts_are_exported(variant):
    """Their values are inputs of the program."""

    class Read(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lm = model(variant, span=2, n_layers=1)

        def forward(self, tokens, lengths, starts):
            rows = {"lengths": lengths, "starts": starts}
            logits, state = self.lm(tokens, return_state=True, **rows)
            return logits, *state.keys, state.filled

    read, tokens = Read(), some_tokens(2, 3)
    lengths, starts = torch.tensor([3, 3]), torch.zeros(2, 3, dtype=torch.bool)
    program = torch.export.export(read, (tokens, lengths, starts)).module()
    starts[0, 1] = starts[1, 2] = True
    given = tokens, torch.tensor([2, 3]), starts
    assert_same(list(program(*given)), list(read(*given)))


WRONG = {
    "lengths": [
        (ValueError, torch.tensor([1, 0]), r"in \[1, 9\], got 0"),
        (ValueError, torch.tensor([10, 9]), r"in \[1, 9\], got 10"),
        (ValueError, torch.tensor([1, 2, 3]), r"shape \[2\], got \[3\]"),
        (ValueError, torch.ones(2, 9), r"mask\.sum\(1\).* in `starts`"),
        (TypeError, torch.tensor([1.0, 2.0]), "a tensor of integers"),
        (TypeError, [1, 2], "a tensor of integers"),
    ],
    "starts": [
        (TypeError, torch.zeros(2, 9), r"a bool tensor \[B, T\], .* torch.float32"),
        (TypeError, [[True]], "a bool tensor"),
        (ValueError, torch.zeros(2, dtype=torch.bool), r"\[2, 9\], got \[2\]"),
    ],
}


@every_case
@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(variant, backend, name):
    lm, tokens = model(variant), some_tokens(2, 9)
    lm.backend = backend
    for error, value, message in WRONG[name]:
        with pytest.raises(error, match=rf"{name} must .*{message}"):
            lm(tokens, **{name: value})


def test_a_wrong_state_is_refused():
    lm, tokens = model("shared-kv"), some_tokens(2, 9)
    _, state = lm(tokens, return_state=True)
    wrong = fbt.State(state.keys, state.values, torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"filled must have shape \[2\], got \[3\]"):
        lm(tokens, wrong)
    with pytest.raises(TypeError, match="filled must be a tensor of integers"):
        fbt.State(state.keys, state.values, torch.ones(2))
    for rows in ([2], [-1]):
        with pytest.raises(ValueError, match=r"rows must be indices in \[0, 1\]"):
            state.clear(rows)
