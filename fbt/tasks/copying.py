"""Copying and reversing, which a parallel transformer does as well or better."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fbt._checks import check_bool, check_int
from fbt.tasks.task import IGNORE, Task


class Copy(Task):
    """Symbols followed by as many blanks "?"; the answers are the symbols in order.

    `length` counts the symbols, so a sequence has twice as many steps.

    Args:
        symbols: number of different symbols, from 2 to 26.
        reverse: whether the answers are in reverse order.
        dense: label every blank, not only the last one.

    Raises:
        TypeError, ValueError: if `symbols` is not an int in this range, or `reverse`
            is not a bool.
    """

    def __init__(
        self, symbols: int = 8, reverse: bool = False, dense: bool = True
    ) -> None:
        check_int("symbols", symbols, low=2, high=26)
        check_bool("reverse", reverse)
        self.symbols, self.reverse = symbols, reverse
        super().__init__([*(chr(ord("a") + i) for i in range(symbols)), "?"], dense)

    def draw(
        self, batch: int, length: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw symbols; tokens and answers are [batch, 2 length]."""
        blank = len(self.words) - 1
        symbols = torch.randint(blank, (batch, length), generator=generator)
        tokens = torch.cat([symbols, torch.full_like(symbols, blank)], 1)
        answers = symbols.flip(1) if self.reverse else symbols
        return tokens, torch.cat([torch.full_like(symbols, IGNORE), answers], 1)

    def answer(self, words: Sequence[str]) -> list[str | None]:
        """Store the symbols, and return one at each blank."""
        pending, answers = list[str](), list[str | None]()
        for word in self._steps(words, self.words):
            if word == "?":
                if not pending:
                    raise ValueError("words must not have more blanks than symbols")
                answers.append(pending.pop(-1 if self.reverse else 0))
            else:
                pending.append(word)
                answers.append(None)
        return answers
