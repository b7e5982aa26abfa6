"""The metrics of a run, and the file in its folder that keeps them: a line of JSON each."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fbt._checks import check_instance, check_int, check_real
from fbt._files import named, naming, read_whole, write_whole
from fbt._text import parsed

METRICS_FILE = "metrics.jsonl"

Metric = dict[str, Any]


def write_metrics(folder: Path, metrics: Iterable[Metric]) -> None:
    """Write the file of metrics, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    lines = "".join(json.dumps(metric) + "\n" for metric in metrics)
    write_whole(folder / METRICS_FILE, lines.encode())


def read_metrics(folder: Path | None, step: int) -> list[Metric]:
    """The metrics in a folder up to a step; a run killed between two writes may have a few more.

    Raises:
        FileNotFoundError: there are none, though steps have been taken.
        ValueError: the file holds something else.
    """
    if folder is None or step == 0:
        return []
    path = folder / METRICS_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"no {METRICS_FILE} in {named(folder)}, which holds the metrics of {step} steps"
        )
    lines = read_whole(path).splitlines()
    with naming(path, "file of metrics"):
        metrics = [_metric(f"line {number}", line) for number, line in enumerate(lines, start=1)]
    return [metric for metric in metrics if metric["step"] <= step]


def _metric(name: str, line: bytes) -> Metric:
    """A metric from its line, with the fields that a run relies on."""
    metric: Metric = parsed(name, line)
    check_instance(name, metric, dict)
    check_int(f"step in {name}", metric.get("step"), low=0)
    for field, value in ({"seconds": None} | metric).items():
        if field == "sample":
            check_instance(f"sample in {name}", value, str)
        else:
            for number in value if field == "layer_weights" and isinstance(value, list) else [value]:
                check_real(f"{field} in {name}", number, low=0.0)
    return metric
