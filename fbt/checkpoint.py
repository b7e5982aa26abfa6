"""Checkpoints of a training run: one safetensors file with everything the next step depends on.

Weights, AdamW's moments, the carried memory and, in the file's metadata, the step and the settings. No
random state is kept: batches and dropout of a step depend on the seed and the step's number alone.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fbt._files import write_whole
from fbt.config import Config
from fbt.language_model import LanguageModel
from fbt.recipe import Recipe
from fbt.state import State

CHECKPOINT_FILE = "checkpoint.safetensors"


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

    def to_json(self) -> str:
        """All settings as a JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """The inverse of `to_json`; every field is checked anew."""
        values: dict[str, Any] = json.loads(text)
        return cls(**{**values, "config": Config(**values["config"]), "recipe": Recipe(**values["recipe"])})

    def differences(self, other: "Settings") -> list[str]:
        """The settings in which two runs differ, as "name: this value, that value"."""
        mine, theirs = self._compared(), other._compared()
        return [f"{name}: {mine[name]!r}, {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]

    def _compared(self) -> dict[str, Any]:
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
    """Write the checkpoint after `step` steps, whole or not at all."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    if state is not None:
        for i, (keys, values) in enumerate(zip(state.keys, state.values, strict=True)):
            tensors |= {f"state.keys.{i}": keys, f"state.values.{i}": values}
    metadata = {"step": str(step), "settings": settings.to_json()}
    if model.tokenizer is not None:
        metadata["vocabulary"] = json.dumps(model.tokenizer.vocabulary)
    data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata)
    write_whole(folder / CHECKPOINT_FILE, data)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back from disk.

    Attributes:
        step: how many steps had been taken.
        settings: what the run is.
        vocabulary: the tokenizer's characters.
        tensors: weights, moments and carried memory, by their names in the file.
    """

    step: int
    settings: Settings
    vocabulary: str
    tensors: dict[str, Tensor]

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint":
        """Read the checkpoint of a run.

        Raises:
            FileNotFoundError: the folder has none.
            ValueError: the file is damaged or is not a checkpoint.
        """
        path = folder / CHECKPOINT_FILE
        if not path.is_file():
            raise FileNotFoundError(f"no {CHECKPOINT_FILE} in {folder}: there is no run to resume")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                # Copied, so that nothing keeps the file open while the next checkpoint replaces it.
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
            settings = Settings.from_json(metadata["settings"])
            return cls(int(metadata["step"]), settings, json.loads(metadata["vocabulary"]), tensors)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a whole checkpoint of this version: {error}") from error

    def restore(
        self, model: LanguageModel, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> State | None:
        """Put weights and moments back, and return the memory that was carried, if any."""
        weights = self._part("model.")
        model.to(weights["token_embedding.weight"].dtype).load_state_dict(weights)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in self._part("optimizer.").items():
            index, kind = name.split(".")
            moments.setdefault(int(index), {})[kind] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        state = {name: value.to(device) for name, value in self._part("state.").items()}
        if not state:
            return None
        count = range(len(state) // 2)
        return State(tuple(state[f"keys.{i}"] for i in count), tuple(state[f"values.{i}"] for i in count))

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}
