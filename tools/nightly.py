"""Run everything that the Makefile can check, go on after a failure, and write a report.

    .venv/bin/python tools/nightly.py [--quick]

The steps are the Makefile's targets, a new one too, but for those named here that check nothing. What
measures comes last: without --quick it writes records into the package, which are then to be looked at.
The report is _build/nightly/report.md, and report.json for `make release-check`, with a log of each step.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from notebooks import BUILD, ROOT, versions, write

sys.path.append(str(ROOT / "experiments"))
from record import commit, machine

FOLDER = BUILD / "nightly"
CHECK_NOTHING = "help environment notebooks lab format lock repository nightly release-check clean"
LAST = ("bench", "experiments")
# Lines that end a log without saying anything: make's own, and rules drawn across.
EMPTY = re.compile(r"make(\[\d+\])?: |[\W_]*$")
Row = dict[str, Any]


def targets() -> list[str]:
    """The targets of the Makefile, in its order."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE)


def steps() -> list[str]:
    """The targets that check something, in the order to run them."""
    checking = [name for name in targets() if name not in CHECK_NOTHING.split()]
    return [name for name in checking if name not in LAST] + list(LAST)


def said(log: str) -> str:
    """The last line of a log that says something, without the colours of a terminal, and not too long."""
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).split("\r")[-1].strip() for line in log.splitlines()]
    return next((line for line in reversed(lines) if not EMPTY.match(line)), "")[:160]


def run(name: str, command: Sequence[str], folder: Path) -> Row:
    """Run a step, its output going to a log, and say how it went."""
    print(f"{name}: ", end="", flush=True)
    started, log = time.monotonic(), folder / f"{name}.log"
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"FBT_NEEDS_BROWSER": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    seconds = round(time.monotonic() - started)
    result = "ok" if done.returncode == 0 else "FAILED"
    print(f"{result} in {seconds} s", flush=True)
    last = said(log.read_text(encoding="utf-8", errors="replace"))
    return {"step": name, "result": result, "seconds": seconds, "said": last}


def report(about: Row, rows: list[Row]) -> str:
    """The report as Markdown."""
    lines = [f"# Everything, at {about['commit']}", "", f"{about['started']}{', quick' * about['quick']}", ""]
    for what in ("machine", "versions"):
        lines += [", ".join(f"{key} {value}" for key, value in about[what].items()), ""]
    lines += ["| step | result | seconds | it said |", "|---|---|---|---|"]
    for row in rows:
        text = row["said"].replace("|", "\\|")
        lines.append(f"| [{row['step']}]({row['step']}.log) | {row['result']} | {row['seconds']} | {text} |")
    failed = [row["step"] for row in rows if row["result"] != "ok"]
    return "\n".join([*lines, "", f"Failed: {', '.join(failed)}." if failed else "All is well.", ""])


def everything(commands: dict[str, Sequence[str]], folder: Path, quick: bool) -> bool:
    """Run the steps, writing the report after each; True if none failed."""
    folder.mkdir(parents=True, exist_ok=True)
    about: Row = {"commit": commit(), "started": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "quick": quick}
    about |= {"machine": machine(), "versions": versions(), "finished": False}
    rows: list[Row] = []
    for name, command in commands.items():
        rows.append(run(name, command, folder))
        about["finished"] = len(rows) == len(commands)
        write(folder / "report.json", json.dumps(about | {"rows": rows}, indent=1) + "\n")
        write(folder / "report.md", report(about, rows))
    return all(row["result"] == "ok" for row in rows)


def main() -> None:
    """Run everything, and fail if anything did."""
    quick = "--quick" in sys.argv[1:]
    make = ["make", *(["QUICK=1"] if quick else [])]
    good = everything({name: [*make, name] for name in steps()}, FOLDER, quick)
    print(f"\n{(FOLDER / 'report.md')}")
    if not good:
        sys.exit("Not all is well: see the report.")


if __name__ == "__main__":
    main()
