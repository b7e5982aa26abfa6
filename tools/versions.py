"""Check the package with other versions of what it depends on.

    .venv/bin/python tools/versions.py colab     run the chapters as on Colab
    .venv/bin/python tools/versions.py pythons   look for wheels, compile the code
    .venv/bin/python tools/versions.py 2.6.0     run the tests with that torch

The last two record their results in tests/versions.json. Another torch, which may be
gigabytes, gets an environment of its own; tests unrelated to torch are skipped.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from chapters import chapters, code_cells, read
from distribution import build
from environment import LISTS, environment, pip_install, uv
from executor import execute
from IPython.core.inputtransformer2 import TransformerManager
from repo import BUILD, ROOT, table, write

sys.path.append(str(ROOT / "experiments"))
from record import commit

RECORD = ROOT / "tests" / "versions.json"
COLAB = BUILD / "colab"
PINS = ROOT / "tools" / "colab.txt"
SHOWN = ("torch", "numpy", "matplotlib", "ipython", "ipywidgets", "ipykernel")
PYTHONS = ("3.11", "3.12", "3.13")
# By their names in uv. torch's wheels for macOS are for 14 and newer.
SYSTEMS = {
    "Linux x86-64": "x86_64-manylinux_2_28",
    "Linux ARM": "aarch64-manylinux_2_28",
    "macOS ARM": "aarch64-apple-darwin",
}
CODE = ("fbt", "tools", "book/_ext", "benchmarks", "experiments", "tests")
# Skipped with another torch: tests of built pages, of other tools in .venv, of pinned
# versions, and of records.
SKIPPED = "annotated book browser_actions browser_dark browser_light browser_texts "
SKIPPED += "browser_views found languages markdown notebooks lock numbers versions"


def install(
    folder: Path, key: str, *installs: list[str], constraint: Path | None = None
) -> tuple[Path, str]:
    """Create an environment with the current wheel; return Python and wheel."""
    wheel, _ = build(folder / "dist")
    # Its dependencies change rarely, the wheel itself often.
    extra = [["-c", str(constraint), str(wheel)]] if constraint else []
    python = environment(folder / "venv", sys.version + key, *installs, *extra)
    pip_install(python, "--no-index", "--no-deps", "--force-reinstall", str(wheel))
    return python, wheel.name


def output(python: str | Path, code: str) -> str:
    """Return what a line of code prints in another Python."""
    done = subprocess.run(
        [str(python), "-c", code], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


# Google Colab


def register_kernel(python: Path) -> str:
    """Register a kernel for this process alone, and return its name."""
    name = "fbt-colab"
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "language": "python", "display_name": "Google Colab"}
    write(COLAB / "share" / "kernels" / name / "kernel.json", json.dumps(spec))
    os.environ["JUPYTER_PATH"] = str(COLAB / "share")
    # Colab's older ipykernel would warn about frozen modules in every kernel.
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    return name


def colab() -> bool:
    """Run every chapter with Colab's versions; return whether all succeed."""
    # Colab's torch changes often; its next one is at most the one of the book.
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    torch = next(line for line in lines if line.startswith("torch=="))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    key = "\0".join([torch, PINS.read_text(), project])
    python, wheel = install(COLAB, key, [torch], ["-r", str(PINS)], constraint=PINS)
    kernel = register_kernel(python)
    rows: list[tuple[str, ...]] = [("notebook", "seconds", "result")]
    for path in chapters():
        run = execute(read(path), f"{path.stem} (Colab)", kernel=kernel)
        seconds, result = f"{run.seconds:.1f}", "FAILED" if run.error else "ok"
        rows.append((path.stem, seconds, result))
        print(f"{path.stem}: {result} in {seconds} s {run.error or ''}", flush=True)
    code = "from importlib.metadata import version; "
    code += f"print([(name, version(name)) for name in {SHOWN}])"
    print(f"\n{wheel} with {output(python, code)}\n{table(rows)}", flush=True)
    return all(row[2] == "ok" for row in rows[1:])


# The record


def state() -> str:
    """Return the commit, with a + if any file but the record differs from it."""
    command = ["git", "diff", "--quiet", "HEAD", "--", "."]
    command += [f":!{RECORD.relative_to(ROOT)}"]
    differs = subprocess.run(command, cwd=ROOT, check=False).returncode != 0
    return commit().rstrip("+") + "+" * differs


