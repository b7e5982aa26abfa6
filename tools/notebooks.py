"""Run the chapters' notebooks; a run is reused until code, package or pins change.

    .venv/bin/python tools/notebooks.py [--force] [NOTEBOOK ...]

Without arguments every chapter whose run is missing or out of date is run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from chapters import chapters, read
from executor import execute
from repo import table
from runs import describe, executed, key, store

# A longer run on two cores is reported.
BUDGET_SECONDS = 180.0


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
        cells, seconds = str(about["cells"]), f"{about['seconds']:.1f}"
        rows.append((path.stem, cells, seconds, result))
    print("\n" + table(rows), flush=True)
    return not any(result == "FAILED" for *_, result in rows)


def run_chapter(path: Path, label: str) -> tuple[dict[str, Any], str]:
    """Run a notebook, store a successful run, return its description and result."""
    # Taken first: a file that changes during the run invalidates it.
    run_key, notebook = key(path), read(path)
    print(f"{label}: running {len(notebook.cells)} cells", flush=True)
    try:
        run = execute(notebook, label)
    except KeyboardInterrupt:
        sys.exit(f"{label}: interrupted; earlier chapters keep their runs")
    about = describe(run, run_key)
    if run.error is None:
        store(path, run, about)
    slow = ", over the budget" if run.seconds > BUDGET_SECONDS else ""
    result = "FAILED" if run.error else f"ok{slow}"
    line = f"{label}: {result} in {run.seconds:.1f} s {run.error or ''}"
    print(line.rstrip(), flush=True)
    return about, result


def main() -> None:
    """Run the given notebooks, or all chapters."""
    parser = argparse.ArgumentParser(description="Run the chapters' notebooks.")
    about = "notebooks to run (default: all chapters)"
    parser.add_argument("notebook", nargs="*", type=Path, help=about)
    about = "run even if the last run is valid"
    parser.add_argument("--force", action="store_true", help=about)
    arguments = parser.parse_args()
    paths = [path.resolve() for path in arguments.notebook] or chapters()
    if not run_all(paths, force=arguments.force):
        sys.exit(1)


if __name__ == "__main__":
    main()
