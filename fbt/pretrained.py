"""Files of a trained model: their names, their metadata, and loading from them.

`LanguageModel.save_pretrained` writes the weights into `WEIGHTS_FILE`, with the
config and the tokenizer in the metadata. The checkpoint of a training run contains
the same weights under names that begin with `CHECKPOINT_PART`.
"""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path

import torch
from torch import Tensor

from fbt._checks import check_instance
from fbt._files import quoted_path
from fbt._text import dataclass_from, parse_json
from fbt._weights import Shape, TensorFile, check_weights, reading_tensors, serialise
from fbt.config import Config
from fbt.subwords import SubwordTokenizer
from fbt.tokenizer import CharTokenizer, Tokenizer, check_tokenizer

WEIGHTS_FILE = "model.safetensors"
CHECKPOINT_FILE = "checkpoint.safetensors"  # written by fbt/training/checkpoint.py
CHECKPOINT_PART = "model."  # prefix of the names of the weights in a checkpoint
PRETRAINED = files("fbt") / "weights"


@dataclass(frozen=True)
class SavedModel:
    """An open file with the weights of a model.

    Attributes:
        config, tokenizer: of the model.
        file: the open file.
        prefix: what the names of the weights begin with.
    """

    config: Config
    tokenizer: Tokenizer | None
    file: TensorFile
    prefix: str

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of all weights, once they are checked."""
        return self.file.tensors[f"{self.prefix}token_embedding.weight"].dtype

    def check(self, expected: Iterable[tuple[str, Shape]]) -> None:
        """Raise a ValueError unless the weights have these names and shapes."""
        check_weights(self.file.tensors, expected, self.prefix)

    def copy_into(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the stored weights into tensors of the same names.

        Raises:
            ValueError: if the file is damaged.
        """
        for name, tensor in self.file.read(self.prefix):
            weights[name].copy_(tensor)  # one by one, which saves memory


def find_weights(name: str | Path) -> Traversable:
    """Return the file that `from_pretrained` loads; warn if it is a checkpoint.

    Args:
        name: as for `LanguageModel.from_pretrained`.

    Raises:
        FileNotFoundError: if there is no such folder, file or name.
    """
    if (Path(name) / WEIGHTS_FILE).exists():
        return Path(name) / WEIGHTS_FILE
    if (Path(name) / CHECKPOINT_FILE).exists():
        warnings.warn(
            f"no {WEIGHTS_FILE} in {quoted_path(name)}, whose run is not finished: "
            "loading its last checkpoint. To continue the run, call "
            f"fbt.training.resume({str(name)!r})",
            stacklevel=3,
        )
        return Path(name) / CHECKPOINT_FILE
    shipped = PRETRAINED / str(name) / WEIGHTS_FILE
    if shipped.is_file():
        return shipped
    if Path(name).is_file():
        return Path(name)
    names = sorted(folder.name for folder in PRETRAINED.iterdir() if folder.is_dir())
    raise FileNotFoundError(
        f"no {WEIGHTS_FILE} in {str(name)!r}; names that ship with fbt: {names}"
    )


@contextmanager
def open_saved(
    source: Traversable, tokenizer: Tokenizer | None = None
) -> Iterator[SavedModel]:
    """Open a file of weights and read its metadata.

    Args:
        source: the file, a checkpoint if it is named `CHECKPOINT_FILE`.
        tokenizer: the tokenizer to use; None uses the one in the file, if any.

    Raises:
        ImportError: if the file has a tokenizer whose library is not installed.
        ValueError: if the file is damaged or too large, changes while it is read, or
            fails a check in the caller's block.
    """
    is_checkpoint = source.name == CHECKPOINT_FILE
    kind = "checkpoint" if is_checkpoint else "model"
    # Files are opened by path, and a file of a package in a zip archive has none.
    with as_file(source) as path, reading_tensors(path, kind) as file:
        config = _config(file, is_checkpoint)
        if tokenizer is None:
            tokenizer = tokenizer_from(file.metadata, config.vocab_size)
        prefix = CHECKPOINT_PART if is_checkpoint else ""
        yield SavedModel(config, tokenizer, file, prefix)


def _config(file: TensorFile, is_checkpoint: bool) -> Config:
    """Return the config, which a checkpoint has in the settings of its run."""
    if not is_checkpoint:
        return dataclass_from(
            "config", Config, parse_json("config", file.text("config"))
        )
    settings = parse_json("settings", file.text("settings"))
    check_instance("settings", settings, dict)
    return dataclass_from("config", Config, settings.get("config"))


def serialise_model(
    path: Path,
    config: Config,
    tokenizer: Tokenizer | None,
    weights: Mapping[str, Tensor],
    expected: Iterable[tuple[str, Shape]],
) -> bytes:
    """Return the bytes of the file that `save_pretrained` writes.

    Args:
        path: where the file will be, for messages.
        config: of the model.
        tokenizer: of the model, if it has one.
        weights: the tensors of the model, by name.
        expected: the names and shapes that they must have.

    Raises:
        ValueError: as in `LanguageModel.save_pretrained`.
    """
    metadata = {"format": "pt", "config": json.dumps(asdict(config))}
    metadata |= tokenizer_metadata(tokenizer, config.vocab_size)
    check_weights(weights, expected)
    return serialise(path, weights, metadata)


def tokenizer_metadata(
    tokenizer: Tokenizer | None, vocab_size: int
) -> dict[str, str]:
    """Return what a file says about a tokenizer: data, and nothing that is executed.

    It is "vocabulary" for a `CharTokenizer`, "tokenizer" for a `SubwordTokenizer`,
    and nothing for others.

    Raises:
        TypeError, ValueError: if the tokenizer does not fit the model any more.
    """
    if tokenizer is None:
        return {}
    check_tokenizer(tokenizer, vocab_size)  # either may have changed
    if isinstance(tokenizer, CharTokenizer):
        return {"vocabulary": json.dumps(tokenizer.vocabulary)}
    if isinstance(tokenizer, SubwordTokenizer):
        return {"tokenizer": tokenizer.to_json()}
    return {}


def tokenizer_from(metadata: Mapping[str, str], vocab_size: int) -> Tokenizer | None:
    """Return the tokenizer that `tokenizer_metadata` describes, or None.

    Raises:
        ImportError: if its library is not installed.
        TypeError, ValueError: if the description is invalid, or does not fit.
    """
    tokenizer: Tokenizer
    if "vocabulary" in metadata:
        tokenizer = CharTokenizer.from_vocabulary(
            parse_json("vocabulary", metadata["vocabulary"])
        )
    elif "tokenizer" in metadata:
        tokenizer = SubwordTokenizer.from_json(metadata["tokenizer"])
    else:
        return None
    check_tokenizer(tokenizer, vocab_size)
    return tokenizer
