"""Train language models: `fbt.train(...)` or `python -m fbt.training`."""

from fbt.training.evaluation import evaluate
from fbt.training.result import Run
from fbt.training.run import resume, train

__all__ = ["Run", "evaluate", "resume", "train"]
