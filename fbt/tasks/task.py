"""What every task is: words, a stream of batches, an oracle."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fbt._checks import check_bool, check_int

IGNORE = -100  # the label of a step that is not asked; what `cross_entropy` leaves out by default


class WordTokenizer:
    """Numbers for words that are written with spaces between them.

    Args:
        words: distinct words without white space, numbered in this order.

    Raises:
        ValueError: a word is empty, holds white space or occurs twice.
    """

    def __init__(self, words: Sequence[str]) -> None:
        for word in words:
            if word.split() != [word]:
                raise ValueError(f"words must be without white space and not empty, got {word!r}")
        if len(set(words)) < len(words):
            twice = next(word for i, word in enumerate(words) if word in words[:i])
            raise ValueError(f"words must be distinct, got {twice!r} twice")
        self.words = tuple(words)
        self._numbers = {word: i for i, word in enumerate(self.words)}

    def encode(self, text: str) -> Tensor:
        """The numbers [n] of the words of a text.

        Raises:
            ValueError: a word of the text has no number; the message quotes it.
        """
        unknown = next((word for word in text.split() if word not in self._numbers), None)
        if unknown is not None:
            raise ValueError(f"text must be made of {len(self.words)} known words, got {unknown!r}")
        return torch.tensor([self._numbers[word] for word in text.split()], dtype=torch.long)

    def decode(self, numbers: Tensor) -> str:
        """The words of numbers [n], with spaces between them; a number that is IGNORE becomes "_".

        Raises:
            ValueError: a number has no word.
        """
        last = len(self.words) - 1
        unknown = next((i for i in numbers.tolist() if i != IGNORE and not 0 <= i <= last), None)
        if unknown is not None:
            raise ValueError(f"numbers must be in [0, {last}] or {IGNORE}, got {unknown}")
        return " ".join("_" if i == IGNORE else self.words[i] for i in numbers.tolist())


class Task(ABC):
    """Sequences with answers.

    Args:
        dense: ask at every step that has an answer; otherwise only at the last of them.

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
    def draw(self, batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw tokens [batch, T] and the answers [batch, T] of all steps, IGNORE where there is none."""

    @abstractmethod
    def answer(self, words: Sequence[str]) -> list[str | None]:
        """The answer of each step of one sequence, or None, worked out from its words."""

    def solve(self, tokens: Tensor) -> Tensor:
        """The labels [B, T] of tokens [B, T], worked out from the words of each sequence: the oracle."""
        rows = []
        for row in tokens:
            answers = self.answer(self.tokenizer.decode(row).split())
            numbers = [IGNORE if a is None else int(self.tokenizer.encode(a)) for a in answers]
            rows.append(torch.tensor(numbers, dtype=torch.long))
        return self._asked(torch.stack(rows))

    def sample(self, batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw tokens [batch, T] and labels [batch, T]; what `length` counts is the task's to say.

        Args:
            batch: how many sequences, at least 1.
            length: steps of a sequence, at least 1.
            generator: where the numbers come from.

        Raises:
            TypeError, ValueError: a number is no int or too small.
        """
        check_int("batch", batch, low=1)
        check_int("length", length, low=1)
        tokens, answers = self.draw(batch, length, generator)
        return tokens, self._asked(answers)

    def stream(self, batch: int, length: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw batches without end, the same ones for the same arguments; see `sample`."""
        check_int("seed", seed, low=0, high=2**62)
        generator = torch.Generator().manual_seed(seed)
        return (self.sample(batch, length, generator) for _ in itertools.count())

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
        ValueError: no step is asked, or the shapes do not fit.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits must be {[*labels.shape]} + [V] like labels, got {list(logits.shape)}")
    asked = labels != IGNORE
    if not asked.any():
        raise ValueError("labels must ask at one step at least, got IGNORE at all of them")
    return (logits.argmax(-1) == labels)[asked].double().mean().item()
