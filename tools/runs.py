"""The chapters' stored runs, valid until code, package or pins change."""

from __future__ import annotations

import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
from chapters import code_cells, read
from executor import Run
from repo import BUILD, digest, files_of, write

RUNS = BUILD / "notebooks"
# What a run depends on besides the notebook's own code.
INPUTS = ("fbt", "requirements.txt", "tools/book.lock")
# Packages whose versions a reader needs to compare numbers.
PACKAGES = "torch numpy matplotlib jupyter-book sphinx myst-nb ipykernel"


def key(path: Path) -> str:
    """Return a hash of a run's inputs: code cells (not prose), fbt, pins, Python."""
    code = json.dumps([cell.source for cell in code_cells(read(path))])
    return digest(files_of(*INPUTS), code, platform.python_version())


def executed_path(path: Path) -> Path:
    """Return where the executed copy of a notebook is stored."""
    return RUNS / path.name


def executed(path: Path) -> nbformat.NotebookNode | None:
    """Return a notebook with its last outputs, or None if they are out of date."""
    if not executed_path(path).exists():
        return None
    stored, notebook = read(executed_path(path)), read(path)
    about = stored.metadata.get("fbt_run", {})
    if about.get("key") != key(path):
        return None
    pairs = zip(code_cells(notebook), code_cells(stored), strict=True)
    for cell, run in pairs:
        cell.outputs, cell.execution_count = run.outputs, run.execution_count
    notebook.metadata.fbt_run = about
    return notebook


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that change numbers."""
    packages = {name: version(name) for name in PACKAGES.split()}
    return {"python": platform.python_version()} | packages


def describe(run: Run, run_key: str) -> dict[str, Any]:
    """Return what pages show about a run, and its key."""
    return {
        "key": run_key,
        "cells": len(run.notebook.cells),
        "seconds": round(run.seconds, 1),
        "cell_seconds": run.cell_seconds,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": package_versions(),
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
        },
    }


def store(path: Path, run: Run, about: dict[str, Any]) -> None:
    """Store a run of a notebook with its description."""
    run.notebook.metadata.fbt_run = about
    write(executed_path(path), nbformat.writes(run.notebook))
