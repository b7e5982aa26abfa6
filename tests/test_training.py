"""Training: steps, evaluations, files, interrupts and resumed runs."""

import json
import math
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from matplotlib import pyplot
from small_runs import SMALL, TEXT, assert_same_run, small_run, untimed
from torch import Tensor, nn

import fbt
from fbt import CharTokenizer, Config, LanguageModel
from fbt.data import random_windows
from fbt.pretrained import CHECKPOINT_FILE
from fbt.training import evaluate, resume, train, validation
from fbt.training import loop as training_loop
from fbt.training.checkpoint import Best, Checkpoint
from fbt.training.evaluation import total_loss
from fbt.training.interrupt import Interrupt
from fbt.training.loop import Trainer, adamw, step_seed
from fbt.training.metrics import METRICS_FILE
from fbt.training.processes import Processes
from fbt.training.recipe import PRESETS, Recipe
from fbt.training.result import LOSS_FIGURE

ALONE = Processes(torch.device("cpu"))
VARIANTS = ("parallel", "feedback", "shared-kv")
SMALL_RECIPE = {
    name: value
    for name, value in SMALL.items()
    if name in Recipe.__dataclass_fields__
}


class Killed(BaseException):
    """Stands for a kill: nothing in the package may catch it."""


def die_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that raises Killed in the given call, counted from 1."""
    calls = iter(range(1, 10**9))

    def dying(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise Killed
        return function(*args, **kwargs)

    return dying


# --- steps ---


def plain_training(
    text: str,
    config: Config,
    recipe: Recipe,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[list[float], LanguageModel]:
    """Train with carried memory in a plain loop; return the losses and the model.

    Each step runs in a new `context()`.
    """
    torch.manual_seed(recipe.seed)
    tokenizer = CharTokenizer(text)
    model = LanguageModel(config, tokenizer)
    tokens = tokenizer.encode(text)[: int(0.9 * len(text))]
    length, size = recipe.seq_len, recipe.batch_size
    stream = len(tokens) // size
    decayed = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    plain = [p for p in model.parameters() if all(p is not q for q in decayed)]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        betas=(0.9, recipe.beta2),
    )
    losses, state, at = [], None, 0
    for step in range(recipe.steps):
        if at + length + 1 > stream:
            state, at = None, 0
        rows = [
            tokens[b * stream + at : b * stream + at + length + 1]
            for b in range(size)
        ]
        batch = torch.stack(rows)
        at += length
        if state is not None:
            assert not state.keys[0].requires_grad
        torch.manual_seed(step_seed(recipe.seed, step))
        with context():
            logits, state = model(batch[:, :-1], state, return_state=True)
        state = state.detach()
        loss = F.cross_entropy(
            logits.float().reshape(-1, config.vocab_size), batch[:, 1:].reshape(-1)
        )
        model.zero_grad()
        loss.backward()
        if recipe.clip:
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
            for gradient in gradients:
                gradient.mul_(min(1.0, recipe.clip / norm))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step)
        optimizer.step()
        losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize("clip", [0.0, 0.3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_run_equals_a_plain_loop_with_carry_clipping_and_schedule(
    variant: str, clip: float
) -> None:
    # Three streams of 120 characters have 9 blocks of 13, so step 9 starts again.
    changes = {
        "carry": True,
        "steps": 11,
        "seq_len": 13,
        "span": 17,
        "clip": clip,
        "dropout": 0.1,
    }
    run = small_run(TEXT[:400], variant=variant, **changes)
    assert any(metric.get("grad_norm", 0.0) > 0.3 for metric in run.metrics)
    losses, model = plain_training(
        TEXT[:400], run.settings.config, run.settings.recipe
    )
    assert [m["loss"] for m in run.metrics if "loss" in m] == pytest.approx(
        losses, rel=1e-4
    )
    for name, value in model.state_dict().items():
        torch.testing.assert_close(
            run.model.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name
        )


def bfloat16() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_does_not_reuse_casts_of_earlier_weights(
    variant: str,
) -> None:
    changes = {
        "carry": True,
        "steps": 11,
        "seq_len": 13,
        "span": 17,
        "dropout": 0.1,
        "lr": 2e-2,
    }
    with bfloat16():
        run = small_run(TEXT[:400], variant=variant, **changes)
    losses, model = plain_training(
        TEXT[:400], run.settings.config, run.settings.recipe, bfloat16
    )
    # Equal up to the rounding of bfloat16. With casts of the first weights the loss
    # would not fall.
    assert [m["loss"] for m in run.metrics if "loss" in m] == pytest.approx(
        losses, rel=1e-2
    )
    assert losses[-1] < 0.6 * losses[0]
    with bfloat16():
        assert evaluate(model.eval(), last_windows(TEXT[:400], 13)) == pytest.approx(
            run.val_loss, rel=2e-2
        )
        assert evaluate(run.model, last_windows(TEXT[:400], 13)) == run.val_loss


def last_windows(text: str, length: int) -> Tensor:
    """Return the windows [W, T + 1] of the last evaluation."""
    held_out = CharTokenizer(text).encode(text)[int(0.9 * len(text)) :]
    count = (len(held_out) - 1) // length
    return torch.stack(
        [held_out[i * length : (i + 1) * length + 1] for i in range(count)]
    )


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "a default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("carry", [False, True])
def test_run_ignores_gradient_modes_and_default_device_of_the_caller(
    mode: str, carry: bool, tmp_path: Path
) -> None:
    expected = small_run(dropout=0.2, carry=carry)
    with MODES[mode]():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_update", die_at(6, Trainer._update))
            with pytest.raises(Killed):
                small_run(dropout=0.2, carry=carry, folder=tmp_path)
        run = resume(tmp_path, TEXT, progress=False)
        assert evaluate(run.model, last_windows(TEXT, 7)) == run.val_loss
        text, attention = (
            run.model.generate("to", 9, seed=1),
            run.model.attention(torch.tensor([[1]], device="cpu")),
        )
    assert_same_run(run, expected)
    assert text == expected.model.generate("to", 9, seed=1)
    assert torch.equal(attention, expected.model.attention(torch.tensor([[1]])))
    # The weights are not inference tensors.
    run.model.train()(torch.tensor([[1, 2]])).sum().backward()


@pytest.mark.parametrize("variant", VARIANTS)
def test_stream_can_leave_inference_mode(variant: str) -> None:
    model = small_run(steps=1, variant=variant).model
    with torch.inference_mode():
        stream = model.stream("to ", 9, seed=1)
        first = next(stream)
    assert "to " + "".join([first, *stream]) == model.generate("to ", 9, seed=1)


def test_default_dtype_does_not_change_evaluation_or_generation() -> None:
    model, windows = small_run(steps=1).model, last_windows(TEXT, 7)
    expected = evaluate(model, windows), model.generate("to ", 9, seed=1)
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            assert (
                evaluate(model, windows),
                model.generate("to ", 9, seed=1),
            ) == expected
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", ["alone", "warm"])
def test_seed_determines_initial_weights(kind: str) -> None:
    initial = small_run(variant="parallel", steps=1).model if kind == "warm" else None
    changes: dict[str, Any] = {"lr": 0.0, "weight_decay": 0.0, "steps": 1, "seed": 5}
    if initial is None:
        run = small_run(**changes)
        torch.manual_seed(5)
        expected = LanguageModel(run.settings.config)
    else:
        run = train(TEXT, preset="tiny", init_from=initial, progress=False, **changes)
        expected = LanguageModel.from_parallel(initial)
    for name, value in expected.state_dict().items():
        assert torch.equal(run.model.state_dict()[name], value), name


def test_concurrent_runs_in_threads_are_independent() -> None:
    kinds: list[dict[str, Any]] = [
        {"seed": 1},
        {"seed": 1},
        {"seed": 2},
        {"seed": 1, "variant": "parallel"},
    ]
    expected = [small_run(dropout=0.3, **kind) for kind in kinds]
    barrier, runs = threading.Barrier(len(kinds)), {}

    def run(number: int) -> None:
        barrier.wait()
        runs[number] = small_run(dropout=0.3, **kinds[number])

    threads = [
        threading.Thread(target=run, args=(number,)) for number in range(len(kinds))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, alone in enumerate(expected):
        assert_same_run(runs[number], alone)


def test_run_does_not_use_the_global_generator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The caller draws numbers between the steps of the run."""
    expected, drawn = small_run(dropout=0.3), []
    torch.manual_seed(9)
    expected_draws = torch.rand(11).tolist()
    update = Trainer._update

    def disturbed(self: Trainer) -> Any:
        drawn.append(torch.rand(1).item())
        return update(self)

    monkeypatch.setattr(Trainer, "_update", disturbed)
    torch.manual_seed(9)
    run = small_run(dropout=0.3)
    assert drawn == expected_draws
    assert_same_run(run, expected)


