"""Compare drawn sequences with the oracle and with solutions by hand."""

import inspect
import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fbt import tasks
from fbt.tasks import IGNORE, accuracy
from fbt.tasks.code import HIGH, NAMES, CodeExecution
from fbt.tasks.groups import is_even

TASKS = {
    "parity": tasks.Parity(),
    "S3": tasks.Permutations("S3"),
    "A5": tasks.Permutations("A5"),
    "S5": tasks.Permutations("S5"),
    "two cups": tasks.ShellGame(2),
    "five cups": tasks.ShellGame(5),
    "26 cups": tasks.ShellGame(26),
    "walk": tasks.Walk(),
    "walk of four cells": tasks.Walk(2),
    "turns": tasks.Walk(5, facing=True),
    "turns with heading": tasks.Walk(5, facing=True, heading=True),
    "copy": tasks.Copy(),
    "reverse": tasks.Copy(3, reverse=True),
    "code": tasks.CodeExecution(),
    "code, one variable": tasks.CodeExecution(1),
    "code, five variables": tasks.CodeExecution(5),
    "code, statements": tasks.CodeExecution(3, ask="statements"),
}
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@each_task
@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 4), length=st.integers(1, 40), seed=st.integers(0, 2**62))
def test_oracle_agrees_with_drawn_labels(task, batch, length, seed):
    tokens, labels = task.sample(batch, length, generator(seed))
    assert tokens.shape == labels.shape
    assert tokens.dtype == labels.dtype == torch.long
    assert tokens.min() >= 0
    assert max(tokens.max(), labels.max()) < len(task.words)
    assert torch.equal(task.solve(tokens), labels)


@pytest.mark.parametrize(
    "task, words, answers",
    [
        (tasks.Parity(), "1 0 1 1", "1 1 0 1"),
        (tasks.Permutations("S3"), "213 132 213 321", "213 312 321 123"),
        (tasks.Permutations("A5"), "23145 12453 23145", "23145 24153 34251"),
        (tasks.ShellGame(3), "BC AB BC AB", "A B C C"),
        (tasks.Walk(3), "N E E E S W", "0,0 1,0 2,0 2,0 2,1 1,1"),
        (
            tasks.Walk(3, facing=True, heading=True),
            "right forward right forward left left forward",
            "0,0E 1,0E 1,0S 1,1S 1,1E 1,1N 1,0N",
        ),
        (tasks.Walk(3, facing=True), "left forward left forward", "0,0 0,0 0,0 0,1"),
        (tasks.Copy(3), "b a c ? ? ?", "_ _ _ b a c"),
        (tasks.Copy(3, reverse=True), "b a c ? ? ?", "_ _ _ c a b"),
        (
            tasks.CodeExecution(3),
            "x = 9 ; x ++ ; print x ; y = 2 ; if y > x : x -- ; "
            "if x > y : y ++ ; print y ; print x ; END",
            "_ _ _ _ _ _ _ _ _ 10 _ _ _ _ _ _ _ _ _ _ _ _ _ "
            "_ _ _ _ _ _ _ _ _ 3 _ _ 10 _",
        ),
        (
            tasks.CodeExecution(2, ask="statements"),
            "x = 9 ; if x < 5 : y = 2 ; if x > 5 : x ++ ; print x ; END",
            "_ _ _ 9 _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ 10 _ _ 10 _",
        ),
        (
            tasks.CodeExecution(1),
            "x = 5 ; if x < 5 : x ++ ; if x < 6 : x -- ; print x ; END",
            None,
        ),
    ],
)
def test_sequences_solved_by_hand(task, words, answers):
    labels = task.solve(task.tokenizer.encode(words)[None])[0]
    if answers is None:
        assert task.tokenizer.decode(labels[labels != IGNORE]) == "4"
    else:
        assert task.tokenizer.decode(labels) == answers


def test_permutations_apply_the_first_first():
    """The first exchange is applied first, in both orders."""
    task = tasks.Permutations("S5")
    for first, second in (("21345", "13245"), ("13245", "21345")):
        images = [second[int(image) - 1] for image in first]
        labels = task.solve(task.tokenizer.encode(f"{first} {second}")[None])[0]
        assert task.words[labels[1]] == "".join(images)


@each_task
def test_sparse_task_labels_only_the_last_answer(task):
    options = {
        name: getattr(task, name) for name in inspect.signature(type(task)).parameters
    }
    sparse = type(task)(**options | {"dense": False})
    tokens, dense_labels = task.sample(50, 30, generator())
    same_tokens, labels = sparse.sample(50, 30, generator())
    assert torch.equal(tokens, same_tokens)
    for dense_row, row in zip(dense_labels, labels, strict=True):
        last = (dense_row != IGNORE).nonzero().max()
        assert row[last] == dense_row[last]
        assert (row != IGNORE).sum() == 1
    assert torch.equal(sparse.solve(tokens), labels)


