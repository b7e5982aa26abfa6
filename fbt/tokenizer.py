"""Texts to token ids and back: what a tokenizer is, and one for characters."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fbt._checks import check_instance, check_integers, describe, shorten


class Tokenizer(Protocol):
    """What a model, a run or a generated text needs of a tokenizer.

    `CharTokenizer`, `SubwordTokenizer` and `fbt.tasks.WordTokenizer` are tokenizers,
    and so is any object with these two methods and this attribute.
    """

    @property
    def vocab_size(self) -> int:
        """The number of token ids, V."""

    def encode(self, text: str, /) -> Tensor | Sequence[int]:
        """Return the ids [N] of a text, as an integer tensor or a sequence of ints.

        Raises:
            ValueError: if the text cannot be encoded.
        """

    def decode(self, ids: list[int], /) -> str:
        """Return the text of ids in [0, V - 1]."""


def check_tokenizer(tokenizer: Any, vocab_size: int | None = None) -> None:
    """Raise unless an object is a tokenizer, with this number of ids if it is given.

    Raises:
        TypeError: if it does not have `encode`, `decode` and an int `vocab_size`.
        ValueError: if its `vocab_size` differs.
    """
    size = getattr(tokenizer, "vocab_size", None)
    methods = (getattr(tokenizer, name, None) for name in ("encode", "decode"))
    if (
        isinstance(tokenizer, type)
        or not all(map(callable, methods))
        or isinstance(size, bool)
        or not isinstance(size, int)
    ):
        advice = ""
        if type(tokenizer).__module__.partition(".")[0] == "tokenizers":
            advice = "; pass fbt.SubwordTokenizer(tokenizer)"
        raise TypeError(
            "tokenizer must have the methods encode and decode and an int "
            f"vocab_size, got {describe(tokenizer)}{advice}"
        )
    if vocab_size not in (None, size):
        raise ValueError(
            f"tokenizer must have vocab_size={vocab_size} tokens, as the model, "
            f"got {size}"
        )


def encode(tokenizer: Tokenizer, text: str) -> Tensor:
    """Return the ids of a text as an int64 tensor [N] on the CPU, N >= 0.

    Raises:
        TypeError, ValueError: if the tokenizer refuses the text, or returns anything
            but ids in [0, V - 1].
    """
    ids = tokenizer.encode(text)
    if not isinstance(ids, Tensor):
        ids = torch.tensor(list(ids), dtype=torch.long, device="cpu")
    check_integers("the result of tokenizer.encode", ids, "[N]")
    ids = ids.detach().to("cpu", torch.long)
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < tokenizer.vocab_size:
        got = next(i for i in ids.tolist() if not 0 <= i < tokenizer.vocab_size)
        raise ValueError(
            "the result of tokenizer.encode must be in "
            f"[0, {tokenizer.vocab_size - 1}], got {got}"
        )
    return ids


class CharTokenizer:
    """A tokenizer whose token ids are the positions of a text's sorted characters.

    Two tokenizers are equal if their vocabularies are.

    Args:
        text: contains every character to be encoded.

    Raises:
        TypeError: if `text` is not a str.
        ValueError: if `text` is empty.
    """

    def __init__(self, text: str) -> None:
        check_instance("text", text, str)
        if not text:
            raise ValueError("text must have at least one character, got ''")
        self._set_vocabulary("".join(sorted(set(text))))

    @classmethod
    def from_vocabulary(cls, vocabulary: str) -> CharTokenizer:
        """Return the tokenizer in which `vocabulary[i]` has the id i.

        Args:
            vocabulary: distinct characters, at least one, in the order of their ids.

        Raises:
            TypeError: if `vocabulary` is not a str.
            ValueError: if `vocabulary` is empty or contains a character twice.
        """
        check_instance("vocabulary", vocabulary, str)
        if not vocabulary:
            raise ValueError("vocabulary must have at least one character, got ''")
        seen: set[str] = set()
        for position, character in enumerate(vocabulary):
            if character in seen:
                raise ValueError(
                    "vocabulary must have distinct characters, got "
                    f"{_describe(character)} again at position {position}"
                )
            seen.add(character)
        tokenizer = cls.__new__(cls)
        tokenizer._set_vocabulary(vocabulary)
        return tokenizer

    def _set_vocabulary(self, vocabulary: str) -> None:
        self._vocabulary = vocabulary
        self._code_points = _code_points(vocabulary)
        # The id of each code point up to the highest in use, or -1 if it has none.
        # One more -1 stands for all higher code points, so that encoding is a single
        # look-up.
        self._ids = np.full(int(self._code_points.max()) + 2, -1, dtype=np.int64)
        self._ids[self._code_points] = np.arange(len(vocabulary))

    @property
    def vocabulary(self) -> str:
        """The characters, in the order of their ids."""
        return self._vocabulary

    @property
    def vocab_size(self) -> int:
        """The number of characters, V."""
        return len(self._vocabulary)

    def encode(self, text: str) -> Tensor:
        """Return the token id of each character.

        Args:
            text: N characters of the vocabulary.

        Returns:
            int64 tensor [N].

        Raises:
            TypeError: if `text` is not a str.
            ValueError: if a character is not in the vocabulary. The message gives
                the character and its position.
        """
        check_instance("text", text, str)
        ids = self._ids[np.minimum(_code_points(text), len(self._ids) - 1)]
        unknown = np.flatnonzero(ids < 0)
        if unknown.size:
            position = int(unknown[0])
            raise ValueError(
                f"text must contain only the {self.vocab_size} characters of the "
                f"vocabulary, got {_describe(text[position])} at position {position}"
            )
        return torch.from_numpy(ids)

    def decode(self, numbers: Tensor | Sequence[int]) -> str:
        """Return the characters of token ids.

        Args:
            numbers: N token ids in [0, V-1], as an integer tensor [N] on any device
                or as a sequence of ints.

        Returns:
            A str of N characters; `decode(encode(text)) == text`.

        Raises:
            TypeError: if `numbers` contains anything but ints.
            ValueError: if `numbers` is not one-dimensional, or an id is out of range.
        """
        ids = _integers(numbers)
        invalid = np.flatnonzero((ids < 0) | (ids >= self.vocab_size))
        if invalid.size:
            position = int(invalid[0])
            raise ValueError(
                f"numbers must be in [0, {self.vocab_size - 1}], "
                f"got {shorten(int(ids[position]))} at position {position}"
            )
        code_points: bytes = self._code_points[ids.astype(np.int64)].tobytes()
        return code_points.decode("utf-32-le", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        return (
            self._vocabulary == other._vocabulary
            if isinstance(other, CharTokenizer)
            else NotImplemented
        )

    def __hash__(self) -> int:
        return hash(self._vocabulary)

    def __repr__(self) -> str:
        return f"CharTokenizer.from_vocabulary({self._vocabulary!r})"


def _describe(character: str) -> str:
    return f"{character!r} (U+{ord(character):04X})"


def _code_points(text: str) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Return the code points [N] of N characters; a lone surrogate counts as one."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _integers(numbers: Any) -> np.ndarray[Any, Any]:
    """Return the integers of a tensor or sequence as a one-dimensional array."""
    if isinstance(numbers, Tensor):
        check_integers("numbers", numbers, "[N]")
        return numbers.detach().cpu().numpy()
    if isinstance(numbers, str) or not isinstance(numbers, Iterable):
        raise TypeError(
            f"numbers must be a tensor or a sequence of ints, got {describe(numbers)}"
        )
    items: list[int] = []
    for position, item in enumerate(numbers):
        if isinstance(item, bool) or not hasattr(item, "__index__"):
            raise TypeError(
                f"numbers must be ints, got {describe(item)} at position {position}"
            )
        items.append(operator.index(item))
    return np.array(items, dtype=object)  # of any size: the range is checked later