def test_carried_memory_is_reset_when_the_text_starts_again() -> None:
    run = small_run(steps=1)
    text = TEXT[:400]
    settings = run.settings
    recipe = Recipe(
        **{
            **PRESETS["tiny"].recipe,
            "batch_size": 3,
            "seq_len": 29,
            "carry": True,
            "steps": 9,
        }
    )
    model = LanguageModel(
        Config(len(set(text)), d_model=16, n_heads=2, span=5), CharTokenizer(text)
    )
    trainer = Trainer(
        type(settings)(model.config, recipe, None, "", None),
        CharTokenizer(text).encode(text),
        model,
        None,
        ALONE,
    )
    carried = []
    for trainer.step in range(9):
        batch = trainer._batch()
        carried.append(trainer.state is not None)
        tokens = trainer.train_tokens
        block = trainer.step % 4
        for b in range(3):
            assert torch.equal(
                batch[b], tokens[120 * b + 29 * block : 120 * b + 29 * block + 30]
            )
        trainer._update()
        assert trainer.state is not None
        assert not any(
            t.requires_grad for t in trainer.state.keys + trainer.state.values
        )
    assert carried == [False, True, True, True] * 2 + [False]


def test_batches_depend_on_seed_and_step() -> None:
    # Torch's CPU generator reads only 32 bits of a seed.
    seeds = {
        step_seed(seed, step) % 2**32 for seed in range(50) for step in range(50)
    }
    assert len(seeds) == 2500
    losses = [
        [m["loss"] for m in untimed(small_run(seed=seed).metrics) if "loss" in m]
        for seed in (0, 1, 0)
    ]
    assert losses[0] == losses[2] != losses[1]


def test_windows_follow_the_curriculum() -> None:
    run = small_run(curriculum=2, steps=20)
    lengths = [m["length"] for m in run.metrics if "loss" in m]
    assert lengths == [run.settings.recipe.batch_shape(step)[1] for step in range(20)]
    assert sorted(set(lengths)) == [2, 4, 7]


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_matrices_of_linear_layers_decay(variant: str) -> None:
    model = LanguageModel(
        Config(7, d_model=6, n_heads=2, n_layers=1, span=3, variant=variant)
    )
    decayed, others = adamw(
        model, Recipe(weight_decay=0.25, beta2=0.9, lr=0.5)
    ).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.25, 0.0)
    assert decayed["betas"] == others["betas"] == (0.9, 0.9)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        sorted(names[id(parameter)] for parameter in group["params"])
        for group in (decayed, others)
    ]
    assert sorted(groups[0] + groups[1]) == sorted(names.values())
    kinds = (
        "query.weight",
        "key.weight",
        "value.weight",
        "output.weight",
        "head.weight",
    )
    for name in groups[0]:
        assert name.endswith(kinds) or (
            "feed_forward" in name and name.endswith("weight")
        ), name
    for name in groups[1]:
        assert (
            name.endswith(
                ("bias", "token_embedding.weight", "key_embedding", "layer_logits")
            )
            or "norm" in name
        )


