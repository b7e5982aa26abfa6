"""Word problems of groups: the product of all elements so far.

A recurrence that stores one element of the group solves them. For a group that is not
solvable, such as A5, the word problem is complete for NC^1 (Barrington 1989). A
transformer of fixed depth, with precision logarithmic in the length, computes only
functions in TC^0 (Merrill and Sabharwal 2023), which is believed to be smaller.
"""

from collections.abc import Sequence
from itertools import combinations, permutations

import torch
from torch import Tensor

from fbt._checks import check_choice, check_int
from fbt.tasks.task import Task


def running_products(elements: Tensor, table: Tensor, start: Tensor) -> Tensor:
    """Return the running products start * e_0 * ... * e_t, as indices [B, T].

    Args:
        elements: indices of the elements e_t, [B, T].
        table: index of the product for each pair of indices, [n, m].
        start: indices of the first factors, [B].
    """
    product, out = start, torch.empty_like(elements)
    for t in range(elements.shape[1]):
        product = table[product, elements[:, t]]
        out[:, t] = product
    return out


class Parity(Task):
    """Bits; the answer is the parity of all bits so far."""

    def __init__(self, dense: bool = True) -> None:
        super().__init__(("0", "1"), dense)

    def draw(
        self, batch: int, length: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw bits and their running parities, both [batch, length]."""
        bits = torch.randint(2, (batch, length), generator=generator)
        return bits, bits.cumsum(1) % 2

    def answer(self, words: Sequence[str]) -> list[str | None]:
        """Return the parity of the number of ones up to each step."""
        words = self._steps(words, self.words)
        return [str(words[: t + 1].count("1") % 2) for t in range(len(words))]


class Permutations(Task):
    """Permutations of n positions; the answer is their composition so far.

    The first permutation is applied first. A permutation is written as the images of
    positions 1 to n: "213" exchanges the first two.

    Args:
        group: "S3" (6 elements), "A5" (60, the even permutations of five) or "S5"
            (120).
        dense: label every step, not only the last one.

    Raises:
        ValueError: if `group` is not one of these.
    """

    groups = ("S3", "A5", "S5")

    def __init__(self, group: str = "S3", dense: bool = True) -> None:
        check_choice("group", group, self.groups)
        self.group, degree = group, int(group[1])
        elements = [
            p for p in permutations(range(degree)) if group[0] == "S" or is_even(p)
        ]
        super().__init__(["".join(str(i + 1) for i in p) for p in elements], dense)
        index = {p: i for i, p in enumerate(elements)}
        self.table = torch.tensor(
            [[index[tuple(b[i] for i in a)] for b in elements] for a in elements]
        )

    def draw(
        self, batch: int, length: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw elements and their running products, both [batch, length]."""
        elements = torch.randint(
            len(self.words), (batch, length), generator=generator
        )
        # The identity is first in lexicographic order.
        identity = torch.zeros(batch, dtype=torch.long)
        return elements, running_products(elements, self.table, identity)

    def answer(self, words: Sequence[str]) -> list[str | None]:
        """Apply the permutations to n marked items."""
        words = self._steps(words, self.words)
        positions = {item: item for item in sorted(words[0])} if words else {}
        answers: list[str | None] = []
        for word in words:
            positions = {item: word[int(p) - 1] for item, p in positions.items()}
            answers.append("".join(positions[item] for item in sorted(positions)))
        return answers


def is_even(permutation: Sequence[int]) -> bool:
    """Return whether a permutation is a product of an even number of exchanges."""
    return sum(a > b for a, b in combinations(permutation, 2)) % 2 == 0


class ShellGame(Task):
    """A shell game: two cups are exchanged per step; the answer is the ball's cup.

    The ball starts under cup A. A step is written "AC", an answer "C".

    Args:
        cups: number of cups, from 2 to 26.
        dense: label every step, not only the last one.

    Raises:
        TypeError, ValueError: if `cups` is not an int in this range.
    """

    def __init__(self, cups: int = 5, dense: bool = True) -> None:
        check_int("cups", cups, low=2, high=26)
        self.cups, names = cups, [chr(ord("A") + i) for i in range(cups)]
        swaps = list(combinations(range(cups), 2))
        super().__init__([*names, *(names[i] + names[j] for i, j in swaps)], dense)
        # The ball's cup after each swap, by its cup before.
        self.table = torch.arange(cups)[:, None].repeat(1, len(swaps))
        for swap, (i, j) in enumerate(swaps):
            self.table[[i, j], swap] = torch.tensor([j, i])

    def draw(
        self, batch: int, length: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw swaps and the cups that hide the ball, both [batch, length]."""
        swaps = torch.randint(
            self.table.shape[1], (batch, length), generator=generator
        )
        ball = torch.zeros(batch, dtype=torch.long)
        return swaps + self.cups, running_products(swaps, self.table, ball)

    def answer(self, words: Sequence[str]) -> list[str | None]:
        """Return the cup that hides the ball after each swap."""
        words = self._steps(words, self.words[self.cups :])
        ball, answers = "A", list[str | None]()
        for first, second in map(tuple, words):
            ball = {first: second, second: first}.get(ball, ball)
            answers.append(ball)
        return answers
