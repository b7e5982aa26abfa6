"""Checkpoints of a training run: one safetensors file with all that the next step needs.

It holds the weights, AdamW's moments, the carried memory, the best weights so far if
these are others and, in its metadata, the step, the settings and the fingerprint of
the metrics. No random state is kept: batches and dropout of a step depend on the seed
and the step's number alone.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fbt._checks import (
    check_bool,
    check_choice,
    check_instance,
    check_int,
    check_real,
)
from fbt._files import errors_about, quoted_path
from fbt._text import dataclass_from, parse_json
from fbt._weights import (
    Shape,
    TensorInfo,
    check_sizes,
    check_tensors,
    check_weights,
    reading_tensors,
    serialise,
    without_prefix,
)
from fbt.config import Config
from fbt.data import CharTokenizer
from fbt.language_model import (
    BODIES,
    CHECKPOINT_PART,
    LanguageModel,
    check_tokenizer,
    weight_shapes,
)
from fbt.language_model import CHECKPOINT_FILE as CHECKPOINT_FILE
from fbt.state import State
from fbt.training.recipe import Recipe

PARTS = (CHECKPOINT_PART, "state.", "optimizer.", "best.")
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter


@dataclass(frozen=True)
class Fingerprint:
    """What the file of metrics looked like when the checkpoint was written.

    Attributes:
        size: its length in bytes; lines that were written later are not counted.
        sha256: SHA-256 of these bytes, 64 hexadecimal digits.
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
        """Return the inverse of `to_json`.

        Raises:
            TypeError, ValueError: if a field is missing, unknown or not allowed.
        """
        return dataclass_from("metrics", cls, parse_json("metrics", text))


