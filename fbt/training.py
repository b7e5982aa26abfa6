"""Training on text: `fbt.train(...)` in a notebook, `python -m fbt.training` on the command line."""

import argparse
import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from fbt._checks import check_choice
from fbt._files import sha256, write_whole
from fbt.checkpoint import CHECKPOINT_FILE, Checkpoint, Settings, save_checkpoint
from fbt.config import VARIANTS, Config
from fbt.data import CharTokenizer, even_windows, load_tiny_shakespeare, random_windows, split
from fbt.generation import evaluating
from fbt.language_model import LanguageModel
from fbt.recipe import PRESETS, Recipe, recipe_fields
from fbt.state import State

METRICS_FILE = "metrics.jsonl"
LOSS_FIGURE = "loss.svg"
TINY_SHAKESPEARE = "tiny-shakespeare"


@dataclass
class Run:
    """A finished or interrupted training run.

    Attributes:
        model: the trained model, in evaluation mode.
        settings: what it was trained with.
        metrics: one dict a step with "step", "loss" (training, nats), "lr", "length" and "seconds" since the
            start, and one an evaluation with "step", "val_loss", "seconds" and the generated "sample".
        finished: False where the run was interrupted.
        folder: where the files are, or None.
    """

    model: LanguageModel
    settings: Settings
    metrics: list[dict[str, Any]] = field(repr=False)
    finished: bool
    folder: Path | None

    @property
    def val_loss(self) -> float:
        """The last validation loss, nats a character."""
        return float(self.evaluations[-1]["val_loss"])

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The metrics of the evaluations."""
        return [m for m in self.metrics if "val_loss" in m]


def train(
    text: str | None = None,
    *,
    preset: str = "small",
    variant: str = "shared-kv",
    folder: str | Path | None = None,
    resume: bool = False,
    init_from: str | Path | LanguageModel | None = None,
    device: str | None = None,
    progress: bool = True,
    log: str | None = None,
    **changes: Any,
) -> Run:
    """Train a language model on a text, nine tenths of it for training and the last tenth for validation.

    Args:
        text: what to learn; None loads Tiny Shakespeare.
        preset: "tiny" (a minute), "small" (nanoGPT's CPU setting) or "base"; see `fbt.recipe.PRESETS`.
        variant: "parallel", "feedback" or "shared-kv".
        folder: where checkpoints, metrics, the loss curve and the final weights go; None writes nothing.
        resume: continue the run in `folder` where its last checkpoint left it, bit for bit on the same
            software and number of threads. A folder without a checkpoint is started afresh.
        init_from: start from a parallel model, given or saved in a folder; see `LanguageModel.from_parallel`.
        device: where to compute; None takes a GPU if there is one.
        progress: show a progress bar, and a sample of text at each evaluation.
        log: "tensorboard" also writes event files into `folder`.
        **changes: fields of `Recipe` and `Config` that differ from the preset: steps=500, dropout=0.1.

    Returns:
        The `Run`. An interrupt (Ctrl-C, or the stop button of a notebook) ends the run after the step
        under way, saves a checkpoint and returns what there is.

    Raises:
        TypeError, ValueError: a setting is unknown or out of range, or `resume` meets other settings.
        FileExistsError: the folder holds a run and `resume` is False.
        FloatingPointError: the loss is no longer finite.
    """
    check_choice("preset", preset, tuple(PRESETS))
    check_choice("log", log, (None, "tensorboard"))  # type: ignore[arg-type]
    data = TINY_SHAKESPEARE if text is None else "text"
    text = load_tiny_shakespeare() if text is None else text
    start = _parallel_start(init_from)
    config, recipe = _resolve(preset, variant, changes, len(set(text)), start)
    name = (
        None if init_from is None else "a model" if isinstance(init_from, LanguageModel) else str(init_from)
    )
    settings = Settings(config, recipe, data, sha256(text.encode()), name)
    return _run(
        settings, text, start, None if folder is None else Path(folder), resume, device, progress, log
    )


def _parallel_start(init_from: str | Path | LanguageModel | None) -> LanguageModel | None:
    if init_from is None or isinstance(init_from, LanguageModel):
        return init_from
    return LanguageModel.from_pretrained(init_from)


def _resolve(
    preset: str, variant: str, changes: dict[str, Any], vocab_size: int, start: LanguageModel | None
) -> tuple[Config, Recipe]:
    """The preset with the changes applied; the shape of the model comes from `start` where there is one."""
    model_names = {f.name for f in fields(Config)} - {"vocab_size", "variant"}
    recipe_names = set(recipe_fields())
    unknown = sorted(set(changes) - model_names - recipe_names)
    if unknown:
        raise ValueError(f"unknown settings {unknown}; there are {sorted(model_names | recipe_names)}")
    model = {k: v for k, v in changes.items() if k in model_names}
    recipe = {k: v for k, v in changes.items() if k in recipe_names}
    if start is None:
        config = Config(vocab_size, variant=variant, **{**PRESETS[preset].model, **model})
    else:
        config = LanguageModel.from_parallel(start, variant, **model).config
        if config.vocab_size != vocab_size:
            raise ValueError(
                f"init_from must know the text's {vocab_size} characters, got {config.vocab_size}"
            )
    return config, Recipe(**{**PRESETS[preset].recipe, **recipe})


def _run(
    settings: Settings,
    text: str,
    start: LanguageModel | None,
    folder: Path | None,
    resume: bool,
    device: str | None,
    progress: bool,
    log: str | None,
) -> Run:
    if resume and folder is None:
        raise ValueError("resume needs the folder of a run, got folder=None")
    if log is not None and folder is None:
        raise ValueError(f"log={log!r} needs a folder to write to, got folder=None")
    checkpoint = None
    if folder is not None and (folder / CHECKPOINT_FILE).exists():
        if not resume:
            raise FileExistsError(
                f"{folder} holds a run already: give resume=True to go on with it, or another folder"
            )
        checkpoint = Checkpoint.load(folder)
        differences = settings.differences(checkpoint.settings)
        if differences:
            raise ValueError(
                f"the run in {folder} has other settings (given, stored): {'; '.join(differences)}"
            )
    with torch.random.fork_rng(), _Interrupt() as interrupt:
        trainer = _Trainer(settings, text, start, folder, device, progress, checkpoint)
        with _event_writer(folder, log) as write_event:
            finished = trainer.run(interrupt, write_event)
    trainer.model.eval()
    run = Run(trainer.model, settings, trainer.metrics, finished, folder)
    if folder is not None and finished:
        trainer.model.save_pretrained(folder)
        _save_loss_curve(run, folder / LOSS_FIGURE)
    return run


class _Trainer:
    """The loop and what it changes: weights, moments, carried memory, step and metrics."""

    def __init__(
        self,
        settings: Settings,
        text: str,
        start: LanguageModel | None,
        folder: Path | None,
        device: str | None,
        progress: bool,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.settings, self.folder, self.progress = settings, folder, progress
        self.recipe = settings.recipe
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.manual_seed(self.recipe.seed)
        tokenizer = CharTokenizer(text)
        if start is None:
            self.model = LanguageModel(settings.config, tokenizer)
        else:
            if start.tokenizer != tokenizer:
                raise ValueError("init_from must have been trained on a text with the same characters")
            c = settings.config
            changes = {"dropout": c.dropout, "memory": c.memory, "memory_norm": c.memory_norm}
            self.model = LanguageModel.from_parallel(start, c.variant, **changes)
        self.model.to(self.device).train()
        self.optimizer = _optimizer(self.model, self.recipe)
        self.train_tokens, held_out = split(tokenizer.encode(text))
        length = self.recipe.seq_len
        self.some_windows = even_windows(held_out, length=length, count=self.recipe.eval_windows)
        self.all_windows = even_windows(held_out, length=length)
        self.step, self.state, self.metrics, self.seconds = 0, None, [], 0.0
        if checkpoint is not None:
            self.state = checkpoint.restore(self.model, self.optimizer, self.device)
            self.step = checkpoint.step
            self.metrics = _read_metrics(folder, self.step)
            self.seconds = self.metrics[-1]["seconds"] if self.metrics else 0.0

    step: int
    state: State | None
    metrics: list[dict[str, Any]]

    def run(self, interrupt: "_Interrupt", write_event: Callable[[dict[str, Any]], None]) -> bool:
        """Train to the end or to an interrupt; True if the end was reached."""
        recipe, began = self.recipe, time.perf_counter() - self.seconds
        bar = tqdm(
            total=recipe.steps,
            initial=self.step,
            desc=self.settings.config.variant,
            disable=not self.progress,
        )

        def record(**metric: Any) -> None:
            metric = {"step": self.step, **metric, "seconds": round(time.perf_counter() - began, 3)}
            self.metrics.append(metric)
            write_event(metric)

        with bar:
            while self.step < recipe.steps and not interrupt.asked:
                loss = self._update()
                self.step += 1
                lr, length = recipe.learning_rate(self.step - 1), recipe.batch_shape(self.step - 1)[1]
                record(loss=loss, lr=lr, length=length)
                bar.update()
                last = self.step == recipe.steps
                if last or self.step % recipe.eval_every == 0:
                    val_loss = evaluate(self.model, self.all_windows if last else self.some_windows)
                    sample = (
                        self.model.generate("\n", recipe.sample, seed=recipe.seed) if recipe.sample else ""
                    )
                    record(val_loss=val_loss, sample=sample)
                    bar.set_postfix(val_loss=f"{val_loss:.3f}")
                    if self.progress:
                        bar.write(
                            f"step {self.step}: validation loss {val_loss:.4f}\n{sample.strip()}\n",
                            file=sys.stderr,
                        )
                if last or self.step % recipe.checkpoint_every == 0:
                    self._save()
        if interrupt.asked:
            self._save()
        return self.step == recipe.steps

    def _update(self) -> float:
        """One optimiser step; the training loss in nats a character."""
        recipe, step = self.recipe, self.step
        # All that is random in a step follows from the seed and its number: no random state to resume.
        torch.manual_seed(_mix(recipe.seed, step))
        batch = self._batch()
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step)
        logits, state = self.model(batch[:, :-1], self.state, return_state=True)
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        self.state = state.detach() if recipe.carry else None
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} at step {step}: try an lr below {recipe.lr} or a clip below {recipe.clip}"
            )
        self.optimizer.zero_grad()
        loss.backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.optimizer.step()
        return value

    def _batch(self) -> Tensor:
        """The windows [B, T + 1] of this step: random, or the next block of every stream when carrying."""
        size, length = self.recipe.batch_shape(self.step)
        if not self.recipe.carry:
            generator = torch.Generator().manual_seed(_mix(self.recipe.seed, self.step))
            return random_windows(self.train_tokens, length=length, batch_size=size, generator=generator).to(
                self.device
            )
        stream = len(self.train_tokens) // size
        blocks = (stream - 1) // length
        if blocks < 1:
            raise ValueError(
                f"carry needs {size * (length + 1)} characters to train on, got {len(self.train_tokens)}"
            )
        start = self.step % blocks * length
        if start == 0:
            self.state = None
        return (
            self.train_tokens[: stream * size]
            .view(size, stream)[:, start : start + length + 1]
            .to(self.device)
        )

    def _save(self) -> None:
        if self.folder is None:
            return
        lines = "".join(json.dumps(metric) + "\n" for metric in self.metrics)
        write_whole(self.folder / METRICS_FILE, lines.encode())
        save_checkpoint(self.folder, self.step, self.settings, self.model, self.optimizer, self.state)


def evaluate(model: LanguageModel, windows: Tensor, batch_size: int = 128) -> float:
    """Mean cross-entropy over windows, without dropout and each from an empty memory.

    Args:
        model: predicts; its mode is left as it is.
        windows: token ids [N, T + 1].
        batch_size: windows at a time.

    Returns:
        Nats a character.
    """
    total = 0.0
    device = model.token_embedding.weight.device
    with torch.no_grad(), evaluating(model):
        for batch in torch.split(windows, batch_size):
            batch = batch.to(device)
            logits = model(batch[:, :-1])
            total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    return total / windows[:, 1:].numel()


def _optimizer(model: LanguageModel, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays the matrices of linear layers and nothing else."""
    matrices = {m.weight for m in model.modules() if isinstance(m, nn.Linear)}
    decayed = [p for p in model.parameters() if p in matrices]
    others = [p for p in model.parameters() if p not in matrices]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, recipe.beta2))


