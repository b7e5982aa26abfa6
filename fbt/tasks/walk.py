"""A walk between walls, in the manner of the random walk of Fan et al. 2020: where am I?"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fbt._checks import check_bool, check_int
from fbt.tasks.task import Task

COMPASS = "NESW"
# x and y of a step north, east, south, west
STEPS = torch.tensor([[0, -1], [1, 0], [0, 1], [-1, 0]])


class Walk(Task):
    """Steps on a square board with walls around it; the answer is the cell reached.

    The walk begins in the north-west corner, cell "0,0", looking north. A step into a
    wall changes nothing.

    Args:
        size: cells on a side, at least 2.
        facing: False: a move is a direction, "N", "E", "S" or "W". True: a move is
            "forward", "left" or "right" (a quarter turn on the spot), so which way is
            forward has to be remembered too.
        heading: with `facing`, the answer also names the direction faced, as in
            "2,0E".
        dense: ask at every step.

    Raises:
        TypeError, ValueError: `size` is no int of at least 2, an option is no bool,
            or `heading` is asked for without `facing`.
    """

    def __init__(
        self,
        size: int = 8,
        facing: bool = False,
        heading: bool = False,
        dense: bool = True,
    ) -> None:
        check_int("size", size, low=2)
        check_bool("facing", facing)
        check_bool("heading", heading)
        if heading and not facing:
            raise ValueError("heading needs facing=True, got facing=False")
        self.size, self.facing, self.heading = size, facing, heading
        self.moves = ["forward", "left", "right"] if facing else list(COMPASS)
        cells = [f"{x},{y}" for x in range(size) for y in range(size)]
        answers = (
            [cell + side for cell in cells for side in COMPASS] if heading else cells
        )
        super().__init__([*self.moves, *answers], dense)

    def draw(
        self, batch: int, length: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw moves and the cells they lead to, both [batch, length]."""
        moves = torch.randint(len(self.moves), (batch, length), generator=generator)
        place, side = (
            torch.zeros(batch, 2, dtype=torch.long),
            torch.zeros(batch, dtype=torch.long),
        )
        answers = torch.empty_like(moves)
        for t in range(length):
            move = moves[:, t]
            if self.facing:
                side = (side + (move == 2).long() - (move == 1).long()) % 4
                step = STEPS[side] * (move == 0).long()[:, None]
            else:
                step = STEPS[move]
            place = (place + step).clamp(0, self.size - 1)
            cell = place[:, 0] * self.size + place[:, 1]
            answers[:, t] = len(self.moves) + (
                4 * cell + side if self.heading else cell
            )
        return moves, answers

    def answer(self, words: Sequence[str]) -> list[str | None]:
        """Walk, move by move."""
        words = self._steps(words, self.moves)
        x, y, side, answers = 0, 0, "N", list[str | None]()
        for word in words:
            if word in ("left", "right"):
                clockwise = "NESWN" if word == "right" else "NWSEN"
                side = clockwise[clockwise.index(side) + 1]
            else:
                way = side if word == "forward" else word
                if way == "N" and y > 0:
                    y -= 1
                elif way == "S" and y < self.size - 1:
                    y += 1
                elif way == "W" and x > 0:
                    x -= 1
                elif way == "E" and x < self.size - 1:
                    x += 1
            answers.append(f"{x},{y}{side if self.heading else ''}")
        return answers
