"""Training on text: `fbt.train(...)` in a notebook, `python -m fbt.training` on the command line."""

from fbt.training.evaluation import evaluate
from fbt.training.run import Run, resume, train

__all__ = ["Run", "evaluate", "resume", "train"]
