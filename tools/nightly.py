"""Run all of the Makefile's checks, continue after failures, and write a report.

    .venv/bin/python tools/nightly.py [--quick]

Every target is a step, except those listed here that check nothing. Measurements come
last: without --quick they update records in the package. The report is report.md in
_build/nightly, with report.json for `make release-check` and a log per step.
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

from repo import BUILD, ROOT, write
from runs import package_versions

sys.path.append(str(ROOT / "experiments"))
from record import commit, machine

FOLDER = BUILD / "nightly"
NOT_CHECKS = (
    "environment notebooks lab format lock repository nightly release-check clean"
)
LAST = ("bench", "experiments")
# Lines without information at the end of a log: make's own, and rules.
EMPTY = re.compile(r"make(\[\d+\])?: |[\W_]*$")
Row = dict[str, Any]


def targets() -> list[str]:
    """Return the targets of the Makefile, in order."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE)


def steps() -> list[str]:
    """Return the targets that check something, in the order to run them."""
    checks = [name for name in targets() if name not in NOT_CHECKS.split()]
    return [name for name in checks if name not in LAST] + list(LAST)


def last_line(log: str) -> str:
    """Return the last informative line of a log, without colours and not too long."""
    log = re.sub(r"\x1b\[[\d;]*m", "", log)
    lines = [line.split("\r")[-1].strip() for line in log.splitlines()]
    return next((line for line in reversed(lines) if not EMPTY.match(line)), "")[:160]


def run(name: str, command: Sequence[str], folder: Path) -> Row:
    """Run a step with its output in a log, and return its result."""
    print(f"{name}: ", end="", flush=True)
    started, log = time.monotonic(), folder / f"{name}.log"
    environment = os.environ | {"FBT_NEEDS_BROWSER": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=file, **pipes, check=False
        )
    seconds = round(time.monotonic() - started)
    result = "ok" if done.returncode == 0 else "FAILED"
    print(f"{result} in {seconds} s", flush=True)
    last = last_line(log.read_text(encoding="utf-8", errors="replace"))
    return {"step": name, "result": result, "seconds": seconds, "last_line": last}


def report(about: Row, rows: list[Row]) -> str:
    """Format the report as Markdown."""
    when = f"{about['started']}{', quick' * about['quick']}"
    lines = [f"# Checks of {about['commit']}", "", when, ""]
    for what in ("machine", "versions"):
        values = ", ".join(f"{key} {value}" for key, value in about[what].items())
        lines += [values, ""]
    lines += ["| step | result | seconds | last line |", "|---|---|---|---|"]
    for row in rows:
        link = f"[{row['step']}]({row['step']}.log)"
        text = row["last_line"].replace("|", "\\|")
        lines.append(f"| {link} | {row['result']} | {row['seconds']} | {text} |")
    failed = [row["step"] for row in rows if row["result"] != "ok"]
    result = f"Failed: {', '.join(failed)}." if failed else "All checks passed."
    return "\n".join([*lines, "", result, ""])


def run_steps(commands: dict[str, Sequence[str]], folder: Path, quick: bool) -> bool:
    """Run the steps, writing the report after each; return whether all passed."""
    folder.mkdir(parents=True, exist_ok=True)
    about: Row = {
        "commit": commit(),
        "started": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "quick": quick,
    }
    about |= {"machine": machine(), "versions": package_versions(), "finished": False}
    rows: list[Row] = []
    for name, command in commands.items():
        rows.append(run(name, command, folder))
        about["finished"] = len(rows) == len(commands)
        record = json.dumps(about | {"rows": rows}, indent=1)
        write(folder / "report.json", f"{record}\n")
        write(folder / "report.md", report(about, rows))
    return all(row["result"] == "ok" for row in rows)


def main() -> None:
    """Run every step, and fail if one did."""
    quick = "--quick" in sys.argv[1:]
    make = ["make", *(["QUICK=1"] if quick else [])]
    good = run_steps({name: [*make, name] for name in steps()}, FOLDER, quick)
    print(f"\n{(FOLDER / 'report.md')}")
    if not good:
        sys.exit("Some checks failed: see the report.")


if __name__ == "__main__":
    main()
