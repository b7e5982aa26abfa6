"""The chapters' notebooks: where they are, when a run is still good, and how one is executed."""

from __future__ import annotations

import hashlib
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

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
RUNS = BUILD / "notebooks"
# A chapter that takes longer than this on two cores has outgrown the book.
BUDGET_SECONDS = 180.0
CELL_TIMEOUT_SECONDS = 900
# What a run depends on besides the notebook's own code.
INPUTS = ("fbt", "requirements.txt", "requirements.lock")
IGNORED = {"__pycache__", ".ipynb_checkpoints", ".mypy_cache", ".DS_Store"}


@dataclass
class Run:
    """One execution of one notebook: its outputs, or the error that ended it."""

    notebook: nbformat.NotebookNode
    seconds: float = 0.0
    cell_seconds: list[float] = field(default_factory=list)
    error: str | None = None


def chapters() -> list[Path]:
    """The notebooks that _toc.yml lists, in the book's order."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    entries = [entry for part in contents["parts"] for entry in part["chapters"]]
    paths = [ROOT / f"{entry['file']}.ipynb" for entry in entries]
    return [path for path in paths if path.exists()]


def read(path: Path) -> nbformat.NotebookNode:
    """Read a notebook as format 4."""
    return nbformat.read(path, as_version=4)


def tags(cell: nbformat.NotebookNode) -> list[str]:
    """A cell's tags."""
    return list(cell.metadata.get("tags", []))


def exercise_of(cell: nbformat.NotebookNode) -> str | None:
    """The number of the exercise a cell belongs to, such as "2.1", or None."""
    number = cell.metadata.get("fbt", {}).get("exercise")
    return None if number is None else str(number)


def files_of(*names: str) -> list[Path]:
    """Every file under the named files and folders of the repository, sorted, without caches."""
    found: list[Path] = []
    for name in names:
        path = ROOT / name
        candidates = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [file for file in candidates if file.is_file() and not IGNORED & set(file.parts)]
    return found


def digest(files: list[Path], *extra: str) -> str:
    """A hash of the files' names and bytes, and of the extra strings."""
    total = hashlib.sha256()
    for file in files:
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.relative_to(ROOT).as_posix()}\0{content}\n".encode())
    for text in extra:
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()


def key(path: Path) -> str:
    """What a run depends on: the notebook's code cells (not its prose), fbt, the pins."""
    code = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    return digest(files_of(*INPUTS), json.dumps(code), platform.python_version())


def executed_path(path: Path) -> Path:
    """Where the executed copy of a notebook is kept."""
    return RUNS / path.name


def executed(path: Path) -> nbformat.NotebookNode | None:
    """The notebook of today with its last run's outputs, or None if that run is missing or out of date."""
    stored_path = executed_path(path)
    if not stored_path.exists():
        return None
    stored = read(stored_path)
    if stored.metadata.get("fbt_run", {}).get("key") != key(path):
        return None
    current = read(path)
    outputs = [cell for cell in stored.cells if cell.cell_type == "code"]
    for cell, run in zip((c for c in current.cells if c.cell_type == "code"), outputs, strict=True):
        cell.outputs, cell.execution_count = run.outputs, run.execution_count
    current.metadata.fbt_run = stored.metadata.fbt_run
    return current


