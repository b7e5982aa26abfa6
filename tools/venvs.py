"""Environments beside .venv: each in a folder of _build, made anew when what it is to hold has changed."""

from __future__ import annotations

import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path

from notebooks import ROOT, write


def pip(python: Path, *arguments: str) -> None:
    """Install into the environment of a Python."""
    options = ["--disable-pip-version-check", "--no-input", "--quiet"]
    subprocess.run([str(python), "-m", "pip", *options, "install", *arguments], check=True)


def environment(folder: Path, wanted: str, *installs: Sequence[str]) -> Path:
    """The Python of an environment.

    Args:
        folder: where it is.
        wanted: says what it holds; where it was made for something else, it is made anew.
        installs: what pip installs into a new one, one call after another.
    """
    python, stamp = folder / "bin" / "python", folder / "stamp"
    if not (python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted):
        print(f"Making the environment {folder.relative_to(ROOT)}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        for arguments in installs:
            pip(python, *arguments)
        write(stamp, wanted)
    return python
