"""Write the address in fbt/_repository.py into all files that contain the old one.

Imports only the standard library; the old address is the one in pyproject.toml.
"""

import re
import runpy
import subprocess
import sys

from repo import ROOT

HOST = "https://github.com/"


def main() -> None:
    """Replace the address in all tracked text files."""
    new = runpy.run_path(str(ROOT / "fbt" / "_repository.py"))["URL"].removeprefix(
        HOST
    )
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf'^Repository = "{HOST}(.+)"$', project, re.MULTILINE)
    if found is None:
        sys.exit(
            'pyproject.toml has no line: Repository = "https://github.com/OWNER/NAME"'
        )
    old = re.compile(rf"{re.escape(found[1])}(?![\w-])")
    command = [
        "git",
        "grep",
        "-z",
        "-I",
        "--files-with-matches",
        "--fixed-strings",
        found[1],
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    for name in filter(None, done.stdout.split("\0") if new != found[1] else []):
        path = ROOT / name
        path.write_text(
            old.sub(new, path.read_text(encoding="utf-8")), encoding="utf-8"
        )
        print(f"{name}: {found[1]} is now {new}")


if __name__ == "__main__":
    main()
