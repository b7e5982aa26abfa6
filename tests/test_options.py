"""Options of `Config`, `Recipe`, `train` and the command line have their effects.

Each value differs from the default and from the presets, so that a test fails if an
option is not passed on or has no effect.
"""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import BATCH, CASES, body, model, normal, some_tokens
from small_runs import TEXT, small_run
from torch import Tensor, nn

from fbt import CharTokenizer, Config, LanguageModel
from fbt.training import evaluate, resume, train
from fbt.training.__main__ import main
from fbt.training.checkpoint import Checkpoint
from fbt.training.recipe import PRESETS, Recipe

MODEL: dict[str, Any] = {
    "d_model": 12,
    "n_heads": 3,
    "n_layers": 3,
    "d_ff": 7,
    "span": 6,
    "dropout": 0.25,
    "activation": "gelu",
    "memory_norm": False,
    "memory": "uniform",
    "relative": "shared",
    "final_norm": False,
}
RECIPE: dict[str, Any] = {
    "steps": 3,
    "batch_size": 2,
    "seq_len": 5,
    "lr": 3e-4,
    "min_lr_ratio": 0.3,
    "warmup": 1,
    "weight_decay": 0.2,
    "beta2": 0.95,
    "clip": 0.7,
    "curriculum": 2,
    "carry": True,
    "eval_every": 2,
    "eval_windows": 3,
    "sample": 4,
    "checkpoint_every": 1,
    "seed": 5,
    "backend": "reference",
    "recompute": True,
}
# Some options exclude each other, or the variant: these keep their defaults.
CASES_OF_OPTIONS = [
    ("feedback", {"curriculum": 0, "recompute": False}),
    ("feedback", {"carry": False, "recompute": False}),
    ("shared-kv", {"carry": False, "backend": "auto"}),
]


