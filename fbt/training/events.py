"""TensorBoard events, to follow the metrics of a run while it trains."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from fbt.training.metrics import Metric

MetricWriter = Callable[[Metric], None]


def event_writer(
    folder: Path | None, log: str | None
) -> Callable[[int], AbstractContextManager[MetricWriter]]:
    """Return a function that opens the event file of a run.

    Args:
        folder: the folder of the event file.
        log: "tensorboard", or None to write nothing.

    Returns:
        A function of the step at which the run starts. It returns a context manager,
        which yields a function that writes one metric. Later events, from a run that
        was killed, are purged.

    Raises:
        ImportError: if tensorboard is not installed. Nothing has been written yet.
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
    def events(step: int) -> Iterator[MetricWriter]:
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
