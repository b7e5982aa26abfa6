"""Metrics as TensorBoard events, so that a run can be watched live."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from fbt.training.metrics import Metric

Watch = Callable[[Metric], None]


def event_writer(
    folder: Path | None, log: str | None
) -> Callable[[int], AbstractContextManager[Watch]]:
    """A way to write metrics as TensorBoard events, or one that does nothing.

    Args:
        folder: where the event files go.
        log: "tensorboard", or None for nothing.

    Returns:
        What opens the file at a step of the run, and yields a function that writes a
        metric. Events after that step, of a run that was killed, are taken back.

    Raises:
        ImportError: tensorboard is not installed; said before anything is written.
    """
    if log is None:
        return lambda step: nullcontext(lambda metric: None)
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            f"log={log!r} needs the package tensorboard: pip install tensorboard"
        ) from error

    @contextmanager
    def events(step: int) -> Iterator[Watch]:
        with SummaryWriter(str(folder), purge_step=step + 1) as writer:
            yield lambda metric: _write(writer, metric)

    return events


def _write(writer: Any, metric: Metric) -> None:
    for name, value in metric.items():
        if name == "sample":
            writer.add_text(name, f"```\n{value}\n```", metric["step"])
        elif name == "layer_weights":
            for layer, weight in enumerate(value):
                writer.add_scalar(f"{name}/{layer}", weight, metric["step"])
        elif name not in ("step", "seconds"):
            writer.add_scalar(name, value, metric["step"])
