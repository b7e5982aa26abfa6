"""Run every chapter as Google Colab would: the built wheel, Colab's versions, an empty folder each."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from distribution import build
from notebooks import BUILD, ROOT, chapters, execute, read, table, write
from venvs import environment, pip

FOLDER = BUILD / "colab"
PYTHON = FOLDER / "venv" / "bin" / "python"
PINS = ROOT / "colab-pins.txt"
# Colab comes with torch; the newest release it may soon have is the one the book is built with.
TORCH = next(
    line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("torch==")
)
KERNEL = "fbt-colab"


def prepare(wheel: Path) -> None:
    """Make the environment if a pin or a dependency changed, then put the wheel of today into it."""
    files = (PINS.read_bytes(), (ROOT / "pyproject.toml").read_bytes(), TORCH.encode(), sys.version.encode())
    wanted = hashlib.sha256(b"\0".join(files)).hexdigest()
    installs = [[TORCH], ["-r", str(PINS)], ["-c", str(PINS), str(wheel)]]
    python = environment(FOLDER / "venv", wanted, *installs)
    pip(python, "--no-index", "--no-deps", "--force-reinstall", str(wheel))


def installed() -> str:
    """The versions the chapters ran with, as the environment itself reports them."""
    names = ("torch", "numpy", "matplotlib", "ipython", "ipywidgets", "ipykernel")
    code = (
        f"from importlib.metadata import version; print(', '.join(f'{{n}} {{version(n)}}' for n in {names}))"
    )
    return subprocess.run(
        [str(PYTHON), "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def register_kernel() -> None:
    """Tell Jupyter how to start a kernel there, without touching the user's own kernels."""
    share = FOLDER / "share"
    spec = {
        "argv": [str(PYTHON), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "language": "python",
    }
    write(
        share / "kernels" / KERNEL / "kernel.json",
        json.dumps(spec | {"display_name": "Google Colab's versions"}),
    )
    os.environ["JUPYTER_PATH"] = str(share)
    # Its older ipykernel would print the debugger's warning about frozen modules for every kernel.
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"


def main() -> None:
    """Build, install, run every chapter, print a table."""
    wheel, _ = build(FOLDER / "dist")
    prepare(wheel)
    register_kernel()
    rows: list[tuple[str, ...]] = [("notebook", "seconds", "result")]
    failed = False
    for number, path in enumerate(chapters(), start=1):
        label = f"[{number}/{len(chapters())}] {path.stem} (Colab)"
        run = execute(read(path), label, kernel=KERNEL)
        failed |= run.error is not None
        if run.error is not None:
            print(f"{label}: FAILED\n{run.error}", flush=True)
        rows.append((path.stem, f"{run.seconds:.1f}", "ok" if run.error is None else "FAILED"))
        print(f"{label}: {rows[-1][2]} in {run.seconds:.1f} s", flush=True)
    print(f"\n{wheel.name} with {installed()}\n{table(rows)}", flush=True)
    if failed:
        sys.exit("A chapter does not run with Google Colab's versions: see above.")


if __name__ == "__main__":
    main()
