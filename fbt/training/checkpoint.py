"""Checkpoints of a training run: one safetensors file with all that a step needs.

It contains the weights, AdamW's moments, the carried memory and, if they differ, the
best weights so far. Its metadata contain the step, the settings, the backend and the
fingerprint of the metrics. A random state is not needed, since batches and dropout
depend only on the seed and the step.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from fbt._checks import (
    check_bool,
    check_instance,
    check_int,
    check_real,
)
from fbt._files import errors_about, quoted_path
from fbt._text import dataclass_from, parse_json
from fbt._weights import (
    CHECKSUM,
    Shape,
    TensorInfo,
    check_sizes,
    check_tensors,
    check_weights,
    reading_tensors,
    serialise,
    without_prefix,
)
from fbt.config import Backend
from fbt.language_model import LanguageModel, weight_shapes
from fbt.pretrained import (
    CHECKPOINT_FILE,
    CHECKPOINT_PART,
    tokenizer_from,
    tokenizer_metadata,
)
from fbt.state import State
from fbt.tokenizer import Tokenizer
from fbt.training.settings import Settings, check_backend

PARTS = (CHECKPOINT_PART, "state.", "optimizer.", "best.")
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of a parameter


@dataclass(frozen=True)
class Fingerprint:
    """Size and hash of the file of metrics when the checkpoint was written.

    Attributes:
        size: the size of the file in bytes, without lines that were added later.
        sha256: SHA-256 of these bytes, as 64 hexadecimal digits.
    """

    size: int
    sha256: str

    def __post_init__(self) -> None:
        """Check both fields."""
        check_int("size", self.size, low=0)
        check_instance("sha256", self.sha256, str)
        if re.fullmatch("[0-9a-f]{64}", self.sha256) is None:
            raise ValueError(
                f"sha256 must be 64 hexadecimal digits, got {self.sha256[:80]!r}"
            )

    def to_json(self) -> str:
        """Return both fields as a JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Fingerprint":
        """Parse the result of `to_json`.

        Raises:
            TypeError, ValueError: if a field is missing, unknown or not allowed.
        """
        return dataclass_from("metrics", cls, parse_json("metrics", text))


@dataclass(frozen=True, eq=False)
class Best:
    """The weights with the lowest validation loss of a run so far.

    Attributes:
        step: the number of steps taken.
        val_loss: the loss in nats per token, over the windows of the evaluations
            during the run or, if `final`, of the last evaluation.
        final: whether the last evaluation has finished. The run then returns these
            weights.
        weights: tensors by name, as in the state dict of the model.
    """

    step: int
    val_loss: float
    final: bool
    weights: dict[str, Tensor]

    def to_json(self) -> str:
        """Return all fields except the weights as a JSON object."""
        return json.dumps(
            {"step": self.step, "val_loss": self.val_loss, "final": self.final}
        )


def checkpoint_bytes(
    path: Path,
    step: int,
    settings: Settings,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    state: State | None,
    metrics: Fingerprint,
    best: Best | None = None,
) -> bytes:
    """Return the bytes of the checkpoint after `step` steps.

    Args:
        path: the path of the file, for messages.
        step: the number of steps taken.
        settings: the settings of the run.
        model: the model, with its tokenizer and the backend that computes the run.
        optimizer: the optimiser, with its moments.
        state: the carried memory, or None.
        metrics: fingerprint of the file of metrics up to this step.
        best: the best weights so far. They are stored if the model's weights differ.

    Raises:
        ValueError: if the file would be larger than `Checkpoint.load` can read.
    """
    tensors = {
        f"{CHECKPOINT_PART}{name}": value
        for name, value in model.state_dict().items()
    }
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{index}.{name}": value for name, value in moments.items()
        }
    if state is not None:
        for i, (keys, values) in enumerate(
            zip(state.keys, state.values, strict=True)
        ):
            tensors |= {f"state.keys.{i}": keys, f"state.values.{i}": values}
    metadata = {
        "step": str(step),
        "settings": settings.to_json(),
        "metrics": metrics.to_json(),
    }
    if best is not None:
        metadata["best"] = best.to_json()
        if best.step != step:
            tensors |= {f"best.{name}": value for name, value in best.weights.items()}
    metadata |= tokenizer_metadata(model.tokenizer, model.config.vocab_size)
    if model.backend != "auto":
        metadata["backend"] = model.backend
    # The first checkpoint contains neither moments, twice the size of the weights,
    # nor best weights. Refuse it if later ones would be too large.
    check_sizes(
        path, 4 * sum(p.numel() * p.element_size() for p in model.parameters()), b""
    )
    return serialise(path, tensors, metadata)


