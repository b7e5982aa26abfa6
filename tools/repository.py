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
    url = runpy.run_path(str(ROOT / "fbt" / "_repository.py"))["URL"]
    new = url.removeprefix(HOST)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(rf'^Repository = "{HOST}(.+)"$', project, re.MULTILINE)
    if match is None:
        sys.exit(f'pyproject.toml must have a line: Repository = "{HOST}OWNER/NAME"')
    old = match[1]
    if old == new:
        return
    pattern = re.compile(rf"{re.escape(old)}(?![\w-])")
    command = ["git", "grep", "-z", "-I", "--files-with-matches", "--fixed-strings"]
    done = subprocess.run(
        [*command, old], cwd=ROOT, capture_output=True, text=True, check=False
    )
    for name in filter(None, done.stdout.split("\0")):
        path = ROOT / name
        text = pattern.sub(new, path.read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8")
        print(f"{name}: {old} is now {new}")


if __name__ == "__main__":
    main()
