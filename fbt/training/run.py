"""Start a run with `train`, or continue one with `resume`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from fbt._checks import (
    check_bool,
    check_choice,
    check_instance,
    check_path,
    describe,
)
from fbt._files import quoted_path, sha256
from fbt.config import Config
from fbt.initialisation import initialising
from fbt.language_model import LanguageModel
from fbt.pretrained import CHECKPOINT_FILE, WEIGHTS_FILE
from fbt.tokenizer import CharTokenizer
from fbt.training.backend import advice_on_speed, choose_backend, using_backend
from fbt.training.checkpoint import Checkpoint
from fbt.training.events import event_writer
from fbt.training.folder import RunFolder
from fbt.training.interrupt import Interrupt
from fbt.training.loop import Trainer
from fbt.training.processes import Processes, join_processes
from fbt.training.progress import tqdm
from fbt.training.recipe import PRESETS, Recipe
from fbt.training.result import Run, save_results
from fbt.training.settings import Settings
from fbt.training.text import TINY_SHAKESPEARE, read_text
from fbt.warm_start import config_from_parallel


@contextmanager
def _own_modes() -> Iterator[None]:
    """Turn off the caller's no_grad, inference mode and default device.

    The caller's autocast and default dtype apply to a run.
    """
    is_cpu = torch.get_default_device().type == "cpu"
    device = nullcontext() if is_cpu else torch.device("cpu")
    with torch.inference_mode(False), torch.enable_grad(), device:
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
    """Train a language model on a text.

    The first nine tenths of the text are for training, the last tenth is for
    validation.

    If torchrun has started several processes, or the caller has initialised torch's
    default process group, they train together: each computes its share of every
    batch. Only the first one writes files, generates samples and shows progress.

    Whatever ends a run, even a kill, the last checkpoint in `folder` stays intact.
    Errors have a note that tells how to continue.

    Args:
        text: the text to learn, or the Path of a file in UTF-8; None loads Tiny
            Shakespeare.
        preset: "tiny" (half a minute), "small" (nanoGPT's CPU setting) or "base"; see
            `fbt.training.recipe.PRESETS`.
        variant: "parallel", "feedback" or "shared-kv".
        folder: the folder for checkpoints, metrics, the loss curve and the final
            weights; None writes nothing.
        resume: continue the run in `folder` from its last checkpoint. The numbers are
            the same to the last bit in one process on the same machine, with the same
            software, number of threads and backend. Otherwise they agree up to
            rounding; see "The same numbers again" on the API page. If there is no
            checkpoint, a new run starts.
        init_from: initialise from a parallel model, or from the folder of one. Its
            sizes replace those of the preset; see `LanguageModel.from_parallel`. Its
            vocabulary must contain every character of the text.
        device: the device to train on; None uses a CUDA GPU if there is one.
        progress: show a progress bar, and a sample of text at each evaluation, on
            stderr.
        log: "tensorboard" also writes event files into `folder`.
        **changes: fields of `Recipe` and `Config` that replace those of the preset,
            such as steps=500 or dropout=0.1.

    Returns:
        The `Run`. An interrupt (Ctrl-C, or the stop button of a notebook) ends it
        after the current step and saves a checkpoint.

    Raises:
        TypeError, ValueError: if a setting is unknown or out of range, if the text is
            too short, if `resume` finds a run with other settings, if the backend
            cannot be used here, or if the processes differ in settings, text, backend
            or checkpoint.
        FileExistsError: if the folder contains a run and `resume` is False, if it
            contains weights without a run, or if another process has just finished a
            run there.
        OSError: if a file cannot be read, if the metrics of the run are missing, if
            another process trains into the folder, or if the folder cannot be
            written. The latter is checked before the first step; later the disk may
            be full or the folder may have been moved.
        ConnectionError: if another process of the run has ended.
        ImportError: if `log` is "tensorboard" and it is not installed.
        FloatingPointError: if a loss, the gradient or a weight is not finite.
    """
    check_choice("preset", preset, tuple(PRESETS))
    check_instance("init_from", init_from, str, Path, LanguageModel, type(None))
    if isinstance(init_from, str | Path):
        check_path("init_from", init_from)
    check_bool("resume", resume)
    _check_arguments(text, folder, device, progress, log)
    path = None if folder is None else Path(folder)
    if resume and path is None:
        raise ValueError("resume needs the folder of a run, got folder=None")
    run_folder = None if path is None else RunFolder(path)
    has_run = path is not None and (path / CHECKPOINT_FILE).exists()
    if has_run and not resume:
        raise FileExistsError(
            f"{folder} already contains a run. Pass resume=True to continue it, or "
            "choose another folder"
        )
    if path is not None and not has_run and (path / WEIGHTS_FILE).exists():
        raise FileExistsError(
            f"{folder} contains weights, which a new run would replace: choose "
            "another folder"
        )
    with join_processes(device) as processes:
        content, source = processes.first_then_others(lambda: read_text(text))
        origin = None if init_from is None else "a model"
        if isinstance(init_from, str | Path):
            origin = str(init_from)
            init_from = LanguageModel.from_pretrained(init_from)
        config, recipe = _resolve(preset, variant, changes, content, init_from)
        settings = Settings(config, recipe, source, sha256(content.encode()), origin)
        checkpoint = Checkpoint.load(path) if path is not None and has_run else None
        if checkpoint is not None:
            differences = settings.differences(checkpoint.settings)
            if differences:
                raise ValueError(
                    f"the run in {folder} has other settings (given, stored): "
                    f"{'; '.join(differences)}"
                )
        return _run(
            settings,
            content,
            init_from,
            checkpoint,
            run_folder,
            processes,
            progress,
            log,
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
    """Continue a run with its own settings; see `resume` in `train`.

    Args:
        folder: the folder of the run.
        text: the text of the run, or the Path of its file; None reads it from where
            the run read it.
        device: the device to train on; None uses a CUDA GPU if there is one.
        progress: show a progress bar, and a sample of text at each evaluation, on
            stderr.
        log: "tensorboard" also writes event files into `folder`.

    Returns:
        The `Run`, as from `train`.

    Raises:
        FileNotFoundError: if the folder does not contain a checkpoint and metrics, or
            if the text has been moved.
        ValueError: if the checkpoint is damaged, or if the text has changed.
        OSError, ConnectionError, ImportError, FloatingPointError: as in `train`.
    """
    check_instance("folder", folder, str, Path)
    _check_arguments(text, folder, device, progress, log)
    run_folder = RunFolder(Path(folder))
    checkpoint = Checkpoint.load(run_folder.path)
    settings = checkpoint.settings
    if text is None and settings.data is None:
        raise ValueError(
            f"the text of the run in {folder} was passed in Python: pass it again"
        )
    if text is None and settings.data != TINY_SHAKESPEARE:
        text = Path(str(settings.data))
        # A foreign checkpoint may name a device, which could be read for ever.
        if not text.is_file():
            raise FileNotFoundError(
                f"{quoted_path(text)}, the text of the run in {quoted_path(folder)}, "
                "is not a file: pass its new path"
            )
    with join_processes(device) as processes:
        content, source = processes.first_then_others(lambda: read_text(text))
        if sha256(content.encode()) != settings.data_sha256:
            raise ValueError(
                f"{source or 'the text'} is not the text that the run in {folder} "
                "was trained on"
            )
        return _run(
            settings, content, None, checkpoint, run_folder, processes, progress, log
        )


def _check_arguments(
    text: str | Path | None,
    folder: str | Path | None,
    device: str | torch.device | None,
    progress: bool,
    log: str | None,
) -> None:
    """Check the arguments that `train` and `resume` share."""
    if not isinstance(text, str | Path | None):
        raise TypeError(
            f"text must be a str, a Path or None, got {describe(text)}: pass the "
            "Path of a file, decode bytes, join lines"
        )
    if isinstance(text, Path):
        check_path("text", text)
    if folder is not None:
        check_path("folder", folder)
    check_instance("device", device, str, torch.device, type(None))
    check_bool("progress", progress)
    if log is not None:
        check_choice("log", log, ("tensorboard",))


def _resolve(
    preset: str,
    variant: str,
    changes: dict[str, Any],
    text: str,
    initial: LanguageModel | None,
) -> tuple[Config, Recipe]:
    """Return the preset with the changes, and with the sizes of an initial model."""
    model_names = {f.name for f in fields(Config)} - {"vocab_size", "variant"}
    recipe_names = {f.name for f in fields(Recipe)}
    unknown = sorted(set(changes) - model_names - recipe_names)
    if unknown:
        raise ValueError(
            f"unknown settings {unknown}; allowed are "
            f"{sorted(model_names | recipe_names)}"
        )
    model = {k: v for k, v in changes.items() if k in model_names}
    recipe = Recipe(
        **PRESETS[preset].recipe
        | {k: v for k, v in changes.items() if k in recipe_names}
    )
    if initial is None:
        vocab_size = CharTokenizer(text).vocab_size
        return Config(
            vocab_size, variant=variant, **PRESETS[preset].model | model
        ), recipe
    check_instance("init_from", initial, LanguageModel)
    return config_from_parallel(initial.config, variant, **model), recipe


def _initial_model(
    settings: Settings, text: str, initial: LanguageModel | None
) -> LanguageModel:
    config = settings.config
    if initial is None:
        with initialising(settings.recipe.seed):
            return LanguageModel(config, CharTokenizer(text))
    changes = {
        "dropout": config.dropout,
        "memory": config.memory,
        "memory_norm": config.memory_norm,
    }
    return LanguageModel.from_parallel(initial, config.variant, **changes)


def _run(
    settings: Settings,
    text: str,
    initial: LanguageModel | None,
    checkpoint: Checkpoint | None,
    folder: RunFolder | None,
    processes: Processes,
    progress: bool,
    log: str | None,
) -> Run:
    if log is not None and folder is None:
        raise ValueError(f"log={log!r} needs a folder to write to, got folder=None")
    path = None if folder is None else folder.path
    events = event_writer(path, log if processes.is_first else None)
    with Interrupt() as interrupt:
        if checkpoint is None:
            model = _initial_model(settings, text, initial)
        else:
            tokenizer = CharTokenizer.from_vocabulary(checkpoint.vocabulary)
            with initialising():
                model = LanguageModel(settings.config, tokenizer)
        trainer = Trainer(settings, text, model, folder, processes)
        if checkpoint is not None:
            trainer.restore(checkpoint)
            checkpoint.tensors.clear()  # free the memory
        backend = None if checkpoint is None else checkpoint.backend
        if backend is None or not trainer.finished:
            backend = choose_backend(model, settings.recipe.backend, backend)
        begun = "none" if checkpoint is None else f"of step {checkpoint.step}"
        processes.agree(
            f"backend {backend!r}, checkpoint {begun}, settings {settings.compared()}"
        )
        # All processes have read the folder before the first one writes into it.
        processes.wait()
        own_folder = folder if processes.is_first else None
        with (
            using_backend(model, backend),
            own_folder.locked() if own_folder is not None else nullcontext(),
            _adding_advice(trainer),
            events(trainer.step) as write_metric,
        ):
            trainer.save()  # fail now rather than in an hour
            show = progress and processes.is_first
            if show and (advice := advice_on_speed(model, backend)):
                tqdm.write(advice, file=sys.stderr)
            finished = trainer.run(interrupt, write_metric, show)
            if finished and trainer.best is not None:
                model.load_state_dict(trainer.best.weights)
            run = Run(
                model.eval(),
                settings,
                trainer.metrics,
                finished,
                path,
                trainer.best,
                backend,
            )
            if own_folder is not None:
                if finished:
                    save_results(run, own_folder)
                own_folder.check()  # the returned run names this folder
    processes.wait()  # until the first process has written the files
    return run


@contextmanager
def _adding_advice(trainer: Trainer) -> Iterator[None]:
    """Add a note to errors that tells how to continue, in the first process."""
    try:
        yield
    except Exception as error:
        if isinstance(error, FloatingPointError):
            with suppress(OSError):
                trainer.save_metrics()  # they show how the run diverged
        folder, saved = trainer.folder, trainer.saved_step
        if trainer.processes.is_first and folder is not None and saved is not None:
            error.add_note(folder.advice(error, saved))
        raise