def record_row(kind: str, row: dict[str, Any], *keys: str) -> None:
    """Add a row to the record, or update the row with the same values of `keys`."""
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    rows = record.get(kind, [])
    others = [other for other in rows if any(other[key] != row[key] for key in keys)]
    old: dict[str, Any] = next((other for other in rows if other not in others), {})
    if row.items() <= old.items():
        return  # the result is the same, so date and commit stay too
    when = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": state()}
    rows = [*others, old | row | when]
    record[kind] = sorted(rows, key=lambda row: [row[key] for key in keys])
    write(RECORD, json.dumps(record, indent=1) + "\n")
    print(f"Recorded in {RECORD.relative_to(ROOT)}")


# Other Pythons


def resolve(python: str) -> list[str]:
    """Return the systems on which every pinned package has a wheel for a Python."""
    os.environ["MACOSX_DEPLOYMENT_TARGET"] = "14.0"
    systems = []
    for system, name in SYSTEMS.items():
        lists = ["requirements.txt", str(LISTS["requirements.txt"])]
        options = ["--no-deps", "--only-binary=:all:", "--python-version", python]
        done = uv("pip", "compile", *lists, *options, "--python-platform", name)
        if done.returncode == 0:
            systems.append(system)
        else:
            print(f"Python {python}, {system}: {done.stderr.strip()}", flush=True)
    return systems


def interpreter(python: str) -> str | None:
    """Return the command of a Python, or None if it is not installed."""
    command = f"python{python}"
    if shutil.which(command) is None:
        return None
    done = subprocess.run([command, "-c", ""], capture_output=True, check=False)
    return command if done.returncode == 0 else None


def compiled(command: str, code: Path) -> str | None:
    """Return a Python's version if it compiles a folder without warnings."""
    with tempfile.TemporaryDirectory(prefix="fbt-") as cache:
        options = ["-W", "error", "-X", f"pycache_prefix={cache}"]
        options += ["-m", "compileall", "-q", "-f", str(code)]
        if subprocess.run([command, *options], check=False).returncode != 0:
            return None
    return output(command, "import platform; print(platform.python_version())")


def copy_code(into: Path) -> None:
    """Copy all Python files of the repository, and the chapters' cells as files."""
    for name in CODE:
        shutil.copytree(
            ROOT / name, into / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for path in chapters():
        sources = [cell.source for cell in code_cells(read(path))]
        text = "\n".join(map(TransformerManager().transform_cell, sources))
        (into / f"{path.stem}.py").write_text(text, encoding="utf-8")


def pythons() -> bool:
    """Return whether all Pythons have wheels and compile the code."""
    good = True
    with tempfile.TemporaryDirectory(prefix="fbt-") as folder:
        copy_code(Path(folder))
        for python in PYTHONS:
            systems, command = resolve(python), interpreter(python)
            version = compiled(command, Path(folder)) if command else None
            wheels = ", ".join(systems) or "no system"
            row: dict[str, Any] = {"python": python, "wheels": systems}
            result = "not installed here"
            if command:
                row["compiled"] = version
                result = version or "the code does not compile"
                good &= version is not None
            line = f"Python {python}: wheels for {wheels}; compiled by: {result}"
            print(line, flush=True)
            good &= len(systems) == len(SYSTEMS)
            record_row("pythons", row, "python")
    return good


# Other versions of torch


def tests(torch: str) -> bool:
    """Run the tests with a version of torch; return whether all pass."""
    lock, home = LISTS["requirements.txt"], BUILD / "torch" / torch
    # torch comes last: an older one may need other versions of its dependencies.
    installs = [["--require-hashes", "-r", str(lock)], [f"torch=={torch}"]]
    python, _ = install(home, lock.read_text(encoding="utf-8"), *installs)
    report = home / "report.xml"
    command = [str(python), "-m", "pytest", "-n", "2", "--dist", "loadfile"]
    command += [f"--junitxml={report}"]
    command += [f"--ignore=tests/test_{name}.py" for name in SKIPPED.split()]
    report.unlink(missing_ok=True)
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=variables, check=False)
    suite = ElementTree.parse(report).getroot()[0]
    names = ("tests", "failures", "errors", "skipped")
    counts = {name: int(suite.attrib[name]) for name in names}
    row = {
        "torch": output(python, "import torch; print(torch.__version__)"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    record_row("tests", row | counts, *row)
    failed = done.returncode or counts["failures"] or counts["errors"]
    return not failed and counts["tests"] > 0


def main() -> None:
    """Run the check named on the command line."""
    checks = {"colab": colab, "pythons": pythons}
    name = sys.argv[1]
    good = checks[name]() if name in checks else tests(name)
    if not good:
        sys.exit("Not everything works with these versions: see above.")


if __name__ == "__main__":
    main()