@each_task
def test_stream_depends_on_its_seed_only(task):
    def three(seed):
        return list(itertools.islice(task.stream(4, 20, seed=seed), 3))

    first, repeated, other = three(5), three(5), three(6)
    assert all(
        torch.equal(a, b)
        for x, y in zip(first, repeated, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    drawn = [tuple(tokens.flatten().tolist()) for tokens, _ in first + other]
    # with two cups there is only one swap
    assert len(set(drawn)) == (1 if task is TASKS["two cups"] else 6)


@each_task
def test_every_word_is_used(task):
    length = 30 if isinstance(task, CodeExecution) else 120
    tokens, labels = task.sample(3000, length, generator())
    seen = set(tokens.unique().tolist()) | set(
        labels[labels != IGNORE].unique().tolist()
    )
    assert seen == set(range(len(task.words)))


def test_a5_contains_the_even_permutations_of_s5():
    small, large = tasks.Permutations("A5"), tasks.Permutations("S5")
    assert (len(small.words), len(large.words)) == (60, 120)
    assert set(small.words) == {
        word for word in large.words if is_even([int(i) for i in word])
    }
    assert sorted(small.table.flatten().unique().tolist()) == list(range(60))


@pytest.mark.parametrize("variables", [1, 3, 5])
def test_programs_follow_the_rules_of_the_paper(variables):
    """Count statements, values, assignments per name and nesting in many programs."""
    task = tasks.CodeExecution(variables)
    tokens, labels = task.sample(300, 40, generator())
    kinds = dict.fromkeys(("=", "++", "--", "if", "print"), 0)
    for row, row_labels in zip(tokens, labels, strict=True):
        text = task.tokenizer.decode(row).removesuffix(" END")
        while text.endswith(" END"):
            text = text.removesuffix(" END")
        statements = [statement + ";" for statement in text.split(";")[:-1]]
        assert len(statements) == 40
        assert statements[0].split()[1] == "="
        for statement in map(str.strip, statements):
            name = rf"[{''.join(NAMES[:variables])}]"
            change = rf"({name} = (10|[1-9])|{name} (\+\+|--)) ;"
            assert re.fullmatch(
                rf"{change}|print {name} ;|"
                rf"if {name} [<>] (10|[1-9]|{name}) : {change}",
                statement,
            )
            kind = statement.split()[0]
            kinds[kind if kind in kinds else statement.split()[1]] += 1
            if kind == "if":
                assert statement.split()[1] != statement.split()[3]
        outside = [s for s in statements if " = " in s and " if " not in f" {s}"]
        assert len({s.split()[0] for s in outside}) == len(outside)
        assert (row_labels != IGNORE).sum() == sum(
            s.strip().startswith("print") for s in statements
        )
    total = sum(kinds.values())
    assert total == 300 * 40
    assert kinds["="] <= 300 * variables
    if variables > 1:  # with one, half of the comparisons are illegal
        # four kinds remain once all names are assigned: ++, --, if, print
        assert abs(kinds["print"] / total - 0.25) < 0.03
    values = labels[labels != IGNORE] + 1
    assert (values.min(), values.max()) == (1, HIGH)


def test_programs_do_not_depend_on_ask():
    (tokens, few), (same_tokens, many) = (
        tasks.CodeExecution(3, ask=ask).sample(20, 30, generator())
        for ask in ("prints", "statements")
    )
    assert torch.equal(tokens, same_tokens)
    prints = few != IGNORE
    assert torch.equal(few[prints], many[prints])
    assert (many != IGNORE).sum() > 3 * prints.sum()


def test_most_frequent_printed_value():
    """Always guessing it is right about one time in ten."""
    _, labels = tasks.CodeExecution(3).sample(500, 100, generator())
    counts = labels[labels != IGNORE].bincount()
    assert 0.09 < counts.max() / counts.sum() < 0.125


def test_accuracy_counts_labelled_steps():
    logits = torch.eye(3)[torch.tensor([[0, 1, 2, 2]])]
    assert accuracy(logits, torch.tensor([[0, 2, IGNORE, 2]])) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="labels must have at least one label"):
        accuracy(logits, torch.full((1, 4), IGNORE))
    with pytest.raises(
        ValueError,
        match=r"logits must be \[1, 5\] \+ \[V\] like labels, got \[1, 4, 3\]",
    ):
        accuracy(logits, torch.zeros(1, 5))


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: tasks.Permutations("S4"),
            "group must be one of 'S3', 'A5', 'S5', got 'S4'",
        ),
        (lambda: tasks.ShellGame(1), r"cups must be an int in \[2, 26\], got 1"),
        (lambda: tasks.ShellGame(27), r"cups must be an int in \[2, 26\], got 27"),
        (lambda: tasks.Walk(1), "size must be"),
        (
            lambda: tasks.Walk(3, heading=True),
            "heading needs facing=True, got facing=False",
        ),
        (lambda: tasks.Copy(27), r"symbols must be an int in \[2, 26\], got 27"),
        (
            lambda: tasks.CodeExecution(ask="all"),
            "ask must be one of 'prints', 'statements', got 'all'",
        ),
        (
            lambda: tasks.CodeExecution(6),
            r"variables must be an int in \[1, 5\], got 6",
        ),
        (lambda: tasks.Parity().sample(0, 3, generator()), "batch must be"),
        (lambda: tasks.Parity().sample(2, 0, generator()), "length must be"),
        (lambda: tasks.Parity().stream(2, 3, seed=-1), "seed must be"),
        (
            lambda: tasks.WordTokenizer(["a", "b c"]),
            "words must be without white space and not empty, got 'b c'",
        ),
        (
            lambda: tasks.WordTokenizer(["a", "b", "a"]),
            "words must be distinct, got 'a' twice",
        ),
        (
            lambda: tasks.Parity().tokenizer.encode("1 2"),
            "text must be made of the 2 words of the task, got '2'",
        ),
        (
            lambda: tasks.Parity().tokenizer.decode(torch.tensor([0, -1])),
            r"numbers must be in \[0, 1\] or -100, got -1",
        ),
        (
            lambda: tasks.Parity().tokenizer.decode(torch.tensor([2])),
            r"numbers must be in \[0, 1\]",
        ),
    ],
)
def test_tasks_name_argument_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_tasks_name_option_of_another_type():
    for make in (
        lambda: tasks.Parity(dense=1),
        lambda: tasks.Walk(facing="no"),
        lambda: tasks.Copy(reverse=None),
    ):
        with pytest.raises(
            TypeError, match=r"(dense|facing|reverse) must be True or False"
        ):
            make()