def arguments_of(options: dict[str, Any]) -> list[str]:
    """Return options as arguments of the command line."""
    flags = ["--" + name.replace("_", "-") for name in options]
    return [
        f"{flag}={value}"
        if not isinstance(value, bool)
        else flag
        if value
        else f"--no-{flag[2:]}"
        for flag, value in zip(flags, options.values(), strict=True)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


# --- options are passed on ---


def test_every_option_has_a_test_value() -> None:
    assert MODEL.keys() == {f.name for f in fields(Config)} - {
        "vocab_size",
        "variant",
    }
    assert RECIPE.keys() == {f.name for f in fields(Recipe)}
    for settings in (
        asdict(Config(5)),
        asdict(Recipe()),
        *(p.model | p.recipe for p in PRESETS.values()),
    ):
        for name, value in settings.items():
            # A default could not be distinguished.
            assert (MODEL | RECIPE).get(name) != value, name


@pytest.mark.parametrize(("variant", "defaults"), CASES_OF_OPTIONS)
def test_command_line_passes_every_option(
    variant: str, defaults: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    options = MODEL | RECIPE | defaults
    folder = tmp_path / "run"
    arguments = [
        f"--data={data}",
        f"--folder={folder}",
        f"--variant={variant}",
        *arguments_of(options),
    ]
    assert main(arguments) == 0
    actual = Checkpoint.load(folder).settings
    vocab_size = len(set(TEXT))
    assert asdict(actual.config) == {
        "vocab_size": vocab_size,
        "variant": variant,
    } | {name: options[name] for name in MODEL}
    assert asdict(actual.recipe) == {name: options[name] for name in RECIPE}
    assert actual.data == str(data.resolve())


@pytest.mark.parametrize("preset", PRESETS)
def test_command_line_passes_the_preset(
    preset: str, data: Path, tmp_path: Path
) -> None:
    changes = {"steps": 1, "batch_size": 1, "sample": 0}
    folder = tmp_path / "run"
    arguments = [
        f"--data={data}",
        f"--folder={folder}",
        f"--preset={preset}",
        *arguments_of(changes),
    ]
    assert main(arguments) == 0
    actual = Checkpoint.load(folder).settings
    assert actual.config == Config(len(set(TEXT)), **PRESETS[preset].model)
    assert actual.recipe == Recipe(**PRESETS[preset].recipe | changes)


def test_log_option_writes_event_files(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = tmp_path / "run"

    def files() -> int:
        return len(list(folder.glob("events.out.tfevents.*")))

    small = arguments_of({"preset": "tiny", "steps": 1, "sample": 0})
    assert (
        main([f"--data={data}", f"--folder={folder}", *small, "--log=tensorboard"])
        == 0
    )
    assert files() == 1
    (events,) = folder.glob("events.out.tfevents.*")
    events.unlink()
    assert main([f"--resume={folder}"]) == 0
    assert files() == 0
    assert main([f"--resume={folder}", "--log=tensorboard"]) == 0
    assert files() == 1


def test_device_option_is_used(data: Path, tmp_path: Path, capsys: Any) -> None:
    """A device that does not exist is refused."""
    folder, other = tmp_path / "run", tmp_path / "other"
    few = {"preset": "tiny", "steps": 1, "sample": 0}
    assert main([f"--data={data}", f"--folder={folder}", *arguments_of(few)]) == 0
    for arguments in (
        [f"--resume={folder}"],
        [f"--data={data}", f"--folder={other}", *arguments_of(few)],
    ):
        capsys.readouterr()
        assert main([*arguments, "--device=abacus"]) == 2
        assert "got 'abacus'" in capsys.readouterr().err
    message = r"device must be .* got 'abacus'"
    with pytest.raises(ValueError, match=message):
        train(data, **few, device="abacus", progress=False)
    with pytest.raises(ValueError, match=message):
        resume(folder, device="abacus", progress=False)


@pytest.mark.parametrize("progress", [False, True])
def test_resume_passes_progress(progress: bool, tmp_path: Path, capsys: Any) -> None:
    small_run(folder=tmp_path)
    capsys.readouterr()
    resume(tmp_path, TEXT, progress=progress)
    assert bool(capsys.readouterr().err) == progress


def test_init_from_accepts_changes(tmp_path: Path) -> None:
    parallel = LanguageModel(
        Config(len(set(TEXT)), variant="parallel", d_model=16), CharTokenizer(TEXT)
    )
    parallel.save_pretrained(tmp_path)
    changes = {"dropout": 0.25, "memory": "top", "memory_norm": False}
    few = {"preset": "tiny", "steps": 1, "progress": False}
    run = train(TEXT, init_from=tmp_path, variant="feedback", **few, **changes)
    actual = run.model
    assert {name: getattr(actual.config, name) for name in changes} == changes
    assert {part.p for part in actual.modules() if isinstance(part, nn.Dropout)} == {
        0.25
    }
    assert actual.layer_weights().tolist() == [0, 0, 0, 0, 1]
    assert not any(
        isinstance(part, nn.LayerNorm) for part in actual.body.memory.modules()
    )


# --- options have their effects ---


def test_d_ff_defaults_to_four_times_d_model() -> None:
    assert Config(5, d_model=12).d_ff == 48
    assert (
        LanguageModel(Config(5, d_model=12))
        .body.layers[0]
        .feed_forward.inner.out_features
        == 48
    )


def silent(
    part: nn.Module, attention: float = 0.0, feed_forward: float = 0.0
) -> nn.Module:
    """Let every layer add two constants to its input, and nothing else."""
    with torch.no_grad():
        for layer in part.layers:
            for linear, constant in (
                (layer.attention.output, attention),
                (layer.feed_forward.outer, feed_forward),
            ):
                linear.weight.zero_()
                linear.bias.fill_(constant)
    return part


def shares_of(actual: Tensor, values: list[float]) -> list[float]:
    """Return how often each value occurs; there must not be others."""
    close = torch.stack([(actual - value).abs() < 1e-9 for value in values])
    assert close.any(0).all()
    return close.flatten(1).double().mean(1).tolist()


@pytest.mark.parametrize(("variant", "backend"), CASES)
def test_dropout_is_applied_to_embeddings(
    variant: str, backend: str, native: None
) -> None:
    reader = model(variant, dropout=0.25).train()
    reader.backend = backend
    silent(reader.body)
    seen: list[Tensor] = []
    reader.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens = some_tokens(BATCH, 17)
    reader(tokens)
    kept = shares_of(seen[0] / reader.token_embedding(tokens), [0.0, 1 / 0.75])
    assert kept == pytest.approx([0.25, 0.75], abs=0.05)  # of 1,190 numbers


@pytest.mark.parametrize(("variant", "backend"), CASES)
def test_dropout_is_applied_to_both_outputs_of_a_layer(
    variant: str, backend: str, native: None
) -> None:
    reader = silent(
        body(variant, n_layers=1, dropout=0.5).train(),
        attention=1.0,
        feed_forward=10.0,
    )
    x = normal(64, 3, 14).detach()
    added = reader(x, backend=backend)[0] - x
    assert shares_of(added[:, 1:], [0, 2, 20, 22]) == pytest.approx(
        [0.25] * 4, abs=0.06
    )
    # without a memory there is no attention
    first = [0, 2, 20, 22] if variant == "parallel" else [0, 20]
    assert shares_of(added[:, 0], first) == pytest.approx(
        [1 / len(first)] * len(first), abs=0.08
    )


@pytest.mark.parametrize(("variant", "backend"), CASES)
def test_dropout_is_applied_to_attention_weights(
    variant: str, backend: str, native: None
) -> None:
    """With a single key, dropout of its weight makes the output of a head zero."""
    options: dict[str, Any] = {
        "n_layers": 1,
        "n_heads": 7,
        "memory": "embedding",
        "memory_norm": False,
    }
    reader = silent(body(variant, dropout=0.5, **options).train())
    layer = reader.layers[0]
    projection = layer.key_value if variant == "parallel" else reader.key_values[0]
    with torch.no_grad():
        projection.value.weight.copy_(torch.eye(14))
        layer.attention.output.weight.copy_(torch.eye(14))
    x = normal(64, 2, 14).detach()
    step = 0 if variant == "parallel" else 1
    value = layer.norm1(x[:, 0]) if variant == "parallel" else x[:, 0]
    added = (reader(x, backend=backend)[0] - x)[:, step]
    # Kept by dropout of the attention and of the output.
    shares = shares_of(added / value, [0.0, 4.0])
    assert shares == pytest.approx([0.75, 0.25], abs=0.06)
    silent_heads = (added.abs() < 1e-9).unflatten(-1, (7, 2)).all(-1).double().mean()
    # Otherwise it would be 0.25 squared.
    assert float(silent_heads) == pytest.approx(0.5 + 0.5 * 0.25, abs=0.08)


@pytest.mark.parametrize("variant", ["parallel", "feedback", "shared-kv"])
@pytest.mark.parametrize("relative", ["per-layer", "shared"])
def test_relative_terms_are_per_layer_or_shared(variant: str, relative: str) -> None:
    reader = model(variant, relative=relative)
    tables = [
        name
        for name, _ in reader.named_parameters()
        if name.endswith("key_embedding")
    ]
    assert len(tables) == (3 if relative == "per-layer" else 1)


@pytest.mark.parametrize("seed", [0, 7])
def test_seed_determines_weights_and_samples(seed: int) -> None:
    run = small_run(steps=1, lr=0.0, seed=seed, sample=20)
    torch.manual_seed(seed)
    expected = LanguageModel(run.settings.config, CharTokenizer(TEXT))
    for name, value in expected.state_dict().items():
        assert torch.equal(run.model.state_dict()[name], value), name
    (evaluation,) = run.evaluations
    assert evaluation["sample"] == run.model.generate("\n", 20, seed=seed)
    assert evaluation["sample"] != run.model.generate("\n", 20, seed=seed + 1)


def test_seed_determines_batches_and_dropout() -> None:
    """The initial weights are the same and do not change."""
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 2, "span": 5}
    initial = LanguageModel(
        Config(len(set(TEXT)), variant="parallel", **sizes), CharTokenizer(TEXT)
    )

    def losses(seed: int, dropout: float, **changes: Any) -> list[float]:
        few = {
            "preset": "tiny",
            "steps": 3,
            "sample": 0,
            "lr": 0.0,
            "progress": False,
        }
        run = train(
            TEXT, init_from=initial, seed=seed, dropout=dropout, **few | changes
        )
        return [metric["loss"] for metric in run.metrics if "loss" in metric]

    assert losses(1, 0.0) == losses(1, 0.0) != losses(2, 0.0)
    # With carry, the blocks do not depend on the seed.
    assert losses(1, 0.0, carry=True) == losses(2, 0.0, carry=True)
    assert losses(1, 0.5, carry=True) == losses(1, 0.5, carry=True)
    assert losses(1, 0.5, carry=True) != losses(2, 0.5, carry=True)


def test_samples_have_the_requested_length() -> None:
    lengths = [
        len(small_run(steps=1, sample=n).evaluations[0]["sample"]) for n in (0, 4, 9)
    ]
    assert lengths == [0, 5, 10]  # with the prompt


def test_checkpoints_are_saved_every_checkpoint_every_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    save = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        steps.append(Checkpoint.load(tmp_path).step)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    small_run(folder=tmp_path, steps=7, checkpoint_every=3)
    assert steps == [0, 0, 0, 3, 3, 3, 6]


def test_evaluate_uses_the_batch_size() -> None:
    reader = LanguageModel(Config(5, d_model=6, n_heads=2, n_layers=1))
    sizes: list[int] = []
    reader.token_embedding.register_forward_pre_hook(
        lambda _, inputs: sizes.append(len(inputs[0]))
    )
    windows = torch.randint(5, (7, 6), generator=torch.Generator().manual_seed(0))
    evaluate(reader, windows, batch_size=3)
    assert sizes == [3, 3, 1]
