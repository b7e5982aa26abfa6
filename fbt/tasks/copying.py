"""Copying and reversing: what a parallel transformer does as well or better, having all of it in view."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fbt._checks import check_bool, check_int
from fbt.tasks.task import IGNORE, Task


class Copy(Task):
    """Symbols, then as many blanks "?"; the answer at a blank is the symbol whose turn it is.

    `length` counts the symbols, so a sequence has twice as many steps.

    Args:
        symbols: how many different ones, from 2 to 26.
        reverse: ask for the symbols from the last to the first.
        dense: ask at every blank.

    Raises:
        TypeError, ValueError: `symbols` is no int in this range, or `reverse` is no
            bool.
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
        asked = symbols.flip(1) if self.reverse else symbols
        return tokens, torch.cat([torch.full_like(symbols, IGNORE), asked], 1)

    def answer(self, words: Sequence[str]) -> list[str | None]:
        """Write the symbols down and read them back."""
        waiting, answers = list[str](), list[str | None]()
        for word in self._steps(words, self.words):
            if word == "?":
                if not waiting:
                    raise ValueError(
                        "words must have no more blanks than symbols, got one more"
                    )
                answers.append(waiting.pop(-1 if self.reverse else 0))
            else:
                waiting.append(word)
                answers.append(None)
        return answers
