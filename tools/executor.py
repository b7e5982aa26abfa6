"""Run a notebook in an empty folder, as someone with only this file would."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

CELL_TIMEOUT_SECONDS = 900
# Outputs name the scripts beside the pages (book/_ext/fbt_live.py) and do not carry
# the weights of the shipped models.
ENVIRONMENT = {"FBT_LIVE_WEIGHTS": "../_static/live"}


@dataclass
class Run:
    """An execution of a notebook."""

    notebook: nbformat.NotebookNode
    seconds: float = 0.0
    cell_seconds: list[float] = field(default_factory=list)
    error: str | None = None


class Progress:
    """Show the running cell in place on a terminal, or slow cells in a log."""

    def __init__(self, label: str, cells: int) -> None:
        """Start the clock for a notebook with this many cells."""
        self.label, self.cells = label, cells
        self.started = self.cell_started = time.monotonic()
        self.cell_seconds: list[float] = []
        self.terminal = sys.stdout.isatty()

    def start(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        """Show that a cell has started."""
        self.cell_started = time.monotonic()
        if self.terminal:
            seconds = self.cell_started - self.started
            text = (
                f"{self.label}  cell {cell_index + 1}/{self.cells}  {seconds:.0f} s"
            )
            print(f"\r\033[K{text}", end="", flush=True)

    def done(
        self, cell: nbformat.NotebookNode, cell_index: int, execute_reply: Any
    ) -> None:
        """Record how long a cell took; in a log, print the slow ones."""
        seconds = time.monotonic() - self.cell_started
        self.cell_seconds.append(round(seconds, 2))
        if not self.terminal and seconds >= 3:
            text = f"{self.label}  cell {cell_index + 1}/{self.cells}"
            print(f"{text} took {seconds:.1f} s", flush=True)


def execute(
    notebook: nbformat.NotebookNode, label: str, *, kernel: str = "python3"
) -> Run:
    """Run a notebook in an empty folder.

    Args:
        notebook: the notebook; its outputs are filled in place.
        label: its name in progress lines.
        kernel: name of the kernel specification.

    Returns:
        The run; `error` contains the failing cell and its traceback, if any.

    Raises:
        KeyboardInterrupt: on Ctrl-C, after the kernel has ended.
    """
    progress = Progress(label, len(notebook.cells))
    error = None
    with tempfile.TemporaryDirectory(prefix="fbt-") as folder:
        client = NotebookClient(
            notebook,
            kernel_name=kernel,
            timeout=CELL_TIMEOUT_SECONDS,
            resources={"metadata": {"path": folder}},
            record_timing=False,
            store_widget_state=False,  # pages show the HTML of views
            coalesce_streams=True,  # one output for all that a cell prints
            # ipykernel would warn about its local connection.
            extra_arguments=["--log-level=ERROR"],
            on_cell_start=progress.start,
            on_cell_executed=progress.done,
        )
        try:
            client.execute(env=os.environ | ENVIRONMENT)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as failure:
            error = str(failure)
        except AssertionError:
            # On Ctrl-C nbclient ends the kernel and then asserts that there is one.
            if client.km is None:
                raise KeyboardInterrupt from None
            raise
        finally:
            if progress.terminal:
                print("\r\033[K", end="", flush=True)
    return Run(
        notebook, time.monotonic() - progress.started, progress.cell_seconds, error
    )
