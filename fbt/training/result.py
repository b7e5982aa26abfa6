"""The result of a run: the model, the metrics and the files with them."""

import sys
from dataclasses import dataclass
from pathlib import Path

from fbt._text import one_line
from fbt.config import Backend
from fbt.language_model import LanguageModel, model_bytes
from fbt.pretrained import WEIGHTS_FILE
from fbt.training.checkpoint import Best
from fbt.training.folder import RunFolder
from fbt.training.metrics import Metric
from fbt.training.settings import Settings

LOSS_FIGURE = "loss.svg"


@dataclass(repr=False)
class Run:
    """A finished or interrupted training run.

    Attributes:
        model: the trained model, in evaluation mode. A finished run returns the
            weights with the lowest validation loss among its evaluations, which need
            not be the last weights. An interrupted run returns the weights of its
            last step.
        settings: the settings of the run.
        metrics: one dict per step with "step", "loss" (training loss in nats per
            token), "grad_norm" (before clipping), "lr", "length" (tokens per
            sequence) and "seconds" since the start; and one per evaluation with
            "step", "val_loss", the generated "sample", the "layer_weights" [L + 1] of
            a feedback model, and "seconds".
        finished: False if the run was interrupted.
        folder: the folder of the files, or None. `model.safetensors` contains the
            weights of `model`, the checkpoint those of the last step.
        best: the best evaluation so far, or None before the first one. It has the
            attributes `step`, `val_loss` in nats per token, and `weights`, for
            `model.load_state_dict`.
        backend: the backend that computed the run, for example "native". It is never
            "auto".
    """

    model: LanguageModel
    settings: Settings
    metrics: list[Metric]
    finished: bool
    folder: Path | None
    best: Best | None
    backend: Backend

    @property
    def step(self) -> int:
        """The number of steps taken."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def evaluations(self) -> list[Metric]:
        """The metrics of the evaluations."""
        return [metric for metric in self.metrics if "val_loss" in metric]

    @property
    def val_loss(self) -> float:
        """The validation loss of `model` in nats per token.

        For an interrupted run, it is the loss of the last evaluation, which is in
        `evaluations[-1]`.

        Raises:
            ValueError: if the run was interrupted before its first evaluation.
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
        """A phrase with the step of `val_loss`; empty if it is the last step."""
        if not self.finished or self.best is None or self.best.step == self.step:
            return ""
        last = self.evaluations[-1]["val_loss"]
        return f" at step {self.best.step} ({last:.4f} at step {self.step})"

    def __repr__(self) -> str:
        items = [
            self.settings.config.variant,
            f"{self.step} of {self.settings.recipe.steps} steps",
        ]
        if self.evaluations:
            items.append(f"validation loss {self.val_loss:.4f}{self.when}")
        if self.folder is not None:
            items.append(f"in {self.folder}")
        return f"Run({', '.join(items)})"


def save_results(run: Run, folder: RunFolder) -> None:
    """Write the final weights and the loss curve."""
    folder.write(WEIGHTS_FILE, model_bytes(run.model, folder.path / WEIGHTS_FILE))
    _save_loss_curve(run, folder)


def _save_loss_curve(run: Run, folder: RunFolder) -> None:
    try:
        from fbt.views import figures

        name = run.settings.config.variant
        picture = figures.svg_of(figures.loss_curves({name: run.metrics}))
    except ImportError:
        print(f"no {LOSS_FIGURE}: it needs the package matplotlib", file=sys.stderr)
        return
    # The run has finished, so an error of matplotlib must not look like its failure.
    except Exception as error:
        print(f"no {LOSS_FIGURE}: {one_line(str(error))}", file=sys.stderr)
        return
    folder.write(LOSS_FIGURE, picture)
