"""What every task is: words, a stream of batches, an oracle."""

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
    check_tokens,
    check_values,
    shorten,
    texts_in,
)

# the label of a step that is not asked; what `cross_entropy` leaves out by default
IGNORE = -100


class WordTokenizer:
    """Numbers for words that are written with spaces between them.

    Args:
        words: distinct words without white space, numbered in this order.

    Raises:
        TypeError: `words` is not a sequence of texts.
        ValueError: a word is empty, holds white space or occurs twice.
    """

    def __init__(self, words: Sequence[str]) -> None:
        words = texts_in("words", words)
        for word in words:
            if word.split() != [word]:
                wrong = f"got {shorten(word)}"
                raise ValueError(
                    f"words must be without white space and not empty, {wrong}"
                )
        if len(set(words)) < len(words):
            twice = next(word for i, word in enumerate(words) if word in words[:i])
            raise ValueError(f"words must be distinct, got {shorten(twice)} twice")
        self.words = tuple(words)
        self._numbers = {word: i for i, word in enumerate(self.words)}

    def encode(self, text: str) -> Tensor:
        """The numbers [n] of the words of a text.

        Raises:
            TypeError: `text` is not a str.
            ValueError: a word of the text has no number; the message quotes it.
        """
        check_instance("text", text, str)
        unknown = next(
            (word for word in text.split() if word not in self._numbers), None
        )
        if unknown is not None:
            raise ValueError(
                f"text must be made of {len(self.words)} known words, got {shorten(unknown)}"
            )
        return torch.tensor(
            [self._numbers[word] for word in text.split()], dtype=torch.long
        )

    def decode(self, numbers: Tensor) -> str:
        """The words of numbers [n], with spaces between them; a number that is IGNORE becomes "_".

        Raises:
            TypeError: `numbers` is not a tensor of integers.
            ValueError: `numbers` has another shape, or a number has no word.
        """
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
    """Sequences with answers.

    Args:
        dense: ask at every step that has an answer; otherwise only at the last of
            them.

    Attributes:
        words: the vocabulary, that of the sequences and that of the answers.
        tokenizer: numbers for `words`.
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
        """Draw tokens [batch, T] and the answers [batch, T] of all steps, IGNORE where there is none."""

    @abstractmethod
    def answer(self, words: Sequence[str]) -> list[str | None]:
        """The answer of each step of one sequence, or None, worked out from its words.

        Raises:
            TypeError: `words` is not a sequence of texts.
            ValueError: `words` is not a sequence of this task.
        """

    def solve(self, tokens: Tensor) -> Tensor:
        """The labels [B, T] of tokens [B, T], worked out from the words of each sequence: the oracle.

        Raises:
            TypeError: `tokens` is not an int64 or int32 tensor.
            ValueError: `tokens` has another shape or another number in it, or a row
                of it is not a sequence of this task.
        """
        check_tokens("tokens", tokens, "[B, T]", len(self.words))
        try:
            return self._solved(tokens)
        except ValueError as error:
            raise ValueError(
                f"tokens must be sequences of this task: {error}"
            ) from error

    def _solved(self, tokens: Tensor) -> Tensor:
        rows = []
        for row in tokens:
            answers = self.answer(self.tokenizer.decode(row).split())
            numbers = [
                IGNORE if a is None else int(self.tokenizer.encode(a))
                for a in answers
            ]
            rows.append(torch.tensor(numbers, dtype=torch.long))
        return self._asked(torch.stack(rows))

    def sample(
        self, batch: int, length: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw tokens [batch, T] and labels [batch, T]; what `length` counts is the task's to say.

        Args:
            batch: how many sequences, at least 1.
            length: steps of a sequence, at least 1.
            generator: where the numbers come from.

        Raises:
            TypeError, ValueError: an argument is of the wrong type, or a number too
                small.
        """
        check_int("batch", batch, low=1)
        check_int("length", length, low=1)
        check_instance("generator", generator, torch.Generator)
        tokens, answers = self.draw(batch, length, generator)
        return tokens, self._asked(answers)

    def stream(
        self, batch: int, length: int, seed: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw batches without end, the same ones for the same arguments; see `sample`."""
        check_int("batch", batch, low=1)
        check_int("length", length, low=1)
        check_int("seed", seed, low=0, high=2**62)
        generator = torch.Generator().manual_seed(seed)
        return (self.sample(batch, length, generator) for _ in itertools.count())

    def _steps(self, words: Sequence[str], allowed: Sequence[str]) -> list[str]:
        """The words of a sequence, which must be among those that a step may be.

        Raises:
            TypeError: `words` is not a sequence of texts.
            ValueError: a word is not allowed.
        """
        steps = texts_in("words", words)
        unknown = next((word for word in steps if word not in allowed), None)
        if unknown is not None:
            raise ValueError(
                f"words must be among {shorten([*allowed])}, got {shorten(unknown)}"
            )
        return steps

    def _asked(self, answers: Tensor) -> Tensor:
        """Answers as labels: all of them, or the last one of each sequence."""
        if self.dense:
            return answers
        steps = torch.arange(answers.shape[1])
        last = torch.where(answers != IGNORE, steps, -1).amax(1, keepdim=True)
        return answers.masked_fill(steps != last, IGNORE)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of the asked steps whose likeliest token is the label; logits [..., V], labels [...].

    Raises:
        TypeError: `logits` or `labels` is not a tensor of such numbers.
        ValueError: no step is asked, or the shapes do not fit.
    """
    check_float_tensor("logits", logits)
    check_instance("labels", labels, Tensor)
    check_values("logits", logits)
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits must be {[*labels.shape]} + [V] like labels, got {list(logits.shape)}"
        )
    check_integers("labels", labels)
    asked = labels != IGNORE
    if not asked.any():
        raise ValueError(
            "labels must ask at one step at least, got IGNORE at all of them"
        )
    return (logits.argmax(-1) == labels)[asked].double().mean().item()
