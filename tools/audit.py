"""Ask about every package of the lists whether a vulnerability is known, and accept no silence for an answer.

pip-audit calls a list clean of which it could look up nothing. Here a package that it skipped, or does not
mention, is a failure like a vulnerability. What does not concern us is named in audit.toml beside this file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from datetime import UTC, date, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from lock import LISTS, locked, requirements, tools
from notebooks import ROOT
from packaging.utils import canonicalize_name

IGNORED = ROOT / "tools" / "audit.toml"
Answer = dict[str, Any]  # name, and version and vulns if it was looked up


class Ignored(NamedTuple):
    """A vulnerability that does not concern us."""

    id: str
    reason: str
    until: date  # when to think about it again


def ignored(path: Path = IGNORED) -> list[Ignored]:
    """What is accepted.

    Raises:
        TypeError: an entry lacks its id, reason or date, or has something else.
    """
    return [Ignored(**entry) for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("ignored", [])]


def wanted() -> dict[str, set[str]]:
    """For each list what it pins, as "name==version", and torch, which a list in full leaves out."""
    found = {}
    for name in LISTS:
        pins = requirements(locked(name)) + [pin for pin in requirements(ROOT / name) if pin.name == "torch"]
        found[name] = {f"{pin.name}{pin.specifier}" for pin in pins}
    return found


def ask(pins: set[str]) -> list[Answer]:
    """What pip-audit says of each package, which it wants to hear of once: two versions are two questions."""
    versions: dict[str, list[str]] = {}
    for pin in sorted(pins):
        versions.setdefault(pin.partition("==")[0], []).append(pin)
    questions = zip_longest(*versions.values())
    return [answer for question in questions for answer in _ask([pin for pin in question if pin])]


def _ask(pins: list[str]) -> list[Answer]:
    """What pip-audit says of packages, each in one version.

    Raises:
        SystemExit: it says nothing.
    """
    with tempfile.TemporaryDirectory(prefix="fbt-") as folder:
        listed = Path(folder) / "pins.txt"
        listed.write_text("\n".join(pins) + "\n", encoding="utf-8")
        command = [str(tools()), "-m", "pip_audit", f"--requirement={listed}", "--no-deps", "--disable-pip"]
        command += ["--format=json", "--progress-spinner=off"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return list(json.loads(done.stdout)["dependencies"])
    except (ValueError, KeyError):
        sys.exit(f"pip-audit gave no answer:\n{done.stderr[-2000:]}")


def problems(pins: set[str], answers: list[Answer], accepted: list[Ignored], today: date) -> list[str]:
    """What is wrong with a list: what was not looked up, and what is vulnerable."""
    found = {f"{canonicalize_name(a['name'])}=={a['version']}" for a in answers if "vulns" in a}
    unknown = sorted(pins - found)
    lines = [f"not looked up, {len(unknown)} of {len(pins)}: {', '.join(unknown)}"] if unknown else []
    good = {entry.id for entry in accepted if today <= entry.until}
    for answer in answers:
        for one in answer.get("vulns", []):
            if not good & {one["id"], *one["aliases"]}:
                mended = ", ".join(one["fix_versions"]) or "no version yet"
                lines.append(f"{answer['name']}=={answer['version']} has {one['id']}, mended in {mended}")
    return lines


def stale(answers: list[Answer], accepted: list[Ignored]) -> list[str]:
    """What is accepted and no longer found."""
    known = {i for answer in answers for one in answer.get("vulns", []) for i in (one["id"], *one["aliases"])}
    return [f"{entry.id}: no package has it any more" for entry in accepted if entry.id not in known]


def main() -> None:
    """Ask about every list, and print what is wrong."""
    today, accepted = datetime.now(UTC).date(), ignored()
    lines: list[str] = []
    everything: list[Answer] = []
    for name, pins in wanted().items():
        answers = ask(pins)
        everything += answers
        lines += [f"{name}: {line}" for line in problems(pins, answers, accepted, today)]
        print(f"{name}: asked about {len(pins)} packages", flush=True)
    lines += [f"{IGNORED.name}: {line}" for line in stale(everything, accepted)]
    if lines:
        print("\n".join(lines))
        sys.exit("Not clean: see above. A package that could not be looked up is not known to be clean.")
    print("Clean: every package was looked up, and no vulnerability is known.")


if __name__ == "__main__":
    main()
