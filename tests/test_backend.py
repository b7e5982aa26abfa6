"""The backend of a run is chosen once, recorded, and kept when the run is resumed."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_files import build_file, parse_file
from small_runs import TEXT, assert_same_run, small_run, untimed
from torch import nn

import fbt
from fbt import native
from fbt.pretrained import CHECKPOINT_FILE
from fbt.training import Run, resume
from fbt.training.backend import choose_backend, resolve_auto, using_backend
from fbt.training.checkpoint import Checkpoint
from fbt.training.loop import Trainer

STEP = 6  # the step after which a run is stopped


@pytest.fixture(scope="module")
def library() -> Path:
    """Return the path of the native library of this machine."""
    return fbt.build_native()


class Machine:
    """A machine, in this process, on which the native library exists or not."""

    def __init__(self, cache: Path, library: Path, patch: pytest.MonkeyPatch) -> None:
        self.cache, self.library, self.patch = cache, library, patch

    def enter(self, *, built: bool) -> None:
        """Let the package look for the library on this machine."""
        self.patch.setenv("FBT_CACHE", str(self.cache))
        if built:
            folder = self.cache / "native"
            folder.mkdir(parents=True)
            shutil.copy(self.library, folder / self.library.name)
        assert native.is_built() == built


@pytest.fixture
def machines(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Machine]:
    """Return two machines."""
    return [Machine(tmp_path / name, library, monkeypatch) for name in ("a", "b")]


def stopped_run(folder: Path, **changes: Any) -> None:
    """Start a run whose process ends in the step after STEP."""
    update = Trainer._update

    def updating(self: Trainer) -> dict[str, Any]:
        if self.step == STEP:
            raise KeyboardInterrupt
        return update(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_update", updating)
        small_run(folder=folder, **changes)
    assert Checkpoint.load(folder).step == STEP


def losses(run: Run) -> list[float]:
    return [metric["loss"] for metric in run.metrics if "loss" in metric]


def test_run_keeps_its_backend_when_the_library_is_built_later(
    machines: list[Machine], tmp_path: Path
) -> None:
    machines[0].enter(built=False)
    whole = small_run()
    stopped_run(tmp_path / "run")
    machines[1].enter(built=True)
    assert losses(small_run()) != losses(whole)  # the native library rounds otherwise
    run = resume(tmp_path / "run", TEXT, progress=False)
    assert_same_run(run, whole)
    assert Checkpoint.load(tmp_path / "run").backend == "sequence"
    assert (run.backend, whole.backend, run.model.backend) == (
        "sequence",
        "sequence",
        "auto",
    )


@pytest.mark.parametrize("setting", ["auto", "native"])
def test_run_continues_with_a_warning_when_the_library_disappears(
    setting: str, machines: list[Machine], tmp_path: Path
) -> None:
    machines[0].enter(built=True)
    whole = small_run()
    stopped_run(tmp_path / "run", backend=setting)
    assert Checkpoint.load(tmp_path / "run").backend == "native"
    machines[1].enter(built=False)
    with pytest.warns(RuntimeWarning) as caught:
        run = resume(tmp_path / "run", TEXT, progress=False)
    assert [Path(warning.filename) for warning in caught] == [Path(__file__)]
    message = str(caught[0].message)
    assert message.startswith(
        "the run used backend='native' so far and continues with 'sequence', so its "
        'losses may differ in the last digits: backend="native" is not built here'
    )
    assert run.finished
    assert losses(run)[:STEP] == losses(whole)[:STEP]
    weights = whole.model.head.weight
    assert not torch.equal(run.model.head.weight, weights)  # rounded otherwise
    assert losses(run) == pytest.approx(losses(whole), rel=1e-4)
    assert run.backend == Checkpoint.load(tmp_path / "run").backend == "sequence"
    # The checkpoint now records the other backend: nothing is left to warn about.
    assert_same_run(resume(tmp_path / "run", TEXT, progress=False), run)


def test_finished_run_keeps_its_backend_without_the_library(
    machines: list[Machine], tmp_path: Path
) -> None:
    machines[0].enter(built=True)
    whole = small_run(folder=tmp_path / "run")
    machines[1].enter(built=False)
    run = resume(tmp_path / "run", TEXT, progress=False)
    assert_same_run(run, whole)
    assert run.backend == Checkpoint.load(tmp_path / "run").backend == "native"


def test_run_keeps_its_backend_when_the_library_is_built_meanwhile(
    machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    machines[0].enter(built=False)
    whole, update = small_run(), Trainer._update

    def updating(self: Trainer) -> dict[str, Any]:
        if self.step == STEP:
            machines[1].enter(built=True)
        return update(self)

    monkeypatch.setattr(Trainer, "_update", updating)
    assert_same_run(small_run(), whole)
    assert native.is_built()


@pytest.mark.parametrize(
    ("variant", "backend"),
    [
        ("parallel", "reference"),
        ("feedback", "reference"),
        ("feedback", "stack"),
        ("shared-kv", "reference"),
        ("shared-kv", "stack"),
        ("shared-kv", "sequence"),
        ("shared-kv", "native"),
    ],
)
def test_every_step_evaluation_and_sample_uses_the_backend_of_the_run(
    variant: str, backend: str, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, forward = set(), fbt.LanguageModel.forward

    def noting(self: fbt.LanguageModel, *args: Any, **kwargs: Any) -> Any:
        used.add(self.backend)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(fbt.LanguageModel, "forward", noting)
    run = small_run(variant=variant, backend=backend)
    assert used == {run.backend} == {backend}
    assert run.settings.recipe.backend == backend
    assert run.model.backend == "auto"


@pytest.mark.parametrize(
    ("variant", "backend"),
    [("parallel", "reference"), ("feedback", "stack"), ("shared-kv", "native")],
)
def test_auto_is_resolved_and_recorded(
    variant: str, backend: str, library: Path, tmp_path: Path
) -> None:
    run = small_run(variant=variant, folder=tmp_path)
    assert (run.settings.recipe.backend, run.backend) == ("auto", backend)
    assert Checkpoint.load(tmp_path).backend == backend
    named = small_run(variant=variant, backend=backend)
    assert untimed(run.metrics) == untimed(named.metrics)


def test_auto_depends_on_dtype_and_hooks(library: Path) -> None:
    model = fbt.LanguageModel(fbt.Config(5, d_model=6, n_heads=2, n_layers=1))
    assert resolve_auto(model) == "native"
    assert resolve_auto(model.bfloat16()) == "sequence"
    model.body.layers[0].register_forward_hook(lambda *_: None)
    assert resolve_auto(model) == "stack"
    with pytest.warns(RuntimeWarning, match=r"continues with 'stack'.* layers\.0"):
        assert choose_backend(model, "auto", "sequence") == "stack"


def test_backend_that_is_missing_is_refused_before_anything_is_written(
    machines: list[Machine], tmp_path: Path
) -> None:
    machines[0].enter(built=False)
    message = (
        "backend='native' cannot be used for this run: .* call fbt.build_native()"
    )
    with pytest.raises(ValueError, match=message):
        small_run(folder=tmp_path / "run", backend="native")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variant", "backend", "allowed"),
    [
        ("parallel", "native", "'auto', 'reference'"),
        ("feedback", "sequence", "'auto', 'reference', 'stack'"),
        (
            "shared-kv",
            "cuda",
            "'auto', 'reference', 'stack', 'sequence', 'native', 'triton'",
        ),
    ],
)
def test_backend_of_another_variant_is_refused(
    variant: str, backend: str, allowed: str
) -> None:
    message = f"must be one of {allowed}, got {backend!r}"
    with pytest.raises(ValueError, match=message):
        small_run(variant=variant, backend=backend)


def test_settings_report_another_backend(tmp_path: Path) -> None:
    small_run(folder=tmp_path, steps=1, backend="sequence")
    message = r"other settings \(given, stored\): backend: 'stack', 'sequence'$"
    with pytest.raises(ValueError, match=message):
        small_run(folder=tmp_path, steps=1, backend="stack", resume=True)


def test_checkpoint_without_a_backend_is_resumed_with_the_automatic_one(
    machines: list[Machine], tmp_path: Path
) -> None:
    """Checkpoints of earlier versions contain neither the setting nor the record."""
    machines[0].enter(built=False)
    whole, folder = small_run(), tmp_path / "run"
    stopped_run(folder)
    path = folder / CHECKPOINT_FILE
    header, numbers = parse_file(path.read_bytes())
    metadata = header["__metadata__"]
    assert metadata.pop("backend") == "sequence"
    metadata["settings"] = metadata["settings"].replace(', "backend": "auto"', "")
    path.write_bytes(build_file(header, numbers))
    assert Checkpoint.load(folder).backend is None
    assert_same_run(resume(folder, TEXT, progress=False), whole)
    assert Checkpoint.load(folder).backend == "sequence"


@pytest.mark.parametrize("backend", ["auto", "native", "", "Stack"])
def test_checkpoint_with_a_backend_of_another_variant_is_refused(
    backend: str, tmp_path: Path
) -> None:
    small_run(folder=tmp_path, steps=1, variant="feedback")
    path = tmp_path / CHECKPOINT_FILE
    header, numbers = parse_file(path.read_bytes())
    header["__metadata__"]["backend"] = backend
    path.write_bytes(build_file(header, numbers))
    message = f"backend of a 'feedback' model must be one of .*, got {backend!r}"
    with pytest.raises(ValueError, match=message):
        Checkpoint.load(tmp_path)


def test_backend_of_a_model_is_restored_after_an_error() -> None:
    model = fbt.LanguageModel(fbt.Config(5, d_model=6, n_heads=2, n_layers=1))
    model.backend = "stack"
    with pytest.raises(KeyError), using_backend(model, "reference", False):
        assert model.backend == "reference"
        raise KeyError
    assert model.backend == "stack"


def test_choosing_a_backend_changes_neither_model_nor_random_state() -> None:
    model = fbt.LanguageModel(
        fbt.Config(5, d_model=6, n_heads=2, n_layers=1, dropout=0.5)
    )
    before, state = model.state_dict(), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backend(model, "sequence", None) == "sequence"
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and model.backend == "auto"
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(
        part.training for part in model.modules() if isinstance(part, nn.Module)
    )