def make_infinite(
    step: int, patch: pytest.MonkeyPatch, *, gradient: bool = False
) -> None:
    """Make the loss of a step infinite, or only its gradient."""
    cross_entropy = F.cross_entropy
    calls = iter(range(1, 10**9))

    def exploding(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        loss = cross_entropy(logits, *args, **kwargs)
        if not logits.requires_grad or next(calls) != step:
            return loss
        return loss + (1e38 * (loss - loss.detach()) if gradient else math.inf)

    patch.setattr(F, "cross_entropy", exploding)


def test_infinite_loss_stops_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_infinite(9, monkeypatch)
    with pytest.raises(FloatingPointError) as caught:
        small_run(folder=tmp_path / "run")
    assert str(caught.value).startswith("loss inf and gradient norm ")
    assert str(caught.value).endswith(
        " at step 9 must be finite: try lr below 0.004, warmup above 2, or clip "
        "below 1.0"
    )
    assert caught.value.__notes__ == [
        f"the checkpoint of step 6 is intact in {tmp_path / 'run'}; for other "
        "settings use another folder"
    ]
    monkeypatch.undo()
    whole = small_run()
    # The metrics up to the failed step show how the run diverged. A resumed run
    # removes those after the checkpoint.
    lines = (tmp_path / "run" / METRICS_FILE).read_text().splitlines()
    assert [m["step"] for m in map(json.loads, lines) if "loss" in m] == list(
        range(1, 9)
    )
    assert_same_run(resume(tmp_path / "run", TEXT, progress=False), whole)


def test_infinite_gradient_stops_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_infinite(5, monkeypatch, gradient=True)
    with pytest.raises(
        FloatingPointError,
        match=r"^loss \d\.\d+ and gradient norm inf at step 5 must be finite",
    ):
        small_run(clip=0.0)


def test_nan_validation_loss_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "total_loss", lambda model, windows: math.nan)
    with pytest.raises(
        FloatingPointError,
        match=r"^validation loss nan at step 4 must be finite: .* or clip=1",
    ):
        small_run(folder=tmp_path, clip=0.0)
    assert Checkpoint.load(tmp_path).step == 3


def test_infinite_weights_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Trainer._update

    def ruining(self: Trainer) -> Any:
        values = update(self)
        # The loss of step 6 is finite; its weights are checked before they are saved.
        if self.step == 5:
            self.model.head.weight.data[0, 0] = math.inf
        return values

    monkeypatch.setattr(Trainer, "_update", ruining)
    with pytest.raises(
        FloatingPointError,
        match=r"^the weights after step 6 must be finite: try lr below",
    ):
        small_run(folder=tmp_path)
    checkpoint = Checkpoint.load(tmp_path)
    assert checkpoint.step == 3
    for name, value in checkpoint.tensors.items():
        assert value.isfinite().all(), name


def test_nan_in_the_initial_model_is_refused(tmp_path: Path) -> None:
    parallel = small_run(steps=1, variant="parallel").model
    with torch.no_grad():
        parallel.head.weight[0, 0] = math.nan
    with pytest.raises(
        FloatingPointError,
        match=r"^the weights after step 0 must be finite: use another initial model$",
    ):
        train(
            TEXT,
            init_from=parallel,
            folder=tmp_path,
            preset="tiny",
            steps=1,
            progress=False,
        )
    assert not (tmp_path / CHECKPOINT_FILE).exists()


# --- evaluation ---


def test_evaluation_does_not_change_the_run() -> None:
    often, never = (
        small_run(dropout=0.2, eval_every=every, sample=every) for every in (1, 100)
    )
    assert [m for m in untimed(often.metrics) if "loss" in m] == [
        m for m in untimed(never.metrics) if "loss" in m
    ]
    assert (len(often.evaluations), len(never.evaluations)) == (11, 1)
    for name, value in often.model.state_dict().items():
        assert torch.equal(value, never.model.state_dict()[name]), name


def test_evaluate_returns_the_mean_loss_and_keeps_the_mode() -> None:
    torch.manual_seed(0)
    model = LanguageModel(
        Config(5, d_model=6, n_heads=2, n_layers=1, span=3, dropout=0.5)
    ).train()
    windows = torch.randint(5, (7, 6))
    state = torch.get_rng_state()
    losses = [evaluate(model, windows, batch_size=size) for size in (1, 3, 128)]
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    model.eval()
    each = [F.cross_entropy(model(w[None, :-1])[0], w[1:]).item() for w in windows]
    assert losses == pytest.approx([sum(each) / 7] * 3)


def test_last_evaluation_uses_all_windows_and_others_fixed_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(
        validation,
        "total_loss",
        lambda model, windows: seen.append(windows) or 1.0,
    )
    small_run()
    held_out = CharTokenizer(TEXT).encode(TEXT)[int(0.9 * len(TEXT)) :]
    # After the last evaluation, the fixed windows again: their loss is compared with
    # the earlier ones.
    assert [len(windows) for windows in seen] == [5, 5, (len(held_out) - 1) // 7, 5]
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[3])
    assert torch.equal(seen[2][:, :-1].flatten(), held_out[: len(seen[2]) * 7])


def test_val_loss_is_the_loss_of_the_returned_model() -> None:
    run = small_run()
    held_out = CharTokenizer(TEXT).encode(TEXT)[int(0.9 * len(TEXT)) :]
    windows = torch.stack(
        [held_out[i : i + 8] for i in range(0, len(held_out) - 7, 7)]
    )
    assert not run.model.training
    assert evaluate(run.model, windows) == run.val_loss


