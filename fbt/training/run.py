"""Start a run with `train`, or continue one with `resume`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from fbt._checks import (
    check_bool,
    check_callable,
    check_choice,
    check_instance,
    check_int,
    check_path,
    describe,
)
from fbt._files import quoted_path
from fbt.config import Config, Variant
from fbt.data import Tokens
from fbt.initialisation import initialising
from fbt.language_model import LanguageModel
from fbt.pretrained import CHECKPOINT_FILE, WEIGHTS_FILE
from fbt.tokenizer import CharTokenizer, Tokenizer, check_tokenizer
from fbt.training.backend import advice_on_speed, choose_backend, using_backend
from fbt.training.checkpoint import Checkpoint
from fbt.training.device import faster_device
from fbt.training.events import event_writer
from fbt.training.folder import RunFolder
from fbt.training.interrupt import Interrupt
from fbt.training.loop import Trainer
from fbt.training.processes import Processes, join_processes, usable
from fbt.training.progress import tqdm
from fbt.training.recipe import LARGEST_COUNT, PRESETS, PresetName, Recipe
from fbt.training.result import Run, save_results
from fbt.training.settings import Settings
from fbt.training.start import config_from, start_from
from fbt.training.text import TINY_SHAKESPEARE
from fbt.training.tokens import (
    TOKEN_FILE,
    TrainingData,
    check_vocabulary,
    data_of_text,
    data_of_tokens,
)


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
    tokens: Tokens | Path | None = None,
    tokenizer: Tokenizer | None = None,
    preset: PresetName = "small",
    recipe: Recipe | None = None,
    variant: Variant | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    init_from: str | Path | LanguageModel | None = None,
    device: str | torch.device | None = None,
    callback: Callable[[Run], object] | None = None,
    progress: bool = True,
    log: Literal["tensorboard"] | None = None,
    **changes: Any,
) -> Run:
    """Train a language model on a text or on tokens.

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
        tokens: what to learn instead of a text: an integer tensor or array [N], such
            as a NumPy memory map, or the Path of a token file, an array [N] of uint16
            or uint32 written by `numpy.save`. A file may be larger than memory: it is
            read once at the start, to check it, and then in windows. It must not
            change during the run.
        tokenizer: the tokenizer of the text or the tokens. None takes that of
            `init_from`, if there is one, and otherwise the characters of the text.
            Tokens may have no tokenizer: samples are then not generated, and V is the
            largest token + 1, or `vocab_size` if that is passed as a change.
        preset: "tiny" (half a minute), "small" (nanoGPT's CPU setting) or "base"; see
            `fbt.training.recipe.PRESETS`.
        recipe: the settings of the training, which replace those of the preset.
        variant: "parallel", "feedback" or "shared-kv". None is "shared-kv" or, if the
            run starts from a model with feedback, the variant of that model.
        folder: the folder for checkpoints, metrics, the loss curve and the final
            weights; None writes nothing.
        resume: continue the run in `folder` from its last checkpoint. The numbers are
            the same to the last bit in one process on the same machine, with the same
            software, number of threads and backend. Otherwise they agree up to
            rounding; see "The same numbers again" on the API page. If there is no
            checkpoint, a new run starts.
        init_from: start from a model, from its folder or from its name, such as
            "tiny-shakespeare". Its sizes replace those of the preset, and its
            tokenizer must know the whole text. A model of the same variant is trained
            further; for another variant, its weights are converted (see
            `fbt.training.start.start_from`), but a model with feedback cannot become
            parallel.
        device: the device to train on. None is the CPU or, if there is a CUDA GPU,
            the faster of the two by our records (see `fbt.training.device`); the
            progress says which and why. Several processes always take the GPUs.
            "mps" is not tested.
        callback: a function that is called after each evaluation, in the first
            process, with the `Run` so far. Its model is the one being trained. If the
            function returns a true value, the run ends early: this step counts as its
            last one, and is evaluated as such.
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
    check_instance("recipe", recipe, Recipe, type(None))
    check_instance("init_from", init_from, str, Path, LanguageModel, type(None))
    if isinstance(init_from, str | Path):
        check_path("init_from", init_from)
    check_bool("resume", resume)
    _check_arguments(text, tokens, folder, device, callback, progress, log)
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
    if has_run and run_folder is not None:
        run_folder.check_unlocked()
    with join_processes(device) as processes:
        origin = None if init_from is None else "a model"
        if isinstance(init_from, str | Path):
            origin = str(init_from)
            init_from = LanguageModel.from_pretrained(init_from)
        checkpoint = Checkpoint.load(path) if path is not None and has_run else None
        if tokenizer is None and init_from is not None:
            tokenizer = init_from.tokenizer
            if tokenizer is None and tokens is None:
                raise ValueError(
                    "the model to start from must have a tokenizer, got "
                    "tokenizer=None: pass tokenizer=, or tokens= instead of a text"
                )
        if tokenizer is None and checkpoint is not None:
            stored = checkpoint.tokenizer
            tokenizer = None if isinstance(stored, CharTokenizer) else stored
        data = _load(text, tokens, tokenizer, processes)
        config, recipe = _resolve(preset, recipe, variant, changes, data, init_from)
        settings = Settings(config, recipe, data.source, data.sha256, origin)
        if checkpoint is not None:
            differences = settings.differences(checkpoint.settings)
            if differences:
                raise ValueError(
                    f"the run in {folder} has other settings (given, stored): "
                    f"{'; '.join(differences)}"
                )
        return _run(
            settings,
            data,
            init_from,
            checkpoint,
            run_folder,
            _placed(processes, device, settings, checkpoint, progress),
            callback,
            progress,
            log,
        )


@_own_modes()
def resume(
    folder: str | Path,
    text: str | Path | None = None,
    *,
    tokens: Tokens | Path | None = None,
    tokenizer: Tokenizer | None = None,
    steps: int | None = None,
    device: str | torch.device | None = None,
    callback: Callable[[Run], object] | None = None,
    progress: bool = True,
    log: Literal["tensorboard"] | None = None,
) -> Run:
    """Continue a run with its own settings; see `resume` in `train`.

    Args:
        folder: the folder of the run.
        text: the text of the run, or the Path of its file; None reads it from where
            the run read it.
        tokens: the tokens of the run, if they were passed in Python, or the Path of
            their file.
        tokenizer: the tokenizer of the run, if its checkpoint does not contain it.
        steps: the number of steps of the whole run, to train a finished run further
            or to end earlier. From here on, the learning rate and the curriculum are
            those that a run of so many steps has at the same step: after a finished
            run, the learning rate rises again. None keeps the number.
        device: as in `train`.
        callback: as in `train`.
        progress: show a progress bar, and a sample of text at each evaluation, on
            stderr.
        log: "tensorboard" also writes event files into `folder`.

    Returns:
        The `Run`, as from `train`.

    Raises:
        FileNotFoundError: if the folder does not contain a checkpoint and metrics, or
            if the text has been moved.
        ValueError: if the checkpoint is damaged, if the text has changed, or if the
            run has already taken more than `steps` steps.
        OSError, ConnectionError, ImportError, FloatingPointError: as in `train`.
    """
    check_instance("folder", folder, str, Path)
    _check_arguments(text, tokens, folder, device, callback, progress, log)
    run_folder = RunFolder(Path(folder))
    run_folder.check_unlocked()
    checkpoint = Checkpoint.load(run_folder.path)
    settings = checkpoint.settings
    if steps is not None:
        check_int("steps", steps, low=max(1, checkpoint.step), high=LARGEST_COUNT)
        settings = replace(settings, recipe=replace(settings.recipe, steps=steps))
    if text is None and tokens is None:
        if settings.data is None:
            raise ValueError(
                f"the text of the run in {folder} was passed in Python: pass it again"
            )
        if settings.data != TINY_SHAKESPEARE:
            source = Path(settings.data)
            # A foreign checkpoint may name a device, which could be read for ever.
            if not source.is_file():
                raise FileNotFoundError(
                    f"{quoted_path(source)}, the text of the run in "
                    f"{quoted_path(folder)}, is not a file: pass its new path"
                )
            if source.suffix == TOKEN_FILE:
                tokens = source
            else:
                text = source
    with join_processes(device) as processes:
        if tokenizer is None:
            tokenizer = checkpoint.tokenizer
        given = tokens if text is None else text
        name = given if isinstance(given, Path) else "the text"
        other = f"{name} is not the text that the run in {folder} was trained on"
        try:
            data = _load(text, tokens, tokenizer, processes)
        except ValueError as error:
            raise ValueError(f"{other}: {error}") from error
        if data.sha256 != settings.data_sha256:
            raise ValueError(other)
        return _run(
            settings,
            data,
            None,
            checkpoint,
            run_folder,
            _placed(processes, device, settings, checkpoint, progress),
            callback,
            progress,
            log,
        )


def _check_arguments(
    text: str | Path | None,
    tokens: Tokens | Path | None,
    folder: str | Path | None,
    device: str | torch.device | None,
    callback: Callable[[Run], object] | None,
    progress: bool,
    log: str | None,
) -> None:
    """Check the arguments that `train` and `resume` share."""
    if not isinstance(text, str | Path | None):
        raise TypeError(
            f"text must be a str, a Path or None, got {describe(text)}: pass the "
            "Path of a file, decode bytes, join lines, or pass token ids as tokens="
        )
    if isinstance(text, Path):
        check_path("text", text)
        if text.suffix == TOKEN_FILE:
            raise ValueError(
                f"text must be a file of text, got {quoted_path(text)}: pass a token "
                "file as tokens="
            )
    if text is not None and tokens is not None:
        raise ValueError("pass either text or tokens, got both")
    if folder is not None:
        check_path("folder", folder)
    check_instance("device", device, str, torch.device, type(None))
    if callback is not None:
        check_callable("callback", callback)
    check_bool("progress", progress)
    if log is not None:
        check_choice("log", log, ("tensorboard",))


def _load(
    text: str | Path | None,
    tokens: Tokens | Path | None,
    tokenizer: Tokenizer | None,
    processes: Processes,
) -> TrainingData:
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    if tokens is not None:
        return data_of_tokens(tokens, tokenizer)
    return processes.first_then_others(lambda: data_of_text(text, tokenizer))


def _resolve(
    preset: PresetName,
    recipe: Recipe | None,
    variant: Variant | None,
    changes: dict[str, Any],
    data: TrainingData,
    initial: LanguageModel | None,
) -> tuple[Config, Recipe]:
    """Return the preset with the changes, and with the sizes of an initial model."""
    model_names = {f.name for f in fields(Config)} - {"variant"}
    if initial is not None or data.tokenizer is not None:
        model_names -= {"vocab_size"}
    recipe_names = {f.name for f in fields(Recipe)}
    unknown = sorted(set(changes) - model_names - recipe_names)
    if unknown:
        raise ValueError(
            f"unknown settings {unknown}; allowed are "
            f"{sorted(model_names | recipe_names)}"
        )
    model = {k: v for k, v in changes.items() if k in model_names}
    changed = {k: v for k, v in changes.items() if k in recipe_names}
    if recipe is None:
        recipe = Recipe(**PRESETS[preset].recipe | changed)
    else:
        recipe = replace(recipe, **changed)
    if initial is not None:
        config = config_from(initial.config, variant, **model)
    else:
        variant = "shared-kv" if variant is None else variant
        sizes = {"vocab_size": data.vocab_size} | PRESETS[preset].model | model
        config = Config(variant=variant, **sizes)
    if data.tokenizer is None:
        check_vocabulary(data.vocab_size - 1, config.vocab_size)
    return config, recipe


def _placed(
    processes: Processes,
    device: str | torch.device | None,
    settings: Settings,
    checkpoint: Checkpoint | None,
    progress: bool,
) -> Processes:
    """Move a single process without a given device to the faster one."""
    if device is not None or processes.count > 1 or not torch.cuda.is_available():
        return processes
    recorded = None if checkpoint is None else checkpoint.backend
    backend = settings.recipe.backend if recorded is None else recorded
    chosen = faster_device(settings.config, settings.recipe, backend)
    if progress:
        name = {"cpu": "CPU", "cuda": "GPU"}[chosen.device]
        tqdm.write(
            f"training on the {name}, {chosen.reason}; to choose, pass device=",
            file=sys.stderr,
        )
    return replace(processes, device=usable(chosen.device))


def _initial_model(
    settings: Settings, tokenizer: Tokenizer | None, initial: LanguageModel | None
) -> LanguageModel:
    if initial is not None:
        model = start_from(initial, settings.config)
        model.tokenizer = tokenizer
        return model
    with initialising(settings.recipe.seed):
        return LanguageModel(settings.config, tokenizer)


def _run(
    settings: Settings,
    data: TrainingData,
    initial: LanguageModel | None,
    checkpoint: Checkpoint | None,
    folder: RunFolder | None,
    processes: Processes,
    callback: Callable[[Run], object] | None,
    progress: bool,
    log: str | None,
) -> Run:
    if log is not None and folder is None:
        raise ValueError(f"log={log!r} needs a folder to write to, got folder=None")
    path = None if folder is None else folder.path
    events = event_writer(path, log if processes.is_first else None)
    with Interrupt() as interrupt:
        if checkpoint is None:
            model = _initial_model(settings, data.tokenizer, initial)
        else:
            with initialising():
                model = LanguageModel(settings.config, data.tokenizer)
        trainer = Trainer(settings, data.tokens, model, folder, processes)
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

        def so_far(finished: bool) -> Run:
            return Run(
                model,
                trainer.settings,
                trainer.metrics,
                finished,
                path,
                trainer.best,
                backend,
            )

        wants_stop = None if callback is None else lambda: callback(so_far(False))
        with (
            using_backend(model, backend, settings.recipe.recompute),
            own_folder.locked() if own_folder is not None else nullcontext(),
            _adding_advice(trainer),
            events(trainer.step) as write_metric,
        ):
            trainer.save()  # fail now rather than in an hour
            show = progress and processes.is_first
            if show and (advice := advice_on_speed(model, backend)):
                tqdm.write(advice, file=sys.stderr)
            finished = trainer.run(interrupt, write_metric, show, wants_stop)
            if finished and trainer.best is not None:
                model.load_state_dict(trainer.best.weights)
            model.eval()
            run = so_far(finished)
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
