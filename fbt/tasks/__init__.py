"""Synthetic tasks: most require tracking a state over time; copying does not.

To train on a task::

    task = ShellGame(cups=5)
    for tokens, labels in task.stream(batch=32, length=64, seed=0):
        loss = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten())

A task draws sequences of tokens and a label for each step: a token, or IGNORE where
there is no question. Tokens and labels share one vocabulary, so a `LanguageModel`
with a vocabulary of `len(task.words)` can learn the task. `Task.solve` computes the
labels from the words alone, by an algorithm independent of the one that drew them.
"""

from fbt.tasks.code import CodeExecution
from fbt.tasks.copying import Copy
from fbt.tasks.groups import Parity, Permutations, ShellGame
from fbt.tasks.task import IGNORE, Task, WordTokenizer, accuracy
from fbt.tasks.walk import Walk

__all__ = [
    "IGNORE",
    "CodeExecution",
    "Copy",
    "Parity",
    "Permutations",
    "ShellGame",
    "Task",
    "Walk",
    "WordTokenizer",
    "accuracy",
]
