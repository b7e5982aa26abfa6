"""A walk on a board, similar to the random walk of Fan et al. 2020: where am I?"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fbt._checks import check_bool, check_int
from fbt.tasks.task import Task

COMPASS = "NESW"
# Changes of x and y for a step north, east, south and west.
STEPS = torch.tensor([[0, -1], [1, 0], [0, 1], [-1, 0]])


class Walk(Task):
    """Moves on a square board with walls around it; the answer is the current cell.

    The walk starts in the north-west corner, cell "0,0", facing north. A move into a
    wall changes nothing.

    Args:
        size: cells per side, at least 2.
        facing: if False, a move is a direction, "N", "E", "S" or "W". If True, it is
            "forward", "left" or "right" (a quarter turn), so that the direction is
            part of the state.
        heading: with `facing`, the answer includes the direction, as in "2,0E".
        dense: label every step, not only the last one.

    Raises:
        TypeError, ValueError: if `size` is not an int of at least 2, an option is not
            a bool, or `heading` is True without `facing`.
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
        """Draw moves and the cells reached, both [batch, length]."""
        moves = torch.randint(len(self.moves), (batch, length), generator=generator)
        position = torch.zeros(batch, 2, dtype=torch.long)
        side = torch.zeros(batch, dtype=torch.long)
        answers = torch.empty_like(moves)
        for t in range(length):
            move = moves[:, t]
            if self.facing:
                side = (side + (move == 2).long() - (move == 1).long()) % 4
                step = STEPS[side] * (move == 0).long()[:, None]
            else:
                step = STEPS[move]
            position = (position + step).clamp(0, self.size - 1)
            cell = position[:, 0] * self.size + position[:, 1]
            answers[:, t] = len(self.moves) + (
                4 * cell + side if self.heading else cell
            )
        return moves, answers

    def answer(self, words: Sequence[str]) -> list[str | None]:
        """Return the cell after each move."""
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
