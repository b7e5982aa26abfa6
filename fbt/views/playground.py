"""Small models that train in the page: feedback beside parallel attention."""

from fbt._checks import check_choice
from fbt.views.view import View

TASKS = ("cups", "parity", "S3", "copy")
TEXT = """\
A playground. On a page that runs scripts, a feedback model and a parallel one train
here side by side, from nothing, in seconds. A grid shows their answers on games they
have never seen: each right answer fills a cell."""


class Playground(View):
    """A feedback model and a parallel one, which a reader trains in the page.

    They learn a task of `fbt.tasks` in plain JavaScript, without a kernel. The reader
    starts, pauses and resets the training, selects the task, a seed and the depth of
    the parallel model, adds an LSTM, and tests on games far longer than any in
    training. The models are those of the package, without the norm before the head:
    "shared-kv", which equals "feedback" for one layer, and "parallel".

    Args:
        task: selected first: "cups" (`ShellGame`), "parity", "S3" (`Permutations`) or
            "copy".

    Raises:
        ValueError: if `task` is not one of these.
    """

    worker = (
        "learn_kernels.js",
        "learn_model.js",
        "learn_transformer.js",
        "learn_lstm.js",
        "learn.js",
        "playground_worker.js",
    )

    def __init__(self, task: str = "cups") -> None:
        check_choice("task", task, TASKS)
        self.task = task
        super().__init__("playground", {"task": task}, {}, TEXT)

    def __repr__(self) -> str:
        return f"Playground({self.task!r})"
