"""The training loop: optimiser steps, evaluations and checkpoints."""

import contextlib
import functools
import hashlib
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fbt.attention import dropout_from
from fbt.data import Tokens, random_windows, split, windows_at
from fbt.language_model import LanguageModel
from fbt.pretrained import CHECKPOINT_FILE
from fbt.scoring import cross_entropy
from fbt.state import State
from fbt.tokenizer import CharTokenizer
from fbt.training.checkpoint import (
    Best,
    Checkpoint,
    Fingerprint,
    checkpoint_bytes,
)
from fbt.training.folder import RunFolder
from fbt.training.interrupt import Interrupt, Interrupted
from fbt.training.metrics import Metric, MetricsFile, read_metrics
from fbt.training.processes import Processes
from fbt.training.progress import tqdm
from fbt.training.recipe import Recipe
from fbt.training.settings import Settings
from fbt.training.validation import Validation


class Trainer:
    """The training loop and its state.

    Args:
        settings: the settings of the run.
        tokens: integers [N] in the vocabulary of the model, a tensor or an array.
        model: the model to train. With a tokenizer, each evaluation generates text.
        folder: the folder of checkpoints and metrics, or None. The first process must
            have locked it.
        processes: the processes of the run.

    Attributes:
        step: the number of steps taken.
        state: the carried memory, or None.
        metrics: the metrics of the run so far.
        best: the best evaluation so far, or None.
        saved_step: the step of the last checkpoint, or None.

    Raises:
        ValueError: if there are too few tokens for the recipe, or if the processes
            cannot share its batches.
    """

    def __init__(
        self,
        settings: Settings,
        tokens: Tokens,
        model: LanguageModel,
        folder: RunFolder | None,
        processes: Processes,
    ) -> None:
        self.settings, self.recipe = settings, settings.recipe
        check_shares(self.recipe, processes.count)
        self.processes, self.device = processes, processes.device
        self.model, self.folder = model.to(self.device).train(), folder
        self.optimizer = adamw(model, self.recipe)
        self.train_tokens, held_out = split_tokens(tokens, self.recipe, settings.data)
        self.validation = Validation(held_out, self.recipe, processes)
        self.prompt = torch.tensor([int(tokens[0])], device="cpu")
        tokenizer = model.tokenizer
        if isinstance(tokenizer, CharTokenizer) and "\n" in tokenizer.vocabulary:
            self.prompt = tokenizer.encode("\n")
        # Not torch's global generator, which all threads share.
        self.generator = torch.Generator("cpu")
        self.dropout_generator = self.generator
        if self.device.type != "cpu":
            self.dropout_generator = torch.Generator(self.device)
        self.step = 0
        self.seconds = 0.0
        self.state: State | None = None
        self.metrics: list[Metric] = []
        self.best: Best | None = None
        self.saved_step: int | None = None
        self._metrics_file = None if folder is None else MetricsFile(folder)

    @functools.cached_property
    def synchronised_model(self) -> nn.Module:
        """The model as a step calls it.

        It is created at the first step, since a checkpoint may change the dtype.
        """
        return self.processes.synchronised(self.model)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state that a checkpoint contains."""
        state = checkpoint.restore(self.model, self.optimizer, self.device)
        self.state = state and state.map(self.processes.share)
        self.step = self.saved_step = checkpoint.step
        if self.folder is not None:
            self.metrics = read_metrics(
                self.folder.path, checkpoint.metrics, self.step
            )
        self.best = checkpoint.best
        self.seconds = self.metrics[-1]["seconds"] if self.metrics else 0.0

    def save(self) -> None:
        """Write the metrics, then the checkpoint with their fingerprint."""
        if not all(p.isfinite().all() for p in self.model.parameters()):
            advice = self._advice() if self.step else "use another initial model"
            raise FloatingPointError(
                f"the weights after step {self.step} must be finite: {advice}"
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
        self.saved_step = self.step

    def save_metrics(self) -> Fingerprint | None:
        """Write the metrics only, if there is a folder, in the first process."""
        if self._metrics_file is None or not self.processes.is_first:
            return None
        return self._metrics_file.write(self.metrics)

    def run(
        self,
        interrupt: Interrupt,
        write_metric: Callable[[Metric], None],
        progress: bool,
        wants_stop: Callable[[], object] | None = None,
    ) -> bool:
        """Train until the last step, an early stop or an interrupt.

        Args:
            interrupt: checked before every step, in every process.
            write_metric: called with every new metric.
            progress: show a bar, and the text that each evaluation generates, on
                stderr.
            wants_stop: called after every evaluation, in the first process. If it
                returns a true value, this step becomes the last one of the recipe.

        Returns:
            Whether the run has finished.
        """
        with contextlib.suppress(Interrupted):
            self._run(interrupt, write_metric, progress, wants_stop)
        if not self.finished:
            self.save()
        return self.finished

    @property
    def finished(self) -> bool:
        """Whether all steps and the last evaluation are done."""
        return self.step == self.recipe.steps and not self._awaits_evaluation()

    def _awaits_evaluation(self) -> bool:
        """Return whether an evaluation is due after this step and is not done yet."""
        due = (
            self.step == self.recipe.steps or self.step % self.recipe.eval_every == 0
        )
        return (
            self.step > 0
            and due
            and not (self.metrics and "val_loss" in self.metrics[-1])
        )

    def _run(
        self,
        interrupt: Interrupt,
        write_metric: Callable[[Metric], None],
        progress: bool,
        wants_stop: Callable[[], object] | None,
    ) -> None:
        recipe, start = self.recipe, time.perf_counter() - self.seconds
        losses: dict[str, str] = {}

        def record(**values: Any) -> None:
            metric = {
                "step": self.step,
                **values,
                "seconds": round(time.perf_counter() - start, 3),
            }
            self.metrics.append(metric)
            write_metric(metric)

        with tqdm(
            total=recipe.steps,
            initial=self.step,
            desc=self.settings.config.variant,
            unit="step",
            dynamic_ncols=True,
            disable=not progress,
        ) as bar:
            while not (self.finished or self.processes.total(interrupt.requested)):
                # An evaluation that was interrupted is done before the next step.
                if not self._awaits_evaluation():
                    values = self._update()
                    self.step += 1
                    record(**values)
                    losses["loss"] = f"{values['loss']:.3f}"
                    bar.set_postfix(losses, refresh=False)
                    bar.update()
                last = self.step == recipe.steps
                if last:
                    self.save()  # the last evaluation may take long
                if self._awaits_evaluation():
                    values = self._evaluate(interrupt, progress)
                    record(**values)
                    losses["val_loss"] = f"{values['val_loss']:.3f}"
                    if progress:
                        loss = f"validation loss {values['val_loss']:.4f}"
                        lines = [f"step {self.step}: {loss}"]
                        if sample := values["sample"].strip():
                            lines.append(sample)
                        bar.write("\n".join(lines) + "\n", file=sys.stderr)
                    if self._stops_early(wants_stop) and not last:
                        last = True
                        self._end_here()
                        record(**self._evaluate(interrupt, progress))
                bar.set_postfix(losses, refresh=False)
                if last or self.step % recipe.checkpoint_every == 0:
                    self.save()

    def _stops_early(self, wants_stop: Callable[[], object] | None) -> bool:
        """Ask for an early stop in the first process, and tell the others."""
        if wants_stop is None:
            return False
        return (
            self.processes.total(self.processes.is_first and bool(wants_stop())) > 0
        )

    def _end_here(self) -> None:
        """Make this step the last one, as if the recipe had asked for it."""
        self.recipe = replace(self.recipe, steps=self.step)
        self.settings = replace(self.settings, recipe=self.recipe)

    def _update(self) -> dict[str, Any]:
        """Take one optimiser step and return its metrics."""
        recipe, step = self.recipe, self.step
        # Seed and step determine all random numbers, so that a checkpoint does not
        # need a random state.
        for generator in (self.generator, self.dropout_generator):
            generator.manual_seed(step_seed(recipe.seed, step))
        batch, weight = self._share(self._batch())
        lr = recipe.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with dropout_from(self.dropout_generator, self.model):
            logits, state = self.synchronised_model(
                batch[:, :-1], self.state, return_state=True
            )
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
                f"loss {values['loss']} and gradient norm {values['grad_norm']} at "
                f"step {step + 1} must be finite: {self._advice()}"
            )
        self.optimizer.step()
        torch.clear_autocast_cache()  # it contains casts of the previous weights
        self.state = state.detach() if recipe.carry else None
        return values

    def _batch(self) -> Tensor:
        """Return the windows [B, T + 1] of this step.

        They are random, or with `carry` the next block of each of B streams.
        """
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
            self.state = None  # the streams start again
        starts = torch.arange(size, device="cpu") * stream + start
        return windows_at(self.train_tokens, starts, length)

    def _share(self, batch: Tensor) -> tuple[Tensor, float]:
        """Return the rows of this process, and their weight in the mean loss."""
        processes = self.processes
        share = processes.share(batch)
        if not processes.is_first:  # each process draws its own dropout masks
            seed = step_seed(self.recipe.seed, self.step, processes.rank)
            self.dropout_generator.manual_seed(seed)
        return share.to(self.device), processes.count * len(share) / len(batch)

    def _evaluate(self, interrupt: Interrupt, progress: bool) -> dict[str, Any]:
        """Evaluate the model and return the metrics; no random state is changed."""
        validation = self.validation
        loss_of = functools.partial(
            validation.loss, interrupt=interrupt, progress=progress
        )
        last = self.step == self.recipe.steps
        windows = validation.last_windows if last else validation.windows
        if self.best is not None and self.best.final:  # the run has got more steps
            self.best = validation.compared(self.best, self.model, loss_of)
        loss = loss_of(self.model, windows)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"validation loss {loss} at step {self.step} must be finite: "
                f"{self._advice()}"
            )
        now = Best(self.step, loss, last, self.model.state_dict())
        self.best = validation.update_best(self.best, self.model, now, loss_of)
        values: dict[str, Any] = {"val_loss": loss, "sample": ""}
        tokenizer, count = self.model.tokenizer, self.recipe.sample
        if tokenizer is not None and count and self.processes.is_first:
            ids = self.model.generate(self.prompt, count, seed=self.recipe.seed)
            values["sample"] = tokenizer.decode(ids.tolist())
        if self.settings.config.variant != "parallel":
            values["layer_weights"] = self.model.layer_weights().tolist()
        return values

    def _advice(self) -> str:
        """Return the settings to try when training diverges."""
        recipe = self.recipe
        clip = f"clip below {recipe.clip}" if recipe.clip else "clip=1.0"
        return f"try lr below {recipe.lr}, warmup above {recipe.warmup}, or {clip}"


def adamw(model: LanguageModel, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW with weight decay for the matrices of linear layers only."""
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
    """Return the seed of a step of a run, in the process of the given rank.

    It is a hash. With `seed + step`, runs with consecutive seeds would use the same
    batches one step apart. Torch's CPU generator uses only the low 32 bits.
    """
    text = f"{seed} {step} {rank}" if rank else f"{seed} {step}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def check_shares(recipe: Recipe, processes: int) -> None:
    """Check that each process has sequences in every step and uses every weight.

    Raises:
        ValueError: if the batch is too small or the sequences are too short.
    """
    if processes == 1:
        return
    if recipe.batch_size < processes:
        raise ValueError(
            f"batch_size must be at least the number of processes, {processes}, got "
            f"{recipe.batch_size}"
        )
    # A single step does not read the memory, so the key and value weights would not
    # have a gradient.
    if (shortest := recipe.batch_shape(0)[1]) < 2:
        raise ValueError(
            f"several processes need sequences of at least 2 tokens, got {shortest}"
        )


def split_tokens(
    tokens: Tokens, recipe: Recipe, source: str | None
) -> tuple[Tokens, Tokens]:
    """Return the tokens [N] for training and for validation.

    Raises:
        ValueError: if the text is too short for the recipe.
    """
    length, total = recipe.seq_len, len(tokens)
    train, held_out = split(tokens) if total > 1 else (tokens[:0], tokens)
    if len(held_out) <= length:
        hint = "; to train on a file, pass its Path" if source is None else ""
        raise ValueError(
            f"the last tenth of the text must have more than seq_len={length} "
            f"tokens, got {len(held_out)} of {total}{hint}"
        )
    needed = recipe.batch_size * (length + 1)
    if recipe.carry and len(train) < needed:
        raise ValueError(
            "with carry, the first nine tenths of the text must have at least "
            f"batch_size * (seq_len + 1) = {needed} tokens, got {len(train)} of "
            f"{total}"
        )
    return train, held_out
