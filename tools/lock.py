"""Write the lists of packages out in full: all that they bring along, each with the hashes of all its files.

    .venv/bin/python tools/lock.py [--upgrade]

pip then installs nothing whose bytes are not listed (--require-hashes), whatever the system and the Python.
A version stays as it is unless a list says otherwise, or --upgrade.

torch is left out, with what only some of its builds bring: there is one for a CPU and one for each kind of
GPU, from more than one index, and which of them is right a reader's machine decides. Its version is pinned.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from notebooks import BUILD, ROOT, write
from packaging.requirements import Requirement
from venvs import environment

# Each list, and what uv is told about it.
LISTS: dict[str, tuple[str, ...]] = {
    "requirements.txt": (),
    "tools/requirements.txt": (),
    "benchmarks/requirements.txt": ("--no-deps",),
}
OLDEST_PYTHON = "3.11"
BY_BUILD = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")


def locked(name: str) -> Path:
    """The list in full that belongs to a list."""
    return (ROOT / name).with_suffix(".lock")


def requirements(path: Path) -> list[Requirement]:
    """What a list names, in full or not; hashes and comments left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Requirement(line.removesuffix("\\")) for line in lines if line and line[0] not in " #"]


def tools() -> Path:
    """The Python of the environment that has uv and pip-audit."""
    listed = locked("tools/requirements.txt")
    wanted = sys.version + listed.read_text(encoding="utf-8")
    return environment(BUILD / "tools", wanted, ["--require-hashes", "-r", str(listed)])


def uv(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run uv, on the user's index and none of the settings around it."""
    command = [str(tools()), "-m", "uv", "--no-config", "--quiet", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def main() -> None:
    """Write every list out in full."""
    for name, options in LISTS.items():
        path = locked(name)
        command = ["pip", "compile", name, "--output-file", str(path), *options, *sys.argv[1:]]
        command += ["--universal", "--python-version", OLDEST_PYTHON, "--generate-hashes"]
        done = uv(*command, "--no-header", "--no-annotate")
        if done.returncode != 0:
            sys.exit(f"{name} could not be resolved:\n{done.stderr}")
        entries = re.split(r"\n(?=\S)", path.read_text(encoding="utf-8").strip())
        kept = [entry for entry in entries if not BY_BUILD.match(entry)]
        heading = f"# Made by `make lock` from {name}."
        write(path, "\n".join([heading, *(entry for entry in kept if not entry.startswith("#"))]) + "\n")
        print(f"{path.relative_to(ROOT)}: {len(requirements(path))} packages")


if __name__ == "__main__":
    main()