@pytest.mark.parametrize(
    "dtype, rounding", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)]
)
def test_losses_of_half_precision_models_are_summed_in_float32(
    dtype: torch.dtype, rounding: float
) -> None:
    torch.manual_seed(0)
    model = LanguageModel(
        Config(5, d_model=6, n_heads=2, n_layers=1, span=3, variant="parallel")
    ).to(dtype)
    # The sum exceeds the largest float16.
    windows = torch.randint(5, (128, 401))
    with torch.no_grad():
        logits = model(windows[:, :-1])
    exact = F.cross_entropy(
        logits.double().flatten(0, 1), windows[:, 1:].flatten()
    ).item()
    assert evaluate(model, windows) == pytest.approx(exact, rel=1e-6)
    whole = evaluate(model.double(), windows)
    assert 0 < abs(exact - whole) < rounding * whole


def test_training_loss_of_half_precision_models_is_computed_in_float32() -> None:
    config = Config(
        len(set(TEXT)), variant="parallel", d_model=16, n_heads=2, n_layers=1, span=5
    )
    initial = LanguageModel(config, CharTokenizer(TEXT)).bfloat16()
    run = train(
        TEXT, preset="tiny", init_from=initial, steps=1, sample=0, progress=False
    )
    assert run.model.head.weight.dtype == torch.bfloat16
    tokens, recipe = (
        CharTokenizer(TEXT).encode(TEXT)[: int(0.9 * len(TEXT))],
        run.settings.recipe,
    )
    generator = torch.Generator().manual_seed(step_seed(recipe.seed, 0))
    batch = random_windows(
        tokens, length=32, batch_size=recipe.batch_size, generator=generator
    )
    logits = LanguageModel.from_parallel(initial)(batch[:, :-1])
    exact = F.cross_entropy(
        logits.double().flatten(0, 1), batch[:, 1:].flatten()
    ).item()
    assert run.metrics[0]["loss"] == pytest.approx(exact, rel=1e-6)


