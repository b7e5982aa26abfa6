"""Running a small program in one's head: the code-execution task of Fan et al. 2020."""

import random
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fbt._checks import check_choice, check_int, shorten
from fbt.tasks.task import IGNORE, Task

NAMES = ("x", "y", "z", "p", "r")
HIGH = 10  # values are 1 to 10
State = dict[str, int]


class CodeExecution(Task):
    """Programs of assignments, increments, conditionals and prints; the answer is what a print shows.

    Drawn as by the generator of the paper's authors. A statement is one of assign,
    ++, --, if and print, each as likely as another, drawn again where it is illegal:
    "x = 7 ;" of a variable that has no value yet, "x ++ ;" and "x -- ;" of one that
    has, within 1 to 10, "print x ;", and "if x < 3 : y ++ ;", which compares a
    variable with another one or with a number and runs the one statement after the
    colon, no if and no print, where that is so. The answer to a print stands at its
    semicolon; other steps have none. With ask="statements" every semicolon has one,
    where its variable has a value by then: what it is after the statement. So much
    more to learn from makes learning many times faster.

    `length` counts statements. A program ends with "END", and so do shorter ones
    until all have one length.

    Args:
        variables: how many there are, from 1 to 5.
        ask: "prints", as the paper does, or "statements".
        dense: ask at all of these, not only at the last.

    Raises:
        TypeError, ValueError: `variables` is no int in this range, or `ask` is
            something else.
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
        """Draw programs of `length` statements; tokens and answers are [batch, T], T that of the longest."""
        draws = random.Random(int(torch.randint(2**62, (), generator=generator)))
        programs = [self.program(length, draws) for _ in range(batch)]
        longest = max(len(program) for program in programs)
        end = len(self.words) - 1
        tokens, answers = (
            torch.full((batch, longest), end),
            torch.full((batch, longest), IGNORE),
        )
        for i, program in enumerate(programs):
            tokens[i, : len(program)] = self.tokenizer.encode(
                " ".join(word for word, _ in program)
            )
            for t, (_, value) in enumerate(program):
                if value is not None:
                    answers[i, t] = value - 1
        return tokens, answers

    def program(
        self, length: int, draws: random.Random
    ) -> list[tuple[str, int | None]]:
        """Words of a program of `length` statements, each with the value that is to be answered, or None."""
        state, program = State(), list[tuple[str, int | None]]()
        while length:
            statement = self._statement(state, draws)
            if statement is not None:
                words, name = statement
                asked = words[0] == "print" or self.ask == "statements"
                program += [(word, None) for word in words[:-1]]
                program.append((words[-1], state.get(name) if asked else None))
                length -= 1
        return [*program, ("END", None)]

    def _statement(
        self, state: State, draws: random.Random
    ) -> tuple[list[str], str] | None:
        """Draw a statement and run it on the state; its words and its variable, None if it is illegal."""
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
        """Draw an assignment or a step by one and run it; its words and its variable, None if illegal."""
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
        """Translate the program to Python, statement by statement, and run that."""
        state, answers, statement = State(), list[str | None](), list[str]()
        for word in self._steps(words, self.words):
            answers.append(None)
            if word == "END":
                continue
            statement.append(word)
            if word == ";":
                shorten = run_statement(" ".join(statement), state)
                if self.ask == "statements":
                    name = next(word for word in reversed(statement) if word in NAMES)
                    shorten = str(state[name]) if name in state else None
                answers[-1] = shorten
                statement = []
        return answers


def run_statement(text: str, state: State) -> str | None:
    """Run one statement on a state and return what it prints, by patterns over its text.

    Raises:
        ValueError: it is no statement, or reads a variable that has no value.
    """
    rules: dict[str, Callable[[re.Match[str]], str | None]] = {
        r"print (\w) ;": lambda m: str(state[m[1]]),
        r"(\w) = (\d+) ;": lambda m: state.update({m[1]: int(m[2])}),
        r"(\w) \+\+ ;": lambda m: state.update({m[1]: state[m[1]] + 1}),
        r"(\w) -- ;": lambda m: state.update({m[1]: state[m[1]] - 1}),
        r"if (\w) ([<>]) (\w+) : (.*)": lambda m: (
            run_statement(m[4], state) if holds(m, state) else None
        ),
    }
    for pattern, run in rules.items():
        match = re.fullmatch(pattern, text)
        if match:
            try:
                return run(match)
            except KeyError as error:
                reason = f"{error} must have a value"
                raise ValueError(
                    f"words must be a program: in {shorten(text)} {reason}"
                ) from error
    wanted = "each statement must be an assignment, ++, --, if or print"
    raise ValueError(f"words must be a program: {wanted}, got {shorten(text)}")


def holds(condition: re.Match[str], state: State) -> bool:
    """Whether the comparison of an if is true."""
    left, right = state[condition[1]], state.get(condition[3])
    right = int(condition[3]) if right is None else right
    return left < right if condition[2] == "<" else left > right
