"""Train language models: `fbt.train(...)` or `python -m fbt.training`."""

from fbt.training.evaluation import evaluate
from fbt.training.recipe import Recipe
from fbt.training.result import Run
from fbt.training.run import resume, train

__all__ = ["Recipe", "Run", "evaluate", "resume", "train"]
