"""Small runs for tests: their text and settings, and how two are compared."""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from fbt._files import sha256
from fbt.pretrained import CHECKPOINT_FILE
from fbt.training import Run, train
from fbt.training.checkpoint import Fingerprint, checkpoint_bytes

# Options of other processes. Torch 2.6 leaves a temporary folder behind.
WARNINGS = ["-W", "error", "-W", "ignore:Implicitly cleaning up:ResourceWarning"]
WORDS = ["to", "be", "or", "not\nthat", "is", "the", "question"]
TEXT = " ".join(random.Random(0).choices(WORDS, k=740))  # 3,600 characters
SMALL: dict[str, Any] = {
    "preset": "tiny",
    "d_model": 16,
    "n_heads": 2,
    "n_layers": 2,
    "span": 5,
    "steps": 11,
    "batch_size": 3,
    "seq_len": 7,
    "warmup": 2,
    "eval_every": 4,
    "eval_windows": 5,
    "checkpoint_every": 3,
    "sample": 3,
}


def small_run(text: str | Path = TEXT, **changes: Any) -> Run:
    """Train a small model without a progress bar."""
    return train(text, **{"progress": False} | SMALL | changes)


def fingerprint(data: bytes) -> Fingerprint:
    """Return the fingerprint of a file of metrics."""
    return Fingerprint(len(data), sha256(data))


def save_checkpoint(
    folder: Path, step: int, *what: Any, metrics: bytes = b""
) -> Path:
    """Write a checkpoint without a run."""
    path = folder / CHECKPOINT_FILE
    path.write_bytes(checkpoint_bytes(path, step, *what, fingerprint(metrics)))
    return path


def small_command(data: Path, folder: Path, **changes: Any) -> list[str]:
    """Return the arguments of the command line for the same run."""
    arguments = [f"--data={data}", f"--folder={folder}"]
    for name, value in (SMALL | changes).items():
        flag = "--" + name.replace("_", "-")
        arguments += [flag] if value is True else [f"{flag}={value}"]
    return arguments


def untimed(metrics: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the metrics without times."""
    return [{k: v for k, v in metric.items() if k != "seconds"} for metric in metrics]


def assert_same_run(run: Run, expected: Run) -> None:
    """Check that metrics and weights are equal to the last bit."""
    assert untimed(run.metrics) == untimed(expected.metrics)
    weights = expected.model.state_dict()
    assert run.model.state_dict().keys() == weights.keys()
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
