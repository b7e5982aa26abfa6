"""A run from its settings to its files: `train` starts one, `resume` goes on with one."""

import contextlib
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fbt._checks import (
    check_bool,
    check_choice,
    check_instance,
    check_path,
    describe,
    shorten,
)
from fbt._files import quoted_path, read_file, sha256
from fbt._text import one_line
from fbt.config import Config
from fbt.data import CharTokenizer, load_tiny_shakespeare
from fbt.initialisation import initialising
from fbt.language_model import (
    WEIGHTS_FILE,
    LanguageModel,
    config_from_parallel,
    model_bytes,
)
from fbt.training.backend import choose_backend, using_backend
from fbt.training.checkpoint import CHECKPOINT_FILE, Best, Checkpoint, Settings
from fbt.training.events import event_writer
from fbt.training.folder import RunFolder
from fbt.training.loop import Interrupt, Trainer
from fbt.training.metrics import Metric
from fbt.training.processes import Processes, join_processes
from fbt.training.recipe import PRESETS, Recipe

LOSS_FIGURE = "loss.svg"
LONGEST_NAME = 250  # characters; a system may refuse to look for a longer one
TINY_SHAKESPEARE = "tiny-shakespeare"


@dataclass(repr=False)
class Run:
    """A finished or interrupted training run.

    Attributes:
        model: the trained model, in evaluation mode. A finished run returns the
            weights with the lowest validation loss among its evaluations, which need
            not be the last weights; an interrupted run returns the weights of its
            last step.
        settings: what it was trained with.
        metrics: one dict a step with "step", "loss" (training, nats a character),
            "grad_norm" (before clipping), "lr", "length" (characters a sequence) and
            "seconds" since the start; and one an evaluation with "step", "val_loss",
            the generated "sample", the "layer_weights" [L + 1] of a feedback model,
            and "seconds".
        finished: False where the run was interrupted.
        folder: where the files are, or None. `model.safetensors` holds the weights of
            `model`, and the checkpoint the weights of the last step.
        best: the best evaluation so far, or None before the first: its `step`, its
            `val_loss` in nats per character, and the `weights`, for
            `model.load_state_dict`.
        backend: the backend that computed the run. If `settings.recipe.backend` is
            "auto", this is what it stood for.
    """

    model: LanguageModel
    settings: Settings
    metrics: list[Metric]
    finished: bool
    folder: Path | None
    best: Best | None = None
    backend: str = "auto"

    @property
    def step(self) -> int:
        """How many steps were taken."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def evaluations(self) -> list[Metric]:
        """The metrics of the evaluations."""
        return [metric for metric in self.metrics if "val_loss" in metric]

    @property
    def val_loss(self) -> float:
        """The validation loss of `model`, or the last one if the run was interrupted.

        It is in nats per character. The loss of the last evaluation is in
        `evaluations[-1]`.

        Raises:
            ValueError: the run was interrupted before its first evaluation.
        """
        if self.finished and self.best is not None:
            return self.best.val_loss
        evaluations = self.evaluations
        if not evaluations:
            raise ValueError(
                f"no evaluation yet: the run was stopped after step {self.step}"
            )
        return float(evaluations[-1]["val_loss"])

    @property
    def when(self) -> str:
        """A phrase that says which step `val_loss` belongs to; empty if it is the last."""
        if not self.finished or self.best is None or self.best.step == self.step:
            return ""
        last = self.evaluations[-1]["val_loss"]
        return f" at step {self.best.step} ({last:.4f} at step {self.step})"

    def __repr__(self) -> str:
        parts = [
            self.settings.config.variant,
            f"{self.step} of {self.settings.recipe.steps} steps",
        ]
        if self.evaluations:
            parts.append(f"validation loss {self.val_loss:.4f}{self.when}")
        if self.folder is not None:
            parts.append(f"in {self.folder}")
        return f"Run({', '.join(parts)})"


@contextlib.contextmanager
def _own_modes() -> Iterator[None]:
    """A context, or a decorator, without the caller's no_grad, inference mode and default device.

    Autocast and the default dtype apply to a run.
    """
    device = torch.get_default_device().type != "cpu" and torch.device("cpu")
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        device or contextlib.nullcontext(),
    ):
        yield


@_own_modes()
def train(
    text: str | Path | None = None,
    *,
    preset: str = "small",
    variant: str = "shared-kv",
    folder: str | Path | None = None,
    resume: bool = False,
    init_from: str | Path | LanguageModel | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    log: str | None = None,
    **changes: Any,
) -> Run:
    """Train a language model on a text, nine tenths of it for training and the last tenth for validation.

    Called in every process that torchrun has started, it makes one run of them: each
    takes its share of every batch, and the first one alone writes files, generates
    samples and shows progress. Where the caller has initialised torch's default
    process group, the processes of that make one run.

    Whatever stops a run, a kill included, leaves the last checkpoint in `folder`
    whole; an error has a note that says how to go on.

    Args:
        text: what to learn: the text itself, or the Path of a file in UTF-8; None
            loads Tiny Shakespeare.
        preset: "tiny" (half a minute), "small" (nanoGPT's CPU setting) or "base"; see
            `fbt.training.recipe.PRESETS`.
        variant: "parallel", "feedback" or "shared-kv".
        folder: where checkpoints, metrics, the loss curve and the final weights go;
            None writes nothing.
        resume: continue the run in `folder` where its last checkpoint left it: bit
            for bit in one process on the same machine, software and number of
            threads, to rounding in several (the API page says more under "The same
            numbers again"). A folder without a checkpoint is started afresh.
        init_from: start from a parallel model, given or saved in a folder, whose
            sizes then replace the preset's; see `LanguageModel.from_parallel`. It
            must know every character of the text.
        device: where to compute; None takes a CUDA GPU if there is one.
        progress: show a progress bar, and a sample of text at each evaluation, on
            stderr.
        log: "tensorboard" also writes event files into `folder`.
        **changes: fields of `Recipe` and `Config` that differ from the preset:
            steps=500, dropout=0.1.

    Returns:
        The `Run`. An interrupt (Ctrl-C, or the stop button of a notebook) ends the
        run after the step under way, saves a checkpoint and returns what there is.

    Raises:
        TypeError, ValueError: a setting is unknown or out of range, the text is too
            short, `resume` meets other settings, or the processes of a run differ in
            settings, text or checkpoint.
        FileExistsError: the folder holds a run and `resume` is False, or weights and
            no run, or another process has just ended one.
        OSError: a file cannot be read, or the metrics of the run are gone; the folder
            cannot be written, which is said before the first step, or no longer (the
            disk is full, the folder was moved away); or another process trains into
            it.
        ConnectionError: another process of the run has ended.
        ImportError: `log` asks for tensorboard, and it is not installed.
        FloatingPointError: a loss, the gradient or a weight is no longer finite.
    """
    check_choice("preset", preset, tuple(PRESETS))
    check_instance("init_from", init_from, str, Path, LanguageModel, type(None))
    if isinstance(init_from, str | Path):
        check_path("init_from", init_from)
    check_bool("resume", resume)
    _check_arguments(text, folder, device, progress, log)
    place = None if folder is None else Path(folder)
    if resume and place is None:
        raise ValueError("resume needs the folder of a run, got folder=None")
    run_folder = None if place is None else RunFolder(place)
    found = place is not None and (place / CHECKPOINT_FILE).exists()
    if found and not resume:
        raise FileExistsError(
            f"{folder} holds a run already: resume that one, or give another folder"
        )
    if place is not None and not found and (place / WEIGHTS_FILE).exists():
        raise FileExistsError(
            f"{folder} holds weights, which a new run would replace: give another folder"
        )
    with join_processes(device) as processes:
        words, source = processes.first_then_others(lambda: _read(text))
        start = (
            LanguageModel.from_pretrained(init_from)
            if isinstance(init_from, str | Path)
            else init_from
        )
        config, recipe = _resolve(preset, variant, changes, words, start)
        origin = (
            None
            if init_from is None
            else "a model"
            if init_from is start
            else str(init_from)
        )
        settings = Settings(config, recipe, source, sha256(words.encode()), origin)
        checkpoint = Checkpoint.load(place) if place is not None and found else None
        if checkpoint is not None:
            differences = settings.differences(checkpoint.settings)
            if differences:
                raise ValueError(
                    f"the run in {folder} has other settings (given, stored): {'; '.join(differences)}"
                )
        return _run(
            settings, words, start, checkpoint, run_folder, processes, progress, log
        )


@_own_modes()
def resume(
    folder: str | Path,
    text: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    progress: bool = True,
    log: str | None = None,
) -> Run:
    """Continue a run with its own settings, bit for bit as in `train`.

    Args:
        folder: where the run is.
        text: the text of the run or the Path of its file; None reads it where the run
            had it from.
        device: where to compute; None takes a CUDA GPU if there is one.
        progress: show a progress bar, and a sample of text at each evaluation, on
            stderr.
        log: "tensorboard" also writes event files into `folder`.

    Returns:
        The `Run`, as from `train`.

    Raises:
        FileNotFoundError: the folder holds no run or no metrics of it, or the text is
            no longer where it was.
        ValueError: the checkpoint is damaged, or the text is not the one of the run.
        OSError, ConnectionError, ImportError, FloatingPointError: as in `train`.
    """
    check_instance("folder", folder, str, Path)
    _check_arguments(text, folder, device, progress, log)
    run_folder = RunFolder(Path(folder))
    checkpoint = Checkpoint.load(run_folder.path)
    settings = checkpoint.settings
    if text is None and settings.data is None:
        raise ValueError(
            f"the run in {folder} was given its text in Python: give the same text again"
        )
    if text is None and settings.data != TINY_SHAKESPEARE:
        text = Path(str(settings.data))
        # a stranger's checkpoint may name something that never ends
        if not text.is_file():
            raise FileNotFoundError(
                f"the text of the run in {quoted_path(folder)} is no longer in {quoted_path(text)}: say where it is"
            )
    with join_processes(device) as processes:
        words, source = processes.first_then_others(lambda: _read(text))
        if sha256(words.encode()) != settings.data_sha256:
            raise ValueError(
                f"{source or 'the text given'} is not what the run in {folder} began with"
            )
        return _run(
            settings, words, None, checkpoint, run_folder, processes, progress, log
        )


def _check_arguments(
    text: str | Path | None,
    folder: str | Path | None,
    device: str | torch.device | None,
    progress: bool,
    log: str | None,
) -> None:
    """Raise unless the arguments that `train` and `resume` share are of their types."""
    if not isinstance(text, str | Path | None):
        raise TypeError(
            f"text must be a str, a Path or None, got {describe(text)}: pass the Path of a file, "
            "bytes decoded, and lines joined"
        )
    if isinstance(text, Path):
        check_path("text", text)
    if folder is not None:
        check_path("folder", folder)
    check_instance("device", device, str, torch.device, type(None))
    check_bool("progress", progress)
    if log is not None:
        check_choice("log", log, ("tensorboard",))


def _read(text: str | Path | None) -> tuple[str, str | None]:
    """A text, and where it came from as `Settings.data` says it."""
    if text is None:
        return load_tiny_shakespeare(), TINY_SHAKESPEARE
    if isinstance(text, str):
        if "\n" not in text and len(text) < LONGEST_NAME and Path(text).is_file():
            raise ValueError(
                f"text must be the text itself, got the name of a file, {shorten(text)}: pass its Path"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = f"got {text[error.start]!r} at position {error.start}"
            raise ValueError(
                f"text must have no halves of characters, {found}"
            ) from error
        return text, None
    source = str(text.resolve())
    try:
        # A byte order mark is no character to learn, and all line ends are alike.
        return io.TextIOWrapper(
            io.BytesIO(read_file(text)), encoding="utf-8-sig"
        ).read(), source
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(
            f"{quoted_path(source)} must be UTF-8, got byte {byte:#04x} at position {error.start}"
        ) from error


def _resolve(
    preset: str,
    variant: str,
    changes: dict[str, Any],
    text: str,
    start: LanguageModel | None,
) -> tuple[Config, Recipe]:
    """The preset with the changes applied; the shape of the model comes from `start` where there is one."""
    model_names = {f.name for f in fields(Config)} - {"vocab_size", "variant"}
    recipe_names = {f.name for f in fields(Recipe)}
    unknown = sorted(set(changes) - model_names - recipe_names)
    if unknown:
        raise ValueError(
            f"unknown settings {unknown}; there are {sorted(model_names | recipe_names)}"
        )
    model = {k: v for k, v in changes.items() if k in model_names}
    recipe = Recipe(
        **PRESETS[preset].recipe
        | {k: v for k, v in changes.items() if k in recipe_names}
    )
    if start is None:
        vocab_size = CharTokenizer(text).vocab_size
        return Config(
            vocab_size, variant=variant, **PRESETS[preset].model | model
        ), recipe
    check_instance("init_from", start, LanguageModel)
    return config_from_parallel(start.config, variant, **model), recipe


def _initial_model(
    settings: Settings, text: str, start: LanguageModel | None
) -> LanguageModel:
    config = settings.config
    if start is None:
        with initialising(settings.recipe.seed):
            return LanguageModel(config, CharTokenizer(text))
    changes = {
        "dropout": config.dropout,
        "memory": config.memory,
        "memory_norm": config.memory_norm,
    }
    return LanguageModel.from_parallel(start, config.variant, **changes)


def _run(
    settings: Settings,
    text: str,
    start: LanguageModel | None,
    checkpoint: Checkpoint | None,
    folder: RunFolder | None,
    processes: Processes,
    progress: bool,
    log: str | None,
) -> Run:
    if log is not None and folder is None:
        raise ValueError(f"log={log!r} needs a folder to write to, got folder=None")
    place = None if folder is None else folder.path
    events = event_writer(place, log if processes.is_first else None)
    with Interrupt() as interrupt:
        if checkpoint is None:
            model = _initial_model(settings, text, start)
        else:
            tokenizer = CharTokenizer.from_vocabulary(checkpoint.vocabulary)
            with initialising():
                model = LanguageModel(settings.config, tokenizer)
        trainer = Trainer(settings, text, model, folder, processes)
        if checkpoint is not None:
            trainer.restore(checkpoint)
            checkpoint.tensors.clear()  # which would be kept in memory to the end
        recorded = None if checkpoint is None else checkpoint.backend
        backend = choose_backend(model, settings.recipe.backend, recorded)
        begun = "none" if checkpoint is None else f"of step {checkpoint.step}"
        processes.agree(
            f"backend {backend!r}, checkpoint {begun}, settings {settings.compared()}"
        )
        # before the first one writes, all have seen what the folder holds
        processes.wait()
        writes = folder if processes.is_first else None
        with (
            using_backend(model, backend),
            writes.held() if writes is not None else contextlib.nullcontext(),
            _explaining(trainer),
            events(trainer.step) as watch,
        ):
            trainer.save()  # what is wrong with the folder shows now, not in an hour
            finished = trainer.run(interrupt, watch, progress and processes.is_first)
            if finished and trainer.best is not None:
                model.load_state_dict(trainer.best.weights)
            run = Run(
                model.eval(),
                settings,
                trainer.metrics,
                finished,
                place,
                trainer.best,
                backend,
            )
            if writes is not None:
                if finished:
                    _save_results(run, writes)
                writes.check()  # the run that is returned says where its files are
    processes.wait()  # where this returns, the files are there
    return run


@contextlib.contextmanager
def _explaining(trainer: Trainer) -> Iterator[None]:
    """Add to an error what is left of the run, and how to go on; the first process knows, which saves."""
    try:
        yield
    except Exception as error:
        if isinstance(error, FloatingPointError):
            with contextlib.suppress(OSError):
                # up to there, for whoever asks how it came to that
                trainer.save_metrics()
        if (
            trainer.processes.is_first
            and trainer.folder is not None
            and trainer.saved is not None
        ):
            error.add_note(trainer.folder.advice(error, trainer.saved))
        raise


def _save_results(run: Run, folder: RunFolder) -> None:
    """Write the final weights and the loss curve."""
    folder.write(WEIGHTS_FILE, model_bytes(run.model, folder.path / WEIGHTS_FILE))
    _save_loss_curve(run, folder)


def _save_loss_curve(run: Run, folder: RunFolder) -> None:
    try:
        from fbt.views import figures

        figure = figures.loss_curves({run.settings.config.variant: run.metrics})
    except ImportError:
        print(f"no {LOSS_FIGURE}: it needs the package matplotlib", file=sys.stderr)
        return
    # whatever matplotlib's settings lead to, the run has ended well
    except Exception as error:
        print(f"no {LOSS_FIGURE}: {one_line(str(error))}", file=sys.stderr)
        return
    folder.write(LOSS_FIGURE, figures.svg_of(figure))