def test_last_evaluation_has_a_largest_number_of_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = small_run(steps=1).settings

    def windows_of(size: int, length: int) -> Tensor:
        text = "ab" * (size // 2)
        recipe = Recipe(**SMALL_RECIPE | {"seq_len": length})
        model = LanguageModel(
            Config(2, d_model=4, n_heads=1, n_layers=1, span=2), CharTokenizer(text)
        )
        trainer = Trainer(
            type(settings)(model.config, recipe, None, "", None),
            CharTokenizer(text).encode(text),
            model,
            None,
            ALONE,
        )
        return trainer.validation.last_windows

    # All (111,540 - 1) // T windows of Tiny Shakespeare.
    assert [len(windows_of(1_115_394, length)) for length in (32, 64, 128)] == [
        3485,
        1742,
        871,
    ]
    assert windows_of(3_000_000, 64).shape == (131_072 // 64, 65)
    monkeypatch.setattr(validation, "LAST_CHARACTERS", 21)
    held_out = torch.arange(60)
    monkeypatch.setattr(
        training_loop, "split_tokens", lambda *_: (held_out, held_out)
    )
    assert windows_of(600, 7)[:, 0].tolist() == [0, 26, 52]  # evenly spaced
    assert windows_of(600, 29)[:, 0].tolist() == [0]


def test_training_lowers_the_loss() -> None:
    run = small_run(steps=60, lr=2e-2, eval_every=20)
    assert run.evaluations[0]["val_loss"] > run.val_loss
    assert run.val_loss < math.log(len(set(TEXT))) - 1


# --- files and output ---


def test_run_writes_metrics_weights_and_figure(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    run = small_run(folder=folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [CHECKPOINT_FILE, LOSS_FIGURE, METRICS_FILE, "model.safetensors"]
    )
    metrics = [
        json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()
    ]
    assert metrics == run.metrics
    steps = [m for m in metrics if "loss" in m]
    assert [m["step"] for m in steps] == list(range(1, 12))
    assert all(
        m.keys() == {"step", "loss", "grad_norm", "lr", "length", "seconds"}
        for m in steps
    )
    assert [m["lr"] for m in steps] == [
        run.settings.recipe.learning_rate(step) for step in range(11)
    ]
    assert [m["step"] for m in run.evaluations] == [4, 8, 11]
    for m in run.evaluations:
        assert m.keys() == {"step", "val_loss", "sample", "layer_weights", "seconds"}
        assert len(m["sample"]) == 4  # the newline of the prompt and three more
    assert run.evaluations[-1]["layer_weights"] == run.model.layer_weights().tolist()
    assert run.evaluations[0]["layer_weights"] != run.evaluations[1]["layer_weights"]
    seconds = [m["seconds"] for m in metrics]
    assert seconds == sorted(seconds)
    assert (folder / LOSS_FIGURE).read_text().lstrip().startswith(("<?xml", "<svg"))
    loaded = LanguageModel.from_pretrained(folder)
    assert loaded.config == run.settings.config
    assert loaded.tokenizer == CharTokenizer(TEXT)
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_run_without_folder_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small_run()
    assert list(tmp_path.iterdir()) == []


def test_missing_matplotlib_is_reported_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in [name for name in sys.modules if name.startswith("matplotlib")] + [
        "matplotlib"
    ]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "fbt.views.figures", raising=False)
    monkeypatch.delattr("fbt.views.figures", raising=False)
    assert small_run(folder=tmp_path).finished
    assert (
        capsys.readouterr().err
        == f"no {LOSS_FIGURE}: it needs the package matplotlib\n"
    )
    assert not (tmp_path / LOSS_FIGURE).exists()


def test_repr_of_a_run(tmp_path: Path) -> None:
    run = small_run(folder=tmp_path)
    assert (
        repr(run)
        == f"Run(shared-kv, 11 of 11 steps, validation loss {run.val_loss:.4f}, "
        f"in {tmp_path})"
    )


def test_run_does_not_change_the_global_random_state() -> None:
    parallel = small_run(variant="parallel", steps=1).model
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    small_run(dropout=0.1)
    train(TEXT, init_from=parallel, preset="tiny", steps=1, sample=0, progress=False)
    assert torch.equal(torch.rand(4), expected)


def test_progress_is_written_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    run = small_run(progress=True, sample=30)
    out, err = capsys.readouterr()
    assert out == ""
    for metric in run.evaluations:
        assert (
            f"step {metric['step']}: validation loss {metric['val_loss']:.4f}\n"
            in err
        )
        assert metric["sample"].strip() in err
    assert "11/11" in err
    assert f"val_loss={run.val_loss:.3f}" in err


def test_without_progress_nothing_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    small_run()
    assert capsys.readouterr() == ("", "")


def test_text_without_newlines_is_sampled_from_its_first_character() -> None:
    run = small_run(TEXT.replace("\n", " "))
    assert all(metric["sample"].startswith(TEXT[0]) for metric in run.evaluations)
    assert all(metric["sample"] == "" for metric in small_run(sample=0).evaluations)


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8-sig")
    assert_same_run(small_run(tmp_path / "text.txt"), small_run())


# --- stopping and resuming ---

KINDS: dict[str, dict[str, Any]] = {
    "random windows": {"dropout": 0.2},
    "carry": {"dropout": 0.2, "carry": True},
    "curriculum": {"dropout": 0.2, "curriculum": 2},
    "parallel": {"dropout": 0.2, "carry": True, "variant": "parallel"},
    "feedback": {"dropout": 0.2, "carry": True, "variant": "feedback"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_killed_run_resumes_with_equal_bits(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = small_run(**KINDS[kind])
    # Killed before the second checkpoint, between metrics and checkpoint, and after
    # both.
    for call, name in ((3, "_update"), (3, "checkpoint_bytes"), (2, "_update")):
        with monkeypatch.context() as patch:
            if name == "_update":
                patch.setattr(Trainer, name, die_at(call, Trainer._update))
            else:
                patch.setattr(
                    training_loop, name, die_at(call, training_loop.checkpoint_bytes)
                )
            with pytest.raises(Killed):
                small_run(folder=tmp_path, resume=True, **KINDS[kind])
        saved = Checkpoint.load(tmp_path)
        assert saved.step % 3 == 0
    assert saved.step == 3
    assert not (tmp_path / "model.safetensors").exists()
    run = small_run(folder=tmp_path, resume=True, **KINDS[kind])
    assert_same_run(run, expected)
    assert (tmp_path / METRICS_FILE).read_text().count("\n") == len(expected.metrics)
    seconds = [m["seconds"] for m in run.metrics]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("stop", [1, 5, 10, 11])
def test_interrupt_ends_the_run_after_the_step(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = small_run(dropout=0.2)
    update, before = Trainer._update, signal.getsignal(signal.SIGINT)

    def interrupted(self: Trainer) -> Any:
        if self.step == stop - 1:
            signal.raise_signal(signal.SIGINT)
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", interrupted)
        run = small_run(folder=tmp_path, dropout=0.2)
    assert signal.getsignal(signal.SIGINT) is before
    assert (run.finished, run.step) == (stop == 11, stop)
    assert Checkpoint.load(tmp_path).step == stop
    assert_same_run(resume(tmp_path, TEXT, progress=False), expected)


def test_val_loss_before_the_first_evaluation_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Interrupt, "requested", True)
    run = small_run()
    assert repr(run) == "Run(shared-kv, 0 of 11 steps)"
    with pytest.raises(
        ValueError, match="no evaluation yet: the run was stopped after step 0"
    ):
        _ = run.val_loss


def test_second_interrupt_stops_immediately() -> None:
    # the shell may have started this job with SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_resuming_a_finished_run_returns_it(tmp_path: Path) -> None:
    run = small_run(folder=tmp_path)
    assert_same_run(small_run(folder=tmp_path, resume=True), run)


def test_resume_starts_a_run_in_an_empty_folder(tmp_path: Path) -> None:
    assert_same_run(small_run(folder=tmp_path, resume=True), small_run())


def test_temporary_files_of_killed_writers_are_removed(
    tmp_path: Path,
) -> None:
    small_run(folder=tmp_path)
    leftover, other = (
        tmp_path / f".{CHECKPOINT_FILE}.0123456789abcdef.part",
        tmp_path / ".mine.part",
    )
    leftover.write_bytes(b"half a checkpoint")
    other.write_bytes(b"")
    resume(tmp_path, TEXT, progress=False)
    assert other.exists()
    assert not leftover.exists()


def test_resume_reads_the_text_from_its_path(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    run = small_run(path, folder=tmp_path / "run")
    assert run.settings.data == str(path)
    assert_same_run(resume(tmp_path / "run", progress=False), run)
    path.rename(tmp_path / "moved.txt")
    with pytest.raises(FileNotFoundError, match=r"text\.txt"):
        resume(tmp_path / "run", progress=False)
    assert_same_run(
        resume(tmp_path / "run", tmp_path / "moved.txt", progress=False), run
    )
    path.write_text(TEXT + "!", encoding="utf-8")
    with pytest.raises(
        ValueError,
        match=r"text\.txt is not the text that the run in .* was trained on",
    ):
        resume(tmp_path / "run", progress=False)


def test_resume_needs_a_text_that_was_passed_in_python(tmp_path: Path) -> None:
    small_run(folder=tmp_path)
    with pytest.raises(ValueError, match="was passed in Python: pass it again"):
        resume(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"the text is not the text that the run in .* was trained on",
    ):
        resume(tmp_path, TEXT[1:])


def test_resume_reports_settings_that_differ(tmp_path: Path) -> None:
    small_run(folder=tmp_path)
    with pytest.raises(
        ValueError,
        match=r"other settings \(given, stored\): "
        r"dropout: 0\.1, 0\.0; lr: 0\.5, 0\.004",
    ):
        small_run(folder=tmp_path, resume=True, lr=0.5, dropout=0.1)
    with pytest.raises(ValueError, match="data_sha256"):
        small_run(TEXT[:-1], folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="vocab_size"):
        small_run(TEXT + "!", folder=tmp_path, resume=True)


@pytest.mark.parametrize("second", [False, True])
def test_resumed_run_repeats_an_interrupted_last_evaluation(
    second: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the shell may have started this job with SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    expected = small_run(dropout=0.2)
    monkeypatch.setattr(validation, "BATCH_SIZE", 8)  # 51 windows are 7 batches
    assert small_run(dropout=0.2).val_loss == pytest.approx(
        expected.val_loss, rel=1e-6
    )
    whole, seen = small_run(dropout=0.2), []

    def interrupting(model: LanguageModel, windows: Tensor) -> float:
        seen.append(len(windows))
        if len(seen) == 5:  # two of the evaluations during the run, and three batches
            assert Checkpoint.load(tmp_path).step == 11
            signal.raise_signal(signal.SIGINT)
            if second:
                signal.raise_signal(signal.SIGINT)
        return total_loss(model, windows)

    with monkeypatch.context() as patch:
        patch.setattr(validation, "total_loss", interrupting)
        if second:
            with pytest.raises(KeyboardInterrupt):
                small_run(folder=tmp_path, dropout=0.2)
        else:
            run = small_run(folder=tmp_path, dropout=0.2)
            assert (run.finished, run.step, len(run.evaluations)) == (False, 11, 2)
            assert not (tmp_path / "model.safetensors").exists()
    assert seen == [5, 5, 8, 8, 8]
    assert_same_run(resume(tmp_path, TEXT, progress=False), whole)


def test_resumed_run_repeats_an_interrupted_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the shell may have started this job with SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(validation, "BATCH_SIZE", 2)
    whole, calls = small_run(), iter(range(1, 100))

    def interrupting(model: LanguageModel, windows: Tensor) -> float:
        if next(calls) == 5:  # the second batch of step 8
            signal.raise_signal(signal.SIGINT)
        return total_loss(model, windows)

    with monkeypatch.context() as patch:
        patch.setattr(validation, "total_loss", interrupting)
        run = small_run(folder=tmp_path)
    assert (run.finished, run.step, [m["step"] for m in run.evaluations]) == (
        False,
        8,
        [4],
    )
    assert_same_run(resume(tmp_path, TEXT, progress=False), whole)


def test_evaluation_shows_a_progress_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bars: list[Any] = []

    class Recorded(training_loop.tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            bars.append((kwargs["desc"], kwargs["total"], self))

    for module in (training_loop, validation):
        monkeypatch.setattr(module, "tqdm", Recorded)
    small_run(progress=True)
    shown = [(name, total, bar.n) for name, total, bar in bars]
    assert shown[0] == ("shared-kv", 11, 11)
    assert shown[1:] == [("validation", n, n) for n in (5, 5, 51, 5)]


# --- the best weights ---

# The losses of four evaluations and of the last one; then the loss of the last
# weights over the windows of the earlier evaluations; then that of the best weights
# over the windows of the last one. Then the expected step and loss.
SCRIPTS: dict[str, tuple[list[float], int, float]] = {
    "the last is the best": ([3.0, 2.0, 2.5, 1.5, 1.7, 1.4], 9, 1.7),
    "an earlier one is": ([3.0, 1.0, 2.5, 1.5, 1.7, 1.4, 1.2], 4, 1.2),
    "an earlier one seemed to be": ([3.0, 1.0, 2.5, 1.5, 1.7, 1.4, 1.8], 9, 1.7),
    "all are alike": ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 9, 1.0),
}


def script_losses(
    losses: list[float], patch: pytest.MonkeyPatch
) -> dict[int, dict[str, Tensor]]:
    """Let evaluations return these losses.

    Returns:
        A dict that a run fills with the weights after each step.
    """
    weights: dict[int, dict[str, Tensor]] = {}
    rest, update = iter(losses), Trainer._update

    def updating(self: Trainer) -> Any:
        values = update(self)
        weights[self.step + 1] = {
            name: value.clone() for name, value in self.model.state_dict().items()
        }
        return values

    patch.setattr(Trainer, "_update", updating)
    patch.setattr(
        validation,
        "total_loss",
        lambda model, windows: next(rest) * windows[:, 1:].numel(),
    )
    return weights


@pytest.mark.parametrize("script", SCRIPTS)
def test_best_weights_are_returned_and_saved(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, step, loss = SCRIPTS[script]
    weights = script_losses(losses, monkeypatch)
    run = small_run(folder=tmp_path, eval_every=2, steps=9)
    assert isinstance(run.best, Best) and (
        run.best.step,
        run.best.val_loss,
        run.best.final,
    ) == (
        step,
        loss,
        True,
    )
    assert [m["val_loss"] for m in run.evaluations] == losses[:5]
    assert run.val_loss == loss
    checkpoint = Checkpoint.load(tmp_path)
    for name, value in LanguageModel.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(value, weights[step][name]), name
        assert torch.equal(value, run.model.state_dict()[name])
        assert torch.equal(value, run.best.weights[name])
        assert torch.equal(checkpoint.tensors[f"model.{name}"], weights[9][name])
    assert checkpoint.best is not None and checkpoint.best.step == step
    phrase = (
        "validation loss 1.2000 at step 4 (1.7000 at step 9)"
        if step == 4
        else f"loss {loss:.4f}, in"
    )
    assert phrase in repr(run)
    assert_same_run(resume(tmp_path, TEXT, progress=False), run)


def test_interrupted_run_returns_last_and_best_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the shell may have started this job with SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    weights = script_losses([3.0, 1.0, 2.5], monkeypatch)
    update = Trainer._update

    def interrupted(self: Trainer) -> Any:
        if self.step == 6:
            signal.raise_signal(signal.SIGINT)
        return update(self)

    monkeypatch.setattr(Trainer, "_update", interrupted)
    run = small_run(eval_every=2)
    assert (run.finished, run.step, run.val_loss) == (False, 7, 2.5)
    assert run.best is not None and (run.best.step, run.best.val_loss) == (4, 1.0)
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, weights[7][name])
        assert torch.equal(run.best.weights[name], weights[4][name])


@pytest.mark.parametrize("call", range(1, 6))
def test_best_weights_survive_a_kill(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a learning rate that grows too far, the loss is lowest at step 4 of 9."""
    changes: dict[str, Any] = {
        "eval_every": 2,
        "steps": 9,
        "lr": 0.2,
        "warmup": 9,
        "folder": tmp_path,
    }
    whole = small_run(**changes | {"folder": None})
    assert whole.best is not None and whole.best.step == 4
    assert (
        evaluate(whole.model, last_windows(TEXT, 7))
        == whole.val_loss
        < whole.evaluations[-1]["val_loss"]
    )
    with monkeypatch.context() as patch:
        patch.setattr(
            training_loop,
            "checkpoint_bytes",
            die_at(call, training_loop.checkpoint_bytes),
        )
        with pytest.raises(Killed):
            small_run(**changes)
    run = small_run(**changes, resume=True)
    assert_same_run(run, whole)
    assert run.best is not None
    assert (run.best.step, run.best.val_loss) == (
        whole.best.step,
        whole.best.val_loss,
    )


# --- initialising from a parallel model ---


def test_run_resumes_in_the_dtype_of_its_initial_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(
        len(set(TEXT)), variant="parallel", d_model=16, n_heads=2, n_layers=1, span=5
    )
    initial = LanguageModel(config, CharTokenizer(TEXT)).double()
    settings: dict[str, Any] = {
        "preset": "tiny",
        "steps": 5,
        "checkpoint_every": 2,
        "progress": False,
    }
    whole = train(TEXT, **settings, init_from=initial)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", die_at(4, Trainer._update))
        with pytest.raises(Killed):
            train(TEXT, **settings, init_from=initial, folder=tmp_path)
    run = resume(tmp_path, TEXT, progress=False)
    assert run.model.head.weight.dtype == torch.float64
    assert_same_run(run, whole)


@pytest.mark.parametrize("variant", ["feedback", "shared-kv"])
def test_run_initialised_from_a_parallel_model_resumes(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parallel = small_run(
        variant="parallel", folder=tmp_path / "parallel", steps=40, lr=2e-2
    )
    # The sizes come from the parallel model.
    sizes = {"d_model", "n_heads", "n_layers", "span"}
    settings = {k: v for k, v in SMALL.items() if k not in sizes} | {
        "variant": variant,
        "progress": False,
    }
    given = train(TEXT, **settings, init_from=parallel.model)
    folder = tmp_path / "warm"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", die_at(6, Trainer._update))
        with pytest.raises(Killed):
            train(TEXT, **settings, init_from=tmp_path / "parallel", folder=folder)
    run = resume(folder, TEXT, progress=False)
    assert_same_run(run, given)
    assert given.settings.init_from == "a model"
    assert run.settings.init_from == str(tmp_path / "parallel")
    assert run.model.config.d_model == 16
    # The initialised run starts with a lower loss.
    assert run.metrics[0]["loss"] < small_run(variant=variant).metrics[0]["loss"]
    assert parallel.model.config.variant == "parallel"


def test_vocabulary_of_the_initial_model_must_contain_the_text() -> None:
    parallel = small_run(TEXT + "?!", variant="parallel").model
    run = train(
        TEXT, preset="tiny", init_from=parallel, steps=2, progress=False, sample=0
    )
    assert run.model.tokenizer == CharTokenizer(TEXT + "?!")
    with pytest.raises(ValueError, match=r"got 'Z' \(U\+005A\) at position"):
        train(TEXT + "Z", preset="tiny", init_from=parallel, steps=2, progress=False)


def test_initial_model_keeps_its_sizes_and_its_feedback(tmp_path: Path) -> None:
    feedback = small_run(steps=1).model
    with pytest.raises(ValueError, match="a changed field must be one of 'dropout'"):
        small_run(init_from=feedback)
    with pytest.raises(
        ValueError, match="must be 'feedback' or 'shared-kv', got 'parallel'"
    ):
        train(TEXT, variant="parallel", init_from=feedback)
    parallel = small_run(steps=1, variant="parallel").model
    with pytest.raises(
        ValueError, match=r"a changed field must be one of .* got 'd_model'"
    ):
        small_run(init_from=parallel)
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in"):
        train(TEXT, init_from=tmp_path)
    with pytest.raises(
        ValueError, match="must have a tokenizer, got tokenizer=None: pass"
    ):
        train(TEXT, init_from=LanguageModel(parallel.config))


# --- TensorBoard ---


def test_tensorboard_events_contain_the_metrics(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    run = small_run(folder=tmp_path, log="tensorboard")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    names = [
        "grad_norm",
        *(f"layer_weights/{layer}" for layer in range(3)),
        "length",
        "loss",
        "lr",
        "val_loss",
    ]
    assert sorted(events.Tags()["scalars"]) == names
    assert events.Tags()["tensors"] == ["sample/text_summary"]
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert losses == pytest.approx(
        {m["step"]: m["loss"] for m in run.metrics if "loss" in m}
    )
    assert [event.step for event in events.Scalars("val_loss")] == [4, 8, 11]


def test_missing_tensorboard_is_reported_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        ImportError,
        match="log='tensorboard' needs the package tensorboard: pip install",
    ):
        small_run(folder=tmp_path / "run", log="tensorboard")
    assert not (tmp_path / "run").exists()


# --- errors ---


def test_run_is_not_overwritten(tmp_path: Path) -> None:
    small_run(folder=tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        FileExistsError,
        match=r"already contains a run\. Pass resume=True to continue it",
    ):
        small_run(folder=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize("inside", ["", "sub"])
def test_unwritable_folder_is_refused_before_the_first_step(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(Trainer, "_update", die_at(1, Trainer._update))
    folder = tmp_path / "file" / inside
    with pytest.raises(
        OSError, match="the folder of the run cannot be written"
    ) as caught:
        small_run(folder=folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (
            TEXT[:60],
            {},
            "last tenth of the text must have more than seq_len=7 tokens, got 6",
        ),
        (
            TEXT[:200],
            {"seq_len": 19, "carry": True, "batch_size": 10},
            r"\(seq_len \+ 1\) = 200 tokens, got 180",
        ),
        (
            "a",
            {},
            "more than seq_len=7 tokens, got 1 of 1; to train on a file, pass",
        ),
        ("", {}, "text must have at least one character"),
    ],
)
def test_short_text_is_refused_before_anything_is_written(
    text: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        small_run(text, folder=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_shortest_allowed_text() -> None:
    assert small_run(TEXT[:71]).finished
    assert small_run(TEXT[:200], seq_len=17, carry=True, batch_size=10).finished


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9 " * 50)
    with pytest.raises(
        ValueError, match=r"latin\.txt must be UTF-8, got byte 0xe9 at position 3"
    ):
        small_run(path)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"stepz": 1},
            ValueError,
            r"unknown settings \['stepz'\]; allowed are .*'steps'",
        ),
        ({"vocab_size": 3}, ValueError, r"unknown settings \['vocab_size'\]"),
        (
            {"preset": "huge"},
            ValueError,
            "preset must be one of 'tiny', 'small', 'base', got 'huge'",
        ),
        (
            {"variant": "serial"},
            ValueError,
            "variant must be one of .*, got 'serial'",
        ),
        (
            {"log": "wandb"},
            ValueError,
            "log must be one of 'tensorboard', got 'wandb'",
        ),
        (
            {"log": "tensorboard"},
            ValueError,
            "needs a folder to write to, got folder=None",
        ),
        (
            {"resume": True},
            ValueError,
            "resume needs the folder of a run, got folder=None",
        ),
        (
            {"device": "abacus"},
            ValueError,
            "device must be a device that torch can use here, got 'abacus'",
        ),
        (
            {"text": 3},
            TypeError,
            "text must be a str, a Path or None, got 3 of type int",
        ),
        (
            {"steps": 0},
            ValueError,
            r"steps must be an int in \[1, 9223372036854775807\], got 0",
        ),
        ({"n_heads": 3}, ValueError, "n_heads must divide d_model"),
    ],
)
def test_bad_arguments_are_refused(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        small_run(**settings)


def test_train_is_a_public_name() -> None:
    assert fbt.train is train


@pytest.mark.parametrize("resume", [False, True])
def test_weights_in_the_folder_are_not_replaced(tmp_path: Path, resume: bool) -> None:
    initial = small_run(variant="parallel", steps=1).model
    path = initial.save_pretrained(tmp_path)
    before = path.read_bytes()
    with pytest.raises(
        FileExistsError, match="contains weights, which a new run would replace"
    ):
        small_run(folder=tmp_path, init_from=tmp_path, resume=resume)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_metrics_are_reported(tmp_path: Path) -> None:
    small_run(folder=tmp_path)
    (tmp_path / METRICS_FILE).unlink()
    with pytest.raises(
        FileNotFoundError, match=f"no {METRICS_FILE} in .*the metrics of 11 steps"
    ):
        small_run(folder=tmp_path, resume=True)


@pytest.mark.parametrize(
    "name", ["fbt.views.figures.loss_curves", "matplotlib.figure.Figure.savefig"]
)
def test_error_of_matplotlib_does_not_end_the_run(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise ValueError("Key backend: 'foo' is not a valid value")

    monkeypatch.setattr(name, fails)
    assert small_run(folder=tmp_path).finished
    assert (
        capsys.readouterr().err
        == f"no {LOSS_FIGURE}: Key backend: 'foo' is not a valid value\n"
    )
    assert not pyplot.get_fignums()


def test_resumed_run_frees_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Checkpoint] = []
    load = Checkpoint.load
    monkeypatch.setattr(
        Checkpoint, "load", lambda folder: loaded.append(load(folder)) or loaded[-1]
    )
    small_run(folder=tmp_path)
    small_run(folder=tmp_path, resume=True)
    assert [checkpoint.tensors for checkpoint in loaded] == [{}]


@pytest.mark.parametrize("other", [None, signal.SIG_IGN])
def test_ignored_and_foreign_signal_handlers_are_kept(
    other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = {signal.SIGTERM: other, signal.SIGINT: signal.default_int_handler}
    touched: list[signal.Signals] = []
    monkeypatch.setattr(signal, "getsignal", handlers.__getitem__)
    monkeypatch.setattr(
        signal, "signal", lambda kind, handler: touched.append(kind) or handlers[kind]
    )
    with Interrupt():
        pass
    assert touched == [signal.SIGINT, signal.SIGINT]


def test_evaluate_refuses_empty_windows() -> None:
    with pytest.raises(
        ValueError,
        match=r"windows must have shape \[N, T \+ 1\] with every size >= 1, got \[0",
    ):
        evaluate(small_run(steps=1).model, torch.empty(0, 5, dtype=torch.long))


def test_checkpoint_too_large_with_moments_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_run(steps=1).model.save_pretrained(tmp_path / "size")
    monkeypatch.setattr("fbt._weights.LARGEST", 2 * path.stat().st_size)
    with pytest.raises(ValueError, match=f"{CHECKPOINT_FILE} must have at most"):
        small_run(folder=tmp_path / "run")
    assert not (tmp_path / "run" / CHECKPOINT_FILE).exists()