def _step(text: str, high: int | None = None) -> int:
    """Parse the step, which is at most `high`."""
    step: int = parse_json("step", text)
    check_int("step", step, low=0, high=high)
    return step


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read from disk.

    Attributes:
        path: the path of the file.
        step: the number of steps taken.
        settings: the settings of the run.
        metrics: fingerprint of the file of metrics up to this step. None if version
            0.1.0 wrote the checkpoint before it recorded one.
        tokenizer: the tokenizer, or None if it has to be passed again.
        tensors: weights, moments, carried memory and best weights, by their names in
            the file.
        best: the best evaluation so far, or None; its weights are in `tensors`.
        backend: the backend that computed the run, or None if it is not recorded.
    """

    path: Path
    step: int
    settings: Settings
    metrics: Fingerprint | None
    tokenizer: Tokenizer | None
    tensors: dict[str, Tensor]
    best: Best | None = None
    backend: Backend | None = None

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint":
        """Read the checkpoint of a run.

        Raises:
            FileNotFoundError: if the folder does not contain a checkpoint.
            ValueError: if the file is damaged, is not a checkpoint or is larger than
                4 GiB, or if its tensors do not match its settings. This is checked
                before memory is allocated for them.
        """
        path = folder / CHECKPOINT_FILE
        if not path.exists():
            raise FileNotFoundError(
                f"no {CHECKPOINT_FILE} in {quoted_path(folder)}: cannot resume a run"
            )
        with reading_tensors(path, "checkpoint") as file:
            settings = Settings.from_json(file.text("settings"))
            step = _step(file.text("step"), high=settings.recipe.steps)
            metrics = None
            if "metrics" in file.metadata or CHECKSUM in file.metadata:
                metrics = Fingerprint.from_json(file.text("metrics"))
            tokenizer = tokenizer_from(file.metadata, settings.config.vocab_size)
            backend = _backend(file.metadata.get("backend"), settings)
            check_weights(
                file.tensors,
                weight_shapes(settings.config),
                CHECKPOINT_PART,
            )
            check_tensors(
                file.tensors, _state_shapes(settings, step, file.tensors), "state."
            )
            best = _best(file.metadata.get("best"), step)
            if best is not None and best.step != step:
                check_tensors(
                    file.tensors,
                    weight_shapes(settings.config),
                    "best.",
                )
            else:
                check_tensors(file.tensors, (), "best.")
            if unknown := [
                name for name in file.tensors if not name.startswith(PARTS)
            ]:
                names = ", ".join(f"{part}*" for part in PARTS)
                raise ValueError(
                    f"its tensors must be named {names}, got {unknown[0]!r}"
                )
            weights, moments = (
                without_prefix(file.tensors, part)
                for part in (CHECKPOINT_PART, "optimizer.")
            )
            if _numel(moments) > 2 * _numel(weights) + len(weights):
                raise ValueError(
                    f"it has {_numel(moments)} moments for {_numel(weights)} weights"
                )
            dtype = file.tensors[f"{CHECKPOINT_PART}token_embedding.weight"].dtype
            for name, entry in file.tensors.items():
                if entry.dtype != dtype and not name.endswith(".step"):
                    got = entry.dtype
                    raise ValueError(
                        f"{name!r} must be {dtype} like the weights, got {got}"
                    )
            tensors = dict(file.read())
        if best is not None:
            part = "best." if best.step != step else CHECKPOINT_PART
            best.weights.update(without_prefix(tensors, part))
        return cls(path, step, settings, metrics, tokenizer, tensors, best, backend)

    def restore(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
    ) -> State | None:
        """Copy weights and moments into a model and its optimiser.

        Returns:
            The carried memory, or None.

        Raises:
            ValueError: if the moments do not match the parameters of the optimiser.
        """
        weights = without_prefix(self.tensors, CHECKPOINT_PART)
        model.to(weights["token_embedding.weight"].dtype).load_state_dict(weights)
        moments: dict[int, dict[str, Tensor]] = {}
        with errors_about(self.path, "checkpoint"):
            for name, value in self._moments(optimizer).items():
                index, kind = name.split(".")
                moments.setdefault(int(index), {})[kind] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        state = {
            name: value.to(device)
            for name, value in without_prefix(self.tensors, "state.").items()
        }
        if not state:
            return None
        count = range(len(state) // 2)
        return State(
            tuple(state[f"keys.{i}"] for i in count),
            tuple(state[f"values.{i}"] for i in count),
        )

    def _moments(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return the moments; parameters that never had a gradient do not have any.

        Raises:
            ValueError: if they do not match the parameters or the step.
        """
        moments = without_prefix(self.tensors, "optimizer.")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        present = {name.partition(".")[0] for name in moments}
        expected = [
            (f"{i}.{kind}", () if kind == "step" else tuple(p.shape))
            for i, p in enumerate(parameters)
            for kind in MOMENTS
            if str(i) in present
        ]
        check_tensors(self.tensors, expected, "optimizer.")
        for name, value in moments.items():
            if name.endswith(".step") and not 1 <= value <= self.step:
                got = value.item()
                raise ValueError(
                    f"optimizer.{name} must be in [1, {self.step}], got {got}"
                )
        if self.step and not moments:
            raise ValueError(f"moments are missing after {self.step} steps")
        return moments


def _backend(name: str | None, settings: Settings) -> Backend | None:
    if name is None:
        return None
    check_backend(name, settings.config.variant)
    return cast(Backend, name)


def _best(text: str | None, step: int) -> Best | None:
    """Parse the best evaluation, which is stored without its weights.

    Raises:
        TypeError, ValueError: if a field is missing, unknown or not allowed.
    """
    if text is None:
        return None
    values = parse_json("best", text)
    check_instance("best", values, dict)
    best = Best(**values, weights={})
    check_int("step of the best evaluation", best.step, low=1, high=step)
    check_real("val_loss of the best evaluation", best.val_loss, low=0.0)
    check_bool("final of the best evaluation", best.final)
    return best


def _numel(tensors: Mapping[str, TensorInfo]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _state_shapes(
    settings: Settings, step: int, tensors: Mapping[str, TensorInfo]
) -> Iterator[tuple[str, Shape]]:
    """Yield the expected names and shapes of the carried memory.

    Its length is read from the first tensor in the file, and is at most the span.
    """
    config, recipe = settings.config, settings.recipe
    if not (recipe.carry and step):
        return
    length, first = config.span, tensors.get("state.keys.0")
    if first is not None and len(first.shape) == 4 and 1 <= first.shape[2] <= length:
        length = first.shape[2]
    for kind in ("keys", "values"):
        for i in range(1 if config.variant == "shared-kv" else config.n_layers):
            yield (
                f"{kind}.{i}",
                (recipe.batch_size, config.n_heads, length, config.d_head),
            )
