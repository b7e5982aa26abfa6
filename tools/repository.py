"""Write the address in fbt/_repository.py into every file that must spell it out (a README cannot import)."""

import re
import runpy
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOST = "https://github.com/"


def main() -> None:
    """Replace the old address, as pyproject.toml has it, in all tracked text files."""
    settings = runpy.run_path(str(ROOT / "fbt" / "_repository.py"))
    new = settings["URL"].removeprefix(HOST)
    old = re.search(rf'^Repository = "{HOST}(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    if old is None:
        raise SystemExit('pyproject.toml has no line: Repository = "https://github.com/OWNER/NAME"')
    if old[1] == new:
        print(f"Every file already says {HOST}{new}")
        return
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, names.split("\0")):
        path = ROOT / name
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        changed = re.sub(rf"{re.escape(old[1])}(?![\w-])", new, text)
        if changed != text:
            path.write_text(changed, encoding="utf-8")
            print(f"{name}: {old[1]} is now {new}")


if __name__ == "__main__":
    main()
