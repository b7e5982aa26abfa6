"""The metrics of a run, and the file in its folder that keeps them: a line of JSON each."""

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
    """The file of metrics in a run's folder, which grows with the run.

    It is written whole once and then appended to. A process killed while it appends
    may leave a part of a line at the end; the checkpoint, which is written
    afterwards, says how much of the file belongs to it.

    Args:
        folder: of the run, and held.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._start_over()

    def _start_over(self) -> None:
        self._count, self._size, self._hash = 0, 0, hashlib.sha256()

    def write(self, metrics: Sequence[Metric]) -> Fingerprint:
        """Bring the file up to date.

        Args:
            metrics: all metrics of the run so far, of which only new ones are
                written.

        Returns:
            What the file looks like now.

        Raises:
            OSError: if it cannot be written.
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


def read_metrics(folder: Path, expected: Fingerprint, step: int) -> list[Metric]:
    """Read the metrics that belong to a checkpoint, without any written later.

    Args:
        folder: of the run.
        expected: what the checkpoint says of the file.
        step: of the checkpoint.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is not what the checkpoint was saved with, or holds no
            metrics.
    """
    if step == 0:
        return []
    path = folder / METRICS_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"no {METRICS_FILE} in {quoted_path(folder)}, which holds the metrics of {step} steps"
        )
    with reading_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(min(size, expected.size))
    if sha256(data) != expected.sha256:
        total = f"{expected.size} bytes"
        found = (
            f"{size} of {total} are left"
            if size < expected.size
            else f"its first {total} differ"
        )
        raise ValueError(
            f"{quoted_path(path)} must be the file that the checkpoint of step {step} was saved with, "
            f"but {found}: restore it from a copy, or train in another folder"
        )
    with errors_about(path, "file of metrics"):
        lines = data.splitlines()
        metrics = [
            _metric(f"line {number}", line)
            for number, line in enumerate(lines, start=1)
        ]
        if not metrics or metrics[-1]["step"] != step:
            last = metrics[-1]["step"] if metrics else 0
            raise ValueError(
                f"its last step must be {step}, as in the checkpoint, got {last}"
            )
    return metrics


def _metric(name: str, line: bytes) -> Metric:
    """A metric from its line, with the fields that a run relies on."""
    metric: Metric = parse_json(name, line)
    check_instance(name, metric, dict)
    check_int(f"step in {name}", metric.get("step"), low=0)
    for field, value in ({"seconds": None} | metric).items():
        if field == "sample":
            check_instance(f"sample in {name}", value, str)
        else:
            for number in (
                value
                if field == "layer_weights" and isinstance(value, list)
                else [value]
            ):
                check_real(f"{field} in {name}", number, low=0.0)
    return metric
