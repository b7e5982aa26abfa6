"""Word problems: what is the product of all elements so far? Parity, permutations, the shell game.

A recurrence that remembers one element of the group solves them. For a group that is
not solvable, such as A5, the word problem is complete for NC^1 (Barrington 1989). A
transformer of fixed depth, with precision logarithmic in the length, computes only
what is in TC^0 (Merrill and Sabharwal 2023), believed to be less.
"""

from collections.abc import Sequence
from itertools import combinations, permutations

import torch
from torch import Tensor

from fbt._checks import check_choice, check_int
from fbt.tasks.task import Task


def running_products(elements: Tensor, table: Tensor, start: Tensor) -> Tensor:
    """Multiply up elements [B, T]: out[:, t] is the number of start * e_0 * ... * e_t in a table [n, m]."""
    product, out = start, torch.empty_like(elements)
    for t in range(elements.shape[1]):
        product = table[product, elements[:, t]]
        out[:, t] = product
    return out


class Parity(Task):
    """Bits; the answer is the parity of all bits so far: running XOR."""

    def __init__(self, dense: bool = True) -> None:
        super().__init__(("0", "1"), dense)

    def draw(
        self, batch: int, length: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw bits and their running parities, both [batch, length]."""
        bits = torch.randint(2, (batch, length), generator=generator)
        return bits, bits.cumsum(1) % 2

    def answer(self, words: Sequence[str]) -> list[str | None]:
        """Count the ones up to each step."""
        words = self._steps(words, self.words)
        return [str(words[: t + 1].count("1") % 2) for t in range(len(words))]


class Permutations(Task):
    """Permutations of n things; the answer is the composition of all so far, the first applied first.

    A permutation is written as the places to which it sends what stood at places 1 to
    n: "213" exchanges the first two.

    Args:
        group: "S3" (6 elements), "A5" (60, the even permutations of five) or "S5"
            (120).
        dense: ask at every step.

    Raises:
        ValueError: there is no such group.
    """

    groups = ("S3", "A5", "S5")

    def __init__(self, group: str = "S3", dense: bool = True) -> None:
        check_choice("group", group, self.groups)
        self.group, degree = group, int(group[1])
        elements = [
            p for p in permutations(range(degree)) if group[0] == "S" or is_even(p)
        ]
        super().__init__(["".join(str(i + 1) for i in p) for p in elements], dense)
        numbers = {p: i for i, p in enumerate(elements)}
        self.table = torch.tensor(
            [[numbers[tuple(b[i] for i in a)] for b in elements] for a in elements]
        )

    def draw(
        self, batch: int, length: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw elements and their running products, both [batch, length]."""
        elements = torch.randint(
            len(self.words), (batch, length), generator=generator
        )
        # the first in lexicographic order
        identity = torch.zeros(batch, dtype=torch.long)
        return elements, running_products(elements, self.table, identity)

    def answer(self, words: Sequence[str]) -> list[str | None]:
        """Carry n marked things along."""
        words = self._steps(words, self.words)
        # thing -> place
        things = {name: name for name in sorted(words[0])} if words else {}
        answers: list[str | None] = []
        for word in words:
            things = {thing: word[int(place) - 1] for thing, place in things.items()}
            answers.append("".join(things[name] for name in sorted(things)))
        return answers


def is_even(permutation: Sequence[int]) -> bool:
    """Whether a permutation is the product of an even number of exchanges."""
    return sum(a > b for a, b in combinations(permutation, 2)) % 2 == 0


class ShellGame(Task):
    """A ball lies under cup A; at each step two cups change places; the answer is where the ball is.

    Args:
        cups: how many, from 2 to 26. A step is written "AC", an answer "C".
        dense: ask at every step.

    Raises:
        TypeError, ValueError: `cups` is no int in this range.
    """

    def __init__(self, cups: int = 5, dense: bool = True) -> None:
        check_int("cups", cups, low=2, high=26)
        self.cups, names = cups, [chr(ord("A") + i) for i in range(cups)]
        swaps = list(combinations(range(cups), 2))
        super().__init__([*names, *(names[i] + names[j] for i, j in swaps)], dense)
        self.table = torch.arange(cups)[:, None].repeat(
            1, len(swaps)
        )  # where a swap brings what is under a cup
        for number, (i, j) in enumerate(swaps):
            self.table[[i, j], number] = torch.tensor([j, i])

    def draw(
        self, batch: int, length: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw exchanges and the cups that hide the ball, both [batch, length]."""
        swaps = torch.randint(
            self.table.shape[1], (batch, length), generator=generator
        )
        ball = torch.zeros(batch, dtype=torch.long)
        return swaps + self.cups, running_products(swaps, self.table, ball)

    def answer(self, words: Sequence[str]) -> list[str | None]:
        """Follow the ball."""
        words = self._steps(words, self.words[self.cups :])
        ball, answers = "A", list[str | None]()
        for one, other in (tuple(word) for word in words):
            ball = {one: other, other: one}.get(ball, ball)
            answers.append(ball)
        return answers
