"""Check everything that a release needs; print what is missing and how to fix it.

Versions and the built book are checked by `make test`, which the report must include.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import distribution
import nightly
from record import commit
from repo import BUILD, ROOT

from fbt._repository import BRANCH, PLACEHOLDER, URL

CODE = ("fbt/*.py", "fbt/*.cpp")  # for git, * also matches /


class Missing(Exception):
    """Something that a release needs, and how to provide it."""


def text(name: str) -> str:
    """Read a file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def git(*arguments: str) -> str:
    """Return the output of a git command."""
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return done.stdout.rstrip()


def version() -> str:
    """Return the version in pyproject.toml."""
    return str(tomllib.loads(text("pyproject.toml"))["project"]["version"])


def changelog() -> str:
    """The changelog begins with this version and today's date."""
    heading = f"## {version()} - {datetime.now(UTC):%Y-%m-%d}"
    first = re.search(r"^## .*$", text("CHANGELOG.md"), re.MULTILINE)
    if first is None or first[0] != heading:
        present = repr(first[0]) if first else "missing"
        raise Missing(
            f"the first heading of CHANGELOG.md is {present}: make it {heading!r}"
        )
    return heading


def clean() -> str:
    """There are no uncommitted changes."""
    if changed := git("status", "--porcelain").splitlines():
        raise Missing(
            f"commit or remove {', '.join(line[3:] for line in changed[:5])}"
        )
    return commit()


def main_branch() -> str:
    """The branch is the one that users install from."""
    if (branch := git("branch", "--show-current")) != BRANCH:
        raise Missing(f"the branch is {branch!r}: switch to {BRANCH}")
    return BRANCH


def no_tag() -> str:
    """The tag does not exist yet."""
    tag = f"v{version()}"
    if git("tag", "--list", tag):
        raise Missing(f"{tag} already exists: choose the next version")
    return tag


def address() -> str:
    """The repository's address is set, and the same everywhere."""
    if f"/{PLACEHOLDER}/" in URL:
        raise Missing(
            f"the address is still {URL}: set it in fbt/_repository.py, "
            "then run `make repository`"
        )
    there = tomllib.loads(text("pyproject.toml"))["project"]["urls"]["Repository"]
    if there != URL:
        raise Missing(
            f"the address in pyproject.toml is {there}, in fbt/_repository.py {URL}: "
            "run `make repository`"
        )
    old = f"{PLACEHOLDER}/" + URL.rsplit("/", 1)[1]
    command = ["git", "grep", "--files-with-matches", "--fixed-strings", old]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode > 1:
        raise Missing(f"git grep: {done.stderr.strip()}")
    if left := done.stdout.split():
        raise Missing(f"{old} is still in {', '.join(left)}: write the new address")
    return URL


def packages() -> str:
    """Wheel and sdist can be built, and contain the right files."""
    files = distribution.build(BUILD / "release")
    if wrong := distribution.differences(*files):
        raise Missing(
            f"unexpected or missing: {', '.join(wrong[:5])}: see pyproject.toml"
        )
    return " and ".join(str(path.relative_to(ROOT)) for path in files)


def promises() -> str:
    """The figures on the page of promises are from runs of this code."""
    trust = json.loads(text("tests/trust.json"))
    runs = [*trust["kills"]["runs"], trust["fuzz"], trust["properties"]]
    for commit_of_run in sorted({run["commit"] for run in runs}):
        if changed := git("diff", "--name-only", commit_of_run, "--", *CODE).split():
            raise Missing(
                f"since {commit_of_run} {changed[0]} has changed: run "
                "`make test-kills`, `make fuzz` and `make test-properties`, "
                "and put the figures into tests/trust.json"
            )
    return "tests/trust.json"


def everything() -> str:
    """`make nightly` passed on this commit."""
    path = nightly.FOLDER / "report.json"
    if not path.exists():
        raise Missing("there is no report: run `make nightly QUICK=1`")
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if report["commit"] != commit():
        raise Missing(
            f"the report is of {report['commit']}, not of {commit()}: "
            "run `make nightly QUICK=1`"
        )
    missing = sorted(set(nightly.steps()) - {row["step"] for row in report["rows"]})
    failed = [row["step"] for row in report["rows"] if row["result"] != "ok"]
    if missing or failed:
        names = (", ".join(steps) or "none" for steps in (failed, missing))
        raise Missing("failed: {}; not run: {}".format(*names))
    return str(nightly.FOLDER.relative_to(ROOT))


Checks = tuple[Callable[[], str], ...]
CHECKS: Checks = (changelog, clean, main_branch, no_tag, address)
CHECKS += (packages, promises, everything)


def main() -> None:
    """Print a line for each check, and fail if anything is missing."""
    missing = 0
    for check in CHECKS:
        about = (check.__doc__ or "").strip()
        try:
            print(f"✓ {about} {check()}", flush=True)
        except Missing as reason:
            missing += 1
            print(f"✗ {about} Now: {reason}", flush=True)
    if missing:
        sys.exit(f"Not ready: {missing} of {len(CHECKS)} checks failed.")
    print(f"Ready: git tag v{version()} && git push origin v{version()}")


if __name__ == "__main__":
    main()