@dataclass(frozen=True)
class Settings:
    """What a run is: two runs with equal settings on equal software give equal losses.

    Attributes:
        config, recipe: the model and how it is trained.
        data: where the text came from: "tiny-shakespeare", the path of a file, or
            None for a text given in Python. Two runs may differ in it: it is the hash
            that counts.
        data_sha256: hash of the text in UTF-8.
        init_from: folder of the parallel model the run started from, "a model" if
            that was given in Python, or None.
    """

    config: Config
    recipe: Recipe
    data: str | None
    data_sha256: str
    init_from: str | None

    def __post_init__(self) -> None:
        """Check the type of every field."""
        check_instance("config", self.config, Config)
        check_instance("recipe", self.recipe, Recipe)
        check_instance("data_sha256", self.data_sha256, str)
        for name in ("data", "init_from"):
            check_instance(name, getattr(self, name), str, type(None))
        check_backend(self.recipe.backend, self.config.variant, "auto")

    def to_json(self) -> str:
        """All settings as a JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """The inverse of `to_json`; every field is checked anew.

        Raises:
            TypeError, ValueError: a field is missing, unknown, of the wrong type or
                out of range.
        """
        check_instance("text", text, str)
        values = parse_json("settings", text)
        check_instance("settings", values, dict)
        parts: tuple[tuple[str, type[Config] | type[Recipe]], ...] = (
            ("config", Config),
            ("recipe", Recipe),
        )
        for name, kind in parts:
            if name in values:
                values[name] = dataclass_from(name, kind, values[name])
        return dataclass_from("settings", cls, values)

    def differences(self, other: "Settings") -> list[str]:
        """The settings in which two runs differ, as "name: this value, that value"."""
        check_instance("other", other, Settings)
        mine, theirs = self.compared(), other.compared()
        return [
            f"{name}: {mine[name]!r}, {theirs[name]!r}"
            for name in mine
            if mine[name] != theirs[name]
        ]

    def compared(self) -> dict[str, Any]:
        """What two runs must have in common to be one."""
        names = {"data_sha256": self.data_sha256, "init_from": self.init_from}
        return names | asdict(self.config) | asdict(self.recipe)


def check_backend(name: str, variant: str, *more: str) -> None:
    """Raise a ValueError unless it is a backend of the variant, or one of some others."""
    allowed = (*more, *BODIES[variant].backends)
    check_choice(f"backend of a {variant!r} model", name, allowed)


@dataclass(frozen=True, eq=False)
class Best:
    """The weights with the lowest validation loss of a run so far.

    Attributes:
        step: after how many steps.
        val_loss: their loss in nats per character, over the windows of the
            evaluations during the run or, once `final`, over the windows of the last
            one.
        final: whether the last evaluation has been made, so that the run returns
            these weights.
        weights: by name, as in the model's state dict.
    """

    step: int
    val_loss: float
    final: bool
    weights: dict[str, Tensor]

    def to_json(self) -> str:
        """Everything but the weights."""
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
        path: where the file is going to be, for messages.
        step: the number of steps taken.
        settings: of the run.
        model: the model, with its tokenizer and the backend that computes the run.
        optimizer: whose moments are saved.
        state: the carried memory, if any.
        metrics: fingerprint of the file of metrics up to this step.
        best: the best weights so far, stored unless they are the model's own.

    Raises:
        ValueError: if it would be larger than `Checkpoint.load` reads.
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
    if model.tokenizer is not None:
        metadata["vocabulary"] = json.dumps(model.tokenizer.vocabulary)
    if model.backend != "auto":
        metadata["backend"] = model.backend
    # The first checkpoint has neither moments, two numbers per weight, nor best
    # weights; that a later one would be too large shows now.
    check_sizes(
        path, 4 * sum(p.numel() * p.element_size() for p in model.parameters()), b""
    )
    return serialise(path, tensors, metadata)


def _step(text: str, high: int | None = None) -> int:
    """The step from its text in the metadata, at most `high`."""
    step: int = parse_json("step", text)
    check_int("step", step, low=0, high=high)
    return step


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back from disk.

    Attributes:
        path: where it was read.
        step: how many steps had been taken.
        settings: what the run is.
        metrics: fingerprint of the file of metrics up to this step.
        vocabulary: the tokenizer's characters.
        tensors: weights, moments, carried memory and best weights, by their names in
            the file.
        best: the best evaluation so far, or None; its weights are in `tensors`.
        backend: the backend that computed the run, or None if it is not recorded.
    """

    path: Path
    step: int
    settings: Settings
    metrics: Fingerprint
    vocabulary: str
    tensors: dict[str, Tensor]
    best: Best | None = None
    backend: str | None = None

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint":
        """Read the checkpoint of a run.

        Raises:
            FileNotFoundError: the folder has none.
            ValueError: the file is damaged, is not a checkpoint or is larger than 4
                GiB, or its tensors are not those of its settings; which is checked
                before memory is taken for them.
        """
        path = folder / CHECKPOINT_FILE
        if not path.exists():
            raise FileNotFoundError(
                f"no {CHECKPOINT_FILE} in {quoted_path(folder)}: there is no run to resume"
            )
        with reading_tensors(path, "checkpoint") as file:
            settings = Settings.from_json(file.text("settings"))
            step = _step(file.text("step"), high=settings.recipe.steps)
            metrics = Fingerprint.from_json(file.text("metrics"))
            tokenizer = CharTokenizer.from_vocabulary(
                parse_json("vocabulary", file.text("vocabulary"))
            )
            check_tokenizer(tokenizer, settings.config)
            backend = file.metadata.get("backend")
            if backend is not None:
                check_backend(backend, settings.config.variant)
            check_weights(
                file.tensors, weight_shapes(settings.config), CHECKPOINT_PART
            )
            check_tensors(
                file.tensors, _state_shapes(settings, step, file.tensors), "state."
            )
            best = _best(file.metadata.get("best"), step)
            if best is not None and best.step != step:
                check_tensors(file.tensors, weight_shapes(settings.config), "best.")
            else:
                check_tensors(file.tensors, (), "best.")
            if unknown := [
                name for name in file.tensors if not name.startswith(PARTS)
            ]:
                raise ValueError(
                    f"its tensors must be named {'*, '.join(PARTS)}*, got {unknown[0]!r}"
                )
            weights, moments = (
                without_prefix(file.tensors, part)
                for part in (CHECKPOINT_PART, "optimizer.")
            )
            if _numbers(moments) > 2 * _numbers(weights) + len(weights):
                raise ValueError(
                    f"it has {_numbers(moments)} moments for {_numbers(weights)} weights"
                )
            dtype = file.tensors[f"{CHECKPOINT_PART}token_embedding.weight"].dtype
            for name, entry in file.tensors.items():
                if entry.dtype != dtype and not name.endswith(".step"):
                    got = entry.dtype
                    raise ValueError(
                        f"{name!r} must be of {dtype} as the weights are, got {got}"
                    )
            tensors = dict(file.read())
        if best is not None:
            part = "best." if best.step != step else CHECKPOINT_PART
            best.weights.update(without_prefix(tensors, part))
        vocabulary = tokenizer.vocabulary
        return cls(path, step, settings, metrics, vocabulary, tensors, best, backend)

    def restore(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
    ) -> State | None:
        """Put weights and moments back, and return the memory that was carried, if any.

        Raises:
            ValueError: the moments are not those of the optimizer's parameters.
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
        """The moments of the optimizer's parameters; one that never got a gradient has none.

        Raises:
            ValueError: they are others, or have seen more steps than there were.
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
                raise ValueError(
                    f"optimizer.{name} must be in [1, {self.step}], got {value.item()}"
                )
        if self.step and not moments:
            raise ValueError(f"there are no moments after {self.step} steps")
        return moments


def _best(text: str | None, step: int) -> Best | None:
    """The best evaluation as a checkpoint's metadata describes it, without its weights.

    Raises:
        TypeError, ValueError: a field is missing, unknown, of the wrong type or out
            of range.
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


def _numbers(tensors: Mapping[str, TensorInfo]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _state_shapes(
    settings: Settings, step: int, found: Mapping[str, TensorInfo]
) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the carried memory after a step; how long it is, up to the span, the file says."""
    config, recipe = settings.config, settings.recipe
    if not (recipe.carry and step):
        return
    length, first = config.span, found.get("state.keys.0")
    if first is not None and len(first.shape) == 4 and 1 <= first.shape[2] <= length:
        length = first.shape[2]
    for kind in ("keys", "values"):
        for i in range(1 if config.variant == "shared-kv" else config.n_layers):
            yield (
                f"{kind}.{i}",
                (recipe.batch_size, config.n_heads, length, config.d_head),
            )
