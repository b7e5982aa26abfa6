"""Checkpoints of a training run: one safetensors file with everything the next step depends on.

Weights, AdamW's moments, the carried memory and, in the file's metadata, the step and the settings. No
random state is kept: batches and dropout of a step depend on the seed and the step's number alone.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fbt._checks import check_instance, check_int
from fbt._files import naming
from fbt._text import parsed
from fbt._weights import Shape, check_sizes, check_tensors, check_weights, part_of, reading, write
from fbt.config import Config
from fbt.data import CharTokenizer
from fbt.language_model import LanguageModel, check_tokenizer, shapes_of
from fbt.recipe import Recipe
from fbt.state import State

CHECKPOINT_FILE = "checkpoint.safetensors"
PARTS = ("model.", "state.", "optimizer.")
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter


@dataclass(frozen=True)
class Settings:
    """What a run is: two runs with equal settings on equal software give equal losses.

    Attributes:
        config, recipe: the model and how it is trained.
        data: where the text came from: "tiny-shakespeare", the path of a file, or None for a text given in
            Python. Two runs may differ in it: it is the hash that counts.
        data_sha256: hash of the text in UTF-8.
        init_from: folder of the parallel model the run started from, "a model" if that was given in Python,
            or None.
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

    def to_json(self) -> str:
        """All settings as a JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """The inverse of `to_json`; every field is checked anew.

        Raises:
            TypeError, ValueError: a field is missing, unknown, of the wrong type or out of range.
        """
        check_instance("text", text, str)
        values = parsed("settings", text)
        check_instance("settings", values, dict)
        for name, kind in (("config", Config), ("recipe", Recipe)):
            check_instance(name, values.get(name), dict)
            values[name] = kind(**values[name])
        return cls(**values)

    def differences(self, other: "Settings") -> list[str]:
        """The settings in which two runs differ, as "name: this value, that value"."""
        check_instance("other", other, Settings)
        mine, theirs = self.compared(), other.compared()
        return [f"{name}: {mine[name]!r}, {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]

    def compared(self) -> dict[str, Any]:
        """What two runs must have in common to be one."""
        names = {"data_sha256": self.data_sha256, "init_from": self.init_from}
        return names | asdict(self.config) | asdict(self.recipe)


def save_checkpoint(
    folder: Path,
    step: int,
    settings: Settings,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    state: State | None,
) -> None:
    """Write the checkpoint after `step` steps, whole or not at all.

    Raises:
        ValueError: it would be larger than `Checkpoint.load` reads.
        OSError: it cannot be written.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    if state is not None:
        for i, (keys, values) in enumerate(zip(state.keys, state.values, strict=True)):
            tensors |= {f"state.keys.{i}": keys, f"state.values.{i}": values}
    metadata = {"step": str(step), "settings": settings.to_json()}
    if model.tokenizer is not None:
        metadata["vocabulary"] = json.dumps(model.tokenizer.vocabulary)
    path = folder / CHECKPOINT_FILE
    # The first checkpoint has no moments, two numbers to a weight; that the next is too large shows now.
    check_sizes(path, 3 * sum(p.numel() * p.element_size() for p in model.parameters()), b"")
    write(path, tensors, metadata)


def saved_step(folder: Path) -> int | None:
    """The step of the checkpoint in a folder, or None where there is none."""
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    with reading(path, "checkpoint") as file:
        return int(file.text("step"))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back from disk.

    Attributes:
        path: where it was read.
        step: how many steps had been taken.
        settings: what the run is.
        vocabulary: the tokenizer's characters.
        tensors: weights, moments and carried memory, by their names in the file.
    """

    path: Path
    step: int
    settings: Settings
    vocabulary: str
    tensors: dict[str, Tensor]

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint":
        """Read the checkpoint of a run.

        Raises:
            FileNotFoundError: the folder has none.
            ValueError: the file is damaged, is not a checkpoint or is larger than 4 GiB, or its tensors are
                not those of its settings; which is checked before memory is taken for them.
        """
        path = folder / CHECKPOINT_FILE
        if not path.is_file():
            raise FileNotFoundError(f"no {CHECKPOINT_FILE} in {folder}: there is no run to resume")
        with reading(path, "checkpoint") as file:
            settings = Settings.from_json(file.text("settings"))
            step = int(file.text("step"))
            check_int("step", step, low=0, high=settings.recipe.steps)
            tokenizer = CharTokenizer.from_vocabulary(parsed("vocabulary", file.text("vocabulary")))
            check_tokenizer(tokenizer, settings.config)
            check_weights(file.tensors, shapes_of(settings.config), "model.")
            check_weights(file.tensors, _state_shapes(settings, step, file.tensors), "state.")
            if unknown := [name for name in file.tensors if not name.startswith(PARTS)]:
                raise ValueError(f"its tensors must be named {'*, '.join(PARTS)}*, got {unknown[0]!r}")
            weights, moments = (part_of(file.tensors, part) for part in ("model.", "optimizer."))
            if _numbers(moments) > 2 * _numbers(weights) + len(weights):
                raise ValueError(f"it has {_numbers(moments)} moments for {_numbers(weights)} weights")
            # Copied, so that nothing keeps the file open while the next checkpoint replaces it.
            tensors = {name: value.clone() for name, value in file.tensors.items()}
        return cls(path, step, settings, tokenizer.vocabulary, tensors)

    def restore(
        self, model: LanguageModel, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> State | None:
        """Put weights and moments back, and return the memory that was carried, if any.

        Raises:
            ValueError: the moments are not those of the optimizer's parameters.
        """
        weights = part_of(self.tensors, "model.")
        model.to(weights["token_embedding.weight"].dtype).load_state_dict(weights)
        moments: dict[int, dict[str, Tensor]] = {}
        with naming(self.path, "checkpoint"):
            for name, value in self._moments(optimizer).items():
                index, kind = name.split(".")
                moments.setdefault(int(index), {})[kind] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        state = {name: value.to(device) for name, value in part_of(self.tensors, "state.").items()}
        if not state:
            return None
        count = range(len(state) // 2)
        return State(tuple(state[f"keys.{i}"] for i in count), tuple(state[f"values.{i}"] for i in count))

    def _moments(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """The moments of the optimizer's parameters; one that never got a gradient has none.

        Raises:
            ValueError: they are others, or have seen more steps than there were.
        """
        moments = part_of(self.tensors, "optimizer.")
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
                raise ValueError(f"optimizer.{name} must be in [1, {self.step}], got {value.item()}")
        if self.step and not moments:
            raise ValueError(f"there are no moments after {self.step} steps")
        return moments


def _numbers(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _state_shapes(settings: Settings, step: int, found: Mapping[str, Tensor]) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the carried memory after a step; how long it is, up to the span, the file says."""
    config, recipe = settings.config, settings.recipe
    if not (recipe.carry and step):
        return
    length, first = config.span, found.get("state.keys.0")
    if first is not None and first.ndim == 4 and 1 <= first.shape[2] <= length:
        length = first.shape[2]
    for kind in ("keys", "values"):
        for i in range(1 if config.variant == "shared-kv" else config.n_layers):
            yield f"{kind}.{i}", (recipe.batch_size, config.n_heads, length, config.d_head)
