"""What other versions of Python and torch do with the package. Both write into tests/versions.json.

    .venv/bin/python tools/versions.py          for each Python: is there a wheel of every package, does the
                                                code compile without a warning
    .venv/bin/python tools/versions.py 2.6.0    the tests, with that torch and this Python

The second installs that torch into an environment of its own, which may be gigabytes; tests that say nothing
of torch are left out, those of the book's pages above all.
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

from distribution import build
from IPython.core.inputtransformer2 import TransformerManager
from lock import locked, uv
from notebooks import BUILD, ROOT, chapters, read, write
from venvs import environment, pip

sys.path.append(str(ROOT / "experiments"))
from record import commit

RECORD = ROOT / "tests" / "versions.json"
PYTHONS = ("3.11", "3.12", "3.13")
# As uv calls them. torch's wheels for macOS are for 14 and newer.
SYSTEMS = {
    "Linux x86-64": "x86_64-manylinux_2_28",
    "Linux ARM": "aarch64-manylinux_2_28",
    "macOS ARM": "aarch64-apple-darwin",
}
CODE = ("fbt", "tools", "book/_ext", "benchmarks", "experiments", "tests")
# What another torch leaves out: tests that read what `make book` made, that run other tools of .venv, those
# of the pinned versions, of records and of what is said about them.
LEFT_OUT = "annotated book browser browser_actions browser_texts browser_views found languages markdown "
LEFT_OUT += "notebooks habits lock numbers versions"


def state() -> str:
    """The commit, with a + if anything but the record differs from it."""
    command = ["git", "diff", "--quiet", "HEAD", "--", ".", f":!{RECORD.relative_to(ROOT)}"]
    return commit().rstrip("+") + "+" * (subprocess.run(command, cwd=ROOT, check=False).returncode != 0)


def note(what: str, row: dict[str, Any], *same: str) -> None:
    """Put a row into the record, in the place of the one that agrees with it in the columns `same`.

    What the old row says beyond the new one stays.
    """
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    rows = record.get(what, [])
    others = [old for old in rows if any(old[column] != row[column] for column in same)]
    kept: dict[str, Any] = next((old for old in rows if old not in others), {})
    if row.items() <= kept.items():
        return  # nothing new, so the file stays as it is
    when = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": state()}
    record[what] = sorted([*others, kept | row | when], key=lambda row: [row[column] for column in same])
    write(RECORD, json.dumps(record, indent=1) + "\n")


def resolve(python: str) -> list[str]:
    """The systems on which every package of requirements.txt has a wheel for a Python."""
    os.environ["MACOSX_DEPLOYMENT_TARGET"] = "14.0"
    found = []
    for system, name in SYSTEMS.items():
        command = ["pip", "compile", "requirements.txt", "requirements.lock"]
        command += ["--no-deps", "--only-binary=:all:"]
        done = uv(*command, "--python-version", python, "--python-platform", name)
        if done.returncode == 0:
            found.append(system)
        else:
            print(f"Python {python}, {system}: {done.stderr.strip()}", flush=True)
    return found


def interpreter(python: str) -> str | None:
    """A command that starts a Python of this version, or None."""
    command = f"python{python}"
    if shutil.which(command) is None:
        return None
    done = subprocess.run([command, "-c", ""], capture_output=True, check=False)
    return command if done.returncode == 0 else None


def compiled(command: str, code: Path) -> str | None:
    """The full version of a Python that compiles all files below a folder without a warning, or else None."""
    with tempfile.TemporaryDirectory(prefix="fbt-") as cache:
        options = ["-W", "error", "-X", f"pycache_prefix={cache}", "-m", "compileall", "-q", "-f", str(code)]
        if subprocess.run([command, *options], check=False).returncode != 0:
            return None
    version = "import platform; print(platform.python_version())"
    return subprocess.run([command, "-c", version], capture_output=True, text=True, check=True).stdout.strip()


def copy_code(into: Path) -> None:
    """All Python of the repository, the chapters' cells as files."""
    for name in CODE:
        shutil.copytree(ROOT / name, into / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in chapters():
        cells = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
        text = "\n".join(TransformerManager().transform_cell(source) for source in cells)
        (into / f"{path.stem}.py").write_text(text, encoding="utf-8")


def pythons() -> bool:
    """Say of each Python where its wheels are, and whether it compiles the code; True if all is well."""
    good = True
    with tempfile.TemporaryDirectory(prefix="fbt-") as folder:
        copy_code(Path(folder))
        for python in PYTHONS:
            systems, command = resolve(python), interpreter(python)
            version = compiled(command, Path(folder)) if command else None
            said = "not on this machine" if command is None else version or "the code does not compile"
            print(
                f"Python {python}: wheels for {', '.join(systems) or 'no system'}; compiled by: {said}",
                flush=True,
            )
            good &= len(systems) == len(SYSTEMS) and (command is None or version is not None)
            tried = {"compiled": version} if command else {}
            note("pythons", {"python": python, "wheels": systems} | tried, "python")
    return good


def tests(torch: str) -> bool:
    """Run the tests with a torch; True if none failed."""
    lock = locked("requirements.txt")
    home = BUILD / "torch" / torch
    wanted = sys.version + lock.read_text(encoding="utf-8")
    # torch comes last: an older one may need other versions of what it depends on.
    python = environment(home / "venv", wanted, ["--require-hashes", "-r", str(lock)], [f"torch=={torch}"])
    wheel, _ = build(home / "dist")
    pip(python, "--no-index", "--no-deps", "--force-reinstall", str(wheel))
    report = home / "report.xml"
    command = [str(python), "-m", "pytest", "-n", "2", "--dist", "loadfile", f"--junitxml={report}"]
    command += [f"--ignore=tests/test_{name}.py" for name in LEFT_OUT.split()]
    report.unlink(missing_ok=True)
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    suite = ElementTree.parse(report).getroot()[0]
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    exact = [str(python), "-c", "import torch; print(torch.__version__)"]
    version = subprocess.run(exact, capture_output=True, text=True, check=True).stdout.strip()
    system = f"{platform.system()} {platform.machine()}"
    row = {"torch": version, "python": platform.python_version(), "system": system}
    note("tests", row | counts, "torch", "python", "system")
    return done.returncode == 0 and counts["tests"] > 0 and counts["failures"] == counts["errors"] == 0


def main() -> None:
    """Do what the command line asks for."""
    good = tests(sys.argv[1]) if len(sys.argv) > 1 else pythons()
    print(f"{RECORD.relative_to(ROOT)} says so.")
    if not good:
        sys.exit("Something does not work there: see above.")


if __name__ == "__main__":
    main()
