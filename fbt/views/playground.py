"""Small models that train in the page: feedback beside parallel attention."""

import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

from fbt._checks import check_bool, check_choice, check_int
from fbt.views.view import View

TASKS = ("cups", "parity", "S3", "copy")
UNITS = {"cups": "swaps", "parity": "bits", "S3": "shuffles", "copy": "symbols"}
# Lengths of a test; playground.js has these numbers too.
TESTED = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
USUAL = 24
GRID = (192, 96)  # units of a drawing


class Playground(View):
    """A feedback model and a parallel one, which a reader trains in the page.

    They learn a task of `fbt.tasks` in plain JavaScript, without a kernel. The reader
    starts, pauses and resets the training, selects the task, a seed and the depth of
    the parallel model, adds an LSTM, and tests on games far longer than any in
    training. The models are those of the package, without the norm before the head:
    "shared-kv", which equals "feedback" for one layer, and "parallel".

    On paper and without scripts, a figure shows what one training of each model has
    led to, from the record `fbt/measurements/playground.json`.

    Args:
        task: selected first: "cups" (`ShellGame`), "parity", "S3" (`Permutations`) or
            "copy".
        tested: length of the tests at first, one of 4, 8, 12, 16, 24, 32, 48, 64, 96
            and 128. Tests of "copy" begin at the length of its training.
        lstm: whether to show an LSTM, too.

    Raises:
        TypeError: if `tested` is not an int, or `lstm` not a bool.
        ValueError: if `task` or `tested` is not one of these.
    """

    worker = (
        "learn_kernels.js",
        "learn_model.js",
        "learn_transformer.js",
        "learn_lstm.js",
        "learn.js",
        "playground_worker.js",
    )

    def __init__(
        self, task: str = "cups", *, tested: int = USUAL, lstm: bool = False
    ) -> None:
        check_choice("task", task, TASKS)
        check_int("tested", tested, low=1)
        if tested not in TESTED:
            raise ValueError(
                f"tested must be one of {', '.join(map(str, TESTED))}, got {tested}"
            )
        check_bool("lstm", lstm)
        self.task = task
        self._runs = [
            run
            for run in measured()["runs"]
            if run["task"] == task and (lstm or run["model"] != "LSTM")
        ]
        for run in self._runs:  # those of a copy have a length of their own
            run["rows"] = [row[:tested] for row in run["rows"]]
        data = {"task": task, "tested": tested, "lstm": lstm}
        super().__init__("playground", data, {}, self._caption())

    def __repr__(self) -> str:
        return f"Playground({self.task!r})"

    def _caption(self) -> str:
        first, unit = self._runs[0], UNITS[self.task]
        tests, length = len(first["rows"]), len(first["rows"][0])
        trained = first["trained"]
        after = trained if trained < length else 0
        shares = []
        for run in self._runs:
            answers = "".join(row[after:] for row in run["rows"])
            share = answers.count("1") / len(answers)
            shares.append(f"{run['model']} {100 * share:.3g} %")
        return (
            f"The playground after {first['updates']} updates on at most {trained} "
            f"{unit}, with seed {measured()['seed']}: {tests} tests as rows, "
            f"{length} {unit} as columns, filled where the answer is right. Right "
            f"{'beyond the line, where training ends' if after else 'in all'}: "
            f"{', '.join(shares)}. With scripts, the models train in the page."
        )

    def _still(self) -> str:
        grids = "".join(
            f'<div class="fbt-drawn fbt-{run["model"]}">'
            f'<p class="fbt-player-name">{run["model"]}</p>'
            f"{grid(run['rows'], run['trained'])}</div>"
            for run in self._runs
        )
        return (
            '<figure class="fbt-still">'
            f'<div class="fbt-players">{grids}</div>'
            f"<figcaption>{self._caption()}</figcaption></figure>"
        )


def measured() -> dict[str, Any]:
    """Return the record of `experiments/playground.py`."""
    record: dict[str, Any] = json.loads(record_text())
    return record


@cache
def record_text() -> str:
    """Return the record as text, read once."""
    path = files("fbt") / "measurements" / "playground.json"
    return path.read_text(encoding="utf-8")


def grid(rows: list[str], trained: int) -> str:
    """Draw answers as an SVG: a filled cell is a right one, "1" in its row.

    Args:
        rows: the answers of each test.
        trained: the longest length in training, at which there is a line.
    """
    width, height = GRID
    wide, high = width / len(rows[0]), height / len(rows)
    parts = [
        f"M{run.start() * wide:.4g} {(y + 0.5) * high:g}h{len(run[0]) * wide:.4g}"
        for y, row in enumerate(rows)
        for run in re.finditer("1+", row)
    ]
    line = ""
    if trained < len(rows[0]):
        at = f"{trained * wide - 0.075 * wide:g}"
        line = f'<path class="fbt-end" d="M{at} 0V{height}"/>'
    return (
        f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">'
        # A dash is a cell.
        f'<path stroke-width="{0.85 * high:g}" d="{"".join(parts)}" '
        f'stroke-dasharray="{0.85 * wide:.4g} {0.15 * wide:.4g}"/>{line}</svg>'
    )
