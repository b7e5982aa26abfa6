"""The base class of tasks: a vocabulary, a stream of batches and an oracle."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fbt._checks import (
    check_bool,
    check_float_tensor,
    check_instance,
    check_int,
    check_integers,
    check_items,
    check_tokens,
    check_values,
    shorten,
    texts_in,
)

# The label of steps without a question; `cross_entropy` ignores it by default.
IGNORE = -100


class WordTokenizer:
    """A tokenizer for words separated by spaces.

    Args:
        words: distinct words without white space; the ids follow their order.

    Raises:
        TypeError: if `words` is not a sequence of texts.
        ValueError: if a word is empty, contains white space or occurs twice.
    """

    def __init__(self, words: Sequence[str]) -> None:
        words = texts_in("words", words)
        for word in words:
            if word.split() != [word]:
                raise ValueError(
                    "words must be without white space and not empty, "
                    f"got {shorten(word)}"
                )
        if len(set(words)) < len(words):
            repeated = next(word for i, word in enumerate(words) if word in words[:i])
            raise ValueError(f"words must be distinct, got {shorten(repeated)} twice")
        self.words = tuple(words)
        self._ids = {word: i for i, word in enumerate(self.words)}

    def encode(self, text: str) -> Tensor:
        """Return the ids [n] of the n words of a text.

        Raises:
            TypeError: if `text` is not a str.
            ValueError: if a word is not in the vocabulary; the message quotes it.
        """
        check_instance("text", text, str)
        unknown = next((word for word in text.split() if word not in self._ids), None)
        if unknown is not None:
            raise ValueError(
                f"text must be made of the {len(self.words)} words of the task, "
                f"got {shorten(unknown)}"
            )
        ids = [self._ids[word] for word in text.split()]
        return torch.tensor(ids, dtype=torch.long)

    @property
    def vocab_size(self) -> int:
        """The number of words, V."""
        return len(self.words)

    def decode(self, numbers: Tensor | list[int]) -> str:
        """Return the words of ids [n], separated by spaces, with "_" for IGNORE.

        Raises:
            TypeError: if `numbers` is not a tensor of integers or a list of ints.
            ValueError: if `numbers` has another shape, or an id is out of range.
        """
        if isinstance(numbers, list):
            check_items("numbers", numbers, int)
            numbers = torch.tensor(numbers, dtype=torch.long, device="cpu")
        check_integers("numbers", numbers, "[N]")
        last = len(self.words) - 1
        unknown = next(
            (i for i in numbers.tolist() if i != IGNORE and not 0 <= i <= last), None
        )
        if unknown is not None:
            raise ValueError(
                f"numbers must be in [0, {last}] or {IGNORE}, got {unknown}"
            )
        return " ".join(
            "_" if i == IGNORE else self.words[i] for i in numbers.tolist()
        )


class Task(ABC):
    """A task: random sequences of tokens, with an answer for each step.

    Args:
        words: the vocabulary, which sequences and answers share.
        dense: label every step that has an answer, not only the last one.

    Attributes:
        words: the vocabulary.
        tokenizer: the tokenizer of `words`.
    """

    def __init__(self, words: Sequence[str], dense: bool) -> None:
        check_bool("dense", dense)
        self.dense = dense
        self.tokenizer = WordTokenizer(words)
        self.words = self.tokenizer.words

    @abstractmethod
    def draw(
        self, batch: int, length: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw tokens and answers, both [batch, T]; IGNORE means no answer."""

    @abstractmethod
    def answer(self, words: Sequence[str]) -> list[str | None]:
        """Return the answer, or None, at each step of one sequence of words.

        Raises:
            TypeError: if `words` is not a sequence of texts.
            ValueError: if `words` is not a sequence of this task.
        """

    def solve(self, tokens: Tensor) -> Tensor:
        """Compute the labels [B, T] of tokens [B, T] from their words: the oracle.

        Raises:
            TypeError: if `tokens` is not an int64 or int32 tensor.
            ValueError: if `tokens` has another shape or an id that is out of range,
                or a row is not a sequence of this task.
        """
        check_tokens("tokens", tokens, "[B, T]", len(self.words))
        try:
            return self._solve(tokens)
        except ValueError as error:
            raise ValueError(
                f"tokens must be sequences of this task: {error}"
            ) from error

    def _solve(self, tokens: Tensor) -> Tensor:
        rows = []
        for row in tokens:
            answers = self.answer(self.tokenizer.decode(row).split())
            ids = [
                IGNORE if a is None else int(self.tokenizer.encode(a))
                for a in answers
            ]
            rows.append(torch.tensor(ids, dtype=torch.long))
        return self._labels(torch.stack(rows))

    def sample(
        self, batch: int, length: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw tokens and labels, both [batch, T].

        Args:
            batch: number of sequences, at least 1.
            length: length of a sequence, at least 1, in units that the task defines.
            generator: source of randomness.

        Raises:
            TypeError, ValueError: if an argument has another type or is too small.
        """
        check_int("batch", batch, low=1)
        check_int("length", length, low=1)
        check_instance("generator", generator, torch.Generator)
        tokens, answers = self.draw(batch, length, generator)
        return tokens, self._labels(answers)

    def stream(
        self, batch: int, length: int, seed: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw batches endlessly, the same ones for the same seed; see `sample`.

        Raises:
            TypeError, ValueError: if an argument has another type, or if `batch` or
                `length` is not positive or `seed` is not in [0, 2^62].
        """
        check_int("batch", batch, low=1)
        check_int("length", length, low=1)
        check_int("seed", seed, low=0, high=2**62)
        generator = torch.Generator().manual_seed(seed)
        return (self.sample(batch, length, generator) for _ in itertools.count())

    def _steps(self, words: Sequence[str], allowed: Sequence[str]) -> list[str]:
        """Return the words of a sequence as a list.

        Raises:
            TypeError: if `words` is not a sequence of texts.
            ValueError: if a word is not allowed.
        """
        steps = texts_in("words", words)
        unknown = next((word for word in steps if word not in allowed), None)
        if unknown is not None:
            raise ValueError(
                f"words must be among {shorten([*allowed])}, got {shorten(unknown)}"
            )
        return steps

    def _labels(self, answers: Tensor) -> Tensor:
        """Turn answers into labels: all of them, or the last one of each sequence."""
        if self.dense:
            return answers
        steps = torch.arange(answers.shape[1])
        last = torch.where(answers != IGNORE, steps, -1).amax(1, keepdim=True)
        return answers.masked_fill(steps != last, IGNORE)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of labelled steps whose most likely token is the label.

    Args:
        logits: [..., V].
        labels: [...]; steps with IGNORE do not count.

    Raises:
        TypeError: if `logits` is not a floating-point tensor, or `labels` is not a
            tensor of integers.
        ValueError: if all labels are IGNORE, or the shapes do not match.
    """
    check_float_tensor("logits", logits)
    check_instance("labels", labels, Tensor)
    check_values("logits", logits)
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits must be {[*labels.shape]} + [V] like labels, "
            f"got {list(logits.shape)}"
        )
    check_integers("labels", labels)
    is_labelled = labels != IGNORE
    if not is_labelled.any():
        raise ValueError("labels must have at least one label, got only IGNORE")
    return (logits.argmax(-1) == labels)[is_labelled].double().mean().item()