class Progress:
    """Prints which cell of which notebook is running, in place on a terminal and line by line in a log."""

    def __init__(self, label: str, cells: int) -> None:
        """Start the clock; `label` names the notebook and `cells` is how many cells it has."""
        self.label, self.cells = label, cells
        self.started = self.cell_started = time.monotonic()
        self.cell_seconds: list[float] = []
        self.terminal = sys.stdout.isatty()

    def start(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        """Say that a cell has started."""
        self.cell_started = time.monotonic()
        if self.terminal:
            elapsed = self.cell_started - self.started
            line = f"{self.label}  cell {cell_index + 1}/{self.cells}  {elapsed:.0f} s"
            print(f"\r\033[K{line}", end="", flush=True)

    def done(self, cell: nbformat.NotebookNode, cell_index: int, execute_reply: Any) -> None:
        """Note how long the cell took; in a log, mention the slow ones."""
        seconds = time.monotonic() - self.cell_started
        self.cell_seconds.append(round(seconds, 2))
        if not self.terminal and seconds >= 3:
            print(f"{self.label}  cell {cell_index + 1}/{self.cells} took {seconds:.1f} s", flush=True)

    def clear(self) -> None:
        """Wipe the line on a terminal."""
        if self.terminal:
            print("\r\033[K", end="", flush=True)


def execute(notebook: nbformat.NotebookNode, label: str, *, kernel: str = "python3") -> Run:
    """Run a notebook from top to bottom in an empty folder, as someone who opened only that file would.

    Args:
        notebook: the notebook; its outputs are filled in place.
        label: what progress lines call it.
        kernel: name of the kernel specification.

    Returns:
        The run; `error` holds the failing cell and its traceback if there was one.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the kernel has been ended.
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
            store_widget_state=False,  # a page shows the HTML of a view and has no kernel to give it more
            coalesce_streams=True,  # what a cell prints bit by bit is one output
            # At its default level ipykernel warns of a connection that never leaves this machine.
            extra_arguments=["--log-level=ERROR"],
            on_cell_start=progress.start,
            on_cell_executed=progress.done,
        )
        try:
            client.execute()
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as failure:
            error = str(failure)
        except AssertionError:
            # nbclient answers Ctrl-C by ending the kernel, and then trips over its absence.
            if client.km is None:
                raise KeyboardInterrupt from None
            raise
        finally:
            progress.clear()
    return Run(notebook, time.monotonic() - progress.started, progress.cell_seconds, error)


def fetch_corpus() -> None:
    """Put Tiny Shakespeare into the user's cache, so that no chapter shows its download on the page."""
    import fbt  # takes seconds, and is needed only where a chapter runs

    try:
        fbt.load_tiny_shakespeare()
    except OSError as error:
        sys.exit(str(error))


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp makes files only their owner can read; a built book is for everyone.
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows of text as aligned columns, the first row being the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def run_all(paths: list[Path], *, force: bool = False) -> bool:
    """Bring the executed copies of the notebooks up to date, one after another, and print a table.

    Each runs alone because chapters measure times on the machine's cores.

    Args:
        paths: notebooks to run.
        force: run them even where a good run exists.

    Returns:
        Whether every notebook has a good run now.
    """
    rows: list[tuple[str, ...]] = [("notebook", "cells", "seconds", "result")]
    good = True
    stored_runs = [None if force else executed(path) for path in paths]
    if None in stored_runs:
        fetch_corpus()
    for number, (path, stored) in enumerate(zip(paths, stored_runs, strict=True), start=1):
        label = f"[{number}/{len(paths)}] {path.stem}"
        if stored is not None:
            run_of = stored.metadata.fbt_run
            rows.append((path.stem, str(run_of.cells), f"{run_of.seconds:.1f}", "cached"))
            continue
        # The key is taken first: if a file changes during the run, the run is out of date and says so.
        run_key = key(path)
        notebook = read(path)
        print(f"{label}: running {len(notebook.cells)} cells", flush=True)
        try:
            run = execute(notebook, label)
        except KeyboardInterrupt:
            sys.exit(f"{label}: interrupted; the chapters before it keep their runs")
        if run.error is not None:
            good = False
            print(f"{label}: FAILED after {run.seconds:.1f} s\n{run.error}", flush=True)
            rows.append((path.stem, str(len(notebook.cells)), f"{run.seconds:.1f}", "FAILED"))
            continue
        notebook.metadata.fbt_run = {
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
        write(executed_path(path), nbformat.writes(notebook))
        slow = run.seconds > BUDGET_SECONDS
        result = f"ok, over the {BUDGET_SECONDS:.0f} s budget" if slow else "ok"
        print(f"{label}: {result} in {run.seconds:.1f} s", flush=True)
        rows.append((path.stem, str(len(notebook.cells)), f"{run.seconds:.1f}", result))
    print("\n" + table(rows), flush=True)
    return good


def versions() -> dict[str, str]:
    """The versions that matter to a reader comparing numbers."""
    names = ("torch", "numpy", "matplotlib", "jupyter-book", "sphinx", "myst-nb", "ipykernel")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
