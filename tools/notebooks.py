"""Run the chapters' notebooks; a run is reused until code, package or pins change.

    .venv/bin/python tools/notebooks.py [--force] [NOTEBOOK ...]

Without arguments every chapter whose run is missing or out of date is run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from repo import BUILD, ROOT, digest, files_of, table, write

RUNS = BUILD / "notebooks"
# A longer run on two cores is reported.
BUDGET_SECONDS = 180.0
CELL_TIMEOUT_SECONDS = 900
# What a run depends on besides the notebook's own code.
INPUTS = ("fbt", "requirements.txt", "tools/book.lock")


@dataclass
class Run:
    """An execution of a notebook."""

    notebook: nbformat.NotebookNode
    seconds: float = 0.0
    cell_seconds: list[float] = field(default_factory=list)
    error: str | None = None


def chapters() -> list[Path]:
    """Return the notebooks that _toc.yml lists, in order."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    entries = [entry for part in contents["parts"] for entry in part["chapters"]]
    paths = [ROOT / f"{entry['file']}.ipynb" for entry in entries]
    return [path for path in paths if path.exists()]


def read(path: Path) -> nbformat.NotebookNode:
    """Read a notebook as format 4."""
    return nbformat.read(path, as_version=4)


def tags(cell: nbformat.NotebookNode) -> list[str]:
    """Return a cell's tags."""
    return list(cell.metadata.get("tags", []))


def exercise_of(cell: nbformat.NotebookNode) -> str | None:
    """Return the number of a cell's exercise, such as "2.1", or None."""
    number = cell.metadata.get("fbt", {}).get("exercise")
    return None if number is None else str(number)


def key(path: Path) -> str:
    """Return a hash of a run's inputs: code cells (not prose), fbt, pins, Python."""
    code = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    return digest(files_of(*INPUTS), json.dumps(code), platform.python_version())


def executed_path(path: Path) -> Path:
    """Return where the executed copy of a notebook is kept."""
    return RUNS / path.name


def executed(path: Path) -> nbformat.NotebookNode | None:
    """Return a notebook with its last outputs, or None if they are out of date."""
    stored_path = executed_path(path)
    if not stored_path.exists():
        return None
    stored = read(stored_path)
    if stored.metadata.get("fbt_run", {}).get("key") != key(path):
        return None
    current = read(path)
    outputs = [cell for cell in stored.cells if cell.cell_type == "code"]
    for cell, run in zip(
        (c for c in current.cells if c.cell_type == "code"), outputs, strict=True
    ):
        cell.outputs, cell.execution_count = run.outputs, run.execution_count
    current.metadata.fbt_run = stored.metadata.fbt_run
    return current


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
            text = f"{self.label}  cell {cell_index + 1}/{self.cells}"
            print(
                f"\r\033[K{text}  {self.cell_started - self.started:.0f} s",
                end="",
                flush=True,
            )

    def done(
        self, cell: nbformat.NotebookNode, cell_index: int, execute_reply: Any
    ) -> None:
        """Record how long a cell took; in a log, print the slow ones."""
        seconds = time.monotonic() - self.cell_started
        self.cell_seconds.append(round(seconds, 2))
        if not self.terminal and seconds >= 3:
            print(
                f"{self.label}  cell {cell_index + 1}/{self.cells} took {seconds:.1f} s",
                flush=True,
            )


def execute(
    notebook: nbformat.NotebookNode, label: str, *, kernel: str = "python3"
) -> Run:
    """Run a notebook in an empty folder, as someone who has only this file would.

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
            client.execute()
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


def fetch_corpus() -> None:
    """Download Tiny Shakespeare first, so that no chapter shows a progress bar."""
    import fbt  # takes seconds, and is needed only if a chapter runs

    try:
        fbt.load_tiny_shakespeare()
    except OSError as error:
        sys.exit(str(error))


def run_all(paths: list[Path], *, force: bool = False) -> bool:
    """Run the notebooks that are out of date, one after another, and print a table.

    One at a time, because chapters measure times.

    Args:
        paths: notebooks to run.
        force: run all of them.

    Returns:
        Whether every notebook now has a valid run.
    """
    rows: list[tuple[str, ...]] = [("notebook", "cells", "seconds", "result")]
    stored_runs = {path: None if force else executed(path) for path in paths}
    if None in stored_runs.values():
        fetch_corpus()
    for number, (path, stored) in enumerate(stored_runs.items(), start=1):
        if stored is not None:
            about, result = stored.metadata.fbt_run, "cached"
        else:
            about, result = run_chapter(path, f"[{number}/{len(paths)}] {path.stem}")
        rows.append(
            (path.stem, str(about["cells"]), f"{about['seconds']:.1f}", result)
        )
    print("\n" + table(rows), flush=True)
    return not any(result == "FAILED" for *_, result in rows)


def run_chapter(path: Path, label: str) -> tuple[dict[str, Any], str]:
    """Run a notebook, keep the copy if it succeeds, and return its metadata and result."""
    # Taken first: a file that changes during the run invalidates it.
    run_key, notebook = key(path), read(path)
    print(f"{label}: running {len(notebook.cells)} cells", flush=True)
    try:
        run = execute(notebook, label)
    except KeyboardInterrupt:
        sys.exit(f"{label}: interrupted; earlier chapters keep their runs")
    about = {
        "key": run_key,
        "cells": len(notebook.cells),
        "seconds": round(run.seconds, 1),
        "cell_seconds": run.cell_seconds,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions(),
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
        },
    }
    if run.error is None:
        notebook.metadata.fbt_run = about
        write(executed_path(path), nbformat.writes(notebook))
    slow = ", over the budget" if run.seconds > BUDGET_SECONDS else ""
    result = "FAILED" if run.error else f"ok{slow}"
    print(
        f"{label}: {result} in {run.seconds:.1f} s {run.error or ''}".rstrip(),
        flush=True,
    )
    return about, result


def versions() -> dict[str, str]:
    """Return the versions that a reader needs to compare numbers."""
    names = (
        "torch",
        "numpy",
        "matplotlib",
        "jupyter-book",
        "sphinx",
        "myst-nb",
        "ipykernel",
    )
    return {"python": platform.python_version()} | {
        name: version(name) for name in names
    }


def main() -> None:
    """Run the given notebooks, or all chapters."""
    parser = argparse.ArgumentParser(description="Run the chapters' notebooks.")
    parser.add_argument(
        "notebook",
        nargs="*",
        type=Path,
        help="notebooks to run (default: all chapters)",
    )
    parser.add_argument(
        "--force", action="store_true", help="run even if the last run is valid"
    )
    arguments = parser.parse_args()
    paths = [path.resolve() for path in arguments.notebook] or chapters()
    if not run_all(paths, force=arguments.force):
        sys.exit(1)


if __name__ == "__main__":
    main()
