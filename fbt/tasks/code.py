"""The code-execution task of Fan et al. 2020: predict what a program prints."""

import random
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fbt._checks import check_choice, check_int, shorten
from fbt.tasks.task import IGNORE, Task

NAMES = ("x", "y", "z", "p", "r")
HIGH = 10  # the largest value; the smallest is 1
State = dict[str, int]


class CodeExecution(Task):
    """Programs of assignments, increments, conditionals and prints.

    Statements are drawn as in the code of the paper's authors. All kinds are equally
    likely, and illegal ones are drawn again:

    - "x = 7 ;" assigns to a variable without a value.
    - "x ++ ;" and "x -- ;" change a value, which stays within 1 to 10.
    - "print x ;" prints a value.
    - "if x < 3 : y ++ ;" compares a variable with a number or another variable. The
      statement after the colon is neither an if nor a print.

    The answer at the semicolon of a print is the printed value; other steps have no
    answer. With ask="statements", each semicolon has an answer if the variable of its
    statement has a value: the value after the statement. Learning is then many times
    faster.

    `length` counts statements. A program ends with "END", which is repeated until all
    programs of a batch have the same length.

    Args:
        variables: number of variables, from 1 to 5.
        ask: "prints", as in the paper, or "statements".
        dense: label all of these steps, not only the last one.

    Raises:
        TypeError, ValueError: if `variables` is not an int in this range, or `ask` is
            neither of these.
    """

    def __init__(
        self, variables: int = 3, ask: str = "prints", dense: bool = True
    ) -> None:
        check_int("variables", variables, low=1, high=len(NAMES))
        check_choice("ask", ask, ("prints", "statements"))
        self.variables, self.ask, self.names = variables, ask, NAMES[:variables]
        numbers = [str(i) for i in range(1, HIGH + 1)]
        super().__init__(
            [*numbers, *self.names, *"=;<>:", "++", "--", "if", "print", "END"], dense
        )

    def draw(
        self, batch: int, length: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw programs of `length` statements; tokens and answers are [batch, T]."""
        draws = random.Random(int(torch.randint(2**62, (), generator=generator)))
        programs = [self.program(length, draws) for _ in range(batch)]
        longest = max(len(program) for program in programs)
        end = len(self.words) - 1
        tokens = torch.full((batch, longest), end)
        answers = torch.full((batch, longest), IGNORE)
        for i, program in enumerate(programs):
            text = " ".join(word for word, _ in program)
            tokens[i, : len(program)] = self.tokenizer.encode(text)
            for t, (_, value) in enumerate(program):
                if value is not None:
                    answers[i, t] = value - 1
        return tokens, answers

    def program(
        self, length: int, draws: random.Random
    ) -> list[tuple[str, int | None]]:
        """Return the words of a random program, each with its answer or None."""
        state, program = State(), list[tuple[str, int | None]]()
        while length:
            statement = self._statement(state, draws)
            if statement is not None:
                words, name = statement
                has_answer = words[0] == "print" or self.ask == "statements"
                program += [(word, None) for word in words[:-1]]
                program.append((words[-1], state.get(name) if has_answer else None))
                length -= 1
        return [*program, ("END", None)]

    def _statement(
        self, state: State, draws: random.Random
    ) -> tuple[list[str], str] | None:
        """Draw a statement and run it on the state.

        Returns:
            Its words and its variable, or None if it is illegal.
        """
        kind = draws.choice(("=", "++", "--", "if", "print"))
        if kind in ("=", "++", "--"):
            return self._change(kind, state, draws)
        if not state:
            return None
        name = draws.choice(sorted(state))
        if kind == "print":
            return ["print", name, ";"], name
        other: str | int = draws.randint(1, HIGH)
        if draws.random() < 0.5:
            if len(state) == 1:
                return None
            other = draws.choice(sorted(set(state) - {name}))
        sign = draws.choice("<>")
        right = state[other] if isinstance(other, str) else other
        runs = state[name] < right if sign == "<" else state[name] > right
        change = None
        while change is None:
            change = self._change(
                draws.choice(("=", "++", "--")), state if runs else dict(state), draws
            )
        words, changed = change
        return ["if", name, sign, str(other), ":", *words], changed

    def _change(
        self, kind: str, state: State, draws: random.Random
    ) -> tuple[list[str], str] | None:
        """Draw an assignment, ++ or --, and run it on the state.

        Returns:
            Its words and its variable, or None if it is illegal.
        """
        if kind == "=":
            free = [name for name in self.names if name not in state]
            if not free:
                return None
            name = draws.choice(free)
            state[name] = draws.randint(1, HIGH)
            return [name, "=", str(state[name]), ";"], name
        if not state:
            return None
        name, step = draws.choice(sorted(state)), 1 if kind == "++" else -1
        if not 1 <= state[name] + step <= HIGH:
            return None
        state[name] += step
        return [name, kind, ";"], name

    def answer(self, words: Sequence[str]) -> list[str | None]:
        """Run the program statement by statement, and return its answers."""
        state, answers, statement = State(), list[str | None](), list[str]()
        for word in self._steps(words, self.words):
            answers.append(None)
            if word == "END":
                continue
            statement.append(word)
            if word == ";":
                answers[-1] = run_statement(" ".join(statement), state)
                if self.ask == "statements":
                    name = next(word for word in reversed(statement) if word in NAMES)
                    answers[-1] = str(state[name]) if name in state else None
                statement = []
        return answers


def run_statement(text: str, state: State) -> str | None:
    """Run one statement on a state, and return what it prints or None.

    Raises:
        ValueError: if `text` is not a statement, or reads a variable without a value.
    """
    rules: dict[str, Callable[[re.Match[str]], str | None]] = {
        r"print (\w) ;": lambda m: str(state[m[1]]),
        r"(\w) = (\d+) ;": lambda m: state.update({m[1]: int(m[2])}),
        r"(\w) \+\+ ;": lambda m: state.update({m[1]: state[m[1]] + 1}),
        r"(\w) -- ;": lambda m: state.update({m[1]: state[m[1]] - 1}),
        r"if (\w) ([<>]) (\w+) : (.*)": lambda m: (
            run_statement(m[4], state) if is_true(m, state) else None
        ),
    }
    for pattern, run in rules.items():
        match = re.fullmatch(pattern, text)
        if match:
            try:
                return run(match)
            except KeyError as error:
                raise ValueError(
                    "words must be a program: "
                    f"in {shorten(text)} {error} must have a value"
                ) from error
    raise ValueError(
        "words must be a program: each statement must be an assignment, ++, --, if "
        f"or print, got {shorten(text)}"
    )


def is_true(condition: re.Match[str], state: State) -> bool:
    """Return whether the comparison of an if is true."""
    left, right = state[condition[1]], state.get(condition[3])
    right = int(condition[3]) if right is None else right
    return left < right if condition[2] == "<" else left > right
