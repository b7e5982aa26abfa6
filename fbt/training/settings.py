"""The settings of a run, which its checkpoint records."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from fbt._checks import check_choice, check_instance
from fbt._text import dataclass_from, parse_json
from fbt.config import Config
from fbt.language_model import BODIES
from fbt.training.recipe import Recipe


@dataclass(frozen=True)
class Settings:
    """The settings of a run.

    Attributes:
        config: sizes and options of the model.
        recipe: settings of the training.
        data: the source of the text: "tiny-shakespeare", the path of a file of text
            or tokens, or None for what was passed in Python. It is not compared
            between runs; the hash is.
        data_sha256: SHA-256 of the text in UTF-8 or, unless its tokens are its
            characters, of the tokens as little-endian uint32.
        init_from: the name or folder of the model that initialised the run, "a model"
            if it was passed in Python, or None.
    """

    config: Config
    recipe: Recipe
    data: str | None
    data_sha256: str
    init_from: str | None

    def __post_init__(self) -> None:
        """Check every field."""
        check_instance("config", self.config, Config)
        check_instance("recipe", self.recipe, Recipe)
        check_instance("data_sha256", self.data_sha256, str)
        for name in ("data", "init_from"):
            check_instance(name, getattr(self, name), str, type(None))
        check_backend(self.recipe.backend, self.config.variant, "auto")
        if self.recipe.recompute:
            check_choice(
                "variant with recompute", self.config.variant, ("shared-kv",)
            )

    def to_json(self) -> str:
        """Return all settings as a JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Parse the result of `to_json`, checking every field.

        Raises:
            TypeError, ValueError: if a field is missing, unknown or not allowed.
        """
        check_instance("text", text, str)
        values = parse_json("settings", text)
        check_instance("settings", values, dict)
        kinds: dict[str, type[Config | Recipe]] = {"config": Config, "recipe": Recipe}
        for name, kind in kinds.items():
            if name in values:
                values[name] = dataclass_from(name, kind, values[name])
        return dataclass_from("settings", cls, values)

    def differences(self, other: "Settings") -> list[str]:
        """Return the settings that differ, as "name: this value, other value"."""
        check_instance("other", other, Settings)
        mine, theirs = self.compared(), other.compared()
        return [
            f"{name}: {mine[name]!r}, {theirs[name]!r}"
            for name in mine
            if mine[name] != theirs[name]
        ]

    def compared(self) -> dict[str, Any]:
        """Return the settings that must be equal to resume a run, by name."""
        source = {"data_sha256": self.data_sha256, "init_from": self.init_from}
        return source | asdict(self.config) | asdict(self.recipe)


def check_backend(name: str, variant: str, *others: str) -> None:
    """Raise a ValueError unless a name is a backend of the variant or in `others`."""
    allowed = (*others, *BODIES[variant].backends)
    check_choice(f"backend of a {variant!r} model", name, allowed)
