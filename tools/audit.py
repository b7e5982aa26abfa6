"""Fail if a listed package has a known vulnerability or cannot be looked up.

pip-audit succeeds even if it could look up nothing, so packages that it skips or does
not mention count as failures here. Vulnerabilities that do not concern the project
are accepted in audit.toml, each with a reason and an expiry date.
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

from environment import LISTS, requirements, tools
from packaging.utils import canonicalize_name
from repo import ROOT

ACCEPTED = ROOT / "tools" / "audit.toml"
Result = dict[str, Any]  # name, and version and vulns if it was looked up


class Accepted(NamedTuple):
    """A vulnerability that does not concern the project."""

    id: str
    reason: str
    until: date  # when to reconsider it


def accepted(path: Path = ACCEPTED) -> list[Accepted]:
    """Return the accepted vulnerabilities.

    Raises:
        TypeError: if an entry lacks its id, reason or date, or has other fields.
    """
    entries = tomllib.loads(path.read_text(encoding="utf-8"))
    return [Accepted(**entry) for entry in entries.get("ignored", [])]


def packages() -> dict[str, set[str]]:
    """Return the pins of each lock file, and torch, which they omit."""
    pins_by_list = {}
    for name, lock in LISTS.items():
        torch = [pin for pin in requirements(ROOT / name) if pin.name == "torch"]
        pins = requirements(lock) + torch
        pins_by_list[name] = {f"{pin.name}{pin.specifier}" for pin in pins}
    return pins_by_list


def look_up(pins: set[str]) -> list[Result]:
    """Look up packages; pip-audit accepts only one version of a package per call."""
    versions: dict[str, list[str]] = {}
    for pin in sorted(pins):
        versions.setdefault(pin.partition("==")[0], []).append(pin)
    calls = zip_longest(*versions.values())
    return [
        result for call in calls for result in pip_audit([pin for pin in call if pin])
    ]


def pip_audit(pins: list[str]) -> list[Result]:
    """Run pip-audit once.

    Raises:
        SystemExit: if it printed no result.
    """
    with tempfile.TemporaryDirectory(prefix="fbt-") as folder:
        requirements_file = Path(folder) / "pins.txt"
        requirements_file.write_text("\n".join(pins) + "\n", encoding="utf-8")
        command = [str(tools()), "-m", "pip_audit", "--no-deps", "--disable-pip"]
        command += [f"--requirement={requirements_file}"]
        command += ["--format=json", "--progress-spinner=off"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return list(json.loads(done.stdout)["dependencies"])
    except (ValueError, KeyError):
        sys.exit(f"pip-audit printed no result:\n{done.stderr[-2000:]}")


def problems(
    pins: set[str], results: list[Result], known: list[Accepted], today: date
) -> list[str]:
    """Describe the packages of a list that were not looked up or are vulnerable."""
    looked_up = {
        f"{canonicalize_name(result['name'])}=={result['version']}"
        for result in results
        if "vulns" in result
    }
    lines = []
    if missing := sorted(pins - looked_up):
        share = f"{len(missing)} of {len(pins)}"
        lines.append(f"not looked up, {share}: {', '.join(missing)}")
    valid = {entry.id for entry in known if today <= entry.until}
    for result in results:
        for vulnerability in result.get("vulns", []):
            if not valid & {vulnerability["id"], *vulnerability["aliases"]}:
                fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
                package = f"{result['name']}=={result['version']}"
                lines.append(f"{package} has {vulnerability['id']}, fixed in {fixed}")
    return lines


def stale(results: list[Result], known: list[Accepted]) -> list[str]:
    """Describe the accepted vulnerabilities that no package has any more."""
    ids = {
        name
        for result in results
        for vulnerability in result.get("vulns", [])
        for name in (vulnerability["id"], *vulnerability["aliases"])
    }
    gone = [entry.id for entry in known if entry.id not in ids]
    return [f"{name}: no package has it any more" for name in gone]


def main() -> None:
    """Look up every list and print the problems."""
    today, known = datetime.now(UTC).date(), accepted()
    lines: list[str] = []
    everything: list[Result] = []
    for name, pins in packages().items():
        results = look_up(pins)
        everything += results
        lines += [f"{name}: {line}" for line in problems(pins, results, known, today)]
        print(f"{name}: {len(pins)} packages", flush=True)
    lines += [f"{ACCEPTED.name}: {line}" for line in stale(everything, known)]
    if lines:
        print("\n".join(lines))
        sys.exit(
            "Not clean: see above. Packages that were not looked up are failures."
        )
    print("Clean: every package was looked up, and none has a known vulnerability.")


if __name__ == "__main__":
    main()
