"""The metrics of a run and their file, one JSON object per line."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fbt._checks import check_instance, check_int, check_real
from fbt._files import errors_about, quoted_path, reading_file, sha256
from fbt._text import parse_json
from fbt.training.checkpoint import Fingerprint
from fbt.training.folder import RunFolder

METRICS_FILE = "metrics.jsonl"

Metric = dict[str, Any]


class MetricsFile:
    """The file of metrics in the folder of a run.

    The first write creates the file, later ones append to it. If the process is
    killed while it appends, the last line may be incomplete. The checkpoint, which is
    written afterwards, records how many bytes belong to it.

    Args:
        folder: the folder of the run, which must be locked.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._start_over()

    def _start_over(self) -> None:
        self._count, self._size, self._hash = 0, 0, hashlib.sha256()

    def write(self, metrics: Sequence[Metric]) -> Fingerprint:
        """Write the metrics that the file does not contain yet.

        Args:
            metrics: all metrics of the run so far.

        Returns:
            The fingerprint of the file.

        Raises:
            OSError: if the file cannot be written.
        """
        new = b"".join(map(_line, metrics[self._count :]))
        if self._count and self._folder.append(METRICS_FILE, new, self._size):
            self._add(new, len(metrics))
        else:
            self._write_whole(metrics)
        return Fingerprint(self._size, self._hash.hexdigest())

    def _add(self, data: bytes, count: int) -> None:
        self._count = count
        self._size += len(data)
        self._hash.update(data)

    def _write_whole(self, metrics: Sequence[Metric]) -> None:
        self._start_over()
        with self._folder.writing(METRICS_FILE) as file:
            for metric in metrics:
                file.write(line := _line(metric))
                self._add(line, self._count + 1)


def _line(metric: Metric) -> bytes:
    return json.dumps(metric).encode() + b"\n"


def read_metrics(
    folder: Path, expected: Fingerprint | None, step: int
) -> list[Metric]:
    """Read the metrics that belong to a checkpoint; later ones are ignored.

    Args:
        folder: the folder of the run.
        expected: the fingerprint in the checkpoint. None, in a checkpoint of version
            0.1.0, means the lines up to its step.
        step: the step of the checkpoint.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file does not match the fingerprint, or does not contain
            metrics up to this step.
    """
    if step == 0:
        return []
    path = folder / METRICS_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"no {METRICS_FILE} in {quoted_path(folder)}, with the metrics of "
            f"{step} steps"
        )
    with reading_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size if expected is None else min(size, expected.size))
    if expected is not None and sha256(data) != expected.sha256:
        problem = f"its first {expected.size} bytes differ"
        if size < expected.size:
            problem = f"only {size} of {expected.size} bytes are left"
        raise ValueError(
            f"{quoted_path(path)} does not match the checkpoint of step {step}: "
            f"{problem}. Restore the file from a copy, or train into another folder"
        )
    with errors_about(path, "file of metrics"):
        lines = data.splitlines()
        metrics = [
            _metric(f"line {number}", line)
            for number, line in enumerate(lines, start=1)
        ]
        if expected is None:
            metrics = [metric for metric in metrics if metric["step"] <= step]
        if not metrics or metrics[-1]["step"] != step:
            got = metrics[-1]["step"] if metrics else 0
            raise ValueError(
                f"its last step must be {step}, as in the checkpoint, got {got}"
            )
    return metrics


def _metric(name: str, line: bytes) -> Metric:
    """Parse and check the metric in a line."""
    metric: Metric = parse_json(name, line)
    check_instance(name, metric, dict)
    check_int(f"step in {name}", metric.get("step"), low=0)
    for field, value in ({"seconds": None} | metric).items():
        if field == "sample":
            check_instance(f"sample in {name}", value, str)
        else:
            numbers = value if isinstance(value, list) else [value]
            for number in numbers if field == "layer_weights" else [value]:
                check_real(f"{field} in {name}", number, low=0.0)
    return metric