def _mix(seed: int, step: int) -> int:
    """One seed for a step of a run; distinct for all seeds below 2^31 and steps below 2^32."""
    return (seed << 32) + step


def _read_metrics(folder: Path | None, step: int) -> list[dict[str, Any]]:
    """The metrics up to the checkpoint's step; a run killed between two writes may have a few more."""
    if folder is None or not (folder / METRICS_FILE).is_file():
        return []
    lines = (folder / METRICS_FILE).read_text().splitlines()
    return [metric for metric in map(json.loads, lines) if metric["step"] <= step]


class _Interrupt:
    """Turns Ctrl-C or a termination signal into a wish to stop after this step; a second one stops at once."""

    asked = False

    def __enter__(self) -> "_Interrupt":
        self._before: dict[signal.Signals, Any] = {}
        for kind in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # outside the main thread nobody can press Ctrl-C
                self._before[kind] = signal.signal(kind, self._ask)
        return self

    def __exit__(self, *exc: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        signal.signal(number, self._before[signal.Signals(number)])


@contextlib.contextmanager
def _event_writer(folder: Path | None, log: str | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes a metric as TensorBoard events, or one that does nothing."""
    if log is None:
        yield lambda metric: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "log='tensorboard' needs the package tensorboard: pip install tensorboard"
        ) from error

    def write(metric: dict[str, Any]) -> None:
        for name, value in metric.items():
            if name == "sample":
                writer.add_text(name, value, metric["step"])
            elif name not in ("step", "seconds"):
                writer.add_scalar(name, value, metric["step"])

    with SummaryWriter(str(folder)) as writer:
        yield write


def _save_loss_curve(run: Run, path: Path) -> None:
    try:
        from fbt.views import figures
    except ImportError:
        tqdm.write(f"no {path.name}: it needs matplotlib", file=sys.stderr)
        return
    figures.save_svg(figures.loss_curves({run.settings.config.variant: run.metrics}), path)


def _parser() -> argparse.ArgumentParser:
    presets = "\n".join(f"  {name:<6} {preset.about}" for name, preset in PRESETS.items())
    parser = argparse.ArgumentParser(
        prog="python -m fbt.training",
        description=f"Train a character language model.\n\npresets:\n{presets}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", choices=PRESETS, default="small", help="size and schedule to start from")
    parser.add_argument(
        "--variant", choices=VARIANTS, default="shared-kv", help="body of the model (%(default)s)"
    )
    parser.add_argument("--data", metavar="FILE", help="a text file in UTF-8; without it, Tiny Shakespeare")
    parser.add_argument("--folder", metavar="FOLDER", help="where the run goes (runs/VARIANT-PRESET)")
    parser.add_argument(
        "--resume", metavar="FOLDER", help="go on with the run in FOLDER, with its own settings"
    )
    parser.add_argument("--init-from", metavar="FOLDER", help="start from the parallel model saved in FOLDER")
    parser.add_argument("--log", choices=["tensorboard"], help="also write event files")
    parser.add_argument("--device", help="where to compute (a GPU if there is one)")
    model = parser.add_argument_group("model, where it differs from the preset")
    for f in fields(Config):
        if f.name not in ("vocab_size", "variant"):
            _add_option(model, f.name, int if f.name == "d_ff" else type(f.default), "")
    recipe = parser.add_argument_group("recipe, where it differs from the preset")
    for name, (kind, text) in recipe_fields().items():
        _add_option(recipe, name, kind, text)
    return parser


def _add_option(group: Any, name: str, kind: type, text: str) -> None:
    """One option a field; left out, the field keeps the preset's value."""
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
    else:
        group.add_argument(
            flag, type=kind, default=argparse.SUPPRESS, metavar=kind.__name__.upper(), help=text
        )


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0 finished, 130 interrupted, 2 a setting is wrong."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    try:
        run = _main(given)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    assert run.folder is not None  # the command line always has one
    if not run.finished:
        print(
            f"stopped after step {run.metrics[-1]['step']}; go on with: {parser.prog} --resume {run.folder}"
        )
        return 130
    print(f"validation loss {run.val_loss:.4f}; weights, metrics and loss curve are in {run.folder}")
    return 0


def _main(given: dict[str, Any]) -> Run:
    resume, folder, data, log, device = (given.pop(k) for k in ("resume", "folder", "data", "log", "device"))
    preset, variant, init_from = (given.pop(k) for k in ("preset", "variant", "init_from"))
    if resume is not None:
        if given or folder or data or init_from:
            raise ValueError(f"--resume takes all settings from {resume}; give no others")
        settings = Checkpoint.load(Path(resume)).settings
        text = _read_text(settings.data)
        if sha256(text.encode()) != settings.data_sha256:
            raise ValueError(f"{settings.data} has changed since the run in {resume} began")
        return _run(settings, text, None, Path(resume), True, device, True, log)
    text = _read_text(data or TINY_SHAKESPEARE)
    start = _parallel_start(init_from)
    config, recipe = _resolve(preset, variant, given, len(set(text)), start)
    source = str(Path(data).resolve()) if data else TINY_SHAKESPEARE
    settings = Settings(config, recipe, source, sha256(text.encode()), init_from)
    return _run(settings, text, start, Path(folder or f"runs/{variant}-{preset}"), False, device, True, log)


def _read_text(source: str) -> str:
    return load_tiny_shakespeare() if source == TINY_SHAKESPEARE else Path(source).read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
