"""Make .venv agree with requirements.txt and pyproject.toml; when it does, do nothing and touch no network.

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


def stamp() -> str:
    """What the environment depends on: the two files, this Python and the place it stands in."""
    digest = hashlib.sha256(repr((sys.version_info[:3], str(VENV))).encode())
    for name in ("requirements.txt", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def main() -> None:
    """Create or update .venv if its stamp differs."""
    # The reader's Python may be older than the one this file is checked for.
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(
            f"fbt needs Python 3.11 or newer, not {sys.version.split()[0]}: try make PYTHON=python3.12 book"
        )
    wanted = stamp()
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text() == wanted:
        return
    started = time.monotonic()
    if not PYTHON.exists() or not _same_python():
        print(f"Making {VENV.relative_to(ROOT)} with Python {sys.version.split()[0]}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    print("Installing the pinned packages (the first time this takes some minutes)", flush=True)
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    # A progress bar written to a file is thousands of lines.
    if not sys.stdout.isatty():
        pip += ["--progress-bar", "off"]
    subprocess.run([*pip, "-r", str(ROOT / "requirements.txt")], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", str(ROOT)], check=True)
    temporary = STAMP.with_name(STAMP.name + ".new")
    temporary.write_text(wanted)
    temporary.replace(STAMP)
    print(f"Environment ready in {time.monotonic() - started:.0f} s", flush=True)


def _same_python() -> bool:
    code = "import sys; print(sys.version_info[:3])"
    answer = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=False)
    return answer.stdout.strip() == str(sys.version_info[:3])


if __name__ == "__main__":
    main()
