"""The project's Python environments, and the lists of their packages.

    python3 tools/environment.py                      create or update .venv
    .venv/bin/python tools/environment.py lock [--upgrade]   resolve the lists again

Creating .venv needs only the standard library, so other imports are made where
needed.

A lock file lists every package, direct and indirect, with the hashes of all its
files; pip then installs nothing else (--require-hashes) on any system. torch and the
packages that only some of its builds need are left out: which build is right depends
on the machine. Its version is pinned in requirements.txt.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from repo import BUILD, ROOT, write

if TYPE_CHECKING:
    from packaging.requirements import Requirement

VENV = ROOT / ".venv"
STAMP = VENV / ".fbt-stamp"
PYTHON = VENV / "bin" / "python"
# The lock file of each list.
LISTS = {
    "requirements.txt": ROOT / "tools" / "book.lock",
    "tools/requirements.txt": ROOT / "tools" / "requirements.lock",
    "benchmarks/requirements.txt": ROOT / "benchmarks" / "requirements.lock",
}
OLDEST_PYTHON = "3.11"
BY_BUILD = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")


def location() -> str:
    """Return what .venv depends on besides packages: this Python, and its folder."""
    return repr((sys.version_info[:3], str(VENV)))


def contents() -> str:
    """Return a hash of the files that say what .venv contains."""
    digest = hashlib.sha256()
    for name in ("requirements.txt", "tools/book.lock", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def run(command: list[str], failure: str) -> None:
    """Run a command; if it fails, exit with a message."""
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit(f"{failure}: see above. Run the same command again to continue.")


def main() -> None:
    """Create or update .venv unless its stamp says that it is up to date."""
    version = sys.version.split()[0]
    # The user's Python may be older than the one this file is checked for.
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(
            f"fbt needs Python 3.11 or newer, got {version}: "
            "try make PYTHON=python3.12 book"
        )
    stamp: list[str] = []
    if PYTHON.exists() and STAMP.exists():
        stamp = STAMP.read_text(encoding="utf-8").splitlines()
    if stamp == [location(), contents()]:
        return
    if VENV.is_symlink():  # the folder that it points to would be emptied
        sys.exit(f"{VENV} must be a folder, got a link to {VENV.resolve()}")
    started = time.monotonic()
    # Without a stamp an environment is incomplete: it may not even have pip.
    if stamp[:1] != [location()]:
        print(f"Creating {VENV.name} with Python {version}", flush=True)
        command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
        run(command, f"Could not create {VENV}")
        write(STAMP, location())
    print("Installing the pinned packages (some minutes the first time)", flush=True)
    install = [str(PYTHON), *PIP, "install"]
    # A progress bar written to a file is thousands of lines.
    if not sys.stdout.isatty():
        install += ["--progress-bar", "off"]
    failure = "Could not install the packages"
    # First what the lock file lists, then torch from the user's index.
    run([*install, "--require-hashes", "-r", str(LISTS["requirements.txt"])], failure)
    run([*install, "-r", str(ROOT / "requirements.txt")], failure)
    run([*install, "--no-deps", "--no-build-isolation", "-e", str(ROOT)], failure)
    write(STAMP, f"{location()}\n{contents()}")
    print(f"Environment ready in {time.monotonic() - started:.0f} s", flush=True)


def pip_install(python: Path, *arguments: str) -> None:
    """Install into the environment of a Python."""
    subprocess.run([str(python), *PIP, "--quiet", "install", *arguments], check=True)


def environment(folder: Path, key: str, *installs: Sequence[str]) -> Path:
    """Return the Python of an environment beside .venv, and create it if necessary.

    Args:
        folder: its folder.
        key: describes its contents; an environment with another key is created again.
        installs: arguments of `pip install`, one call after another.
    """
    python, stamp = folder / "bin" / "python", folder / "stamp"
    is_complete = python.exists() and stamp.exists()
    if not is_complete or stamp.read_text(encoding="utf-8") != key:
        print(f"Creating the environment {folder.relative_to(ROOT)}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        for arguments in installs:
            pip_install(python, *arguments)
        write(stamp, key)
    return python


def requirements(path: Path) -> list[Requirement]:
    """Return the requirements of a list or a lock file."""
    from packaging.requirements import Requirement

    lines = path.read_text(encoding="utf-8").splitlines()
    entries = [line for line in lines if line and line[0] not in " #"]
    return [Requirement(line.removesuffix("\\")) for line in entries]


def tools() -> Path:
    """Return the Python of the environment that has uv and pip-audit."""
    lock = LISTS["tools/requirements.txt"]
    key = sys.version + lock.read_text(encoding="utf-8")
    return environment(BUILD / "tools", key, ["--require-hashes", "-r", str(lock)])


def uv(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run uv with the user's index and none of its configuration files."""
    command = [str(tools()), "-m", "uv", "--no-config", "--quiet", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )


def lock(*options: str) -> None:
    """Write the lock file of every list; --upgrade replaces old versions."""
    for name, path in LISTS.items():
        command = ["pip", "compile", name, "--output-file", str(path), *options]
        command += ["--universal", "--python-version", OLDEST_PYTHON]
        command += ["--generate-hashes", "--no-header", "--no-annotate"]
        if name.startswith("benchmarks"):  # dependencies would bring a second torch
            command.append("--no-deps")
        done = uv(*command)
        if done.returncode != 0:
            sys.exit(f"Could not resolve {name}:\n{done.stderr}")
        entries = re.split(r"\n(?=\S)", path.read_text(encoding="utf-8").strip())
        entries = [e for e in entries if not (BY_BUILD.match(e) or e[0] == "#")]
        header = f"# Made by `make lock` from {name}."
        write(path, "\n".join([header, *entries]) + "\n")
        print(f"{path.relative_to(ROOT)}: {len(entries)} packages")


if __name__ == "__main__":
    lock(*sys.argv[2:]) if sys.argv[1:2] == ["lock"] else main()
