"""The tokens that a run learns: of a text, a tensor, or a file larger than memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fbt._checks import check_integers, describe, shorten
from fbt._files import quoted_path
from fbt.data import Array
from fbt.tokenizer import CharTokenizer, Tokenizer, encode
from fbt.training.text import read_text

TOKEN_FILE = ".npy"  # the ending of the name of a token file
BLOCK = 1 << 20  # tokens that are encoded, checked and hashed at once


@dataclass(frozen=True)
class TrainingData:
    """The tokens of a run.

    Attributes:
        tokens: integers [N], of any dtype; a memory map is read in pieces only.
        tokenizer: their tokenizer, or None.
        vocab_size: the number of tokens in the vocabulary, V.
        source: as in `Settings.data`.
        sha256: as in `Settings.data_sha256`.
    """

    tokens: Array
    tokenizer: Tokenizer | None
    vocab_size: int
    source: str | None
    sha256: str


def data_of_text(
    text: str | Path | None, tokenizer: Tokenizer | None
) -> TrainingData:
    """Return the tokens of a text; without a tokenizer, of its characters.

    Raises:
        TypeError, ValueError: if the text cannot be encoded.
        OSError: if it cannot be read.
    """
    content, source = read_text(text)
    if tokenizer is None:
        tokenizer = CharTokenizer(content)
    tokens = _encoded(tokenizer, content)
    if isinstance(tokenizer, CharTokenizer):
        digest = hashlib.sha256()
        for start in range(0, len(content), BLOCK):
            digest.update(content[start : start + BLOCK].encode())
        sha256 = digest.hexdigest()
    else:
        sha256, _ = _scanned(tokens)
    return TrainingData(tokens, tokenizer, tokenizer.vocab_size, source, sha256)


def _encoded(tokenizer: Tokenizer, text: str) -> Array:
    """Return the ids of a text in the smallest dtype."""
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    if type(tokenizer) is not CharTokenizer:  # ids may depend on neighbours
        return encode(tokenizer, text).numpy().astype(dtype)
    tokens = np.empty(len(text), dtype)
    try:
        for start in range(0, len(text), BLOCK):
            block = text[start : start + BLOCK]
            tokens[start : start + BLOCK] = tokenizer.encode(block).numpy()
    except ValueError:
        tokenizer.encode(text)  # raises with the position in the whole text
        raise
    return tokens


def data_of_tokens(
    tokens: Tensor | Array | Path, tokenizer: Tokenizer | None
) -> TrainingData:
    """Return given tokens, which are read once, to check and to hash them.

    Args:
        tokens: a tensor or array of integers [N], such as a NumPy memory map, or the
            Path of a token file: an array [N] of integers, such as uint16 or uint32,
            written by `numpy.save`. Files are mapped into memory, not loaded.
        tokenizer: their tokenizer, or None; V is then the largest token + 1.

    Raises:
        TypeError: if the tokens are anything else.
        ValueError: if they are not one-dimensional, a token is negative or outside
            the vocabulary, or the file is damaged.
        OSError: if the file cannot be read.
    """
    source = None
    if isinstance(tokens, Path):
        source = str(tokens.resolve())
        array = _mapped(tokens)
    elif isinstance(tokens, Tensor):
        check_integers("tokens", tokens, "[N]")
        array = tokens.detach().cpu().numpy()
    else:
        array = tokens
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
        raise TypeError(
            "tokens must be a tensor or an array of integers, or the Path of a token "
            f"file ({TOKEN_FILE}), got {describe(tokens)}"
        )
    if array.ndim != 1 or not len(array):
        raise ValueError(
            f"tokens must have shape [N] with N >= 1, got {list(array.shape)}"
        )
    sha256, highest = _scanned(array)
    vocab_size = highest + 1 if tokenizer is None else tokenizer.vocab_size
    data = TrainingData(array, tokenizer, vocab_size, source, sha256)
    check_vocabulary(highest, vocab_size)
    return data


def check_vocabulary(highest: int, vocab_size: int) -> None:
    """Raise a ValueError if the highest token is outside the vocabulary."""
    if highest >= vocab_size:
        raise ValueError(f"tokens must be in [0, {vocab_size - 1}], got {highest}")


def _mapped(path: Path) -> Any:
    if path.suffix != TOKEN_FILE:
        raise ValueError(
            f"a token file must be named *{TOKEN_FILE}, as numpy.save writes it, got "
            f"{quoted_path(path)}; map another file with numpy.memmap, and pass that"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{quoted_path(path)} is not a file")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{quoted_path(path)} must be a file of numpy.save: {shorten(str(error))}"
        ) from error


def _scanned(tokens: Array) -> tuple[str, int]:
    """Return the SHA-256 of tokens as little-endian uint32, and the highest one."""
    digest, highest = hashlib.sha256(), 0
    for start in range(0, len(tokens), BLOCK):
        block = np.asarray(tokens[start : start + BLOCK])
        low, high = int(block.min()), int(block.max())
        if low < 0 or high >= 2**32:
            got = low if low < 0 else high
            raise ValueError(f"tokens must be in [0, 2^32 - 1], got {got}")
        digest.update(block.astype("<u4").data)
        highest = max(highest, high)
    return digest.hexdigest(), highest
