"""The training loop: what a step does, when it evaluates and saves, and how it is stopped."""

import contextlib
import copy
import functools
import hashlib
import math
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import TqdmWarning

from fbt._checks import check_tokens
from fbt.attention import dropout_from
from fbt.data import even_windows, random_windows, split
from fbt.language_model import LanguageModel
from fbt.pretrained import CHECKPOINT_FILE
from fbt.state import State
from fbt.training.checkpoint import (
    Best,
    Checkpoint,
    Fingerprint,
    Settings,
    checkpoint_bytes,
)
from fbt.training.evaluation import cross_entropy, total_loss
from fbt.training.folder import RunFolder
from fbt.training.metrics import Metric, MetricsFile, read_metrics
from fbt.training.processes import Processes
from fbt.training.recipe import Recipe

with warnings.catch_warnings():
    # In a notebook without ipywidgets tqdm draws its bar as text, which is no reason
    # to warn.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

# The most characters that the last evaluation looks at; the validation text of Tiny
# Shakespeare has 111,540.
LAST_CHARACTERS = 131_072
BATCH = 128  # windows of an evaluation, between which it can be interrupted


class Interrupted(Exception):
    """A run was asked to stop while it evaluated."""


class Trainer:
    """The loop and what it changes: weights, moments, carried memory, step and metrics.

    Args:
        settings: what the run is.
        text: what to learn; every character must be in the model's vocabulary.
        model: what to train, with its tokenizer.
        folder: where checkpoints and metrics go, or None; the first process must hold
            it.
        processes: who takes part, and where to compute.

    Raises:
        ValueError: the text is too short for the recipe, or several processes cannot
            share its batches.
    """

    def __init__(
        self,
        settings: Settings,
        text: str,
        model: LanguageModel,
        folder: RunFolder | None,
        processes: Processes,
    ) -> None:
        if model.tokenizer is None:
            raise ValueError(
                "the model to train must have a tokenizer, got tokenizer=None"
            )
        self.settings, self.recipe = settings, settings.recipe
        check_shares(self.recipe, processes.count)
        self.processes, self.device = processes, processes.device
        self.model, self.folder = model.to(self.device).train(), folder
        self.optimizer = adamw(model, self.recipe)
        tokens = model.tokenizer.encode(text)
        check_tokens("tokens of the text", tokens, "[N]", settings.config.vocab_size)
        self.train_tokens, held_out = _parts(tokens, self.recipe, settings.data)
        length = self.recipe.seq_len
        count = min(self.recipe.eval_windows, len(held_out) - length)
        self.some_windows = even_windows(held_out, length=length, count=count)
        most = max(1, LAST_CHARACTERS // length)
        fewer = most if (len(held_out) - 1) // length > most else None
        self.last_windows = even_windows(held_out, length=length, count=fewer)
        self.prompt = "\n" if "\n" in model.tokenizer.vocabulary else text[0]
        # For batches and dropout: torch's global generator is shared by all threads.
        self.generator = torch.Generator("cpu")
        self.noise = (
            self.generator
            if self.device.type == "cpu"
            else torch.Generator(self.device)
        )
        self.step = 0
        self.seconds = 0.0
        self.state: State | None = None
        self.metrics: list[Metric] = []
        self.best: Best | None = None
        self.saved: int | None = None
        self._metrics_file = None if folder is None else MetricsFile(folder)

    @functools.cached_property
    def replica(self) -> nn.Module:
        """The model as a step calls it; made at the first one, since a checkpoint may change its dtype."""
        return self.processes.replica(self.model)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where a checkpoint was written."""
        state = checkpoint.restore(self.model, self.optimizer, self.device)
        self.state = state and state.map(self.processes.share)
        self.step = self.saved = checkpoint.step
        if self.folder is not None:
            self.metrics = read_metrics(
                self.folder.path, checkpoint.metrics, self.step
            )
        self.best = checkpoint.best
        self.seconds = self.metrics[-1]["seconds"] if self.metrics else 0.0

    def save(self) -> None:
        """Write the metrics, then the checkpoint, which says how many belong to it."""
        if not all(p.isfinite().all() for p in self.model.parameters()):
            remedy = self._calmer() if self.step else "start from others"
            raise FloatingPointError(
                f"the weights after step {self.step} must be finite: {remedy}"
            )
        if self.folder is None:
            return
        state = self.state and self.state.map(
            lambda t: self.processes.gather(t, self.recipe.batch_size)
        )
        metrics = self.save_metrics()
        if metrics is None:
            return
        path = self.folder.path / CHECKPOINT_FILE
        data = checkpoint_bytes(
            path,
            self.step,
            self.settings,
            self.model,
            self.optimizer,
            state,
            metrics,
            self.best,
        )
        self.folder.write(CHECKPOINT_FILE, data)
        self.saved = self.step

    def save_metrics(self) -> Fingerprint | None:
        """Write the metrics alone, in the first process and if there is a folder."""
        if self._metrics_file is None or not self.processes.is_first:
            return None
        return self._metrics_file.write(self.metrics)

    def run(
        self, interrupt: "Interrupt", watch: Callable[[Metric], None], progress: bool
    ) -> bool:
        """Train to the end or to an interrupt.

        Args:
            interrupt: asked before every step, in every process.
            watch: called with every metric as it comes.
            progress: show a bar, and the text that each evaluation generates, on
                stderr.

        Returns:
            True if the end was reached.
        """
        with contextlib.suppress(Interrupted):
            self._run(interrupt, watch, progress)
        if not self.finished:
            self.save()
        return self.finished

    @property
    def finished(self) -> bool:
        """Whether all steps have been taken, and the last evaluation been made."""
        return self.step == self.recipe.steps and not self._awaits_evaluation()

    def _awaits_evaluation(self) -> bool:
        """Whether an evaluation is due after this step and has not been made."""
        due = (
            self.step == self.recipe.steps or self.step % self.recipe.eval_every == 0
        )
        return (
            self.step > 0
            and due
            and not (self.metrics and "val_loss" in self.metrics[-1])
        )

    def _run(
        self, interrupt: "Interrupt", watch: Callable[[Metric], None], progress: bool
    ) -> None:
        recipe, began = self.recipe, time.perf_counter() - self.seconds
        shown: dict[str, str] = {}

        def record(**values: Any) -> None:
            metric = {
                "step": self.step,
                **values,
                "seconds": round(time.perf_counter() - began, 3),
            }
            self.metrics.append(metric)
            watch(metric)

        with tqdm(
            total=recipe.steps,
            initial=self.step,
            desc=self.settings.config.variant,
            unit="step",
            dynamic_ncols=True,
            disable=not progress,
        ) as bar:
            while not (self.finished or self.processes.total(interrupt.asked)):
                # an interrupted evaluation is made first
                if not self._awaits_evaluation():
                    values = self._update()
                    self.step += 1
                    record(**values)
                    shown["loss"] = f"{values['loss']:.3f}"
                    bar.set_postfix(shown, refresh=False)
                    bar.update()
                last = self.step == recipe.steps
                if last:
                    self.save()  # the last evaluation may take a while
                if self._awaits_evaluation():
                    evaluate = functools.partial(
                        self._validation_loss, interrupt=interrupt, progress=progress
                    )
                    values = self._evaluate(evaluate)
                    record(**values)
                    shown["val_loss"] = f"{values['val_loss']:.3f}"
                    if progress:
                        heading = f"step {self.step}: validation loss {values['val_loss']:.4f}"
                        lines = filter(None, (heading, values["sample"].strip()))
                        bar.write("\n".join(lines) + "\n", file=sys.stderr)
                bar.set_postfix(shown, refresh=False)
                if last or self.step % recipe.checkpoint_every == 0:
                    self.save()

    def _update(self) -> dict[str, Any]:
        """One optimiser step; what is worth knowing about it."""
        recipe, step = self.recipe, self.step
        # All that is random in a step follows from the seed and its number: no random
        # state to resume.
        for generator in (self.generator, self.noise):
            generator.manual_seed(step_seed(recipe.seed, step))
        batch, weight = self._share(self._batch())
        lr = recipe.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with dropout_from(self.noise, self.model):
            logits, state = self.replica(batch[:, :-1], self.state, return_state=True)
        loss = weight * cross_entropy(logits, batch[:, 1:])
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(
            self.model.parameters(), recipe.clip or math.inf
        )
        values = {
            "loss": self.processes.mean(loss.item()),
            "grad_norm": norm.item(),
            "lr": lr,
        }
        values["length"] = batch.shape[1] - 1
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            raise FloatingPointError(
                f"loss {values['loss']} and gradient norm {values['grad_norm']} at step {step + 1} must be "
                f"finite: {self._calmer()}"
            )
        self.optimizer.step()
        torch.clear_autocast_cache()  # it holds casts of the weights as they were
        self.state = state.detach() if recipe.carry else None
        return values

    def _batch(self) -> Tensor:
        """The windows [B, T + 1] of this step: random, or the next block of every stream when carrying."""
        size, length = self.recipe.batch_shape(self.step)
        if not self.recipe.carry:
            return random_windows(
                self.train_tokens,
                length=length,
                batch_size=size,
                generator=self.generator,
            )
        stream = len(self.train_tokens) // size
        start = self.step % ((stream - 1) // length) * length
        if start == 0:
            self.state = None  # the text begins again
        return self.train_tokens[: stream * size].view(size, stream)[
            :, start : start + length + 1
        ]

    def _share(self, batch: Tensor) -> tuple[Tensor, float]:
        """This process's rows of a batch, and the weight of their loss in the mean over the processes."""
        processes = self.processes
        share = processes.share(batch)
        if not processes.is_first:  # each draws dropout of its own
            self.noise.manual_seed(
                step_seed(self.recipe.seed, self.step, processes.rank)
            )
        return share.to(self.device), processes.count * len(share) / len(batch)

    def _validation_loss(
        self,
        model: LanguageModel,
        windows: Tensor,
        interrupt: "Interrupt",
        progress: bool,
    ) -> float:
        """The mean loss of a model over windows, found out by all processes together.

        Raises:
            Interrupted: the run was asked to stop meanwhile.
        """
        total = 0.0
        batches = windows.split(BATCH * self.processes.count)
        bar = tqdm(
            total=len(windows),
            desc="validation",
            unit="window",
            leave=False,
            delay=1,
            disable=not progress,
        )
        with bar:
            for number, batch in enumerate(batches):
                if number and self.processes.total(interrupt.asked):
                    raise Interrupted
                total += total_loss(model, self.processes.share(batch))
                bar.update(len(batch))
        return self.processes.total(total) / windows[:, 1:].numel()

    def _evaluate(
        self, loss_of: Callable[[LanguageModel, Tensor], float]
    ) -> dict[str, Any]:
        """How far the model has come, found out without touching the random state of the run."""
        last = self.step == self.recipe.steps
        loss = loss_of(self.model, self.last_windows if last else self.some_windows)
        values: dict[str, Any] = {"val_loss": loss, "sample": ""}
        if not math.isfinite(values["val_loss"]):
            raise FloatingPointError(
                f"validation loss {values['val_loss']} at step {self.step} must be finite: {self._calmer()}"
            )
        self.best = self._best(loss_of, loss)
        if self.recipe.sample and self.processes.is_first:
            values["sample"] = self.model.generate(
                self.prompt, self.recipe.sample, seed=self.recipe.seed
            )
        if self.settings.config.variant != "parallel":
            values["layer_weights"] = self.model.layer_weights().tolist()
        return values

    def _best(
        self, loss_of: Callable[[LanguageModel, Tensor], float], loss: float
    ) -> Best:
        """The best weights up to this step, at which the validation loss is `loss`.

        Losses over the same windows are compared: those of the evaluations during the
        run and then, if earlier weights are better there, those of the last
        evaluation.
        """
        last, best = self.step == self.recipe.steps, self.best
        now = Best(self.step, loss, last, self.model.state_dict())
        if not last:
            if best is not None and best.val_loss < loss:
                return best
            return replace(
                now,
                weights={name: value.clone() for name, value in now.weights.items()},
            )
        if best is None or best.val_loss >= loss_of(self.model, self.some_windows):
            return now
        earlier = copy.deepcopy(self.model)
        earlier.load_state_dict(best.weights)
        best = replace(best, final=True, val_loss=loss_of(earlier, self.last_windows))
        return best if best.val_loss < loss else now

    def _calmer(self) -> str:
        """What to change where training goes astray."""
        recipe = self.recipe
        clip = f"clip below {recipe.clip}" if recipe.clip else "clip=1.0"
        return f"try an lr below {recipe.lr}, a longer warmup than {recipe.warmup}, or {clip}"


def adamw(model: LanguageModel, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays the matrices of linear layers and nothing else."""
    matrices = {m.weight for m in model.modules() if isinstance(m, nn.Linear)}
    groups = [
        {
            "params": [p for p in model.parameters() if p in matrices],
            "weight_decay": recipe.weight_decay,
        },
        {
            "params": [p for p in model.parameters() if p not in matrices],
            "weight_decay": 0.0,
        },
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, recipe.beta2))


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of one step of a run, in the process of some rank.

    Hashed rather than added up: torch's CPU generator looks at the low 32 bits only,
    so that otherwise two runs would share their batches, a step apart or not at all.
    """
    return int.from_bytes(
        hashlib.sha256(
            f"{seed} {step}{f' {rank}' if rank else ''}".encode()
        ).digest()[:8],
        "big",
    )


def check_shares(recipe: Recipe, processes: int) -> None:
    """See that several processes each have something to do in every step, and gradients for every weight."""
    if processes == 1:
        return
    if recipe.batch_size < processes:
        raise ValueError(
            f"batch_size must be at least the number of processes, {processes}, got {recipe.batch_size}"
        )
    # A sequence of one step looks at no memory, so that what makes keys and values
    # gets no gradient.
    if (shortest := recipe.batch_shape(0)[1]) < 2:
        raise ValueError(
            f"several processes need sequences of at least 2 characters, got {shortest}"
        )


def _parts(
    tokens: Tensor, recipe: Recipe, source: str | None
) -> tuple[Tensor, Tensor]:
    """The tokens [N] to train on and to validate on, long enough for the recipe."""
    length, total = recipe.seq_len, len(tokens)
    train, held_out = split(tokens) if total > 1 else (tokens[:0], tokens)
    if len(held_out) <= length:
        hint = "; to train on a file, pass its Path" if source is None else ""
        raise ValueError(
            f"the last tenth of the text must have more than seq_len={length} characters, "
            f"got {len(held_out)} of {total}{hint}"
        )
    needed = recipe.batch_size * (length + 1)
    if recipe.carry and len(train) < needed:
        raise ValueError(
            f"with carry the first nine tenths of the text must have at least batch_size * (seq_len + 1) = "
            f"{needed} characters, got {len(train)} of {total}"
        )
    return train, held_out


class Interrupt:
    """Turns Ctrl-C or a termination signal into a wish to stop after this step; the next stops at once."""

    asked = False

    def __enter__(self) -> "Interrupt":
        self._before: dict[signal.Signals, Any] = {}
        for kind in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(kind) in (None, signal.SIG_IGN):
                # Set by another language, which Python could not set back; or
                # ignored, as shells have it for what a script starts in the
                # background.
                continue
            # outside the main thread nobody can press Ctrl-C
            with contextlib.suppress(ValueError):
                self._before[kind] = signal.signal(kind, self._ask)
        return self

    def __exit__(self, *exc: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True
        signal.signal(number, self._before[signal.Signals(number)])
