"""Make .venv agree with requirements.txt, its .lock and pyproject.toml; when it does, touch no network.

Runs under whatever Python the reader has, so only the standard library is used here.
"""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".fbt-stamp"
PYTHON = VENV / "bin" / "python"


def place() -> str:
    """What .venv is made for: this Python, and this folder, whose path its scripts hold."""
    return repr((sys.version_info[:3], str(VENV)))


def contents() -> str:
    """What .venv holds: the files that say which packages, hashed."""
    digest = hashlib.sha256()
    for name in ("requirements.txt", "requirements.lock", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def stamp(*lines: str) -> None:
    """Note what has been done so far: the place, then the contents."""
    temporary = STAMP.with_name(STAMP.name + ".new")
    temporary.write_text("\n".join(lines), encoding="utf-8")
    temporary.replace(STAMP)


def run(command: list[str], failure: str) -> None:
    """Run a command that explains itself; stop with one line more if it fails."""
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit(f"{failure}: see above. `make` goes on from there when it is called again.")


def main() -> None:
    """Create or update .venv if its stamp differs."""
    # The reader's Python may be older than the one this file is checked for.
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(
            f"fbt needs Python 3.11 or newer, not {sys.version.split()[0]}: try make PYTHON=python3.12 book"
        )
    done = STAMP.read_text(encoding="utf-8").splitlines() if PYTHON.exists() and STAMP.exists() else []
    if done == [place(), contents()]:
        return
    if VENV.is_symlink():  # what it leads to is somebody else's, and would be emptied
        sys.exit(f"{VENV} must be a folder of its own, got a link to {VENV.resolve()}")
    started = time.monotonic()
    # Without its stamp an environment was never finished: it may lack even pip.
    if done[:1] != [place()]:
        print(f"Making {VENV.relative_to(ROOT)} with Python {sys.version.split()[0]}", flush=True)
        run([sys.executable, "-m", "venv", "--clear", str(VENV)], f"{VENV} could not be made")
        stamp(place())
    print("Installing the pinned packages (the first time this takes some minutes)", flush=True)
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    # A progress bar written to a file is thousands of lines.
    if not sys.stdout.isatty():
        pip += ["--progress-bar", "off"]
    failure = "The packages could not be installed"
    # What is listed with its hashes, and nothing else; then torch, in the build that the user's index has.
    run([*pip, "--require-hashes", "-r", str(ROOT / "requirements.lock")], failure)
    run([*pip, "-r", str(ROOT / "requirements.txt")], failure)
    run([*pip, "--no-deps", "--no-build-isolation", "-e", str(ROOT)], failure)
    stamp(place(), contents())
    print(f"Environment ready in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
