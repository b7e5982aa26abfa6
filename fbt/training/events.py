"""Metrics as TensorBoard events, so that a run can be watched live."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from fbt.training.loop import Metric


@contextlib.contextmanager
def event_writer(folder: Path | None, log: str | None, step: int) -> Iterator[Callable[[Metric], None]]:
    """A function that writes a metric as TensorBoard events, or one that does nothing.

    Args:
        folder: where the event files go.
        log: "tensorboard", or None for nothing.
        step: the run's step; events after it, of a run that was killed, are taken back.

    Raises:
        ImportError: tensorboard is not installed.
    """
    if log is None:
        yield lambda metric: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(f"log={log!r} needs the package tensorboard: pip install tensorboard") from error

    def write(metric: Metric) -> None:
        for name, value in metric.items():
            if name == "sample":
                writer.add_text(name, f"```\n{value}\n```", metric["step"])
            elif name == "layer_weights":
                for layer, weight in enumerate(value):
                    writer.add_scalar(f"{name}/{layer}", weight, metric["step"])
            elif name not in ("step", "seconds"):
                writer.add_scalar(name, value, metric["step"])

    with SummaryWriter(str(folder), purge_step=step + 1) as writer:
        yield write
