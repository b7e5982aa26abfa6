"""Tasks whose answers need a state carried through time, and two that need none: endless, and with oracles.

To train on one::

    task = ShellGame(cups=5)
    for tokens, labels in task.stream(batch=32, length=64, seed=0):
        loss = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten())

A task draws sequences of tokens, and for each step the token that answers it, or
IGNORE where nothing is asked; tokens and answers share one vocabulary, so a
`LanguageModel` of `len(task.words)` tokens can learn it. `Task.solve` answers from
the words alone, by an algorithm that shares nothing with the one that drew them.
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
